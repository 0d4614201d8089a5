"""Stopped queues, moves between queues, and what each scheduler makes of a job that cannot start yet."""

from __future__ import annotations

import pytest

from fluxburst.model import HostShare, JobId
from tests.contract.harness import GHOSTS, HOME, Harness
from tests.contract.steps import (
    STRICT,
    context,
    event,
    hosts,
    job,
    names,
    never,
    refusal,
    run,
    stays_pending,
    up,
    wait,
)

B0, B1, B2, B3 = GHOSTS
TO_BURST = {"attributes.system.queue": "burst", "attributes.system.constraints": {"properties": ["burst"]}}


def test_a_job_in_a_stopped_queue_waits_and_blocks_nobody(any_policy: Harness) -> None:
    staged = any_policy.submit(job(nodes=2, queue="staging"))
    stays_pending(any_policy, staged)
    run(any_policy, any_policy.submit(job()))
    assert names(any_policy, staged) == ["submit", "depend", "priority"]


def test_a_job_moved_home_from_a_stopped_queue_runs_there(any_policy: Harness) -> None:
    staged = any_policy.submit(job(queue="staging"))
    event(any_policy, staged, "priority")
    wait(any_policy, any_policy.instance.move(staged, "batch"))
    assert hosts(any_policy, staged) == [HOME]


def test_a_gang_moved_to_a_queue_whose_nodes_are_up_runs_on_them(any_policy: Harness) -> None:
    staged = any_policy.submit(job(nodes=2, queue="staging"))
    event(any_policy, staged, "priority")
    up(any_policy, B0, B1)
    wait(any_policy, any_policy.instance.move(staged, "burst"))
    assert event(any_policy, staged, "alloc").allocation == (HostShare(B0, 2), HostShare(B1, 2))
    assert run(any_policy, staged) == [
        "submit",
        "depend",
        "priority",
        "jobspec-update",
        "priority",
        "alloc",
        "start",
        "finish",
        "free",
        "clean",
    ]
    assert context(any_policy, staged, "jobspec-update") == TO_BURST


def test_a_held_job_can_be_moved_and_then_released(any_policy: Harness) -> None:
    up(any_policy, B0)
    held = any_policy.submit(job(), urgency=0)
    event(any_policy, held, "priority")
    wait(any_policy, any_policy.instance.move(held, "burst"))
    stays_pending(any_policy, held)
    any_policy.set_urgency(held, 16)
    assert hosts(any_policy, held) == [B0]


def test_a_moved_job_can_be_moved_back(queues: Harness) -> None:
    staged = queues.submit(job(queue="staging"))
    event(queues, staged, "priority")
    up(queues)
    for queue in ("burst", "staging", "batch"):
        wait(queues, queues.instance.move(staged, queue))
    assert hosts(queues, staged) == [HOME]
    assert [e.context for e in queues.job_events(staged) if e.name == "jobspec-update"] == [
        TO_BURST,
        {"attributes.system.queue": "staging", "attributes.system.constraints": {}},
        {"attributes.system.queue": "batch", "attributes.system.constraints": {"properties": ["home"]}},
    ]


def test_a_job_that_waits_for_another_can_be_moved(queues: Harness) -> None:
    up(queues, B0)
    first = queues.submit(job(), urgency=0)
    second = queues.submit(job(dependencies=[{"scheme": "afterany", "value": str(first)}]))
    event(queues, second, "submit")
    wait(queues, queues.instance.move(second, "burst"))
    queues.set_urgency(first, 16)
    assert hosts(queues, second) == [B0]
    assert names(queues, second)[:4] == ["submit", "jobspec-update", "depend", "priority"]


def test_a_move_is_refused_to_the_queue_the_job_is_in(queues: Harness) -> None:
    staged = queues.submit(job(queue="staging"))
    assert "job queue is already set to staging" in refusal(queues, queues.instance.move(staged, "staging"))


def test_a_move_is_refused_to_an_unknown_queue(queues: Harness) -> None:
    staged = queues.submit(job(queue="staging"))
    assert "'nowhere' is not a valid queue" in refusal(queues, queues.instance.move(staged, "nowhere"))


def test_a_move_is_refused_while_a_job_runs(queues: Harness) -> None:
    running = queues.submit(job("sleep", "60"))
    event(queues, running, "start")
    refused = refusal(queues, queues.instance.move(running, "burst"))
    assert refused.startswith("InstanceError")
    assert "update of queue for running job not supported" in refused


def test_a_move_is_refused_for_a_job_with_constraints_of_its_own(queues: Harness) -> None:
    staged = queues.submit(job(queue="staging", constraints={"hostlist": [B0]}))
    refused = refusal(queues, queues.instance.move(staged, "burst"))
    assert "job appears to have non-queue constraints" in refused


def test_a_move_is_refused_to_nodes_that_could_never_run_the_job(queues: Harness) -> None:
    staged = queues.submit(job(nodes=len(GHOSTS) + 1, queue="staging"))
    assert "nsatisfiable request" in refusal(queues, queues.instance.move(staged, "burst"))


