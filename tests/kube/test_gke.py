"""The provider gke, by Google's own clients against a server of the tests' own and a real control plane."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.cloud import compute_v1, container_v1

from fluxburst.errors import (
    AuthDenied,
    InvalidOrder,
    NoCapacity,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
)
from fluxburst.flux.private import find_flux
from fluxburst.hostlist import expand
from fluxburst.model import (
    BootMaterial,
    Demand,
    Host,
    JobId,
    NodeId,
    NodePhase,
    NodeReport,
    Offer,
    Order,
    PoolSpec,
    Refusal,
    RequestId,
    Secret,
    Severity,
)
from fluxburst.provider import Provider, ProviderContext
from fluxburst.testing import PrivateSite
from fluxburst_gke import make
from fluxburst_gke.commands import cleaned_up
from fluxburst_kubernetes.provider import KubernetesProvider
from tests.kube.api import Api
from tests.kube.control_plane import ControlPlane
from tests.kube.gke_server import CLUSTER, ZONE, Google, Pool, Vm, serving
from tests.kube.kubelet import Kubelet
from tests.kube.test_burst import left
from tests.real import steps

pytestmark = [pytest.mark.kube]

POOL = "fb-private-c2"
BURST_TOML = """
[policy]
cooldown = "1s"
[pool.c2]
provider = "gke"
hosts = "c2-[0-7]"
cores = 2
usd_per_node_hour = 0.5
idle_timeout = "500ms"
[pool.c2.options]
machine_type = "tiny"
image = "follower"
flux = "{flux}"
{more}
[provider.gke]
gke_cluster = "{cluster}"
namespace = "{namespace}"
{google}
"""


@pytest.fixture
def google(control_plane: ControlPlane, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    directory = Path(tempfile.mkdtemp(prefix="fb-google-"))
    try:
        with serving(control_plane, kubelet, directory) as google:
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google.key))
            monkeypatch.setenv("NO_GCE_CHECK", "true")
            yield google
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def serving_site(google: Google, namespace: str, more: str = "") -> Iterator[PrivateSite]:
    """A real lead with a running service."""
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    toml = BURST_TOML.format(flux=find_flux(), cluster=CLUSTER, namespace=namespace, google=google.toml, more=more)
    try:
        with PrivateSite(directory, toml) as site:
            steps.serve(site)
            try:
                yield site
            finally:
                print(site.log_path.read_text()[-9000:])  # shown where the test failed
                print("time line, s:", *(f"  {at:6.2f} {what}" for at, what in google.log), sep="\n")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def burst(site: PrivateSite, google: Google) -> JobId:
    """A job of three nodes, from its submission to its end."""
    google.tell("submit")
    job = site.submit("--setattr", "burstable=true", "-N3", "hostname")
    steps.await_event(site, job, "start")
    google.tell("start")
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    google.tell("finish")
    return job


@pytest.mark.flux
def test_a_node_pool_goes_from_zero_to_three_and_back(google: Google, api: Api, namespace: str) -> None:
    with serving_site(google, namespace) as site:
        job = burst(site, google)
        assert set(steps.hosts_of(site, job)) == {"c2-0", "c2-1", "c2-2"}
        steps.eventually(lambda: steps.nothing_left(site))
        google.tell("all records ended")
        assert google.machines(POOL) == []
        assert google.pools[POOL].target == 0
        assert not left(api, namespace)
        assert google.sizes == [(POOL, 3)]
        assert {(node["host"], node["state"], node["reason"]) for node in steps.records(site, 0.0)} == {
            (f"c2-{index}", "gone", "idle") for index in range(3)
        }


@pytest.mark.flux
def test_what_one_zone_has_not_the_next_one_gives(google: Google, api: Api, namespace: str) -> None:
    """Two of three come in the first zone; the gang runs in the other, and what came is given back."""
    zones = (ZONE, ZONE[:-1] + "b")
    google.capacity[zones[0]] = 2
    with serving_site(google, namespace, more=f"zones = {list(zones)}") as site:
        job = burst(site, google)
        told = {node["reason"] for node in steps.records(site, 0.0)}
        assert any("does not have enough resources available" in reason for reason in told)
        assert len(steps.hosts_of(site, job)) == 3
        assert google.sizes[0] == (f"{POOL}-a", 3)
        assert {name for name, _ in google.sizes[1:]} == {f"{POOL}-b"}
        google.wait_for(lambda: [google.machines(f"{POOL}-{zone}") for zone in "ab"] == [[], []])
        assert [google.pools[f"{POOL}-{zone}"].target for zone in "ab"] == [0, 0]
        steps.eventually(lambda: not left(api, namespace))


SLEEP = "trap 'exit 1' TERM; sleep 1000 & wait"


class Site:
    """The provider as the controller would use it, without a Flux: its pods sleep."""

    def __init__(self, google: Google, namespace: str, directory: Path, **more: Any) -> None:
        self.google, self.namespace, self._directory = google, namespace, directory
        self._more = more
        self._open: list[Provider] = []
        self.provider = self.anew()

    def anew(self, **pool: Any) -> Provider:
        """Another process' provider, which knows nothing but what it is told."""
        sleep = {"spec": {"containers": [{"name": "follower", "command": ["sh", "-c", SLEEP]}]}}
        options = {"machine_type": "tiny", "image": "any", "grace": "1s", "patch": sleep, **pool}
        hosts = tuple(Host(f"c2-{index}") for index in range(8))
        spec = PoolSpec("c2", hosts, 2, usd_per_node_hour=0.5, options=options)
        self.provider = make(ProviderContext("gke", "private", self.table, {"c2": spec}, self._directory))
        self._open.append(self.provider)
        return self.provider

    @property
    def table(self) -> dict[str, Any]:
        table = tomllib.loads("[provider.gke]" + self.google.toml)["provider"]["gke"]
        return {"gke_cluster": CLUSTER, "namespace": self.namespace, **table, **self._more}

    def order(self, request_id: str, hosts: str, zone: str = ZONE) -> Order:
        offer = Offer("c2", "gke", "tiny", 2, zone=zone)
        boot = BootMaterial('[bootstrap]\ncurve_cert = "/c"\n', "/c", Secret(b"certificate"))
        names = tuple(map(Host, expand(hosts)))
        return Order(RequestId(request_id), "private", "c2", names, offer, boot, created_at=0.0)

    def launch(self, request_id: str, hosts: str) -> None:
        self.provider.launch(self.order(request_id, hosts))

    def nodes(self) -> dict[str, NodeReport]:
        return {report.node_id: report for report in self.provider.list_nodes()}

    def phases(self) -> dict[str, NodePhase]:
        return {name: report.phase for name, report in self.nodes().items()}

    def await_phases(self, **wanted: NodePhase) -> None:
        """Wait for phases of hosts, of the listing that the controller would ask for again and again."""
        steps.eventually(
            lambda: wanted.items() <= {r.host.replace("-", "_"): r.phase for r in self.nodes().values()}.items()
        )

    def give_all_back(self) -> None:
        """As the controller does: until nothing is listed."""

        def gone() -> bool:
            listed = list(self.nodes())
            if listed:
                self.provider.release(listed)  # type: ignore[arg-type]
            return not listed

        steps.eventually(gone)
        assert self.google.machines(POOL) == []

    def close(self) -> None:
        for provider in self._open:
            provider.close()


