"""Google's services, through its own clients: their answers as small types of ours, their errors as ours.

Nothing is tried again here; the controller does that, with pauses of its own.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fluxburst.errors import AuthDenied, ProviderError, ProviderUnavailable
from fluxburst_gke.errors import told, translated
from fluxburst_gke.options import GkeOptions
from fluxburst_kubernetes.cluster import Configure

if TYPE_CHECKING:
    import google.auth.credentials
    from google.cloud import compute_v1, container_v1
    from kubernetes.client import Configuration

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
GROUP = "instanceGroupManagers"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A GKE cluster. ``endpoint`` is empty where it has none of the kind that was asked for. ``pods`` is the range of
    its pods' addresses.
    """

    name: str
    status: str
    labels: Mapping[str, str]
    endpoint: str
    certificate: str
    told: str
    pods: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A managed instance group."""

    project: str
    zone: str
    name: str


@dataclass(frozen=True, slots=True)
class NodePool:
    """A node pool, and the managed instance groups that its machines are of. ``told`` is what is wrong with it."""

    name: str
    status: str
    labels: Mapping[str, str]
    groups: tuple[Group, ...]
    told: str


@dataclass(frozen=True, slots=True)
class Instance:
    """A machine of a managed instance group, there or being made. Its name is the Kubernetes node's as well."""

    name: str
    url: str
    group: Group
    leaving: bool = False
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """``error`` is what a finished operation failed of."""

    name: str
    node_pool: str
    done: bool
    error: ProviderError | None = None


