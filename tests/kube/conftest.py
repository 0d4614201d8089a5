"""A control plane for the whole run; nodes, pods and a namespace for each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client.exceptions import ApiException

from tests.kube import container
from tests.kube.api import Api
from tests.kube.control_plane import ControlPlane, find_assets
from tests.kube.kubelet import FakeNode, Kubelet
from tests.kube.token_reviews import TokenReviews
from tests.real.steps import eventually

MINICLUSTER = Path(__file__).parent / "crd" / "flux-framework.org_miniclusters.yaml"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="session")
def token_reviews() -> Iterator[TokenReviews]:
    """Whose the bearer tokens are that the control plane does not know; a test adds its judge, and takes it away."""
    with TokenReviews() as reviews:
        yield reviews


@pytest.fixture(scope="session")
def control_plane(token_reviews: TokenReviews) -> Iterator[ControlPlane]:
    """The API server, its controllers and the scheduler. A test that pauses it resumes it."""
    assets = find_assets()
    assert assets is not None  # else the test is skipped
    directory = Path(tempfile.mkdtemp(prefix="fb-kube-"))
    try:
        with ControlPlane(assets, directory, token_reviews.url) as plane:
            yield plane
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Api:
    """The administrator's requests."""
    return Api(control_plane.kubeconfig)


@pytest.fixture
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    """A kubelet without nodes yet; all that it runs ends with the test."""
    if why_not := container.why_not():
        pytest.skip(f"no containers can be made here: {why_not}")
    directory = Path(tempfile.mkdtemp(prefix="fb-kubelet-"))
    try:
        with Kubelet(control_plane, directory) as kubelet:
            yield kubelet
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def three_nodes(kubelet: Kubelet) -> tuple[FakeNode, ...]:
    """Three nodes of two cores."""
    nodes = tuple(FakeNode(f"node-{index}") for index in range(3))
    kubelet.register(*nodes)
    return nodes


@pytest.fixture
def namespace(api: Api) -> Iterator[str]:
    with empty_namespace(api) as name:
        yield name


@contextmanager
def empty_namespace(api: Api) -> Iterator[str]:
    """An empty namespace in which pods can be made. What is left in it is deleted, after the test."""
    made = api.post("/api/v1/namespaces", {"metadata": {"generateName": "test-"}})
    name: str = made["metadata"]["name"]
    # pods are refused without it
    api.wait_for(f"/api/v1/namespaces/{name}/serviceaccounts", lambda account: account["metadata"]["name"] == "default")
    yield name
    api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def minicluster_crd(api: Api) -> dict[str, Any]:
    """The Flux Operator's schema is installed, without the operator."""
    made = api.post(CRDS, yaml.safe_load(MINICLUSTER.read_text()))

    def established(crd: dict[str, Any]) -> bool:
        conditions = crd.get("status", {}).get("conditions") or ()
        return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)

    found = api.wait_for(CRDS, established, fieldSelector=f"metadata.name={made['metadata']['name']}")

    def served() -> bool:
        """It is established a moment before its storage is there."""
        try:
            api.get("/apis/flux-framework.org/v1alpha2/miniclusters")
        except ApiException as error:
            if error.status not in (404, 429):
                raise
            return False
        return True

    eventually(served)
    return found
