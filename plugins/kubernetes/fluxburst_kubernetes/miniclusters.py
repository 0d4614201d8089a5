"""An order as a MiniCluster of the Flux Operator, which makes its Job, its Service and its ConfigMap.

What the operator does is read from its sources of June 2026 (github.com/flux-framework/flux-operator, v1alpha2); the
names of files are given where it matters. It gives back only from an order's end, and its pods have their names from
the MiniCluster's: so an order takes a block of hosts, and the MiniCluster is called like the block.
"""

from __future__ import annotations

import math
import posixpath
import re
import shlex
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from fluxburst import bootkit
from fluxburst.errors import ConfigError, InvalidOrder, NoCapacity, ProviderUnavailable
from fluxburst.model import Order, PoolSpec, RequestId, Shrink
from fluxburst.provider import ProviderContext, blocks
from fluxburst_kubernetes import objects
from fluxburst_kubernetes.cluster import MERGE, AlreadyExists, Cluster, Conflict, NotFound
from fluxburst_kubernetes.merge import merge
from fluxburst_kubernetes.mirror import Mirror
from fluxburst_kubernetes.objects import Claim, Object
from fluxburst_kubernetes.options import PodOptions

OPERATOR_S = 60.0
"""A MiniCluster for which no operator has made a Job after so long will get none."""
_CERTIFICATE = "/mnt/flux/config/curve/curve.cert"
"""Where the operator's scripts have put it when the broker starts (templates/wait.sh)."""
_STOP = "/mnt/flux/fluxburst/stop"
_WATCH = """\
mkdir -p /mnt/flux/fluxburst/rc1.d
printf '%s\\n' '#!/bin/sh' 'kill -TERM -1' >/mnt/flux/fluxburst/stop
printf '%s\\n' '#!/bin/sh' ': >/mnt/flux/fluxburst/joined' >/mnt/flux/fluxburst/rc1.d/joined
chmod 700 /mnt/flux/fluxburst/stop /mnt/flux/fluxburst/rc1.d/joined
export FLUX_RC_EXTRA="/mnt/flux/fluxburst${{FLUX_RC_EXTRA:+:$FLUX_RC_EXTRA}}"
(sleep {lead_timeout}; [ -e /mnt/flux/fluxburst/joined ] || kill -TERM -1) &
true"""
"""As in the boot script: a broker that finds no lead is ended, with all in the pod but its first process, which is the
operator's script. That passes no signal on, so a pod that is deleted is ended in the same way (``preStopExec``)."""