class Google:
    """Thread-safe. Nobody is talked to before the first call, and no library of Google's is imported before.

    Every call raises a :class:`~fluxburst.errors.ProviderError` where it does not say otherwise.

    Args:
        options: Where the cluster is, and how long a request may take.
        cluster: The GKE cluster's name.
        where: What errors begin with, such as ``provider gke``.
    """

    def __init__(self, options: GkeOptions, cluster: str, where: str) -> None:
        self._options = options
        self._where = where
        self._parent = f"projects/{options.project}/locations/{options.location}"
        self._name = f"{self._parent}/clusters/{cluster}"
        self._cluster = cluster
        self._lock = threading.RLock()
        self._made: dict[str, Any] = {}
        # the controller repeats what failed, and knows what may be repeated
        self._how: dict[str, Any] = {"retry": None, "timeout": options.request_timeout}

    # Credentials

    def token(self, *, fresh: bool = False) -> str:
        """An access token that is valid for some minutes at least.

        Args:
            fresh: The one that was given last was refused.
        """
        from google.auth.transport.requests import Request

        with self._lock, translated(self._where):
            credentials = self._credentials()
            if fresh or not credentials.valid:
                request = partial(Request(), timeout=self._options.request_timeout)
                credentials.refresh(request)  # type: ignore[no-untyped-call]
            return str(credentials.token)

    def _credentials(self) -> google.auth.credentials.Credentials:
        import google.auth

        with self._lock:
            if "credentials" not in self._made:
                # Application Default Credentials: the environment's, gcloud's, or the machine's own
                self._made["credentials"], _ = google.auth.default(scopes=SCOPES)
            credentials: google.auth.credentials.Credentials = self._made["credentials"]
            return credentials

    # The cluster

    def cluster(self) -> Cluster | None:
        """None where there is no cluster of this name."""
        from google.api_core.exceptions import NotFound

        with translated(self._where):
            try:
                found = self._containers().get_cluster(name=self._name, **self._how)
            except NotFound:
                return None
        endpoint = {
            "public": found.endpoint,
            "private": found.private_cluster_config.private_endpoint,
            "dns": found.control_plane_endpoints_config.dns_endpoint_config.endpoint,
        }[self._options.control_plane]
        return Cluster(
            found.name,
            found.status.name,
            dict(found.resource_labels),
            endpoint,
            base64.b64decode(found.master_auth.cluster_ca_certificate).decode(),
            _conditions(found.conditions, found.status_message),
            found.cluster_ipv4_cidr,
        )

    def create_cluster(self, cluster: container_v1.Cluster) -> None:
        """Begin to make it; one of this name that is there is fine."""
        from google.api_core.exceptions import AlreadyExists

        with translated(self._where):
            try:
                self._containers().create_cluster(parent=self._parent, cluster=cluster, **self._how)
            except AlreadyExists:
                return

    def delete_cluster(self) -> None:
        with translated(self._where):
            self._containers().delete_cluster(name=self._name, **self._how)

    def access(self) -> Configure:
        """The way to the cluster's API server, by access tokens that are renewed before they end."""

        def configure(configuration: Configuration) -> None:
            found = self.cluster()
            if found is None:
                raise ProviderUnavailable(f"{self._where}: there is no GKE cluster {self._cluster}")
            if not found.endpoint:
                kind = self._options.control_plane
                raise ProviderUnavailable(f"{self._where}: GKE cluster {self._cluster} has no {kind} endpoint (yet)")
            configuration.host = f"https://{found.endpoint}"
            if self._options.control_plane != "dns":  # that one's certificate is of a public authority
                configuration.ca_cert_data = found.certificate
            configuration.api_key_prefix["authorization"] = "Bearer"
            # this is called for the first request, and after a token was refused, be it still in its time
            configuration.api_key["authorization"] = self.token(fresh=True)
            configuration.refresh_api_key_hook = renew  # type: ignore[assignment]  # its type is left out there

        def renew(configuration: Configuration) -> None:
            configuration.api_key["authorization"] = self.token()

        return configure

    # Node pools

    def node_pools(self) -> list[NodePool] | None:
        """All of the cluster's; None where there is no cluster."""
        from google.api_core.exceptions import NotFound

        with translated(self._where):
            try:
                answer = self._containers().list_node_pools(parent=self._name, **self._how)
            except NotFound:
                return None
        return [_node_pool(found) for found in answer.node_pools]

    def node_pool(self, name: str) -> NodePool | None:
        """None where there is no node pool, or no cluster."""
        from google.api_core.exceptions import NotFound

        with translated(self._where):
            try:
                found = self._containers().get_node_pool(name=self._path_of(name), **self._how)
            except NotFound:
                return None
        return _node_pool(found)

    def create_node_pool(self, node_pool: container_v1.NodePool) -> Operation | None:
        """Begin to make it, with its first nodes; None where there is one of this name."""
        from google.api_core.exceptions import AlreadyExists

        with translated(self._where):
            try:
                begun = self._containers().create_node_pool(parent=self._name, node_pool=node_pool, **self._how)
            except AlreadyExists:
                return None
        return _operation(begun)

    def set_size(self, name: str, nodes: int) -> Operation:
        """Begin to bring a node pool to so many nodes in each of its zones. Which go, if fewer, is GKE's choice."""
        from google.cloud import container_v1

        request = container_v1.SetNodePoolSizeRequest(name=self._path_of(name), node_count=nodes)
        with translated(self._where):
            return _operation(self._containers().set_node_pool_size(request=request, **self._how))

    def delete_node_pool(self, name: str) -> None:
        with translated(self._where):
            self._containers().delete_node_pool(name=self._path_of(name), **self._how)

    def operation(self, name: str) -> Operation:
        """One that GKE has forgotten is done."""
        from google.api_core.exceptions import NotFound

        with translated(self._where):
            try:
                found = self._containers().get_operation(name=f"{self._parent}/operations/{name}", **self._how)
            except NotFound:
                return Operation(name, "", done=True)
        return _operation(found)

    def operations(self) -> list[Operation]:
        """Those of the cluster's node pools that GKE remembers, the latest last."""
        with translated(self._where):
            answer = self._containers().list_operations(parent=self._parent, **self._how)
        mine = f"/clusters/{self._cluster}/nodePools/"
        return [
            _operation(found)
            for found in sorted(answer.operations, key=lambda found: found.start_time)
            if mine in found.target_link
        ]

    def _path_of(self, node_pool: str) -> str:
        return f"{self._name}/nodePools/{node_pool}"

    # Machines

    def size(self, groups: Iterable[Group]) -> int:
        """How many machines the groups are to have."""
        from google.api_core.exceptions import NotFound

        sizes = []
        with translated(self._where):
            for group in groups:
                how = {"project": group.project, "zone": group.zone, "instance_group_manager": group.name, **self._how}
                try:
                    sizes.append(self._groups().get(**how).target_size)
                except NotFound:
                    continue  # its node pool is being made, or deleted
        return sum(sizes)

    def instances(self, groups: Iterable[Group]) -> list[Instance]:
        """All machines of these groups, those among them that are yet to come or to go."""
        from google.api_core.exceptions import NotFound

        found: list[Instance] = []
        with translated(self._where):
            for group in groups:
                try:
                    listed = self._groups().list_managed_instances(
                        project=group.project, zone=group.zone, instance_group_manager=group.name, **self._how
                    )
                    found += [_instance(group, one) for one in listed]
                except NotFound:
                    continue  # its node pool is being made, or deleted
        return found

    def delete_instances(self, instances: Sequence[Instance]) -> None:
        """Begin to give exactly these machines back, and make their groups smaller by them."""
        from google.cloud import compute_v1

        for group in {instance.group for instance in instances}:
            body = compute_v1.InstanceGroupManagersDeleteInstancesRequest(
                instances=[instance.url for instance in instances if instance.group == group],
                # one that has gone meanwhile does not keep the others
                skip_instances_on_validation_error=True,
            )
            request = compute_v1.DeleteInstancesInstanceGroupManagerRequest(
                project=group.project,
                zone=group.zone,
                instance_group_manager=group.name,
                instance_group_managers_delete_instances_request_resource=body,
            )
            with translated(self._where):
                self._groups().delete_instances_unary(request=request, **self._how)

    def machine_type(self, zone: str, name: str) -> tuple[int, int]:
        """A machine type's cores, as jobs see them, and its memory in bytes."""
        with translated(self._where):
            found = self._machine_types().get(project=self._options.project, zone=zone, machine_type=name, **self._how)
        return found.guest_cpus, found.memory_mb * 2**20

    # The way to the lead

    def firewall(self, name: str) -> compute_v1.Firewall | None:
        """None where there is no rule of this name."""
        from google.api_core.exceptions import NotFound

        with translated(self._where):
            try:
                return self._firewalls().get(project=self._options.project, firewall=name, **self._how)
            except NotFound:
                return None

    def create_firewall(self, rule: compute_v1.Firewall) -> None:
        """Begin to make it; one of this name that is there is fine."""
        from google.api_core.exceptions import Conflict

        with translated(self._where):
            try:
                self._firewalls().insert_unary(project=self._options.project, firewall_resource=rule, **self._how)
            except Conflict:
                return

    def change_firewall(self, rule: compute_v1.Firewall) -> None:
        """Begin to make one that is there so."""
        from google.cloud import compute_v1

        # a whole one: a patch leaves a list as it is that is empty now
        request = compute_v1.UpdateFirewallRequest(
            project=self._options.project, firewall=rule.name, firewall_resource=rule
        )
        with translated(self._where):
            self._firewalls().update_unary(request=request, **self._how)

    def delete_firewall(self, name: str) -> None:
        with translated(self._where):
            self._firewalls().delete_unary(project=self._options.project, firewall=name, **self._how)

    # What may be done

    def missing_permissions(self, permissions: Sequence[str]) -> list[str]:
        """Those that the credentials do not have on the project."""
        from google.auth.transport.requests import AuthorizedSession

        address = self._options.endpoints.get("cloudresourcemanager", "https://cloudresourcemanager.googleapis.com")
        url = f"{address}/v1/projects/{self._options.project}:testIamPermissions"
        with translated(self._where):
            with AuthorizedSession(self._credentials()) as session:  # type: ignore[no-untyped-call]
                answer = session.post(
                    url, json={"permissions": list(permissions)}, timeout=self._options.request_timeout
                )
            if answer.status_code != 200:
                raise AuthDenied(f"{self._where}: testIamPermissions: {answer.status_code} {answer.text[:300]}")
            has = answer.json().get("permissions", [])
        return [permission for permission in permissions if permission not in has]

    def close(self) -> None:
        with self._lock:
            made, self._made = self._made, {}
        for client in made.values():
            if hasattr(client, "transport"):
                client.transport.close()

    # Clients

    def _containers(self) -> container_v1.ClusterManagerClient:
        from google.cloud import container_v1
        from google.cloud.container_v1.services.cluster_manager.transports import ClusterManagerGrpcTransport

        with self._lock:
            if "container" not in self._made:
                plain, address = self._address("container")
                if plain:
                    import grpc

                    transport = ClusterManagerGrpcTransport(channel=grpc.insecure_channel(address))
                    self._made["container"] = container_v1.ClusterManagerClient(transport=transport)
                else:
                    self._made["container"] = container_v1.ClusterManagerClient(
                        credentials=self._credentials(),
                        client_options={"api_endpoint": address} if address else None,
                    )
            client: container_v1.ClusterManagerClient = self._made["container"]
            return client

    def _groups(self) -> compute_v1.InstanceGroupManagersClient:
        from google.cloud import compute_v1
        from google.cloud.compute_v1.services.instance_group_managers.transports import (
            InstanceGroupManagersRestTransport,
        )

        with self._lock:
            if GROUP not in self._made:
                transport = InstanceGroupManagersRestTransport(**self._rest())
                self._made[GROUP] = compute_v1.InstanceGroupManagersClient(transport=transport)
            client: compute_v1.InstanceGroupManagersClient = self._made[GROUP]
            return client

    def _machine_types(self) -> compute_v1.MachineTypesClient:
        from google.cloud import compute_v1
        from google.cloud.compute_v1.services.machine_types.transports import MachineTypesRestTransport

        return compute_v1.MachineTypesClient(transport=MachineTypesRestTransport(**self._rest()))

    def _firewalls(self) -> compute_v1.FirewallsClient:
        from google.cloud import compute_v1
        from google.cloud.compute_v1.services.firewalls.transports import FirewallsRestTransport

        return compute_v1.FirewallsClient(transport=FirewallsRestTransport(**self._rest()))

    def _rest(self) -> dict[str, Any]:
        from google.auth.credentials import AnonymousCredentials

        plain, address = self._address("compute")
        if plain:
            anonymous = AnonymousCredentials()  # type: ignore[no-untyped-call]
            return {"host": address, "url_scheme": "http", "credentials": anonymous}
        return {"credentials": self._credentials(), **({"host": address} if address else {})}

    def _address(self, service: Any) -> tuple[bool, str]:
        """Whether it is asked in plain text, and its address without the scheme, empty for Google's own."""
        address = self._options.endpoints.get(service, "")
        return address.startswith("http://"), address.removeprefix("http://").removeprefix("https://")


