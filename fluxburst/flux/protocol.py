"""A Flux instance as the rest of fluxburst sees it. The real one and the mock implement this; it imports neither.

All calls are made on the loop's thread and return at once. What takes time returns a
:class:`concurrent.futures.Future` that is completed, on the loop's thread, with a result or an
:class:`~fluxburst.errors.InstanceError`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from fluxburst.model import Host, HostShare, InstanceFacts, JobId


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event of one job's event log (RFC 18, RFC 21), as the job manager's journal gives it.

    ``jobspec`` comes with ``submit``: as ingested, frobnicators applied, without the environment. Live, it is as before
    any ``jobspec-update``; in the past that comes first it has them applied already, as the journal sends it.
    ``allocation`` comes with ``alloc``: one share for each host.
    """

    job_id: JobId
    name: str
    at: float
    context: Mapping[str, Any]
    jobspec: Mapping[str, Any] | None = None
    allocation: tuple[HostShare, ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceEvent:
    """One change of the hosts' state, from the resource journal with ranks turned into host names.

    ``name`` is one of ``online``, ``offline``, ``drain``, ``undrain``; ``reason`` goes with ``drain``. History comes
    first, in order, when a subscription starts.
    """

    name: str
    at: float
    hosts: tuple[Host, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Both journals have delivered their past; what follows is live. Comes once for each ``subscribe``."""

    at: float


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """No further event will come: the broker went away, or a journal ended (its module was reloaded)."""

    at: float
    reason: str


InstanceEvent = JobEvent | ResourceEvent | CaughtUp | ConnectionLost

JOB_EVENTS = (
    "submit",
    "invalidate",
    "depend",
    "priority",
    "urgency",
    "alloc",
    "start",
    "exception",
    "finish",
    "free",
    "clean",
    "memo",
    "jobspec-update",
    "annotations",
)
"""The job events that are delivered, and no others.

``annotations`` has all that a job is annotated with now, or null when that is nothing any more; it is told live only,
as no event log keeps it. In it the scheduler may forecast the job's start (RFC 27: ``sched.t_estimate``). What it says
may be stale: nothing tells of the end of a forecast for a job whose owner has annotations of his own, such as a memo.
``depend`` means that all dependencies are met. ``invalidate`` follows ``submit`` at once when the job manager refuses
the job after all, such as for a dependency on an unknown job; nothing comes after it, not even ``clean`` (RFC 21).
"""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """The part of :class:`asyncio.AbstractEventLoop` that fluxburst uses; an asyncio loop is one.

    ``time()`` is the loop's own monotonic time in seconds.
    """

    def time(self) -> float: ...
    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer: ...
    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> object: ...
    def run_forever(self) -> None: ...
    def stop(self) -> None: ...


RpcHandler = Callable[[str, Mapping[str, Any], "Caller"], Mapping[str, Any]]
"""``handler(method, payload, caller) -> response``; raises :class:`~fluxburst.errors.FluxburstError` to refuse."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent an RPC, as the broker vouches for it."""

    userid: int
    owner: bool


class Instance(Protocol):
    """An open connection to one Flux instance, with the rights of its owner."""

    @property
    def facts(self) -> InstanceFacts: ...

    def subscribe(self, sink: Callable[[InstanceEvent], None]) -> None:
        """Deliver the past of all active jobs and all hosts, :class:`CaughtUp`, then live events, to ``sink``."""

    def move(self, job_id: JobId, queue: str) -> Future[None]:
        """Move a pending job to another queue; its constraints become that queue's (``job-manager.update``)."""

    def memo(self, job_id: JobId, memo: Mapping[str, Any]) -> Future[None]:
        """Merge ``memo`` into an active job's memo; a None value clears its key (``job-manager.memo``)."""

    def submit(self, jobspec: Mapping[str, Any], *, urgency: int = 16) -> Future[JobId]:
        """Submit a jobspec as the instance owner, through the ordinary ingest with its frobnicators."""

    def jobspec(self, job_id: JobId) -> Future[Mapping[str, Any]]:
        """A job's whole jobspec as submitted, environment included (the journal's lacks it); inactive jobs too."""

    def drain(self, hosts: Collection[Host], reason: str) -> Future[None]:
        """Drain hosts; one that is drained already keeps its state and gets the new reason."""

    def undrain(self, hosts: Collection[Host]) -> Future[None]:
        """Undrain hosts; one that is not drained is fine."""

    def allocated(self) -> Future[frozenset[Host]]:
        """The hosts that hold an allocation now, asked of the job manager rather than gathered from its journal."""

    def stop_brokers(self, hosts: Collection[Host]) -> Future[None]:
        """Tell these hosts' brokers to leave in good order (SIGTERM). They go offline some time later."""

    def set_queue(self, queue: str, *, started: bool) -> Future[None]:
        """Start or stop one queue's scheduling; submission to it stays enabled either way."""

    def serve(self, handler: RpcHandler) -> None:
        """Register the Flux service ``burst`` and answer each RPC ``burst.METHOD`` by ``handler``."""

    def close(self) -> None:
        """Unregister and close. No event is delivered after this."""
