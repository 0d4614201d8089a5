"""EKS: followers as pods on node groups that grow from zero and go back to it, on a real control plane."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fluxburst.errors import AuthDenied, InvalidOrder, NoCapacity, ProviderUnavailable, QuotaExceeded
from fluxburst.flux.private import find_flux
from fluxburst.model import BootMaterial, Host, NodePhase, NodeReport, Offer, Order, PoolSpec, RequestId, Secret
from fluxburst.provider import ProviderContext
from fluxburst.testing import PrivateSite
from fluxburst_eks.provider import EksProvider, build
from fluxburst_kubernetes.jobs import Jobs
from tests.kube import orders
from tests.kube.api import Api
from tests.kube.control_plane import ControlPlane
from tests.kube.eks_server import ACCESS_KEY, GROUP, REGION, ROLE, SECRET_KEY, SOLD_OUT, EksServer
from tests.kube.kubelet import Kubelet
from tests.kube.token_reviews import TokenReviews
from tests.real import steps

pytestmark = pytest.mark.kube

GROUP_NAME = "fluxburst-test-c2"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
BURST_TOML = """
[policy]
cooldown = "1s"
[pool.c2]
provider = "eks"
hosts = "c2-[0-3]"
cores = 2
idle_timeout = "500ms"
[pool.c2.options]
image = "follower"
flux = "{flux}"
instance_types = ["m5.xlarge"]
node_role = "{role}"
[provider.eks]
region = "{region}"
cluster = "hpc"
namespace = "{namespace}"
endpoint_url = "{url}"
"""


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of the service; none of this machine's own are looked for."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def permissions(api: Api, namespace: str) -> Iterator[None]:
    """What the README says that the service's account needs in the cluster, and no more."""
    rules = [{"apiGroups": [group], "resources": [kind], "verbs": list(verbs)} for group, kind, verbs in Jobs.needed]
    nodes = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    made = []
    for scope, place, allowed in (("", RBAC, nodes), ("namespaced", f"{RBAC}/namespaces/{namespace}", rules)):
        role, binding = ("Role", "RoleBinding") if scope else ("ClusterRole", "ClusterRoleBinding")
        name = f"fluxburst-{namespace}"
        api.post(f"{place}/{role.lower()}s", {"metadata": {"name": name}, "rules": allowed})
        subjects = [{"kind": "Group", "name": GROUP, "apiGroup": "rbac.authorization.k8s.io"}]
        reference = {"kind": role, "name": name, "apiGroup": "rbac.authorization.k8s.io"}
        body = {"metadata": {"name": name}, "subjects": subjects, "roleRef": reference}
        api.post(f"{place}/{binding.lower()}s", body)
        made += [f"{place}/{binding.lower()}s/{name}", f"{place}/{role.lower()}s/{name}"]
    yield
    for path in made:
        api.delete(path)


@pytest.fixture
def aws(
    control_plane: ControlPlane, kubelet: Kubelet, token_reviews: TokenReviews, permissions: None
) -> Iterator[EksServer]:
    with EksServer("hpc", control_plane.url, control_plane.ca, kubelet) as server:
        server.prices["m5.xlarge"] = 0.192
        token_reviews.judges.append(server.judge)
        yield server
        token_reviews.judges.remove(server.judge)


@pytest.fixture
def provider(aws: EksServer, namespace: str, tmp_path: Path) -> Iterator[EksProvider]:
    made = build(context(aws, namespace, flux=orders.follower(tmp_path)))
    yield made
    made.close()


def context(aws: EksServer, namespace: str, **more: Any) -> ProviderContext:
    options = {"image": "follower", "instance_types": ["m5.xlarge"], "node_role": ROLE, "grace": "1s", **more}
    pool = PoolSpec("c2", tuple(Host(f"c2-{index}") for index in range(4)), 2, options=options)
    table = {"region": REGION, "cluster": "hpc", "namespace": namespace, "endpoint_url": aws.url}
    return ProviderContext("eks", "test", table, {"c2": pool}, Path("/nonexistent"))


