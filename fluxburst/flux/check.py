"""``flux burst check``: is this Flux instance fit for bursting, and what is the fix where it is not?

:func:`snapshot` is the only part that talks to Flux; :func:`from_files` takes a configuration without an instance. The
checks are functions from burst.toml and a :class:`Snapshot` to findings: one finding for each thing that is wrong, or
one that says it is fit. Those in :data:`PROBES` also look at this machine's users, files and network.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxburst import hostlist
from fluxburst.config import BurstConfig
from fluxburst.errors import InstanceError
from fluxburst.flux import bindings
from fluxburst.flux.render import (
    DEFAULT_FROBNICATORS,
    Shape,
    bootstrap_hosts,
    burst_table,
    excluded,
    overlaps,
    pool_queue,
    pool_resources,
    shapes,
    unstartable,
)
from fluxburst.model import Finding, Severity

OLDEST = bindings.OLDEST[:2]
"""The oldest flux-core whose ``hostname`` attribute chooses a broker's rank."""

TESTED = (0, 88)

WAITING_POLICIES = frozenset({"easy", "hybrid", "conservative"})
"""Fluxion's queue policies under which a job that wants nodes that are down waits, and later jobs run."""

ATTRIBUTES = ("version", "broker.quorum", "security.owner", "tbon.topo", "hostlist")
"""Broker attributes that are asked for: flux-broker-attributes(7)."""

ANSWER_TIMEOUT_S = 10.0
REACH_TIMEOUT_S = 3.0
RENDER = "write the configuration with `flux burst config render` and restart the lead"


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue's state in a running instance."""

    enabled: bool
    started: bool


@dataclass(frozen=True, slots=True)
class Live:
    """What only a running instance knows.

    ``attributes`` are the lead broker's, ``services`` maps a service to the module that provides it, ``policies`` are
    Fluxion's queue policies by queue ("default" among them; empty under other schedulers), ``method`` is where the
    resource module got R from, and ``uid`` is the user that asked.
    """

    attributes: Mapping[str, str]
    hosts: tuple[str, ...]
    services: Mapping[str, str]
    queues: Mapping[str, Queue]
    policies: Mapping[str, str]
    method: str
    uid: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A lead as it is: its configuration, the running instance if there is one, and what these say of the nodes.

    ``hosts`` are those of ``[bootstrap]`` in rank order; ``nodes`` is what R, or else ``[resource] config``, says of
    them.
    """

    config: Mapping[str, Any] = field(repr=False)
    hosts: tuple[str, ...]
    nodes: Mapping[str, Shape] = field(repr=False)
    excluded: frozenset[str] = frozenset()
    live: Live | None = None


def snapshot(handle: Any) -> Snapshot:
    """Ask a running instance, through an open ``flux.Flux`` handle.

    Raises:
        InstanceError: it refused a question.
    """
    try:
        return _snapshot(handle, lambda topic, **payload: handle.rpc(topic, payload, nodeid=0).get())
    except OSError as error:
        raise InstanceError(f"cannot ask the lead broker: {error}; run this as the instance's owner") from error


def _snapshot(handle: Any, ask: Callable[..., Any]) -> Snapshot:
    from flux.hostlist import Hostlist
    from flux.idset import IDset

    attributes = {name: ask("attr.get", name=name)["value"] for name in ATTRIBUTES}
    hosts = tuple(Hostlist(attributes["hostlist"]))
    modules = ask("module.list")["mods"]
    services = {name: module["name"] for module in modules for name in [module["name"], *module["services"]]}
    states = {name: ask("job-manager.queue-status", name=name) for name in ask("job-manager.queue-list")["queues"]}
    fluxion = "sched-fluxion-qmanager" in services
    params = ask("sched-fluxion-qmanager.params")["params"] if fluxion else {}
    try:
        resource = ask("resource.status")
    except FileNotFoundError:  # without configuration, there is no R before every broker has been up
        nodes, away, method = {}, frozenset[str](), "discovery"
    else:
        nodes = _nodes(resource["R"]["execution"], hosts)
        away = frozenset(hosts[rank] for rank in IDset(resource["exclude"]))
        method = _resource_method(handle)
    config = ask("config.get")
    return Snapshot(
        config=config,
        hosts=bootstrap_hosts(config),
        nodes=nodes,
        excluded=away,
        live=Live(
            attributes=attributes,
            hosts=hosts,
            services=services,
            queues={name: Queue(state["enable"], state["start"]) for name, state in states.items()},
            policies={key: table["queue-policy"] for key, table in params.items() if isinstance(table, dict)},
            method=method,
            uid=os.geteuid(),
        ),
    )


def _nodes(execution: Mapping[str, Any], hosts: tuple[str, ...]) -> dict[str, Shape]:
    """What R's ``execution`` (RFC 20) says of each host; its ranks are the brokers'."""
    from flux.idset import IDset

    nodes: dict[str, Shape] = {}
    for group in execution["R_lite"]:
        cores, gpus = (frozenset(IDset(group["children"].get(kind, ""))) for kind in ("core", "gpu"))
        for rank in IDset(group["rank"]):
            nodes[hosts[rank]] = Shape(cores, gpus).merged(nodes.get(hosts[rank], Shape()))
    for name, ranks in execution.get("properties", {}).items():
        for rank in IDset(ranks):
            nodes[hosts[rank]] = nodes[hosts[rank]].merged(Shape(properties=frozenset({name})))
    return nodes


def _resource_method(handle: Any) -> str:
    """Where the instance's R came from: ``method`` of the last ``resource-define`` event in its journal."""
    from flux.resource import ResourceJournalConsumer

    method = ""
    journal = ResourceJournalConsumer(handle, include_sentinel=True).start()
    while not (event := journal.poll(ANSWER_TIMEOUT_S)).is_empty():
        if event.name == "resource-define":
            method = event.context["method"]
    journal.stop()
    return method


