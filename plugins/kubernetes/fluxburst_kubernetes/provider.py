"""The provider: an order's pods, watched rather than asked for."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from fluxburst.errors import InvalidOrder, ProviderError
from fluxburst.model import (
    Demand,
    Finding,
    NodeId,
    NodePhase,
    NodeReport,
    Offer,
    Order,
    PoolSpec,
    Refusal,
    RequestId,
    Severity,
    Shrink,
)
from fluxburst.provider import ProviderContext
from fluxburst.provider.protocol import options as read
from fluxburst_kubernetes import objects
from fluxburst_kubernetes.cluster import Cluster, by_kubeconfig
from fluxburst_kubernetes.jobs import Jobs
from fluxburst_kubernetes.miniclusters import MiniClusters
from fluxburst_kubernetes.mirror import Mirror
from fluxburst_kubernetes.objects import Claim, Machine, Object
from fluxburst_kubernetes.options import KubernetesOptions, NodeOptions, PodOptions
from fluxburst_kubernetes.probe import probe
from fluxburst_kubernetes.resize import Resize


class Workload(Protocol):
    """What an order is in the cluster: an Indexed Job of ours, or a MiniCluster of the Flux Operator, or more of one.

    ``needed`` is what it does in its namespace: API group, resource, verbs. It ``boots`` its pods with what an order
    brings; else somebody else has described them. The rest raises :class:`~fluxburst.errors.ProviderError`.
    """

    @property
    def shrink(self) -> Shrink: ...

    @property
    def in_blocks(self) -> bool: ...

    @property
    def boots(self) -> bool: ...

    @property
    def needed(self) -> Sequence[tuple[str, str, tuple[str, ...]]]: ...

    def place(self, order: Order, pool: PoolSpec, options: PodOptions) -> None:
        """Make an order; what of it is there already stays as it is."""

    def claims(self) -> list[Claim]:
        """All orders that may still get pods."""

    def pods(self) -> list[Object]:
        """All pods of orders, and those that orders have left behind, with their orders' tags."""

    def sweep(self, alive: Collection[RequestId]) -> None:
        """Remove what is of no use any more of orders that have no machine."""

    def withdraw(self, request_id: RequestId) -> None:
        """Remove an order with all that belongs to it."""

    def cut(self, request_id: RequestId, given: Collection[int], left: Collection[int]) -> None:
        """Remove the pods of the indexes ``given``, but for those ``left``."""

    def try_out(self, order: Order, pool: PoolSpec, options: PodOptions) -> None:
        """See whether the cluster would take it, without a change."""

    def close(self) -> None:
        """Let go of connections and threads."""


def build(context: ProviderContext) -> KubernetesProvider:
    """Raises :class:`~fluxburst.errors.ConfigError` where a table is wrong."""
    options = read(KubernetesOptions, context.options, f"provider.{context.name}")
    where = f"provider {context.name}"
    cluster = Cluster(where, by_kubeconfig(options, where), options.request_timeout)
    tables = {name: (pool.options, f"pool.{name}.options") for name, pool in context.pools.items()}
    workload: Workload
    if options.mode == "resize":
        # the MiniCluster says how its pods are made
        pools = {name: PodOptions(image="", **read(NodeOptions, *one).model_dump()) for name, one in tables.items()}
        workload = Resize(context, options.namespace, cluster)
    else:
        pools = {name: read(PodOptions, *one) for name, one in tables.items()}
        if options.workload == "minicluster":
            workload = MiniClusters(context, options.namespace, cluster, pools)
        else:
            workload = Jobs(context, options.namespace, cluster)
    return KubernetesProvider(context, options.namespace, pools, cluster, workload)


