"""What ``flux burst check`` looks at in AWS. Changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from fluxburst.errors import ProviderError
from fluxburst.model import Finding, PoolSpec, Severity
from fluxburst.provider import ProviderContext
from fluxburst_eks import access
from fluxburst_eks.aws import Aws, NotFound
from fluxburst_eks.groups import Groups, health
from fluxburst_eks.options import EksOptions, EksPodOptions
from fluxburst_eks.types import Types
from fluxburst_kubernetes.cluster import Cluster
from fluxburst_kubernetes.cluster import NotFound as NoSuchObject
from fluxburst_kubernetes.objects import CLUSTER, PROVIDER

FAMILIES = {
    "a": ("standard", "L-1216C47A", "L-34B43A08"),
    "c": ("standard", "L-1216C47A", "L-34B43A08"),
    "d": ("standard", "L-1216C47A", "L-34B43A08"),
    "h": ("standard", "L-1216C47A", "L-34B43A08"),
    "i": ("standard", "L-1216C47A", "L-34B43A08"),
    "m": ("standard", "L-1216C47A", "L-34B43A08"),
    "r": ("standard", "L-1216C47A", "L-34B43A08"),
    "t": ("standard", "L-1216C47A", "L-34B43A08"),
    "z": ("standard", "L-1216C47A", "L-34B43A08"),
    "f": ("F", "L-74FC7D96", "L-88CF9481"),
    "g": ("G and VT", "L-DB2E81BA", "L-3819A6DF"),
    "vt": ("G and VT", "L-DB2E81BA", "L-3819A6DF"),
    "inf": ("Inf", "L-1945791B", "L-B5D1601B"),
    "p": ("P", "L-417A185B", "L-7212CCBC"),
    "trn": ("Trn", "L-2C3B7624", "L-6B0D517C"),
    "x": ("X", "L-7295265B", "L-E3A00192"),
}
"""By the letters that a type begins with: the family, and the codes of its vCPU quotas, on demand and spot."""


def account(aws: Aws, options: EksOptions) -> list[Finding]:
    """Credentials and cluster."""
    try:
        who = aws.call("sts", "get_caller_identity")["Arn"]
    except (ProviderError, NotFound) as error:
        fix = "give the service credentials of AWS: a role of its machine, the environment, or [provider] profile"
        return [Finding("credentials", Severity.ERROR, str(error), fix)]
    findings = [Finding("credentials", Severity.OK, f"they are those of {who}")]
    try:
        found = access.describe(aws, options.cluster)
    except ProviderError as error:
        return [*findings, Finding("EKS cluster", Severity.ERROR, str(error), "mend what it says, then check again")]
    status, version = found["status"], found.get("version", "unknown")
    if status != "ACTIVE":
        fix = "wait until it is ACTIVE, or mend what its console page says"
        return [*findings, Finding("EKS cluster", Severity.ERROR, f"{options.cluster} is {status}", fix)]
    return [*findings, Finding("EKS cluster", Severity.OK, f"{options.cluster} is ACTIVE, version {version}")]


def nodes(cluster: Cluster) -> list[Finding]:
    """Whether the service may see the cluster's nodes."""
    try:
        cluster.get("/api/v1/nodes", limit=1)
    except (ProviderError, NoSuchObject) as error:
        fix = "bind a ClusterRole that may list and watch nodes to the service's account"
        return [Finding("nodes", Severity.ERROR, str(error), fix)]
    return [Finding("nodes", Severity.OK, "it may see the cluster's nodes")]


def pools(
    aws: Aws, context: ProviderContext, options: Mapping[str, EksPodOptions], groups: Groups, types: Types
) -> list[Finding]:
    """Types, subnets, role, node group of each pool, the quotas of all, and node groups of pools that are no more."""
    findings: list[Finding] = []
    for name, pool in context.pools.items():
        findings += _shapes(types, pool, options[name])
        findings += _subnets(aws, name, options[name])
        findings += _role(aws, name, options[name])
        findings += _group(groups, name)
    return [*findings, *_scaling(aws), *_quotas(aws, context, options, types), *_forgotten(aws, context, groups)]


def _cannot(subject: str, error: Exception, action: str) -> Finding:
    return Finding(subject, Severity.WARNING, f"could not be looked at: {error}", f"allow {action}, or ignore this")


def _shapes(types: Types, pool: PoolSpec, options: EksPodOptions) -> Iterator[Finding]:
    subject = f"pool {pool.name} instance types"
    for kind in options.instance_types:
        try:
            shape = types.of(kind)
        except ProviderError as error:
            yield _cannot(subject, error, "ec2:DescribeInstanceTypes")
            continue
        has = f"{kind} has {shape.cores} cores ({shape.vcpus} vCPUs), {shape.gpus} GPUs, {shape.memory_bytes >> 30} GiB"
        if shape.cores < pool.cores or shape.gpus < pool.gpus:
            told = f"{has}; the pool declares {pool.cores} cores and {pool.gpus} GPUs"
            fix = "take another type, or declare what it has: Flux counts cores, not their threads"
            yield Finding(subject, Severity.ERROR, told, fix)
        else:
            yield Finding(subject, Severity.OK, has)