def from_files(config: Mapping[str, Any]) -> Snapshot:
    """What a configuration alone tells, such as :func:`fluxburst.flux.render.load_site` reads it.

    Raises:
        ConfigError: a table cannot be read.
    """
    nodes = shapes(config.get("resource", {}).get("config", ()))
    return Snapshot(config, bootstrap_hosts(config), nodes, excluded(config))


def check(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    """All findings, one line each, in the order in which they are best mended."""
    for one in CHECKS + PROBES:
        yield from one(config, seen)


def _ok(subject: str, message: str) -> Finding:
    return Finding(subject, Severity.OK, message)


def _error(subject: str, message: str, fix: str) -> Finding:
    return Finding(subject, Severity.ERROR, message, fix)


def _warning(subject: str, message: str, fix: str) -> Finding:
    return Finding(subject, Severity.WARNING, message, fix)


def _running(_config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    if seen.live is None:
        yield _warning(
            "instance",
            "only files were read: version, quorum, scheduler policy and queue states are not checked",
            "run `flux burst check` in the running instance as well",
        )


def _version(_config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    if seen.live is None:
        return
    text = seen.live.attributes["version"]
    version = tuple(int(number) for number in re.findall(r"\d+", text)[:2])
    if version < OLDEST:
        yield _error("version", f"flux-core {text} is too old", "install flux-core 0.82 or later")
    elif version > TESTED:
        yield _warning("version", f"flux-core {text} is newer than any that was tested", "report what does not work")
    else:
        yield _ok("version", f"flux-core {text}")


def _owner(_config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    if seen.live is None:
        return
    owner = seen.live.attributes["security.owner"]
    if str(seen.live.uid) == owner:
        yield _ok("owner", f"user id {owner} owns the instance")
    else:
        yield _error(
            "owner",
            f"user id {seen.live.uid} does not own the instance, user id {owner} does",
            f"run the service and this check as user id {owner}",
        )


def _configuration(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    problems = list(unstartable(seen.config, config))
    for line in problems:
        what, _, fix = line.rpartition("; ")
        yield _error("configuration", what, f"{fix} in your own configuration, and {RENDER}")
    if not problems:
        yield _ok("configuration", "[bootstrap], [resource] and [queues] agree")


def _bootstrap(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    fit, declared, ghosts = True, frozenset(seen.hosts), frozenset(_ghosts(config))
    for pool in config.pool:
        missing = [host for host in config.hosts_of(pool) if host not in declared]
        if missing:
            fit = False
            yield _error("hosts", f"[bootstrap] hosts lacks {hostlist.fold(missing)} of [pool.{pool}]", RENDER)
    parents = {
        entry["parent"]: entry["host"]
        for entry in seen.config.get("bootstrap", {}).get("hosts", ())
        if "parent" in entry and not ghosts.isdisjoint(hostlist.expand(entry["host"]))
    }
    for parent, host in parents.items():
        fit = False
        yield _error("hosts", f"[bootstrap] hosts: {host} has parent = {parent!r}", "remove it: the lead is the parent")
    if seen.live and set(seen.live.hosts) != declared:
        fit = False
        yield _error(
            "hosts",
            f"the instance runs with {len(seen.live.hosts)} hosts, its configuration has {len(seen.hosts)}",
            "restart the lead: Flux reads [bootstrap] only when it starts",
        )
    if seen.live and seen.live.attributes["tbon.topo"] not in ("custom", "kary:0"):
        fit = False
        yield _error(
            "hosts",
            f"the topology is {seen.live.attributes['tbon.topo']}: followers would dial nodes that are not there",
            "remove tbon.topo and tbon.fanout from the configuration and the broker's options",
        )
    if fit:
        pools = ", ".join(f"{len(config.hosts_of(pool))} of {pool}" for pool in config.pool)
        yield _ok("hosts", f"{len(seen.hosts)} declared, {pools} among them")


def _quorum(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    if seen.live is None:
        return
    quorum, home = int(seen.live.attributes["broker.quorum"]), len(set(seen.live.hosts) - set(_ghosts(config)))
    if quorum <= home:
        yield _ok("quorum", f"the lead starts when {quorum} of its {home} own brokers are up")
    else:
        yield _error(
            "quorum",
            f"broker.quorum is {quorum}: the lead would wait for ghosts when it is started again",
            "start it with -Sbroker.quorum=1 -Sbroker.quorum-warn=none",
        )


def _resources(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    table = seen.config.get("resource", {})
    if not ("config" in table or "path" in table) or (seen.live and seen.live.method != "configuration"):
        found = f" but from {seen.live.method}" if seen.live else ""
        yield _error(
            "resources",
            f"R does not come from the configuration{found}: Flux would forget nodes that leave",
            f"declare all nodes in [resource] config, and never use `flux resource reload`; {RENDER}",
        )
    else:
        yield _ok("resources", "R comes from the configuration, so that nodes may leave and come back")
    for pool in config.pool:
        yield from _pool(config, seen, pool)


def _host_names(_config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    """``[resource] noverify`` and ``verify``, a boolean or a table, as in flux-config-resource(5)."""
    table = seen.config.get("resource", {})
    verify = table.get("verify", {"hostname": "strict"})
    mode = verify.get("hostname", verify.get("default", "strict")) if isinstance(verify, dict) else "strict"
    if table.get("noverify") or verify is False or mode != "strict":
        yield _ok("host names", "nodes may have other names than their declared ones")
    else:
        yield _warning(
            "host names",
            "Flux drains each node whose real host name differs from its declared one",
            'unless they are the same, set [resource.verify] default = "allow-extra", gpu = "ignore" and '
            f'hostname = "ignore" in your own configuration, and {RENDER}',
        )


def _pool(config: BurstConfig, seen: Snapshot, pool: str) -> Iterator[Finding]:
    subject, wanted = f"pool {pool}", pool_resources(config, pool)
    want = shapes([wanted])
    for host, shape in want.items():
        found = seen.nodes.get(host)
        if found is None:
            yield _error(subject, f"R lacks {host}", RENDER)
        elif (found.cores, found.gpus) != (shape.cores, shape.gpus):
            yield _error(
                subject,
                f"{host} has {len(found.cores)} cores and {len(found.gpus)} GPUs in R, "
                f"{len(shape.cores)} and {len(shape.gpus)} in [pool.{pool}]",
                f"set the pool's cores and gpus to what its nodes have, and {RENDER}",
            )
        elif not shape.properties <= found.properties:
            lacking = ", ".join(sorted(shape.properties - found.properties))
            yield _error(subject, f"{host} lacks the property {lacking} in R", RENDER)
        elif host in seen.excluded:
            yield _error(
                subject, f"{host} is in [resource] exclude: no job would ever run there", "take it out of exclude"
            )
        else:
            continue
        return
    most = config.pool[pool].max_nodes
    if most is not None and most > len(want):
        yield _warning(
            subject,
            f"max_nodes = {most} in burst.toml limits nothing: the pool declares {len(want)} hosts",
            "lower or remove it, or declare more hosts",
        )
        return
    yield _ok(subject, f"{len(want)} nodes of {config.pool[pool].cores} cores and {config.pool[pool].gpus} GPUs in R")


def _queues(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    queues = seen.config.get("queues", {})
    if config.mode == "open":
        if queues:
            yield _warning(
                "queues",
                'this instance has named queues, but burst.toml says mode = "open"',
                'set mode = "queue": it keeps jobs within one pool and works under every scheduler',
            )
        return
    problems = list(_queue_problems(config, seen))
    yield from problems or [
        _ok("queues", f"{', '.join(config.pool_queues())} for pools, {config.staging_queue} stopped")
    ]


def _queue_problems(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    queues = seen.config.get("queues", {})
    wanted = {queue: pool_queue(config, pool) for queue, pool in config.pool_queues().items()}
    wanted[config.staging_queue] = {}
    for queue, table in wanted.items():
        subject = f"queue {queue}"
        if queue not in queues:
            yield _error(subject, f"[queues.{queue}] is missing", RENDER)
            continue
        have, need = queues[queue].get("requires", []), table.get("requires", [])
        if have != need:
            yield _error(subject, f"[queues.{queue}] requires {have}, not {need}", RENDER)
        state = seen.live.queues.get(queue) if seen.live else None
        if state is None:
            continue
        if not state.enabled:
            yield _error(subject, "is disabled: no job can be moved to it", f"flux queue enable {queue}")
        if queue == config.staging_queue and state.started:
            yield _warning(
                subject,
                "is started: the scheduler would fail or be blocked by jobs that wait for nodes",
                f"`flux burst run` stops it when it starts, or now: flux queue stop {queue}",
            )
        if queue != config.staging_queue and not state.started:
            yield _warning(subject, "is stopped", "nothing: `flux burst run` starts the pools' queues when it starts")
    for queue, state in seen.live.queues.items() if seen.live else ():
        if queue not in wanted and not state.started:
            yield _warning(f"queue {queue}", "is stopped: its jobs do not start", f"flux queue start {queue}")
    ghosts = set(_ghosts(config))
    home = {host: shape for host, shape in seen.nodes.items() if host not in ghosts}
    ordinary = [set(table.get("requires", ())) for queue, table in queues.items() if queue not in wanted]
    if home and not any(requires <= shape.properties for requires in ordinary for shape in home.values()):
        yield _error(
            "queues",
            f"no queue admits the site's own nodes, {hostlist.fold(home)}: ordinary jobs run nowhere",
            f'declare [queues.NAME] requires = ["{config.home.property}"] in your own configuration, and {RENDER}',
        )
    for line in overlaps(queues, config, home):
        what, _, fix = line.rpartition("; ")
        yield _error("queues", what, fix)


def _scheduler(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    if seen.live is None:
        return
    module = seen.live.services.get("sched")
    if module is None:
        yield _error("scheduler", "no scheduler is loaded", "load one: `flux module load sched-simple`, or Fluxion's")
        return
    unfit = {queue: policy for queue, policy in seen.live.policies.items() if policy not in WAITING_POLICIES}
    if config.mode == "queue":
        yield _ok("scheduler", f"{module}; every scheduler is fit in queue mode")
    elif module != "sched-fluxion-qmanager":
        yield _error(
            "scheduler",
            f"{module}: a job that waits for nodes blocks all jobs behind it, or is failed",
            'use Fluxion with queue-policy = "easy", or set mode = "queue" in burst.toml',
        )
    elif unfit:
        queue, policy = next(iter(unfit.items()))
        yield _error(
            "scheduler",
            f"Fluxion's policy {policy!r} (queue {queue}) fails jobs that want more nodes than are up",
            'set [sched-fluxion-qmanager] queue-policy = "easy" and restart the lead, or use mode = "queue"',
        )
    else:
        yield _ok("scheduler", f"Fluxion with {', '.join(sorted(set(seen.live.policies.values())))}")


def _frobnicator(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    table = seen.config.get("burst", {})
    path = table.get("frobnicator")
    ingest = seen.config.get("ingest", {}).get("frobnicator", {})
    plugins = list(ingest.get("plugins") or DEFAULT_FROBNICATORS)
    problem = None
    if path is None:
        problem = "the table [burst] is missing"
    elif ingest.get("disable"):
        problem = "[ingest.frobnicator] disable is set"
    elif path not in plugins:
        problem = f"[ingest.frobnicator] plugins lacks {path}"
    elif config.mode == "queue" and "constraints" not in plugins[plugins.index(path) :]:
        problem = f'[ingest.frobnicator] plugins: "constraints" does not come after {path}'
    elif table | {"ingest_ranks": None} != burst_table(seen.config, config, Path(path)) | {"ingest_ranks": None}:
        problem = "[burst] differs from what burst.toml and the other tables say now"
    if problem:
        yield _error("frobnicator", problem, RENDER)
    else:
        yield _ok("frobnicator", f"{path} is configured")
    if "feasibility" in seen.config.get("ingest", {}).get("validator", {}).get("plugins", ()):
        if problem:
            yield _error(
                "feasibility validator",
                "burstable jobs larger than their queue's nodes are refused at submit",
                f'{RENDER}, or take "feasibility" out of [ingest.validator] plugins',
            )
        else:
            yield _ok("feasibility validator", "counts ghosts: refuses only what all declared nodes could not run")


def _burst_ingest(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    ranks = seen.config.get("modules", {}).get("job-ingest", {}).get("ranks", "all")
    try:
        has_ingest = range(len(seen.hosts)) if ranks == "all" else hostlist.ids(ranks)
    except ValueError:
        return  # a form such as "<4" that names ranks by comparison
    away = set(_ghosts(config))
    if any(rank in has_ingest for rank, host in enumerate(seen.hosts) if host in away):
        yield _warning(
            "ingest",
            "burst nodes have an ingest of their own, which fails where the frobnicator's file is not installed",
            f"set [modules.job-ingest] ranks to the site's own ranks: {RENDER}",
        )
    else:
        yield _ok("ingest", "jobs submitted on a burst node go to the lead's ingest")


def _select(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    rules, queues = config.select, seen.config.get("queues", {})
    unknown = {
        "queues": [queue for queue in rules.queues if queue not in queues],
        "users": [user for user in rules.users if isinstance(user, str) and not _is_user(user)],
    }
    for key, names in unknown.items():
        if names:
            yield _warning(
                "select",
                f"[select] {key} in burst.toml names {', '.join(names)}, which the lead does not know",
                "mend the spelling, or remove it",
            )


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _ghosts(config: BurstConfig) -> Iterator[str]:
    for pool in config.pool:
        yield from config.hosts_of(pool)


def _frobnicator_file(_config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    path = seen.config.get("burst", {}).get("frobnicator")
    if path is None:
        return  # reported by _frobnicator
    try:
        Path(path).read_bytes()
    except OSError as error:
        yield _error("frobnicator file", f"{path}: {error.strerror}: every submission would fail", RENDER)
    else:
        yield _ok("frobnicator file", f"{path} can be read")


def _certificate(_config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    path = seen.config.get("bootstrap", {}).get("curve_cert")
    if path is None:
        yield _error(
            "certificate",
            "[bootstrap] curve_cert is missing",
            "make one with `flux keygen PATH`, set curve_cert = PATH and restart the lead",
        )
        return
    try:
        found = Path(path).stat()
    except OSError as error:
        yield _error("certificate", f"{path}: {error.strerror}", f"make it with `flux keygen {path}` as the owner")
        return
    mode = stat.S_IMODE(found.st_mode)
    owner = seen.live.attributes["security.owner"] if seen.live else str(os.geteuid())
    if mode & 0o077:
        yield _error("certificate", f"{path} has mode {mode:04o}: others may read the key", f"chmod 600 {path}")
    elif str(found.st_uid) != owner:
        yield _error("certificate", f"{path} belongs to user id {found.st_uid}", f"chown {owner} {path}")
    else:
        yield _ok("certificate", f"{path} belongs to the instance's owner alone")


def _reachable(config: BurstConfig, seen: Snapshot) -> Iterator[Finding]:
    """Dial ``[lead] connect`` from here. A ZeroMQ peer speaks first: 10 bytes, 0xFF to 0x7F (ZMTP 3.1, greeting)."""
    endpoint = config.lead.connect
    match = re.fullmatch(r"tcp://\[?(.+?)\]?:(\d+)", endpoint)
    if match is None or seen.live is None:
        return  # a Unix socket, or no lead that could answer
    fix = "let [lead] connect lead to the bind address of rank 0, through the firewall or NodePort, with its port open"
    try:
        with socket.create_connection((match[1], int(match[2])), REACH_TIMEOUT_S) as dialled:
            dialled.settimeout(REACH_TIMEOUT_S)
            greeting = dialled.recv(10, socket.MSG_WAITALL)
    except OSError as error:
        yield _error("reach", f"{endpoint}: {error}", fix)
        return
    if len(greeting) == 10 and greeting[0] == 0xFF and greeting[9] == 0x7F:
        yield _ok("reach", f"{endpoint} answers as a ZeroMQ peer, dialled from here")
    else:
        yield _error("reach", f"{endpoint} is open, but no ZeroMQ peer answers there", fix)


Check = Callable[[BurstConfig, Snapshot], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    _running,
    _version,
    _owner,
    _configuration,
    _bootstrap,
    _quorum,
    _resources,
    _host_names,
    _queues,
    _scheduler,
    _frobnicator,
    _burst_ingest,
)
"""Pure."""

PROBES: tuple[Check, ...] = (_select, _frobnicator_file, _certificate, _reachable)
"""These look at users, files and the network."""
