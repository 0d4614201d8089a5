"""Google, as far as a provider for GKE asks it: ClusterManager by gRPC, Compute Engine and access tokens by HTTP.

The messages are those of Google's own packages. Machines of node pools become nodes of the tests' control plane. What
is told here is what a real project tells, as far as it is documented: operations take their time, one node pool runs
one at a time, a machine that is sold out stays in its group and is tried again.
"""

from __future__ import annotations

import base64
import http.server
import itertools
import json
import re
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud import compute_v1, container_v1

from tests.kube.control_plane import ControlPlane
from tests.kube.kubelet import FakeNode, Kubelet

PROJECT, ZONE, CLUSTER = "test-project", "us-test1-a", "shared"
CORES = {"e2-standard-2": 2, "tiny": 2}
SOLD_OUT = (
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "The zone 'projects/{project}/zones/{zone}' does not have enough resources available to fulfill the request.",
)
SHORT = "Insufficient regional quota to satisfy request: resource \"C2_CPUS\": request requires '{n}.0' and is short."


@dataclass
class Vm:
    """A machine of a managed instance group."""

    name: str
    zone: str
    action: str = "CREATING"
    status: str = ""
    errors: tuple[tuple[str, str], ...] = ()


@dataclass
class Pool:
    spec: container_v1.NodePool
    status: container_v1.NodePool.Status = container_v1.NodePool.Status.PROVISIONING
    target: int = 0
    vms: dict[str, Vm] = field(default_factory=dict)


