"""The MiniCluster's published schema is what the API server checks against."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from tests.kube.api import Api

pytestmark = [pytest.mark.kube, pytest.mark.usefixtures("minicluster_crd")]

KIND = {"apiVersion": "flux-framework.org/v1alpha2", "kind": "MiniCluster", "metadata": {"name": "c2-0"}}
SPEC: dict[str, Any] = {
    "size": 3,
    "interactive": True,
    "logging": {"quiet": True},
    "flux": {"completeWorkers": True, "brokerConfig": "[bootstrap]\n"},
    "containers": [{"image": "this-machine"}],
}


def path(namespace: str) -> str:
    return f"/apis/flux-framework.org/v1alpha2/namespaces/{namespace}/miniclusters/c2-0"


def test_a_minicluster_is_accepted_and_a_second_apply_changes_nothing(api: Api, namespace: str) -> None:
    first = api.apply(path(namespace), KIND | {"spec": SPEC})
    assert first["spec"]["size"] == 3
    second = api.apply(path(namespace), KIND | {"spec": SPEC})
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_what_the_schema_does_not_know_is_refused(api: Api, namespace: str) -> None:
    flux = SPEC["flux"] | {"curveCertSecret": "cert"}
    with pytest.raises(ApiException, match="curveCertSecret"):
        api.apply(path(namespace), KIND | {"spec": SPEC | {"flux": flux}})
