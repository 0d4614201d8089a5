"""What the controller knows of home, from the journals: who runs and waits there, and when a job would start."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fluxburst.controller.home import forecast, residents
from fluxburst.flux.protocol import JobEvent
from fluxburst.model import Demand, Host, HostShare, JobId
from tests.rig import Rig

ALL_OF_HOME = Demand(nodes=0, slots=2, cores_per_slot=1, duration_s=60.0)


def starts_in(rig: Rig, demand: Demand = ALL_OF_HOME, queue: str = "batch") -> float:
    now = rig.loop.wall()
    return forecast(rig.service.world, now).start_at(queue, demand) - now


def told(rig: Rig, job_id: JobId, name: str, **event: Any) -> None:
    """An event of a job that cannot burst."""
    rig.service.world.home.job_event(JobEvent(job_id, name, rig.loop.wall(), **event), None)


def test_jobs_that_cannot_burst_run_at_home_until_their_limit(rig: Rig) -> None:
    rig.submit(slots=2, run_s=100, duration_s=300, burstable=False)
    rig.run_for(10)
    assert starts_in(rig) == pytest.approx(290, abs=1)
    rig.run_for(100)
    assert starts_in(rig) == 0


def test_burstable_jobs_that_run_at_home_count_too(rig: Rig) -> None:
    rig.submit(slots=2, run_s=100, duration_s=300)
    rig.run_for(10)
    assert starts_in(rig) == pytest.approx(290, abs=1)


def test_a_change_of_the_time_limit_is_heard(rig: Rig) -> None:
    job = rig.submit(slots=2, run_s=1000, duration_s=300, burstable=False)
    rig.run_for(10)
    told(rig, job, "jobspec-update", context={"attributes.system.duration": 2000.0})
    assert starts_in(rig) == pytest.approx(1990, abs=1)


def test_jobs_of_the_staging_queue_and_of_pools_have_no_start_at_home(rig: Rig) -> None:
    assert starts_in(rig, queue="staging") == math.inf
    assert starts_in(rig, queue="burst") == math.inf


def test_a_home_that_is_down_or_drained_starts_nothing(rig: Rig) -> None:
    rig.run_for(1)
    rig.flux.drain([Host("lead0")], "mending")
    rig.run_for(1)
    assert starts_in(rig) == math.inf
    rig.flux.undrain([Host("lead0")])
    rig.run_for(1)
    assert starts_in(rig) == 0


def test_residents_are_those_that_the_scheduler_may_start_and_that_do_not_ask_in_its_order(rig: Rig) -> None:
    running = rig.submit(slots=2, run_s=1000, duration_s=1000, burstable=False)
    rig.run_for(1)
    later = rig.submit(slots=2, duration_s=10, burstable=False)
    rig.submit(slots=1, burstable=False, urgency=0)
    dependent = rig.submit(slots=1, burstable=False, dependencies=[{"scheme": "afterany", "value": str(running)}])
    rig.submit(slots=1, duration_s=10)
    refused = rig.submit(slots=1, burst={"colour": "red"})
    first = rig.submit(slots=1, duration_s=20, burstable=False, urgency=20)
    rig.run_for(1)
    assert [resident.order for resident in residents(rig.service.world)] == [(-20, first), (-16, later), (-16, refused)]
    rig.flux.set_urgency(refused, 30)
    rig.flux.cancel(later)
    rig.run_for(1)
    assert [resident.order for resident in residents(rig.service.world)] == [(-30, refused), (-20, first)]
    rig.run_until(lambda: rig.ended(first, refused, dependent))
    assert residents(rig.service.world) == []


def test_a_job_that_cannot_be_read_takes_nothing_while_it_waits(rig: Rig) -> None:
    rig.run_for(1)
    version, odd = rig.service.world.home.version, JobId(7)
    told(rig, odd, "submit", context={"userid": 1}, jobspec={"version": 9999})
    told(rig, odd, "depend", context={})
    told(rig, odd, "priority", context={"priority": 16})
    assert residents(rig.service.world) == []
    assert rig.service.world.home.version == version
    told(rig, odd, "alloc", context={}, allocation=(HostShare(rig.flux.facts.hosts[0], 2),))
    assert starts_in(rig) == rig.config.policy.assume_duration


def test_the_schedulers_own_forecast_is_kept_until_it_may_be_stale(rig: Rig) -> None:
    rig.submit(slots=2, run_s=1000, duration_s=1000, burstable=False)
    rig.run_for(1)
    head = rig.submit(slots=2, run_s=10, duration_s=10, burstable=False)
    rig.run_for(1)
    (resident,) = residents(rig.service.world)
    assert resident.home_at == pytest.approx(rig.loop.wall() + 998, abs=2)
    told(rig, head, "priority", context={"priority": 20})
    (resident,) = residents(rig.service.world)
    assert resident.home_at is None


def test_a_burstable_jobs_forecast_by_the_scheduler_is_kept_until_it_starts(rig: Rig) -> None:
    rig.submit(slots=2, run_s=30, duration_s=30, burstable=False)
    rig.run_for(1)
    job = rig.submit(slots=2, run_s=100, duration_s=100, burst={"wait": "1h"})
    rig.run_for(1)
    assert rig.service.world.jobs[job].home_at == pytest.approx(rig.loop.wall() + 28, abs=2)
    rig.run_until(lambda: bool(rig.hosts(job)))
    rig.run_for(1)
    assert rig.service.world.jobs[job].home_at is None


def test_ten_thousand_waiting_jobs_are_cheap_to_keep(rig: Rig) -> None:
    spec = rig.flux.jobspec(rig.submit(slots=2, duration_s=10, burstable=False))
    for number in range(10_000):
        told(rig, JobId(number), "submit", context={}, jobspec=spec)
        told(rig, JobId(number), "depend", context={})
        told(rig, JobId(number), "priority", context={"priority": 16 + number % 7})
    waiting = residents(rig.service.world)
    assert len(waiting) >= 10_000
    assert [one.order for one in waiting] == sorted(one.order for one in waiting)
    assert len({id(one.demand) for one in waiting}) == 1
