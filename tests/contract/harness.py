"""What the contract suite drives: one small instance, real or mock, behind one interface.

The instance is the same in both: ``lead0`` (rank 0, always up) with 2 cores and the property ``home``; ghosts
``burst-[0-3]`` with 2 cores each and the property ``burst``. In queue mode the queues are ``batch`` (requires home,
started), ``burst`` (requires burst, started) and ``staging`` (requires nothing, stopped); in open mode there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fluxburst.flux.protocol import Instance, InstanceEvent, JobEvent
from fluxburst.model import Host, JobId

HOME = Host("lead0")
GHOSTS = tuple(Host(f"burst-{index}") for index in range(4))


class Harness(Protocol):
    scheduler: str
    """``sched-simple``, ``fluxion-easy``, ``fluxion-fcfs`` (real) or ``fifo``, ``easy`` (mock)."""

    events: list[InstanceEvent]
    """Everything that the instance delivered to its subscriber since the start, in order."""

    @property
    def instance(self) -> Instance: ...

    def submit(self, jobspec: Mapping[str, Any], *, urgency: int = 16) -> JobId: ...
    def cancel(self, job_id: JobId) -> None: ...
    def set_urgency(self, job_id: JobId, urgency: int) -> None: ...
    def join(self, hosts: Sequence[Host]) -> None:
        """Start these hosts' followers; does not wait for them."""

    def leave(self, hosts: Sequence[Host]) -> None:
        """SIGTERM to the followers' brokers, from outside of Flux."""

    def kill(self, hosts: Sequence[Host]) -> None:
        """SIGKILL to the followers' brokers."""

    def run_until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Run the loop until the condition holds; raises TimeoutError, with the latest events, when it does not."""

    def job_events(self, job_id: JobId) -> list[JobEvent]: ...
    def close(self) -> None: ...