class Google:
    """One project with one GKE cluster, whose control plane is that of the tests.

    Attributes:
        boots: Set while machines boot; cleared, those that are asked for wait.
        boot_s: How long a machine takes to be a node.
        stop_s: How long one takes to be gone.
        stale_s: How old the listings of groups are.
        capacity: How many machines a zone has, beside those that are sold; by default any number.
        quota: How many machines the project may have.
        sizes: All sizes that were asked for, with their node pools.
        log: What happened, with the seconds since the start.
        refuse: What the next calls of a method answer instead, by its name.
        tokens: Those to be given out next; after them the administrator's.
        token_s: How long tokens last.
        tokens_given: How many were given out.
        denied: Permissions that the credentials lack.
    """

    def __init__(self, plane: ControlPlane, kubelet: Kubelet, directory: Path) -> None:
        self._plane, self._kubelet = plane, kubelet
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._numbers = itertools.count(1)
        self._run = secrets.token_hex(2)
        self._began = time.monotonic()
        self._past: defaultdict[str, list[tuple[float, list[Vm]]]] = defaultdict(list)
        self.clusters: dict[str, container_v1.Cluster] = {CLUSTER: self._cluster(CLUSTER, {})}
        self.pools: dict[str, Pool] = {}
        self.operations: dict[str, container_v1.Operation] = {}
        self.boots = threading.Event()
        self.boots.set()
        self.boot_s, self.stop_s = 0.1, 0.5
        self.stale_s = 0.0
        self.capacity: defaultdict[str, int] = defaultdict(lambda: 1000)
        self.quota = 1000
        self.sizes: list[tuple[str, int]] = []
        self.log: list[tuple[float, str]] = []
        self.refuse: defaultdict[str, list[tuple[grpc.StatusCode, str]]] = defaultdict(list)
        self.tokens: list[str] = []
        self.token_s = 3600
        self.tokens_given = 0
        self.denied: set[str] = set()
        self.firewalls: dict[str, compute_v1.Firewall] = {}
        self._threads = ThreadPoolExecutor(64, thread_name_prefix="google")
        self._serve_grpc()
        self._serve_http()
        self.key = directory / "service-account.json"
        self._write_key()

    def close(self) -> None:
        """End all, machines included."""
        self.boots.set()
        self._threads.shutdown(wait=True)
        for pool in self.pools.values():
            for vm in pool.vms.values():
                self._kubelet.remove(vm.name)
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()

    @property
    def toml(self) -> str:
        """The rest of a ``[provider.gke]``."""
        return f"""
project = "{PROJECT}"
location = "{ZONE}"
[provider.gke.endpoints]
container = "http://127.0.0.1:{self._grpc_port}"
compute = "http://127.0.0.1:{self._http_port}"
cloudresourcemanager = "http://127.0.0.1:{self._http_port}"
"""

    def tell(self, what: str) -> None:
        with self._lock:
            self.log.append((round(time.monotonic() - self._began, 2), what))

    def machines(self, pool: str) -> list[str]:
        """The names of those that exist, or are tried to be made."""
        with self._lock:
            return sorted(self.pools[pool].vms) if pool in self.pools else []

    def preempt(self, name: str) -> None:
        """Take a spot machine away; its group makes it anew, under its name."""
        with self._changed:
            pool = next(pool for pool in self.pools.values() if name in pool.vms)
            vm = pool.vms[name]
            vm.action, vm.status = "RECREATING", ""
            self._set(pool, vm)
            self.tell(f"{name}: is preempted")
        self._evict_all(name)
        time.sleep(self.stop_s)
        self._kubelet.remove(name)
        self._boot(pool, vm)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait until something holds of what changes here."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), f"not within {timeout_s:g} s; {self.log}"

    # GKE

    def _serve_grpc(self) -> None:
        messages = {
            "GetCluster": (container_v1.GetClusterRequest, container_v1.Cluster),
            "CreateCluster": (container_v1.CreateClusterRequest, container_v1.Operation),
            "DeleteCluster": (container_v1.DeleteClusterRequest, container_v1.Operation),
            "ListNodePools": (container_v1.ListNodePoolsRequest, container_v1.ListNodePoolsResponse),
            "GetNodePool": (container_v1.GetNodePoolRequest, container_v1.NodePool),
            "CreateNodePool": (container_v1.CreateNodePoolRequest, container_v1.Operation),
            "DeleteNodePool": (container_v1.DeleteNodePoolRequest, container_v1.Operation),
            "SetNodePoolSize": (container_v1.SetNodePoolSizeRequest, container_v1.Operation),
            "GetOperation": (container_v1.GetOperationRequest, container_v1.Operation),
            "ListOperations": (container_v1.ListOperationsRequest, container_v1.ListOperationsResponse),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._answer(name), request_deserializer=asked.deserialize, response_serializer=told.serialize
            )
            for name, (asked, told) in messages.items()
        }
        self._grpc = grpc.server(ThreadPoolExecutor(8))
        service = grpc.method_handlers_generic_handler("google.container.v1.ClusterManager", handlers)
        self._grpc.add_generic_rpc_handlers((service,))
        self._grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()

    def _answer(self, name: str) -> Callable[[Any, Any], Any]:
        method = getattr(self, "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())

        def answer(request: Any, context: Any) -> Any:
            with self._changed:
                try:
                    if self.refuse[name]:
                        raise _Refused(*self.refuse[name].pop(0))
                    found = method(request)
                except _Refused as refused:
                    context.abort(refused.code, refused.words)
                self._changed.notify_all()
                return found

        return answer

    def _cluster(self, name: str, labels: dict[str, str]) -> container_v1.Cluster:
        certificate = base64.b64encode(self._plane.ca.read_bytes()).decode()
        return container_v1.Cluster(
            name=name,
            status=container_v1.Cluster.Status.RUNNING,
            endpoint=f"127.0.0.1:{self._plane.port}",
            master_auth=container_v1.MasterAuth(cluster_ca_certificate=certificate),
            resource_labels=labels,
            cluster_ipv4_cidr="10.8.0.0/14",
        )

    def _cluster_of(self, name: str) -> container_v1.Cluster:
        found = self.clusters.get(name.split("/")[5])
        return found if found is not None else _not_found(name)

    def _pool_of(self, name: str) -> Pool:
        self._cluster_of(name)
        found = self.pools.get(name.split("/")[7])
        return found if found is not None else _not_found(name)

    def _get_cluster(self, request: Any) -> container_v1.Cluster:
        return self._cluster_of(request.name)

    def _create_cluster(self, request: Any) -> container_v1.Operation:
        name = request.cluster.name
        if name in self.clusters:
            raise _Refused(grpc.StatusCode.ALREADY_EXISTS, f"Already exists: {name}")
        made = self._cluster(name, dict(request.cluster.resource_labels))
        made.status, made.endpoint, endpoint = container_v1.Cluster.Status.PROVISIONING, "", made.endpoint
        self.clusters[name] = made
        self.tell(f"cluster {name}: creating")

        def work(_: container_v1.Operation) -> None:
            self.boots.wait()
            with self._lock:
                for spec in request.cluster.node_pools:
                    spec.locations = [request.parent.split("/")[3]]
                    pool = self.pools[spec.name] = Pool(spec, container_v1.NodePool.Status.RUNNING, 1)
                    self._boot(pool, Vm(f"gke-{spec.name}-{self._run}", spec.locations[0]))
                made.status, made.endpoint = container_v1.Cluster.Status.RUNNING, endpoint

        return self._begin("CREATE_CLUSTER", f"{request.parent}/clusters/{name}", work)

    def _delete_cluster(self, request: Any) -> container_v1.Operation:
        del self.clusters[self._cluster_of(request.name).name]
        self.tell(f"cluster {request.name.split('/')[5]}: deleted")
        return self._begin("DELETE_CLUSTER", request.name, lambda _: None)

    def _list_node_pools(self, request: Any) -> container_v1.ListNodePoolsResponse:
        self._cluster_of(request.parent)
        return container_v1.ListNodePoolsResponse(node_pools=[self._shown(pool) for pool in self.pools.values()])

    def _get_node_pool(self, request: Any) -> container_v1.NodePool:
        return self._shown(self._pool_of(request.name))

    @staticmethod
    def _shown(pool: Pool) -> container_v1.NodePool:
        shown = container_v1.NodePool(pool.spec)
        shown.status = pool.status
        shown.instance_group_urls = [
            f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/zones/{zone}/instanceGroupManagers/"
            f"gke-{CLUSTER}-{pool.spec.name}-grp"
            for zone in pool.spec.locations
        ]
        return shown

    def _create_node_pool(self, request: Any) -> container_v1.Operation:
        self._cluster_of(request.parent)
        name, nodes = request.node_pool.name, request.node_pool.initial_node_count
        if name in self.pools:
            raise _Refused(grpc.StatusCode.ALREADY_EXISTS, f"Already exists: {request.parent}/nodePools/{name}")
        self._admit(nodes)
        self.pools[name] = Pool(request.node_pool)
        return self._resize(self.pools[name], nodes, "CREATE_NODE_POOL", f"{request.parent}/nodePools/{name}")

    def _set_node_pool_size(self, request: Any) -> container_v1.Operation:
        pool = self._pool_of(request.name)
        self._require_idle(request.name)
        self._admit(request.node_count - pool.target)
        return self._resize(pool, request.node_count, "SET_NODE_POOL_SIZE", request.name)

    def _delete_node_pool(self, request: Any) -> container_v1.Operation:
        pool = self._pool_of(request.name)
        self._require_idle(request.name)
        self.tell(f"{pool.spec.name}: deleted")
        del self.pools[pool.spec.name]
        return self._begin("DELETE_NODE_POOL", request.name, lambda _: None)

    def _require_idle(self, name: str) -> None:
        for operation in self.operations.values():
            if operation.target_link.endswith(name) and operation.status != container_v1.Operation.Status.DONE:
                words = f"Cluster is running incompatible operation {operation.name}."
                raise _Refused(grpc.StatusCode.FAILED_PRECONDITION, words)

    def _admit(self, more: int) -> None:
        if sum(pool.target for pool in self.pools.values()) + more > self.quota:
            raise _Refused(grpc.StatusCode.PERMISSION_DENIED, SHORT.format(n=more))

    def _resize(self, pool: Pool, nodes: int, kind: str, target: str) -> container_v1.Operation:
        self.sizes.append((pool.spec.name, nodes))
        self.tell(f"{pool.spec.name}: {pool.target} -> {nodes}")
        pool.target = nodes
        if kind == "SET_NODE_POOL_SIZE":
            pool.status = container_v1.NodePool.Status.RECONCILING

        def work(operation: container_v1.Operation) -> None:
            with self._changed:
                keep = [vm for vm in pool.vms.values() if vm.action != "DELETING"]
                zone = pool.spec.locations[0]
                made = [
                    Vm(f"gke-{pool.spec.name}-{self._run}-{next(self._numbers):02d}", zone)
                    for _ in range(nodes - len(keep))
                ]
                for vm in made:
                    self._set(pool, vm)
                for vm in keep[nodes:]:
                    self._go(pool, vm)
            self.boots.wait()
            for done in [self._threads.submit(self._boot, pool, vm) for vm in made]:
                done.result()
            with self._changed:
                failed = next((vm for vm in made if vm.errors and vm.name in pool.vms), None)
                pool.status = container_v1.NodePool.Status.RUNNING
                if failed is not None:
                    pool.status = container_v1.NodePool.Status.RUNNING_WITH_ERROR
                    condition = container_v1.StatusCondition(code="GCE_STOCKOUT", message=failed.errors[0][1])
                    operation.nodepool_conditions = [condition]

        return self._begin(kind, target, work)

    def _boot(self, pool: Pool, vm: Vm) -> None:
        with self._changed:
            if self.capacity[vm.zone] <= 0:
                code, words = SOLD_OUT
                vm.errors = ((code, words.format(project=PROJECT, zone=vm.zone)),)
                self._set(pool, vm)
                return
            self.capacity[vm.zone] -= 1
            vm.status = "STAGING"
        time.sleep(self.boot_s)  # the length of a boot
        with self._changed:
            if vm.action == "DELETING":
                return
            vm.action, vm.status = "NONE", "RUNNING"
            self._set(pool, vm)
            config = pool.spec.config
            node = FakeNode(
                vm.name,
                cores=CORES[config.machine_type],
                labels={
                    **config.labels,
                    "cloud.google.com/gke-nodepool": pool.spec.name,
                    "topology.kubernetes.io/zone": vm.zone,
                },
                taints=tuple(
                    {"key": taint.key, "value": taint.value, "effect": "NoSchedule"} for taint in config.taints
                ),
            )
            self._kubelet.register(node)
            self.tell(f"{vm.name}: is a node")

    def _set(self, pool: Pool, vm: Vm) -> None:
        pool.vms[vm.name] = vm
        self._remember(pool)

    def _remember(self, pool: Pool) -> None:
        copies = [Vm(vm.name, vm.zone, vm.action, vm.status, vm.errors) for vm in pool.vms.values()]
        self._past[pool.spec.name].append((time.monotonic(), copies))
        self._changed.notify_all()

    def _go(self, pool: Pool, vm: Vm) -> None:
        if vm.action == "DELETING":
            return
        vm.action = "DELETING"
        self._remember(pool)
        self._threads.submit(self._end, pool, vm)

    def _end(self, pool: Pool, vm: Vm) -> None:
        if vm.status == "RUNNING":
            self._evict_all(vm.name)
        time.sleep(self.stop_s)  # the length of a shutdown
        self._kubelet.remove(vm.name)
        with self._changed:
            if vm.status:
                self.capacity[vm.zone] += 1
            del pool.vms[vm.name]
            self.tell(f"{vm.name}: is gone")
            self._remember(pool)

    def _evict_all(self, node: str) -> None:
        """A kubelet is not ready any more, and ends its pods, before its machine goes down (graceful node shutdown)."""
        self._kubelet.api.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}})
        for pod in self._kubelet.api.get("/api/v1/pods", fieldSelector=f"spec.nodeName={node}")["items"]:
            name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
            self._kubelet.evict(namespace, name, "Pod was terminated in response to imminent node shutdown.")

    def _begin(self, kind: str, target: str, work: Callable[[container_v1.Operation], None]) -> container_v1.Operation:
        operation = container_v1.Operation(
            name=f"operation-{next(self._numbers)}",
            operation_type=kind,
            status=container_v1.Operation.Status.RUNNING,
            target_link=f"https://container.googleapis.com/v1/{target}",
            start_time=f"{time.time():.3f}",
        )
        self.operations[operation.name] = operation

        def run() -> None:
            work(operation)
            with self._changed:
                operation.status = container_v1.Operation.Status.DONE
                self._changed.notify_all()

        self._threads.submit(run)
        return container_v1.Operation(operation)

    def _get_operation(self, request: Any) -> container_v1.Operation:
        found = self.operations.get(request.name.split("/")[-1])
        return found if found is not None else _not_found(request.name)

    def _list_operations(self, _: Any) -> container_v1.ListOperationsResponse:
        return container_v1.ListOperationsResponse(operations=list(self.operations.values()))

    # Compute Engine, the project and the tokens

    def _serve_http(self) -> None:
        google = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply(b"")

            def do_POST(self) -> None:
                self._reply(self.rfile.read(int(self.headers["Content-Length"] or 0)))

            do_PUT = do_DELETE = do_POST  # noqa: N815 - the base class asks for these

            def _reply(self, body: bytes) -> None:
                status, answer = google._answer_http(self.command, self.path, body)
                data = answer.encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http_port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def _answer_http(self, method: str, path: str, body: bytes) -> tuple[int, str]:
        path = path.partition("?")[0]
        with self._changed:
            if path == "/token":
                self.tokens_given += 1
                token = self.tokens.pop(0) if self.tokens else self.admin_token()
                told = {"access_token": token, "expires_in": self.token_s, "token_type": "Bearer"}
                return 200, json.dumps(told)
            if path.endswith(":testIamPermissions"):
                asked = json.loads(body)["permissions"]
                return 200, json.dumps({"permissions": [one for one in asked if one not in self.denied]})
            if found := re.search(r"/machineTypes/(.+)$", path):
                if found[1] not in CORES:
                    return 404, json.dumps({"error": {"code": 404, "message": f"machine type {found[1]} not found"}})
                kind = compute_v1.MachineType(name=found[1], guest_cpus=CORES[found[1]], memory_mb=16384)
                return 200, compute_v1.MachineType.to_json(kind)
            if found := re.search(r"/global/firewalls(?:/([^/]+))?$", path):
                return self._firewall(method, found[1] or "", body)
            found = re.search(rf"/zones/([^/]+)/instanceGroupManagers/gke-{CLUSTER}-([^/]+)-grp(?:/(\w+))?$", path)
            if found is None or found[2] not in self.pools:
                return 404, json.dumps({"error": {"code": 404, "message": f"{path} was not found"}})
            return 200, self._group(self.pools[found[2]], found[1], found[3], body)

    def _firewall(self, method: str, name: str, body: bytes) -> tuple[int, str]:
        if method == "POST":
            rule = compute_v1.Firewall.from_json(body)
            if rule.name in self.firewalls:
                return 409, json.dumps({"error": {"code": 409, "message": f"{rule.name} already exists"}})
            name = rule.name
        elif name not in self.firewalls:
            return 404, json.dumps({"error": {"code": 404, "message": f"firewall {name} was not found"}})
        elif method == "GET":
            return 200, compute_v1.Firewall.to_json(self.firewalls[name])
        if method == "DELETE":
            del self.firewalls[name]
        else:
            rule = compute_v1.Firewall.from_json(body)
            rule.network = f"https://www.googleapis.com/compute/v1/{rule.network}"
            self.firewalls[name] = rule
        self.tell(f"firewall rule {name}: {method}")
        return 200, compute_v1.Operation.to_json(compute_v1.Operation(name="operation-firewall", status="RUNNING"))

    def _group(self, pool: Pool, zone: str, call: str | None, body: bytes) -> str:
        if call is None:
            return str(
                compute_v1.InstanceGroupManager.to_json(compute_v1.InstanceGroupManager(target_size=pool.target))
            )
        url = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/zones/{zone}/instances/"
        if call == "listManagedInstances":
            listed = compute_v1.InstanceGroupManagersListManagedInstancesResponse(
                managed_instances=[_managed(url, vm) for vm in self._listed(pool)]
            )
            return str(compute_v1.InstanceGroupManagersListManagedInstancesResponse.to_json(listed))
        assert call == "deleteInstances"
        for instance in json.loads(body)["instances"]:
            vm = pool.vms.get(instance.removeprefix(url))
            if vm is not None and vm.action != "DELETING":
                pool.target -= 1
                self.tell(f"{vm.name}: is given back")
                self._go(pool, vm)
        return str(compute_v1.Operation.to_json(compute_v1.Operation(name="operation-delete", status="RUNNING")))

    def _listed(self, pool: Pool) -> list[Vm]:
        known = [vms for at, vms in self._past[pool.spec.name] if at <= time.monotonic() - self.stale_s]
        return known[-1] if known else []

    def admin_token(self) -> str:
        token: str = json.loads(json.dumps(_read_kubeconfig(self._plane.kubeconfig)))["token"]
        return token

    def _write_key(self) -> None:
        """A service account's key, whose tokens are asked for here."""
        private = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.key.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": PROJECT,
                    "private_key_id": "1",
                    "private_key": private.decode(),
                    "client_email": "tests@example.invalid",
                    "token_uri": f"http://127.0.0.1:{self._http_port}/token",
                }
            )
        )


class _Refused(Exception):
    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.code, self.words = code, words


def _not_found(name: str) -> NoReturn:
    raise _Refused(grpc.StatusCode.NOT_FOUND, f"Not found: {name}.")


def _managed(url: str, vm: Vm) -> compute_v1.ManagedInstance:
    errors = [compute_v1.Errors(code=code, message=message) for code, message in vm.errors]
    return compute_v1.ManagedInstance(
        instance=url + vm.name,
        current_action=vm.action,
        instance_status=vm.status or None,
        last_attempt=compute_v1.ManagedInstanceLastAttempt(
            errors=compute_v1.ManagedInstanceLastAttemptErrors(errors=errors)
        )
        if errors
        else None,
    )


def _read_kubeconfig(path: Path) -> dict[str, str]:
    import yaml

    user: dict[str, str] = yaml.safe_load(path.read_text())["users"][0]["user"]
    return user


@contextmanager
def serving(plane: ControlPlane, kubelet: Kubelet, directory: Path) -> Iterator[Google]:
    google = Google(plane, kubelet, directory)
    try:
        yield google
    finally:
        google.close()
