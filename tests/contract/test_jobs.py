"""A job's life as the journal tells it, at home and without other nodes."""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import Any

import pytest

from fluxburst.errors import InstanceError
from fluxburst.model import HostShare, JobId
from tests.contract.harness import HOME, Harness
from tests.contract.steps import context, event, hosts, job, names, never, refusal, run, running, stays_pending, wait

LIFE = ["submit", "depend", "priority", "alloc", "start", "finish", "free", "clean"]


def test_an_ordinary_job_has_these_events_in_this_order(any_mode: Harness) -> None:
    assert run(any_mode, any_mode.submit(job())) == LIFE


def test_an_ordinary_job_has_the_same_events_without_queues(open_mode: Harness) -> None:
    job_id = open_mode.submit(job())
    assert run(open_mode, job_id) == LIFE
    spec = event(open_mode, job_id, "submit").jobspec
    assert spec is not None
    assert spec["attributes"]["system"].keys().isdisjoint({"queue", "constraints"})


def test_timestamps_never_go_back(any_mode: Harness) -> None:
    job_id = any_mode.submit(job())
    run(any_mode, job_id)
    assert all(before.at <= after.at for before, after in pairwise(any_mode.job_events(job_id)))


def test_submit_tells_the_owner_and_the_urgency(any_mode: Harness) -> None:
    submitted = context(any_mode, any_mode.submit(job(), urgency=20), "submit")
    assert (submitted["userid"], submitted["urgency"]) == (any_mode.instance.facts.owner_uid, 20)


def test_submit_carries_the_jobspec_without_its_environment(any_mode: Harness) -> None:
    spec = event(any_mode, any_mode.submit(job("true", burstable=True)), "submit").jobspec
    assert spec is not None
    assert spec["resources"] == job()["resources"]
    system = spec["attributes"]["system"]
    assert system["burstable"] is True
    assert "environment" not in system


def test_only_submit_carries_a_jobspec_and_only_alloc_an_allocation(any_mode: Harness) -> None:
    job_id = any_mode.submit(job())
    run(any_mode, job_id)
    assert [e.name for e in any_mode.job_events(job_id) if e.jobspec is not None] == ["submit"]
    assert [e.name for e in any_mode.job_events(job_id) if e.allocation] == ["alloc"]


def test_ingest_puts_a_job_into_the_default_queue_with_its_constraint(queues: Harness) -> None:
    spec = event(queues, queues.submit(job()), "submit").jobspec
    assert spec is not None
    assert spec["attributes"]["system"]["queue"] == "batch"
    assert spec["attributes"]["system"]["constraints"] == {"properties": ["home"]}


def test_a_queue_adds_its_properties_to_a_jobs_own_constraint(queues: Harness) -> None:
    own = {"hostlist": [HOME]}
    spec = event(queues, queues.submit(job(constraints=own)), "submit").jobspec
    assert spec is not None
    assert spec["attributes"]["system"]["constraints"] == {"and": [own, {"properties": ["home"]}]}


def test_a_jobspec_can_be_had_as_submitted_even_of_an_inactive_job(any_mode: Harness) -> None:
    job_id = any_mode.submit(job("true", burstable=True))
    run(any_mode, job_id)
    assert wait(any_mode, any_mode.instance.jobspec(job_id)) == job("true", burstable=True)


def test_the_jobspec_of_an_unknown_job_is_refused(any_mode: Harness) -> None:
    assert "InstanceError" in refusal(any_mode, any_mode.instance.jobspec(JobId(1)))


def test_priority_and_finish_have_their_contexts(any_mode: Harness) -> None:
    job_id = any_mode.submit(job())
    run(any_mode, job_id)
    assert context(any_mode, job_id, "priority") == {"priority": 16}
    assert context(any_mode, job_id, "finish") == {"status": 0}


def test_an_allocation_says_what_a_job_holds_of_a_shared_node(queues: Harness) -> None:
    allocation = event(queues, queues.submit(job()), "alloc").allocation
    assert allocation == (HostShare(HOME, cores=1),)


def test_an_exclusive_job_holds_all_of_its_node(queues: Harness) -> None:
    assert event(queues, queues.submit(job(nodes=1)), "alloc").allocation == (HostShare(HOME, cores=2),)


def test_single_core_jobs_share_a_node_until_it_is_full(queues: Harness) -> None:
    first, second, third = (queues.submit(job("sleep", "0.5")) for _ in range(3))
    assert hosts(queues, first) == hosts(queues, second) == [HOME]
    run(queues, third)
    freed = min(event(queues, job_id, "free").at for job_id in (first, second))
    assert event(queues, third, "alloc").at >= freed


def test_the_more_urgent_job_goes_first(queues: Harness) -> None:
    running = queues.submit(job("sleep", "0.3", nodes=1))
    event(queues, running, "alloc")
    low, high = queues.submit(job(nodes=1), urgency=10), queues.submit(job(nodes=1), urgency=20)
    assert event(queues, high, "alloc").at < event(queues, low, "alloc").at


def test_an_expedited_job_has_the_highest_priority(any_mode: Harness) -> None:
    assert context(any_mode, any_mode.submit(job(), urgency=31), "priority") == {"priority": (1 << 32) - 1}


