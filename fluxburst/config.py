"""burst.toml as models. Every error names the table, the key and the fix."""

from __future__ import annotations

import os
import re
import tomllib
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from fluxburst import durations, hostlist
from fluxburst.errors import ConfigError
from fluxburst.model import Host, PoolSpec

Duration = Annotated[float, BeforeValidator(durations.parse)]
"""A Flux Standard Duration in the file, seconds in the model."""

IDLE_LEAST_S, IDLE_MOST_S = 10.0, 300.0
"""How long a node may be idle where ``idle_timeout`` does not say so."""

NAME = r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$"


def explain(error: ValidationError, where: str = "") -> str:
    """One line for each thing that pydantic found wrong: ``[table] key: what``."""
    lines = []
    for item in error.errors(include_url=False):
        # below a list pydantic counts items and names a union's members; a person looks for the list's key
        place = [str(part) for part in takewhile(lambda part: isinstance(part, str), item["loc"])]
        tables, key = [*filter(None, [where]), *place[:-1]], place[-1:]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key; remove it or mend its spelling"
        elif item["type"] == "missing":
            message = "is required"
        head = " ".join([*([f"[{'.'.join(tables)}]"] if tables else []), *key])
        lines.append(f"{head}: {message}" if head else message)
    return "\n".join(lines)


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Lead(Table):
    """The lead broker, as followers see it."""

    connect: str = ""
    """The address that followers dial, such as ``tcp://203.0.113.7:30093``."""
    expose: str = ""
    """Instead of ``connect``, how a plugin makes the lead reachable and finds that address: ``nodeport`` for a pod."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the plugin that exposes it wants to know."""
    curve_cert: Path | None = None
    """The certificate's path on a follower; by default the lead's own ``[bootstrap] curve_cert``."""

    @field_validator("connect")
    @classmethod
    def _is_endpoint(cls, value: str) -> str:
        if value and not re.fullmatch(r"tcp://(\[[0-9a-fA-F:]+\]|[^:/\s]+):\d{1,5}|ipc://\S+", value):
            raise ValueError(f"{value!r} is no ZeroMQ endpoint; write such as 'tcp://203.0.113.7:30093'")
        return value

    @model_validator(mode="after")
    def _is_found_in_one_way(self) -> Lead:
        if not self.connect and not self.expose:
            raise ValueError("connect is required, or expose = 'nodeport' where the lead is a pod")
        if self.connect and self.expose:
            raise ValueError("connect and expose exclude each other; remove one")
        return self


class Home(Table):
    """The instance's own nodes."""

    property: str = "home"
    """In queue mode, the property of the nodes that are always there; `config render` adds it where it is missing."""
    queue: str = "batch"
    """The default queue that `config render` makes for a site that has none."""


class Batching(Table):
    """How long the planner waits for more jobs before it decides (the window restarts with each job)."""

    idle: Duration = 0.1
    """It decides when no further job has come for so long."""
    max: Duration = 1.0
    """It decides so long after the first job, come what may."""


class Money(Table):
    """Caps in US dollars. A day and a month are UTC's."""

    usd_per_day: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """No more than this is committed in one day: spent, and reserved for what lives, is in flight or planned."""
    usd_per_month: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """No more than this is committed in one month."""


class ProviderLimits(Money):
    """Caps for all pools of one provider."""

    nodes: int | None = Field(default=None, ge=0)
    """No more than so many of its nodes."""


