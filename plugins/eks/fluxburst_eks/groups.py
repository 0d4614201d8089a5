"""Managed node groups, one for a pool, and the auto scaling groups behind them.

A node group is made at a pool's first launch, and found again by its name; its tags say whether it is ours. Its size is
set at its auto scaling group: EKS's own update of it takes minutes, during which it refuses others, and cannot end
single machines.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from fluxburst.errors import InvalidOrder, NoCapacity, ProviderUnavailable
from fluxburst.model import PoolSpec
from fluxburst.provider import ProviderContext
from fluxburst_eks.aws import Aws, NotFound
from fluxburst_eks.options import EksPodOptions
from fluxburst_kubernetes.objects import CLUSTER, MANAGER, POOL, PROVIDER

MANAGED = "fluxburst/managed-by"
"""Beside the tags that are the pods' labels, too."""
REBALANCING = "AZRebalance"
"""An auto scaling group's process that ends machines, busy or not, to spread them evenly over zones."""
MOST_ENDED = 100
MOST_PROTECTED = 19
"""How many machines one request may name (API reference of Auto Scaling)."""
CAPACITY = {"on-demand": "ON_DEMAND", "spot": "SPOT"}
ACTIVITIES = 50


@dataclass(frozen=True, slots=True)
class Machine:
    """An EC2 instance of a node group. ``leaving`` ones are about to end, whatever is on them.

    A ``protected`` one is not ended by making the group smaller; only one ``in_service`` can be protected.
    """

    id: str
    leaving: bool
    protected: bool
    in_service: bool


@dataclass(frozen=True, slots=True)
class Group:
    """A node group as it is. ``scaling_group`` is empty until EKS has made it."""

    name: str
    status: str
    desired: int
    most: int
    scaling_group: str
    machines: tuple[Machine, ...] = ()
    rebalances: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether its auto scaling group tells all that changes."""
        return bool(self.scaling_group) and self.status in ("ACTIVE", "DEGRADED", "UPDATING")

    @property
    def leaving(self) -> frozenset[str]:
        return frozenset(machine.id for machine in self.machines if machine.leaving)

    @property
    def protected(self) -> frozenset[str]:
        return frozenset(machine.id for machine in self.machines if machine.protected)

    @property
    def in_service(self) -> frozenset[str]:
        return frozenset(machine.id for machine in self.machines if machine.in_service)

    @property
    def alive(self) -> tuple[str, ...]:
        return tuple(machine.id for machine in self.machines if not machine.leaving)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of an auto scaling group to start or end a machine: when, and why it failed. Under way it has no end."""

    at: float
    ended: bool
    failure: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """``whole`` is what is wrong with a node group as such; ``attempts`` are those of its auto scaling group."""

    whole: str = ""
    attempts: tuple[Attempt, ...] = ()
    """The newest first."""

    def since(self, at: float) -> str:
        """Why a machine that is wanted since then does not come; empty while it may."""
        later = [attempt for attempt in self.attempts if attempt.at >= at]
        if self.whole or not all(attempt.ended for attempt in later):
            return self.whole
        return next((attempt.failure for attempt in later if attempt.failure), "")


