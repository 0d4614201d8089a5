"""The contract suite's instance as a mock in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fluxburst.flux.private import private_config
from fluxburst.flux.protocol import CaughtUp, InstanceEvent, JobEvent
from fluxburst.model import Host, JobId
from fluxburst_mock.instance import MockInstance
from fluxburst_mock.loop import VirtualLoop
from tests.contract.harness import GHOSTS


class MockHarness:
    """:class:`tests.contract.harness.Harness` on a :class:`MockInstance`."""

    def __init__(self, *, scheduler: Literal["fifo", "easy"], mode: Literal["queue", "open"]) -> None:
        self.scheduler: str = scheduler
        self.loop = VirtualLoop()
        self.mock = MockInstance(
            self.loop,
            private_config({"burst": (",".join(GHOSTS), 2)}, mode=mode),
            scheduler=scheduler,
            started=("batch", "burst"),
            wall=self.loop.wall,
        )
        self.instance = self.mock.connect()
        self.events: list[InstanceEvent] = []
        self.instance.subscribe(self.events.append)
        self.run_until(lambda: any(isinstance(event, CaughtUp) for event in self.events))

    def submit(self, jobspec: Mapping[str, Any], *, urgency: int = 16) -> JobId:
        future = self.instance.submit(jobspec, urgency=urgency)
        self.run_until(future.done)
        return future.result()

    def cancel(self, job_id: JobId) -> None:
        self.mock.cancel(job_id)

    def set_urgency(self, job_id: JobId, urgency: int) -> None:
        self.mock.set_urgency(job_id, urgency)

    def join(self, hosts: Sequence[Host]) -> None:
        self.mock.join(hosts)

    def leave(self, hosts: Sequence[Host]) -> None:
        self.mock.leave(hosts)

    def kill(self, hosts: Sequence[Host]) -> None:
        self.mock.kill(hosts)

    def run_until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        try:
            self.loop.run_until(condition, timeout_s)
        except TimeoutError as error:
            latest = "\n".join(map(str, self.events[-10:]))
            raise TimeoutError(f"{error}; the latest of {len(self.events)} events:\n{latest}") from None

    def job_events(self, job_id: JobId) -> list[JobEvent]:
        return [event for event in self.events if isinstance(event, JobEvent) and event.job_id == job_id]

    def close(self) -> None:
        self.instance.close()