def test_a_held_job_shows_priority_0_and_waits_until_its_urgency_is_raised(any_mode: Harness) -> None:
    held = any_mode.submit(job(), urgency=0)
    assert context(any_mode, held, "priority") == {"priority": 0}
    stays_pending(any_mode, held)
    any_mode.set_urgency(held, 16)
    assert run(any_mode, held) == [*LIFE[:3], "urgency", "priority", *LIFE[3:]]
    assert context(any_mode, held, "urgency")["urgency"] == 16


def test_a_held_job_blocks_nobody(any_mode: Harness) -> None:
    any_mode.submit(job(), urgency=0)
    run(any_mode, any_mode.submit(job()))


def test_a_job_with_a_dependency_has_no_depend_event_until_it_is_met(any_mode: Harness) -> None:
    first = any_mode.submit(job(), urgency=0)
    second = any_mode.submit(job(dependencies=[{"scheme": "afterany", "value": str(first)}]))
    event(any_mode, second, "submit")
    never(any_mode, lambda: names(any_mode, second) != ["submit"])
    any_mode.set_urgency(first, 16)
    assert run(any_mode, second) == LIFE
    assert event(any_mode, second, "depend").at >= event(any_mode, first, "finish").at


def test_a_job_whose_dependency_is_over_does_not_wait(any_mode: Harness) -> None:
    first = any_mode.submit(job())
    run(any_mode, first)
    run(any_mode, any_mode.submit(job(dependencies=[{"scheme": "afterany", "value": str(first)}])))


def test_a_job_that_is_refused_after_all_is_submitted_and_invalidated(any_mode: Harness) -> None:
    start = len(any_mode.events)
    with pytest.raises(InstanceError, match="job not found"):
        any_mode.submit(job(dependencies=[{"scheme": "afterany", "value": "1"}]))

    def told() -> list[str]:
        return [getattr(e, "name", "") for e in any_mode.events[start:]]

    any_mode.run_until(lambda: "invalidate" in told())
    assert told() == ["submit", "invalidate"]


def test_cancelling_a_job_that_waits_ends_it_at_once(any_mode: Harness) -> None:
    job_id = any_mode.submit(job(), urgency=0)
    event(any_mode, job_id, "priority")
    any_mode.cancel(job_id)
    assert run(any_mode, job_id) == ["submit", "depend", "priority", "exception", "clean"]
    exception = context(any_mode, job_id, "exception")
    assert (exception["type"], exception["severity"]) == ("cancel", 0)


def test_cancelling_a_job_that_waits_for_another_ends_it_at_once(any_mode: Harness) -> None:
    first = any_mode.submit(job(), urgency=0)
    second = any_mode.submit(job(dependencies=[{"scheme": "afterany", "value": str(first)}]))
    event(any_mode, any_mode.submit(job(), urgency=0), "depend")  # so the one before it has been validated
    any_mode.cancel(second)
    assert run(any_mode, second) == ["submit", "exception", "clean"]


def test_cancelling_a_running_job_ends_it_with_a_status(any_mode: Harness) -> None:
    job_id = any_mode.submit(job("sleep", "60"))
    running(any_mode, job_id)
    any_mode.cancel(job_id)
    life = [name for name, _ in itertools.groupby(run(any_mode, job_id))]
    # right after the start a second exception may follow, of the tasks that are killed
    assert life == [*LIFE[:5], "exception", *LIFE[5:]]
    assert context(any_mode, job_id, "exception")["type"] == "cancel"
    assert context(any_mode, job_id, "finish")["status"] != 0


def test_a_job_that_outlives_its_duration_is_ended(any_mode: Harness) -> None:
    job_id = any_mode.submit(job("sleep", "60", duration=1.0))
    assert run(any_mode, job_id) == [*LIFE[:5], "exception", *LIFE[5:]]
    exception = context(any_mode, job_id, "exception")
    assert (exception["type"], exception["severity"]) == ("timeout", 0)


def test_a_memo_is_told_as_it_was_given(any_mode: Harness) -> None:
    job_id = any_mode.submit(job(), urgency=0)
    memos: list[dict[str, Any]] = [{"burst": {"state": "wait", "pool": "c2"}}, {"burst": {"pool": None}}]
    for memo in memos:
        wait(any_mode, any_mode.instance.memo(job_id, memo))
    any_mode.run_until(lambda: names(any_mode, job_id).count("memo") == len(memos))
    assert [e.context for e in any_mode.job_events(job_id) if e.name == "memo"] == memos


def test_a_memo_is_refused_once_a_job_is_inactive(any_mode: Harness) -> None:
    job_id = any_mode.submit(job())
    run(any_mode, job_id)
    assert "job is inactive" in refusal(any_mode, any_mode.instance.memo(job_id, {"burst": 1}))


def test_a_memo_of_an_unknown_job_is_refused(any_mode: Harness) -> None:
    assert "unknown job" in refusal(any_mode, any_mode.instance.memo(JobId(1), {"burst": 1}))


def test_an_invalid_queue_is_refused_at_submit(any_mode: Harness) -> None:
    start = len(any_mode.events)
    with pytest.raises(InstanceError, match="queue"):
        any_mode.submit(job(queue="nowhere"))
    never(any_mode, lambda: len(any_mode.events) > start, within_s=0.1)
