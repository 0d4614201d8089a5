"""Node pools: their names and makings, and whose their machines are. Pure but for Google's message types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fluxburst.errors import ConfigError, InvalidOrder
from fluxburst.model import NodePhase, PoolSpec
from fluxburst.provider import ProviderContext
from fluxburst_gke.google import Instance
from fluxburst_gke.options import GkeOptions, GkePodOptions, short
from fluxburst_kubernetes.objects import CLUSTER, MANAGER, Machine

if TYPE_CHECKING:
    from google.cloud import container_v1

NODE_POOL = "fluxburst/node-pool"
"""The label of pods with the node pool that they are for."""
GKE_NODE_POOL = "cloud.google.com/gke-nodepool"
"""GKE's own label of nodes."""
OWNER, OWNED_POOL = "managed-by", "fluxburst-pool"
"""Google Cloud labels, where slashes are not allowed."""


@dataclass(frozen=True, slots=True)
class Place:
    """One node pool that a pool of burst.toml may have: that of one zone."""

    node_pool: str
    pool: str
    zone: str


def places(context: ProviderContext, options: GkeOptions, pools: Mapping[str, GkePodOptions]) -> dict[str, Place]:
    """All that burst.toml names, by the node pools' names.

    Raises:
        ConfigError: a pool has no zone, or GPUs of no type, or two have one node pool.
    """
    found: dict[str, Place] = {}
    for pool, pod in pools.items():
        if context.pools[pool].gpus and not pod.accelerator_type:
            raise ConfigError(f"[pool.{pool}.options] accelerator_type: name the pool's GPUs, such as 'nvidia-l4'")
        zones = pod.zones or tuple(filter(None, (options.zone,)))
        if not zones:
            raise ConfigError(
                f"[pool.{pool}.options] zones: {options.location} is a region; name zones, such as "
                f'zones = ["{options.location}-a"]'
            )
        base = pod.node_pool or f"fb-{context.cluster}-{pool}"
        for zone in zones:
            name = short(base if len(zones) == 1 else f"{base}-{zone.rpartition('-')[2]}")
            if name in found:
                raise ConfigError(f"[pool.{pool}.options] node_pool: {name} is that of pool {found[name].pool} already")
            found[name] = Place(name, pool, zone)
    return found


def on(place: Place, pod: GkePodOptions, cluster: str, avoid: Sequence[str] = ()) -> GkePodOptions:
    """How the pods are made that are for this place: they run on its nodes alone.

    Args:
        place: Their node pool's.
        pod: The pool's own options.
        cluster: The name in burst.toml.
        avoid: Machines that are about to go, and are nodes until then.
    """
    toleration = {"key": CLUSTER, "operator": "Equal", "value": cluster, "effect": "NoSchedule"}
    return pod.model_copy(
        update={
            "node_selector": {**pod.node_selector, GKE_NODE_POOL: place.node_pool},
            "tolerations": (*pod.tolerations, toleration),
            "labels": {**pod.labels, NODE_POOL: place.node_pool},
            "patch": _away_from(avoid, pod.patch) if avoid else pod.patch,
        }
    )


