"""The real boto3 client against a server of AWS's APIs: errors, offers, prices, tokens, checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxburst.errors import (
    AuthDenied,
    ConfigError,
    InvalidOrder,
    NoCapacity,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
)
from fluxburst.model import Demand, Finding, Host, Offer, PoolSpec, Refusal, Severity
from fluxburst.provider import ProviderContext
from fluxburst_eks import access
from fluxburst_eks.groups import Attempt, Group, Trouble
from fluxburst_eks.provider import EksProvider, build
from tests.kube.eks_server import REGION, ROLE, EksServer
from tests.real.steps import eventually

DEMAND = Demand(nodes=1, slots=1, cores_per_slot=1)
Build = Callable[..., EksProvider]


@pytest.fixture
def make(aws: EksServer) -> Iterator[Build]:
    made = []

    def make(cores: int = 2, gpus: int = 0, usd: float | None = None, **more: Any) -> EksProvider:
        options = {"image": "follower", "instance_types": ["m5.xlarge"], "node_role": ROLE, **more}
        hosts = tuple(Host(f"c2-{index}") for index in range(4))
        pool = PoolSpec("c2", hosts, cores, gpus, usd, options)
        table = {"region": REGION, "cluster": "hpc", "endpoint_url": aws.url, "request_timeout": 2}
        made.append(build(ProviderContext("eks", "test", table, {"c2": pool}, Path("/nonexistent"))))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"share_nodes": True}, "share_nodes: .*one machine for each pod"),
        ({"spot": True}, "spot: .*follows from capacity"),
        ({"instance_types": []}, "instance_types"),
        ({"disk": 50, "launch_template": "lt-1"}, "the disk belongs into the template"),
        ({"launch_template_version": "2"}, "goes with launch_template"),
        ({"node_group": "n" * 64}, "node_group"),
        ({"nodes": 3}, "nodes"),
    ],
)
def test_what_cannot_be_is_told_with_its_key(make: Build, more: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)pool\.c2\.options.*{told}"):
        make(**more)


# Errors


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("AccessDeniedException", 403, AuthDenied),
        ("ExpiredTokenException", 403, AuthDenied),
        ("UnrecognizedClientException", 400, AuthDenied),
        ("InvalidIdentityToken", 400, AuthDenied),
        ("IDPRejectedClaim", 403, AuthDenied),
        ("ResourceLimitExceededException", 400, QuotaExceeded),
        ("ServiceQuotaExceededException", 402, QuotaExceeded),
        ("VcpuLimitExceeded", 400, QuotaExceeded),
        ("InvalidParameterException", 400, InvalidOrder),
        ("InvalidRequestException", 400, InvalidOrder),
        ("ResourceInUseException", 409, ProviderUnavailable),
        ("InsufficientInstanceCapacity", 500, NoCapacity),
        ("ServerException", 500, ProviderUnavailable),
        ("ANewOneException", 400, ProviderUnavailable),
    ],
)
def test_codes_become_typed_errors_in_the_words_of_aws(
    make: Build, aws: EksServer, code: str, status: int, kind: type[ProviderError]
) -> None:
    for _ in range(3):
        aws.fail("eks", "DescribeNodegroup", code, "because", status=status)
    with pytest.raises(kind, match=rf"^provider eks: {code}: because \(DescribeNodegroup\)$"):
        make()._groups.of("c2")


def test_throttling_says_when_to_come_back(make: Build, aws: EksServer) -> None:
    for _ in range(3):
        headers = {"Retry-After": "7"}
        aws.fail("eks", "DescribeNodegroup", "TooManyRequestsException", "Rate exceeded", status=429, headers=headers)
    with pytest.raises(RateLimited, match="Rate exceeded") as raised:
        make()._groups.of("c2")
    assert raised.value.retry_after_s == 7
    assert len(aws.asked("DescribeNodegroup")) == 3  # botocore's own attempts


def test_a_server_that_is_not_there_leaves_the_outcome_open(make: Build, aws: EksServer) -> None:
    provider = make()
    aws.close()
    with pytest.raises(ProviderUnavailable, match="AWS gives no answer"):
        provider._groups.of("c2")


def test_no_credentials_are_told(make: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (finding,) = make().check()
    assert (finding.subject, finding.severity) == ("credentials", Severity.ERROR)
    assert "no credentials for AWS: Unable to locate credentials" in finding.message


# Node groups


def test_a_node_group_may_become_larger_than_it_was_made_and_not_than_its_pool(make: Build, aws: EksServer) -> None:
    small = make(max_size=1)
    small._groups.create(small._context.pools["c2"], 1, "b-1")
    provider = make()
    pool = provider._context.pools["c2"]
    eventually(lambda: provider._groups.all()["c2"].is_settled)
    aws.update_s = 0.3
    for told in ("is being allowed 4 nodes; it is tried again", "ResourceInUseException"):
        with pytest.raises(ProviderUnavailable, match=told):
            provider._groups.grow(pool, there(provider), 3)
    (made,) = aws.groups.values()
    # EKS sets a size later, too: one that it was told here would undo what was set at the auto scaling group meanwhile
    assert aws.asked("UpdateNodegroupConfig")[0]["scalingConfig"] == {"maxSize": 4}
    eventually(lambda: made.most == 4)
    for _ in range(2):
        provider._groups.grow(pool, there(provider), 3)
    assert made.desired == 3
    assert len(aws.asked("SetDesiredCapacity")) == 1
    with pytest.raises(NoCapacity, match="may have 4 nodes, 5 are needed"):
        provider._groups.grow(pool, there(provider), 5)


def test_a_limit_holds_for_the_first_nodes_and_when_it_is_lowered(make: Build, aws: EksServer) -> None:
    provider = make(max_size=2)
    pool = provider._context.pools["c2"]
    with pytest.raises(NoCapacity, match="may have 2 nodes, 3 are needed"):
        provider._groups.create(pool, 3, "b-1")
    assert not aws.groups
    make()._groups.create(pool, 1, "b-1")
    with pytest.raises(NoCapacity, match="may have 2 nodes, 3 are needed"):
        provider._groups.grow(pool, there(provider), 3)


def test_none_is_made_that_could_not_be_looked_at(make: Build, aws: EksServer) -> None:
    provider = make()
    aws.fail("autoscaling", "DescribeAutoScalingGroups", "AccessDenied", "not you", status=403)
    with pytest.raises(AuthDenied, match="AccessDenied: not you"):
        provider._groups.create(provider._context.pools["c2"], 1, "b-1")
    assert not aws.asked("CreateNodegroup")


def test_none_is_made_in_a_cluster_that_is_not_ready(make: Build, aws: EksServer) -> None:
    aws.cluster_status = "CREATING"
    provider = make()
    with pytest.raises(ProviderUnavailable, match="cluster hpc is CREATING"):
        provider._be_usable("c2")
    with pytest.raises(ProviderUnavailable, match="InvalidRequestException: Cluster is not in an ACTIVE state"):
        provider._groups.create(provider._context.pools["c2"], 1, "b-1")


def test_machines_that_are_protected_go_all_the_same(make: Build, aws: EksServer) -> None:
    provider = make()
    provider._groups.create(provider._context.pools["c2"], 2, "b-1")
    (made,) = aws.groups.values()
    eventually(lambda: [machine.state for machine in made.machines] == ["InService"] * 2)
    made.machines[0].protected = True
    provider._groups.empty(there(provider))
    eventually(lambda: not made.machines)
    provider._groups.grow(provider._context.pools["c2"], there(provider), 1)
    eventually(lambda: [machine.state for machine in made.machines] == ["InService"])
    made.machines[0].protected, made.desired = True, 0
    provider._groups.empty(there(provider))
    eventually(lambda: not made.machines)
    provider._groups.grow(provider._context.pools["c2"], there(provider), 1)
    eventually(lambda: [machine.state for machine in made.machines] == ["InService"])
    made.machines[0].protected = True
    provider._groups.delete(there(provider))
    eventually(lambda: not aws.groups)


def test_a_group_is_not_made_smaller_while_a_machine_in_use_cannot_be_protected(make: Build, aws: EksServer) -> None:
    aws.boot_s = 0.3
    provider = make()
    provider._groups.create(provider._context.pools["c2"], 1, "b-1")
    (made,) = aws.groups.values()
    (machine,) = eventually(lambda: made.machines)
    with pytest.raises(ProviderUnavailable, match=f"has {machine.id} not yet in service, which is in use"):
        provider._groups.set_size(there(provider), 1, [machine.id])
    assert not aws.asked("SetDesiredCapacity")
    eventually(lambda: machine.state == "InService")
    provider._groups.set_size(there(provider), 1, [machine.id])
    assert machine.protected


def there(provider: EksProvider) -> Group:
    group = provider._groups.of("c2")
    assert group is not None
    return group


def test_a_node_group_that_could_not_be_made_says_why_and_can_be_deleted(make: Build, aws: EksServer) -> None:
    provider = make()
    provider._groups.create(provider._context.pools["c2"], 1, "b-1")
    (made,) = aws.groups.values()
    made.status = "CREATE_FAILED"
    told = "Could not launch On-Demand Instances. VcpuLimitExceeded - You have requested more vCPU capacity."
    made.issues = [{"code": "AsgInstanceLaunchFailures", "message": told, "resourceIds": []}]
    group = provider._groups.all()["c2"]
    assert provider._groups.trouble("c2", group).since(0.0) == f"AsgInstanceLaunchFailures: {told}"
    provider._groups.delete(group)
    eventually(lambda: not aws.groups)
    assert provider._groups.of("c2") is None


def test_one_that_was_made_otherwise_is_not_used(make: Build, aws: EksServer) -> None:
    provider = make()
    provider._groups.create(provider._context.pools["c2"], 1, "b-1")
    with pytest.raises(InvalidOrder, match=r"made with other capacity .*delete it"):
        make(capacity="spot")._be_usable("c2")
    with pytest.raises(InvalidOrder, match="made with other instance_types"):
        make(instance_types=["c5.xlarge"])._be_usable("c2")
    assert aws.groups["fluxburst-test-c2"].desired == 1


def test_a_failure_counts_for_those_that_waited_then_and_while_no_try_is_under_way() -> None:
    failed, under_way = Attempt(10.0, True, "sold out"), Attempt(11.0, False, "")
    assert Trouble(attempts=(failed,)).since(9.0) == "sold out"
    assert Trouble(attempts=(failed,)).since(10.5) == ""
    assert Trouble(attempts=(under_way, failed)).since(9.0) == ""


def test_the_launch_template_and_the_disk_go_into_the_node_group(make: Build, aws: EksServer) -> None:
    provider = make(
        launch_template="lt-0123456789abcdef0", launch_template_version="2", ami_type="AL2023_x86_64_STANDARD"
    )
    provider._groups.create(provider._context.pools["c2"], 1, "b-1")
    (asked,) = aws.asked("CreateNodegroup")
    assert asked["launchTemplate"] == {"id": "lt-0123456789abcdef0", "version": "2"}
    assert asked["amiType"] == "AL2023_x86_64_STANDARD"
    assert asked["subnets"] == aws.subnets


# Offers


def offer(provider: EksProvider) -> Offer:
    (found,) = provider.offers(DEMAND)
    assert isinstance(found, Offer)
    return found


def test_an_offer_has_what_the_type_has_and_what_it_costs(make: Build, aws: EksServer) -> None:
    aws.prices["m5.xlarge"] = 0.192
    provider = make()
    assert offer(provider) == Offer(
        "c2", "eks", "m5.xlarge", 2, usd_per_node_hour=0.192, region=REGION, join_s=150.0, memory_bytes=16 * 2**30
    )
    offer(provider)
    assert len(aws.asked("GetProducts")) == len(aws.asked("DescribeInstanceTypes")) == 1


def test_gpus_are_the_types(make: Build) -> None:
    found = offer(make(instance_types=["g4dn.12xlarge"], cores=24, gpus=4))
    assert (found.cores, found.gpus, found.gpu_model) == (24, 4, "NVIDIA T4")


def test_the_price_of_burst_toml_wins(make: Build, aws: EksServer) -> None:
    aws.prices["m5.xlarge"] = 0.192
    assert offer(make(usd=0.05)).usd_per_node_hour == 0.05
    assert not aws.asked("GetProducts")


def test_an_unknown_price_is_none(make: Build, aws: EksServer) -> None:
    assert offer(make()).usd_per_node_hour is None
    aws.fail("pricing", "GetProducts", "AccessDeniedException", "not you")
    assert offer(make()).usd_per_node_hour is None
    aws.prices["m5.xlarge"] = 0.0
    assert offer(make()).usd_per_node_hour is None


def test_a_spot_price_is_the_highest_of_its_types_and_zones(make: Build, aws: EksServer) -> None:
    aws.spot_prices = {"m5.xlarge": {"us-east-1a": 0.07, "us-east-1b": 0.09}, "m5a.xlarge": {"us-east-1a": 0.08}}
    found = offer(make(capacity="spot"))
    assert (found.spot, found.usd_per_node_hour) == (True, 0.09)
    kinds = ["m5.xlarge", "m5a.xlarge"]
    in_a = next(
        subnet["SubnetId"]
        for subnet in aws.client("ec2").describe_subnets()["Subnets"]
        if subnet["AvailabilityZone"] == "us-east-1a"
    )
    assert offer(make(capacity="spot", instance_types=kinds, subnets=[in_a])).usd_per_node_hour == 0.08


def test_a_type_that_does_not_exist_is_refused(make: Build) -> None:
    (found,) = make(instance_types=["m5.gigantic"]).offers(DEMAND)
    assert isinstance(found, Refusal)
    assert "InvalidInstanceType" in found.reason


# Access


def test_a_token_is_signed_for_the_cluster_and_renewed_in_time(make: Build, aws: EksServer) -> None:
    from kubernetes.client import Configuration

    now = [1000.0]
    configuration = Configuration()
    access.by_eks(make()._aws, "hpc", lambda: now[0])(configuration)
    assert configuration.host == "https://127.0.0.1:1"

    def bearer() -> str:
        value: str = configuration.auth_settings()["BearerToken"]["value"]
        return value.removeprefix("Bearer ")

    first = bearer()
    assert aws.judge(first) == ("eks-service", ["fluxburst"])
    now[0] += access.TOKEN_S - 1
    assert bearer() == first
    configuration.api_key["BearerToken"] = "Bearer old"
    now[0] += 2
    assert aws.judge(bearer()) is not None
    aws.cluster = "another"
    assert aws.judge(bearer()) is None


# Check


def findings(provider: EksProvider) -> dict[str, Finding]:
    return {finding.subject: finding for finding in provider.check()}


def test_check_compares_types_roles_and_quotas_and_changes_nothing(make: Build, aws: EksServer) -> None:
    aws.quotas["L-1216C47A"] = 8
    found = findings(make(cores=4, node_role="arn:aws:iam::123456789012:role/nobody", subnets=["subnet-none"]))
    types = found["pool c2 instance types"]
    assert types.severity is Severity.ERROR
    assert types.message.startswith("m5.xlarge has 2 cores (4 vCPUs), 0 GPUs, 16 GiB; the pool declares 4 cores")
    assert found["pool c2 node role"].severity is Severity.ERROR
    assert "subnet-none" in found["pool c2 subnets"].message
    assert found["pool c2 node group"].message == "fluxburst-test-c2 is made at the first launch"
    quota = found["quota of standard on-demand vCPUs"]
    assert (quota.severity, quota.message) == (Severity.WARNING, "8 in us-east-1; all pools, full, take 16")
    verbs = {operation for service, operation, _ in aws.calls if service in ("eks", "autoscaling")}
    assert all(verb.startswith(("Describe", "List")) for verb in verbs)


@pytest.mark.parametrize("operation", ["DescribeAutoScalingGroups", "DescribeScalingActivities"])
def test_check_tells_of_machines_that_could_not_be_looked_at(make: Build, aws: EksServer, operation: str) -> None:
    aws.fail("autoscaling", operation, "AccessDenied", "not you", status=403)
    found = findings(make())["auto scaling"]
    assert (found.severity, found.fix) == (Severity.ERROR, f"allow autoscaling:{operation}")


def test_check_tells_of_a_cluster_that_is_not_fit(make: Build, aws: EksServer) -> None:
    aws.cluster_status = "UPDATING"
    assert findings(make())["EKS cluster"].message == "hpc is UPDATING"
    aws.client("eks").delete_cluster(name="hpc")
    assert "No cluster found for name: hpc" in findings(make())["EKS cluster"].message


def test_check_tells_of_node_groups_that_no_pool_has(make: Build, aws: EksServer) -> None:
    provider = make()
    provider._groups.create(provider._context.pools["c2"], 1, "b-1")
    found = findings(make(node_group="another"))["node groups"]
    assert found.message == "fluxburst-test-c2 (ACTIVE, 1 nodes) is of no pool any more"
    assert found.fix == "aws eks delete-nodegroup --cluster-name hpc --nodegroup-name fluxburst-test-c2"
