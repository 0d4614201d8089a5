"""The control plane that the tests of Kubernetes stand on is a real one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import urllib3
from kubernetes.client.exceptions import ApiException

from tests.kube.api import Api
from tests.kube.control_plane import ControlPlane, find_assets
from tests.kube.manifests import container, pod

pytestmark = pytest.mark.kube

DOOMED = """
import sys, tempfile, os, signal
from pathlib import Path
from tests.kube.control_plane import ControlPlane, find_assets
plane = ControlPlane(find_assets(), Path(sys.argv[1]))
plane._start_etcd()
print(plane._processes["etcd"].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_is_the_version_that_is_pinned(api: Api) -> None:
    version = api.get("/version")
    pins = (Path(__file__).parent / "assets" / "go.mod").read_text()
    assert f"k8s.io/kubernetes {version['gitVersion']} " in pins


def test_unknown_fields_are_refused(api: Api, namespace: str) -> None:
    manifest = pod("typo", container("true", volumeMonts=[]))
    with pytest.raises(ApiException) as refused:
        api.post(f"/api/v1/namespaces/{namespace}/pods", manifest, fieldValidation="Strict")
    assert refused.value.status == 400
    assert "volumeMonts" in str(refused.value.body)


def test_an_account_may_do_what_its_roles_say(
    api: Api, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    asked = api.post(f"{path}/serviceaccounts/default/token", {"spec": {"expirationSeconds": 600}})
    control_plane.write_kubeconfig(tmp_path / "config", asked["status"]["token"], namespace=namespace)
    account = Api(tmp_path / "config")
    with pytest.raises(ApiException) as refused:
        account.get(f"{path}/pods")
    assert refused.value.status == 403
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    api.post(
        f"{rbac}/rolebindings",
        {
            "metadata": {"name": "viewer"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
        },
    )
    deadline = time.monotonic() + 10
    while True:  # the authorizer sees the binding a moment later, and tells nobody
        try:
            assert account.get(f"{path}/pods")["items"] == []
            break
        except ApiException:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    user = f"system:serviceaccount:{namespace}:default"
    codes = [request.code for request in control_plane.requests(user=user)]
    assert codes[0] == 403
    assert codes[-1] == 200


def test_dependents_go_with_their_owner(api: Api, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = api.post(maps, {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    api.post(maps, {"metadata": {"name": "dependent", "ownerReferences": [reference]}})
    api.delete(f"{maps}/owner")
    api.wait_gone(maps, "dependent")


@pytest.mark.parametrize("hang", [False, True])
def test_the_api_server_can_be_away(api: Api, control_plane: ControlPlane, namespace: str, hang: bool) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    api.post(maps, {"metadata": {"name": "kept"}})
    control_plane.pause(hang=hang)
    try:
        with pytest.raises(urllib3.exceptions.HTTPError):
            api.get(f"{maps}/kept", request_timeout_s=0.5)
    finally:
        control_plane.resume()
    assert api.get(f"{maps}/kept")["metadata"]["name"] == "kept"


def test_nothing_outlives_who_started_it(tmp_path: Path) -> None:
    doomed = subprocess.run(
        [sys.executable, "-c", DOOMED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    pid = int(doomed.stdout)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/exe").exists():  # nobody may have reaped it yet
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_assets_are_found_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert find_assets() is None
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        (tmp_path / name).touch()
    assert find_assets() == tmp_path