class Limits(Money):
    """What is never exceeded. Each of the tables below may name ``"*"``: everyone who has no table of his own."""

    nodes: int | None = Field(default=None, ge=0)
    """No more than so many nodes in all, live, in flight and planned."""
    usd_per_job: float | None = Field(default=None, ge=0)
    """No job's burst may be expected to cost more; a job's own `burst.max_usd` may be lower."""
    user: dict[str, Money] = Field(default_factory=dict)
    """Caps for users, by name."""
    bank: dict[str, Money] = Field(default_factory=dict)
    """Caps for banks; a job without a bank is under none of them."""
    project: dict[str, Money] = Field(default_factory=dict)
    """Caps for projects; a job without a project is under none of them."""
    pool: dict[str, Money] = Field(default_factory=dict)
    """Caps for pools; `[pool.NAME] max_nodes` limits their nodes."""
    provider: dict[str, ProviderLimits] = Field(default_factory=dict)
    """Caps for providers."""
    assume_usd_per_node_hour: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The price to reckon with where none is known. Without it, an offer without a price is refused where a dollar cap
    applies."""
    warn_at: float = Field(default=0.8, gt=0, le=1)
    """The share of a cap at which a warning is logged and shown."""


class Price(Table):
    """One rule of the site on prices: discounts, licences, what a provider does not know.

    It applies to the offers that match all its patterns (as in the shell: ``*``, ``?``, ``[a-z]``). Rules are taken in
    their order; each changes what the one before it left.
    """

    pool: str = "*"
    """Pattern of pools."""
    provider: str = "*"
    """Pattern of providers."""
    instance_type: str = "*"
    """Pattern of instance types."""
    zone: str = "*"
    """Pattern of zones."""
    spot: bool | None = None
    """Only spot offers, or only on-demand ones."""
    usd_per_node_hour: float | None = Field(default=None, ge=0)
    """The price, whatever the provider says."""
    factor: float = Field(default=1.0, ge=0)
    """Multiplies the price, where one is known."""
    plus_usd: float = Field(default=0.0, ge=0)
    """Added to the price of each node-hour, where one is known; such as a licence."""


class Select(Table):
    """Who may burst. Empty means everyone, everywhere."""

    users: tuple[int | str, ...] = ()
    """User ids or names."""
    queues: tuple[str, ...] = ()
    """Queues that jobs are submitted to; the pools' own queues are always admitted."""
    max_nodes_per_job: int | None = Field(default=None, ge=1)
    """The largest burst of one job, in nodes of a pool."""


class Policy(Table):
    """When to burst, and what to do when something fails."""

    min_wait: Duration = 0.0
    """A job that home is expected to start within so long does not burst."""
    max_usd_per_hour_saved: float | None = Field(default=None, ge=0)
    """What an hour of one job's waiting is worth: it bursts, or has a node of its own, only where that costs no more
    than this for each hour that it starts sooner. Absent: the earliest start, whatever it costs within the limits."""
    assume_duration: Duration = 3600.0
    """How long a job without a time limit is reckoned to run. One that runs on is reckoned to run as long again as it
    has run."""
    on_node_loss: Literal["leave", "resubmit"] = "leave"
    """What becomes of a job that failed because a burst node was lost: nothing, or it is submitted again."""
    max_resubmits: int = Field(default=3, ge=1)
    """How often at most, one after the other."""
    cooldown: Duration = 30.0
    """How long what failed is left alone: after a launch the offer, zone, region, pool or provider that the error
    reaches, after a boot the pool. Doubles with each further failure."""
    cooldown_max: Duration = 3600.0
    """The longest time that it is left alone; after an order that can never succeed, it is this long at once."""
    reconcile_interval: Duration = 300.0
    """How often each provider's listing is compared with the records while any node lives."""


