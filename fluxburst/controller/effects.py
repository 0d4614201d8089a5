"""What the controller wants done outside, as data. Each is tried again by looking at the world, never by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxburst.model import Demand, Host, JobId, NodeId, Order


@dataclass(frozen=True, slots=True)
class Launch:
    provider: str
    order: Order


@dataclass(frozen=True, slots=True)
class Release:
    provider: str
    node_ids: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class ListNodes:
    provider: str


@dataclass(frozen=True, slots=True)
class Ask:
    provider: str
    demand: Demand


@dataclass(frozen=True, slots=True)
class Move:
    job_id: JobId
    queue: str


@dataclass(frozen=True, slots=True)
class Memo:
    job_id: JobId
    burst: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drain:
    hosts: tuple[Host, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Undrain:
    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class CheckAllocated:
    """Ask the job manager whether these drained hosts are allocated: the second look before brokers are stopped."""

    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class StopBrokers:
    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class SetQueue:
    queue: str
    started: bool


@dataclass(frozen=True, slots=True)
class Resubmit:
    """Submit the jobspec of a job that was lost with ``host`` again, marked with the job and the attempt."""

    job_id: JobId
    host: Host
    attempt: int
    urgency: int


Effect = (
    Launch
    | Release
    | ListNodes
    | Ask
    | Move
    | Memo
    | Drain
    | Undrain
    | CheckAllocated
    | StopBrokers
    | SetQueue
    | Resubmit
)


QUESTIONS = (ListNodes, Ask)
"""What a dry run may do: ask providers. It changes nothing."""

Key = tuple[object, ...]


def drain_key(host: Host) -> Key:
    """The key of whatever drains or undrains this host."""
    return (Drain, host)


def keys(effect: Effect) -> tuple[Key, ...]:
    """Two effects that share a key are never under way at once."""
    match effect:
        case Launch(_, order):
            return ((Launch, order.request_id),)
        case Release(provider, _) | ListNodes(provider):
            return ((type(effect), provider),)
        case Ask(provider, demand):
            return ((Ask, provider, demand),)
        case Move(job_id) | Memo(job_id) | Resubmit(job_id):
            return ((type(effect), job_id),)
        case Drain(hosts) | Undrain(hosts):
            return tuple(map(drain_key, hosts))
        case SetQueue(queue):
            return ((SetQueue, queue),)
        case CheckAllocated() | StopBrokers():
            return ((type(effect),),)


@dataclass(frozen=True, slots=True)
class Done:
    """An effect's outcome: ``result`` when ``error`` is None. ``begun_at`` is when the effect was let go."""

    effect: Effect
    begun_at: float
    at: float
    result: Any = None
    error: BaseException | None = None