def _away_from(avoid: Sequence[str], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The patch of the pods' template, with a node affinity that leaves these out beside what it has itself."""
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    spec = patch.get("spec", {})
    affinity = spec.get("affinity", {})
    own = affinity.get("nodeAffinity", {})
    other = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": sorted(avoid)}
    terms = [
        {**term, "matchExpressions": [*term.get("matchExpressions", ()), other]}
        for term in own.get(required, {}).get("nodeSelectorTerms", ({},))
    ]
    node_affinity = {**own, required: {"nodeSelectorTerms": terms}}
    return {**patch, "spec": {**spec, "affinity": {**affinity, "nodeAffinity": node_affinity}}}


def marks(context: ProviderContext) -> dict[str, str]:
    """The Google Cloud labels of all that one provider table creates."""
    return {OWNER: MANAGER, "fluxburst-cluster": context.cluster, "fluxburst-provider": context.name}


def is_ours(labels: Mapping[str, str], context: ProviderContext) -> bool:
    """Whether what has these labels was created by this provider table: nothing else is changed or deleted."""
    return all(labels.get(key) == value for key, value in marks(context).items())


def is_for_followers(labels: Mapping[str, str], context: ProviderContext) -> bool:
    """Whether a node pool with these labels is one of ours, and not that of a created cluster's own services."""
    return is_ours(labels, context) and OWNED_POOL in labels


def node_pool(
    place: Place, pod: GkePodOptions, spec: PoolSpec, context: ProviderContext, nodes: int
) -> container_v1.NodePool:
    """The node pool as it is created, with so many nodes to begin with."""
    from google.cloud import container_v1

    config = container_v1.NodeConfig(
        machine_type=pod.machine_type,
        spot=pod.spot,
        disk_type=pod.disk_type,
        disk_size_gb=pod.disk_size_gb,
        image_type=pod.image_type,
        service_account=pod.node_service_account,
        # what the nodes' account may do is for IAM to say
        oauth_scopes=["https://www.googleapis.com/auth/cloud-platform"],
        labels=pod.node_labels,
        resource_labels={**pod.resource_labels, **marks(context), OWNED_POOL: place.pool},
        taints=[
            container_v1.NodeTaint(key=CLUSTER, value=context.cluster, effect=container_v1.NodeTaint.Effect.NO_SCHEDULE)
        ],
    )
    if spec.gpus:
        version = container_v1.GPUDriverInstallationConfig.GPUDriverVersion
        driver = {"default": version.DEFAULT, "latest": version.LATEST, "none": version.INSTALLATION_DISABLED}
        config.accelerators = [
            container_v1.AcceleratorConfig(
                accelerator_count=spec.gpus,
                accelerator_type=pod.accelerator_type,
                gpu_driver_installation_config=container_v1.GPUDriverInstallationConfig(
                    gpu_driver_version=driver[pod.gpu_driver]
                ),
            )
        ]
    made = container_v1.NodePool(
        name=place.node_pool,
        initial_node_count=nodes,
        locations=[place.zone],
        config=config,
        # no machine beside those that orders need, which would be taken for surplus
        upgrade_settings=container_v1.NodePool.UpgradeSettings(max_surge=0, max_unavailable=1),
    )
    if pod.compact:
        made.placement_policy = container_v1.NodePool.PlacementPolicy(
            type_=container_v1.NodePool.PlacementPolicy.Type.COMPACT
        )
    return made


def cluster(name: str, options: GkeOptions, context: ProviderContext) -> container_v1.Cluster:
    """The cluster as it is created: GKE wants one node at least, which the cluster's own services run on."""
    from google.cloud import container_v1

    system = container_v1.NodePool(
        name="system",
        initial_node_count=1,
        config=container_v1.NodeConfig(machine_type=options.system_machine_type, resource_labels=marks(context)),
    )
    return container_v1.Cluster(
        name=name,
        network=options.network,
        subnetwork=options.subnetwork,
        node_pools=[system],
        resource_labels=marks(context),
        ip_allocation_policy=container_v1.IPAllocationPolicy(use_ip_aliases=True),
    )


@dataclass(frozen=True, slots=True)
class Look:
    """One node pool at one moment: who is where, who waits, and which machines nobody has.

    A pod that has ended still has its machine: it says whose that was, until it is given back. To the cluster's
    scheduler such a machine is free.
    """

    machines: Sequence[Machine]
    """All."""
    instances: Sequence[Instance]
    """All."""
    had: Mapping[str, Sequence[Machine]]
    """By the names of machines that exist: whose pods are bound there."""
    waiting: Sequence[Machine]
    """Those whose pods have no machine yet; always in the same order, and those of one order together."""
    free: Sequence[Instance]
    """There or being made, not asked to go, and no pod bound there."""
    leaving: Sequence[Instance]

    @property
    def hopeful(self) -> int:
        """How many of the free ones are there, or may come soon."""
        return sum(not instance.trouble for instance in self.free)

    @property
    def there(self) -> int:
        """How many exist, or are being made, and were not asked to go."""
        return len(self._kept()) + len(self.free)

    @property
    def busy(self) -> int:
        """How many of these are had by pods that have not ended."""
        return len(self._kept()) - self.ended

    @property
    def ended(self) -> int:
        """How many of these are had by pods alone that have ended."""
        return sum(all(one.phase is NodePhase.STOPPING for one in self.had[name]) for name in self._kept())

    def _kept(self) -> frozenset[str]:
        return frozenset(self.had) - {instance.name for instance in self.leaving}

    @property
    def surplus(self) -> Sequence[Instance]:
        """Those that may go because nobody will have them.

        While a pod waits there are none: the scheduler may bind it to any of them at this moment.
        """
        return () if self.waiting else self.free


def look(machines: Sequence[Machine], instances: Iterable[Instance], given_back: Iterable[str]) -> Look:
    """See :class:`Look`.

    Args:
        machines: All of the node pool's.
        instances: All of the node pool's, looked at later: whoever was bound then has one of them.
        given_back: The names of those that were asked to go; a listing may not know yet.
    """
    gone = set(given_back)
    there = list(instances)
    had: dict[str, list[Machine]] = {}
    waiting: list[Machine] = []
    names = {instance.name for instance in there}
    for machine in machines:
        if machine.node in names:
            had.setdefault(machine.node, []).append(machine)
        elif not machine.node and machine.phase is not NodePhase.STOPPING:
            waiting.append(machine)
    leaving = [instance for instance in there if instance.leaving or instance.name in gone]
    free = [instance for instance in there if instance.name not in had and instance not in leaving]
    return Look(machines, there, had, sorted(waiting, key=lambda one: (one.request_id, one.index)), free, leaving)


def place_of(places: Mapping[str, Place], pool: str, zone: str) -> Place:
    """The place of an offer.

    Raises:
        InvalidOrder: burst.toml no longer has it.
    """
    for place in places.values():
        if (place.pool, place.zone) == (pool, zone):
            return place
    raise InvalidOrder(f"[pool.{pool}.options] zones: {zone or 'no zone'} is not among them any more")
