"""What an order becomes, and how a machine is read back from it. Pure; dictionaries as the API server takes them.

An order is an Indexed Job whose pod of index i is the order's host i. Its Secret and its headless Service are owned by
the Job, so that the Job's end is the end of all. Names derive from the request id, so that the same order is the same
objects.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fluxburst import bootkit, hostlist
from fluxburst.errors import InvalidOrder
from fluxburst.model import BootMaterial, Host, NodeId, NodePhase, NodeReport, Offer, Order, PoolSpec, RequestId
from fluxburst.provider import ProviderContext
from fluxburst_kubernetes.merge import merge
from fluxburst_kubernetes.options import PodOptions

Object = dict[str, Any]

MANAGER = "fluxburst"
"""The field manager of what is applied, and the value of app.kubernetes.io/managed-by."""
CLUSTER, PROVIDER, POOL, ORDER = (f"fluxburst/{name}" for name in ("cluster", "provider", "pool", "order"))
HOSTS = "fluxburst/hosts"
"""The annotation with an order's hosts (RFC 29), the first of which is index 0's, whatever their order."""
INDEX = "batch.kubernetes.io/job-completion-index"
"""Both label and annotation of an Indexed Job's pods."""
JOB = "job-name"
"""The label of a Job's pods."""
LATE_S = 30.0
"""A pod that is to be deleted, and is still there so long after its grace, will not end of itself."""
KEPT_S = 600
"""So long a Job that has ended stays, so that what it says can be read, if nobody gives it back before."""

_GIVEN = "/etc/fluxburst"
_PRIVATE = "/run/fluxburst"
_CERTIFICATE = f"{_PRIVATE}/curve.cert"
_ENTRY = f"""\
(umask 077 && cp {_GIVEN}/curve.cert {_CERTIFICATE}) && exec /bin/sh {_GIVEN}/boot.sh
"""
"""Flux refuses a certificate that others may read, and a Secret's files belong to root. The broker's umask is its jobs'
umask, so it stays as it was."""

_NOT_PULLED = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"})
"""Reasons for which a container waits that time may mend, unless the registry has said one of these words."""
_NEVER_PULLED = ("not found", "notfound", "manifest unknown", "denied", "unauthorized", "authorization", "forbidden")
_BROKEN_IMAGE = frozenset(
    {"InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "SignatureValidationFailed", *_NOT_PULLED}
)
_BROKEN = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"})
"""Reasons that time alone does not mend (kubelet's container and image errors)."""


def name_of(request_id: str) -> str:
    return f"fluxburst-{request_id}"


def selector(cluster: str, provider: str) -> str:
    """The label selector of all objects of one provider table."""
    return f"{CLUSTER}={cluster},{PROVIDER}={provider}"


def job(order: Order, pool: PoolSpec, options: PodOptions, provider: str) -> Object:
    """The order's Job: no pod is replaced, as what replaces a lost node is for the planner to say."""
    count = len(order.hosts)
    spec: Object = {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": count,
        "backoffLimitPerIndex": 0,
        "podReplacementPolicy": "Failed",
        "ttlSecondsAfterFinished": KEPT_S,
        "template": tagged(merge(_template(order, pool, options), options.patch), order, provider),
    }
    if options.max_lifetime is not None:
        spec["activeDeadlineSeconds"] = round(options.max_lifetime)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata_of(order, options, provider), "spec": spec}


def secret(order: Order, options: PodOptions, provider: str, owner: Object) -> Object:
    """What the pods need: the follower's configuration, the certificate, and the script that runs the broker."""
    assert order.boot.curve_cert is not None, "launch has seen to it"
    script = bootkit.boot_script(
        options.flux,
        f"{_GIVEN}/broker.toml",
        order.hosts,
        "JOB_COMPLETION_INDEX",
        _PRIVATE,
        options.retries,
        log="/dev/stdout",
        lead_timeout_s=options.lead_timeout,
    )
    files = {
        "boot.sh": script.encode(),
        "broker.toml": bootkit.with_certificate_at(order.boot.config_toml, _CERTIFICATE).encode(),
        "curve.cert": order.boot.curve_cert.reveal(),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata_of(order, options, provider, owner),
        "type": "Opaque",
        "immutable": True,
        "data": {name: b64encode(content).decode() for name, content in files.items()},
    }


