"""The Flux side of burst.toml: a site's own Flux configuration, extended for the lead and for its followers.

Pure but for :func:`load_site`; imports no flux. What is written, and why:

- ``[bootstrap] hosts``: one entry for each pool after the site's own, so that every rank exists from the start
  (flux-config-bootstrap(5): an instance's size is fixed).
- ``[[resource.config]]``: what each pool's nodes have (flux-config-resource(5)), and the property of the site's own.
- ``[queues]``, in queue mode: every queue is bound to its nodes by ``requires`` (RFC 33), so that ordinary jobs stay at
  home; one queue for each pool; and the staging queue, which no scheduler serves as long as it is stopped.
- ``[ingest.frobnicator]``: fluxburst's plugin, before ``constraints``, with its table ``[burst]``.
- ``[modules.job-ingest] ranks``: burst nodes have no ingest of their own. Jobs submitted there go up to the lead, where
  the plugin's file is.

Flux cannot declare a queue stopped: named queues are created stopped and keep their state over restarts, but
``flux queue start --all`` starts the staging queue too. ``flux burst check`` says so.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fluxburst import hostlist
from fluxburst.bootkit import follower_config
from fluxburst.config import BurstConfig, explain
from fluxburst.errors import ConfigError

PLUGIN = Path(__file__).with_name("frobnicator.py")
"""The frobnicator plugin of this installation."""

DEFAULT_FROBNICATORS = ("defaults", "constraints")
"""What Flux runs when ``[ingest.frobnicator] plugins`` is absent (flux-config-ingest(5))."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What one declared node has: cores and GPUs as ids (RFC 22), properties (RFC 20)."""

    cores: frozenset[int] = frozenset()
    gpus: frozenset[int] = frozenset()
    properties: frozenset[str] = frozenset()

    def merged(self, other: Shape) -> Shape:
        return Shape(self.cores | other.cores, self.gpus | other.gpus, self.properties | other.properties)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Two whole Flux configurations."""

    lead: dict[str, Any] = field(repr=False)
    follower: dict[str, Any] = field(repr=False)

    def lead_toml(self) -> str:
        return _to_toml(self.lead, "the lead (every broker that was there before)")

    def follower_toml(self) -> str:
        return _to_toml(
            self.follower, "followers that are started by hand; fluxburst makes its own from the running lead"
        )


def _to_toml(config: Mapping[str, Any], whom: str) -> str:
    return f"# Flux configuration for {whom}.\n# Written by `flux burst config render`.\n\n{tomli_w.dumps(config)}"


class _Open(BaseModel):
    """A table of which only some keys are read here; Flux knows the others."""

    model_config = ConfigDict(extra="allow")


class _Host(_Open):
    host: str
    parent: str | None = None


class _Bootstrap(_Open):
    curve_cert: str | None = None
    hosts: list[_Host] = []


class _Nodes(_Open):
    hosts: str
    cores: str | None = None
    gpus: str | None = None
    properties: list[str] = []


class _Resource(_Open):
    config: list[_Nodes] | None = None
    path: str | None = None
    exclude: str | None = None


class _Queue(_Open):
    requires: list[str] = []


class _Plugins(_Open):
    plugins: list[str] | None = None


class _Ingest(_Open):
    frobnicator: _Plugins | None = None
    validator: _Plugins | None = None


class _Defaults(_Open):
    queue: str | None = None


class _JobspecDefaults(_Open):
    system: _Defaults = _Defaults()


class _Jobspec(_Open):
    defaults: _JobspecDefaults = _JobspecDefaults()


class _Policy(_Open):
    jobspec: _Jobspec = _Jobspec()


class _Module(_Open):
    ranks: str | None = None


class _Modules(_Open):
    job_ingest: _Module = Field(default=_Module(), alias="job-ingest")


class _Burst(_Open):
    frobnicator: str | None = None


class _Site(_Open):
    bootstrap: _Bootstrap | None = None
    resource: _Resource | None = None
    queues: dict[str, _Queue] = {}
    ingest: _Ingest | None = None
    policy: _Policy = _Policy()
    modules: _Modules = _Modules()
    burst: _Burst = _Burst()


def load_site(path: Path) -> dict[str, Any]:
    """The site's Flux configuration: one TOML file, or all ``*.toml`` of a directory merged in name order as Flux does.

    Raises:
        ConfigError: nothing there, unreadable, no TOML, or a key of the wrong type.
    """
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path}: holds no *.toml file; name the directory or file that Flux itself reads")
    site: dict[str, Any] = {}
    for file in files:
        try:
            _merge(site, tomllib.loads(file.read_text(encoding="utf-8")))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: cannot be read: it is not UTF-8 text ({error.reason})") from None
        except OSError as error:
            raise ConfigError(
                f"{file}: cannot be read: {error.strerror}; name the directory or file that Flux itself reads"
            ) from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file}: not TOML: {error}") from None
    try:
        _Site.model_validate(site)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in explain(error).splitlines())) from None
    return site


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def render(config: BurstConfig, site: Mapping[str, Any], *, frobnicator: Path) -> Rendered:
    """Extend ``site`` for bursting. ``frobnicator`` is the plugin's path on the lead.

    The site's own tables and their order are kept. Rendering a rendered configuration again changes nothing, and with
    another burst.toml it replaces what the former one had added.

    Raises:
        ConfigError: the site's configuration cannot be extended, or contradicts burst.toml; both places are named.
    """
    lead = copy.deepcopy(dict(site))
    _forget(lead)
    _extend_bootstrap(lead, config)
    _extend_resources(lead, config)
    if config.mode == "queue":
        _extend_queues(lead, config)
    _extend_ingest(lead, config, frobnicator)
    for line in unstartable(lead, config):
        raise ConfigError(line)
    return Rendered(lead=lead, follower=follower_config(lead, config))


def shapes(resource_config: Sequence[Mapping[str, Any]]) -> dict[str, Shape]:
    """Host to shape, from ``[resource] config``; entries of one host add up (flux-config-resource(5)).

    Raises:
        ConfigError: an entry is malformed.
    """
    found: dict[str, Shape] = {}
    for index, entry in enumerate(resource_config):
        try:
            shape = Shape(
                hostlist.ids(entry.get("cores", "")),
                hostlist.ids(entry.get("gpus", "")),
                frozenset(entry.get("properties", ())),
            )
            for host in hostlist.expand(entry["hosts"]):
                found[host] = found.get(host, Shape()).merged(shape)
        except KeyError:
            raise ConfigError(f"[resource] config[{index}]: hosts is required") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"[resource] config[{index}]: {error}") from None
    return found


def bootstrap_hosts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """All hosts of ``[bootstrap] hosts`` in rank order; of repeated ones the first counts (flux-config-bootstrap(5)).

    Raises:
        ConfigError: an entry is malformed.
    """
    names: dict[str, None] = {}
    for index, entry in enumerate(config.get("bootstrap", {}).get("hosts", ())):
        try:
            names.update(dict.fromkeys(hostlist.expand(entry["host"])))
        except KeyError:
            raise ConfigError(f"[bootstrap] hosts[{index}]: host is required") from None
        except ValueError as error:
            raise ConfigError(f"[bootstrap] hosts[{index}]: {error}") from None
    return tuple(names)


def pool_resources(config: BurstConfig, pool: str) -> dict[str, Any]:
    """The ``[[resource.config]]`` entry of one pool."""
    spec = config.pool[pool]
    entry: dict[str, Any] = {"hosts": spec.hosts, "cores": first_ids(spec.cores)}
    if spec.gpus:
        entry["gpus"] = first_ids(spec.gpus)
    return entry | {"properties": list(dict.fromkeys([config.property_of(pool), *spec.properties]))}


def pool_queue(config: BurstConfig, pool: str) -> dict[str, Any]:
    """The ``[queues.NAME]`` table of one pool."""
    return {"requires": [config.property_of(pool)]}


def overlaps(queues: Mapping[str, Any], config: BurstConfig, home: Mapping[str, Shape]) -> Iterator[str]:
    """Queues that admit nodes which are not theirs: every one would run ordinary jobs on paid nodes, or burst at home.

    ``home`` are the site's own nodes. One line for each, naming both places and the fix.
    """
    pool_queues = config.pool_queues()
    for queue, table in queues.items():
        requires = set(table.get("requires", ()))
        if queue == config.staging_queue:
            continue
        for pool in config.pool:
            properties = pool_resources(config, pool)["properties"]
            if pool_queues.get(queue) != pool and requires <= set(properties):
                yield (
                    f"[queues.{queue}] requires = {sorted(requires)} admits the nodes of [pool.{pool}], which have "
                    f"{properties}; add {config.home.property!r} to the queue's, or change the pool's properties"
                )
        if queue in pool_queues:
            own = sorted(host for host, shape in home.items() if requires <= shape.properties)
            if own:
                yield (
                    f"[pool.{pool_queues[queue]}] property: {hostlist.fold(own)} in [resource] config has "
                    f"{sorted(requires)} already; choose another property for the pool"
                )


def unstartable(lead: Mapping[str, Any], config: BurstConfig) -> Iterator[str]:
    """What Flux does not start with, beside the pools: one line for each, naming both places and the fix.

    ``[bootstrap]`` and ``[resource] config`` must name the same hosts, since flux-core's resource module ranks R by the
    former; and the default queue must exist (RFC 33).
    """
    if "config" in lead.get("resource", {}):
        hosts = set(bootstrap_hosts(lead)) - {host for pool in config.pool for host in config.hosts_of(pool)}
        nodes = _home(lead, config).keys()
        if hosts - nodes:
            yield (
                f"[bootstrap] hosts: {hostlist.fold(hosts - nodes)} is not in [resource] config, so that Flux would "
                "not start; declare the same hosts in both"
            )
        if nodes - hosts:
            yield (
                f"[resource] config: {hostlist.fold(nodes - hosts)} is not in [bootstrap] hosts, so that Flux would "
                "not start; declare the same hosts in both"
            )
    queue = lead.get("policy", {}).get("jobspec", {}).get("defaults", {}).get("system", {}).get("queue")
    if queue is not None and queue not in lead.get("queues", {}):
        yield (
            f"[policy.jobspec.defaults.system] queue: {queue!r} is not in [queues], so that Flux would not start; "
            "name a queue that is there"
        )


def first_ids(count: int) -> str:
    """The ids 0 to count - 1 as an id set (RFC 22)."""
    return "0" if count == 1 else f"0-{count - 1}"


def _forget(lead: dict[str, Any]) -> None:
    """Take out what an earlier render put in; its table ``[burst]`` says what that was."""
    earlier = lead.pop("burst", None)
    if earlier is None:
        return
    try:
        pools = earlier["pools"]
        hosts = {pool["hosts"] for pool in pools.values()}
        queues = {pool["queue"] for pool in pools.values() if "queue" in pool} | {earlier.get("staging")}
        plugin = earlier["frobnicator"]
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(
            "[burst]: not as `flux burst config render` writes it; remove the table and what it had added, render again"
        ) from None
    for table, key, name in (("bootstrap", "hosts", "host"), ("resource", "config", "hosts")):
        section = lead.get(table, {})
        section[key] = [entry for entry in section.get(key, ()) if entry.get(name) not in hosts]
    if "queues" in lead:
        lead["queues"] = {name: table for name, table in lead["queues"].items() if name not in queues}
    plugins = lead.get("ingest", {}).get("frobnicator", {}).get("plugins", [])
    if plugin in plugins:
        plugins.remove(plugin)
    modules = lead.get("modules", {})
    if "ingest_ranks" in earlier and modules.get("job-ingest", {}).get("ranks") == earlier["ingest_ranks"]:
        del modules["job-ingest"]["ranks"]


def _extend_bootstrap(lead: dict[str, Any], config: BurstConfig) -> None:
    bootstrap = lead.get("bootstrap", {})
    entries = bootstrap.get("hosts")
    if not entries:
        raise ConfigError(
            "[bootstrap] hosts: is missing; declare the lead: "
            'hosts = [{host = "HOSTNAME", bind = "tcp://*:8050", connect = "tcp://HOSTNAME:8050"}]'
        )
    if not bootstrap.get("curve_cert"):
        raise ConfigError(
            "[bootstrap] curve_cert: is missing; make a certificate with `flux keygen /etc/flux/system/curve.cert` "
            'and set curve_cert = "/etc/flux/system/curve.cert"'
        )
    wanted = [{"host": spec.hosts} for spec in config.pool.values()]
    entries = bootstrap["hosts"] = [entry for entry in entries if entry not in wanted]
    own = bootstrap_hosts(lead)
    lead_entries = [entry for entry in entries if own[0] in hostlist.expand(entry["host"])]
    for key in ("bind", "connect"):
        if not any(key in entry for entry in lead_entries) and f"default_{key}" not in bootstrap:
            raise ConfigError(f'[bootstrap] hosts: rank 0, {own[0]}, has no {key}; set such as {key} = "tcp://*:8050"')
    taken = frozenset(own)
    for pool in config.pool:
        for host in config.hosts_of(pool):
            if host in taken:
                raise ConfigError(
                    f"[pool.{pool}] hosts: {host} is already in the site's [bootstrap] hosts; "
                    "give the pool names that the site does not use"
                )
    entries += wanted


def _extend_resources(lead: dict[str, Any], config: BurstConfig) -> None:
    resource = lead.get("resource", {})
    if not resource.get("config"):
        now = f"path = {resource['path']!r}" if "path" in resource else "absent"
        raise ConfigError(
            f"[resource] config: is needed, and is {now}; declare the site's own nodes as [[resource.config]] entries "
            "with hosts, cores, gpus and properties (`flux resource list` shows them)"
        )
    if "scheduling" in resource:
        raise ConfigError("[resource] scheduling: its graph (RFC 20) lacks the pools' nodes; remove it to burst")
    wanted = [pool_resources(config, pool) for pool in config.pool]
    resource["config"] = [entry for entry in resource["config"] if entry not in wanted]
    home = shapes(resource["config"])
    for pool in config.pool:
        for host in config.hosts_of(pool):
            if host in home:
                raise ConfigError(
                    f"[pool.{pool}] hosts: {host} is already in the site's [resource] config; "
                    "give the pool names that the site does not use"
                )
        name = config.property_of(pool)
        if any(name in shape.properties for shape in home.values()) or name == config.home.property:
            raise ConfigError(
                f"[pool.{pool}] property: {name!r} is already a property of the site's own nodes in [resource] config; "
                "choose another"
            )
    if config.mode == "queue" and any(config.home.property not in shape.properties for shape in home.values()):
        everyone = ",".join(_cover(entry["hosts"] for entry in resource["config"]))
        resource["config"].append({"hosts": everyone, "properties": [config.home.property]})
    resource["config"] += wanted


def _cover(lists: Iterator[str]) -> Iterator[str]:
    """Host lists that name every host once, as the site wrote them where they do not overlap."""
    seen: set[str] = set()
    for text in lists:
        hosts = hostlist.expand(text)
        more = [host for host in hosts if host not in seen]
        yield from [text] if len(more) == len(hosts) else more
        seen.update(more)


def _extend_queues(lead: dict[str, Any], config: BurstConfig) -> None:
    queues = lead.get("queues") or {}
    wanted = {queue: pool_queue(config, pool) for queue, pool in config.pool_queues().items()}
    wanted[config.staging_queue] = {}
    where = {queue: f"[pool.{pool}] queue" for queue, pool in config.pool_queues().items()}
    for queue, table in wanted.items():
        if queue in queues and queues[queue].get("requires", []) != table.get("requires", []):
            raise ConfigError(
                f"{where.get(queue, 'staging_queue')}: the site's [queues.{queue}] requires "
                f"{queues[queue].get('requires', [])}, not {table.get('requires', [])}; choose another queue name"
            )
    if not queues.keys() - wanted.keys():
        if config.home.queue in wanted:
            raise ConfigError(
                f"{where.get(config.home.queue, 'staging_queue')}: {config.home.queue!r} is [home] queue, the only one "
                "for ordinary jobs; choose another name for one of them"
            )
        queues = {config.home.queue: {}} | queues
        system = lead
        for key in ("policy", "jobspec", "defaults", "system"):
            system = system.setdefault(key, {})
        system.setdefault("queue", config.home.queue)
    for queue, table in queues.items():
        if queue not in wanted and not table.get("requires"):
            table["requires"] = [config.home.property]
    lead["queues"] = {queue: table for queue, table in queues.items() if queue not in wanted} | {
        queue: table | queues.get(queue, {}) for queue, table in wanted.items()
    }
    for line in overlaps(lead["queues"], config, _home(lead, config)):
        raise ConfigError(line)


def _home(lead: Mapping[str, Any], config: BurstConfig) -> dict[str, Shape]:
    ghosts = {host for pool in config.pool for host in config.hosts_of(pool)}
    return {
        host: shape for host, shape in shapes(lead.get("resource", {}).get("config", ())).items() if host not in ghosts
    }


def excluded(lead: Mapping[str, Any]) -> frozenset[str]:
    """The hosts of ``[resource] exclude``, which is a host list or an id set of ranks (flux-config-resource(5)).

    Raises:
        ConfigError: it is neither.
    """
    text = lead.get("resource", {}).get("exclude", "")
    if not text:
        return frozenset()
    try:
        if re.fullmatch(r"[\[\]\d,-]+", text):
            names = bootstrap_hosts(lead)
            return frozenset(names[rank] for rank in hostlist.ids(text) if rank < len(names))
        return frozenset(hostlist.expand(text))
    except ValueError as error:
        raise ConfigError(f"[resource] exclude: {error}") from None


def _extend_ingest(lead: dict[str, Any], config: BurstConfig, frobnicator: Path) -> None:
    table = lead.setdefault("ingest", {}).setdefault("frobnicator", {})
    if table.get("disable"):
        raise ConfigError("[ingest.frobnicator] disable: bursting needs the frobnicator; remove the key")
    plugins = [name for name in table.get("plugins") or DEFAULT_FROBNICATORS if name != str(frobnicator)]
    if config.mode == "queue" and "constraints" not in plugins:
        raise ConfigError(
            '[ingest.frobnicator] plugins: "constraints" is missing, so no queue is bound to its nodes; add it'
        )
    place = plugins.index("constraints") if "constraints" in plugins else len(plugins)
    table["plugins"] = [*plugins[:place], str(frobnicator), *plugins[place:]]
    burst = burst_table(lead, config, frobnicator)
    job_ingest = lead.setdefault("modules", {}).setdefault("job-ingest", {})
    if "ranks" not in job_ingest:
        own = set(bootstrap_hosts(lead)) - {host for pool in config.pool for host in config.hosts_of(pool)}
        job_ingest["ranks"] = burst["ingest_ranks"] = first_ids(len(own))
    lead["burst"] = burst


def burst_table(lead: Mapping[str, Any], config: BurstConfig, frobnicator: Path) -> dict[str, Any]:
    """The table ``[burst]``: what the frobnicator plugin works by, and what a later render takes out again.

    ``lead`` has all the other tables. ``capacity`` counts the site's own nodes by equal shape, without excluded ones.
    """
    away = excluded(lead)
    equal = Counter(shape for host, shape in _home(lead, config).items() if host not in away)
    burst: dict[str, Any] = {"mode": config.mode, "frobnicator": str(frobnicator)}
    if config.mode == "queue":
        burst["staging"] = config.staging_queue
    burst["pools"] = {
        pool: {"hosts": spec.hosts, "property": config.property_of(pool)}
        | ({"queue": config.queue_of(pool)} if config.mode == "queue" else {})
        for pool, spec in config.pool.items()
    }
    burst["capacity"] = [
        {
            "count": count,
            "cores": len(shape.cores),
            "gpus": len(shape.gpus),
            "properties": sorted(shape.properties),
        }
        for shape, count in equal.items()
    ]
    return burst
