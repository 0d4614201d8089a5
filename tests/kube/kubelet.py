"""A kubelet for fake nodes: pods bound to them become real processes of this machine, and it reports them.

It is as faithful as these tests need: init containers, restarts with back-off, volumes and environment, graceful
deletion with preStop commands, logs, active deadlines. It knows no probes, other hooks, sidecars, users, limits or
networks: pods share this machine's.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import math
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from kubernetes.client.exceptions import ApiException

from tests.kube.api import Api, Object, Watch
from tests.kube.container import Container, Mount, StartError
from tests.kube.content import Content, NotThere, expand
from tests.kube.control_plane import ControlPlane
from tests.kube.logs import LogServer

RETRY_S = 0.2
"""Between two tries of what the API server or a missing object held up."""
BACK_OFF_S = 0.5
"""Before the first restart or the second pull; doubled each time, up to the next. A real kubelet takes 10 s."""
MOST_BACK_OFF_S = 8.0
GRACE_S = 30
MESSAGE_MOST = 2048
"""So much of a log is told as a container's last message."""


@dataclass(frozen=True)
class FakeNode:
    """A machine that is not there.

    Args:
        name: Its name, and its label kubernetes.io/hostname.
        cores: Allocatable, as are ``memory`` and ``extended``.
        memory: With its unit.
        extended: Other resources, such as ``nvidia.com/gpu``.
        labels: Beside those that each node has.
        taints: As in its spec.
        addresses: By their types, such as ExternalIP. Logs are asked for at the InternalIP.
        provider_id: As a cloud writes it.
    """

    name: str
    cores: int = 2
    memory: str = "4Gi"
    extended: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    addresses: Mapping[str, str] = field(default_factory=lambda: {"InternalIP": "127.0.0.1"})
    provider_id: str = ""

    def manifest(self, log_port: int) -> Object:
        """The Node as its kubelet registers it.

        Args:
            log_port: Where the API server asks for the logs of its containers.
        """
        resources = {"cpu": str(self.cores), "memory": self.memory, "pods": "110", **self.extended}
        spec: Object = {"taints": list(self.taints)}
        if self.provider_id:
            spec["providerID"] = self.provider_id
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {
                    "kubernetes.io/hostname": self.name,
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": "amd64",
                    **self.labels,
                },
            },
            "spec": spec,
            "status": {
                "capacity": resources,
                "allocatable": resources,
                "daemonEndpoints": {"kubeletEndpoint": {"Port": log_port}},
                "addresses": [{"type": kind, "address": address} for kind, address in self.addresses.items()],
                "conditions": [_condition("Ready", True, "KubeletReady", "kubelet is posting ready status")],
            },
        }


@dataclass(frozen=True)
class Image:
    """What becomes of an image that is not simply this machine's root file system.

    Args:
        missing: It cannot be pulled, as the registry has none of that name.
        unreachable: It cannot be pulled, as the registry gives no answer.
        pull_s: How long its pull takes, once on each node.
        entrypoint: Its command, for containers that name none.
        exit_code: Its containers end at once with this, whatever their command.
    """

    missing: bool = False
    unreachable: bool = False
    pull_s: float = 0.0
    entrypoint: tuple[str, ...] = ()
    exit_code: int | None = None