def service(order: Order, options: PodOptions, provider: str, owner: Object) -> Object:
    """Gives each pod a name in the cluster's DNS, from its start on, for jobs whose processes look for each other."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata_of(order, options, provider, owner),
        "spec": {"clusterIP": "None", "selector": {ORDER: order.request_id}, "publishNotReadyAddresses": True},
    }


def metadata_of(order: Order, options: PodOptions, provider: str, owner: Object | None = None) -> Object:
    created = datetime.fromtimestamp(order.created_at, UTC).isoformat(timespec="seconds")
    metadata: Object = {
        "name": name_of(order.request_id),
        "labels": labels_of(order, provider),
        "annotations": {HOSTS: ",".join(order.hosts), "fluxburst/created-at": created},
    }
    if options.max_lifetime is not None:
        expires = datetime.fromtimestamp(order.created_at + options.max_lifetime, UTC).isoformat(timespec="seconds")
        metadata["annotations"]["fluxburst/expires-at"] = expires
    if owner is not None:
        metadata["ownerReferences"] = [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
                "controller": True,
            }
        ]
    return metadata


def labels_of(order: Order, provider: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "flux-follower",
        "app.kubernetes.io/managed-by": MANAGER,
        CLUSTER: order.cluster,
        PROVIDER: provider,
        POOL: order.pool,
        ORDER: order.request_id,
    }


def resources_of(pool: PoolSpec, options: PodOptions) -> tuple[dict[str, str], dict[str, str]]:
    """A pod's requests and limits: all of a machine but half a core, for what that runs itself."""
    gpus = {options.gpu_resource: str(pool.gpus)} if pool.gpus else {}
    return options.requests or {"cpu": f"{pool.cores * 1000 - 500}m", **gpus}, options.limits or gpus


def tagged(template: Object, order: Order, provider: str) -> Object:
    """With the order's own labels and annotations, over the site's: what counts machines must not depend on these."""
    metadata = template.get("metadata", {})
    labels = {**metadata.get("labels", {}), **labels_of(order, provider)}
    annotations = {**metadata.get("annotations", {}), HOSTS: ",".join(order.hosts)}
    return {**template, "metadata": {**metadata, "labels": labels, "annotations": annotations}}


