"""Rendered configurations on a real Flux."""

from __future__ import annotations

import pytest

from fluxburst.errors import InstanceError
from fluxburst.flux.private import Scheduler

from .conftest import LeadFactory

pytestmark = pytest.mark.flux
SCHEDULERS: tuple[Scheduler, ...] = ("sched-simple", "fluxion-fcfs", "fluxion-easy")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_rendered_lead_boots_and_its_follower_file_lets_a_follower_join(
    lead: LeadFactory, scheduler: Scheduler
) -> None:
    with lead(scheduler) as running:
        running.start_queues()
        with running.follower("gpu-1") as follower:
            ran = running.run(
                "run", "--queue=gpu", "--setattr=burstable", "-N1", "-n2", "-c2", "-g1", "flux", "getattr", "rank"
            )
            assert ran.split() == ["6", "6"]
            inside = running.run("exec", "-r6", "flux", "submit", "--queue=gpu", "--setattr=burstable", "-n4", "true")
            assert inside.startswith("ƒ"), "a job submitted on a burst node goes through the lead's frobnicator"
            with pytest.raises(InstanceError, match="takes burstable jobs only"):
                running.run("exec", "-r6", "flux", "submit", "--queue=gpu", "true")
        assert follower.returncode == 0
        running.wait_for({"gpu-1"}, "offline")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_burstable_job_larger_than_home_waits_in_staging_and_a_smaller_one_runs_at_home(
    lead: LeadFactory, scheduler: Scheduler
) -> None:
    with lead(scheduler, ingest={"validator": {"plugins": ["jobspec", "feasibility"]}}) as running:
        running.start_queues()
        large = running.submit("-N2", "--setattr=burstable=true", "true")
        assert running.system(large)["queue"] == "staging"
        many_slots = running.submit("-n3", "--setattr=burstable=true", "true")
        assert running.system(many_slots)["queue"] == "staging"
        small = running.submit("-n2", "--setattr=burstable=true", "true")
        running.run("job", "wait-event", "-t20", small, "clean")
        assert running.system(small)["queue"] == "batch"
        assert running.run("jobs", "-no{state}", large, many_slots).split() == ["SCHED", "SCHED"]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_with_the_feasibility_validator_jobs_that_nothing_could_run_are_refused(
    lead: LeadFactory, scheduler: Scheduler
) -> None:
    with lead(scheduler, ingest={"validator": {"plugins": ["jobspec", "feasibility"]}}) as running:
        for wanted in (["-N2"], ["-N8", "--setattr=burstable"]):
            with pytest.raises(InstanceError, match=r"(?i)unsatisfiable"):
                running.submit(*wanted, "true")


def test_an_ordinary_job_is_refused_in_a_pool_queue_and_in_staging(lead: LeadFactory) -> None:
    with lead("sched-simple") as running:
        for queue in ("c2", "staging"):
            with pytest.raises(InstanceError, match=r"add --setattr=burstable, or choose another queue \(batch\)"):
                running.submit(f"--queue={queue}", "true")
            for no in ("false", "0"):
                with pytest.raises(InstanceError, match="takes burstable jobs only"):
                    running.submit(f"--queue={queue}", f"--setattr=burstable={no}", "true")
        for near in ("True", "yes"):
            with pytest.raises(InstanceError, match=f"burstable={near}: write --setattr=burstable=true"):
                running.submit(f"--setattr=burstable={near}", "true")
        with pytest.raises(InstanceError, match=r"burst\.pool has no effect without --setattr=burstable=true"):
            running.submit("--setattr=burst.pool=c2", "true")
        running.submit("--queue=c2", "--setattr=burstable", "true")


@pytest.mark.parametrize("scheduler", ["sched-simple", "fluxion-easy"])
def test_in_open_mode_ordinary_jobs_stay_off_the_burst_nodes(lead: LeadFactory, scheduler: Scheduler) -> None:
    with lead(scheduler, "open") as running, running.follower("c2-0"):
        everywhere = ["--setattr=burstable", "-N2", "-x", "flux", "getattr", "rank"]
        assert sorted(running.run("run", *everywhere).split()) == ["0", "1"]
        ordinary = [running.submit("-N1", "-x", "true") for _ in range(3)]
        ordinary += [running.submit("-n1", "--requires=not a100", "true")]
        for job in ordinary:
            running.run("job", "wait-event", "-t20", job, "clean")
            assert running.run("jobs", "-no{ranks}", job).strip() == "0"


def test_the_staging_queue_starts_stopped_and_stays_so_over_a_restart(lead: LeadFactory) -> None:
    instance = lead("sched-simple")
    with instance as running:
        running.start_queues()
        assert "stopped" in running.run("queue", "status", "staging")
    with instance as running:
        assert "started" in running.run("queue", "status", "batch")
        assert "stopped" in running.run("queue", "status", "staging")
        running.run("queue", "start", "--all")
        assert "started" in running.run("queue", "status", "staging"), "Flux has no way to keep one queue stopped"


def test_a_malformed_burst_table_is_named_in_the_lead_s_log(lead: LeadFactory) -> None:
    with lead("sched-simple", tweak=lambda table: table["burst"].pop("pools")) as running:
        with pytest.raises(InstanceError):
            running.submit("true")
        log = running.run("dmesg")
        assert "[burst] pools: 'pools' is missing; write it with `flux burst config render`" in log


def test_followers_boot_inside_jobs_of_another_instance(lead: LeadFactory) -> None:
    with lead("sched-simple", "open") as outer, lead("sched-simple") as running:
        hosts = ["c2-0", "c2-2"]
        carrier = outer.submit("-n2", "sh", str(running.boot_script(hosts)))
        running.wait_for(set(hosts))
        method = running.run("exec", "-r1,3", "flux", "getattr", "broker.boot-method")
        assert method.split() == ["config", "config"]
        parents = running.run("exec", "-r1,3", "flux", "getattr", "instance-level")
        assert parents.split() == ["0", "0"]
        outer.run("cancel", carrier)
        outer.run("job", "wait-event", "-t20", carrier, "clean")
        running.wait_for(set(hosts), "offline")
        reasons = running.run("overlay", "errors")
        assert "c2-[0,2]: administrative shutdown" in reasons