class Groups:
    """The node groups of one provider table. Its callers see to it that one thread at a time changes anything."""

    def __init__(self, aws: Aws, cluster: str, context: ProviderContext, options: Mapping[str, EksPodOptions]) -> None:
        self._aws = aws
        self.cluster = cluster
        self._context = context
        self._options = options
        self._lock = threading.Lock()
        self._known: dict[str, Group] = {}

    def name_of(self, pool: str) -> str:
        return name_of(self._context, pool, self._options[pool])

    def tags_of(self, pool: str) -> dict[str, str]:
        return {MANAGED: MANAGER, **self.labels_of(pool)}

    def labels_of(self, pool: str) -> dict[str, str]:
        """Which nodes the pool's pods go to."""
        return {CLUSTER: self._context.cluster, PROVIDER: self._context.name, POOL: pool}

    def describe(self, pool: str) -> dict[str, Any] | None:
        """The pool's node group in EKS's words, ours or not; None where there is none."""
        try:
            found: dict[str, Any] = self._aws.call(
                "eks", "describe_nodegroup", clusterName=self.cluster, nodegroupName=self.name_of(pool)
            )["nodegroup"]
        except NotFound:
            return None
        return found

    def is_ours(self, pool: str, found: Mapping[str, Any]) -> bool:
        tags: dict[str, str] = found.get("tags", {})
        return self.tags_of(pool).items() <= tags.items()

    def all(self) -> dict[str, Group]:
        """The node groups that are ours, by their pools: one request for all, once they are known."""
        with self._lock:
            for pool in self._options:
                if pool not in self._known or not self._known[pool].is_settled:
                    self._look_up(pool)
            self._refresh(list(self._known))
            return dict(self._known)

    def of(self, pool: str) -> Group | None:
        """The pool's node group, looked up anew; None where there is none yet.

        Raises:
            InvalidOrder: the name is taken by one that is not ours, or that was made otherwise.
        """
        with self._lock:
            found = self._look_up(pool)
            if found is not None:
                if why_not := self.misfit(pool, found):
                    raise InvalidOrder(f"{self._aws.where}: {why_not}")
                self._refresh([pool])
            return self._known.get(pool)

    def create(self, pool: PoolSpec, size: int, token: str) -> None:
        """Make the pool's node group, of ``size`` nodes at once.

        Raises:
            NoCapacity: it may not have so many.
            ProviderUnavailable: the cluster is not ready for it; or no clear answer came.
        """
        options, most = self._options[pool.name], self.most(pool)
        self._allow(pool, size, most)
        # what was made by somebody who may not look at it could be neither listed nor given back
        self._aws.call("autoscaling", "describe_auto_scaling_groups", MaxRecords=1)
        request: dict[str, Any] = {
            "clusterName": self.cluster,
            "nodegroupName": self.name_of(pool.name),
            "scalingConfig": {"minSize": 0, "maxSize": most, "desiredSize": size},
            "subnets": list(options.subnets) or self._subnets(),
            "instanceTypes": list(options.instance_types),
            "capacityType": CAPACITY[options.capacity],
            "nodeRole": options.node_role,
            "labels": {**options.node_labels, **self.labels_of(pool.name)},
            "taints": [{"key": POOL, "value": pool.name, "effect": "NO_SCHEDULE"}],
            "tags": self.tags_of(pool.name),
            "clientRequestToken": token,
        }
        if options.ami_type:
            request["amiType"] = options.ami_type
        if options.disk is not None:
            request["diskSize"] = options.disk
        if options.launch_template:
            request["launchTemplate"] = {"id": options.launch_template}
            if options.launch_template_version:
                request["launchTemplate"]["version"] = options.launch_template_version
        try:
            self._aws.call("eks", "create_nodegroup", **request)
        except NotFound as error:
            raise InvalidOrder(f"{self._aws.where}: {error}") from None

    def most(self, pool: PoolSpec) -> int:
        return self._options[pool.name].max_size or len(pool.hosts)

    def grow(self, pool: PoolSpec, group: Group, size: int) -> None:
        """Set its size, unless it is so large already. The same again changes nothing.

        Raises:
            NoCapacity: it may not have so many.
            ProviderUnavailable: not yet; or no clear answer came.
        """
        most = self.most(pool)
        self._allow(pool, size, most)
        self.steady(group)
        if group.desired >= size:
            return
        if not group.is_settled:
            raise self._not_yet(group, f"is {group.status}")
        if size > group.most:
            # the pool has got more hosts since it was made. EKS takes its time, and may set no size meanwhile
            self._aws.call(
                "eks",
                "update_nodegroup_config",
                clusterName=self.cluster,
                nodegroupName=group.name,
                scalingConfig={"maxSize": most},
            )
            raise self._not_yet(group, f"is being allowed {most} nodes")
        self._scaling("set_desired_capacity", group, DesiredCapacity=size, HonorCooldown=False)

    def steady(self, group: Group) -> None:
        """Keep its auto scaling group from ending busy machines."""
        if group.is_settled and group.rebalances:
            self._scaling("suspend_processes", group, ScalingProcesses=[REBALANCING])

    def set_size(self, group: Group, size: int, protect: Sequence[str] = ()) -> None:
        """Make it smaller. ``protect`` are machines that the auto scaling group must not choose.

        Raises:
            ProviderUnavailable: one of those cannot be protected yet; or no clear answer came.
        """
        if not group.is_settled:
            raise self._not_yet(group, f"is {group.status}")
        if coming := set(protect) - group.in_service:
            raise self._not_yet(group, f"has {', '.join(sorted(coming))} not yet in service, which is in use")
        self._protect(group, [machine for machine in protect if machine not in group.protected], True)
        self._scaling("set_desired_capacity", group, DesiredCapacity=size, HonorCooldown=False)

    def give_back(self, group: Group, machines: Sequence[str]) -> None:
        """End these machines, and have no others in their place."""
        self._end(group, machines, smaller=True)

    def empty(self, group: Group) -> None:
        """End all its machines. To make it smaller does not end those that are protected from that."""
        if group.desired:
            self.set_size(group, 0)
        # one at a time: of those that are no longer protected some may have ended by now
        for machine in group.alive:
            if machine in group.protected:
                with suppress(InvalidOrder):
                    self._end(group, [machine], smaller=False)

    def delete(self, group: Group) -> None:
        """Delete a node group of ours, with its machines. One that is gone is fine."""
        self._protect(group, [machine for machine in group.alive if machine in group.protected], False)
        with suppress(NotFound):
            self._aws.call("eks", "delete_nodegroup", clusterName=self.cluster, nodegroupName=group.name)
        with self._lock:
            self._known = {pool: known for pool, known in self._known.items() if known.name != group.name}

    def trouble(self, pool: str, group: Group) -> Trouble:
        """Why a group has fewer machines than it should, in AWS's own words."""
        if group.status == "CREATE_FAILED":
            return Trouble(health(self.describe(pool) or {}) or f"node group {group.name} could not be made")
        if not group.scaling_group:
            return Trouble()
        told = self._scaling("describe_scaling_activities", group, MaxRecords=ACTIVITIES)["Activities"]
        newest_first = sorted(told, key=lambda activity: activity["StartTime"], reverse=True)
        return Trouble(attempts=tuple(map(_attempt, newest_first)))

    def _look_up(self, pool: str) -> dict[str, Any] | None:
        self._known.pop(pool, None)
        found = self.describe(pool)
        if found is not None and self.is_ours(pool, found):
            scaling = found.get("resources", {}).get("autoScalingGroups") or ()
            config = found["scalingConfig"]
            self._known[pool] = Group(
                name=found["nodegroupName"],
                status=found["status"],
                desired=config["desiredSize"],
                most=config["maxSize"],
                scaling_group=scaling[0]["name"] if scaling else "",
            )
        return found

    def misfit(self, pool: str, found: Mapping[str, Any]) -> str:
        """Why a node group that is there cannot be the pool's; empty where it can."""
        name, options = found["nodegroupName"], self._options[pool]
        if not self.is_ours(pool, found):
            return (
                f"node group {name} was there before, and is left alone: it lacks the tags of [pool.{pool}]; "
                f"set another [pool.{pool}.options] node_group"
            )
        for key, wanted, is_so in (
            ("instance_types", list(options.instance_types), found.get("instanceTypes", [])),
            ("capacity", CAPACITY[options.capacity], found.get("capacityType", CAPACITY["on-demand"])),
        ):
            if wanted != is_so:
                return (
                    f"node group {name} was made with other {key} ({is_so}); while no node is bought, delete it: it is "
                    "made anew with the next burst"
                )
        return ""

    def _refresh(self, pools: Sequence[str]) -> None:
        """Bring what is known up to date by its auto scaling groups; one that is gone is looked up anew, later."""
        names = [name for pool in pools if (name := self._known[pool].scaling_group)]
        if not names:
            return
        told = {
            found["AutoScalingGroupName"]: found
            for some in _in_parts(names, 50)
            for found in self._aws.all(
                "autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups", AutoScalingGroupNames=list(some)
            )
        }
        for pool in pools:
            group = self._known[pool]
            if not group.scaling_group:
                continue
            found = told.get(group.scaling_group)
            if found is None:
                # not told of yet, or gone: what EKS says of it has to do, and is asked anew
                self._known[pool] = replace(group, scaling_group="")
                continue
            suspended = {process["ProcessName"] for process in found.get("SuspendedProcesses", ())}
            self._known[pool] = Group(
                name=group.name,
                status=group.status,
                desired=found["DesiredCapacity"],
                most=found["MaxSize"],
                scaling_group=group.scaling_group,
                machines=tuple(
                    Machine(
                        machine["InstanceId"],
                        leaving=machine["LifecycleState"] not in _STAYING,
                        protected=machine.get("ProtectedFromScaleIn", False),
                        in_service=machine["LifecycleState"] == "InService",
                    )
                    for machine in found.get("Instances", ())
                ),
                rebalances=REBALANCING not in suspended,
            )

    def _allow(self, pool: PoolSpec, size: int, most: int) -> None:
        if size > most:
            name = self.name_of(pool.name)
            raise NoCapacity(f"{self._aws.where}: node group {name} may have {most} nodes, {size} are needed")

    def _not_yet(self, group: Group, why: str) -> ProviderUnavailable:
        return ProviderUnavailable(f"{self._aws.where}: node group {group.name} {why}; it is tried again")

    def _end(self, group: Group, machines: Sequence[str], smaller: bool) -> None:
        self._protect(group, [machine for machine in machines if machine in group.protected], False)
        for some in _in_parts(machines, MOST_ENDED):
            self._scaling(
                "terminate_instance_in_auto_scaling_group",
                group,
                InstanceIds=list(some),
                ShouldDecrementDesiredCapacity=smaller,
            )

    def _protect(self, group: Group, machines: Sequence[str], protected: bool) -> None:
        for some in _in_parts(machines, MOST_PROTECTED):
            self._scaling("set_instance_protection", group, InstanceIds=list(some), ProtectedFromScaleIn=protected)

    def _subnets(self) -> list[str]:
        found = self._aws.call("eks", "describe_cluster", name=self.cluster)["cluster"]
        return list(found["resourcesVpcConfig"]["subnetIds"])

    def _scaling(self, operation: str, group: Group, **arguments: Any) -> dict[str, Any]:
        return self._aws.call("autoscaling", operation, AutoScalingGroupName=group.scaling_group, **arguments)


_STAYING = frozenset({"Pending", "Pending:Wait", "Pending:Proceed", "InService"})


def name_of(context: ProviderContext, pool: str, options: EksPodOptions) -> str:
    return options.node_group or f"fluxburst-{context.cluster}-{pool}"


def health(found: Mapping[str, Any]) -> str:
    """What EKS has to say about a node group that is not well."""
    issues = found.get("health", {}).get("issues", ())
    return "; ".join(f"{issue.get('code', '')}: {issue.get('message', '')}" for issue in issues)


def _attempt(activity: Mapping[str, Any]) -> Attempt:
    status = activity["StatusCode"]
    told = (activity.get("StatusMessage") or activity["Description"]) if status == "Failed" else ""
    ended = status in ("Successful", "Failed", "Cancelled")
    return Attempt(activity["StartTime"].timestamp(), ended, " ".join(told.split()))


def _in_parts(items: Sequence[str], most: int) -> Sequence[tuple[str, ...]]:
    rest = iter(items)
    return list(iter(lambda: tuple(islice(rest, most)), ()))
