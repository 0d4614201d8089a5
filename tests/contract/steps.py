"""What the contract's tests are written in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest

from fluxburst.errors import InstanceError
from fluxburst.flux.protocol import Instance, InstanceEvent, JobEvent, ResourceEvent
from fluxburst.model import Host, JobId
from tests.contract.harness import GHOSTS, HOME, Harness

T = TypeVar("T")

STRICT = ("fifo", "sched-simple")
"""Schedulers whose first job blocks all others."""


def job(
    *command: str, nodes: int = 0, slots: int = 1, cores: int = 1, duration: float = 60.0, **system: Any
) -> dict[str, Any]:
    """A jobspec (RFC 25). ``nodes`` are exclusive, as ``flux submit -N`` has them; ``slots`` are then each node's."""
    resources: dict[str, Any] = {
        "type": "slot",
        "count": slots,
        "label": "task",
        "with": [{"type": "core", "count": cores}],
    }
    if nodes:
        resources = {"type": "node", "count": nodes, "exclusive": True, "with": [resources]}
    return {
        "version": 1,
        "resources": [resources],
        "tasks": [{"command": list(command or ("true",)), "slot": "task", "count": {"per_slot": 1}}],
        "attributes": {
            "system": {"duration": duration, "cwd": "/", "environment": {"PATH": "/usr/bin:/bin"}, **system}
        },
    }


def wait(harness: Harness, future: Future[T]) -> T:
    harness.run_until(future.done)
    return future.result()


def names(harness: Harness, job_id: JobId) -> list[str]:
    """The job's events, but for what its scheduler annotates it with, which each does in its own way."""
    return [event.name for event in harness.job_events(job_id) if event.name != "annotations"]


def forecasts(harness: Harness, job_id: JobId) -> list[float | None]:
    """What the scheduler has said about the job's start, from first to last; None where it took that back."""
    return [
        ((event.context["annotations"] or {}).get("sched") or {}).get("t_estimate")
        for event in harness.job_events(job_id)
        if event.name == "annotations"
    ]


def event(harness: Harness, job_id: JobId, name: str) -> JobEvent:
    """The first event of this name, waited for."""
    harness.run_until(lambda: name in names(harness, job_id))
    return next(event for event in harness.job_events(job_id) if event.name == name)


def context(harness: Harness, job_id: JobId, name: str) -> Mapping[str, Any]:
    return event(harness, job_id, name).context


def hosts(harness: Harness, job_id: JobId) -> list[Host]:
    """Where the job runs, once it does."""
    return [share.host for share in event(harness, job_id, "alloc").allocation]


def run(harness: Harness, job_id: JobId) -> list[str]:
    """Wait until the job is over: the names of its events."""
    event(harness, job_id, "clean")
    return names(harness, job_id)


def running(harness: Harness, job_id: JobId) -> None:
    """Wait until the job's own processes run.

    Flux tells ``start`` before; a job that loses its node right then may finish badly without any exception.
    """
    event(harness, job_id, "start")
    never(harness, lambda: "finish" in names(harness, job_id), within_s=0.3)


def resource_events(harness: Harness, start: int = 0) -> list[ResourceEvent]:
    """The resource events from position ``start`` of all events on."""
    return [event for event in harness.events[start:] if isinstance(event, ResourceEvent)]


def resource_event(harness: Harness, name: str, host: Host, start: int) -> ResourceEvent:
    """The first such event of this host at or after position ``start``, waited for."""

    def found() -> list[ResourceEvent]:
        return [event for event in resource_events(harness, start) if event.name == name and host in event.hosts]

    harness.run_until(lambda: bool(found()))
    return found()[0]


def online(harness: Harness) -> set[Host]:
    """The hosts that are online by what the journal has told so far."""
    up: set[Host] = set()
    for event in resource_events(harness):
        if event.name == "online":
            up.update(event.hosts)
        elif event.name == "offline":
            up.difference_update(event.hosts)
    return up


def up(harness: Harness, *wanted: Host) -> None:
    """Have exactly these ghosts online, whatever an earlier test left."""
    present = online(harness)
    if surplus := [host for host in GHOSTS if host in present and host not in wanted]:
        harness.leave(surplus)
    if missing := [host for host in wanted if host not in present]:
        harness.join(missing)
    harness.run_until(lambda: online(harness) == {HOME, *wanted})


def subscribed(instance: Instance) -> list[InstanceEvent]:
    """Subscribe with another connection; its events, from the past on."""
    events: list[InstanceEvent] = []
    instance.subscribe(events.append)
    return events


def active(harness: Harness) -> list[JobId]:
    """The jobs that are not over by what the journal has told so far."""
    jobs: dict[JobId, None] = {}
    for event in harness.events:
        if isinstance(event, JobEvent) and event.name == "submit":
            jobs[event.job_id] = None
        elif isinstance(event, JobEvent) and event.name in ("clean", "invalidate"):
            del jobs[event.job_id]
    return list(jobs)


def clean_up(harness: Harness) -> None:
    """Leave no job, no host drained, and no event of a job. Followers stay, for the next test's sake."""
    for job_id in active(harness):
        # It may be over by now, or be on its way out.
        with contextlib.suppress(OSError, InstanceError):
            harness.cancel(job_id)
    harness.run_until(lambda: not active(harness))
    wait(harness, harness.instance.undrain([HOME, *GHOSTS]))
    # Every wait looks through all events, again and again.
    harness.events[:] = [event for event in harness.events if not isinstance(event, JobEvent)]


def refusal(harness: Harness, future: Future[Any]) -> str:
    """The words of a refusal; fails when there is none."""
    harness.run_until(future.done)
    error = future.exception()
    assert error is not None, "it was not refused"
    return f"{type(error).__name__}: {error}"


def never(harness: Harness, condition: Callable[[], bool], within_s: float = 0.2) -> None:
    """Assert that the condition does not come true in this time."""
    with pytest.raises(TimeoutError):
        harness.run_until(condition, within_s)


def stays_pending(harness: Harness, job_id: JobId) -> None:
    """Assert that the job is ready and yet neither starts nor fails."""
    event(harness, job_id, "priority")
    never(harness, lambda: not {"alloc", "exception"}.isdisjoint(names(harness, job_id)))