def order(*indexes: int, name: str = "b-aaaaaaaaaaaa") -> Order:
    hosts = tuple(Host(f"c2-{index}") for index in indexes)
    boot = BootMaterial(orders.CONFIG_TOML, "/none", Secret(orders.CERTIFICATE))
    return Order(RequestId(name), "test", "c2", hosts, Offer("c2", "eks", "m5.xlarge", 2), boot, time.time())


def phases(provider: EksProvider) -> dict[str, NodePhase]:
    return {report.host: report.phase for report in provider.list_nodes()}


def all_run(provider: EksProvider, *hosts: str) -> Callable[[], bool]:
    return lambda: phases(provider) == dict.fromkeys(hosts, NodePhase.RUNNING)


def give_all_back(provider: EksProvider, aws: EksServer) -> None:
    """As the controller does: again and again, until nothing is listed."""

    def gone() -> bool:
        listed = provider.list_nodes()
        if listed:
            provider.release([report.node_id for report in listed])
        return not listed

    steps.eventually(gone)
    assert all(not group.machines and not group.desired for group in aws.groups.values())


def left(api: Api, namespace: str) -> list[dict[str, Any]]:
    kinds = (
        "apis/batch/v1/namespaces/{}/jobs",
        *(f"api/v1/namespaces/{{}}/{kind}" for kind in ("pods", "secrets", "services")),
    )
    mine = "app.kubernetes.io/managed-by=fluxburst"
    return [item for kind in kinds for item in api.get("/" + kind.format(namespace), labelSelector=mine)["items"]]


# The whole way


@pytest.fixture
def site(aws: EksServer, namespace: str) -> Iterator[PrivateSite]:
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    burst_toml = BURST_TOML.format(flux=find_flux(), role=ROLE, region=REGION, namespace=namespace, url=aws.url)
    try:
        with PrivateSite(directory, burst_toml) as site:
            steps.serve(site)
            yield site
            print(site.log_path.read_text()[-9000:])  # shown where the test failed
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.flux
def test_a_node_group_grows_from_zero_runs_a_job_and_goes_back(
    aws: EksServer, site: PrivateSite, api: Api, namespace: str
) -> None:
    aws.creation_s, aws.boot_s = 0.5, 0.5
    began_at, began = time.time(), time.monotonic()
    job = site.submit("--setattr", "burstable=true", "-N3", "hostname")
    submitted_at = steps.await_event(site, job, "submit")["timestamp"]
    started_at = steps.await_event(site, job, "start")["timestamp"]
    finish = steps.await_event(site, job, "finish")
    assert finish["context"]["status"] == 0
    assert set(steps.hosts_of(site, job)) == {"c2-0", "c2-1", "c2-2"}
    steps.eventually(lambda: not left(api, namespace))
    steps.eventually(lambda: steps.nothing_left(site))
    gone = time.monotonic()
    (group,) = aws.groups.values()
    assert (group.desired, group.machines, group.status) == (0, [], "ACTIVE")
    assert max(there for _, _, _, there in aws.history) == 3
    bought = steps.records(site, submitted_at)
    assert {(node["host"], node["state"], node["reason"]) for node in bought} == {
        (f"c2-{index}", "gone", "idle") for index in range(3)
    }
    events = [(at - began, f"node group: {wanted} wanted, {there} there") for at, _, wanted, there in aws.history]
    events += [(submitted_at - began_at, "submitted"), (started_at - began_at, "the job starts")]
    events += [(finish["timestamp"] - began_at, "the job ends"), (gone - began, "nothing left")]
    for at, what in sorted(events):
        print(f"{at:6.2f} s  {what}")


# Buying once


