"""The frozen types that cross rooms.

Times are POSIX seconds as ``float`` (names end in ``_at``), like the timestamps of Flux's own event logs (RFC 18);
durations are seconds (``_s``); money is US dollars (``_usd``). Host names are single RFC 1035 labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NewType

from fluxburst.states import NodeState

JobId = NewType("JobId", int)
Host = NewType("Host", str)
NodeId = NewType("NodeId", str)
"""A provider's own name for a machine, unique in that provider."""
RequestId = NewType("RequestId", str)
"""Names one order for ever: ``b-`` and 12 characters of base 32; fit for host-like names and cloud labels."""

Constraint = Mapping[str, Any]
"""An RFC 31 constraint object, such as ``{"properties": ["burst"]}``."""


class Secret:
    """A value that must not be seen: its repr, str and format show nothing. ``reveal()`` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")


@dataclass(frozen=True, slots=True)
class Demand:
    """What one job needs of the nodes that run it, and nothing about who asks. Hashable: equal shapes are one demand.

    ``nodes`` is the least number of nodes, or 0 when the job only counts slots. ``slots`` is the least number of slots
    (tasks' places) in all; every slot has ``cores_per_slot`` cores and ``gpus_per_slot`` GPUs on one node.
    ``exclusive`` means that no node of the job is shared. ``duration_s`` is 0 when the job states none.
    ``constraint`` is the job's own RFC 31 constraint as canonical JSON, empty when it has none.
    """

    nodes: int
    slots: int
    cores_per_slot: int
    gpus_per_slot: int = 0
    exclusive: bool = False
    duration_s: float = 0.0
    constraint: str = ""
    spot: bool | None = None

    def slots_per_node(self) -> int:
        """Slots on each node of a job that counts nodes (rounded up when they do not divide evenly)."""
        return -(-self.slots // self.nodes) if self.nodes else 0

    def slots_on(self, cores: int, gpus: int) -> int:
        """How many slots fit on a node where so many cores and GPUs are free."""
        by_cores = cores // self.cores_per_slot
        return min(by_cores, gpus // self.gpus_per_slot) if self.gpus_per_slot else by_cores


@dataclass(frozen=True, slots=True)
class Account:
    """On whose account nodes are bought: the user's name, the job's bank and project; empty where there is none."""

    user: str = ""
    bank: str = ""
    project: str = ""


@dataclass(frozen=True, slots=True)
class HostShare:
    """What a job's R (RFC 20) holds on one host."""

    host: Host
    cores: int
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """What a provider could start now for one pool.

    ``usd_per_node_hour`` is None when the price is not known (never 0 for unknown; 0.0 means free of charge).
    ``join_s`` is the provider's guess of the time from launch to a broker that is up. ``nodes_left`` is None when
    the provider sets no limit of its own. ``memory_bytes`` and ``gpu_model`` are for people to choose by.
    """

    pool: str
    provider: str
    instance_type: str
    cores: int
    gpus: int = 0
    usd_per_node_hour: float | None = None
    spot: bool = False
    zone: str = ""
    region: str = ""
    join_s: float | None = None
    nodes_left: int | None = None
    memory_bytes: int | None = None
    gpu_model: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A provider's or a pool's no to one demand, with the reason in words for the job's owner.

    ``retry_at`` is when asking again makes sense; None means that nothing but a change of configuration or of the job
    will turn the answer.
    """

    pool: str
    provider: str
    reason: str
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """One ``[pool.NAME]`` table as its provider sees it. ``options`` is the free table ``[pool.NAME.options]``."""

    name: str
    hosts: tuple[Host, ...]
    cores: int
    gpus: int = 0
    usd_per_node_hour: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BootMaterial:
    """What a machine needs to become a follower of the lead.

    ``config_toml`` is the whole Flux configuration of a follower, without the certificate's bytes; it names the
    certificate as ``curve_cert_path``. ``curve_cert`` is set only where a provider must carry the bytes itself.
    """

    config_toml: str
    curve_cert_path: str
    curve_cert: Secret | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """One purchase. The same ``request_id`` twice buys once."""

    request_id: RequestId
    cluster: str
    pool: str
    hosts: tuple[Host, ...]
    offer: Offer
    boot: BootMaterial
    created_at: float


class NodePhase(StrEnum):
    """What a provider knows of a machine."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"
    """It has ended, or will never start; ``NodeReport.detail`` says why. Still listed until released."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One machine in a provider's listing. ``request_id`` and ``host`` are read back from the machine's own tags."""

    node_id: NodeId
    pool: str
    request_id: RequestId
    host: Host
    phase: NodePhase
    detail: str = ""


class Shrink(StrEnum):
    """How a provider can give nodes back."""

    ANY = "any"
    TAIL = "tail"
    ORDER = "order"


class Severity(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``flux burst check``: what was looked at, whether it is fit, and the fix when it is not."""

    subject: str
    severity: Severity
    message: str
    fix: str = ""


class VerdictKind(StrEnum):
    """The plan's answer for one job. Every burstable pending job gets exactly one."""

    HOME = "home"
    """It starts, or has started, where it is."""
    WAIT = "wait"
    """Not now; the reason says until when and why."""
    COMING = "coming"
    """Nodes that are up or on their way serve it; nothing is bought for it."""
    BURST = "burst"
    """Nodes are bought for it."""
    REFUSED = "refused"
    """No pool can serve it; one reason for each pool."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The plan's answer for one job, with its reason in one line and, for refusals, one reason a pool.

    ``hosts`` are the booked hosts: up, coming, or newly ordered; with WAIT, those that are busy and expected to be free
    at ``until_at``. ``fix`` says what would have to change for a better answer; empty where nothing has to. Equal
    verdicts say the same; when they end, and the fix, may differ.
    """

    kind: VerdictKind
    reason: str
    pool: str = ""
    hosts: tuple[Host, ...] = ()
    usd_per_hour: float | None = None
    until_at: float | None = field(default=None, compare=False)
    pool_reasons: tuple[tuple[str, str], ...] = ()
    fix: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What the store knows of one node that was bought: one machine under one declared host name, once."""

    host: Host
    pool: str
    provider: str
    request_id: RequestId
    state: NodeState
    reason: str
    changed_at: float
    planned_at: float
    node_id: NodeId | None = None
    joined_at: float | None = None
    stop_sent_at: float | None = None
    usd_per_node_hour: float | None = None
    version: int = 0

    def next(
        self,
        state: NodeState | None = None,
        reason: str = "",
        changed_at: float = 0.0,
        *,
        node_id: NodeId | None = None,
        joined_at: float | None = None,
        stop_sent_at: float | None = None,
    ) -> NodeRecord:
        """Its next version: in another state, if one is given; of the rest, what is None stays."""
        if state is None:
            state, reason, changed_at = self.state, self.reason, self.changed_at
        # in the order of the fields: dataclasses.replace takes twice as long, and a node changes a dozen times
        return NodeRecord(
            self.host,
            self.pool,
            self.provider,
            self.request_id,
            state,
            reason,
            changed_at,
            self.planned_at,
            self.node_id if node_id is None else node_id,
            self.joined_at if joined_at is None else joined_at,
            self.stop_sent_at if stop_sent_at is None else stop_sent_at,
            self.usd_per_node_hour,
            self.version + 1,
        )


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """What the store knows of one order: enough to repeat it with the same request id, and for whom it was made."""

    request_id: RequestId
    pool: str
    hosts: tuple[Host, ...]
    offer: Offer
    created_at: float
    job_ids: tuple[JobId, ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """What does not change while an instance lives. ``hosts`` are all declared hosts in rank order."""

    version: str
    owner_uid: int
    hosts: tuple[Host, ...]
    config: Mapping[str, Any]
    queues: Sequence[str] = ()
