"""A lead that is a pod, made reachable for followers outside its cluster: a NodePort Service, and whom it lets in."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from fluxburst.errors import AuthDenied, ConfigError
from fluxburst_kubernetes.cluster import Cluster, NotFound, by_kubeconfig
from fluxburst_kubernetes.objects import MANAGER, Object
from fluxburst_kubernetes.options import LABEL_NAME, Duration, KubernetesOptions, Table

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


class NodePort(Table):
    """``[lead.options]`` for ``[lead] expose = "nodeport"``, and the options of ``flux burst expose``."""

    pod: str = Field(default_factory=socket.gethostname)
    """The lead's pod; by default this host."""
    namespace: str = Field(default="default", pattern=LABEL_NAME, max_length=63)
    kubeconfig: Path | None = None
    context: str = ""
    port: int = Field(default=8050, ge=1, le=65535)
    """The port that the lead binds."""
    node_port: int | None = Field(default=None, ge=1, le=65535)
    """The port of the nodes; by default the cluster chooses one, and keeps it."""
    address: str = ""
    """What followers dial; by default the external address of the lead's node."""
    selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the lead's pod alone; by default those of an Indexed Job's or a StatefulSet's pod."""
    sources: tuple[str, ...] = ()
    """CIDRs: let only these in, by a NetworkPolicy."""
    request_timeout: Duration = 15.0


def expose(wanted: NodePort, where: str = "expose") -> Exposed:
    """Make the lead's NodePort Service, or make it so, and find the address to dial.

    With ``sources`` a NetworkPolicy lets only these, and the lead's own namespace, reach the port; the Service then
    keeps their addresses as they are, and is served by the lead's own node alone.

    Raises:
        ConfigError: the pod is not there, or nothing tells it from others.
        ProviderError: the API server refuses.
    """
    way = KubernetesOptions(kubeconfig=wanted.kubeconfig, context=wanted.context)
    cluster = Cluster(where, by_kubeconfig(way, where), wanted.request_timeout)
    try:
        return _expose(cluster, wanted)
    finally:
        cluster.close()


def _expose(cluster: Cluster, wanted: NodePort) -> Exposed:
    core = f"/api/v1/namespaces/{wanted.namespace}"
    try:
        pod = cluster.get(f"{core}/pods/{wanted.pod}")
    except NotFound as error:
        raise ConfigError(f"{error}; say which pod is the lead, and in which namespace") from None
    identity = dict(wanted.selector) or identity_of(pod)
    name = f"{wanted.pod[:50].rstrip('-.')}-lead".replace(".", "-")
    service = cluster.apply(f"{core}/services/{name}", _service(name, identity, wanted))
    if wanted.sources:
        path = f"/apis/networking.k8s.io/v1/namespaces/{wanted.namespace}/networkpolicies/{name}"
        cluster.apply(path, _policy(name, identity, wanted.port, wanted.sources))
    address, inside = (wanted.address, False) if wanted.address else _address(cluster, pod)
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
        "say by selector which labels are its alone"
    )


def _service(name: str, selector: Mapping[str, str], wanted: NodePort) -> Object:
    entry: Object = {"name": "flux", "port": wanted.port, "targetPort": wanted.port, "protocol": "TCP"}
    if wanted.node_port is not None:
        entry["nodePort"] = wanted.node_port
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
        "spec": {
            "type": "NodePort",
            "selector": dict(selector),
            "externalTrafficPolicy": "Local" if wanted.sources else "Cluster",
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
        raise ConfigError(f"pod {pod['metadata']['name']} is on no node yet; say by address what followers dial")
    try:
        addresses = cluster.get(f"/api/v1/nodes/{node_name}")["status"].get("addresses", [])
    except AuthDenied as error:
        raise ConfigError(f"{error}; say by address what followers dial, or let the account get nodes") from None
    found = {entry["type"]: entry["address"] for entry in reversed(addresses)}
    for kind in (*OUTSIDE, "InternalIP"):
        if kind in found:
            return found[kind], kind not in OUTSIDE
    raise ConfigError(f"node {node_name} has no address; say by address what followers dial")
