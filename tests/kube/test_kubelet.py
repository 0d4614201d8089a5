"""Pods run as processes of this machine, and end as pods do."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from tests.kube.api import Api
from tests.kube.control_plane import ControlPlane
from tests.kube.kubelet import FakeNode, Image, Kubelet
from tests.kube.manifests import IMAGE, container, indexed_job, pod

pytestmark = [pytest.mark.kube, pytest.mark.usefixtures("three_nodes")]


class Namespace:
    """What the tests do in their namespace."""

    def __init__(self, api: Api, name: str) -> None:
        self.api = api
        self.name = name
        self.path = f"/api/v1/namespaces/{name}"
        self.pods = f"{self.path}/pods"

    def run(self, manifest: dict[str, Any]) -> None:
        self.api.post(self.pods, manifest, fieldValidation="Strict")

    def until(self, name: str, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 30) -> dict[str, Any]:
        return self.api.wait_for(self.pods, condition, timeout_s, fieldSelector=f"metadata.name={name}")

    def ended(self, name: str, phase: str) -> dict[str, Any]:
        ended = self.until(name, lambda found: found["status"].get("phase") in ("Succeeded", "Failed"))
        assert ended["status"]["phase"] == phase, ended["status"]
        return ended

    def ready(self, name: str) -> dict[str, Any]:
        return self.until(name, lambda found: holds(found, "Ready"))

    def waiting(self, name: str, reason: str) -> dict[str, Any]:
        return self.until(name, lambda found: state(found).get("waiting", {}).get("reason") == reason)

    def event(self, name: str, reason: str) -> str:
        selector = f"involvedObject.name={name},reason={reason}"
        found = self.api.wait_for(f"{self.path}/events", lambda _: True, fieldSelector=selector)
        message: str = found["message"]
        return message


@pytest.fixture
def space(api: Api, namespace: str) -> Namespace:
    return Namespace(api, namespace)


def holds(found: dict[str, Any], kind: str) -> bool:
    conditions = found["status"].get("conditions", ())
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)


def state(found: dict[str, Any]) -> dict[str, Any]:
    statuses = found["status"].get("containerStatuses", [{"state": {}}])
    first: dict[str, Any] = statuses[0]["state"]
    return first


def test_an_indexed_job_runs_to_its_end(api: Api, kubelet: Kubelet, namespace: str) -> None:
    say = container("sh", "-c", 'echo "$JOB_COMPLETION_INDEX $(hostname) $NODE"')
    say["env"] = [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    spread = {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchLabels": {"app": "trio"}}, "topologyKey": "kubernetes.io/hostname"}
            ]
        }
    }
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    api.post(jobs, indexed_job("trio", 3, pod("-", say, affinity=spread)), fieldValidation="Strict")
    done = api.wait_for(jobs, lambda job: holds(job, "Complete"))
    assert done["status"]["succeeded"] == 3
    pods = api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    said = sorted(kubelet.log(namespace, found["metadata"]["name"]).split() for found in pods)
    assert [words[:2] for words in said] == [["0", "trio-0"], ["1", "trio-1"], ["2", "trio-2"]]
    assert {words[2] for words in said} == {"node-0", "node-1", "node-2"}


def test_volumes_and_environment_are_as_the_manifest_says(api: Api, kubelet: Kubelet, space: Namespace) -> None:
    secret = {"metadata": {"name": "cert"}, "data": {"curve.cert": base64.b64encode(b"secret\n").decode()}}
    api.post(f"{space.path}/secrets", secret)
    api.post(f"{space.path}/configmaps", {"metadata": {"name": "conf"}, "data": {"a.toml": "a = 1\n", "b": "B"}})
    script = """
        cat /mnt/cert/curve.cert /etc/thing/one.toml /podinfo/labels
        stat -c %a /mnt/cert/curve.cert
        echo written > /scratch/file
        touch /mnt/cert/new 2>/dev/null || echo read-only
        ls /var/run/secrets/kubernetes.io/serviceaccount
        echo $SECRET $b-$NAME-$JOINED
        pwd
    """
    main = container(
        *("sh", "-c", script),
        workingDir="/scratch",
        env=[
            {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "cert", "key": "curve.cert"}}},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "JOINED", "value": "$(NAME).$$x"},
        ],
        envFrom=[{"configMapRef": {"name": "conf"}}],
        volumeMounts=[
            {"name": "cert", "mountPath": "/mnt/cert"},
            {"name": "conf", "mountPath": "/etc/thing"},
            {"name": "scratch", "mountPath": "/scratch"},
            {"name": "podinfo", "mountPath": "/podinfo"},
        ],
    )
    look = container("cat", "/scratch/first", name="look", volumeMounts=[{"name": "scratch", "mountPath": "/scratch"}])
    prepare = look | {"name": "prepare", "command": ["sh", "-c", "echo prepared > /scratch/first"]}
    manifest = pod(
        "full",
        *(main, look),
        initContainers=[prepare],
        volumes=[
            {"name": "cert", "secret": {"secretName": "cert", "defaultMode": 0o400}},
            {"name": "conf", "configMap": {"name": "conf", "items": [{"key": "a.toml", "path": "one.toml"}]}},
            {"name": "scratch", "emptyDir": {}},
            {
                "name": "podinfo",
                "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]},
            },
        ],
    )
    manifest["metadata"]["labels"] = {"app": "full"}
    space.run(manifest)
    space.ended("full", "Succeeded")
    assert kubelet.log(space.name, "full", "main").splitlines() == [
        *("secret", "a = 1", 'app="full"', "400", "read-only", "ca.crt", "namespace", "token"),
        *("secret B-full-full.$x", "/scratch"),
    ]
    assert kubelet.log(space.name, "full", "look") == "prepared\n"
    assert not Path("/mnt/cert").exists()


def test_a_deleted_pod_ends_and_is_gone(api: Api, kubelet: Kubelet, space: Namespace) -> None:
    space.run(pod("deaf", container("sh", "-c", "sleep 600 & wait")))
    space.run(
        pod("polite", container("bash", "-c", "trap 'echo bye; exit' TERM; echo up; while :; do sleep 0.05; done"))
    )
    pids = []
    for name in ("deaf", "polite"):
        space.ready(name)
        pids += kubelet.pids(space.name, name)
        assert Path(f"/proc/{pids[-1]}").exists()
    api.delete(f"{space.pods}/polite", gracePeriodSeconds=60)
    api.wait_gone(space.pods, "polite", timeout_s=30)  # before it would be killed
    api.delete(f"{space.pods}/deaf")
    api.wait_gone(space.pods, "deaf")  # killed after its grace period
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert kubelet.log(space.name, "polite") == "up\nbye\n"


def test_a_deleted_pod_s_prestop_command_runs_inside_it(api: Api, kubelet: Kubelet, space: Namespace) -> None:
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "hostname >/tmp/told; until kill -TERM -1; do :; done"]}}}
    script = "sleep 600; echo ended at $(cat /tmp/told)"  # which passes no signal on
    space.run(pod("hooked", container("sh", "-c", script, lifecycle=hook)))
    space.ready("hooked")
    api.delete(f"{space.pods}/hooked")
    api.wait_gone(space.pods, "hooked", timeout_s=10)
    assert kubelet.log(space.name, "hooked").endswith("ended at hooked\n")


def test_logs_are_read_through_the_api_server(control_plane: ControlPlane, kubelet: Kubelet, space: Namespace) -> None:
    space.run(pod("says", container("printf", "one\\ntwo\\n")))
    space.ended("says", "Succeeded")
    core = client.CoreV1Api(space.api.client)
    assert core.read_namespaced_pod_log("says", space.name) == "one\ntwo\n"
    assert core.read_namespaced_pod_log("says", space.name, tail_lines=1) == "two\n"


def test_exit_codes_and_restart_policies(space: Namespace, kubelet: Kubelet) -> None:
    space.run(pod("fails", container("sh", "-c", "exit 3")))
    again = container("sh", "-c", "test -e /scratch/seen || { touch /scratch/seen; exit 1; }")
    again["volumeMounts"] = [{"name": "scratch", "mountPath": "/scratch"}]
    space.run(pod("recovers", again, restartPolicy="OnFailure", volumes=[{"name": "scratch", "emptyDir": {}}]))
    space.run(pod("loops", container("false"), restartPolicy="Always"))
    space.run(pod("no-init", container("true"), initContainers=[container("false", name="init")]))
    assert state(space.ended("fails", "Failed"))["terminated"]["exitCode"] == 3
    recovered = space.ended("recovers", "Succeeded")
    assert recovered["status"]["containerStatuses"][0]["restartCount"] == 1
    assert space.waiting("loops", "CrashLoopBackOff")["status"]["phase"] == "Running"
    assert "Back-off restarting failed container" in space.event("loops", "BackOff")
    assert "terminated" not in state(space.ended("no-init", "Failed"))


def test_images_that_misbehave(kubelet: Kubelet, space: Namespace) -> None:
    kubelet.images |= {"none:1": Image(missing=True), "slow:1": Image(pull_s=0.5), "bad:1": Image(exit_code=7)}
    for name in ("none", "slow", "bad"):
        space.run(pod(name, container("sleep", "600") | {"image": f"{name}:1"}))
    space.waiting("none", "ErrImagePull")
    assert 'Failed to pull image "none:1"' in space.event("none", "Failed")
    space.waiting("none", "ImagePullBackOff")
    assert state(space.ended("bad", "Failed"))["terminated"]["exitCode"] == 7
    space.ready("slow")
    kubelet.images["none:1"] = Image()
    space.ready("none")


def test_what_is_not_there_yet_is_waited_for(api: Api, kubelet: Kubelet, space: Namespace) -> None:
    key = {"name": "K", "valueFrom": {"secretKeyRef": {"name": "late", "key": "k"}}}
    space.run(pod("env", container("sh", "-c", "echo $K", env=[key])))
    mounts = [{"name": "late", "mountPath": "/late"}]
    late = [{"name": "late", "secret": {"secretName": "late"}}]
    space.run(pod("volume", container("cat", "/late/k", volumeMounts=mounts), volumes=late))
    assert 'secret "late" not found' in space.event("volume", "FailedMount")
    found = space.waiting("env", "CreateContainerConfigError")
    assert state(found)["waiting"]["message"] == 'secret "late" not found'
    api.post(f"{space.path}/secrets", {"metadata": {"name": "late"}, "stringData": {"k": "v"}})
    for name in ("env", "volume"):
        space.ended(name, "Succeeded")
        assert kubelet.log(space.name, name).strip() == "v"


def test_an_evicted_pod_stays_as_failed(kubelet: Kubelet, space: Namespace) -> None:
    space.run(pod("victim", container("sleep", "600")))
    space.ready("victim")
    kubelet.evict(space.name, "victim")
    found = space.ended("victim", "Failed")
    assert found["status"]["reason"] == "Evicted"
    assert holds(found, "DisruptionTarget")
    assert kubelet.pids(space.name, "victim") == []
    assert "low on resource" in space.event("victim", "Evicted")


def test_an_active_deadline_ends_a_pod(space: Namespace) -> None:
    space.run(pod("brief", container("sleep", "600"), activeDeadlineSeconds=1))
    assert space.ended("brief", "Failed")["status"]["reason"] == "DeadlineExceeded"


def test_a_lost_node_is_tainted_and_its_pods_are_deleted(api: Api, kubelet: Kubelet, space: Namespace) -> None:
    space.run(pod("stranded", container("sleep", "600"), nodeSelector={"kubernetes.io/hostname": "node-1"}))
    space.ready("stranded")
    (pid,) = kubelet.pids(space.name, "stranded")
    kubelet.lose("node-1")
    assert not Path(f"/proc/{pid}").exists()
    found = space.until("stranded", lambda found: "deletionTimestamp" in found["metadata"])
    assert found["status"]["phase"] == "Running"  # nobody is there to say otherwise
    taints = api.get("/api/v1/nodes/node-1")["spec"]["taints"]
    assert "node.kubernetes.io/unreachable" in {taint["key"] for taint in taints}
    kubelet.remove("node-1")
    api.delete(f"{space.pods}/stranded", gracePeriodSeconds=0)


def test_a_removed_node_takes_its_pods_with_it(api: Api, kubelet: Kubelet, space: Namespace) -> None:
    space.run(pod("there", container("sleep", "600"), nodeSelector={"kubernetes.io/hostname": "node-2"}))
    space.ready("there")
    kubelet.remove("node-2")
    api.wait_gone(space.pods, "there")
    assert "node-2" not in {node["metadata"]["name"] for node in api.get("/api/v1/nodes")["items"]}


def test_an_unschedulable_pod_says_why(kubelet: Kubelet, space: Namespace) -> None:
    space.run(pod("large", container("true", resources={"requests": {"cpu": "3"}})))
    assert "3 Insufficient cpu" in space.event("large", "FailedScheduling")
    kubelet.register(FakeNode("large-0", cores=4))
    space.ended("large", "Succeeded")


def test_pods_outlive_the_api_servers_absence(
    control_plane: ControlPlane, kubelet: Kubelet, api: Api, space: Namespace
) -> None:
    space.run(pod("steady", container("sleep", "600")))
    space.run(pod("ending", container("sleep", "1.5")))
    space.ready("steady")
    space.ready("ending")
    pids = kubelet.pids(space.name, "steady")
    control_plane.pause()
    time.sleep(1.5)  # it ends, and there is nobody to report it to
    control_plane.resume()
    space.ended("ending", "Succeeded")
    assert kubelet.pids(space.name, "steady") == pids
    api.delete(f"{space.pods}/steady", gracePeriodSeconds=0)
    api.wait_gone(space.pods, "steady")


def test_the_pods_service_account_reaches_the_api_server(api: Api, kubelet: Kubelet, space: Namespace) -> None:
    script = """
        cd /var/run/secrets/kubernetes.io/serviceaccount
        python3 - <<END
import json, ssl, urllib.request
url = "https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/apis/authentication.k8s.io/v1/selfsubjectreviews"
request = urllib.request.Request(url, b'{"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}')
request.add_header("Authorization", "Bearer " + open("token").read())
request.add_header("Content-Type", "application/json")
context = ssl.create_default_context(cafile="ca.crt")
print(json.load(urllib.request.urlopen(request, context=context))["status"]["userInfo"]["username"])
END
    """
    space.run(pod("inside", container("sh", "-c", script)))
    space.ended("inside", "Succeeded")
    assert kubelet.log(space.name, "inside").strip() == f"system:serviceaccount:{space.name}:default"


def test_an_image_may_bring_its_command(kubelet: Kubelet, space: Namespace) -> None:
    kubelet.images[IMAGE] = Image(entrypoint=("echo", "mine"))
    space.run(pod("plain", {"name": "main", "image": IMAGE, "args": ["and", "yours"]}))
    space.ended("plain", "Succeeded")
    assert kubelet.log(space.name, "plain") == "mine and yours\n"