def _template(order: Order, pool: PoolSpec, options: PodOptions) -> Object:
    requests, limits = resources_of(pool, options)
    name = name_of(order.request_id)
    container: Object = {
        "name": "follower",
        "image": options.image,
        "command": ["/bin/sh", "-c", _ENTRY],
        "env": [{"name": key, "value": value} for key, value in options.env.items()],
        "resources": {"requests": requests, **({"limits": limits} if limits else {})},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "given", "mountPath": _GIVEN, "readOnly": True},
            {"name": "private", "mountPath": _PRIVATE},
            *options.volume_mounts,
        ],
    }
    if options.image_pull_policy:
        container["imagePullPolicy"] = options.image_pull_policy
    spec: Object = {
        "restartPolicy": "Never",
        "subdomain": name,
        "automountServiceAccountToken": bool(options.service_account),
        "terminationGracePeriodSeconds": round(options.grace),
        "containers": [container],
        "volumes": [
            # readable by whomever the image runs as; nobody else is in the pod
            {"name": "given", "secret": {"secretName": name, "defaultMode": 0o444}},
            {"name": "private", "emptyDir": {"medium": "Memory"}},
            *options.volumes,
        ],
    }
    if not options.share_nodes:
        mates = {"labelSelector": {"matchLabels": {"app.kubernetes.io/managed-by": MANAGER}}}
        apart = {**mates, "topologyKey": "kubernetes.io/hostname", "namespaceSelector": {}}
        spec["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    if options.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret_name} for secret_name in options.image_pull_secrets]
    for key, value in (
        ("serviceAccountName", options.service_account),
        ("nodeSelector", options.node_selector),
        ("tolerations", list(options.tolerations)),
        ("priorityClassName", options.priority_class),
    ):
        if value:
            spec[key] = value
    return {"metadata": {"labels": dict(options.labels), "annotations": dict(options.annotations)}, "spec": spec}


# Reading back


@dataclass(frozen=True, slots=True)
class Machine:
    """One host of an order. ``index`` is its pod's, and so are ``labels``.

    ``node`` is the cluster's node that its pod is bound to, empty while it has no place. ``since`` is when the pod, or
    the Job that is to make it, was made, by the API server's clock. ``made`` says that there is a pod; ``over`` that
    nothing of it runs any more, or should by now.
    """

    request_id: RequestId
    pool: str
    host: Host
    index: int
    phase: NodePhase
    detail: str = ""
    node: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    since: float = 0.0
    made: bool = False
    over: bool = False

    @property
    def node_id(self) -> NodeId:
        return NodeId(f"{self.request_id}.{self.host}")

    def report(self) -> NodeReport:
        return NodeReport(self.node_id, self.pool, self.request_id, self.host, self.phase, self.detail)


@dataclass(frozen=True, slots=True)
class Claim:
    """An order as the cluster has it: what makes its pods, and which it will still make.

    ``name`` is that of the Job that makes them, ``over`` the indexes of which it makes no more. ``trouble`` is why none
    are to come; empty while all may. ``since`` is when it was made, by the API server's clock. It is ``going`` while it
    is being deleted.
    """

    name: str
    request_id: RequestId
    pool: str
    hosts: tuple[Host, ...]
    since: float
    labels: Mapping[str, str]
    over: frozenset[int] = frozenset()
    trouble: str = ""
    going: bool = False


def claim_of(job: Object) -> Claim | None:
    """An order's Job; None where it makes no more pods, or is somebody else's."""
    if HOSTS not in job["metadata"].get("annotations", {}) or has_ended(job):
        return None
    request_id, pool, hosts = tags_of(job)
    labels = job["spec"]["template"]["metadata"]["labels"]
    name, going = job["metadata"]["name"], is_going(job)
    return Claim(name, request_id, pool, hosts, made_at(job), labels, over_of(job), going=going)


def over_of(job: Object) -> frozenset[int]:
    """The indexes of which a Job makes no more pods."""
    status = job.get("status", {})
    return frozenset({*_indexes(status.get("completedIndexes", "")), *_indexes(status.get("failedIndexes", ""))})


def machines(
    claims: Iterable[Claim], pods: Iterable[Object], refusals: Mapping[str, str], waits: Mapping[str, float], now: float
) -> Iterator[Machine]:
    """Every machine that exists or is still to come.

    A pod that has the labels that select it and no annotations of ours was made by somebody else, and is left out; so
    is one that is no host's, as somebody else has made its Job larger.

    Args:
        claims: All orders.
        pods: All their pods, and those that orders have left behind.
        refusals: Why a pod of a Job could not be made of late, by the Job's name.
        waits: By pool, how many seconds a pod may wait for what time may mend.
        now: POSIX seconds.
    """
    there: set[tuple[str, int]] = set()
    for pod in pods:
        if HOSTS in pod["metadata"].get("annotations", {}) and 0 <= index_of(pod) < len(tags_of(pod)[2]):
            machine = _of_pod(pod, waits, now)
            there.add((machine.request_id, machine.index))
            yield machine
    for claim in claims:
        why = claim.trouble or refusals.get(claim.name, "")
        late = now - claim.since > waits.get(claim.pool, 0.0)
        hopeless = claim.trouble or "forbidden" in why or (why and late)
        phase = NodePhase.FAILED if hopeless else NodePhase.STARTING
        if claim.going:
            # it stays until its pods are gone, which may be there and not yet be known
            phase, why = NodePhase.STOPPING, "its order is being deleted"
        for index, host in enumerate(claim.hosts):
            if index not in claim.over and (claim.request_id, index) not in there:
                detail = why or "its pod is to be made"
                yield Machine(
                    claim.request_id, claim.pool, host, index, phase, detail, labels=claim.labels, since=claim.since
                )


def has_ended(job: Object) -> bool:
    """Whether a Job makes no more pods: all have succeeded or failed."""
    conditions = job.get("status", {}).get("conditions", ())
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)


def is_going(found: Object) -> bool:
    """Whether it is being deleted, and with it what belongs to it."""
    return "deletionTimestamp" in found["metadata"]


def require_single_tries(job: Object, where: str) -> None:
    """Raises :class:`~fluxburst.errors.InvalidOrder` where the server has dropped what it does not know.

    Its Jobs then make a pod for each that is given back.
    """
    if job["spec"].get("backoffLimitPerIndex") != 0:
        raise InvalidOrder(f"{where}: the cluster does not keep a Job's backoffLimitPerIndex; Kubernetes 1.29 does")


def tags_of(found: Object) -> tuple[RequestId, str, tuple[Host, ...]]:
    """Whose it is: its order, pool, and the order's hosts."""
    metadata = found["metadata"]
    hosts = tuple(Host(host) for host in hostlist.expand(metadata["annotations"][HOSTS]))
    return RequestId(metadata["labels"][ORDER]), metadata["labels"][POOL], hosts


