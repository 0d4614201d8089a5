"""A real lead is joined by pods: the whole way of a burst through a real control plane."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from fluxburst.flux.private import find_flux, free_port
from fluxburst.model import Severity
from fluxburst.testing import PrivateSite
from fluxburst_kubernetes import objects, probe
from tests.kube import orders
from tests.kube.api import Api
from tests.kube.conftest import empty_namespace
from tests.kube.control_plane import ControlPlane
from tests.kube.kubelet import Image, Kubelet
from tests.kube.proxy import Proxy
from tests.kube.token_reviews import TokenReviews
from tests.real import steps

pytestmark = [pytest.mark.kube, pytest.mark.flux, pytest.mark.usefixtures("three_nodes")]

AWAY_S = 60.0
"""How long the API server is not there."""
BURST_TOML = """
[policy]
cooldown = "2s"
on_node_loss = "resubmit"
[pool.pods]
provider = "kubernetes"
hosts = "pods-[0-3]"
cores = 2
usd_per_node_hour = 0.5
idle_timeout = "500ms"
[pool.pods.options]
image = "follower"
flux = "{flux}"
grace = "5s"
[pool.dear]
provider = "elsewhere"
hosts = "dear-[0-3]"
cores = 2
usd_per_node_hour = 1.0
idle_timeout = "500ms"
[pool.dear.options]
image = "dear"
flux = "{flux}"
grace = "5s"
[provider.kubernetes]
kubeconfig = "{kubeconfig}"
namespace = "{namespace}"
request_timeout = "2s"
[provider.elsewhere]
plugin = "kubernetes"
kubeconfig = "{other_kubeconfig}"
namespace = "{elsewhere}"
request_timeout = "2s"
"""


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[Proxy]:
    with Proxy(control_plane.kubeconfig) as proxy:
        yield proxy


class Tokens:
    """The service's token for the first of its clusters, until it expires."""

    def __init__(self, control_plane: ControlPlane, path: Path) -> None:
        self._control_plane, self.path = control_plane, path
        self._numbers = itertools.count()
        self.renew()

    def renew(self) -> None:
        self._valid = f"token-{next(self._numbers)}"
        self._control_plane.write_kubeconfig(self.path, self._valid)

    def expire(self) -> None:
        self._valid = ""

    def is_refused(self) -> bool:
        """The API server takes a token for good ten seconds after it has asked."""
        try:
            Api(self.path).get("/api/v1/namespaces")
        except ApiException as error:
            return error.status == 401
        return False

    def judge(self, token: str) -> tuple[str, list[str]] | None:
        return ("fluxburst", ["system:masters"]) if token == self._valid else None


@pytest.fixture
def tokens(control_plane: ControlPlane, token_reviews: TokenReviews, tmp_path: Path) -> Iterator[Tokens]:
    tokens = Tokens(control_plane, tmp_path / "kubeconfig")
    token_reviews.judges.append(tokens.judge)
    yield tokens
    token_reviews.judges.remove(tokens.judge)


@pytest.fixture
def behind(request: pytest.FixtureRequest, control_plane: ControlPlane, tmp_path: Path) -> tuple[Path, Path]:
    """The service's kubeconfigs: by way of the proxy in tests that have one, the first with a token that may expire."""
    if "tokens" in request.fixturenames:
        tokens: Tokens = request.getfixturevalue("tokens")
        return tokens.path, control_plane.kubeconfig
    if "proxy" not in request.fixturenames:
        return control_plane.kubeconfig, control_plane.kubeconfig
    proxy: Proxy = request.getfixturevalue("proxy")
    proxy.write_kubeconfig(tmp_path / "kubeconfig")
    return tmp_path / "kubeconfig", tmp_path / "kubeconfig"


@pytest.fixture
def elsewhere(api: Api) -> Iterator[str]:
    """Another namespace, which is another cluster as far as quotas go."""
    with empty_namespace(api) as name:
        yield name


@pytest.fixture
def site(
    behind: tuple[Path, Path], kubelet: Kubelet, api: Api, namespace: str, elsewhere: str
) -> Iterator[PrivateSite]:
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    first, second = behind
    burst_toml = BURST_TOML.format(
        flux=find_flux(), kubeconfig=first, other_kubeconfig=second, namespace=namespace, elsewhere=elsewhere
    )
    try:
        with PrivateSite(directory, burst_toml) as site:
            steps.serve(site)
            yield site
            # shown where the test failed
            print(site.log_path.read_text()[-9000:])
            print(site.instance.run("overlay", "status"))
            for one in api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]:
                print(one["metadata"], one["status"]["phase"])
            for log in sorted(kubelet.logs.iterdir()):
                print(log.name, log.read_text()[-2000:])
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