def test_an_order_is_bought_once_whatever_became_of_the_first_call(provider: EksProvider, aws: EksServer) -> None:
    aws.fail("eks", "CreateNodegroup", "ServerException", "it broke off", status=500, afterwards=True)
    for _ in range(2):  # botocore itself asks again, and finds the node group there
        aws.fail("eks", "CreateNodegroup", "ServerException", "it broke off", status=500)
    with pytest.raises(ProviderUnavailable, match="ServerException: it broke off"):
        provider.launch(order(0, 1))
    provider.launch(order(0, 1))
    steps.eventually(all_run(provider, "c2-0", "c2-1"))
    for _ in range(3):
        aws.fail("autoscaling", "SetDesiredCapacity", "InternalFailure", "it broke off", status=500, afterwards=True)
    with pytest.raises(ProviderUnavailable, match="InternalFailure"):
        provider.launch(order(2, name="b-bbbbbbbbbbbb"))
    for _ in range(2):
        provider.launch(order(2, name="b-bbbbbbbbbbbb"))
        provider.launch(order(0, 1))
    steps.eventually(all_run(provider, "c2-0", "c2-1", "c2-2"))
    assert aws.groups[GROUP_NAME].desired == max(there for *_, there in aws.history) == 3
    give_all_back(provider, aws)


def test_what_a_launch_left_to_be_done_is_done_by_the_next_listings(provider: EksProvider, aws: EksServer) -> None:
    aws.creation_s = 1.0
    provider.launch(order(0))
    with pytest.raises(ProviderUnavailable, match=f"node group {GROUP_NAME} is CREATING; it is tried again"):
        provider.launch(order(1, name="b-bbbbbbbbbbbb"))
    steps.eventually(all_run(provider, "c2-0", "c2-1"))
    # no answer at all, and nothing set: botocore's three tries
    for _ in range(3):
        aws.fail("autoscaling", "SetDesiredCapacity", "InternalFailure", "it broke off", status=500)
    with pytest.raises(ProviderUnavailable, match="InternalFailure"):
        provider.launch(order(2, name="b-cccccccccccc"))
    steps.eventually(all_run(provider, "c2-0", "c2-1", "c2-2"))
    assert aws.groups[GROUP_NAME].desired == max(there for *_, there in aws.history) == 3
    # what the first order bought, no zone may rebalance
    assert aws.groups[GROUP_NAME].suspended == {"AZRebalance"}
    give_all_back(provider, aws)


def test_a_service_that_ended_between_pods_and_machines_goes_on(
    provider: EksProvider, aws: EksServer, namespace: str
) -> None:
    provider._pods.launch(order(0, 1))
    after = build(context(aws, namespace))
    try:
        steps.eventually(all_run(after, "c2-0", "c2-1"))
        assert aws.groups[GROUP_NAME].desired == max(there for *_, there in aws.history) == 2
        give_all_back(after, aws)
    finally:
        after.close()


def test_machines_that_are_refused_later_fail_their_nodes(provider: EksProvider, aws: EksServer) -> None:
    provider._pods.launch(order(0, 1))
    aws.fail("eks", "CreateNodegroup", "ResourceLimitExceededException", "node groups for cluster hpc: 30", status=400)

    def failed() -> list[str]:
        return [report.detail for report in provider.list_nodes() if report.phase is NodePhase.FAILED]

    assert [told.partition(" (")[0] for told in steps.eventually(failed)] == [
        "provider eks: ResourceLimitExceededException: node groups for cluster hpc: 30"
    ] * 2
    give_all_back(provider, aws)


def test_a_node_group_that_failed_is_not_deleted_under_its_jobs(provider: EksProvider, aws: EksServer) -> None:
    provider.launch(order(0))
    steps.eventually(all_run(provider, "c2-0"))
    group = aws.groups[GROUP_NAME]
    group.status, group.issues = "CREATE_FAILED", [{"code": "Ec2SubnetMissing", "message": "no such subnet"}]
    with pytest.raises(NoCapacity, match="Ec2SubnetMissing: no such subnet; it is made anew when none of its nodes"):
        provider.launch(order(1, name="b-bbbbbbbbbbbb"))
    assert phases(provider) == {"c2-0": NodePhase.RUNNING}
    assert not aws.asked("DeleteNodegroup")
    group.status = "ACTIVE"
    give_all_back(provider, aws)


