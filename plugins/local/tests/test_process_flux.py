"""The launcher ``process`` with real brokers."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_support import context, order, phases, release_all, supervisors, until, up

from fluxburst.flux.private import PrivateInstance
from fluxburst_local import make

pytestmark = pytest.mark.flux


def test_followers_join_outlive_the_service_and_leave_in_good_order(lead: PrivateInstance, tmp_path: Path) -> None:
    first = make(context(tmp_path, flux=str(lead.flux)))
    try:
        first.launch(order(1, "burst-0", "burst-1", config=lead.config_path.read_text()))
        until(lambda: up(lead) == {"burst-0", "burst-1"})
    finally:
        first.close()

    second = make(context(tmp_path, flux=str(lead.flux)))
    try:
        assert phases(second) == {"burst-0": "running", "burst-1": "running"}
        second.release([node.node_id for node in second.list_nodes() if node.host == "burst-1"])
        until(lambda: phases(second) == {"burst-0": "running"})
        until(lambda: up(lead) == {"burst-0"})
        log = lead.run("resource", "eventlog", "--format=json")
        assert "lost" not in log
    finally:
        release_all(second)
        second.close()
    until(lambda: not supervisors(tmp_path))


def test_a_broker_that_flux_stops_is_no_longer_listed(lead: PrivateInstance, tmp_path: Path) -> None:
    provider = make(context(tmp_path, flux=str(lead.flux)))
    try:
        provider.launch(order(1, "burst-0", config=lead.config_path.read_text()))
        until(lambda: up(lead) == {"burst-0"})
        lead.run("exec", "-r1", "sh", "-c", "kill -TERM $(flux getattr broker.pid)")
        until(lambda: not provider.list_nodes())
    finally:
        release_all(provider)
        provider.close()
