"""The provider: machines bought by node pools, and followers as pods on them.

Buying is by size: a node pool is made as large as the orders need that exist, never by adding, so that the same order
again buys nothing. Giving back is by name: of a smaller size GKE chooses the victims itself, so machines go one by one
through their managed instance group, as those of GKE's own autoscaler do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fluxburst.errors import InvalidOrder, NoCapacity, ProviderError, ProviderUnavailable, QuotaExceeded, Scope
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
from fluxburst_gke import firewall
from fluxburst_gke import pools as layout
from fluxburst_gke.errors import told
from fluxburst_gke.google import Cluster as GkeCluster
from fluxburst_gke.google import Google, NodePool, Operation
from fluxburst_gke.options import FirewallOptions, GkeOptions, GkePodOptions, region_of, short
from fluxburst_gke.pools import NODE_POOL, Look, Place
from fluxburst_kubernetes.cluster import Cluster
from fluxburst_kubernetes.objects import Machine
from fluxburst_kubernetes.provider import KubernetesProvider

JOIN_S = 180.0
"""From an order to a broker that is up, until there are samples: a machine's boot and an image's pull."""
SOLD_OUT_S = 300.0
"""So long nothing is bought of what was sold out or beyond the quota, as GKE told it of an order that it had taken."""
UNOWNED = RequestId("b-nobody")
"""Of machines that nobody knows the order of."""
RUNS = ("RUNNING", "RECONCILING", "DEGRADED")
"""States of a cluster whose API server answers."""
NEEDED = (
    "container.clusters.get",
    "container.clusters.update",
    "container.operations.get",
    "container.operations.list",
    "compute.instanceGroupManagers.get",
    "compute.instanceGroupManagers.update",
    "compute.machineTypes.get",
)
"""The permissions on the project, beside those inside the cluster."""
NEEDED_TO_CREATE = ("container.clusters.create",)
NEEDED_TO_OPEN = (
    "compute.firewalls.get",
    "compute.firewalls.create",
    "compute.firewalls.update",
    "compute.networks.updatePolicy",
)
"""With ``[provider.NAME.firewall]``."""


def build(context: ProviderContext) -> GkeProvider:
    """Raises :class:`~fluxburst.errors.ConfigError` where a table is wrong."""
    options = read(GkeOptions, context.options, f"provider.{context.name}")
    pools = {name: read(GkePodOptions, pool.options, f"pool.{name}.options") for name, pool in context.pools.items()}
    places = layout.places(context, options, pools)
    where = f"provider {context.name}"
    google = Google(options, options.gke_cluster or short(f"fluxburst-{context.cluster}"), where)
    cluster = Cluster(where, google.access(), options.request_timeout)
    # what the base makes by itself is the dry run of a check
    shown = {place.pool: layout.on(place, pools[place.pool], context.cluster) for place in places.values()}
    pods = KubernetesProvider(context, options.namespace, shown, cluster)
    return GkeProvider(context, options, pools, places, google, pods)


@dataclass
class _Memory:
    """What is known of one node pool beside what Google and the cluster tell. It may be lost with the process.

    Attributes:
        lock: Is held while its size or its machines are decided on.
        operation: That which makes it larger, until its end is known. None: not asked yet what was begun before.
        size: What it makes the node pool.
        trouble: What the last one failed of.
        trouble_at: When that was seen.
        given_back: The names of machines that were asked to go, until they are no longer listed.
        owners: By machine, whose it was last.
        owed: Those that were released before it was known which machine would be theirs.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: bool = False
    operation: str = ""
    size: int = 0
    trouble: ProviderError | None = None
    trouble_at: float = 0.0
    given_back: set[str] = field(default_factory=set)
    owners: dict[str, Machine] = field(default_factory=dict)
    owed: dict[NodeId, Machine] = field(default_factory=dict)


