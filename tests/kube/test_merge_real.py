"""A real server merges patches as the provider does."""

from __future__ import annotations

from typing import Any

import pytest

from fluxburst_kubernetes.merge import merge
from tests.kube.api import Api

pytestmark = pytest.mark.kube

TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1"}, "annotations": {"x": "y"}},
    "spec": {
        "containers": [
            {
                "name": "follower",
                "image": "flux",
                "command": ["/bin/sh", "-c", "true"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "ports": [{"containerPort": 8050, "name": "flux"}],
                "volumeMounts": [{"name": "given", "mountPath": "/etc/given"}],
                "resources": {"requests": {"cpu": "1"}},
            }
        ],
        "volumes": [{"name": "given", "emptyDir": {}}],
        "imagePullSecrets": [{"name": "registry"}],
        "tolerations": [{"key": "burst", "operator": "Exists"}],
        "nodeSelector": {"disk": "fast"},
    },
}


def container(**changes: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "follower", **changes}]}}


PATCHES: list[dict[str, Any]] = [
    {"metadata": {"labels": {"a": None, "b": "2"}}},
    container(image="other", env=[{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]),
    container(env=[{"name": "A", "$patch": "delete"}]),
    container(command=["sleep"]),
    container(ports=[{"containerPort": 8050, "hostPort": 8050}]),
    container(volumeMounts=[{"mountPath": "/etc/given", "name": "given", "readOnly": True}]),
    container(resources={"limits": {"memory": "1Gi"}}),
    {"spec": {"containers": [{"name": "helper", "image": "tool"}]}},
    {
        "spec": {
            "volumes": [{"name": "given", "$patch": "delete"}, {"name": "data", "emptyDir": {"medium": "Memory"}}],
            "containers": [{"name": "follower", "volumeMounts": [{"mountPath": "/etc/given", "$patch": "delete"}]}],
        }
    },
    {"spec": {"imagePullSecrets": [{"name": "second"}], "nodeSelector": {"disk": None, "zone": "a"}}},
    {"spec": {"tolerations": [{"key": "other", "operator": "Exists"}], "hostIPC": True}},
    {"spec": {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["lead0"]}]}},
]


@pytest.mark.parametrize("patch", PATCHES, ids=range(len(PATCHES)))
def test_the_server_comes_to_the_same(api: Api, namespace: str, patch: dict[str, Any]) -> None:
    path = f"/api/v1/namespaces/{namespace}/podtemplates"

    def made(name: str, template: dict[str, Any]) -> Any:
        return api.post(path, {"metadata": {"name": name}, "template": template}, fieldValidation="Strict")["template"]

    ours = made("merged", merge(TEMPLATE, patch))
    made("patched", TEMPLATE)
    theirs = api.patch(f"{path}/patched", {"template": patch})["template"]
    assert in_order(ours) == in_order(theirs)


def in_order(template: dict[str, Any]) -> dict[str, Any]:
    """The order of merged lists means nothing."""
    spec = template["spec"]
    for merged in (*(one.get("env", []) for one in spec["containers"]), *(
        spec.get(key, []) for key in ("containers", "volumes", "imagePullSecrets"))):  # fmt: skip
        merged.sort(key=lambda item: item["name"])
    return template