def _indexes(text: str) -> Iterator[int]:
    """Kubernetes' form of index sets: ``0,2-4``."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def host_of(pod: Object) -> Host:
    """The host that a pod of ours is."""
    _, _, hosts = tags_of(pod)
    return hosts[index_of(pod)]


def index_of(pod: Object) -> int:
    """-1 where it is no pod of an Indexed Job, whatever its labels say."""
    return int(pod["metadata"].get("annotations", {}).get(INDEX, -1))


def _of_pod(pod: Object, waits: Mapping[str, float], now: float) -> Machine:
    request_id, pool, _ = tags_of(pod)
    phase, detail = phase_of(pod, waits.get(pool, 0.0), now)
    return Machine(
        request_id,
        pool,
        host_of(pod),
        index_of(pod),
        phase,
        detail,
        node=pod["spec"].get("nodeName", ""),
        labels=pod["metadata"]["labels"],
        since=made_at(pod),
        made=True,
        over=_is_late(pod, now) or has_run(pod),
    )


def _is_late(pod: Object, now: float) -> bool:
    """A deletion's time is when its grace ends; on a node that hangs, the pod stays beyond that."""
    due = pod["metadata"].get("deletionTimestamp")
    return due is not None and now > datetime.fromisoformat(due).timestamp() + LATE_S


def has_run(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def made_at(found: Object) -> float:
    """POSIX seconds, by the API server's clock."""
    return datetime.fromisoformat(found["metadata"]["creationTimestamp"]).timestamp()


def phase_of(pod: Object, wait_s: float, now: float) -> tuple[NodePhase, str]:
    """What a pod is as a machine, and why, in the cluster's own words.

    Args:
        pod: As the server has it.
        wait_s: How many seconds it may wait for what time may mend.
        now: POSIX seconds.
    """
    status, deleted = pod.get("status", {}), is_going(pod)
    if status.get("phase") == "Failed":
        # told before all else: why it failed is what its deletion must not hide
        return (NodePhase.STOPPING if deleted else NodePhase.FAILED), _why(status)
    if deleted:
        return NodePhase.STOPPING, ""
    if status.get("phase") == "Succeeded":
        return NodePhase.STOPPING, "its broker left with status 0"
    late = now - made_at(pod) > wait_s
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting", {})
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _BROKEN_IMAGE or reason in _BROKEN:
            what = f"image {container['image']}" if reason in _BROKEN_IMAGE else f"container {container['name']}"
            hopeful = reason in _NOT_PULLED and not late and not any(word in message.lower() for word in _NEVER_PULLED)
            return NodePhase.STARTING if hopeful else NodePhase.FAILED, f"{what}: {reason}: {message}".rstrip(": ")
    if status.get("phase") == "Running":
        return NodePhase.RUNNING, ""
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            phase = NodePhase.FAILED if late else NodePhase.STARTING
            return phase, f"Unschedulable: {condition.get('message', '')}"
    return NodePhase.STARTING, ""


def _why(status: Object) -> str:
    """Why a pod failed, in the cluster's own words."""
    told = [f"{status.get('reason', '')}: {status.get('message', '')}".strip(": ")]
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        ended = container.get("state", {}).get("terminated", {})
        if ended.get("exitCode"):
            last = (ended.get("message") or "").strip().splitlines()[-1:]
            told.append(
                f"{ended.get('reason', 'ended')} with status {ended['exitCode']}: {' '.join(last)}".rstrip(": ")
            )
    return "; ".join(filter(None, told)) or "its pod failed, and nothing says why"


def probe_template(order: Order, pool: PoolSpec, options: PodOptions, command: Sequence[str]) -> Object:
    """The template of a pod like the pool's, that runs another command, needs no room, and nothing of an order."""
    template = merge(_template(order, pool, options), options.patch)
    spec = template["spec"]
    ours = ("given", "private")
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] not in ours]
    for key in ("affinity", "subdomain"):
        spec.pop(key, None)
    for container in spec["containers"]:
        if container["name"] == "follower":
            container["command"] = list(command)
            container["resources"] = {}
            mounts = container["volumeMounts"]
            container["volumeMounts"] = [mount for mount in mounts if mount["name"] not in ours]
    return template


def sample_order(context: ProviderContext, pool: PoolSpec) -> Order:
    """An order of one node, for dry runs."""
    offer = Offer(pool.name, context.name, "pod", pool.cores)
    boot = BootMaterial(config_toml="", curve_cert_path="")
    return Order(RequestId("b-check"), context.cluster, pool.name, pool.hosts[:1], offer, boot, created_at=0.0)