def test_an_image_that_does_not_exist_sends_the_job_to_the_next_offer(
    site: PrivateSite, api: Api, kubelet: Kubelet, namespace: str
) -> None:
    kubelet.images["follower"] = Image(missing=True)
    job = site.submit("--setattr", "burstable=true", "-N2", "hostname")
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    assert set(steps.hosts_of(site, job)) == {"dear-0", "dear-1"}
    steps.eventually(lambda: not left(api, namespace))
    failed = [node for node in steps.records(site, 0.0) if node["pool"] == "pods"]
    assert failed
    assert all(
        "image follower: ErrImagePull" in node["reason"] or "ImagePullBackOff" in node["reason"] for node in failed
    )


def test_a_quota_of_two_sends_a_gang_of_three_to_the_next_offer(
    site: PrivateSite, api: Api, namespace: str, elsewhere: str
) -> None:
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    api.post(quotas, {"metadata": {"name": "small"}, "spec": {"hard": {"pods": "2"}}})
    api.wait_for(quotas, lambda quota: "hard" in quota.get("status", {}))
    job = site.submit("--setattr", "burstable=true", "-N3", "hostname")
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    # those of the first order that came up are used, or others are bought: never a part of a gang alone
    assert len(steps.hosts_of(site, job)) == 3
    steps.eventually(lambda: not left(api, namespace) and not left(api, elsewhere))
    reasons = [node["reason"] for node in steps.records(site, 0.0) if node["pool"] == "pods"]
    assert any("exceeded quota: small, requested: pods=1" in reason for reason in reasons), reasons


def test_a_busy_api_server_is_asked_again_when_it_says(
    proxy: Proxy, site: PrivateSite, api: Api, namespace: str
) -> None:
    proxy.refuse("POST", "jobs", retry_after_s=1)
    proxy.refuse("POST", "secrets", retry_after_s=1)
    job = site.submit("--setattr", "burstable=true", "-N2", "hostname")
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    assert proxy.refused_all
    steps.eventually(lambda: not left(api, namespace))
    told = site.log_path.read_text()
    assert '"provider kubernetes: too many requests, please try again later"' in told
    assert '"provider elsewhere: status 429"' in told, "the next offer; of a Secret no words are repeated"


def test_what_is_told_ten_seconds_late_buys_nothing_twice_and_leaves_nothing(
    proxy: Proxy, site: PrivateSite, api: Api, namespace: str
) -> None:
    proxy.lag_s = 10.0
    job = site.submit("--setattr", "burstable=true", "-N2", "hostname")
    started_at = steps.await_event(site, job, "start")["timestamp"]
    assert started_at - steps.await_event(site, job, "submit")["timestamp"] < proxy.lag_s, "Flux itself tells who is up"
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    steps.eventually(lambda: not left(api, namespace) and steps.nothing_left(site))
    assert sorted(node["host"] for node in steps.records(site, 0.0)) == ["pods-0", "pods-1"]


def test_a_job_whose_pod_is_evicted_is_submitted_again_and_nothing_is_left(
    site: PrivateSite, api: Api, kubelet: Kubelet, namespace: str
) -> None:
    job = site.submit("--setattr", "burstable=true", "-N2", "sh", "-c", "flux getattr hostname >/dev/null; sleep 3")
    steps.await_event(site, job, "start")
    pods = api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    kubelet.evict(namespace, pods[0]["metadata"]["name"])
    (again,) = steps.eventually(lambda: steps.submitted_again(site, job))
    assert steps.await_event(site, again, "finish")["context"]["status"] == 0
    steps.eventually(lambda: not left(api, namespace))
    # Flux sees the broker go before the cluster tells why
    assert [node["reason"] for node in steps.records(site, 0.0)].count("lost: its broker went away unasked") == 1