class MiniClusters:
    """A :class:`~fluxburst_kubernetes.provider.Workload`.

    Raises:
        ConfigError: a pool's hosts are in no blocks, or an option is none that a MiniCluster can have.
    """

    shrink = Shrink.TAIL
    in_blocks = True
    boots = True
    needed = (
        ("flux-framework.org", "miniclusters", ("get", "list", "watch", "create", "patch", "delete")),
        ("batch", "jobs", ("list", "watch", "deletecollection")),
        ("", "pods", ("list", "watch", "delete", "deletecollection")),
        ("", "events", ("list", "watch")),
    )

    def __init__(
        self, context: ProviderContext, namespace: str, cluster: Cluster, pools: Mapping[str, PodOptions]
    ) -> None:
        for pool, found in blocks(context).items():
            for first in (block[0] for block in found if not block[0].endswith("-0")):
                begin = f"{first.rpartition('-')[0]}-0"
                raise ConfigError(f"[pool.{pool}] hosts: {first}: {begin} is missing before it, with which pods begin")
        for name, options in pools.items():
            require_possible(name, options)
        self._provider = context.name
        self._where = f"provider {context.name}"
        self._cluster = cluster
        self._path = f"/apis/flux-framework.org/v1alpha2/namespaces/{namespace}/miniclusters"
        self._jobs_path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._pods_path = f"/api/v1/namespaces/{namespace}/pods"
        mine = objects.selector(context.cluster, context.name)
        self._mirror = Mirror(cluster, self._path, labelSelector=mine)
        self._jobs = Mirror(cluster, self._jobs_path, labelSelector=mine)
        self._pods = Mirror(cluster, self._pods_path, labelSelector=mine)

    def place(self, order: Order, pool: PoolSpec, options: PodOptions) -> None:
        body = minicluster(order, pool, options, self._provider)
        name = body["metadata"]["name"]
        # it has the certificate inside
        found = self._make(body, private=True) or self._cluster.get(f"{self._path}/{name}")
        owner = found["metadata"].get("labels", {}).get(objects.ORDER, "somebody else")
        if owner != order.request_id:
            raise NoCapacity(f"{self._where}: MiniCluster {name} is there, of {owner}")
        if objects.is_going(found):
            raise ProviderUnavailable(f"{self._where}: MiniCluster {name} is being deleted")
        self._mirror.put(found)

    def _make(self, body: Object, *, private: bool = False, **query: str) -> Object | None:
        try:
            return self._cluster.create(self._path, body, private=private, **query)
        except AlreadyExists:
            return None
        except NotFound as error:
            raise InvalidOrder(
                f"{error}; MiniClusters need their namespace and the Flux Operator: install it by "
                'flux burst operator MANIFEST, or set workload = "job"'
            ) from None

    def claims(self) -> list[Claim]:
        jobs = {job["metadata"]["name"]: job for job in self._jobs.objects()}
        found = []
        for one in self._mirror.objects():
            if objects.HOSTS in one["metadata"].get("annotations", {}):
                job = jobs.get(one["metadata"]["name"])
                if job is None or not objects.has_ended(job):
                    found.append(_claim_of(one, job, time.time()))
        return found

    def pods(self) -> list[Object]:
        return self._pods.objects()

    def sweep(self, alive: Collection[RequestId]) -> None:
        """Nobody gives nodes back that ended by themselves."""
        ended = {job["metadata"]["name"] for job in self._jobs.objects() if objects.has_ended(job)}
        for one in self._mirror.objects():
            request_id = RequestId(one["metadata"]["labels"][objects.ORDER])
            if one["metadata"]["name"] in ended and request_id not in alive and not objects.is_going(one):
                self._delete(one)
        sizes = {one["metadata"]["name"]: one["spec"]["size"] for one in self._mirror.objects()}
        delete_cut_off(self._cluster, self._pods_path, self._pods.objects(), sizes)

    def withdraw(self, request_id: RequestId) -> None:
        """All that the operator has made for it goes with the MiniCluster; what that has left behind goes, too."""
        if mine := [one for one in self._mirror.objects() if one["metadata"]["labels"][objects.ORDER] == request_id]:
            for one in mine:
                self._delete(one)
            return
        these = f"{objects.ORDER}={request_id}"
        self._cluster.delete(self._jobs_path, labelSelector=these, propagationPolicy="Background")
        self._cluster.delete(self._pods_path, labelSelector=these)

    def _delete(self, one: Object) -> None:
        # this very one: by now its name may be another order's
        metadata = one["metadata"]
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": metadata["uid"]}}
        try:
            deleted = self._cluster.request("DELETE", f"{self._path}/{metadata['name']}", options)
        except (NotFound, Conflict):
            return
        if deleted["kind"] == "MiniCluster":
            self._mirror.put(deleted)

    def cut(self, request_id: RequestId, given: Collection[int], left: Collection[int]) -> None:
        """Make it smaller, as far as its end is given back; the operator has the Job follow (scale.go)."""
        size = max(left) + 1
        for one in self._mirror.objects():
            if one["metadata"]["labels"][objects.ORDER] == request_id and size < one["spec"]["size"]:
                path, smaller = f"{self._path}/{one['metadata']['name']}", {"spec": {"size": size}}
                self._mirror.put(self._cluster.request("PATCH", path, smaller, MERGE, fieldManager=objects.MANAGER))

    def try_out(self, order: Order, pool: PoolSpec, options: PodOptions) -> None:
        self._make(minicluster(order, pool, options, self._provider), dryRun="All")

    def close(self) -> None:
        for mirror in (self._mirror, self._jobs, self._pods):
            mirror.close()


def delete_cut_off(cluster: Cluster, pods_path: str, pods: Iterable[Object], sizes: Mapping[str, int]) -> None:
    """Delete pods that a MiniCluster has none of any more: a Job that shrinks ends pods, and leaves those that had run.

    ``sizes`` is by the MiniCluster's name, which is its Job's.
    """
    for pod in pods:
        name = pod["metadata"].get("labels", {}).get(objects.JOB, "")
        if objects.index_of(pod) >= sizes.get(name, math.inf) and objects.has_run(pod) and not objects.is_going(pod):
            cluster.delete(f"{pods_path}/{pod['metadata']['name']}")


