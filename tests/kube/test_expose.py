"""A lead that is a pod gets a NodePort, on a real API server. No kube-proxy runs here, so nothing is dialled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fluxburst import config as configuration
from fluxburst.config import Lead
from fluxburst.errors import ConfigError
from fluxburst.provider.discovery import Plugins
from fluxburst_kubernetes.commands import command
from tests.kube.api import Api
from tests.kube.control_plane import ControlPlane
from tests.kube.kubelet import FakeNode, Kubelet
from tests.kube.manifests import container, indexed_job, pod

pytestmark = pytest.mark.kube

Run = Callable[..., Result]
BURST = configuration.load(Path(__file__).parents[2] / "examples" / "kubernetes" / "burst.toml")


@pytest.fixture
def lead(api: Api, kubelet: Kubelet, namespace: str) -> dict[str, Any]:
    """Index 0 of an Indexed Job, as the Flux Operator makes of a MiniCluster."""
    kubelet.register(FakeNode("outer", addresses={"InternalIP": "127.0.0.1", "ExternalIP": "203.0.113.7"}))
    api.post(
        f"/apis/batch/v1/namespaces/{namespace}/jobs",
        indexed_job("flux-lead", 1, pod("", container("sleep", "600"))),
    )
    return api.wait_for(f"/api/v1/namespaces/{namespace}/pods", lambda one: one["status"].get("phase") == "Running")


@pytest.fixture
def run(control_plane: ControlPlane, namespace: str) -> Run:
    def run_it(*arguments: str) -> Result:
        found = ("--kubeconfig", str(control_plane.kubeconfig), "--namespace", namespace)
        return CliRunner().invoke(command, [*found, *arguments])

    return run_it


def test_it_prints_what_followers_dial_and_again_changes_nothing(
    run: Run, api: Api, namespace: str, lead: dict[str, Any]
) -> None:
    name = lead["metadata"]["name"]
    first = run("--pod", name)
    assert first.exit_code == 0, first.output
    service = api.get(f"/api/v1/namespaces/{namespace}/services/{name}-lead")
    (port,) = service["spec"]["ports"]
    assert first.stdout == f'[lead]\nconnect = "tcp://203.0.113.7:{port["nodePort"]}"\n'
    assert port["targetPort"] == 8050
    assert service["spec"]["selector"] == {
        "batch.kubernetes.io/job-name": "flux-lead",
        "batch.kubernetes.io/job-completion-index": "0",
    }
    assert run("--pod", name).stdout == first.stdout
    again = api.get(f"/api/v1/namespaces/{namespace}/services/{name}-lead")
    assert again["metadata"]["resourceVersion"] == service["metadata"]["resourceVersion"]


def test_sources_are_limited_with_their_addresses_kept(
    run: Run, api: Api, namespace: str, lead: dict[str, Any]
) -> None:
    name = lead["metadata"]["name"]
    made = run("--pod", name, "--source", "198.51.100.0/24", "--node-port", "30093", "--address", "flux.example.org")
    assert made.stdout == '[lead]\nconnect = "tcp://flux.example.org:30093"\n'
    service = api.get(f"/api/v1/namespaces/{namespace}/services/{name}-lead")
    assert service["spec"]["externalTrafficPolicy"] == "Local"
    policy = api.get(f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}-lead")
    assert policy["spec"]["podSelector"]["matchLabels"] == service["spec"]["selector"]
    assert policy["spec"]["ingress"][1] == {
        "from": [{"ipBlock": {"cidr": "198.51.100.0/24"}}],
        "ports": [{"port": 8050, "protocol": "TCP"}],
    }


def test_a_pod_that_is_not_there_or_like_others_is_told_with_the_fix(run: Run, api: Api, namespace: str) -> None:
    assert "say which pod is the lead" in str(run("--pod", "nobody").exception)
    api.post(f"/api/v1/namespaces/{namespace}/pods", pod("plain", container("true")))
    refused = run("--pod", "plain").exception
    assert isinstance(refused, ConfigError)
    assert "say by selector" in str(refused)
    assert "is on no node yet" in str(run("--pod", "plain", "--selector", "app=lead").exception)


def test_burst_toml_can_ask_for_it(
    control_plane: ControlPlane, api: Api, namespace: str, lead: dict[str, Any], tmp_path: Path
) -> None:
    name = lead["metadata"]["name"]
    options = {"pod": name, "namespace": namespace, "kubeconfig": str(control_plane.kubeconfig)}
    asked = Lead(expose="nodeport", options=options, curve_cert=Path("/etc/flux/curve.cert"))
    found = Plugins().find_lead(BURST.model_copy(update={"lead": asked})).lead
    port = api.get(f"/api/v1/namespaces/{namespace}/services/{name}-lead")["spec"]["ports"][0]["nodePort"]
    assert found == Lead(connect=f"tcp://203.0.113.7:{port}", curve_cert=asked.curve_cert)


def test_a_wrong_option_is_told_with_its_table() -> None:
    asked = Lead(expose="nodeport", options={"pord": "lead-0"})
    with pytest.raises(ConfigError, match=r"\[lead\.options\] pord: unknown key"):
        Plugins().find_lead(BURST.model_copy(update={"lead": asked}))
