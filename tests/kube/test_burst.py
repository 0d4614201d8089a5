"""A real lead is joined by pods: the whole way of a burst through a real control plane."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxburst.flux.private import find_flux
from fluxburst.testing import PrivateSite
from tests.kube.api import Api
from tests.kube.control_plane import ControlPlane
from tests.kube.kubelet import Kubelet
from tests.real import steps

pytestmark = [pytest.mark.kube, pytest.mark.flux, pytest.mark.usefixtures("three_nodes")]

BURST_TOML = """
[policy]
cooldown = "1s"
[pool.pods]
provider = "kubernetes"
hosts = "pods-[0-3]"
cores = 2
usd_per_node_hour = 0.5
idle_timeout = "500ms"
[pool.pods.options]
image = "follower"
flux = "{flux}"
[provider.kubernetes]
kubeconfig = "{kubeconfig}"
namespace = "{namespace}"
"""


@pytest.fixture
def site(control_plane: ControlPlane, namespace: str) -> Iterator[PrivateSite]:
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    burst_toml = BURST_TOML.format(flux=find_flux(), kubeconfig=control_plane.kubeconfig, namespace=namespace)
    try:
        with PrivateSite(directory, burst_toml) as site:
            steps.serve(site)
            yield site
            print(site.log_path.read_text()[-9000:])  # shown where the test failed
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def left(api: Api, namespace: str) -> list[dict[str, Any]]:
    """All that an order is made of, and that is there."""
    kinds = (
        "apis/batch/v1/namespaces/{}/jobs",
        *(f"api/v1/namespaces/{{}}/{kind}" for kind in ("pods", "secrets", "services")),
    )
    mine = "app.kubernetes.io/managed-by=fluxburst"
    return [item for kind in kinds for item in api.get("/" + kind.format(namespace), labelSelector=mine)["items"]]


def test_three_pods_join_run_a_job_and_leave_nothing(
    site: PrivateSite, api: Api, kubelet: Kubelet, namespace: str
) -> None:
    job = site.submit("--setattr", "burstable=true", "-N3", "hostname")
    started_at = steps.await_event(site, job, "start")["timestamp"]
    submitted_at = steps.await_event(site, job, "submit")["timestamp"]
    print("submit to start, s:", round(started_at - submitted_at, 2))
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    assert set(steps.hosts_of(site, job)) == {"pods-0", "pods-1", "pods-2"}
    steps.eventually(lambda: not left(api, namespace))
    steps.eventually(lambda: steps.nothing_left(site))
    bought = steps.records(site, submitted_at)
    assert {(node["host"], node["state"], node["reason"]) for node in bought} == {
        (f"pods-{index}", "gone", "idle") for index in range(3)
    }
