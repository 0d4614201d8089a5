"""A node that dies under a running job."""

from __future__ import annotations

import time

import pytest

from fluxburst.jobid import f58
from fluxburst.model import JobId
from fluxburst.testing import PrivateSite
from tests.real import steps

pytestmark = pytest.mark.flux

OBEYS_SIGTERM = "echo up; exec sleep inf"
SAVES_ITS_WORK = 'trap "sleep 1; exit 1" TERM; echo up; sleep inf & wait'


def lose_a_node_under(site: PrivateSite, script: str) -> tuple[JobId, JobId]:
    """Run the script on burst-[0-1], cut burst-1's power, and wait for the job that takes the place of the lost one."""
    job = site.submit(steps.BURSTABLE, "-N2", "sh", "-c", script)
    steps.await_output(site, job, 2)
    assert set(steps.hosts_of(site, job)) == {"burst-0", "burst-1"}
    steps.lose_power(steps.brokers(site)["burst-1"])
    failed = steps.await_event(site, job, "exception")["context"]
    assert (failed["type"], failed["severity"]) == ("exec", 0)
    assert failed["note"].startswith("node failure on burst-1 (")
    (again,) = steps.eventually(lambda: steps.submitted_again(site, job))
    steps.await_output(site, again, 2)
    return job, again


def test_a_lost_node_is_replaced_under_its_own_name_and_its_job_is_submitted_again(site: PrivateSite) -> None:
    since = time.time()
    job, again = lose_a_node_under(site, OBEYS_SIGTERM)
    assert set(steps.hosts_of(site, again)) == {"burst-0", "burst-1"}
    bought = [(node["host"], node["state"], node["reason"].split(":")[0]) for node in steps.records(site, since)]
    assert sorted(bought) == [
        ("burst-0", "joined", "its broker is up"),
        ("burst-1", "gone", "lost"),
        ("burst-1", "joined", "its broker is up"),
    ]
    steps.eventually(lambda: steps.memo(site, again)["state"] == "running")
    assert steps.memo(site, again)["resubmit_of"] == f58(job)


def test_the_memo_of_a_lost_job_names_the_one_that_takes_its_place(site: PrivateSite) -> None:
    # An ended job takes no memo, and one that obeys SIGTERM ends 3 to 16 ms after its exception.
    since = time.time()
    job, again = lose_a_node_under(site, SAVES_ITS_WORK)
    steps.await_event(site, job, "clean")
    assert steps.memo(site, job) == {
        "pool": "burst",
        "state": "lost",
        "reason": "burst-1 was lost; it is submitted again",
        "resubmitted_as": f58(again),
    }
    # the job that still ended held both of its hosts
    assert set(steps.hosts_of(site, again)) == {"burst-2", "burst-3"}
    assert len(steps.records(site, since)) == 4


def test_a_cancelled_job_is_not_submitted_again(site: PrivateSite) -> None:
    job = site.submit(steps.BURSTABLE, "-N2", "sh", "-c", OBEYS_SIGTERM)
    steps.await_output(site, job, 2)
    site.instance.run("cancel", str(job))
    steps.await_event(site, job, "clean")
    steps.eventually(lambda: steps.nothing_left(site))
    assert steps.submitted_again(site, job) == []
    assert site.call("jobs")["jobs"] == []