def test_a_move_counts_nodes_that_are_down(queues: Harness) -> None:
    up(queues)
    staged = queues.submit(job(nodes=len(GHOSTS), queue="staging"))
    wait(queues, queues.instance.move(staged, "burst"))
    event(queues, staged, "jobspec-update")


def test_a_move_of_an_inactive_or_unknown_job_is_refused(queues: Harness) -> None:
    job_id = queues.submit(job())
    run(queues, job_id)
    assert "job is inactive" in refusal(queues, queues.instance.move(job_id, "burst"))
    assert "unknown job" in refusal(queues, queues.instance.move(JobId(1), "burst"))


def test_a_queue_can_be_stopped_and_started(queues: Harness) -> None:
    wait(queues, queues.instance.set_queue("batch", started=False))
    job_id = queues.submit(job())
    stays_pending(queues, job_id)
    wait(queues, queues.instance.set_queue("batch", started=True))
    run(queues, job_id)


def test_stopping_a_queue_takes_back_the_jobs_that_wait_for_nodes(queues: Harness) -> None:
    up(queues)
    waiting = queues.submit(job(nodes=1, queue="burst"))
    stays_pending(queues, waiting)
    wait(queues, queues.instance.set_queue("burst", started=False))
    try:
        up(queues, B0)
        stays_pending(queues, waiting)
        run(queues, queues.submit(job()))
    finally:
        wait(queues, queues.instance.set_queue("burst", started=True))
    run(queues, waiting)


def test_an_unknown_queue_cannot_be_started(queues: Harness) -> None:
    assert "'nowhere' is not a valid queue" in refusal(queues, queues.instance.set_queue("nowhere", started=True))


def test_ordinary_jobs_stay_off_the_burst_nodes(queues: Harness) -> None:
    up(queues, B0)
    first, second = queues.submit(job("sleep", "0.4", nodes=1)), queues.submit(job(nodes=1))
    assert hosts(queues, first) == [HOME]
    stays_pending(queues, second)
    assert hosts(queues, second) == [HOME]


def test_a_job_that_waits_for_down_nodes_blocks_all_others_only_under_strict_fifo(queues: Harness) -> None:
    up(queues)
    head = queues.submit(job(nodes=1, queue="burst"))
    event(queues, head, "priority")
    behind = queues.submit(job())
    if queues.scheduler in STRICT:
        stays_pending(queues, behind)
        queues.cancel(head)
    else:
        stays_pending(queues, head)
    assert hosts(queues, behind) == [HOME]


def test_a_smaller_job_passes_one_that_waits_for_nodes_of_the_same_queue_only_where_there_is_backfill(
    queues: Harness,
) -> None:
    up(queues, B0)
    head = queues.submit(job(nodes=2, queue="burst"))
    event(queues, head, "priority")
    behind = queues.submit(job(nodes=1, queue="burst"))
    if queues.scheduler in STRICT:
        stays_pending(queues, behind)
    else:
        run(queues, behind)
    up(queues, B0, B1)
    assert hosts(queues, head) == [B0, B1]
    run(queues, behind)


def test_a_job_with_more_nodes_than_its_queue_fails_under_strict_fifo_and_waits_otherwise(queues: Harness) -> None:
    job_id = queues.submit(job(nodes=2))
    if queues.scheduler in STRICT:
        exception = context(queues, job_id, "exception")
        assert (exception["type"], exception["severity"]) == ("alloc", 0)
        assert exception["note"] == "unsatisfiable request: need 2 exclusive node(s), only 1 eligible"
        assert run(queues, job_id) == ["submit", "depend", "priority", "exception", "clean"]
    else:
        stays_pending(queues, job_id)
        run(queues, queues.submit(job()))


@pytest.mark.parametrize(("slots", "cores"), [(3, 1), (1, 3)])
def test_a_job_with_more_slots_than_its_queue_is_failed(queues: Harness, slots: int, cores: int) -> None:
    job_id = queues.submit(job(slots=slots, cores=cores))
    exception = context(queues, job_id, "exception")
    assert exception["type"] == "alloc"
    assert "unsatisfiable" in exception["note"]
    assert run(queues, job_id) == ["submit", "depend", "priority", "exception", "clean"]


def test_slots_are_spread_over_nodes(queues: Harness) -> None:
    up(queues, B0, B1)
    allocation = event(queues, queues.submit(job(slots=4, queue="burst")), "alloc").allocation
    assert allocation == (HostShare(B0, 2), HostShare(B1, 2))


def test_slots_wait_for_nodes_that_are_down(queues: Harness) -> None:
    up(queues, B0)
    job_id = queues.submit(job(slots=3, queue="burst"))
    stays_pending(queues, job_id)
    up(queues, B0, B1)
    shares = event(queues, job_id, "alloc").allocation
    assert ({share.host for share in shares}, sum(share.cores for share in shares)) == ({B0, B1}, 3)


def test_nothing_is_left_behind_by_a_move_that_was_refused(queues: Harness) -> None:
    staged = queues.submit(job(queue="staging"))
    event(queues, staged, "priority")
    refusal(queues, queues.instance.move(staged, "nowhere"))
    never(queues, lambda: "jobspec-update" in names(queues, staged), within_s=0.1)