class GkeProvider:
    """Node ids are ``REQUEST_ID.HOST``; a machine whose order nobody knows any more is ``b-nobody.NAME``.

    What a node pool has to have is worked out anew from its pods and its machines at each call. A machine is listed
    until its group no longer has it: under its order's name while that is known, else as nobody's, so that the
    controller gives it back.
    """

    shrink = Shrink.ANY

    def __init__(
        self,
        context: ProviderContext,
        options: GkeOptions,
        pools: Mapping[str, GkePodOptions],
        places: Mapping[str, Place],
        google: Google,
        pods: KubernetesProvider,
    ) -> None:
        self._context = context
        self._options = options
        self._pools = pools
        self._places = places
        self._google = google
        self._pods = pods
        self._where = f"provider {context.name}"
        self._cluster = options.gke_cluster or short(f"fluxburst-{context.cluster}")
        self._memories: dict[str, _Memory] = {}
        self._opened = options.firewall is None
        """Whether the lead can be reached, as far as that is for us to see to."""

    # What could be had

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        return list(map(self._offer, self._places.values()))

    def _offer(self, place: Place) -> Offer | Refusal:
        pool, pod = self._context.pools[place.pool], self._pools[place.pool]
        memory = self._memory(place.node_pool)
        if refused := _refused(memory):
            return Refusal(place.pool, self._context.name, str(refused), memory.trouble_at + SOLD_OUT_S)
        return Offer(
            pool=place.pool,
            provider=self._context.name,
            instance_type=pod.machine_type,
            cores=pool.cores,
            gpus=pool.gpus,
            usd_per_node_hour=pool.usd_per_node_hour,
            spot=pod.spot,
            zone=place.zone,
            region=region_of(place.zone),
            join_s=JOIN_S if pod.join_time is None else pod.join_time,
            gpu_model=pod.accelerator_type,
        )

    # Having it

    def launch(self, order: Order, /) -> None:
        """Have the node pool made as large as all orders need, then place this one's pods.

        In this order: what GKE refuses leaves no pods, and without its pods an order is asked for again.
        """
        self._pods.admit(order)
        self._open_way()
        place = layout.place_of(self._places, order.pool, order.offer.zone)
        memory = self._memory(place.node_pool)
        with memory.lock:
            view = self._buy(place, memory, order)
            avoid = [instance.name for instance in view.leaving]
            self._pods.place(order, layout.on(place, self._pools[place.pool], self._context.cluster, avoid))

    def _open_way(self) -> None:
        """Let pods reach the lead, if the site asks for it: nothing is bought before that may be done."""
        wanted = self._options.firewall
        if self._opened or wanted is None:
            return
        found = self._google.cluster()
        if found is not None:  # else it is made first, and the order asked for again
            rule = firewall.rule(self._context, self._options.project, wanted, found.pods)
            self._opened = firewall.open_to(self._google, self._context, self._where, rule)

    def _buy(self, place: Place, memory: _Memory, order: Order) -> Look:
        """What there was before."""
        name = place.node_pool
        found = self._google.node_pool(name)
        if found is None:
            self._require_cluster()
        view = self._look(name, found, memory)
        waiting = len(view.waiting)
        if all(machine.request_id != order.request_id for machine in view.machines):
            if refused := _refused(memory):
                raise refused
            waiting += len(order.hosts)
        if not waiting:
            return view  # all that it bought has been, and is not bought again
        if found is None:
            spec, pod = self._context.pools[place.pool], self._pools[place.pool]
            begun = self._google.create_node_pool(layout.node_pool(place, pod, spec, self._context, waiting))
            if begun is None:
                raise ProviderUnavailable(f"{self._where}: node pool {name} has come up meanwhile", scope=Scope.POOL)
            _begin(memory, begun, waiting)
            return view
        self._require_ours(found)
        if found.status == "STOPPING":
            raise ProviderUnavailable(f"{self._where}: node pool {name} is being deleted", scope=Scope.POOL)
        # what is on its way may be missing from a listing: the group's own number knows of it
        size = max(view.there, self._google.size(found.groups))
        wanted = view.busy + waiting
        if wanted > size and not (self._grows(name, memory) and wanted <= memory.size):
            _begin(memory, self._google.set_size(name, wanted), wanted)
        return view

    def _require_cluster(self) -> None:
        """Raises ProviderError while there is no cluster that node pools could be made in."""
        found = self._google.cluster()
        if found is None and not self._options.manage_cluster:
            raise InvalidOrder(
                f"{self._where}: there is no GKE cluster {self._cluster} in {self._options.location}; "
                "create it, name another, or set manage_cluster = true"
            )
        if found is None:
            self._google.create_cluster(layout.cluster(self._cluster, self._options, self._context))
            raise ProviderUnavailable(f"{self._where}: GKE cluster {self._cluster} is being created")
        if found.status not in RUNS:
            raise ProviderUnavailable(f"{self._where}: GKE cluster {self._cluster} is {found.status} {found.told}")

    def _require_ours(self, found: NodePool) -> None:
        if not layout.is_for_followers(found.labels, self._context):
            raise InvalidOrder(
                f"{self._where}: node pool {found.name} was not made by this provider, which leaves it as it is; "
                "give the pool another name by node_pool"
            )

    def _memory(self, node_pool: str) -> _Memory:
        return self._memories.setdefault(node_pool, _Memory())

    def _look(self, node_pool: str, found: NodePool | None, memory: _Memory) -> Look:
        """What there is of a node pool, remembered where it has to be."""
        machines = [machine for machine in self._pods.machines() if machine.labels.get(NODE_POOL) == node_pool]
        instances = [] if found is None else self._google.instances(found.groups)
        memory.given_back &= {instance.name for instance in instances}
        view = layout.look(machines, instances, memory.given_back)
        memory.owners = {
            instance.name: view.had[instance.name][-1] if instance.name in view.had else memory.owners[instance.name]
            for instance in instances
            if instance.name in view.had or instance.name in memory.owners
        }
        return view

    def _grows(self, node_pool: str, memory: _Memory) -> bool:
        """Whether an operation on it goes on; what one failed of is remembered."""
        if not memory.asked:
            under_way = [one for one in self._google.operations() if one.node_pool == node_pool and not one.done]
            memory.operation = memory.operation or (under_way[-1].name if under_way else "")
            memory.asked = True
        if not memory.operation:
            return False
        operation = self._google.operation(memory.operation)
        if operation.done:
            memory.operation = ""
            if operation.error is not None:
                _remember(memory, operation.error)
        return not operation.done

    # What there is

    def list_nodes(self) -> Sequence[NodeReport]:
        pools = self._node_pools()
        if pools is None:
            return []
        reports: list[NodeReport] = []
        for found in pools:
            memory = self._memory(found.name)
            with memory.lock:
                reports += self._reports(found, memory)
        known = {found.name for found in pools}
        for machine in self._pods.machines():
            name = machine.labels.get(NODE_POOL, "")
            if name not in known:
                reports.append(self._homeless(machine, name))
        return reports

    def _node_pools(self) -> list[NodePool] | None:
        """Those that are ours. None where there is no cluster and so nothing.

        Raises:
            ProviderError: nobody knows; or the cluster that burst.toml names is not there, which may be a mistake.
        """
        found = self._google.node_pools()
        if found is not None:
            ours = [one for one in found if layout.is_for_followers(one.labels, self._context)]
            if not ours and self._options.manage_cluster:
                cluster = self._google.cluster()
                return None if cluster is None or cluster.status == "PROVISIONING" else ours
            return ours
        if self._options.manage_cluster:
            return None
        raise ProviderUnavailable(f"{self._where}: there is no GKE cluster {self._cluster}; mend gke_cluster, location")

    def _homeless(self, machine: Machine, node_pool: str) -> NodeReport:
        """One whose node pool is not there: not yet, or not any more."""
        memory = self._memory(node_pool)
        with memory.lock:
            if machine.phase is not NodePhase.STARTING or self._grows(node_pool, memory):
                return machine.report()
        why = str(memory.trouble or f"there is no node pool {node_pool}".strip())
        return replace(machine, phase=NodePhase.FAILED, detail=why).report()

    def _reports(self, found: NodePool, memory: _Memory) -> Iterator[NodeReport]:
        grows = self._grows(found.name, memory)
        view = self._look(found.name, found, memory)
        hopeless = self._hopeless(found, memory, view, grows)
        leaving = {instance.name for instance in view.leaving}
        for machine in view.machines:
            if machine.node_id in hopeless:
                told_so = replace(machine, phase=NodePhase.FAILED, detail=str(memory.trouble))
                yield told_so.report()
            elif machine.node in leaving and machine.phase is not NodePhase.FAILED:
                yield _stopping(machine)
            else:
                yield machine.report()
        # a group's own number knows of machines that its listing does not show yet
        odd = memory.owed or not view.machines
        comes = grows or (odd and self._google.size(found.groups) > view.there)
        yield from self._left_over(found, memory, view, bool(comes))

    @staticmethod
    def _hopeless(found: NodePool, memory: _Memory, view: Look, grows: bool) -> set[NodeId]:
        """The machines that will not come, for the reason that is remembered."""
        lacking = len(view.waiting) - view.hopeful - view.ended
        if lacking <= 0:
            return set()
        trouble = next((instance.trouble for instance in view.free if instance.trouble), "")
        if not trouble and memory.trouble is None and not grows and found.status in ("ERROR", "RUNNING_WITH_ERROR"):
            trouble = found.told
        if trouble:
            _remember(memory, told(trouble))
        return set() if memory.trouble is None else {machine.node_id for machine in view.waiting[-lacking:]}

    @staticmethod
    def _left_over(found: NodePool, memory: _Memory, view: Look, comes: bool) -> Iterator[NodeReport]:
        """What is there, or may still come, although no pod of ours says so."""
        pool = found.labels.get(layout.OWNED_POOL, "")
        nameless = 0
        for instance in (*view.surplus, *(one for one in view.leaving if one.name not in view.had)):
            owner = memory.owners.get(instance.name)
            if owner is not None:
                yield _stopping(owner)
            elif nameless < len(memory.owed):
                nameless += 1  # one of those below
            else:
                node_id, host = NodeId(f"{UNOWNED}.{instance.name}"), Host(instance.name)
                yield NodeReport(node_id, pool, UNOWNED, host, NodePhase.STOPPING)
        if not comes and (not view.waiting or len(view.free) <= len(view.waiting)):
            # no more comes of what they were owed
            for node_id in list(memory.owed)[nameless:]:
                del memory.owed[node_id]
        yield from map(_stopping, memory.owed.values())
        if comes and not view.machines and not memory.owed:
            # nobody has asked for it: this has somebody look again
            node_id, host = NodeId(f"{UNOWNED}.{found.name}"), Host(found.name)
            yield NodeReport(node_id, pool, UNOWNED, host, NodePhase.STARTING, "its node pool still grows")

    # Giving it back

    def release(self, node_ids: Collection[NodeId], /) -> None:
        """Give these machines back, and those that nobody has, then their pods: a pod says whose its machine is."""
        wanted = frozenset(node_ids)
        pools = self._node_pools()
        if pools is None:
            return
        for found in pools:
            memory = self._memory(found.name)
            with memory.lock:
                self._give_back(found, memory, wanted)
        known = {found.name for found in pools}
        homeless = [machine for machine in self._pods.machines() if machine.labels.get(NODE_POOL, "") not in known]
        if gone := [machine.node_id for machine in homeless if machine.node_id in wanted]:
            self._pods.release(gone)

    def _give_back(self, found: NodePool, memory: _Memory, wanted: Collection[NodeId]) -> None:
        view = self._look(found.name, found, memory)
        waiting = [machine for machine in view.waiting if machine.node_id not in wanted]
        released = [machine for machine in view.machines if machine.node_id in wanted]
        victims = set() if waiting else {instance.name for instance in view.free}
        for machine in released:
            if not machine.node:
                memory.owed[machine.node_id] = machine
            elif machine.node in view.had and not _passed_on(machine, view.had[machine.node], wanted, waiting):
                victims.add(machine.node)
        victims -= {instance.name for instance in view.leaving}
        if victims:
            self._delete(view, memory, victims)
        going = victims | {instance.name for instance in view.leaving}
        # a pod that runs keeps its machine from pods that wait, until that is no node any more
        kept = {one.node_id for one in released if waiting and one.node in going and one.phase is NodePhase.RUNNING}
        if pods := [machine.node_id for machine in released if machine.node_id not in kept]:
            self._pods.release(pods)

    def _delete(self, view: Look, memory: _Memory, victims: Collection[str]) -> None:
        self._google.delete_instances([instance for instance in view.instances if instance.name in victims])
        memory.given_back |= set(victims)
        memory.size = min(memory.size, view.there - len(victims))
        for name in victims:
            if name not in memory.owners and memory.owed:
                memory.owners[name] = memory.owed.pop(next(iter(memory.owed)))

    def close(self) -> None:
        self._pods.close()
        self._google.close()

    # Whether it could be had

    def probe(self, connect: str) -> Sequence[Finding]:
        """On machines that are there: none is bought for it."""
        return self._pods.probe(connect)

    def check(self) -> Sequence[Finding]:
        try:
            self._google.token()
        except ProviderError as error:
            return [Finding("credentials", Severity.ERROR, str(error), "mend what it says, then check again")]
        findings = [Finding("credentials", Severity.OK, "Google gives access tokens for them")]
        findings.append(self._check_permissions())
        findings += map(self._check_machine_type, self._places.values())
        try:
            cluster, node_pools = self._google.cluster(), self._google.node_pools() or ()
        except ProviderError as error:
            fix = "mend what it says, then check again"
            return [*findings, Finding("GKE cluster", Severity.ERROR, str(error), fix)]
        for found in node_pools:
            if found.name in self._places and not layout.is_for_followers(found.labels, self._context):
                told_so = f"node pool {found.name} was there before; it is not used, nor changed"
                fix = f"give the pool another name by [pool.{self._places[found.name].pool}.options] node_pool"
                findings.append(Finding(f"node pool {found.name}", Severity.ERROR, told_so, fix))
        findings.append(self._check_cluster(cluster))
        if self._options.firewall is not None and cluster is not None:
            findings.append(self._check_firewall(self._options.firewall, cluster))
        return [*findings, *(self._pods.check() if cluster is not None and cluster.endpoint else ())]

    def _check_permissions(self) -> Finding:
        asked = (
            *NEEDED,
            *(NEEDED_TO_CREATE if self._options.manage_cluster else ()),
            *(NEEDED_TO_OPEN if self._options.firewall else ()),
        )
        try:
            missing = self._google.missing_permissions(asked)
        except ProviderError as error:
            fix = "enable the Cloud Resource Manager API, or ignore this"
            return Finding("project", Severity.WARNING, str(error), fix)
        if missing:
            fix = "grant the service's account a role that has them; the plugin's README names some"
            told_so = f"in project {self._options.project} it lacks {', '.join(missing)}"
            return Finding("project", Severity.ERROR, told_so, fix)
        return Finding("project", Severity.OK, f"it may do in project {self._options.project} all that it has to")

    def _check_machine_type(self, place: Place) -> Finding:
        pool, wanted = self._context.pools[place.pool], self._pools[place.pool].machine_type
        subject = f"pool {place.pool}"
        try:
            cores, memory_bytes = self._google.machine_type(place.zone, wanted)
        except ProviderError as error:
            fix = f"mend [pool.{place.pool}.options] machine_type and zones"
            return Finding(subject, Severity.ERROR, str(error), fix)
        what = f"{wanted} in {place.zone} has {cores} cores and {memory_bytes / 2**30:g} GiB"
        if cores < pool.cores:
            fix = f"set cores = {cores} in [pool.{place.pool}], or take a larger type"
            return Finding(subject, Severity.ERROR, f"{what}; the pool declares {pool.cores} cores", fix)
        return Finding(subject, Severity.OK, f"{what}; the pool declares {pool.cores} cores")

    def _check_firewall(self, wanted: FirewallOptions, cluster: GkeCluster) -> Finding:
        rule = firewall.rule(self._context, self._options.project, wanted, cluster.pods)
        told_so = f"rule {rule.name} lets {', '.join(rule.source_ranges)} reach port {wanted.port} of the lead"
        try:
            found = self._google.firewall(rule.name)
        except ProviderError as error:
            fix = "grant compute.firewalls.get, or leave [provider.NAME.firewall] out and open the port yourself"
            return Finding("firewall", Severity.ERROR, str(error), fix)
        if found is None:
            return Finding("firewall", Severity.OK, f"{told_so}, once it is made with the first order")
        if found.description != firewall.owner_of(self._context):
            fix = "delete or rename it, or leave [provider.NAME.firewall] out and open the port yourself"
            return Finding("firewall", Severity.ERROR, f"rule {rule.name} was not made by this provider", fix)
        if not firewall.is_so(found, rule):
            return Finding("firewall", Severity.OK, f"{told_so}, once it is changed with the next order")
        return Finding("firewall", Severity.OK, told_so)

    def _check_cluster(self, found: GkeCluster | None) -> Finding:
        where = f"GKE cluster {self._cluster} in {self._options.location}"
        if found is None and self._options.manage_cluster:
            fix = "nothing has to be done; it takes some minutes, so give the pools a join_timeout of 20m"
            return Finding("GKE cluster", Severity.WARNING, f"{where} is made with the first order", fix)
        if found is None:
            fix = "create it, mend gke_cluster and location, or set manage_cluster = true"
            return Finding("GKE cluster", Severity.ERROR, f"there is no {where}", fix)
        if found.status not in RUNS:
            return Finding("GKE cluster", Severity.ERROR, f"{where} is {found.status} {found.told}".strip(), "wait")
        return Finding("GKE cluster", Severity.OK, f"{where} is {found.status}")


