"""What a connection delivers: the past, the mark, and what is live; and that connections are independent."""

from __future__ import annotations

import pytest

from fluxburst.errors import Disconnected
from fluxburst.flux.instance import RealInstance
from fluxburst.flux.protocol import CaughtUp, Instance, InstanceEvent, JobEvent
from fluxburst.model import JobId
from tests.contract.harness import GHOSTS, Harness
from tests.contract.mocked import MockHarness
from tests.contract.real import RealHarness
from tests.contract.steps import event, job, resource_events, run, up, wait

B0, B1, _, _ = GHOSTS


def connect(harness: Harness) -> Instance:
    """Another connection to the harness's instance, such as a service that is started again has."""
    if isinstance(harness, RealHarness):
        return RealInstance.open(harness.private.uri, loop=harness.loop)
    assert isinstance(harness, MockHarness)
    return harness.mock.connect()


class Second:
    """A second subscriber."""

    def __init__(self, harness: Harness) -> None:
        self.instance = connect(harness)
        self.events: list[InstanceEvent] = []
        self.instance.subscribe(self.events.append)
        harness.run_until(lambda: any(isinstance(e, CaughtUp) for e in self.events))

    def job_events(self, job_id: JobId) -> list[JobEvent]:
        return [e for e in self.events if isinstance(e, JobEvent) and e.job_id == job_id]


def test_the_past_of_active_jobs_is_told_again_in_order(any_mode: Harness) -> None:
    over, held, running = any_mode.submit(job()), any_mode.submit(job(), urgency=0), any_mode.submit(job("sleep", "60"))
    run(any_mode, over)
    event(any_mode, held, "priority")
    event(any_mode, running, "start")
    wait(any_mode, any_mode.instance.memo(held, {"burst": "held"}))
    event(any_mode, held, "memo")
    second = Second(any_mode)
    try:
        assert second.job_events(over) == []
        assert second.job_events(held) == any_mode.job_events(held)
        assert second.job_events(running) == [e for e in any_mode.job_events(running) if e.name != "annotations"]
        assert isinstance(second.events[-1], CaughtUp)
        assert sum(isinstance(e, CaughtUp) for e in second.events) == 1
    finally:
        second.instance.close()


def test_the_past_of_all_hosts_is_told_again_in_order(queues: Harness) -> None:
    up(queues, B0)
    wait(queues, queues.instance.drain([B0, B1], "for a while"))
    queues.run_until(lambda: resource_events(queues)[-1].name == "drain")
    second = Second(queues)
    try:
        assert [e for e in second.events if not isinstance(e, JobEvent | CaughtUp)] == resource_events(queues)
    finally:
        second.instance.close()


def test_in_the_past_a_moved_jobs_jobspec_has_the_move_applied_already(queues: Harness) -> None:
    held = queues.submit(job(), urgency=0)
    wait(queues, queues.instance.move(held, "staging"))
    event(queues, held, "jobspec-update")
    live = event(queues, held, "submit").jobspec
    second = Second(queues)
    try:
        submitted, *later = second.job_events(held)
        assert live is not None
        assert submitted.jobspec is not None
        assert live["attributes"]["system"]["queue"] == "batch"
        assert submitted.jobspec["attributes"]["system"]["queue"] == "staging"
        assert submitted.jobspec["attributes"]["system"]["constraints"] == {}
        assert "jobspec-update" in [e.name for e in later]
    finally:
        second.instance.close()


def test_both_subscribers_hear_what_is_live(any_mode: Harness) -> None:
    second = Second(any_mode)
    try:
        mark = len(second.events)
        job_id = any_mode.submit(job())
        run(any_mode, job_id)
        any_mode.run_until(lambda: second.events[-1] == any_mode.events[-1])
        assert second.events[mark:] == any_mode.job_events(job_id)
    finally:
        second.instance.close()


def test_a_closed_connection_is_silent_and_leaves_the_other_alone(any_mode: Harness) -> None:
    second = Second(any_mode)
    second.instance.close()
    mark = len(second.events)
    run(any_mode, any_mode.submit(job()))
    assert len(second.events) == mark


def test_a_closed_connection_answers_disconnected(any_mode: Harness) -> None:
    instance = connect(any_mode)
    unanswered = instance.allocated()
    instance.close()
    for future in (unanswered, instance.allocated()):
        any_mode.run_until(future.done)
        with pytest.raises(Disconnected):
            future.result()


def test_requests_are_carried_out_in_the_order_in_which_they_were_made(any_mode: Harness) -> None:
    job_id = any_mode.submit(job(), urgency=0)
    memos = [{"burst": number} for number in range(20)]
    for future in [any_mode.instance.memo(job_id, memo) for memo in memos]:
        wait(any_mode, future)
    any_mode.run_until(lambda: any_mode.job_events(job_id)[-1].context == memos[-1])
    assert [e.context for e in any_mode.job_events(job_id) if e.name == "memo"] == memos