class Kubelet:
    """The kubelets of all fake nodes of a control plane.

    Args:
        plane: It must be ready.
        directory: Where pods' volumes and logs are kept. It must be there, and is left to the caller to remove.
        pod_ip: The address of every pod. The control plane makes no endpoints of loopback addresses.
        environment: What each container's environment begins with, as if it were its image's. A PATH at least.
    """

    def __init__(
        self,
        plane: ControlPlane,
        directory: Path,
        *,
        pod_ip: str = "127.0.0.1",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.api = Api(plane.kubeconfig_of("kubelet"))
        self.directory = directory
        self.pod_ip = pod_ip
        self.images: dict[str, Image] = {}
        """How images behave that are not as any other; to be changed at any time."""
        self.environment = {
            "PATH": os.environ["PATH"],
            # no home of this machine: a broker's rc is run by a bash whose input is a socket, which reads ~/.bashrc
            "HOME": "/",
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(plane.port),
        } | dict(environment or {})
        self.ending = threading.Event()
        self._nodes: dict[str, FakeNode] = {}
        self._pods: dict[str, _Pod] = {}
        self._done: set[str] = set()
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._numbers = itertools.count()
        self.logs = directory / "logs"
        self.logs.mkdir()
        self._log_server = LogServer(*plane.server_certificate, self.log)
        self._thread = threading.Thread(target=self._follow, name="kubelet", daemon=True)
        self._thread.start()

    def __enter__(self) -> Kubelet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, and delete the nodes and their pods."""
        for name in list(self._nodes):
            self.remove(name)
        self.ending.set()
        with self._lock:
            watch = self._watch
        if watch:
            watch.close()
        self._thread.join()
        self._log_server.close()

    def register(self, *nodes: FakeNode) -> None:
        """Let nodes join the cluster, and return when pods can be scheduled to them."""
        for node in nodes:
            self._nodes[node.name] = node
            self.api.post("/api/v1/nodes", node.manifest(self._log_server.port))

        def admitted(node: Object) -> bool:
            return all(taint["key"] != "node.kubernetes.io/not-ready" for taint in node["spec"].get("taints", ()))

        for node in nodes:
            self.api.wait_for("/api/v1/nodes", admitted, fieldSelector=f"metadata.name={node.name}")

    def remove(self, name: str) -> None:
        """A node's machine is given back: its processes end, and it and its pods are deleted.

        The pods are what the control plane itself would collect, a minute later.
        """
        lost = self._power_off(name)
        for path in (f"/api/v1/nodes/{name}", *(pod.path for pod in lost)):
            with contextlib.suppress(ApiException, urllib3.exceptions.HTTPError):
                self.api.delete(path, gracePeriodSeconds=0)

    def lose(self, name: str) -> None:
        """A node's machine loses its power. Its Node stays, with the Ready condition Unknown; nobody ends its pods.

        The control plane taints it, and deletes its pods after their tolerations' seconds; they stay as Terminating,
        unless `remove` or a test's own deletion helps. It does so only while another node is ready.
        """
        self._power_off(name)
        silent = _condition("Ready", None, "NodeStatusUnknown", "Kubelet stopped posting node status.")
        self.api.patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": [silent]}})

    def evict(self, namespace: str, name: str, message: str = "The node was low on resource: memory.") -> None:
        """End a pod for its node's sake, as under memory pressure: it stays as Failed, with the reason Evicted."""
        with self._lock:
            found = [pod for pod in self._pods.values() if (pod.namespace, pod.name) == (namespace, name)]
        for pod in found:
            pod.tell(_Evicted(message))

    def log(self, namespace: str, name: str, container: str = "*") -> str:
        """What a pod's containers have written, be the pod gone or not."""
        paths = sorted(self.logs.glob(f"{namespace}_{name}_*_{container}.log"))
        return "".join(path.read_text(errors="replace") for path in paths)

    def pids(self, namespace: str, name: str) -> list[int]:
        """The processes of a pod's containers that run now."""
        with self._lock:
            pods = [pod for pod in self._pods.values() if (pod.namespace, pod.name) == (namespace, name)]
        return [pid for pod in pods for pid in pod.pids()]

    def persist(self, call: Callable[[], object], unless: threading.Event) -> None:
        """Write to the API server, however long that takes; what it refuses for good is let be."""
        while not unless.is_set():
            try:
                call()
            except ApiException as error:
                if error.status < 500 and error.status != 429:
                    return
            except urllib3.exceptions.HTTPError:
                pass
            else:
                return
            unless.wait(RETRY_S)

    def forget(self, pod: _Pod) -> None:
        with self._lock:
            self._pods.pop(pod.uid, None)
            self._done.add(pod.uid)

    def make_event(self, pod: Object, reason: str, message: str, kind: str = "Warning") -> None:
        """Tell of a pod; not again where the API server does not take it."""
        metadata = pod["metadata"]
        now = _now()
        body = {
            "metadata": {"name": f"{metadata['name']}.{next(self._numbers):x}.{time.time_ns():x}"},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "reason": reason,
            "message": message,
            "type": kind,
            "source": {"component": "kubelet", "host": pod["spec"]["nodeName"]},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        with contextlib.suppress(ApiException, urllib3.exceptions.HTTPError):
            self.api.post(f"/api/v1/namespaces/{metadata['namespace']}/events", body)

    def _power_off(self, name: str) -> list[_Pod]:
        self._nodes.pop(name, None)
        with self._lock:
            lost = [pod for pod in self._pods.values() if pod.node == name]
        for pod in lost:
            pod.tell(_PoweredOff())
        for pod in lost:
            pod.gone.wait()
        return lost

    def _follow(self) -> None:
        """List and watch, again and again, until the end."""
        while not self.ending.is_set():
            try:
                listed = self.api.get("/api/v1/pods", fieldSelector="spec.nodeName!=")
                self._relist(listed["items"])
                watch = self.api.watch(
                    "/api/v1/pods",
                    fieldSelector="spec.nodeName!=",
                    resourceVersion=listed["metadata"]["resourceVersion"],
                )
                with self._lock:
                    self._watch = watch
                if self.ending.is_set():  # perhaps before there was a watch to close
                    watch.close()
                for kind, pod in watch:
                    self._take(kind, pod)
            except (ApiException, urllib3.exceptions.HTTPError):
                self.ending.wait(RETRY_S)

    def _relist(self, pods: Sequence[Object]) -> None:
        """Catch up with what was missed: also with pods that are gone."""
        there = {pod["metadata"]["uid"] for pod in pods}
        with self._lock:
            gone = [pod for uid, pod in self._pods.items() if uid not in there]
        for pod in gone:
            pod.tell(_PoweredOff())
        for manifest in pods:
            self._take("ADDED", manifest)

    def _take(self, kind: str, manifest: Object) -> None:
        uid = manifest["metadata"]["uid"]
        with self._lock:
            pod = self._pods.get(uid)
            new = pod is None
            if pod is None:
                # What comes late of a pod that has been here does not start it again.
                if kind == "DELETED" or uid in self._done or manifest["spec"]["nodeName"] not in self._nodes:
                    return
                pod = self._pods[uid] = _Pod(self, manifest)
        if kind == "DELETED":
            pod.tell(_PoweredOff())
        elif "deletionTimestamp" in manifest["metadata"]:
            pod.tell(_Deleted(manifest["metadata"].get("deletionGracePeriodSeconds", GRACE_S)))
        if new:
            pod.start()


class _Told(Exception):
    """Something from outside that ends what a pod does."""


class _PoweredOff(_Told):
    """Its processes end, and nobody hears of it."""


@dataclass
class _Deleted(_Told):
    grace_s: float


@dataclass
class _Evicted(_Told):
    message: str
    reason: str = "Evicted"


@dataclass
class _Exited:
    container: _Tracked
    code: int


class _Tracked:
    """A container of a pod, through its restarts, with its status."""

    def __init__(self, spec: Mapping[str, Any], reason: str) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.running: Container | None = None
        self.due = math.inf
        """When to start it, or to try to."""
        self.tries = 0
        self.restarts = -1
        self.pulled = False
        self.state: Object = {"waiting": {"reason": reason}}
        self.last: Object = {}
        self.code: int | None = None

    def status(self) -> Object:
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "",
            "ready": self.running is not None,
            "started": self.running is not None,
            "restartCount": max(self.restarts, 0),
            "state": self.state,
            "lastState": self.last,
        }

    def wait(self, reason: str, message: str = "") -> None:
        """It waits for that."""
        self.state = {"waiting": {"reason": reason, "message": message} if message else {"reason": reason}}

    def back_off(self) -> None:
        """Try again, later each time."""
        self.due = time.monotonic() + min(BACK_OFF_S * 2**self.tries, MOST_BACK_OFF_S)
        self.tries += 1

    def ended(self, code: int, log: Path) -> None:
        self.running = None
        self.code = code
        started = self.state.get("running", {}).get("startedAt", _now())
        ended = {
            "exitCode": code,
            "reason": "Error" if code else "Completed",
            "startedAt": started,
            "finishedAt": _now(),
        }
        if code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError" and log.exists():
            ended["message"] = log.read_text(errors="replace")[-MESSAGE_MOST:]
        self.state = {"terminated": ended}


class _Pod(threading.Thread):
    """One pod's life. Its processes are this thread's, and end with it."""

    def __init__(self, kubelet: Kubelet, manifest: Object) -> None:
        metadata = manifest["metadata"]
        super().__init__(name=f"pod-{metadata['name']}", daemon=True)
        self.namespace: str = metadata["namespace"]
        self.name: str = metadata["name"]
        self.uid: str = metadata["uid"]
        self.node: str = manifest["spec"]["nodeName"]
        self.gone = threading.Event()
        """Set when none of its processes is left."""
        self.path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
        self._kubelet = kubelet
        self._manifest = manifest
        self._spec: Mapping[str, Any] = manifest["spec"]
        self._directory = kubelet.directory / self.uid
        self._inbox: queue.SimpleQueue[_Told | _Exited] = queue.SimpleQueue()
        self._started_at = _now()
        self._deadline = time.monotonic() + self._spec.get("activeDeadlineSeconds", math.inf)
        ips: Object = {"podIP": kubelet.pod_ip, "podIPs": [{"ip": kubelet.pod_ip}], "hostIP": "127.0.0.1"}
        self._ips = ips | {"hostIPs": [{"ip": "127.0.0.1"}]}
        self._content = Content(kubelet.api, manifest, self._ips)
        inits = self._spec.get("initContainers", ())
        self._inits = [_Tracked(spec, "PodInitializing") for spec in inits]
        self._mains = [
            _Tracked(spec, "PodInitializing" if inits else "ContainerCreating") for spec in self._spec["containers"]
        ]
        self._volumes: dict[str, Path] = {}
        self._off = threading.Event()
        self._phase: str = manifest.get("status", {}).get("phase", "Pending")
        self._why: Object = {}
        self._conditions: dict[str, Object] = {}
        self._reported: Object = {}
        self._numbers = itertools.count()

    def tell(self, told: _Told) -> None:
        if isinstance(told, _PoweredOff):
            self._off.set()
        self._inbox.put(told)

    def pids(self) -> list[int]:
        running = [tracked.running for tracked in self._inits + self._mains]
        return [container.pid for container in running if container is not None]

    def run(self) -> None:
        try:
            self._live_until_deleted()
        except _PoweredOff:
            pass
        finally:
            self._kill()
            for tracked in self._inits + self._mains:
                if tracked.running:
                    tracked.running.wait()
            shutil.rmtree(self._directory, ignore_errors=True)
            self._kubelet.forget(self)
            self.gone.set()

    def _live_until_deleted(self) -> None:
        try:
            try:
                self._live()
            except _Evicted as evicted:
                self._end(evicted)
            while True:
                with contextlib.suppress(_Evicted):  # it has ended
                    self._next()
        except _Deleted as deleted:
            self._terminate(deleted.grace_s)
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
            self._persist(lambda: self._kubelet.api.delete(self.path, **options))

    def _live(self) -> None:
        self._next(time.monotonic())  # it may have been deleted before it was seen
        self._directory.mkdir()
        self._report()
        self._make_volumes()
        failed = any(not self._succeeds(init) for init in self._inits)
        if not failed:
            for main in self._mains:
                self._start(main)
            self._phase = "Running"
            self._report()
            while any(main.running or main.due < math.inf for main in self._mains):
                self._step()
            failed = any(main.code for main in self._mains)
        self._phase = "Failed" if failed else "Succeeded"
        self._report()

    def _succeeds(self, init: _Tracked) -> bool:
        """Run an init container to its end."""
        self._start(init)
        self._report()
        while init.running or init.due < math.inf:
            self._step()
        return init.code == 0

    def _step(self) -> None:
        """Wait for the next thing to happen, and do it."""
        exited = self._next(min(tracked.due for tracked in self._inits + self._mains))
        if exited is not None:
            self._exited(exited)
        for tracked in self._inits + self._mains:
            if tracked.due <= time.monotonic():
                tracked.due = math.inf
                self._start(tracked)
        self._report()

    def _next(self, until: float = math.inf) -> _Exited | None:
        """What a container did, or None at that time.

        Raises:
            _Told: Somebody ends this pod.
        """
        first = min(until, self._deadline)
        try:
            told = self._inbox.get(timeout=None if first == math.inf else max(first - time.monotonic(), 0))
        except queue.Empty:
            if self._deadline <= time.monotonic():
                self._deadline = math.inf
                if self._phase in ("Pending", "Running"):
                    text = "Pod was active on the node longer than the specified deadline"
                    raise _Evicted(text, "DeadlineExceeded") from None
            return None
        if isinstance(told, _Told):
            raise told
        return told

    def _exited(self, exited: _Exited) -> None:
        tracked = exited.container
        tracked.ended(exited.code, self._log_of(tracked))
        policy = self._spec.get("restartPolicy", "Always")
        again = policy == "OnFailure" and exited.code != 0
        if tracked in self._inits:
            again = policy != "Never" and exited.code != 0
        elif policy == "Always":
            again = True
        if again:
            tracked.last = tracked.state
            tracked.wait(
                "CrashLoopBackOff",
                f"back-off restarting failed container={tracked.name} pod={self.name}_{self.namespace}({self.uid})",
            )
            tracked.back_off()
            text = f"Back-off restarting failed container {tracked.name} in pod {self.name}"
            self._kubelet.make_event(self._manifest, "BackOff", text)

    def _log_of(self, tracked: _Tracked) -> Path:
        return self._kubelet.logs / f"{self.namespace}_{self.name}_{self.uid}_{tracked.name}.log"

    def _start(self, tracked: _Tracked) -> None:
        """Start a container, or find why it has to wait."""
        name = tracked.spec["image"]
        image = self._kubelet.images.get(name, Image())
        if image.missing or image.unreachable:
            why = f"{name}: not found" if image.missing else "dial tcp 192.0.2.1:443: i/o timeout"
            text = f'failed to pull and unpack image "{name}": failed to resolve reference "{name}": {why}'
            if "ErrImagePull" not in str(tracked.state) and "ImagePullBackOff" not in str(tracked.state):
                tracked.wait("ErrImagePull", text)
                self._kubelet.make_event(self._manifest, "Failed", f'Failed to pull image "{name}": {text}')
                self._kubelet.make_event(self._manifest, "Failed", "Error: ErrImagePull")
            else:
                tracked.wait("ImagePullBackOff", f'Back-off pulling image "{name}": ErrImagePull: {text}')
                self._kubelet.make_event(self._manifest, "BackOff", f'Back-off pulling image "{name}"', "Normal")
                self._kubelet.make_event(self._manifest, "Failed", "Error: ImagePullBackOff")
            tracked.back_off()
            return
        if image.pull_s and not tracked.pulled:
            tracked.pulled = True
            tracked.due = time.monotonic() + image.pull_s
            return
        try:
            self._run_container(tracked, image)
        except (NotThere, ApiException, urllib3.exceptions.HTTPError) as error:
            tracked.wait("CreateContainerConfigError", str(error))
            tracked.due = time.monotonic() + RETRY_S
        except StartError as error:
            tracked.wait("RunContainerError", str(error))
            tracked.back_off()

    def _run_container(self, tracked: _Tracked, image: Image) -> None:
        spec = tracked.spec
        host = self._spec.get("hostname") or self.name
        environment = self._content.environment(spec, self._kubelet.environment | {"HOSTNAME": host})
        words = [*(spec.get("command") or image.entrypoint), *spec.get("args", ())]
        command = [expand(word, environment) for word in words]
        if image.exit_code is not None:
            command = ["sh", "-c", f"exit {image.exit_code}"]
        if not command:
            raise StartError("no command specified")
        root = self._directory / "roots" / str(next(self._numbers))
        root.mkdir(parents=True)
        container = Container(
            command,
            environment,
            host=host,
            address=self._kubelet.pod_ip,
            mounts=[self._mount(mount) for mount in spec.get("volumeMounts", ())],
            directory=spec.get("workingDir", "/"),
            root=root,
            log=self._log_of(tracked),
        )
        tracked.running = container
        tracked.restarts += 1
        tracked.state = {"running": {"startedAt": _now()}}

        def await_exit() -> None:
            self._inbox.put(_Exited(tracked, container.wait()))

        threading.Thread(target=await_exit, name=f"exit-{self.name}", daemon=True).start()

    def _mount(self, mount: Mapping[str, Any]) -> Mount:
        source = self._volumes[mount["name"]]
        if "subPath" in mount:
            source /= mount["subPath"]
            if not source.exists():
                source.mkdir(parents=True)
        volume = next(volume for volume in self._spec["volumes"] if volume["name"] == mount["name"])
        writable = "emptyDir" in volume or "hostPath" in volume
        return Mount(source, mount["mountPath"], not writable or mount.get("readOnly", False))

    def _make_volumes(self) -> None:
        for volume in self._spec.get("volumes", ()):
            told = False
            while volume["name"] not in self._volumes:
                try:
                    directory = self._directory / "volumes" / volume["name"]
                    self._volumes[volume["name"]] = self._content.write_volume(volume, directory)
                except (NotThere, ApiException, urllib3.exceptions.HTTPError) as error:
                    if not told:
                        text = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
                        self._kubelet.make_event(self._manifest, "FailedMount", text)
                    told = True
                    self._next(time.monotonic() + RETRY_S)

    def _terminate(self, grace_s: float) -> None:
        """End it in the time that it has, and report how it ended, unless it had."""
        running = [tracked for tracked in self._inits + self._mains if tracked.running]
        deadline = time.monotonic() + grace_s
        for tracked in running:
            if tracked.running:
                hook = tracked.spec.get("lifecycle", {}).get("preStop", {}).get("exec")
                if hook and grace_s:
                    tracked.running.run(hook["command"], grace_s)
                tracked.running.terminate()
        while any(tracked.running for tracked in running):
            try:
                exited = self._next(deadline)
            except _Deleted as deleted:  # again, with less grace
                deadline = min(deadline, time.monotonic() + deleted.grace_s)
                continue
            except _Evicted:
                continue
            if exited is not None:
                exited.container.ended(exited.code, self._log_of(exited.container))
            elif time.monotonic() >= deadline:
                self._kill()
                deadline = math.inf
        if self._phase in ("Pending", "Running"):
            ends = [tracked.code for tracked in self._mains]
            self._phase = "Succeeded" if all(code == 0 for code in ends) else "Failed"
            self._report()

    def _end(self, evicted: _Evicted) -> None:
        """End it at once, for the node's sake; its object stays."""
        self._kill()
        again: list[_Deleted] = []
        while any(tracked.running for tracked in self._inits + self._mains):
            try:
                if (exited := self._next()) is not None:
                    exited.container.ended(exited.code, self._log_of(exited.container))
            except _Deleted as deleted:
                again.append(deleted)
            except _Evicted:
                continue
        self._phase = "Failed"
        self._why = {"reason": evicted.reason, "message": evicted.message}
        target = _condition("DisruptionTarget", True, "TerminationByKubelet", evicted.message)
        self._report(*([target] if evicted.reason == "Evicted" else []))
        self._kubelet.make_event(self._manifest, evicted.reason, evicted.message)
        for told in again:
            self.tell(told)

    def _kill(self) -> None:
        for tracked in self._inits + self._mains:
            if tracked.running:
                tracked.running.kill()

    def _report(self, *more: Object) -> None:
        """Report its status, if it has changed, with these further conditions."""
        ready = self._phase == "Running" and all(main.running for main in self._mains)
        started = all(init.code == 0 for init in self._inits)
        reason = "" if ready else "PodCompleted" if self._phase == "Succeeded" else "ContainersNotReady"
        for condition in (
            _condition("Initialized", started, "" if started else "ContainersNotInitialized"),
            _condition("ContainersReady", ready, reason),
            _condition("Ready", ready, reason),
            *more,
        ):
            before = self._conditions.get(condition["type"])
            if before is None or before["status"] != condition["status"]:
                self._conditions[condition["type"]] = condition
        status: Object = {
            "phase": self._phase,
            "startTime": self._started_at,
            "conditions": list(self._conditions.values()),
            "containerStatuses": [main.status() for main in self._mains],
            **({"initContainerStatuses": [init.status() for init in self._inits]} if self._inits else {}),
            **self._ips,
            **self._why,
        }
        if status == self._reported:
            return
        self._reported = status
        body = {"metadata": {"uid": self.uid}, "status": status}
        self._persist(lambda: self._kubelet.api.patch(f"{self.path}/status", body))

    def _persist(self, call: Callable[[], object]) -> None:
        self._kubelet.persist(call, self._off)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _condition(kind: str, holds: bool | None, reason: str = "", message: str = "") -> Object:
    status = {True: "True", False: "False", None: "Unknown"}[holds]
    found = {"type": kind, "status": status, "lastTransitionTime": _now()}
    return found | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})
