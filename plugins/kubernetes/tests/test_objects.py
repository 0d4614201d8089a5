"""What is read back from what a server says. tests/kube shows that a real one says so."""

from __future__ import annotations

from typing import Any

import pytest

from fluxburst.errors import ConfigError, InvalidOrder
from fluxburst.model import NodePhase
from fluxburst.provider.protocol import options as read
from fluxburst_kubernetes import objects
from fluxburst_kubernetes.options import PodOptions

MADE_AT = "2027-01-15T08:00:00Z"
NOW = 1_800_000_000.0
"""When it was made."""
TAGS = {
    "labels": {objects.ORDER: "b-1", objects.POOL: "c2"},
    "annotations": {objects.HOSTS: "c2-[0-1]"},
    "creationTimestamp": MADE_AT,
}


def job(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "fluxburst-b-1", **TAGS},
        "spec": {"template": {"metadata": {"labels": {}}}},
        "status": status,
    }


def pod(index: int, **status: Any) -> dict[str, Any]:
    annotations = {**TAGS["annotations"], objects.INDEX: str(index)}  # type: ignore[dict-item]
    return {"metadata": {**TAGS, "name": f"pod-{index}", "annotations": annotations}, "spec": {}, "status": status}


def told(jobs: list[Any], pods: list[Any], refusal: str = "", later_s: float = 0.0) -> list[tuple[str, NodePhase, str]]:
    refusals = {"fluxburst-b-1": refusal} if refusal else {}
    found = objects.machines(filter(None, map(objects.claim_of, jobs)), pods, refusals, {"c2": 60.0}, NOW + later_s)
    return [(machine.host, machine.phase, machine.detail) for machine in found]


QUOTA = 'Error creating: pods "x" is forbidden: exceeded quota: small, requested: pods=1'
PASSING = "Error creating: Timeout: request did not complete within requested timeout"


@pytest.mark.parametrize(
    ("refusal", "later_s", "phase"),
    [
        (QUOTA, 0.0, NodePhase.FAILED),
        (PASSING, 0.0, NodePhase.STARTING),
        (PASSING, 61.0, NodePhase.FAILED),
        ("", 61.0, NodePhase.STARTING),
    ],
)
def test_a_pod_that_could_not_be_made_has_failed_where_trying_again_is_of_no_use(
    refusal: str, later_s: float, phase: NodePhase
) -> None:
    detail = refusal or "its pod is to be made"
    assert told([job()], [pod(0, phase="Running")], refusal, later_s) == [
        ("c2-0", NodePhase.RUNNING, ""),
        ("c2-1", phase, detail),
    ]


@pytest.mark.parametrize(
    ("reason", "message", "later_s", "phase"),
    [
        ("ErrImagePull", "docker.io/x: not found", 0.0, NodePhase.FAILED),
        ("ErrImagePull", "rpc error: code = NotFound desc = no such image", 0.0, NodePhase.FAILED),
        ("ImagePullBackOff", "Back-off: ErrImagePull: pull access denied", 0.0, NodePhase.FAILED),
        ("ErrImagePull", "unexpected status: 401 Unauthorized", 0.0, NodePhase.FAILED),
        ("ErrImagePull", "dial tcp: i/o timeout", 0.0, NodePhase.STARTING),
        ("RegistryUnavailable", "the registry is unavailable", 0.0, NodePhase.STARTING),
        ("RegistryUnavailable", "the registry is unavailable", 61.0, NodePhase.FAILED),
        ("InvalidImageName", "invalid reference format", 0.0, NodePhase.FAILED),
        ("CreateContainerConfigError", 'secret "x" not found', 0.0, NodePhase.FAILED),
        ("ContainerCreating", "", 3600.0, NodePhase.STARTING),
    ],
)
def test_what_a_container_waits_for_says_whether_it_will_come(
    reason: str, message: str, later_s: float, phase: NodePhase
) -> None:
    waiting = {"waiting": {"reason": reason, "message": message}}
    status = {"phase": "Pending", "containerStatuses": [{"name": "follower", "image": "x", "state": waiting}]}
    ((host, seen, detail),) = told([], [pod(0, **status)], later_s=later_s)
    assert (host, seen) == ("c2-0", phase)
    assert message in detail


def test_what_has_ended_makes_no_more_pods() -> None:
    assert told([job(conditions=[{"type": "Failed", "status": "True"}])], []) == []
    assert told([job(completedIndexes="0-1")], []) == []
    assert [host for host, _, _ in told([job(failedIndexes="0")], [])] == ["c2-1"]


def test_an_order_that_is_being_deleted_is_there_until_it_is_gone() -> None:
    """Its pods may not be known yet, where what is heard is late."""
    going = {**job(), "metadata": {**job()["metadata"], "deletionTimestamp": MADE_AT}}
    assert told([going], [pod(0, phase="Running")]) == [
        ("c2-0", NodePhase.RUNNING, ""),
        ("c2-1", NodePhase.STOPPING, "its order is being deleted"),
    ]


def test_what_has_our_labels_alone_is_somebody_elses() -> None:
    copied = pod(0)
    del copied["metadata"]["annotations"]
    stray = {**job(), "metadata": {**job()["metadata"], "annotations": {}}}
    assert told([stray], [copied]) == []


def test_a_pod_beyond_an_orders_hosts_is_somebody_elses() -> None:
    assert [host for host, _, _ in told([], [pod(0), pod(1), pod(2)])] == ["c2-0", "c2-1"]


def test_a_cluster_that_drops_the_limit_of_tries_is_not_used() -> None:
    objects.require_single_tries({"spec": {"backoffLimitPerIndex": 0}}, "provider x")
    with pytest.raises(InvalidOrder, match=r"provider x: .* backoffLimitPerIndex; Kubernetes 1.29 does"):
        objects.require_single_tries({"spec": {}}, "provider x")


@pytest.mark.parametrize(
    ("options", "told_so"),
    [
        ({"patch": {"spec": {"containers": [{"image": "y"}]}}}, r"patch: .*spec\.containers\[0\] has no name"),
        ({"patch": {"spec": {"volumes": ["data"]}}}, r"spec\.volumes\[0\] has no name"),
        ({"patch": {"spec": {"containers": [{"name": "a", "env": [{"value": "1"}]}]}}}, r"containers\[0\]\.env\[0\]"),
        ({"volumes": [{"emptyDir": {}}]}, r"volumes: .*volumes\[0\] has no name"),
        ({"volume_mounts": [{"name": "data"}]}, r"volume_mounts: .*volumeMounts\[0\] has no mountPath"),
    ],
)
def test_what_cannot_be_merged_is_told_with_its_place(options: dict[str, Any], told_so: str) -> None:
    with pytest.raises(ConfigError, match=told_so):
        read(PodOptions, {"image": "x", **options}, "pool.c2.options")