def test_with_an_expired_token_the_next_offer_serves_and_with_a_new_one_all_is_given_back(
    tokens: Tokens, site: PrivateSite, api: Api, namespace: str
) -> None:
    first = site.submit("--setattr", "burstable=true", "-N2", "sleep", "300")
    steps.await_event(site, first, "start")
    assert set(steps.hosts_of(site, first)) == {"pods-0", "pods-1"}
    tokens.expire()
    steps.eventually(tokens.is_refused)
    site.instance.run("cancel", str(first))
    steps.eventually(lambda: "release failed" in site.log_path.read_text())
    assert "provider kubernetes: Unauthorized" in site.log_path.read_text()
    job = site.submit("--setattr", "burstable=true", "-N2", "hostname")
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    assert set(steps.hosts_of(site, job)) == {"dear-0", "dear-1"}
    assert len([one for one in left(api, namespace) if one["metadata"]["name"].startswith("fluxburst-")]) >= 2
    tokens.renew()
    steps.eventually(lambda: not left(api, namespace) and steps.nothing_left(site))
    again = site.submit("--setattr", "burstable=true", "-N2", "hostname")
    steps.await_event(site, again, "finish")
    assert set(steps.hosts_of(site, again)) == {"pods-0", "pods-1"}


@pytest.mark.timeout(400)
def test_a_pod_whose_deletion_hangs_keeps_its_host_and_is_paid_for_until_it_is_gone(
    site: PrivateSite, api: Api, namespace: str
) -> None:
    job = site.submit("--setattr", "burstable=true", "-N2", "sh", "-c", "sleep 1")
    steps.await_event(site, job, "start")
    pod = api.get(f"/api/v1/namespaces/{namespace}/pods")["items"][0]
    path, host = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}", objects.host_of(pod)
    api.patch(path, {"metadata": {"finalizers": ["example.com/hold"]}})
    steps.await_event(site, job, "finish")
    # the Job's controller, which lets go of the other pod, may have more to do and less to do it with
    steps.eventually(lambda: [node["host"] for node in site.call("nodes")["nodes"]] == [host], 120)
    again = site.submit("--setattr", "burstable=true", "-N2", "hostname")
    steps.await_event(site, again, "finish")
    assert host not in steps.hosts_of(site, again)
    steps.eventually(lambda: [node["host"] for node in site.call("nodes")["nodes"]] == [host])
    (node,) = site.call("nodes")["nodes"]
    assert node["state"] == "releasing"
    api.patch(path, {"metadata": {"finalizers": None}})
    steps.eventually(lambda: not left(api, namespace) and steps.nothing_left(site))
    assert sorted(one["host"] for one in steps.records(site, 0.0)).count(host) == 1


@pytest.mark.timeout(4 * AWAY_S)
def test_an_order_outlives_the_absence_of_the_api_server(
    site: PrivateSite, api: Api, control_plane: ControlPlane, namespace: str
) -> None:
    """Whether it had heard of the order or not: the same request id is one order."""
    first = site.submit("--setattr", "burstable=true", "-N2", "hostname")
    steps.await_event(site, first, "finish")
    steps.eventually(lambda: not left(api, namespace) and steps.nothing_left(site))
    control_plane.pause()
    back_at = time.monotonic() + AWAY_S
    try:
        job = site.submit("--setattr", "burstable=true", "-N2", "hostname")
        steps.eventually(lambda: "launch unclear" in site.log_path.read_text())
        steps.eventually(lambda: time.monotonic() > back_at, 2 * AWAY_S)
    finally:
        control_plane.resume()
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    steps.eventually(lambda: not left(api, namespace))
    assert len(steps.records(site, 0.0)) == 4


def test_a_probe_tells_whether_a_pod_reaches_the_lead(
    site: PrivateSite, control_plane: ControlPlane, api: Api, namespace: str, tmp_path: Path
) -> None:
    provider = orders.provider(control_plane.kubeconfig, namespace, tmp_path, flux=str(find_flux()))
    try:
        (good,) = provider.probe(site.config.lead.connect)
        assert good.severity is Severity.OK, good
        assert good.message.startswith("a pod on node-")
        (closed,) = provider.probe(f"tcp://127.0.0.1:{free_port()}")
        assert closed.severity is Severity.ERROR
        assert "Connection refused" in closed.message
        assert "let the pods reach tcp://127.0.0.1:" in closed.fix
    finally:
        provider.close()
    steps.eventually(lambda: not left(api, namespace))


def test_a_probe_without_a_machine_is_no_error(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_S", 1.0)
    provider = orders.provider(control_plane.kubeconfig, namespace, tmp_path, node_selector={"moon": "full"})
    try:
        (finding,) = provider.probe("tcp://127.0.0.1:1")
        assert finding.severity is Severity.WARNING
        assert "there is no machine to try it on: Unschedulable" in finding.message
    finally:
        provider.close()