def _node_pool(found: container_v1.NodePool) -> NodePool:
    groups = []
    for url in found.instance_group_urls:
        part = url.split("/")
        groups.append(Group(part[part.index("projects") + 1], part[part.index("zones") + 1], part[-1]))
    return NodePool(
        found.name,
        found.status.name,
        dict(found.config.resource_labels),
        tuple(groups),
        _conditions(found.conditions, found.status_message),
    )


def _conditions(conditions: Iterable[container_v1.StatusCondition], message: str) -> str:
    words = [f"{one.code.name if one.code else one.canonical_code.name}: {one.message}" for one in conditions]
    return "; ".join(words) or message


def _operation(found: container_v1.Operation) -> Operation:
    node_pool = found.target_link.rpartition("/nodePools/")[2]
    done = found.status.name == "DONE"
    if not done:
        return Operation(found.name, node_pool, done)
    conditions = _conditions([*found.nodepool_conditions, *found.cluster_conditions], "")
    text = "; ".join(dict.fromkeys(filter(None, (conditions, found.error.message or found.status_message))))
    return Operation(found.name, node_pool, done, told(text) if text else None)


def _instance(group: Group, found: compute_v1.ManagedInstance) -> Instance:
    errors = found.last_attempt.errors.errors
    return Instance(
        name=found.instance.rpartition("/")[2],
        url=found.instance,
        group=group,
        leaving=found.current_action in ("DELETING", "ABANDONING"),
        # what was refused at first may have come since
        trouble="" if found.instance_status else "; ".join(f"{error.code}: {error.message}" for error in errors),
    )
