"""The provider gke, by Google's own clients against a server of the tests' own and a real control plane."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxburst.config import BurstConfig
from fluxburst.errors import ProviderError, QuotaExceeded
from fluxburst.flux.private import find_flux
from fluxburst.hostlist import expand
from fluxburst.model import BootMaterial, Demand, Host, NodePhase, Offer, Order, PoolSpec, Refusal, RequestId, Secret
from fluxburst.provider import Provider, ProviderContext
from fluxburst.testing import PrivateSite
from fluxburst_gke import make
from tests.kube.api import Api
from tests.kube.control_plane import ControlPlane
from tests.kube.gke_server import CLUSTER, Google, serving
from tests.kube.kubelet import Kubelet
from tests.kube.test_burst import left
from tests.real import steps

pytestmark = [pytest.mark.kube]

POOL = "fb-private-c2"
BURST_TOML = """
[policy]
cooldown = "1s"
[pool.c2]
provider = "gke"
hosts = "c2-[0-3]"
cores = 2
usd_per_node_hour = 0.5
idle_timeout = "500ms"
[pool.c2.options]
machine_type = "tiny"
image = "follower"
flux = "{flux}"
[provider.gke]
gke_cluster = "{cluster}"
namespace = "{namespace}"
{google}
"""


@pytest.fixture
def google(control_plane: ControlPlane, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    directory = Path(tempfile.mkdtemp(prefix="fb-google-"))
    try:
        with serving(control_plane, kubelet, directory) as google:
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google.key))
            monkeypatch.setenv("NO_GCE_CHECK", "true")
            yield google
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.flux
def test_a_node_pool_goes_from_zero_to_three_and_back(
    google: Google, api: Api, kubelet: Kubelet, namespace: str
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    toml = BURST_TOML.format(flux=find_flux(), cluster=CLUSTER, namespace=namespace, google=google.toml)
    try:
        with PrivateSite(directory, toml) as site:
            steps.serve(site)
            try:
                _burst(site, google, api, namespace)
            finally:
                print(site.log_path.read_text()[-9000:])  # shown where the test failed
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _burst(site: PrivateSite, google: Google, api: Api, namespace: str) -> None:
    google.tell("submit")
    job = site.submit("--setattr", "burstable=true", "-N3", "hostname")
    submitted_at = steps.await_event(site, job, "submit")["timestamp"]
    steps.await_event(site, job, "start")
    google.tell("start")
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    google.tell("finish")
    assert set(steps.hosts_of(site, job)) == {"c2-0", "c2-1", "c2-2"}
    steps.eventually(lambda: steps.nothing_left(site))
    google.tell("all records ended")
    assert google.machines(POOL) == []
    assert google.pools[POOL].target == 0
    assert not left(api, namespace)
    assert google.sizes == [(POOL, 3)]
    bought = steps.records(site, submitted_at)
    assert {(node["host"], node["state"], node["reason"]) for node in bought} == {
        (f"c2-{index}", "gone", "idle") for index in range(3)
    }
    print("time line, s:", *(f"  {at:6.2f} {what}" for at, what in google.log), sep="\n")
