"""The service is killed with SIGKILL at the points of a burst where anything is at stake, and started again."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from fluxburst.testing import PrivateSite
from tests.real import steps

pytestmark = pytest.mark.flux

DOOMED = str(Path(__file__).with_name("doomed_service.py"))


@pytest.mark.parametrize(
    "point",
    [
        "before Launch",
        "after Launch",
        "while ordered",
        "before Move",
        "after Move",
        "while draining",
        "after StopBrokers",
    ],
)
def test_a_killed_service_buys_nothing_twice_and_forgets_nothing(site: PrivateSite, point: str) -> None:
    site.stop_service()
    orders, since = steps.orders_taken(site), time.time()
    doomed = site.start_service([sys.executable, DOOMED, point])
    job = site.submit(steps.BURSTABLE, "-N2", "hostname")
    assert doomed.wait(steps.PATIENCE_S) == -signal.SIGKILL, site.log_path.read_text()[-2000:]

    steps.serve(site)
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    assert set(steps.hosts_of(site, job)) == {"burst-0", "burst-1"}
    steps.eventually(lambda: steps.nothing_left(site))
    bought = steps.records(site, since)
    assert sorted(node["host"] for node in bought) == ["burst-0", "burst-1"]
    # what the records tell is what the provider did: one order, and one only
    assert steps.orders_taken(site) - orders == {node["request_id"] for node in bought}
    assert len({node["request_id"] for node in bought}) == 1