def require_possible(pool: str, options: PodOptions) -> None:
    """Raises :class:`~fluxburst.errors.ConfigError` where a MiniCluster has no place for an option."""
    for name, is_set in (
        ("volumes", options.volumes),
        ("volume_mounts", options.volume_mounts),
        ("priority_class", options.priority_class),
        ("image_pull_secrets", len(options.image_pull_secrets) > 1),
    ):
        if is_set:
            fix = (
                "name one alone"
                if name == "image_pull_secrets"
                else "use patch, which is one of the MiniCluster's spec"
            )
            raise ConfigError(f"[pool.{pool}.options] {name}: a MiniCluster has no place for it; {fix}")


def minicluster(order: Order, pool: PoolSpec, options: PodOptions, provider: str) -> Object:
    """The order's MiniCluster of followers: no lead of its own, and no command.

    ``flux.brokerConfig`` stands for the whole configuration, and a worker's pod ends with its broker
    (``completeWorkers``): index 0's always does. The image has Flux itself, so the operator's own Flux is left out
    (``container.disable``).
    """
    certificate = "" if order.boot.curve_cert is None else order.boot.curve_cert.reveal().decode()
    broker_config = bootkit.with_certificate_at(order.boot.config_toml, _CERTIFICATE) if order.boot.config_toml else ""
    name = order.hosts[0].rpartition("-")[0]
    metadata = objects.metadata_of(order, options, provider)
    labels = objects.labels_of(order, provider)
    secret = {"imagePullSecret": options.image_pull_secrets[0]} if options.image_pull_secrets else {}
    requests, limits = objects.resources_of(pool, options)
    container: Object = {
        "name": "follower",
        "image": options.image,
        "runFlux": True,
        "environment": dict(options.env),
        "resources": {"requests": requests, **({"limits": limits} if limits else {})},
        "commands": {"pre": _WATCH.format(lead_timeout=f"{options.lead_timeout:g}")},
        "lifeCycle": {"preStopExec": _STOP},
        **secret,
    }
    if options.image_pull_policy:
        container["imagePullPolicy"] = options.image_pull_policy
    if directory := posixpath.dirname(options.flux):
        container["commands"]["init"] = f"export PATH={shlex.quote(directory)}:$PATH"
    spec: Object = {
        "size": len(order.hosts),
        "interactive": True,
        "logging": {"quiet": True},
        "jobLabels": labels,
        "network": {"headlessName": name},
        "flux": {
            "completeWorkers": True,
            # its scripts say -Stbon.fanout=256: flat up to 257 brokers only, and the lead is flat
            "topology": "kary:0",
            "brokerConfig": in_here_document(broker_config),
            "curveCert": certificate,
            "container": {"disable": True, "image": options.image, **secret},
        },
        "pod": {
            "labels": dict(options.labels),
            "annotations": dict(options.annotations),
            "nodeSelector": dict(options.node_selector),
            "tolerations": [dict(one) for one in options.tolerations],
            "serviceAccountName": options.service_account,
            "automountServiceAccountToken": bool(options.service_account),
        },
        "containers": [container],
    }
    if options.max_lifetime is not None:
        spec["deadlineSeconds"] = round(options.max_lifetime)
    spec = merge(spec, options.patch)
    pod = objects.tagged({"metadata": spec["pod"]}, order, provider)["metadata"]
    return {
        "apiVersion": "flux-framework.org/v1alpha2",
        "kind": "MiniCluster",
        "metadata": {**metadata, "name": name},
        "spec": {**spec, "pod": pod},
    }


def in_here_document(text: str) -> str:
    """Text that the operator's unquoted here-document (pkg/flux/view.go) writes as it was: POSIX shell, 2.7.4."""
    return re.sub(r"([\\$`])", r"\\\1", text)


def _claim_of(one: Object, job: Object | None, now: float) -> Claim:
    request_id, pool, hosts = objects.tags_of(one)
    name, labels, since = one["metadata"]["name"], one["spec"]["pod"]["labels"], objects.made_at(one)
    claim = Claim(name, request_id, pool, hosts[: one["spec"]["size"]], since, labels, going=objects.is_going(one))
    if job is not None:
        return replace(claim, over=objects.over_of(job))
    late = now - since > OPERATOR_S
    trouble = f"no Flux Operator has made a Job of MiniCluster {name} in {OPERATOR_S:g} s; is one running?"
    return replace(claim, trouble=trouble if late else "")