class Pool(Table):
    """One node shape at one provider, with one range of declared host names."""

    provider: str
    """The name of a ``[provider.NAME]`` table, or of a plugin that needs no such table."""
    hosts: str
    """The declared host names, such as ``c2-[0-63]`` (RFC 29); each is one RFC 1035 label, in one pool only."""
    cores: int = Field(ge=1)
    """Cores of each node."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of each node."""
    property: str = ""
    """The Flux property of its nodes; by default the pool's name."""
    properties: tuple[str, ...] = ()
    """Further properties, for jobs that ask for them."""
    queue: str = ""
    """In queue mode, the pool's own queue; by default the pool's name."""
    usd_per_node_hour: float | None = Field(default=None, ge=0)
    """The price, where the provider does not know it."""
    max_nodes: int | None = Field(default=None, ge=0)
    """No more than so many nodes of this pool; by default as many as it declares."""
    keep_warm: int = Field(default=0, ge=0)
    """So many nodes are up whether jobs need them or not; at most as many as the pool declares."""
    idle_timeout: Duration | None = None
    """How long a node may be idle before it is given back; by default as long as it took to join, but at least 10 s
    and at most 5 min."""
    min_lifetime: Duration = 0.0
    """A node is not given back for being idle before it has been up for so long."""
    billing_increment: Duration = Field(default=1.0, gt=0)
    """The provider bills a node's life in whole multiples of this."""
    billing_minimum: Duration = 0.0
    """The provider bills no less than this for a node."""
    join_timeout: Duration = 600.0
    """How long a node may take from the order until its broker is up; then it is given back."""
    stop_timeout: Duration = 60.0
    """How long a broker may take to leave when it is stopped; then the node is given back all the same."""
    release_timeout: Duration = 60.0
    """How long the provider is reckoned to take to end a node that is given back. It is reserved with the node's life;
    where the provider takes longer, the node costs more than was reserved."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The provider's own keys for this pool."""

    @field_validator("hosts")
    @classmethod
    def _are_hosts(cls, value: str) -> str:
        for host in hostlist.expand(value):
            if not hostlist.LABEL.fullmatch(host):
                raise ValueError(f"host name {host!r} is no RFC 1035 label: letters, digits and '-' only, 63 at most")
        return value

    def idle_most_s(self) -> float:
        """The longest time that a node may be idle, in seconds."""
        return IDLE_MOST_S if self.idle_timeout is None else self.idle_timeout

    def idle_s(self, join_s: float) -> float:
        """How long a node may be idle that took ``join_s`` to join, in seconds.

        Who does not know when the next job comes, and waits as long as a new boot would take, pays at most twice what
        he would have paid knowing it: Karlin and others, Competitive snoopy caching, Algorithmica 3, 1988.
        """
        return min(max(join_s, IDLE_LEAST_S), IDLE_MOST_S) if self.idle_timeout is None else self.idle_timeout