@pytest.fixture
def site(google: Google, namespace: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(google, namespace, tmp_path)
    yield site
    print(*google.log, sep="\n")
    site.close()


TURNS = 30
"""Of the random test; more of them find more."""
RUNNING, STARTING, STOPPING, FAILED = NodePhase.RUNNING, NodePhase.STARTING, NodePhase.STOPPING, NodePhase.FAILED


def test_the_same_order_again_buys_nothing(site: Site, google: Google) -> None:
    google.boots.clear()
    site.launch("b-one", "c2-[0-1]")
    site.launch("b-one", "c2-[0-1]")
    site.anew().launch(site.order("b-one", "c2-[0-1]"))
    assert site.phases() == {"b-one.c2-0": STARTING, "b-one.c2-1": STARTING}
    google.boots.set()
    site.await_phases(c2_0=RUNNING, c2_1=RUNNING)
    site.launch("b-one", "c2-[0-1]")
    site.anew().launch(site.order("b-one", "c2-[0-1]"))
    assert google.sizes == [(POOL, 2)]
    site.give_all_back()


def test_an_order_whose_pods_were_never_made_is_served_by_what_it_bought(
    site: Site, google: Google, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between the two: the same order again buys nothing more, and is placed."""

    def crash(*_: object) -> None:
        raise ProviderUnavailable("crash")

    with monkeypatch.context() as patched:
        patched.setattr(KubernetesProvider, "place", crash)
        with pytest.raises(ProviderUnavailable, match="crash"):
            site.launch("b-one", "c2-[0-1]")
    google.wait_for(lambda: len(google.machines(POOL)) == 2)
    site.anew().launch(site.order("b-one", "c2-[0-1]"))
    site.await_phases(c2_0=RUNNING, c2_1=RUNNING)
    assert google.sizes == [(POOL, 2)]
    site.give_all_back()


def test_what_an_order_bought_that_never_comes_back_is_given_back(
    site: Site, google: Google, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(KubernetesProvider, "place", lambda *_: None)
        site.launch("b-one", "c2-[0-1]")
    google.wait_for(lambda: len(google.machines(POOL)) == 2)
    site.anew()
    assert {report.request_id for report in site.nodes().values()} == {"b-nobody"}
    site.give_all_back()


def test_a_second_order_waits_for_the_first_operation_and_grows_the_pool_to_the_sum(site: Site, google: Google) -> None:
    google.boots.clear()
    site.launch("b-one", "c2-[0-1]")
    with pytest.raises(ProviderUnavailable, match="incompatible operation"):
        site.launch("b-two", "c2-2")
    assert set(site.nodes()) == {"b-one.c2-0", "b-one.c2-1"}
    google.boots.set()
    site.await_phases(c2_0=RUNNING, c2_1=RUNNING)

    def taken() -> bool:
        try:
            site.launch("b-two", "c2-2")
        except ProviderUnavailable:
            return False
        return True

    steps.eventually(taken)
    site.await_phases(c2_0=RUNNING, c2_1=RUNNING, c2_2=RUNNING)
    assert google.sizes == [(POOL, 2), (POOL, 3)]
    site.give_all_back()


def test_one_machine_is_given_back_and_it_is_the_right_one(site: Site, google: Google, api: Api) -> None:
    site.launch("b-one", "c2-[0-2]")
    site.await_phases(c2_0=RUNNING, c2_1=RUNNING, c2_2=RUNNING)
    path = f"/api/v1/namespaces/{site.namespace}/pods"
    pods = {pod["metadata"]["name"].split("-")[3]: pod for pod in api.get(path)["items"]}
    steps.eventually(lambda: site.provider.release([NodeId("b-one.c2-1")]) or "b-one.c2-1" not in site.nodes())
    kept = {pods[index]["spec"]["nodeName"] for index in "02"}
    assert set(google.machines(POOL)) == kept
    assert {pod["metadata"]["uid"] for pod in api.get(path)["items"]} == {pods[i]["metadata"]["uid"] for i in "02"}
    assert google.sizes == [(POOL, 3)]  # GKE was not asked to choose
    site.give_all_back()


def test_a_machine_is_listed_until_it_is_gone_although_its_pod_is(site: Site, google: Google, api: Api) -> None:
    site.launch("b-one", "c2-0")
    site.await_phases(c2_0=RUNNING)
    google.stop_s = 1.5
    site.provider.release([NodeId("b-one.c2-0")])
    pods = f"/api/v1/namespaces/{site.namespace}/pods"
    steps.eventually(lambda: not api.get(pods)["items"])
    assert site.phases() == {"b-one.c2-0": STOPPING}
    assert set(map(str, site.anew().list_nodes())) != set()
    google.wait_for(lambda: not google.machines(POOL))
    assert site.nodes() == {}


def test_a_machine_without_a_pod_is_seen_and_given_back(site: Site, google: Google, api: Api) -> None:
    site.launch("b-one", "c2-0")
    site.await_phases(c2_0=RUNNING)
    api.delete(f"/apis/batch/v1/namespaces/{site.namespace}/jobs/fluxburst-b-one", propagationPolicy="Background")
    steps.eventually(lambda: not api.get(f"/api/v1/namespaces/{site.namespace}/pods")["items"])
    site.anew()  # which has never seen whose it was
    (machine,) = google.machines(POOL)
    steps.eventually(lambda: site.phases() == {f"b-nobody.{machine}": STOPPING})
    site.give_all_back()


def test_what_is_cancelled_while_it_comes_is_listed_until_it_is_gone(site: Site, google: Google) -> None:
    google.boots.clear()
    site.launch("b-one", "c2-[0-2]")
    google.wait_for(lambda: len(google.machines(POOL)) == 3)
    site.provider.release([NodeId(f"b-one.c2-{index}") for index in range(3)])
    google.boots.set()
    site.give_all_back()
    assert google.pools[POOL].target == 0
    assert google.sizes == [(POOL, 3)]


def test_a_stock_out_in_mid_order(site: Site, google: Google) -> None:
    google.capacity[ZONE] = 2
    site.launch("b-one", "c2-[0-2]")
    steps.eventually(lambda: sorted(site.phases().values()) == sorted([RUNNING, RUNNING, FAILED]))
    (failed,) = [report for report in site.nodes().values() if report.phase is FAILED]
    assert "does not have enough resources available" in failed.detail
    with pytest.raises(NoCapacity, match="does not have enough resources"):
        site.launch("b-two", "c2-[3-4]")
    (refusal,) = site.provider.offers(Demand(1, 1, 1))
    assert isinstance(refusal, Refusal)
    assert "does not have enough resources" in refusal.reason
    site.give_all_back()
    assert google.pools[POOL].target == 0
    assert google.sizes == [(POOL, 3)]


def test_a_quota_of_two_for_a_gang_of_three(site: Site, google: Google, api: Api) -> None:
    google.quota = 2
    with pytest.raises(QuotaExceeded, match="Insufficient regional quota"):
        site.launch("b-one", "c2-[0-2]")
    assert site.nodes() == {}
    assert not left(api, site.namespace)
    site.launch("b-two", "c2-[0-1]")
    site.await_phases(c2_0=RUNNING, c2_1=RUNNING)
    with pytest.raises(QuotaExceeded, match="Insufficient regional quota"):
        site.launch("b-three", "c2-2")
    site.give_all_back()


@pytest.mark.parametrize(
    ("code", "words", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, "away", ProviderUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", ProviderUnavailable),
        (grpc.StatusCode.UNAUTHENTICATED, "who?", AuthDenied),
        (grpc.StatusCode.PERMISSION_DENIED, "Required permission container.clusters.update", AuthDenied),
        (grpc.StatusCode.INVALID_ARGUMENT, "Machine type with name tiny does not exist", InvalidOrder),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota exceeded for quota metric 'Requests' per minute", RateLimited),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota 'C2_CPUS' exceeded", QuotaExceeded),
    ],
)
def test_what_google_refuses_has_a_type_and_leaves_nothing(
    site: Site, google: Google, code: grpc.StatusCode, words: str, error: type[ProviderError]
) -> None:
    google.refuse["CreateNodePool"] = [(code, words)]
    with pytest.raises(error, match=re.escape(words)):
        site.launch("b-one", "c2-0")
    assert site.nodes() == {}
    assert google.sizes == []


def test_a_refused_token_is_replaced_and_an_old_one_renewed(site: Site, google: Google) -> None:
    google.tokens = ["revoked"]
    google.boots.clear()
    with pytest.raises(AuthDenied, match="Unauthorized"):
        site.launch("b-one", "c2-0")
    assert google.sizes == []
    google.boots.set()
    google.token_s = 60  # less than google-auth lets a token last
    site.launch("b-one", "c2-0")
    before = google.tokens_given
    site.await_phases(c2_0=RUNNING)
    google.wait_for(lambda: google.tokens_given >= before)
    site.give_all_back()
    assert google.tokens_given > before  # each request after the first found it too old


def test_a_node_pool_that_was_there_before_is_left_alone(site: Site, google: Google) -> None:
    config = container_v1.NodeConfig(machine_type="tiny", resource_labels={"managed-by": "somebody"})
    spec = container_v1.NodePool(name=POOL, locations=[ZONE], config=config)
    google.pools[POOL] = Pool(spec, status=container_v1.NodePool.Status.RUNNING)
    google._boot(google.pools[POOL], Vm("theirs", ZONE))
    with pytest.raises(InvalidOrder, match="was not made by this provider"):
        site.launch("b-one", "c2-0")
    assert site.nodes() == {}
    site.provider.release([NodeId("b-one.c2-0"), NodeId("b-nobody.theirs")])
    assert google.machines(POOL) == ["theirs"]
    assert google.sizes == []
    told = {finding.subject: finding for finding in site.provider.check()}
    assert told[f"node pool {POOL}"].severity is Severity.ERROR


def test_a_stale_listing_buys_nothing_twice_and_leaks_nothing(site: Site, google: Google) -> None:
    google.stale_s = 1.5
    site.launch("b-one", "c2-[0-1]")
    google.wait_for(lambda: len(google.machines(POOL)) == 2 and google.pools[POOL].status.name == "RUNNING")
    site.anew().launch(site.order("b-one", "c2-[0-1]"))
    assert google.sizes == [(POOL, 2)]
    site.await_phases(c2_0=RUNNING, c2_1=RUNNING)
    site.give_all_back()
    assert google.pools[POOL].target == 0


def test_a_preempted_machine_ends_its_pod_and_what_replaces_it_is_given_back(site: Site, google: Google) -> None:
    site.launch("b-one", "c2-[0-1]")
    site.await_phases(c2_0=RUNNING, c2_1=RUNNING)
    google.preempt(google.machines(POOL)[0])
    steps.eventually(lambda: sorted(site.phases().values()) == [RUNNING, STOPPING])
    (lost,) = [name for name, phase in site.phases().items() if phase is STOPPING]
    steps.eventually(lambda: site.provider.release([NodeId(lost)]) or lost not in site.nodes())
    assert len(google.machines(POOL)) == 1
    assert list(site.phases().values()) == [RUNNING]
    assert google.sizes == [(POOL, 2)]
    site.give_all_back()


def test_another_order_gets_a_machine_whose_pod_has_ended(site: Site, google: Google, api: Api) -> None:
    site.anew(patch={"spec": {"containers": [{"name": "follower", "command": ["true"]}]}})
    site.launch("b-one", "c2-0")
    site.await_phases(c2_0=STOPPING)
    (machine,) = google.machines(POOL)
    site.anew().launch(site.order("b-two", "c2-1"))
    site.provider.release([NodeId("b-one.c2-0")])
    site.await_phases(c2_1=RUNNING)
    steps.eventually(lambda: set(site.nodes()) == {"b-two.c2-1"})
    assert google.machines(POOL) == [machine]
    assert google.sizes == [(POOL, 1)]
    site.give_all_back()


def test_check_tells_what_is_missing(site: Site, google: Google) -> None:
    google.denied = {"compute.instanceGroupManagers.update"}
    found = {finding.subject: finding for finding in site.provider.check()}
    assert {name: finding.severity.value for name, finding in found.items()} == {
        "credentials": "ok",
        "project": "error",
        "pool c2": "ok",
        "GKE cluster": "ok",
        "cluster": "ok",
        "permissions": "ok",
    }
    assert "compute.instanceGroupManagers.update" in found["project"].message
    findings = [*site.anew(machine_type="none-such").check()]
    assert any("none-such" in finding.message for finding in findings if finding.severity is Severity.ERROR)
    assert google.sizes == []


def test_a_cluster_is_created_with_the_first_order_and_cleaned_up(
    google: Google, namespace: str, tmp_path: Path
) -> None:
    site = Site(google, namespace, tmp_path, manage_cluster=True, gke_cluster="made")
    try:
        google.boots.clear()
        assert site.nodes() == {}
        for _ in range(2):
            with pytest.raises(ProviderUnavailable, match="GKE cluster made is"):
                site.launch("b-one", "c2-0")
        assert site.nodes() == {}
        google.boots.set()
        google.wait_for(lambda: google.clusters["made"].status.name == "RUNNING")
        site.launch("b-one", "c2-0")
        site.await_phases(c2_0=RUNNING)
        context = ProviderContext("gke", "private", site.table, {}, tmp_path)
        assert list(cleaned_up(context, delete=True)) == [
            f"node pool {POOL}: left, as there are machines in it; release them first",
            f"GKE cluster made: left, for {POOL}",
        ]
        site.give_all_back()
        assert len(google.machines("system")) == 1  # which is what the cluster's own services run on
        for delete, verb in ((False, "would delete"), (True, "deleting")):
            told = f"GKE cluster made: {verb} it, with its node pools"
            assert list(cleaned_up(context, delete=delete)) == [told]
        assert "made" not in google.clusters
        assert list(cleaned_up(context, delete=True)) == ["GKE cluster made: there is none"]
    finally:
        site.close()


def test_cleaning_up_deletes_nothing_that_is_not_ours(site: Site, google: Google) -> None:
    site.launch("b-one", "c2-0")
    site.await_phases(c2_0=RUNNING)
    site.give_all_back()
    spec = container_v1.NodePool(name="theirs", locations=[ZONE], config=container_v1.NodeConfig(machine_type="tiny"))
    google.pools["theirs"] = Pool(spec, status=container_v1.NodePool.Status.RUNNING)
    google.wait_for(lambda: google.pools[POOL].status.name == "RUNNING")
    context = ProviderContext("gke", "private", site.table, {}, Path())
    assert list(cleaned_up(context, delete=True)) == [
        f"node pool {POOL}: deleting it",
        f"GKE cluster {CLUSTER}: left, as others made it",
    ]
    assert list(google.pools) == ["theirs"]
    assert list(google.clusters) == [CLUSTER]


FIREWALL = {"network": "hpc", "port": 8060, "target_tags": ["flux-lead"]}
RULE = "fb-private-gke-lead"


def test_the_way_to_the_lead_is_opened_where_the_site_asks_for_it(
    google: Google, namespace: str, tmp_path: Path
) -> None:
    site = Site(google, namespace, tmp_path, firewall=FIREWALL)
    try:
        findings = [finding for finding in site.provider.check() if finding.subject == "firewall"]
        told = f"rule {RULE} lets 10.8.0.0/14 reach port 8060 of the lead"
        assert [(one.severity, one.message) for one in findings] == [
            (Severity.OK, f"{told}, once it is made with the first order")
        ]
        assert google.firewalls == {}
        site.launch("b-one", "c2-0")
        rule = google.firewalls[RULE]
        assert rule.network.endswith("/global/networks/hpc")
        assert (list(rule.source_ranges), list(rule.target_tags)) == (["10.8.0.0/14"], ["flux-lead"])
        assert [(one.I_p_protocol, list(one.ports)) for one in rule.allowed] == [("tcp", ["8060"])]
        site.launch("b-one", "c2-0")
        site.launch("b-one", "c2-0")
        assert [what for _, what in google.log if "firewall" in what] == [f"firewall rule {RULE}: POST"]
        assert [one.message for one in site.provider.check() if one.subject == "firewall"] == [told]
        # another table: the next process makes it so, and widens nothing else
        rule.source_ranges.append("0.0.0.0/0")
        site.anew()
        site.launch("b-one", "c2-0")
        assert list(google.firewalls[RULE].source_ranges) == ["10.8.0.0/14"]
        site.give_all_back()
        context = ProviderContext("gke", "private", site.table, {}, tmp_path)
        assert f"firewall rule {RULE}: would delete it" in cleaned_up(context, delete=False)
        assert list(google.firewalls) == [RULE]
        assert f"firewall rule {RULE}: deleting it" in list(cleaned_up(context, delete=True))
        assert google.firewalls == {}
    finally:
        site.close()


def test_a_firewall_rule_that_others_made_is_left_and_nothing_is_bought(
    google: Google, namespace: str, tmp_path: Path
) -> None:
    google.firewalls[RULE] = compute_v1.Firewall(name=RULE, description="theirs")
    site = Site(google, namespace, tmp_path, firewall=FIREWALL)
    try:
        with pytest.raises(InvalidOrder, match=f"firewall rule {RULE} was not made by this provider"):
            site.launch("b-one", "c2-0")
        assert google.sizes == []
        assert [one.severity for one in site.provider.check() if one.subject == "firewall"] == [Severity.ERROR]
        context = ProviderContext("gke", "private", site.table, {}, tmp_path)
        list(cleaned_up(context, delete=True))
        assert google.firewalls[RULE].description == "theirs"
    finally:
        site.close()


@pytest.mark.parametrize("seed", [1, 10])
def test_whatever_happens_nothing_is_bought_twice_lost_or_leaked(site: Site, google: Google, seed: int) -> None:
    """Orders, repeats, releases, new processes and stock-outs, in a random order and with listings that lag."""
    dice = random.Random(seed)
    google.stale_s = 0.3
    orders: dict[str, tuple[str, ...]] = {}  # those that the controller still wants to launch
    taken: dict[str, tuple[str, ...]] = {}
    wanted: set[str] = set()  # the nodes that nobody has released
    for turn in range(TURNS):
        step = dice.choice(("order", "order", "repeat", "release", "release", "anew", "capacity"))
        if step == "order":
            used = {node.rpartition(".")[2] for node in site.nodes()}.union(*orders.values())
            free = sorted({f"c2-{index}" for index in range(8)} - used)
            if free:
                orders[f"b-{turn:03d}"] = tuple(dice.sample(free, dice.randint(1, min(3, len(free)))))
        elif step == "repeat" and (again := [name for name in taken if any(one.startswith(name) for one in wanted)]):
            name = dice.choice(again)
            with suppress(ProviderUnavailable):
                site.launch(name, ",".join(taken[name]))
        elif step == "release" and wanted:
            gone = dice.sample(sorted(wanted), dice.randint(1, len(wanted)))
            wanted -= set(gone)
            site.provider.release(list(map(NodeId, gone)))
        elif step == "anew":
            site.anew()
        elif step == "capacity":
            google.capacity[ZONE] = dice.choice((0, 1, 8))
        for name, hosts in list(orders.items()):
            try:
                site.launch(name, ",".join(hosts))
            except ProviderUnavailable:
                continue  # the same again, later
            except NoCapacity:
                del orders[name]
            else:
                taken[name] = orders.pop(name)
                wanted |= {f"{name}.{host}" for host in hosts}
        phases = site.phases()
        assert wanted <= set(phases), "what nobody has released is listed"
        assert not [node for node in wanted if phases[node] is STOPPING], "and does not go by itself"
        wanted -= {node for node in wanted if phases[node] is FAILED}
        site.provider.release([NodeId(node) for node in phases if node not in wanted])
    bought = sum("is a node" in what for _, what in google.log)
    assert bought <= sum(map(len, taken.values())) + sum(map(len, orders.values()))
    google.capacity[ZONE] = 8
    site.give_all_back()
    assert google.pools[POOL].target == 0