def _refused(memory: _Memory) -> ProviderError | None:
    """What Google told of an order that it had taken, while it does not pay to ask again."""
    trouble = memory.trouble
    fresh = time.time() < memory.trouble_at + SOLD_OUT_S
    return trouble if fresh and isinstance(trouble, (NoCapacity, QuotaExceeded)) else None


def _remember(memory: _Memory, trouble: ProviderError) -> None:
    memory.trouble, memory.trouble_at = trouble, time.time()


def _begin(memory: _Memory, operation: Operation, size: int) -> None:
    memory.operation, memory.size, memory.trouble, memory.asked = operation.name, size, None, True


def _passed_on(
    machine: Machine, mates: Collection[Machine], wanted: Collection[NodeId], waiting: Collection[Machine]
) -> bool:
    """Whether another pod has a released pod's machine, or gets it.

    To the cluster's scheduler a machine is free whose pod has ended, or is deleted before it has run, and a pod that
    waits is given it now or in a moment. One whose pod did run, and did not leave in peace, is not trusted.
    """
    in_use = any(mate.node_id not in wanted and mate.phase is not NodePhase.STOPPING for mate in mates)
    return in_use or (bool(waiting) and machine.phase in (NodePhase.STARTING, NodePhase.STOPPING))


def _stopping(machine: Machine) -> NodeReport:
    return replace(machine, phase=NodePhase.STOPPING, detail="").report()