class BurstConfig(Table):
    """The whole file."""

    cluster: str = Field(pattern=NAME)
    """Names this instance at every provider: lower-case letters, digits and ``-``, 32 at most. Never change it."""
    mode: Literal["queue", "open"] = "queue"
    """How jobs and burst nodes find each other; see docs/administrators.md."""
    state_dir: Path | None = None
    """Where records are kept: an absolute path, by default ``fluxburst/CLUSTER`` below ``$XDG_STATE_HOME`` or
    ``~/.local/state``."""
    keep_history: Duration = Field(default=7776000.0, ge=2678400.0)
    """How long the log, the nodes that are gone and what they cost are kept; at least the 31 days of a month's caps."""
    staging_queue: str = "staging"
    """In queue mode, the stopped queue where jobs larger than home wait for their nodes."""
    lead: Lead
    home: Home = Home()
    batching: Batching = Batching()
    limits: Limits = Limits()
    select: Select = Select()
    policy: Policy = Policy()
    pool: dict[str, Pool] = Field(min_length=1)
    """One table or more, by name."""
    price: tuple[Price, ...] = ()
    """Rules on prices, as ``[[price]]``."""
    provider: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """A provider's own keys; ``plugin`` names the kind, by default the table's name."""

    @field_validator("state_dir")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(f"'{value}' is no absolute path; write such as '/var/lib/fluxburst/corona'")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> BurstConfig:
        owner: dict[Host, str] = {}
        queues: dict[str, str] = {}
        for name, pool in self.pool.items():
            if not re.fullmatch(NAME, name):
                raise ValueError(f"[pool.{name}]: a pool's name is lower-case letters, digits and '-', 32 at most")
            hosts = hostlist.expand(pool.hosts)
            if pool.keep_warm > len(hosts):
                raise ValueError(
                    f"[pool.{name}] keep_warm: {pool.keep_warm} is more than the {len(hosts)} hosts of the pool; "
                    "lower it, or declare more hosts"
                )
            for host in hosts:
                if host in owner:
                    raise ValueError(
                        f"[pool.{name}] hosts: {host} is already in [pool.{owner[host]}]; give each pool its own range"
                    )
                owner[host] = name
            if self.mode == "queue":
                queue = self.queue_of(name)
                if queue in queues:
                    raise ValueError(
                        f"[pool.{name}] queue: {queue!r} is already the queue of [pool.{queues[queue]}]; "
                        "in queue mode each pool has its own"
                    )
                if queue == self.staging_queue:
                    raise ValueError(f"[pool.{name}] queue: {queue!r} is the staging queue; choose another name")
                queues[queue] = name
            elif pool.queue:
                raise ValueError(f'[pool.{name}] queue: has no meaning in open mode; remove it, or set mode = "queue"')
        return self

    @model_validator(mode="after")
    def _caps_name_what_there_is(self) -> BurstConfig:
        providers = {pool.provider for pool in self.pool.values()}
        for key, tables, known in (
            ("pool", self.limits.pool, set(self.pool)),
            ("provider", self.limits.provider, providers),
        ):
            for name in tables:
                if name != "*" and name not in known:
                    raise ValueError(
                        f'[limits.{key}.{name}]: no such {key}; there is {", ".join(sorted(known))}, or "*" for all'
                    )
        for key, accounts in (("user", self.limits.user), ("bank", self.limits.bank), ("project", self.limits.project)):
            for name in accounts:
                if not name or name != name.strip():
                    raise ValueError(
                        f'[limits.{key}."{name}"]: no {key} is called that; write its name, or "*" for all'
                    )
        return self

    def property_of(self, pool: str) -> str:
        return self.pool[pool].property or pool

    def queue_of(self, pool: str) -> str:
        """The pool's queue in queue mode: its ``queue`` key, or its name; empty in open mode."""
        return "" if self.mode == "open" else self.pool[pool].queue or pool

    def hosts_of(self, pool: str) -> tuple[Host, ...]:
        return hostlist.expand(self.pool[pool].hosts)

    def pool_queues(self) -> dict[str, str]:
        """Queue to pool, in queue mode; empty in open mode."""
        return {self.queue_of(name): name for name in self.pool} if self.mode == "queue" else {}

    def specs(self, provider: str) -> dict[str, PoolSpec]:
        """The pools of one provider, as its plugin sees them."""
        return {
            name: PoolSpec(
                name=name,
                hosts=self.hosts_of(name),
                cores=pool.cores,
                gpus=pool.gpus,
                usd_per_node_hour=pool.usd_per_node_hour,
                options=pool.options,
            )
            for name, pool in self.pool.items()
            if pool.provider == provider
        }

    def state_path(self) -> Path:
        """``state_dir``, or ``fluxburst/CLUSTER`` below $XDG_STATE_HOME or ~/.local/state."""
        if self.state_dir is not None:
            return self.state_dir
        base = os.environ.get("XDG_STATE_HOME")
        return (Path(base) if base else Path.home() / ".local" / "state") / "fluxburst" / self.cluster


def parse(text: str, where: str = "burst.toml") -> BurstConfig:
    """Read the text of a burst.toml.

    Raises:
        ConfigError: with one line for each thing that is wrong, ``where`` in front.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}") from None
    try:
        return BurstConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in explain(error).splitlines())) from None


def load(path: Path) -> BurstConfig:
    """Read a burst.toml.

    Raises:
        ConfigError: the file cannot be read or is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: it is not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; name another with --config, or write one "
            "(docs/administrators.md begins with the smallest)"
        ) from None
    return parse(text, str(path))


def private_directory(path: Path) -> None:
    """Make a directory of mode 0700, and its missing parents likewise.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        for directory in reversed([path, *path.parents]):
            if not directory.is_dir():
                directory.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"state_dir: {error.filename} cannot be made: {error.strerror}; set another in burst.toml"
        ) from None
