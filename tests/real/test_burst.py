"""The promise itself: a job that says it may burst, and nothing else typed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fluxburst.testing import PrivateSite
from tests.real import steps

pytestmark = pytest.mark.flux


def test_a_job_larger_than_home_runs_on_nodes_that_are_bought_for_it_and_given_back(
    any_site: PrivateSite, record_property: Callable[[str, object], None]
) -> None:
    job = any_site.submit("--setattr", "burstable=true", "-N2", "hostname")
    started_at = steps.await_event(any_site, job, "start")["timestamp"]
    submitted_at = steps.await_event(any_site, job, "submit")["timestamp"]
    record_property("submit_to_start_s", round(started_at - submitted_at, 3))
    assert steps.await_event(any_site, job, "finish")["context"]["status"] == 0
    assert set(steps.hosts_of(any_site, job)) == {"burst-0", "burst-1"}
    # read only: by now the shell that would be sent the end of input may be gone with its node
    assert len(any_site.instance.run("job", "attach", "--read-only", str(job)).splitlines()) == 2
    steps.eventually(lambda: steps.nothing_left(any_site))
    bought = steps.records(any_site, submitted_at)
    assert sorted(node["host"] for node in bought) == ["burst-0", "burst-1"]
    assert {(node["state"], node["reason"]) for node in bought} == {("gone", "idle")}


def test_the_memo_of_a_job_tells_where_it_went(site: PrivateSite) -> None:
    job = site.submit(steps.BURSTABLE, "-N2", "sleep", "inf")
    steps.await_event(site, job, "start")
    steps.eventually(lambda: steps.memo(site, job).get("state") == "running")
    reason = "it started on nodes of burst; submitted again if one is lost"  # this site resubmits
    assert steps.memo(site, job) == {"pool": "burst", "state": "running", "reason": reason}


def test_ordinary_jobs_stay_at_home_while_bought_nodes_are_idle(any_mode: PrivateSite) -> None:
    any_mode.call("request", {"pool": "burst", "nodes": 2, "for_s": None})
    steps.await_nodes_up(any_mode, 2)
    jobs = any_mode.instance.run("submit", "--cc=1-10", "--cores=1", "true").split()
    for job in jobs:
        steps.await_event(any_mode, job, "clean")
    assert len(jobs) == 10
    assert {steps.hosts_of(any_mode, job) for job in jobs} == {("lead0",)}
    burst = any_mode.submit(steps.BURSTABLE, "-N2", "--cores=4", "true")
    steps.await_event(any_mode, burst, "clean")
    assert "burst-0" in steps.hosts_of(any_mode, burst)  # they were idle, not unusable
    assert len(any_mode.call("nodes")["nodes"]) == 2


def test_no_job_straddles_home_and_pool_and_ordinary_ones_stay_at_home(site: PrivateSite) -> None:
    burstable = [
        site.submit(steps.BURSTABLE, *size, "true") for size in (["-N2"], ["-n4"], ["-N1"], ["-N3"], ["-n1"], ["-N2"])
    ]
    ordinary = [site.submit("-n2", "true") for _ in range(4)]
    for job in [*burstable, *ordinary]:
        assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    assert {steps.hosts_of(site, job) for job in ordinary} == {("lead0",)}
    for job in burstable:
        hosts = set(steps.hosts_of(site, job))
        assert hosts == {"lead0"} or "lead0" not in hosts
