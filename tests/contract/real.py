"""The contract suite's instance as real brokers on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeVar

from fluxburst.flux import bindings
from fluxburst.flux.instance import RealInstance
from fluxburst.flux.private import PrivateInstance, Scheduler, private_config
from fluxburst.flux.protocol import CaughtUp, Instance, InstanceEvent, JobEvent
from fluxburst.model import Host, JobId
from tests.contract.harness import GHOSTS

T = TypeVar("T")

TICK_S = 0.01


class RealHarness:
    """:class:`tests.contract.harness.Harness` on a private Flux instance in ``directory``, whose path must be short."""

    def __init__(self, *, scheduler: Scheduler, mode: Literal["queue", "open"], directory: Path) -> None:
        self.scheduler: str = scheduler
        self.events: list[InstanceEvent] = []
        config = private_config({"burst": (",".join(GHOSTS), 2)}, mode=mode)
        self.private = PrivateInstance(directory, config, scheduler=scheduler)
        flux = bindings.load(self.private.flux)
        self.private.start()
        try:
            connection = RealInstance.open(self.private.uri)
            self.instance: Instance = connection
            self.loop = connection.loop
            self._client: Any = flux.Flux(self.private.uri)  # what a user on the side would use
            if mode == "queue":
                for queue in ("batch", "burst"):
                    self.wait(self.instance.set_queue(queue, started=True))
            self.instance.subscribe(self.events.append)
            self.run_until(lambda: any(isinstance(event, CaughtUp) for event in self.events))
        except BaseException:
            self.private.close()
            raise

    def submit(self, jobspec: Mapping[str, Any], *, urgency: int = 16) -> JobId:
        return self.wait(self.instance.submit(jobspec, urgency=urgency))

    def cancel(self, job_id: JobId) -> None:
        self._ask("job-manager.raise", {"id": job_id, "type": "cancel", "severity": 0})

    def set_urgency(self, job_id: JobId, urgency: int) -> None:
        self._ask("job-manager.urgency", {"id": job_id, "urgency": urgency})

    def _ask(self, topic: str, payload: Mapping[str, Any]) -> None:
        # Outside of a reactor, a future that fails in get() leaves SIGINT at its default action.
        with self._client.in_reactor():
            self._client.rpc(topic, payload).get()

    def join(self, hosts: Sequence[Host]) -> None:
        self.private.start_followers(hosts)

    def leave(self, hosts: Sequence[Host]) -> None:
        self.private.stop_followers(hosts)

    def kill(self, hosts: Sequence[Host]) -> None:
        self.private.kill_followers(hosts)

    def run_until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        deadline = self.loop.time() + timeout_s
        expired = False

        def tick() -> None:
            nonlocal expired
            expired = self.loop.time() > deadline
            if expired or condition():
                self.loop.stop()
            else:
                self.loop.call_later(TICK_S, tick)

        self.loop.call_later(0, tick)
        self.loop.run_forever()
        if expired and not condition():
            latest = "\n".join(map(str, self.events[-10:]))
            raise TimeoutError(f"not within {timeout_s} s; the latest of {len(self.events)} events:\n{latest}")

    def job_events(self, job_id: JobId) -> list[JobEvent]:
        return [event for event in self.events if isinstance(event, JobEvent) and event.job_id == job_id]

    def wait(self, future: Future[T]) -> T:
        """Run the loop until the future is done; its result or its error."""
        self.run_until(future.done)
        return future.result()

    def close(self) -> None:
        try:
            self.instance.close()
            self.loop.close()
        finally:
            self.private.close()