class KubernetesProvider:
    """Node ids are ``REQUEST_ID.HOST``. A pod whose broker left with status 0 has ended, and frees its machine."""

    def __init__(
        self,
        context: ProviderContext,
        namespace: str,
        pools: Mapping[str, PodOptions],
        cluster: Cluster,
        workload: Workload | None = None,
    ) -> None:
        self._context = context
        self._pools = pools
        self._cluster = cluster
        self._name_of_namespace = namespace
        self._namespace = f"/api/v1/namespaces/{namespace}"
        self._workload = workload or Jobs(context, namespace, cluster)
        self.shrink, self.in_blocks = self._workload.shrink, self._workload.in_blocks
        self._refusals = Mirror(
            self._cluster, f"{self._namespace}/events", fieldSelector="involvedObject.kind=Job,reason=FailedCreate"
        )
        self._lock = threading.Lock()
        self._released: set[NodeId] = set()
        """What was given back and is still listed: a Job may make a pod for it all the same, if it had none."""

    # What could be had

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        return [
            Offer(
                pool=name,
                provider=self._context.name,
                instance_type=self._pools[name].instance_type,
                cores=pool.cores,
                gpus=pool.gpus,
                usd_per_node_hour=pool.usd_per_node_hour,
                spot=self._pools[name].spot,
                join_s=self._pools[name].join_time,
            )
            for name, pool in self._context.pools.items()
        ]

    # Having it

    def launch(self, order: Order, /) -> None:
        self.admit(order)
        self.place(order, self._pools[order.pool])

    def admit(self, order: Order) -> None:
        """Raises :class:`~fluxburst.errors.InvalidOrder` where it can be seen without a request that it cannot go."""
        if order.pool not in self._pools:
            raise InvalidOrder(f"[pool.{order.pool}] is not in the configuration of provider {self._context.name}")
        if self._workload.boots and order.boot.curve_cert is None:
            raise InvalidOrder(
                "the service cannot read the lead's certificate, [bootstrap] curve_cert, which the pods need; "
                "run it as the instance's owner on the lead's machine"
            )

    def place(self, order: Order, options: PodOptions) -> None:
        """Make an admitted order; for providers built on this one."""
        self._workload.place(order, self._context.pools[order.pool], options)

    def list_nodes(self) -> Sequence[NodeReport]:
        machines = self.machines()
        with suppress(ProviderError):  # the next listing tries again
            self._workload.sweep({machine.request_id for machine in machines})
        return [machine.report() for machine in machines]

    def machines(self) -> list[Machine]:
        """What :meth:`list_nodes` reports, and where each is; for providers built on this one."""
        # pods first: an order that ends between the two looks takes no pod away that is still there
        pods, claims = self._workload.pods(), self._workload.claims()
        refusals = {
            event["involvedObject"]["name"]: str(event.get("message", ""))
            for event in sorted(self._refusals.objects(), key=_last_seen)
        }
        waits = {name: options.schedule_timeout for name, options in self._pools.items()}
        found = objects.machines(claims, pods, refusals, waits, time.time())
        listed = sorted(found, key=lambda machine: (machine.request_id, machine.index))
        with self._lock:
            self._released &= {machine.node_id for machine in listed}
            given = {machine.node_id for machine in listed if not machine.made} & self._released
        detail = "given back before its pod was made"
        return [
            replace(machine, phase=NodePhase.STOPPING, detail=detail) if machine.node_id in given else machine
            for machine in listed
        ]

    def release(self, node_ids: Collection[NodeId], /) -> None:
        """Remove these pods, and an order with its last one.

        A pod that is yet to be made is listed as stopping, and removed by a later call.
        """
        wanted = set(node_ids)
        left: dict[RequestId, list[int]] = defaultdict(list)
        given: dict[RequestId, list[int]] = defaultdict(list)
        for machine in self.machines():
            if machine.node_id in wanted:
                given[machine.request_id].append(machine.index)
            elif machine.phase is not NodePhase.STOPPING:
                left[machine.request_id].append(machine.index)
        with self._lock:
            self._released |= wanted
        for request_id, indexes in given.items():
            if left[request_id]:
                self._workload.cut(request_id, indexes, left[request_id])
            else:
                self._workload.withdraw(request_id)

    def close(self) -> None:
        self._workload.close()
        self._refusals.close()
        self._cluster.close()

    # Whether it could be had

    def check(self) -> Sequence[Finding]:
        try:
            version = self._cluster.get("/version")["gitVersion"]
        except ProviderError as error:
            return [Finding("cluster", Severity.ERROR, str(error), "mend what it says, then check again")]
        findings = [Finding("cluster", Severity.OK, f"Kubernetes {version} answers")]
        try:
            findings.append(self._check_permissions())
        except ProviderError as error:
            fix = "let the service's account make SelfSubjectAccessReviews, or ignore this"
            findings.append(Finding("permissions", Severity.WARNING, str(error), fix))
        return [*findings, *map(self._check_pool, self._pools)]

    def probe(self, connect: str) -> Sequence[Finding]:
        """A pod of each pool, one after the other, that dials the lead. Pods of the lead's own kind need none."""
        if not self._workload.boots:
            return []
        findings = []
        for name, options in self._pools.items():
            pool = self._context.pools[name]
            order = objects.sample_order(self._context, pool)
            # a MiniCluster's patch is none of a pod
            own = options if isinstance(self._workload, Jobs) else options.model_copy(update={"patch": {}})
            findings.append(probe(self._cluster, self._name_of_namespace, order, pool, own, connect))
        return findings

    def _check_permissions(self) -> Finding:
        """By SelfSubjectAccessReviews, as ``kubectl auth can-i`` asks."""
        namespace = self._name_of_namespace
        missing = [
            f"{verb} {resource}"
            for group, resource, verbs in self._workload.needed
            for verb in verbs
            if not self._may(namespace, group, resource, verb)
        ]
        if missing:
            fix = "a Role with these verbs, bound to the service's account; examples/kubernetes has one"
            told = f"in namespace {namespace} it may not {', '.join(missing)}"
            return Finding("permissions", Severity.ERROR, told, fix)
        return Finding("permissions", Severity.OK, f"it may do in namespace {namespace} all that it has to")

    def _may(self, namespace: str, group: str, resource: str, verb: str) -> bool:
        asked = {"namespace": namespace, "group": group, "resource": resource, "verb": verb}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = self._cluster.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    def _check_pool(self, name: str) -> Finding:
        """A dry run of an order of one node: schema, admission, and that the namespace is there."""
        pool = self._context.pools[name]
        order = objects.sample_order(self._context, pool)
        try:
            self._workload.try_out(order, pool, self._pools[name])
        except ProviderError as error:
            fix = f"mend [pool.{name}.options], or what the cluster does not admit"
            return Finding(f"pool {name}", Severity.ERROR, str(error), fix)
        return Finding(f"pool {name}", Severity.OK, "the cluster would take an order of it (dry run)")


def _last_seen(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")
