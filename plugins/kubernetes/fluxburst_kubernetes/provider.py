"""The provider: one Indexed Job an order, watched rather than asked for."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fluxburst.errors import InvalidOrder, ProviderError, ProviderUnavailable
from fluxburst.model import (
    Demand,
    Finding,
    NodeId,
    NodePhase,
    NodeReport,
    Offer,
    Order,
    Refusal,
    RequestId,
    Severity,
    Shrink,
)
from fluxburst.provider import ProviderContext
from fluxburst.provider.protocol import options as read
from fluxburst_kubernetes import objects
from fluxburst_kubernetes.cluster import AlreadyExists, Cluster, NotFound, by_kubeconfig
from fluxburst_kubernetes.mirror import Mirror
from fluxburst_kubernetes.objects import Machine, Object
from fluxburst_kubernetes.options import KubernetesOptions, PodOptions

NEEDED = (
    ("batch", "jobs", ("get", "list", "watch", "create", "delete")),
    ("", "pods", ("list", "watch", "deletecollection")),
    ("", "secrets", ("create",)),
    ("", "services", ("create",)),
    ("", "events", ("list", "watch")),
)
"""What the provider does in its namespace: API group, resource, verbs."""


def build(context: ProviderContext) -> KubernetesProvider:
    """Raises :class:`~fluxburst.errors.ConfigError` where a table is wrong."""
    options = read(KubernetesOptions, context.options, f"provider.{context.name}")
    pools = {name: read(PodOptions, pool.options, f"pool.{name}.options") for name, pool in context.pools.items()}
    where = f"provider {context.name}"
    cluster = Cluster(where, by_kubeconfig(options, where), options.request_timeout)
    return KubernetesProvider(context, options.namespace, pools, cluster)


class KubernetesProvider:
    """Node ids are ``REQUEST_ID.HOST``. A pod whose broker left with status 0 has ended, and frees its machine."""

    shrink = Shrink.ANY

    def __init__(
        self, context: ProviderContext, namespace: str, pools: Mapping[str, PodOptions], cluster: Cluster
    ) -> None:
        self._context = context
        self._pools = pools
        self._cluster = cluster
        self._name_of_namespace = namespace
        self._namespace = f"/api/v1/namespaces/{namespace}"
        self._jobs_path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        mine = objects.selector(context.cluster, context.name)
        self._jobs = Mirror(self._cluster, self._jobs_path, labelSelector=mine)
        self._pods = Mirror(self._cluster, f"{self._namespace}/pods", labelSelector=mine)
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
        if order.boot.curve_cert is None:
            raise InvalidOrder(
                "the service cannot read the lead's certificate, [bootstrap] curve_cert, which the pods need; "
                "run it as the instance's owner on the lead's machine"
            )

    def place(self, order: Order, options: PodOptions) -> None:
        """Make an admitted order's three objects; those that are there already stay as they are.

        The Job comes first, as it owns the others; its pods wait the moment that these take. Where one of the others is
        refused, the Job goes again.
        """
        name = self._context.name
        job = objects.job(order, self._context.pools[order.pool], options, name)
        path = f"{self._jobs_path}/{job['metadata']['name']}"
        made = self._make(self._jobs_path, job)
        owner = made or self._cluster.get(path)
        if "deletionTimestamp" in owner["metadata"]:
            raise ProviderUnavailable(f"provider {name}: {job['metadata']['name']} is being deleted")
        self._jobs.put(owner)
        try:
            objects.require_single_tries(owner, f"provider {name}")
            self._make(f"{self._namespace}/secrets", objects.secret(order, options, name, owner), private=True)
            self._make(f"{self._namespace}/services", objects.service(order, options, name, owner))
        except ProviderUnavailable:
            raise
        except ProviderError:
            # a clear no, unless the Job is from before, with all that it needs
            if made is not None:
                self._delete_job(order.request_id)
            raise

    def _make(self, path: str, body: Object, **query: Any) -> Object | None:
        """The object as it was made, or None where there was one."""
        try:
            return self._cluster.create(path, body, **query)
        except AlreadyExists:
            return None
        except NotFound as error:
            raise InvalidOrder(str(error)) from None  # it is the namespace that is not there

    def list_nodes(self) -> Sequence[NodeReport]:
        """All of them; a Job that has ended, and whose pods were all given back, is deleted on the way.

        Nobody gives such a Job's nodes back any more: they ended one by one, or by themselves.
        """
        machines = self.machines()
        alive = {objects.name_of(machine.request_id) for machine in machines}
        for job in self._jobs.objects():
            metadata = job["metadata"]
            if objects.has_ended(job) and metadata["name"] not in alive and "deletionTimestamp" not in metadata:
                self._delete_job(metadata["labels"][objects.ORDER])
        return [machine.report() for machine in machines]

    def _delete_job(self, request_id: str) -> None:
        """Its pods, its Secret and its Service go with it; pods that it has left behind go, too."""
        path = f"{self._jobs_path}/{objects.name_of(request_id)}"
        deleted = self._cluster.delete(path, propagationPolicy="Foreground")
        if deleted is None:
            self._cluster.delete(f"{self._namespace}/pods", labelSelector=f"{objects.ORDER}={request_id}")
        elif deleted["kind"] == "Job":
            self._jobs.put(deleted)

    def machines(self) -> list[Machine]:
        """What :meth:`list_nodes` reports, and where each is; for providers built on this one."""
        # pods first: a Job that ends between the two looks takes no pod away that is still there
        pods, jobs = self._pods.objects(), self._jobs.objects()
        refusals = {
            event["involvedObject"]["name"]: str(event.get("message", ""))
            for event in sorted(self._refusals.objects(), key=_last_seen)
        }
        waits = {name: options.schedule_timeout for name, options in self._pools.items()}
        found = objects.machines(jobs, pods, refusals, waits, time.time())
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
        """Delete these pods, and an order's Job with its last one.

        A Job makes no other pod for one that was deleted: it may fail no index more than once. A pod that it has yet to
        make is listed as stopping, and deleted by a later call.
        """
        wanted = set(node_ids)
        left: dict[RequestId, int] = defaultdict(int)
        given: dict[RequestId, list[int]] = defaultdict(list)
        for machine in self.machines():
            if machine.node_id in wanted:
                given[machine.request_id].append(machine.index)
            elif machine.phase is not NodePhase.STOPPING:
                left[machine.request_id] += 1
        with self._lock:
            self._released |= wanted
        for request_id, indexes in given.items():
            if not left[request_id]:
                self._delete_job(request_id)
                continue
            some = ",".join(map(str, sorted(indexes)))
            these = f"{objects.ORDER}={request_id},{objects.INDEX} in ({some})"
            self._cluster.delete(f"{self._namespace}/pods", labelSelector=these)

    def close(self) -> None:
        for mirror in (self._jobs, self._pods, self._refusals):
            mirror.close()
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

    def _check_permissions(self) -> Finding:
        """By SelfSubjectAccessReviews, as ``kubectl auth can-i`` asks."""
        namespace = self._name_of_namespace
        missing = [
            f"{verb} {resource}"
            for group, resource, verbs in NEEDED
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
        job = objects.job(order, pool, self._pools[name], self._context.name)
        try:
            if made := self._make(self._jobs_path, job, dryRun="All"):
                objects.require_single_tries(made, f"provider {self._context.name}")
        except ProviderError as error:
            fix = f"mend [pool.{name}.options], or what the cluster does not admit"
            return Finding(f"pool {name}", Severity.ERROR, str(error), fix)
        return Finding(f"pool {name}", Severity.OK, "the cluster would take an order of it (dry run)")


def _last_seen(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")
