"""Bursting at home: the lead's own MiniCluster grows, with a stand-in for the operator (operator.py)."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxburst import bootkit
from fluxburst.errors import ConfigError, InvalidOrder, NoCapacity
from fluxburst.flux.private import find_flux
from fluxburst.model import Host, NodePhase, Order, PoolSpec, Secret, Severity
from fluxburst.provider import ProviderContext
from fluxburst.testing import PrivateSite
from fluxburst_kubernetes.miniclusters import in_here_document, minicluster
from fluxburst_kubernetes.options import PodOptions
from fluxburst_kubernetes.provider import KubernetesProvider, build
from tests.kube import orders
from tests.kube.api import Api, Object
from tests.kube.control_plane import ControlPlane
from tests.kube.kubelet import Kubelet
from tests.kube.operator import MERGE, Operator
from tests.real import steps
from tests.real.steps import eventually

pytestmark = pytest.mark.kube

HOSTS = tuple(Host(f"home-{index}") for index in range(1, 4))
"""What the pool has; home-0 is the lead's own."""
CERTIFICATE = "/mnt/flux/config/curve/curve.cert"
"""Where the operator puts it."""


def built(kubeconfig: Path, namespace: str, directory: Path, declared: tuple[Host, ...], **more: Any) -> Any:
    table = {"kubeconfig": str(kubeconfig), "namespace": namespace, "mode": "resize"}
    pools = {"home": PoolSpec("home", declared, 2, options=more)}
    return build(ProviderContext("own", orders.CLUSTER, table, pools, directory))


@pytest.fixture
def provider(
    control_plane: ControlPlane, minicluster_crd: Object, namespace: str, tmp_path: Path
) -> Iterator[KubernetesProvider]:
    provider = built(control_plane.kubeconfig, namespace, tmp_path, HOSTS)
    yield provider
    provider.close()


@pytest.fixture
def operator(minicluster_crd: Object, api: Api, namespace: str) -> Iterator[Operator]:
    with Operator(api, namespace) as operator:
        yield operator


def path(namespace: str) -> str:
    return f"/apis/flux-framework.org/v1alpha2/namespaces/{namespace}/miniclusters"


def make_home(api: Api, namespace: str, flux: str, *, size: int = 1, most: int = 4, **boot: str) -> None:
    """A site's own MiniCluster, with nothing of ours on it. Its pod 0 does nothing: the lead runs beside it."""
    order = orders.order([Host(f"home-{index}") for index in range(size)])
    options = PodOptions(image="follower", flux=flux, requests={"cpu": "1"})
    body = minicluster(order, PoolSpec("home", order.hosts, 2), options, "nobody")
    spec = body["spec"] | {"maxSize": most, "jobLabels": {}}
    spec["pod"] |= {"labels": {}, "annotations": {}}
    spec["flux"] |= boot
    pre = spec["containers"][0]["commands"]["pre"]
    spec["containers"][0]["commands"]["pre"] = f'if [ "$(hostname)" = home-0 ]; then sleep inf; fi\n{pre}'
    api.post(path(namespace), {**body, "metadata": {"name": "home"}, "spec": spec})


def order(count: int, request_id: str = "b-1") -> Order:
    import dataclasses

    return dataclasses.replace(orders.order(HOSTS[:count], request_id), pool="home")


def size(api: Api, namespace: str) -> int:
    found: int = api.get(f"{path(namespace)}/home")["spec"]["size"]
    return found


def pods(api: Api, namespace: str) -> list[str]:
    """Their indexes."""
    listed = api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    return sorted(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] for pod in listed)


@pytest.mark.usefixtures("three_nodes", "operator")
def test_it_grows_and_shrinks_from_its_end_to_what_it_was(
    provider: KubernetesProvider, api: Api, namespace: str, tmp_path: Path
) -> None:
    flux = Path(orders.follower(tmp_path)).rename(tmp_path / "flux")
    make_home(api, namespace, str(flux))
    eventually(lambda: pods(api, namespace) == ["0"])
    assert provider.list_nodes() == []
    provider.launch(order(2))
    provider.launch(order(2))  # once more: bought once
    assert {(node.host, node.request_id, node.pool) for node in provider.list_nodes()} == {
        (host, "b-1", "home") for host in HOSTS[:2]
    }
    eventually(lambda: [node.phase for node in provider.list_nodes()] == [NodePhase.RUNNING] * 2, 60)
    with pytest.raises(NoCapacity, match="MiniCluster home has grown for b-1"):
        provider.launch(order(3, "b-2"))
    last = next(node.node_id for node in provider.list_nodes() if node.host == "home-2")
    provider.release([last])
    eventually(lambda: [node.host for node in provider.list_nodes()] == ["home-1"], 60)
    provider.release([node.node_id for node in provider.list_nodes()])
    eventually(lambda: provider.list_nodes() == [], 60)
    assert (size(api, namespace), pods(api, namespace)) == (1, ["0"])
    provider.launch(order(1, "b-3"))
    eventually(lambda: [(node.request_id, node.phase) for node in provider.list_nodes()] == [
        ("b-3", NodePhase.RUNNING)], 60)  # fmt: skip


def test_what_another_service_finds_is_what_the_first_has_made(
    provider: KubernetesProvider, control_plane: ControlPlane, api: Api, namespace: str, tmp_path: Path
) -> None:
    make_home(api, namespace, "flux")
    provider.launch(order(2))
    again = built(control_plane.kubeconfig, namespace, tmp_path, HOSTS)
    other = build(ProviderContext("other", orders.CLUSTER, {"kubeconfig": str(control_plane.kubeconfig), "namespace":
        namespace, "mode": "resize"}, {"home": PoolSpec("home", HOSTS, 2)}, tmp_path))  # fmt: skip
    try:
        assert again.list_nodes() == provider.list_nodes()
        assert other.list_nodes() == []
        other.release([node.node_id for node in provider.list_nodes()])
        assert size(api, namespace) == 3
        with pytest.raises(InvalidOrder, match=r"has size 3, and \[pool.home\] hosts begin at home-1"):
            other.launch(order(2))
    finally:
        again.close()
        other.close()