def test_a_clear_no_leaves_nothing_that_could_be_bought_later(
    provider: EksProvider, aws: EksServer, api: Api, namespace: str
) -> None:
    aws.fail("eks", "CreateNodegroup", "ResourceLimitExceededException", "node groups for cluster hpc: 30", status=400)
    with pytest.raises(QuotaExceeded, match="ResourceLimitExceededException: node groups for cluster hpc: 30"):
        provider.launch(order(0, 1))
    steps.eventually(lambda: not left(api, namespace))
    assert not aws.groups
    steps.eventually(lambda: not provider.list_nodes())


# Giving back


def test_the_machine_of_the_released_pod_goes_and_no_other(provider: EksProvider, aws: EksServer) -> None:
    provider.launch(order(0, 1, 2))
    steps.eventually(all_run(provider, "c2-0", "c2-1", "c2-2"))
    group = aws.groups[GROUP_NAME]
    machines = {pod.host: pod.node for pod in provider._pods.machines()}
    aws.ending_s = 1.0
    (middle,) = [report.node_id for report in provider.list_nodes() if report.host == "c2-1"]
    remain = all_run(provider, "c2-0", "c2-2")

    def gone() -> bool:
        provider.release([middle])
        return remain()

    provider.release([middle])
    # its broker may end in peace, and its machine is listed until it is really gone
    assert len(group.alive) == 3
    steps.eventually(lambda: phases(provider)["c2-1"] is NodePhase.STOPPING)
    steps.eventually(gone)
    assert {machine.node for machine in group.machines} == {machines["c2-0"], machines["c2-2"]}
    assert group.desired == 2
    assert len(aws.asked("TerminateInstanceInAutoScalingGroup")) == 1
    assert not aws.asked("SetDesiredCapacity")
    give_all_back(provider, aws)


def test_a_machine_that_no_pod_needs_is_seen_and_given_back(
    provider: EksProvider, aws: EksServer, api: Api, namespace: str
) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    provider.launch(order(0, 1))
    steps.eventually(all_run(provider, "c2-0", "c2-1"))
    group = aws.groups[GROUP_NAME]
    lost, kept = group.machines
    (pod,) = [pod for pod in api.get(pods)["items"] if pod["spec"]["nodeName"] == lost.node]
    # as EKS does with a spot instance that is about to be interrupted
    api.delete(f"{pods}/{pod['metadata']['name']}")
    api.wait_gone(pods, pod["metadata"]["name"])
    aws.interrupt(lost)
    # its auto scaling group starts another in its place, for which there is no pod

    def surplus() -> list[NodeReport]:
        there = {machine.id for machine in group.machines if machine.state == "InService"}
        return [report for report in provider.list_nodes() if report.node_id in there]

    (found,) = steps.eventually(surplus)
    assert (found.phase, found.request_id) == (NodePhase.RUNNING, "")
    assert found.detail == f"no pod for it in {GROUP_NAME}"
    provider.release([found.node_id])
    steps.eventually(lambda: group.machines == [kept])
    assert group.desired == 1
    assert all(not report.node_id.startswith("i-") for report in provider.list_nodes())
    give_all_back(provider, aws)


def test_what_is_wrong_with_one_pool_keeps_no_machine_of_another(
    aws: EksServer, namespace: str, tmp_path: Path
) -> None:
    both = context(aws, namespace, flux=orders.follower(tmp_path))
    both.pools["d"] = replace(both.pools["c2"], name="d", hosts=(Host("d-0"),))  # type: ignore[index]
    provider = build(both)
    try:
        provider.launch(order(0))
        provider.launch(replace(order(name="b-dddddddddddd"), pool="d", hosts=(Host("d-0"),)))
        steps.eventually(all_run(provider, "c2-0", "d-0"))
        provider.release([report.node_id for report in provider.list_nodes()])
        steps.eventually(lambda: not provider._pods.machines())
        aws.fail("autoscaling", "SetDesiredCapacity", "AccessDenied", "not you", status=403)
        with pytest.raises(AuthDenied, match="AccessDenied: not you"):
            provider.release([])
        sizes = {name: group.desired for name, group in aws.groups.items()}
        assert sizes == {GROUP_NAME: 1, "fluxburst-test-d": 0}
        give_all_back(provider, aws)
    finally:
        provider.close()


