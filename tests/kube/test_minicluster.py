"""Orders as MiniClusters: under the operator's published schema, with a stand-in for the operator (operator.py)."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxburst.errors import ConfigError, InvalidOrder, NoCapacity
from fluxburst.flux.private import find_flux
from fluxburst.model import Host, NodePhase, Order, Severity
from fluxburst.testing import PrivateSite
from fluxburst_kubernetes import miniclusters
from fluxburst_kubernetes.miniclusters import in_here_document, minicluster
from fluxburst_kubernetes.provider import KubernetesProvider
from tests.kube import orders
from tests.kube.api import Api
from tests.kube.control_plane import ControlPlane
from tests.kube.kubelet import Kubelet
from tests.kube.operator import Operator
from tests.real import steps
from tests.real.steps import eventually

pytestmark = pytest.mark.kube

HOSTS = tuple(Host(f"c2-{block}-{index}") for block in range(2) for index in range(3))
EVERYTHING: dict[str, Any] = {
    "flux": "/opt/flux/bin/flux",
    "image_pull_policy": "Always",
    "image_pull_secrets": ["registry"],
    "service_account": "runner",
    "requests": {"cpu": "1", "memory": "1Gi"},
    "limits": {"memory": "2Gi"},
    "node_selector": {"disk": "fast"},
    "tolerations": [{"key": "burst", "operator": "Exists", "effect": "NoSchedule"}],
    "env": {"OMP_NUM_THREADS": "2"},
    "labels": {"team": "physics"},
    "annotations": {"note": "followers"},
    "max_lifetime": 3600.0,
    "patch": {"pod": {"hostIPC": True}, "containers": [{"name": "follower", "securityContext": {"privileged": True}}]},
}


def made(kubeconfig: Path, namespace: str, directory: Path, **options: Any) -> KubernetesProvider:
    return orders.provider(kubeconfig, namespace, directory, declared=HOSTS, workload="minicluster", **options)


@pytest.fixture
def provider(
    control_plane: ControlPlane, minicluster_crd: dict[str, Any], namespace: str, tmp_path: Path
) -> Iterator[KubernetesProvider]:
    provider = made(control_plane.kubeconfig, namespace, tmp_path)
    yield provider
    provider.close()


def order(block: int, count: int, request_id: str) -> Order:
    return orders.order(HOSTS[3 * block :][:count], request_id)


def seen(api: Api, namespace: str) -> list[str]:
    """All that an order is made of, by kind and name."""
    found = []
    for path in (f"apis/flux-framework.org/v1alpha2/namespaces/{namespace}/miniclusters",
                 f"apis/batch/v1/namespaces/{namespace}/jobs", f"api/v1/namespaces/{namespace}/pods",
                 f"api/v1/namespaces/{namespace}/services", f"api/v1/namespaces/{namespace}/configmaps"):  # fmt: skip
        kind = path.rpartition("/")[2]
        found += [f"{kind}/{item['metadata']['name']}" for item in api.get(f"/{path}")["items"]]
    return [one for one in found if one != "configmaps/kube-root-ca.crt"]


# What is sent


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_it_passes_strict_validation_and_a_second_apply_changes_nothing(
    control_plane: ControlPlane,
    minicluster_crd: dict[str, Any],
    api: Api,
    namespace: str,
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    provider, wanted = made(control_plane.kubeconfig, namespace, tmp_path, **options), order(0, 3, "b-1")
    provider.launch(wanted)
    provider.launch(wanted)  # which changes nothing either
    provider.close()
    path = f"/apis/flux-framework.org/v1alpha2/namespaces/{namespace}/miniclusters/c2-0"
    before, pool = api.get(path), provider._context.pools["c2"]
    document = minicluster(wanted, pool, provider._pools["c2"], orders.PROVIDER)
    # by force: what the schema fills in makes other containers of those that were sent
    first, second = (api.apply(path, document, force="true") for _ in range(2))
    assert first["spec"] == before["spec"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert second["metadata"]["generation"] == before["metadata"]["generation"] == 1


@settings(deadline=None, max_examples=30)
@given(st.text(alphabet="a$`\\{}\"'\n ()#"))
def test_what_goes_through_a_here_document_comes_out_as_it_was(text: str) -> None:
    script = f"cat <<EOT\n{in_here_document(text)}\nEOT\n"
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout == f"{text}\n"


@pytest.mark.parametrize(
    "options", [{"volumes": [{"name": "x"}]}, {"priority_class": "high"}, {"image_pull_secrets": ["a", "b"]}]
)
def test_an_option_without_a_place_in_a_minicluster_is_told(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"\[pool.c2.options\] {next(iter(options))}: a MiniCluster has no place"):
        made(tmp_path, "default", tmp_path, **options)


def test_hosts_that_are_in_no_blocks_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[pool.c2\] hosts: c2-0-1: c2-0-0 is missing before it"):
        orders.provider(tmp_path, "default", tmp_path, declared=HOSTS[1:], workload="minicluster")


def test_a_block_that_another_order_has_is_no_capacity(provider: KubernetesProvider) -> None:
    provider.launch(order(0, 2, "b-1"))
    with pytest.raises(NoCapacity, match="MiniCluster c2-0 is there, of b-1"):
        provider.launch(order(0, 3, "b-2"))
    provider.launch(order(1, 3, "b-2"))
    assert {(node.request_id, node.host) for node in provider.list_nodes()} == {
        *(("b-1", host) for host in HOSTS[:2]),
        *(("b-2", host) for host in HOSTS[3:]),
    }


def test_without_the_operators_schema_the_error_says_what_to_install(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    provider = made(control_plane.kubeconfig, "no-such-namespace", tmp_path)
    with pytest.raises(InvalidOrder, match=r"MiniClusters need their namespace and the Flux Operator: install it"):
        provider.launch(order(0, 1, "b-1"))
    provider.close()


def test_a_minicluster_that_no_operator_takes_up_has_failed_nodes(
    provider: KubernetesProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.launch(order(0, 2, "b-1"))
    assert {node.phase for node in provider.list_nodes()} == {NodePhase.STARTING}
    monkeypatch.setattr(miniclusters, "OPERATOR_S", -1.0)
    assert {(node.phase, node.detail) for node in provider.list_nodes()} == {
        (NodePhase.FAILED, "no Flux Operator has made a Job of MiniCluster c2-0 in -1 s; is one running?")
    }
    provider.release([node.node_id for node in provider.list_nodes()])
    eventually(lambda: provider.list_nodes() == [])


def test_check_finds_nothing_wrong(provider: KubernetesProvider, api: Api, namespace: str) -> None:
    findings = provider.check()
    assert {finding.severity for finding in findings} == {Severity.OK}, findings
    assert seen(api, namespace) == []


# A life


@pytest.fixture
def operator(minicluster_crd: dict[str, Any], api: Api, namespace: str) -> Iterator[Operator]:
    with Operator(api, namespace) as operator:
        yield operator


@pytest.mark.usefixtures("three_nodes", "operator")
def test_it_is_given_back_from_its_end_and_then_leaves_nothing(
    control_plane: ControlPlane, api: Api, namespace: str, tmp_path: Path
) -> None:
    flux = Path(orders.follower(tmp_path)).rename(tmp_path / "flux")  # as the operator's scripts call it
    provider = made(control_plane.kubeconfig, namespace, tmp_path, flux=str(flux))
    try:
        provider.launch(order(0, 3, "b-1"))
        eventually(lambda: [node.phase for node in provider.list_nodes()] == [NodePhase.RUNNING] * 3)
        last = next(node.node_id for node in provider.list_nodes() if node.host == "c2-0-2")
        provider.release([last])
        eventually(lambda: [node.host for node in provider.list_nodes()] == ["c2-0-0", "c2-0-1"], 60)
        provider.release([node.node_id for node in provider.list_nodes()])
        eventually(lambda: provider.list_nodes() == [] and seen(api, namespace) == [], 60)
    finally:
        provider.close()


@pytest.mark.usefixtures("three_nodes", "operator")
def test_a_node_whose_broker_has_left_before_is_given_back_from_the_end_too(
    control_plane: ControlPlane, api: Api, namespace: str, tmp_path: Path
) -> None:
    text = '#!/bin/sh\n[ "$(hostname)" = c2-0-1 ] || exec sleep inf\n'
    flux = Path(orders.follower(tmp_path, text)).rename(tmp_path / "flux")
    provider = made(control_plane.kubeconfig, namespace, tmp_path, flux=str(flux))
    try:
        provider.launch(order(0, 2, "b-1"))
        eventually(lambda: [node.phase for node in provider.list_nodes()] == [NodePhase.RUNNING, NodePhase.STOPPING])
        provider.release([node.node_id for node in provider.list_nodes() if node.host == "c2-0-1"])
        eventually(lambda: [node.host for node in provider.list_nodes()] == ["c2-0-0"], 60)
    finally:
        provider.close()


@pytest.mark.usefixtures("three_nodes", "operator")
def test_a_follower_that_finds_no_lead_ends_its_pod(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    flux = Path(orders.follower(tmp_path)).rename(tmp_path / "flux")
    provider = made(control_plane.kubeconfig, namespace, tmp_path, flux=str(flux), lead_timeout=0.3)
    try:
        provider.launch(order(0, 2, "b-1"))
        eventually(lambda: [node.phase for node in provider.list_nodes()] == [NodePhase.STOPPING] * 2)
        assert {node.detail for node in provider.list_nodes()} == {"its broker left with status 0"}
    finally:
        provider.close()


BURST_TOML = """
[pool.pods]
provider = "kubernetes"
hosts = "pods-0-[0-2],pods-1-[0-2]"
cores = 2
usd_per_node_hour = 0.5
idle_timeout = "500ms"
[pool.pods.options]
image = "follower"
flux = "{flux}"
[provider.kubernetes]
kubeconfig = "{kubeconfig}"
namespace = "{namespace}"
workload = "minicluster"
"""


@pytest.mark.flux
@pytest.mark.usefixtures("three_nodes", "operator")
def test_three_followers_of_a_minicluster_join_run_a_job_and_leave_nothing(
    control_plane: ControlPlane, kubelet: Kubelet, api: Api, namespace: str
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    toml = BURST_TOML.format(flux=find_flux(), kubeconfig=control_plane.kubeconfig, namespace=namespace)
    try:
        with PrivateSite(directory, toml) as site:
            steps.serve(site)
            try:
                job = site.submit("--setattr", "burstable=true", "-N3", "hostname")
                assert steps.await_event(site, job, "finish")["context"]["status"] == 0
                assert set(steps.hosts_of(site, job)) == {f"pods-0-{index}" for index in range(3)}
                eventually(lambda: steps.nothing_left(site) and seen(api, namespace) == [])
                assert {(node["host"], node["reason"]) for node in steps.records(site, 0.0)} == {
                    (f"pods-0-{index}", "idle") for index in range(3)
                }
            finally:
                print(site.log_path.read_text()[-9000:])  # shown where the test failed
                for log in sorted(kubelet.logs.iterdir()):
                    print(log.name, log.read_text()[-2000:])
    finally:
        shutil.rmtree(directory, ignore_errors=True)
