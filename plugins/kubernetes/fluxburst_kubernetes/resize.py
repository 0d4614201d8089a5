"""An order as more of the MiniCluster that the lead itself is in, up to its ``maxSize``: bursting at home.

The Flux Operator declares ``maxSize`` hosts to Flux and starts ``size`` of them (June 2026: pkg/flux/view.go), and has
the Job follow when ``size`` changes (controllers/flux/scale.go). So the pods need nothing of us, and one order at a
time is the range after the size that the MiniCluster has by itself. Whose that is, is written on the MiniCluster.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fluxburst.errors import ConfigError, InvalidOrder, NoCapacity, ProviderUnavailable
from fluxburst.model import Host, Order, PoolSpec, RequestId, Shrink
from fluxburst.provider import ProviderContext, blocks
from fluxburst_kubernetes import objects
from fluxburst_kubernetes.cluster import MERGE, Cluster, NotFound
from fluxburst_kubernetes.miniclusters import delete_cut_off
from fluxburst_kubernetes.mirror import Mirror
from fluxburst_kubernetes.objects import Claim, Object
from fluxburst_kubernetes.options import PodOptions

_SINCE = "fluxburst/created-at"


@dataclass(frozen=True, slots=True)
class _Growth:
    """The order that a MiniCluster has grown for, at the latest. ``hosts`` is all that it has with it, from 0 up."""

    request_id: RequestId
    pool: str
    hosts: tuple[Host, ...]
    since: float
    labels: dict[str, str]


class Resize:
    """A :class:`~fluxburst_kubernetes.provider.Workload`.

    Raises:
        ConfigError: there are several pools, or the pool's hosts are no single block, or begin at 0.
    """

    shrink = Shrink.TAIL
    in_blocks = True
    boots = False
    needed = (
        ("flux-framework.org", "miniclusters", ("get", "list", "watch", "patch")),
        ("", "pods", ("list", "watch", "delete")),
        ("", "events", ("list", "watch")),
    )

    def __init__(self, context: ProviderContext, namespace: str, cluster: Cluster) -> None:
        self._where = f"provider {context.name}"
        self._tags = {objects.CLUSTER: context.cluster, objects.PROVIDER: context.name}
        first = _first_of_only_block(context)
        self.name, self._home = first.rpartition("-")[0], _index(first)
        self._cluster = cluster
        collection = f"/apis/flux-framework.org/v1alpha2/namespaces/{namespace}/miniclusters"
        self._path = f"{collection}/{self.name}"
        self._pods_path = f"/api/v1/namespaces/{namespace}/pods"
        self._mirror = Mirror(cluster, collection, fieldSelector=f"metadata.name={self.name}")
        self._pods = Mirror(cluster, self._pods_path, labelSelector=f"{objects.JOB}={self.name}")

    def place(self, order: Order, pool: PoolSpec, options: PodOptions) -> None:
        grown = self._grown_for(order)
        if grown is None:
            return
        if left := [pod["metadata"]["name"] for pod in self._pods.objects() if objects.index_of(pod) >= self._home]:
            raise ProviderUnavailable(f"{self._where}: pods of the order before are still there: {', '.join(left)}")
        self._mirror.put(self._patch(grown))

    def try_out(self, order: Order, pool: PoolSpec, options: PodOptions) -> None:
        grown = self._grown_for(order, also_now=True)
        if grown is not None:
            self._patch(grown, dryRun="All")

    def _grown_for(self, order: Order, *, also_now: bool = False) -> Object | None:
        """What to change for an order; None where that has been done. ``also_now``: while another order has it."""
        try:
            one = self._cluster.get(self._path)
        except NotFound as error:
            raise InvalidOrder(f"{error}; [pool.{order.pool}] hosts are those of a MiniCluster {self.name}") from None
        if objects.is_going(one):
            raise ProviderUnavailable(f"{self._where}: MiniCluster {self.name} is being deleted")
        size, growth = one["spec"]["size"], self._growth(one)
        if size != self._home and growth is not None:
            if growth.request_id == order.request_id or also_now:
                return None
            raise NoCapacity(f"{self._where}: MiniCluster {self.name} has grown for {growth.request_id}")
        if size != self._home:
            raise InvalidOrder(
                f"{self._where}: MiniCluster {self.name} has size {size}, and [pool.{order.pool}] hosts begin at "
                f"{self.name}-{self._home}; let them begin at {self.name}-{size}, or give it back the size {self._home}"
            )
        wanted = _index(order.hosts[-1]) + 1
        most = one.get("status", {}).get("maximumSize") or max(size, one["spec"].get("maxSize", 0))
        if wanted > most:
            raise InvalidOrder(
                f"{self._where}: MiniCluster {self.name} can have {most} pods at the most, and {order.hosts[-1]} would "
                f"be the {wanted}th; make it with a larger maxSize, or declare fewer hosts in [pool.{order.pool}]"
            )
        annotations = {
            **self._tags,
            objects.POOL: order.pool,
            objects.ORDER: order.request_id,
            objects.HOSTS: ",".join(f"{self.name}-{index}" for index in range(wanted)),
            _SINCE: datetime.fromtimestamp(order.created_at, UTC).isoformat(timespec="seconds"),
        }
        # of the object as it was seen: who comes second is told so
        metadata = {"annotations": annotations, "resourceVersion": one["metadata"]["resourceVersion"]}
        return {"metadata": metadata, "spec": {"size": wanted}}

    def claims(self) -> list[Claim]:
        found = []
        for one in self._mirror.objects():
            growth, size = self._growth(one), one["spec"]["size"]
            if growth is not None and size > self._home:
                hosts, own = growth.hosts[:size], frozenset(range(self._home))
                going = objects.is_going(one)
                found.append(
                    Claim(self.name, growth.request_id, growth.pool, hosts, growth.since, growth.labels, own, "", going)
                )
        return found

    def pods(self) -> list[Object]:
        """Those that it has grown by, as if they had been made for their order."""
        growth = next(filter(None, map(self._growth, self._mirror.objects())), None)
        if growth is None:
            return []
        return [_tagged(pod, growth) for pod in self._pods.objects() if objects.index_of(pod) >= self._home]

    def sweep(self, alive: Collection[RequestId]) -> None:
        """What is cut off, and had ended before."""
        sizes = {one["metadata"]["name"]: one["spec"]["size"] for one in self._mirror.objects()}
        delete_cut_off(self._cluster, self._pods_path, self.pods(), sizes)

    def withdraw(self, request_id: RequestId) -> None:
        """Its tags stay until the next order's: they say whose the pods are that are still to end."""
        self._shrink(request_id, self._home)

    def cut(self, request_id: RequestId, given: Collection[int], left: Collection[int]) -> None:
        self._shrink(request_id, max(left) + 1)

    def _shrink(self, request_id: RequestId, size: int) -> None:
        for one in self._mirror.objects():
            growth = self._growth(one)
            if growth is not None and growth.request_id == request_id and size < one["spec"]["size"]:
                self._mirror.put(self._patch({"spec": {"size": size}}))

    def _patch(self, change: Object, **query: Any) -> Object:
        return self._cluster.request("PATCH", self._path, change, MERGE, fieldManager=objects.MANAGER, **query)

    def _growth(self, one: Object) -> _Growth | None:
        """What it has grown for, if that was for us."""
        told = one["metadata"].get("annotations", {})
        if self._tags.items() <= told.items():
            labels = {key: told[key] for key in (objects.CLUSTER, objects.PROVIDER, objects.POOL, objects.ORDER)}
            since = datetime.fromisoformat(told[_SINCE]).timestamp()
            hosts = tuple(map(Host, told[objects.HOSTS].split(",")))
            return _Growth(RequestId(told[objects.ORDER]), told[objects.POOL], hosts, since, labels)
        return None

    def close(self) -> None:
        self._mirror.close()
        self._pods.close()


def _first_of_only_block(context: ProviderContext) -> Host:
    found = blocks(context)
    if len(found) != 1:
        raise ConfigError(
            f'[provider.{context.name}] mode = "resize" is for one pool, as there is one MiniCluster to grow; '
            f"it has {', '.join(sorted(found)) or 'none'}"
        )
    ((name, (block, *others)),) = found.items()
    fix = 'declare one range after its own size, such as "lead-[4-15]" for MiniCluster lead of size 4'
    if others:
        raise ConfigError(f"[pool.{name}] hosts: a MiniCluster has one name, not {len(others) + 1}; {fix}")
    if _index(block[0]) == 0:
        raise ConfigError(f"[pool.{name}] hosts: {block[0]} is the lead's own; {fix}")
    return block[0]


def _index(host: Host) -> int:
    return int(host.rpartition("-")[2])


def _tagged(pod: Object, growth: _Growth) -> Object:
    metadata = pod["metadata"]
    annotations = {**metadata["annotations"], objects.HOSTS: ",".join(growth.hosts)}
    labels = {**metadata.get("labels", {}), **growth.labels}
    return {**pod, "metadata": {**metadata, "labels": labels, "annotations": annotations}}