def test_sold_out_in_mid_order_is_told_and_leaves_nothing(provider: EksProvider, aws: EksServer) -> None:
    aws.capacity = 2
    provider.launch(order(0, 1, 2))

    def failed() -> list[NodeReport]:
        listed = provider.list_nodes()
        running = [report for report in listed if report.phase is NodePhase.RUNNING]
        return [report for report in listed if report.phase is NodePhase.FAILED] if len(running) == 2 else []

    (lacking,) = steps.eventually(failed)
    assert lacking.detail == SOLD_OUT
    # the rest goes on without it: two machines, and none is looked for any more
    provider.release([lacking.node_id])
    steps.eventually(lambda: list(phases(provider).values()) == [NodePhase.RUNNING] * 2)
    assert aws.groups[GROUP_NAME].desired == 2
    aws.capacity = None
    give_all_back(provider, aws)
    assert max(there for *_, there in aws.history) == 2


def test_a_node_group_that_is_not_kept_is_deleted_with_its_last_node(aws: EksServer, namespace: str) -> None:
    provider = build(context(aws, namespace, keep_node_group=False, flux="/bin/true"))
    try:
        provider.launch(order(0))
        steps.eventually(lambda: aws.groups[GROUP_NAME].machines)
        give_all_back(provider, aws)
        steps.eventually(lambda: not aws.groups)
        assert aws.asked("DeleteNodegroup") == [{"clusterName": "hpc", "nodegroupName": GROUP_NAME}]
    finally:
        provider.close()


def test_a_node_group_that_was_there_before_is_left_alone(
    provider: EksProvider, aws: EksServer, api: Api, namespace: str
) -> None:
    sizes = {"minSize": 0, "maxSize": 9, "desiredSize": 0}
    aws.client("eks").create_nodegroup(
        clusterName="hpc", nodegroupName=GROUP_NAME, nodeRole=ROLE, subnets=aws.subnets, scalingConfig=sizes
    )
    aws.calls.clear()
    with pytest.raises(InvalidOrder, match="was there before, and is left alone"):
        provider.launch(order(0))
    assert not left(api, namespace)
    assert not provider.list_nodes()
    provider.release([])
    (finding,) = [found for found in provider.check() if found.subject == "pool c2 node group"]
    assert "was there before" in finding.message
    assert {operation for service, operation, _ in aws.calls if service == "eks"} <= {
        "DescribeNodegroup",
        "DescribeCluster",
        "ListNodegroups",
    }


# Credentials


def test_a_token_that_is_no_longer_taken_is_renewed(provider: EksProvider, aws: EksServer) -> None:
    assert provider.list_nodes() == []
    aws.revoked.update(aws.tokens)

    def refused() -> bool:
        try:
            provider._cluster.get("/version")
        except AuthDenied as error:
            assert "Unauthorized" in str(error)  # noqa: PT017 - it comes when the API server forgets the token
            return True
        return False

    steps.eventually(refused)
    provider.launch(order(0))
    steps.eventually(all_run(provider, "c2-0"))
    assert len(aws.tokens) == 2
    give_all_back(provider, aws)


def test_check_finds_all_well_with_the_permissions_of_the_readme(provider: EksProvider, aws: EksServer) -> None:
    aws.quotas["L-1216C47A"] = 8
    findings = {finding.subject: finding for finding in provider.check()}
    odd = {name: finding.message for name, finding in findings.items() if finding.severity != "ok"}
    assert odd == {"quota of standard on-demand vCPUs": "8 in us-east-1; all pools, full, take 16"}
    assert findings["nodes"].message == "it may see the cluster's nodes"
