"""Jobs that no pool can serve: each is explained, none is tried again, and the others do not notice."""

from __future__ import annotations

import pytest

from fluxburst.testing import PrivateSite
from tests.real import steps

pytestmark = pytest.mark.flux

IMPOSSIBLE = {
    ("-N9",): "needs 9 nodes, the pool declares 4",
    ("-N2", "--requires=nosuch"): "submit it without --requires, or straight to a pool's queue with -q (burst)",
    ("-N2", "--queue=burst", "--requires=nosuch"): "no host satisfies the job's constraint",
    ("-N2", "--setattr=burst.max_usd=a lot"): "burst.max_usd='a lot': must be a number of US dollars",
    ("-N2", "--setattr=burst.pool=nosuch"): "burst.pool=nosuch: no such pool; there is burst",
}


def test_each_impossible_job_is_explained_and_disturbs_no_other(site: PrivateSite) -> None:
    orders = steps.orders_taken(site)
    reasons = {site.submit(steps.BURSTABLE, *arguments, "true"): reason for arguments, reason in IMPOSSIBLE.items()}
    good = site.submit(steps.BURSTABLE, "-N2", "true")
    assert steps.await_event(site, good, "finish")["context"]["status"] == 0
    steps.eventually(lambda: steps.nothing_left(site))
    for job, reason in reasons.items():
        told = steps.flux_burst(site, "explain", str(job))
        assert told.returncode == 0
        assert reason in " ".join(told.stdout.split())
        history = site.call("explain", {"id": job})["history"]
        assert [entry["kind"] for entry in history].count("refused") == 1
    assert len(steps.orders_taken(site) - orders) == 1
