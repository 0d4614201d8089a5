"""The service ends and starts, Flux does, and the nodes that are paid for stay of use."""

from __future__ import annotations

import signal

import pytest

from fluxburst.model import JobId
from fluxburst.testing import PrivateSite
from tests.real import steps
from tests.real.conftest import OpenSite

pytestmark = pytest.mark.flux


def run_on_two_nodes(site: PrivateSite) -> JobId:
    job = site.submit(steps.BURSTABLE, "-N2", "true")
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    assert set(steps.hosts_of(site, job)) == {"burst-0", "burst-1"}
    return job


def test_nodes_outlive_a_stopped_service_and_serve_the_next_job_of_a_new_one(site: PrivateSite) -> None:
    service = steps.serve_anew(site)
    site.call("request", {"pool": "burst", "nodes": 2, "for_s": None})
    steps.await_nodes_up(site, 2)
    nodes, orders = steps.brokers(site), steps.orders_taken(site)
    site.stop_service(signal.SIGTERM)
    assert service.returncode == 0
    assert steps.last_log_line(site)["event"] == "stopped; nodes stay as they are"
    assert steps.brokers(site) == nodes
    steps.serve(site)
    run_on_two_nodes(site)
    assert steps.brokers(site) == nodes
    assert steps.orders_taken(site) == orders


def test_a_node_whose_record_is_lost_is_adopted(site: PrivateSite) -> None:
    site.call("request", {"pool": "burst", "nodes": 2, "for_s": None})
    steps.await_nodes_up(site, 2)
    job = site.submit(steps.BURSTABLE, "-N2", "sleep", "inf")
    steps.await_event(site, job, "start")
    nodes, orders = steps.brokers(site), steps.orders_taken(site)
    site.stop_service()
    for path in site.config.state_path().glob("state.sqlite*"):
        path.unlink()
    steps.serve(site)
    steps.await_nodes_up(site, 2)
    assert steps.brokers(site) == nodes
    assert steps.orders_taken(site) == orders


def test_the_service_reconnects_when_the_job_manager_is_reloaded(open_site: OpenSite) -> None:
    site = open_site("sched-simple", "queue")
    service = steps.serve_anew(site)
    for module in ("job-manager", "job-exec", "sched-simple"):
        site.instance.run("module", "reload", module)
    site.instance.run("module", "load", "job-list")  # it ended with the job manager
    run_on_two_nodes(site)
    assert service.poll() is None
    steps.clean_up(site)


def test_the_service_outlives_the_lead_and_serves_it_again(open_site: OpenSite) -> None:
    site = open_site("sched-simple", "queue")
    service = steps.serve_anew(site)
    site.call("request", {"pool": "burst", "nodes": 2, "for_s": 3600.0})
    steps.await_nodes_up(site, 2)
    log_before = site.log_path.read_text()
    site.instance.close()
    site.instance.start()
    steps.eventually(site.ready)
    run_on_two_nodes(site)
    assert service.poll() is None
    # a lead that ends or starts takes connections while its modules are not there; that is no reason for a tight loop
    assert site.log_path.read_text().removeprefix(log_before).count('"disconnected"') < 10
    steps.clean_up(site)
