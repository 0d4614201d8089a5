"""When the controller plans anew, and when nothing that has happened could change a plan."""

from __future__ import annotations

from fluxburst.model import JobId
from fluxburst.states import NodeState
from tests.rig import Rig


def refused(rig: Rig) -> JobId:
    """A job that asks and gets nothing, so that there is always somebody to plan for."""
    job = rig.submit(nodes=5)
    rig.run_for(10)
    assert rig.service.world.jobs[job].verdict
    return job


def test_a_job_that_comes_to_home_starts_and_ends_there_needs_no_plan(rig: Rig) -> None:
    refused(rig)
    plan = rig.service.world.plan
    job = rig.submit(run_s=20)
    rig.run_until(lambda: rig.ended(job))
    rig.run_for(1)
    assert rig.hosts(job) == ("lead0",)
    assert rig.service.world.plan is plan


def test_a_job_that_takes_what_was_booked_for_it_needs_no_plan(rig: Rig) -> None:
    refused(rig)
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.queue(job) == "burst")
    plan = rig.service.world.plan
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.run_for(1)
    assert rig.service.world.plan is plan
    rig.run_until(lambda: rig.ended(job))
    rig.run_for(1)
    assert rig.service.world.plan is not plan, "what it leaves may serve others"
    assert not rig.service.world.plan.booked


def test_a_node_that_nobody_booked_leaves_without_a_plan(rig: Rig) -> None:
    refused(rig)
    job = rig.submit(nodes=2)
    rig.run_until(lambda: rig.ended(job))
    rig.run_for(1)
    plan = rig.service.world.plan
    rig.run_until(lambda: NodeState.RELEASING in rig.states().values())
    assert rig.service.world.plan is plan
    rig.run_until(rig.all_gone)
    rig.run_for(1)
    assert rig.service.world.plan is not plan, "its host may be ordered again"


def test_a_place_that_comes_free_is_planned_with_for_a_job_that_started_elsewhere(rig: Rig) -> None:
    """What was booked for a job that home serves first is booked no more."""
    first = rig.submit(slots=2, run_s=20)
    rig.run_for(1)
    second = rig.submit(run_s=500)
    rig.run_until(lambda: rig.flux.state(second).name == "RUN")
    rig.run_for(1)
    assert rig.hosts(second) == rig.hosts(first) == ("lead0",)
    assert not rig.service.world.plan.booked
