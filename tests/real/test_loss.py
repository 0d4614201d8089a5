"""A node that dies under a running job."""

from __future__ import annotations

import time

import pytest

from fluxburst.jobid import f58
from fluxburst.model import JobId
from fluxburst.testing import PrivateSite
from tests.real import steps

pytestmark = pytest.mark.flux


def test_a_lost_node_is_replaced_under_its_own_name_and_its_job_is_submitted_again(site: PrivateSite) -> None:
    since = time.time()
    job = site.submit(steps.BURSTABLE, "-N2", "sleep", "inf")
    steps.await_event(site, job, "start")
    first = steps.brokers(site)
    assert sorted(first) == ["burst-0", "burst-1"]
    steps.lose_power(first["burst-1"])
    failed = steps.await_event(site, job, "exception")
    assert failed["context"]["note"].startswith("node failure on burst-1 ")
    steps.await_event(site, job, "clean")

    (again,) = steps.eventually(lambda: _submitted_again(site, job))
    steps.await_event(site, again, "start")
    assert set(steps.hosts_of(site, again)) == {"burst-0", "burst-1"}
    second = steps.brokers(site)
    assert second["burst-0"] == first["burst-0"]
    assert second["burst-1"] != first["burst-1"]
    gone = [node for node in steps.records(site, since) if node["state"] == "gone"]
    assert [(node["host"], node["reason"].split(":")[0]) for node in gone] == [("burst-1", "lost")]

    old = steps.memo(site, job)
    assert (old["state"], old["reason"]) == ("lost", "burst-1 was lost; it is submitted again")
    steps.eventually(lambda: steps.memo(site, again)["state"] == "running")
    assert steps.memo(site, again)["resubmit_of"] == f58(job)


def _submitted_again(site: PrivateSite, job: JobId) -> list[JobId]:
    history = site.call("explain", {"id": job})["history"]
    return [entry["new"] for entry in history if entry["kind"] == "resubmitted"]


def test_a_cancelled_job_is_not_submitted_again(site: PrivateSite) -> None:
    job = site.submit(steps.BURSTABLE, "-N2", "sleep", "inf")
    steps.await_event(site, job, "start")
    site.instance.run("cancel", str(job))
    steps.await_event(site, job, "clean")
    steps.eventually(lambda: steps.nothing_left(site))
    assert site.call("jobs")["jobs"] == []
    assert steps.memo(site, job)["state"] == "running"