@pytest.mark.parametrize(
    ("made", "what"),
    [
        ({"size": 2}, r"has size 2, and \[pool.home\] hosts begin at home-1; let them begin at home-2, or give it"),
        ({"most": 3}, r"can have 3 pods at the most, and home-3 would be the 4th; make it with a larger maxSize"),
        (None, r"\[pool.home\] hosts are those of a MiniCluster home"),
    ],
)
def test_a_minicluster_that_does_not_fit_is_an_invalid_order(
    provider: KubernetesProvider, api: Api, namespace: str, made: dict[str, int] | None, what: str
) -> None:
    if made is not None:
        make_home(api, namespace, "flux", **made)  # type: ignore[arg-type]
    with pytest.raises(InvalidOrder, match=what):
        provider.launch(order(3))
    assert provider.list_nodes() == []
    if made != {"most": 3}:  # which one node of the pool fits
        assert {finding.severity for finding in provider.check() if finding.subject == "pool home"} == {Severity.ERROR}


def test_a_change_that_comes_between_is_not_undone(
    provider: KubernetesProvider, api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fluxburst_kubernetes.cluster import Conflict

    make_home(api, namespace, "flux")
    send = provider._cluster.request

    def late(method: str, where: str, *more: Any, **query: Any) -> Object:
        if method == "PATCH":
            api.request("PATCH", f"{path(namespace)}/home", {"spec": {"size": 2}}, MERGE)
        return send(method, where, *more, **query)

    monkeypatch.setattr(provider._cluster, "request", late)
    with pytest.raises(Conflict):
        provider.launch(order(3))
    assert size(api, namespace) == 2


def test_check_finds_nothing_wrong_and_changes_nothing(provider: KubernetesProvider, api: Api, namespace: str) -> None:
    make_home(api, namespace, "flux")
    for _ in range(2):
        findings = provider.check()
        assert {finding.severity for finding in findings} == {Severity.OK}, findings
        assert (size(api, namespace), provider.list_nodes()) == (1, [])
        assert provider.probe("tcp://127.0.0.1:1") == []
    provider.launch(order(2))
    assert {finding.severity for finding in provider.check()} == {Severity.OK}


@pytest.mark.parametrize(
    ("hosts", "more", "what"),
    [
        (("home-0", "home-1"), {}, r"\[pool.home\] hosts: home-0 is the lead's own; declare one range after its own"),
        (("home-1", "away-1"), {}, r"\[pool.home\] hosts: a MiniCluster has one name, not 2"),
        (("home-1", "home-3"), {}, r"\[pool.home\] hosts: home-3: home-2 is missing before it"),
        (("home-1",), {"image": "flux"}, r"pool.home.options.*image"),
    ],
)
def test_hosts_or_options_that_cannot_be_are_told(
    tmp_path: Path, hosts: tuple[str, ...], more: dict[str, str], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        built(tmp_path, "default", tmp_path, tuple(map(Host, hosts)), **more)


def test_two_pools_are_told(tmp_path: Path) -> None:
    pools = {name: PoolSpec(name, (Host(f"{name}-1"),), 2) for name in ("home", "away")}
    with pytest.raises(ConfigError, match=r'\[provider.own\] mode = "resize" is for one pool.* it has away, home'):
        build(ProviderContext("own", orders.CLUSTER, {"mode": "resize"}, pools, tmp_path))


BURST_TOML = """
[pool.more]
provider = "own"
hosts = "home-[1-3]"
cores = 2
usd_per_node_hour = 0
idle_timeout = "500ms"
[provider.own]
plugin = "kubernetes"
mode = "resize"
kubeconfig = "{kubeconfig}"
namespace = "{namespace}"
"""


@pytest.mark.flux
@pytest.mark.usefixtures("three_nodes", "operator")
def test_a_lead_is_joined_by_what_its_minicluster_grows_by_twice(
    control_plane: ControlPlane, kubelet: Kubelet, api: Api, namespace: str
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    toml = BURST_TOML.format(kubeconfig=control_plane.kubeconfig, namespace=namespace)
    try:
        with PrivateSite(directory, toml) as site:
            live = json.loads(site.instance.run("config", "get"))
            secret = Secret((directory / "curve.cert").read_bytes())
            told = bootkit.boot_material(live, site.config, secret).config_toml
            make_home(
                api,
                namespace,
                str(find_flux()),
                brokerConfig=in_here_document(bootkit.with_certificate_at(told, CERTIFICATE)),
                curveCert=secret.reveal().decode(),
            )
            eventually(lambda: pods(api, namespace) == ["0"])
            steps.serve(site)
            try:
                for count in (2, 3):
                    job = site.submit("--setattr", "burstable=true", f"-N{count}", "hostname")
                    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
                    assert set(steps.hosts_of(site, job)) <= {"lead0", *HOSTS}
                    eventually(lambda: steps.nothing_left(site) and pods(api, namespace) == ["0"], 60)
                    assert size(api, namespace) == 1
            finally:
                print(site.log_path.read_text()[-9000:])  # shown where the test failed
                for log in sorted(kubelet.logs.iterdir()):
                    print(log.name, log.read_text()[-2000:])
    finally:
        shutil.rmtree(directory, ignore_errors=True)
