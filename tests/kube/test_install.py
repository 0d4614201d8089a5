"""``flux burst operator``."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fluxburst.errors import ConfigError, InvalidOrder
from fluxburst_kubernetes.commands import install_operator
from fluxburst_kubernetes.install import documents, install
from tests.kube.api import Api, Object
from tests.kube.conftest import MINICLUSTER
from tests.kube.control_plane import ControlPlane

OPERATOR = """\
apiVersion: v1
kind: Namespace
metadata:
  name: operator-system
---
{crd}
---
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: operator-manager
rules: []
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: operator-manager
  namespace: operator-system
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: operator-manager
  namespace: operator-system
spec:
  replicas: 0
  selector: {{matchLabels: {{control-plane: manager}}}}
  template:
    metadata: {{labels: {{control-plane: manager}}}}
    spec: {{containers: [{{name: manager, image: operator}}]}}
"""
"""Of the kinds that the operator's own manifest is made of."""
THERE = [
    "Namespace operator-system",
    "CustomResourceDefinition miniclusters.flux-framework.org",
    "ClusterRole operator-manager",
    "ServiceAccount operator-system/operator-manager",
    "Deployment operator-system/operator-manager",
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "operator.yaml"
    path.write_text(OPERATOR.format(crd=MINICLUSTER.read_text().removeprefix("---\n")))
    return path


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the files of that directory are."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.kube
def test_all_of_a_manifest_is_there_and_again_changes_nothing(
    control_plane: ControlPlane, minicluster_crd: Object, api: Api, manifest: Path, address: str
) -> None:
    path = "/apis/apps/v1/namespaces/operator-system/deployments/operator-manager"
    command = [str(manifest), "--kubeconfig", str(control_plane.kubeconfig)]
    ran = CliRunner().invoke(install_operator, command)
    assert ran.output.splitlines() == THERE
    before = api.get(path)["metadata"]
    assert install(f"{address}/operator.yaml", control_plane.kubeconfig) == THERE
    assert api.get(path)["metadata"]["generation"] == before["generation"] == 1


@pytest.mark.kube
@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        ({"kind": "Deploiment"}, ConfigError, "the server knows no Deploiment in apps/v1"),
        ({"apiVersion": "apps/v9"}, ConfigError, "Deployment operator-system/operator-manager: .*could not find"),
        ({"spec": {"replicas": "many"}}, InvalidOrder, "Deployment operator-system/operator-manager: .*replicas"),
    ],
)
def test_what_the_server_does_not_take_is_told_by_its_name(
    control_plane: ControlPlane, tmp_path: Path, change: Object, kind: type[Exception], what: str
) -> None:
    (deployment,) = [one for one in yaml.safe_load_all(OPERATOR.format(crd="")) if one and one["kind"] == "Deployment"]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(deployment | change))
    with pytest.raises(kind, match=what):
        install(str(tmp_path / "one.yaml"), control_plane.kubeconfig)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "No such file"),
        ("{", "is no YAML"),
        ("", "has no Kubernetes object"),
        ("kind: Namespace\nmetadata: {name: x}\n", "document 1 is no Kubernetes object"),
        ("apiVersion: v1\nkind: Namespace\nmetadata:\n", "document 1 is no Kubernetes object"),
        ("- 1\n", "document 1 is no Kubernetes object"),
    ],
)
def test_a_manifest_that_is_none_is_told(tmp_path: Path, text: str | None, what: str) -> None:
    path = tmp_path / "manifest.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=what):
        documents(str(path))


def test_an_address_that_has_none_is_told(address: str) -> None:
    with pytest.raises(ConfigError, match=r"/nothing.yaml: status 404"):
        documents(f"{address}/nothing.yaml")
