"""The provider: an order's pods by the kubernetes provider, and under them a node group of the size that they need."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from fluxburst.errors import (
    AuthDenied,
    ConfigError,
    InvalidOrder,
    NoCapacity,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
)
from fluxburst.model import (
    Demand,
    Finding,
    Host,
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
from fluxburst_eks import checks
from fluxburst_eks.access import by_eks, describe
from fluxburst_eks.aws import Aws
from fluxburst_eks.groups import Group, Groups, name_of
from fluxburst_eks.options import EksOptions, EksPodOptions
from fluxburst_eks.prices import Prices
from fluxburst_eks.sizing import shrinking
from fluxburst_eks.types import Types
from fluxburst_kubernetes import objects
from fluxburst_kubernetes.cluster import Cluster
from fluxburst_kubernetes.mirror import Mirror
from fluxburst_kubernetes.options import PodOptions
from fluxburst_kubernetes.provider import KubernetesProvider


def build(context: ProviderContext) -> EksProvider:
    """Raises :class:`~fluxburst.errors.ConfigError` where a table is wrong."""
    options = read(EksOptions, context.options, f"provider.{context.name}")
    pools = {name: read(EksPodOptions, pool.options, f"pool.{name}.options") for name, pool in context.pools.items()}
    for name, pool in pools.items():
        if len(called := name_of(context, name, pool)) > 63:
            raise ConfigError(
                f"[pool.{name}.options] node_group: {called!r} is longer than 63 characters; set a shorter"
            )
    where = f"provider {context.name}"
    aws = Aws(where, options)
    cluster = Cluster(where, by_eks(aws, options.cluster), options.request_timeout)
    return EksProvider(context, options, pools, aws, cluster)


_LIVE = (NodePhase.STARTING, NodePhase.RUNNING)


@dataclass(frozen=True, slots=True)
class _View:
    """A pool at one moment: its machines in the words of the pods, and of the node group."""

    group: Group
    on: Mapping[str, tuple[objects.Machine, ...]]
    """The pods on each instance, by its id."""
    waiting: tuple[objects.Machine, ...]
    """Those that have no node, or one of which nothing is known yet."""

    @property
    def held(self) -> frozenset[str]:
        """The instances that pods need: the group may not list the newest yet."""
        return frozenset(self.on.keys() - self.group.leaving)

    @property
    def unbound(self) -> tuple[objects.Machine, ...]:
        """The pods that wait for a machine, the oldest first. One whose machine is gone waits for none."""
        unbound = (machine for machine in self.waiting if not machine.node)
        return tuple(sorted(unbound, key=lambda machine: (machine.since, machine.request_id, machine.index)))

    @property
    def is_idle(self) -> bool:
        return not self.on and not self.waiting


class EksProvider:
    """Node ids are those of the kubernetes provider; a machine of which no pod is known goes by its instance id."""

    shrink = Shrink.ANY

    def __init__(
        self,
        context: ProviderContext,
        options: EksOptions,
        pools: Mapping[str, EksPodOptions],
        aws: Aws,
        cluster: Cluster,
    ) -> None:
        self._context = context
        self._options = options
        self._pools = pools
        self._aws = aws
        self._cluster = cluster
        self._groups = Groups(aws, options.cluster, context, pools)
        self._types = Types(aws)
        self._prices = Prices(aws, time.monotonic)
        on_nodes = {name: self._on_its_nodes(name, pool) for name, pool in pools.items()}
        self._pods = KubernetesProvider(context, options.namespace, on_nodes, cluster)
        mine = objects.selector(context.cluster, context.name)
        self._nodes = Mirror(cluster, "/api/v1/nodes", labelSelector=mine)
        self._lock = threading.Lock()
        """Held while pods and sizes are looked at together: a launch under way has pods, and not yet their nodes."""
        self._carried: dict[str, objects.Machine] = {}
        """What was last seen on each instance, whose pod may go before it does."""
        self._given_back: set[NodeId] = set()
        """Pods that were released and are still listed: none needs room, but on the machine where it still runs."""

    def _on_its_nodes(self, name: str, pool: EksPodOptions) -> PodOptions:
        """The pool's pods, bound to its node group, and let through to it."""
        toleration = {"key": objects.POOL, "operator": "Equal", "value": name, "effect": "NoSchedule"}
        return pool.model_copy(
            update={
                "node_selector": {**pool.node_selector, **self._groups.labels_of(name)},
                "tolerations": (*pool.tolerations, toleration),
            }
        )

    # What could be had

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        return [self._offer(name) for name in self._pools]

    def _offer(self, name: str) -> Offer | Refusal:
        pool, options = self._context.pools[name], self._pools[name]
        kind, spot = options.instance_types[0], options.capacity == "spot"
        cores, gpus, memory_bytes, model = pool.cores, pool.gpus, None, ""
        try:
            shape = self._types.of(kind)
        except InvalidOrder as error:
            return Refusal(name, self._context.name, str(error))
        except AuthDenied:
            pass  # what burst.toml says has to do; `check` tells that it could not be compared
        else:
            cores, gpus, memory_bytes, model = shape.cores, shape.gpus, shape.memory_bytes, shape.gpu_model
        usd = pool.usd_per_node_hour
        if usd is None:
            usd = self._prices.spot(options) if spot else self._prices.on_demand(kind)
        return Offer(
            pool=name,
            provider=self._context.name,
            instance_type=kind,
            cores=cores,
            gpus=gpus,
            usd_per_node_hour=usd,
            spot=spot,
            region=self._aws.region,
            join_s=options.join_time,
            memory_bytes=memory_bytes,
            gpu_model=model,
        )

    # Having it

    def launch(self, order: Order, /) -> None:
        """Make the order's pods, then room for them: the size follows from the pods that there are.

        The same order again finds its pods there, and so comes to the same size. Where room could not be made yet, each
        listing goes on with it.
        """
        if order.pool not in self._pools:
            raise InvalidOrder(f"[pool.{order.pool}] is not in the configuration of provider {self._context.name}")
        with self._lock:
            self._be_usable(order.pool)
            self._pods.launch(order)
            try:
                self._make_room(order.pool)
            except ProviderUnavailable:
                raise
            except ProviderError:
                # a clear no: nothing must be left that would be bought for later
                self._release([pod.node_id for pod in self._pods.machines() if pod.request_id == order.request_id])
                raise

    def _be_usable(self, pool: str) -> None:
        """See to it that the pool's node group can be used, or made, before any pod is.

        Raises:
            InvalidOrder: see :meth:`Groups.of`.
            NoCapacity: it failed, and has nodes in use.
            ProviderUnavailable: not now.
        """
        group = self._groups.of(pool)
        if group is None:
            if (status := describe(self._aws, self._options.cluster)["status"]) not in ("ACTIVE", "UPDATING"):
                told = f"cluster {self._options.cluster} is {status}; node groups are made as soon as it is ACTIVE"
                raise ProviderUnavailable(f"{self._aws.where}: {told}")
            return
        if group.status == "CREATE_FAILED":
            # EKS does not mend it; the next try makes it anew
            if not self._view(group, self._of_pool(pool)).is_idle:
                why = self._groups.trouble(pool, group).whole
                told = f"node group {group.name}: {why}; it is made anew when none of its nodes is in use"
                raise NoCapacity(f"{self._aws.where}: {told}")
            self._groups.delete(group)
        if group.status in ("CREATE_FAILED", "DELETING", "DELETE_FAILED"):
            told = f"node group {group.name} is {group.status}; it is made anew as soon as it is deleted"
            raise ProviderUnavailable(f"{self._aws.where}: {told}")

    def _make_room(self, pool: str) -> None:
        """A machine for each pod that waits for one, beside those that pods have.

        Raises:
            ProviderUnavailable: not yet, or the outcome is not known.
            ProviderError: there will be none.
        """
        group, spec = self._groups.of(pool), self._context.pools[pool]
        machines = self._of_pool(pool)
        if group is not None:
            view = self._view(group, machines)
            self._groups.grow(spec, group, len(view.held) + len(view.unbound))
        elif waiting := sorted(machine.request_id for machine in machines if machine.phase in _LIVE):
            self._groups.create(spec, len(waiting), waiting[0])

    def _view(self, group: Group, machines: Sequence[objects.Machine]) -> _View:
        """Compare pods and instances by way of the nodes.

        A pod on a node that is not known (yet, or any more) counts as one that waits: its machine must not be taken for
        an empty one.
        """
        instance_of = {node["metadata"]["name"]: _instance(node) for node in self._nodes.objects()}
        on: dict[str, list[objects.Machine]] = defaultdict(list)
        waiting = []
        for machine in machines:
            instance = instance_of.get(machine.node, "")
            if instance:
                on[instance].append(machine)
            elif machine.phase in _LIVE:
                waiting.append(machine)
        return _View(group, {instance: tuple(pods) for instance, pods in on.items()}, tuple(waiting))

    def _views(self) -> dict[str, _View]:
        """Each pool that has a node group, with the pods that stay."""
        groups = self._groups.all()
        # the pods last: one that was made meanwhile must not find its machine given back
        by_pool: dict[str, list[objects.Machine]] = defaultdict(list)
        for machine in self._staying():
            by_pool[machine.pool].append(machine)
        return {pool: self._view(group, by_pool[pool]) for pool, group in groups.items()}

    def _staying(self) -> list[objects.Machine]:
        machines = self._pods.machines()
        self._given_back &= {machine.node_id for machine in machines}
        return [
            machine
            for machine in machines
            if machine.node_id not in self._given_back or (machine.node and not machine.over)
        ]

    def _of_pool(self, pool: str) -> list[objects.Machine]:
        return [machine for machine in self._staying() if machine.pool == pool]

    def list_nodes(self) -> Sequence[NodeReport]:
        """Every pod, every machine that had one until it is gone, and every machine that is of no use to any.

        Goes on with what a launch has left to be done: the service may have ended in the middle of one.
        """
        with self._lock:
            reports = {report.node_id: report for report in self._pods.list_nodes()}
            views = self._views()
            self._remember(views)
            refused = {pool: why for pool in self._pools if (why := self._go_on(pool, views.get(pool)))}
            homeless = [machine for pool in refused.keys() - views.keys() for machine in self._of_pool(pool)]
        for machine in homeless:
            reports[machine.node_id] = replace(machine.report(), phase=NodePhase.FAILED, detail=refused[machine.pool])
        for pool, view in views.items():
            for machine, why in self._not_coming(pool, view, refused.get(pool, "")):
                reports[machine.node_id] = replace(machine.report(), phase=NodePhase.FAILED, detail=why)
            for report in self._without_pods(pool, view):
                reports.setdefault(report.node_id, report)
        return list(reports.values())

    def _remember(self, views: Mapping[str, _View]) -> None:
        there = {machine.id for view in views.values() for machine in view.group.machines}
        for view in views.values():
            for instance, pods in view.on.items():
                self._carried[instance] = max(pods, key=lambda pod: pod.phase in _LIVE)
        for instance in self._carried.keys() - there:
            del self._carried[instance]

    def _go_on(self, pool: str, view: _View | None) -> str:
        """Make the room that is lacking. Returns why there will be none; empty where it is made, or may be yet."""
        try:
            if view is None:
                self._make_room(pool)
            elif view.group.is_settled:
                self._groups.grow(self._context.pools[pool], view.group, len(view.held) + len(view.unbound))
        except (ProviderUnavailable, RateLimited):
            return ""
        except ProviderError as error:
            return str(error)
        return ""

    def _not_coming(self, pool: str, view: _View, refused: str) -> list[tuple[objects.Machine, str]]:
        """The pods for which there will be no machine, with the reason."""
        empty = sum(instance not in view.on for instance in view.group.alive)
        lacking = view.unbound[empty:]
        if not lacking:
            return []
        if refused:
            return [(machine, refused) for machine in lacking]
        try:
            trouble = self._groups.trouble(pool, view.group)
        except ProviderError:
            return []  # no reason is known; the nodes are not to be missing for that
        return [(machine, why) for machine in lacking if (why := trouble.since(machine.since))]

    def _without_pods(self, pool: str, view: _View) -> list[NodeReport]:
        """What is there, or will come, and costs money without being of use to a pod."""
        reports, to_come = [], len(view.waiting)
        for machine in view.group.machines:
            if machine.id in view.on:
                continue
            last = self._carried.get(machine.id)
            if last is not None:
                detail = f"its pod is gone, its machine {machine.id} is not"
                reports.append(NodeReport(last.node_id, pool, last.request_id, last.host, NodePhase.STOPPING, detail))
            elif machine.leaving:
                reports.append(_nameless(pool, machine.id, NodePhase.STOPPING, "it is about to end"))
            elif to_come:
                to_come -= 1
            else:
                reports.append(_nameless(pool, machine.id, NodePhase.RUNNING, f"no pod for it in {view.group.name}"))
        surplus = view.group.desired - len(view.held.union(view.group.alive)) - to_come
        for number in range(surplus):
            detail = f"{view.group.name} is to have it, and no pod waits for it"
            reports.append(_nameless(pool, f"{view.group.name}.{number}", NodePhase.STARTING, detail))
        return reports

    def release(self, node_ids: Collection[NodeId], /) -> None:
        """Delete these pods, and give back all machines that are of no use to any other, once nothing runs on them."""
        refused: list[ProviderError] = []
        with self._lock:
            self._release(node_ids)
            for pool, view in self._views().items():
                try:
                    self._give_back(pool, view)
                except ProviderError as error:
                    refused.append(error)  # what is wrong with one node group must not keep the others
        if refused:
            raise refused[0]

    def _release(self, node_ids: Collection[NodeId]) -> None:
        self._pods.release(node_ids)
        self._given_back.update(node_ids)

    def _give_back(self, pool: str, view: _View) -> None:
        group = view.group
        if group.status == "DELETING":
            return
        if view.is_idle and (
            group.status == "CREATE_FAILED" or (group.desired and not self._pools[pool].keep_node_group)
        ):
            self._groups.delete(group)
            return
        todo = shrinking(group.desired, group.alive, view.held, len(view.waiting), group.protected)
        if todo.size == 0:
            self._groups.empty(group)
            return
        if todo.give_back:
            self._groups.give_back(group, todo.give_back)
        if todo.size is not None:
            self._groups.set_size(group, todo.size, todo.protect)

    def close(self) -> None:
        self._nodes.close()
        self._pods.close()
        self._aws.close()

    # Whether it could be had

    def probe(self, connect: str) -> Sequence[Finding]:
        """On machines that are there: none is bought for it."""
        return self._pods.probe(connect)

    def check(self) -> Sequence[Finding]:
        findings = checks.account(self._aws, self._options)
        if findings[-1].severity is Severity.ERROR:
            return findings
        findings += checks.pools(self._aws, self._context, self._pools, self._groups, self._types)
        return [*findings, *checks.nodes(self._cluster), *self._pods.check()]


def _instance(node: objects.Object) -> str:
    """The EC2 instance that a node is, of ``aws:///ZONE/INSTANCE``; empty until the cloud has told it."""
    return str(node["spec"].get("providerID", "")).rpartition("/")[2]


def _nameless(pool: str, name: str, phase: NodePhase, detail: str) -> NodeReport:
    return NodeReport(NodeId(name), pool, RequestId(""), Host(name), phase, detail)
