"""When the controller plans anew, and when nothing that has happened could change a plan."""

from __future__ import annotations

from fluxburst.model import JobId
from fluxburst.moment import Plan
from fluxburst.states import NodeState
from tests.controller.conftest import MakeRig
from tests.rig import POOL, Rig


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


def test_who_waits_for_a_providers_stock_has_it_asked_again_and_only_news_make_a_plan(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + "stock = 2\n")
    job = rig.submit(nodes=3)
    rig.run_for(10)
    assert "the provider has too few of" in rig.ask("explain", id=job)["verdict"]
    plan, asked = rig.service.world.plan, len(rig.calls("offers"))
    rig.run_for(300)
    assert rig.service.world.plan is plan, "each answer was as the one before"
    assert 10 <= len(rig.calls("offers")) - asked <= 13
    assert rig.calls("launch") == []
    rig.cloud.stock["burst"] = 3
    rig.run_for(30)
    assert len(rig.calls("launch")) == 1


def test_answers_that_come_together_make_one_plan(rig: Rig) -> None:
    jobs = [rig.submit(nodes=2, cores=cores) for cores in (1, 2)]
    plans: list[Plan] = []

    def served() -> bool:
        plan = rig.service.world.plan
        if not plans or plan is not plans[-1]:
            plans.append(plan)
        return rig.service.world.placed.keys() >= {*jobs}

    rig.loop.run_until(served)
    assert [len(plan.undecided) for plan in plans][-2:] == [2, 0], "none in which one is decided alone"
