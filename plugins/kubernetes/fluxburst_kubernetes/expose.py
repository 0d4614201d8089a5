"""A lead that is a pod, made reachable for followers outside its cluster: a NodePort Service, and whom it lets in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fluxburst.errors import AuthDenied, ConfigError
from fluxburst_kubernetes.cluster import Cluster, NotFound
from fluxburst_kubernetes.objects import MANAGER, Object

IDENTITIES = (
    ("batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index"),
    ("statefulset.kubernetes.io/pod-name",),
)
"""Labels that tell one pod from all others, and that its successor has, too: of an Indexed Job, as the Flux Operator
makes, and of a StatefulSet (Kubernetes, well-known labels)."""
OUTSIDE = ("ExternalIP", "ExternalDNS")


@dataclass(frozen=True, slots=True)
class Exposed:
    """``connect`` is what followers dial. ``inside`` means that only the cluster's own network knows that address."""

    connect: str
    service: str
    selector: Mapping[str, str]
    inside: bool


def expose(
    cluster: Cluster,
    namespace: str,
    pod_name: str,
    *,
    port: int,
    node_port: int | None = None,
    address: str = "",
    selector: Mapping[str, str] | None = None,
    sources: Sequence[str] = (),
) -> Exposed:
    """Make the lead's NodePort Service, or make it so, and find the address to dial.

    With ``sources`` (CIDRs) a NetworkPolicy lets only these, and the lead's own namespace, reach the port; the Service
    then keeps their addresses as they are, and is served by the lead's own node alone.

    Raises:
        ConfigError: the pod is not there, or nothing tells it from others.
        ProviderError: the API server refuses.
    """
    core = f"/api/v1/namespaces/{namespace}"
    try:
        pod = cluster.get(f"{core}/pods/{pod_name}")
    except NotFound as error:
        raise ConfigError(f"{error}; name the lead's pod with --pod, and its namespace with --namespace") from None
    identity = dict(selector) if selector else identity_of(pod)
    name = f"{pod_name[:50].rstrip('-.')}-lead".replace(".", "-")
    service = cluster.apply(f"{core}/services/{name}", _service(name, identity, port, node_port, kept=bool(sources)))
    if sources:
        path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}"
        cluster.apply(path, _policy(name, identity, port, sources))
    inside = False
    if not address:
        address, inside = _address(cluster, pod)
    host = f"[{address}]" if ":" in address else address
    return Exposed(f"tcp://{host}:{service['spec']['ports'][0]['nodePort']}", name, identity, inside)


def identity_of(pod: Object) -> dict[str, str]:
    """The labels that select this pod alone.

    Raises:
        ConfigError: it has none of those that are known.
    """
    labels = pod["metadata"].get("labels", {})
    for keys in IDENTITIES:
        if all(key in labels for key in keys):
            return {key: labels[key] for key in keys}
    raise ConfigError(
        f"pod {pod['metadata']['name']} is of no Indexed Job and of no StatefulSet; "
        "say with --selector KEY=VALUE which labels are its alone"
    )


def _service(name: str, selector: Mapping[str, str], port: int, node_port: int | None, *, kept: bool) -> Object:
    entry: Object = {"name": "flux", "port": port, "targetPort": port, "protocol": "TCP"}
    if node_port is not None:
        entry["nodePort"] = node_port
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
        "spec": {
            "type": "NodePort",
            "selector": dict(selector),
            "externalTrafficPolicy": "Local" if kept else "Cluster",
            # a lead is up before it is ready: its followers wait for it
            "publishNotReadyAddresses": True,
            "ports": [entry],
        },
    }


def _policy(name: str, selector: Mapping[str, str], port: int, sources: Sequence[str]) -> Object:
    ours: Object = {"from": [{"podSelector": {}}]}
    peers = [{"ipBlock": {"cidr": cidr}} for cidr in sources]
    theirs: Object = {"from": peers, "ports": [{"port": port, "protocol": "TCP"}]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
        "spec": {
            "podSelector": {"matchLabels": dict(selector)},
            "policyTypes": ["Ingress"],
            "ingress": [ours, theirs],
        },
    }


def _address(cluster: Cluster, pod: Object) -> tuple[str, bool]:
    """An address of the lead's own node, and whether it is one of the inside."""
    node_name = pod["spec"].get("nodeName", "")
    if not node_name:
        raise ConfigError(f"pod {pod['metadata']['name']} is on no node yet; say with --address what followers dial")
    try:
        addresses = cluster.get(f"/api/v1/nodes/{node_name}")["status"].get("addresses", [])
    except AuthDenied as error:
        raise ConfigError(f"{error}; say with --address what followers dial, or let the account get nodes") from None
    found = {entry["type"]: entry["address"] for entry in reversed(addresses)}
    for kind in (*OUTSIDE, "InternalIP"):
        if kind in found:
            return found[kind], kind not in OUTSIDE
    raise ConfigError(f"node {node_name} has no address; say with --address what followers dial")