def _subnets(aws: Aws, name: str, options: EksPodOptions) -> Iterator[Finding]:
    if not options.subnets:
        return
    subject = f"pool {name} subnets"
    try:
        found = aws.all("ec2", "describe_subnets", "Subnets", SubnetIds=list(options.subnets))
    except ProviderError as error:
        yield Finding(subject, Severity.ERROR, str(error), f"mend [pool.{name}.options] subnets")
        return
    free = ", ".join(f"{one['SubnetId']} in {one['AvailabilityZone']}" for one in found)
    yield Finding(subject, Severity.OK, free)


def _role(aws: Aws, name: str, options: EksPodOptions) -> Iterator[Finding]:
    subject = f"pool {name} node role"
    try:
        aws.call("iam", "get_role", RoleName=options.node_role.rpartition("/")[2])
    except NotFound as error:
        yield Finding(subject, Severity.ERROR, str(error), f"mend [pool.{name}.options] node_role")
    except ProviderError as error:
        yield _cannot(subject, error, "iam:GetRole")
    else:
        yield Finding(subject, Severity.OK, f"{options.node_role} is there")


def _group(groups: Groups, name: str) -> Iterator[Finding]:
    subject = f"pool {name} node group"
    try:
        found = groups.describe(name)
    except ProviderError as error:
        yield Finding(subject, Severity.ERROR, str(error), "mend what it says, then check again")
        return
    if found is None:
        yield Finding(subject, Severity.OK, f"{groups.name_of(name)} is made at the first launch")
    elif why_not := groups.misfit(name, found):
        yield Finding(subject, Severity.ERROR, why_not, "as it says")
    elif issues := health(found):
        yield Finding(subject, Severity.WARNING, f"{found['nodegroupName']}: {issues}", "mend what it says")
    else:
        yield Finding(subject, Severity.OK, f"{found['nodegroupName']} is {found['status']}")


def _scaling(aws: Aws) -> Iterator[Finding]:
    """Whether machines may be looked at: who may not could buy some, and neither list nor give them back."""
    for operation in ("describe_auto_scaling_groups", "describe_scaling_activities"):
        try:
            aws.call("autoscaling", operation, MaxRecords=1)
        except ProviderError as error:
            action = "".join(part.capitalize() for part in operation.split("_"))
            yield Finding("auto scaling", Severity.ERROR, str(error), f"allow autoscaling:{action}")
            return
    yield Finding("auto scaling", Severity.OK, "groups and what becomes of them may be looked at")


def _quotas(
    aws: Aws, context: ProviderContext, options: Mapping[str, EksPodOptions], types: Types
) -> Iterator[Finding]:
    """Whether all pools, full, keep to the account's vCPU quotas."""
    needed: dict[tuple[str, str], int] = defaultdict(int)
    for name, pool in context.pools.items():
        kind = options[name].instance_types[0]
        letters = kind[: next((at for at, sign in enumerate(kind) if not sign.isalpha()), len(kind))]
        if letters not in FAMILIES:
            continue
        family, on_demand, spot = FAMILIES[letters]
        try:
            vcpus = types.of(kind).vcpus
        except ProviderError:
            continue  # told above
        is_spot = options[name].capacity == "spot"
        title = f"{family} {'spot' if is_spot else 'on-demand'} vCPUs"
        needed[title, spot if is_spot else on_demand] += vcpus * (options[name].max_size or len(pool.hosts))
    for (title, code), count in needed.items():
        try:
            quota = aws.call("service-quotas", "get_service_quota", ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
        except (ProviderError, NotFound) as error:
            yield _cannot(f"quota of {title}", error, "servicequotas:GetServiceQuota")
            continue
        told = f"{quota:g} in {aws.region}; all pools, full, take {count}"
        if quota < count:
            fix = f"ask for more of quota {code}, or declare fewer hosts; other instances of the account count, too"
            yield Finding(f"quota of {title}", Severity.WARNING, told, fix)
        else:
            yield Finding(f"quota of {title}", Severity.OK, told)


def _forgotten(aws: Aws, context: ProviderContext, groups: Groups) -> Iterator[Finding]:
    """Node groups of ours that no pool of burst.toml has."""
    known = {groups.name_of(pool) for pool in context.pools}
    try:
        for name in aws.all("eks", "list_nodegroups", "nodegroups", clusterName=groups.cluster):
            if name in known:
                continue
            found = aws.call("eks", "describe_nodegroup", clusterName=groups.cluster, nodegroupName=name)["nodegroup"]
            tags = found.get("tags", {})
            if (tags.get(CLUSTER), tags.get(PROVIDER)) == (context.cluster, context.name):
                told = (
                    f"{name} ({found['status']}, {found['scalingConfig']['desiredSize']} nodes) is of no pool any more"
                )
                fix = f"aws eks delete-nodegroup --cluster-name {groups.cluster} --nodegroup-name {name}"
                yield Finding("node groups", Severity.WARNING, told, fix)
    except (ProviderError, NotFound) as error:
        yield _cannot("node groups", error, "eks:ListNodegroups")
