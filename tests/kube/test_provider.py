"""The provider `kubernetes` against a real API server, with its controllers, its scheduler, and pods that run."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fluxburst.errors import AuthDenied, InvalidOrder, ProviderUnavailable, QuotaExceeded
from fluxburst.model import Demand, Host, NodePhase, NodeReport, Order, PoolSpec, Severity
from fluxburst.provider import ProviderContext
from fluxburst_kubernetes import objects
from fluxburst_kubernetes.provider import KubernetesProvider, build
from tests.kube import orders
from tests.kube.api import Api, Object
from tests.kube.control_plane import ControlPlane
from tests.kube.kubelet import FakeNode, Image, Kubelet
from tests.kube.operator import Operator
from tests.real.steps import eventually

pytestmark = pytest.mark.kube

EXAMPLES = Path(__file__).parents[2] / "examples" / "kubernetes"
Make = Callable[..., KubernetesProvider]


@pytest.fixture
def make(control_plane: ControlPlane, api: Api, kubelet: Kubelet, namespace: str, tmp_path: Path) -> Iterator[Make]:
    """Makes providers of the test's namespace, whose followers stay until they are told to go."""
    made: list[KubernetesProvider] = []
    flux = orders.follower(tmp_path)

    def make_one(kubeconfig: Path = control_plane.kubeconfig, **options: Any) -> KubernetesProvider:
        made.append(orders.provider(kubeconfig, namespace, tmp_path, **{"flux": flux, **options}))
        return made[-1]

    yield make_one
    for provider in made:
        provider.close()
    # while there is a kubelet that ends them: what stays keeps others from its machine
    selector = "app.kubernetes.io/managed-by=fluxburst"
    api.request("DELETE", f"/apis/batch/v1/namespaces/{namespace}/jobs", {"propagationPolicy": "Background"})
    eventually(lambda: not api.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)["items"])


@pytest.fixture
def provider(make: Make) -> KubernetesProvider:
    return make()


class Seen:
    """What there is in a namespace."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.core = f"/api/v1/namespaces/{namespace}"
        self.batch = f"/apis/batch/v1/namespaces/{namespace}"

    def pods(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.api.get(f"{self.core}/pods")["items"]
        return items

    def path(self, kind: str, order: Order) -> str:
        return f"{self.batch if kind == 'jobs' else self.core}/{kind}/{objects.name_of(order.request_id)}"

    def get(self, kind: str, order: Order) -> dict[str, Any]:
        return self.api.get(self.path(kind, order))

    def ours(self) -> list[dict[str, Any]]:
        """Whatever an order is made of."""
        paths = (f"{self.batch}/jobs", *(f"{self.core}/{kind}" for kind in ("pods", "secrets", "services")))
        selector = "app.kubernetes.io/managed-by=fluxburst"
        return [item for path in paths for item in self.api.get(path, labelSelector=selector)["items"]]

    def quota(self, **hard: str) -> None:
        name = {"metadata": {"name": "small"}}
        self.api.post(f"{self.core}/resourcequotas", {**name, "spec": {"hard": hard}})
        # it counts from when its controller has seen it
        self.api.wait_for(f"{self.core}/resourcequotas", lambda quota: "hard" in quota.get("status", {}))


@pytest.fixture
def seen(api: Api, namespace: str) -> Seen:
    return Seen(api, namespace)


def phases(provider: KubernetesProvider) -> dict[Host, NodePhase]:
    return {node.host: node.phase for node in provider.list_nodes()}


def running(provider: KubernetesProvider, count: int) -> None:
    eventually(lambda: list(phases(provider).values()) == [NodePhase.RUNNING] * count)


def failed(provider: KubernetesProvider, host: str) -> NodeReport:
    """The report of a host, once it has failed."""

    def found() -> NodeReport | None:
        return next((one for one in provider.list_nodes() if one.host == host and one.phase is NodePhase.FAILED), None)

    eventually(lambda: found() is not None)
    report = found()
    assert report is not None
    return report


# What is sent


KINDS = ("jobs", "secrets", "services")
EVERYTHING: dict[str, Any] = {
    "image_pull_policy": "IfNotPresent",
    "image_pull_secrets": ["registry"],
    "service_account": "runner",
    "requests": {"cpu": "1", "memory": "1Gi"},
    "limits": {"memory": "2Gi"},
    "node_selector": {"disk": "fast"},
    "tolerations": [{"key": "burst", "operator": "Exists", "effect": "NoSchedule"}],
    "env": {"OMP_NUM_THREADS": "2"},
    "volumes": [{"name": "data", "emptyDir": {}}],
    "volume_mounts": [{"name": "data", "mountPath": "/data"}],
    "labels": {"team": "physics"},
    "annotations": {"note": "followers"},
    "priority_class": "system-node-critical",
    "max_lifetime": 3600.0,
    "patch": {"spec": {"hostIPC": True, "containers": [{"name": "follower", "securityContext": {"privileged": True}}]}},
}


def documents(provider: KubernetesProvider, order: Order, owner: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What an order is made of, by its kind's name in paths."""
    options, pool = provider._pools[order.pool], provider._context.pools[order.pool]
    return {
        "jobs": objects.job(order, pool, options, orders.PROVIDER),
        "secrets": objects.secret(order, options, orders.PROVIDER, owner),
        "services": objects.service(order, options, orders.PROVIDER, owner),
    }


@pytest.mark.parametrize("options", [{}, {"share_nodes": True}, EVERYTHING], ids=["defaults", "shared", "everything"])
def test_each_object_passes_strict_validation_and_a_second_apply_changes_nothing(
    make: Make, seen: Seen, options: dict[str, Any]
) -> None:
    provider, order = make(**options), orders.order(orders.hosts(3))
    provider.launch(order)
    owner = seen.get("jobs", order)
    for kind, document in documents(provider, order, owner).items():
        path, before = seen.path(kind, order), seen.get(kind, order)
        first = seen.api.apply(path, document)
        second = seen.api.apply(path, document)
        for applied in (first, second):
            assert applied["metadata"]["uid"] == before["metadata"]["uid"]
            assert applied["metadata"].get("generation") == before["metadata"].get("generation")
            assert (applied.get("spec"), applied.get("data")) == (before.get("spec"), before.get("data"))
        if kind != "jobs":  # whose status its controller changes meanwhile
            assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_an_order_that_is_there_stays_as_it_is_whatever_burst_toml_says_by_now(make: Make, seen: Seen) -> None:
    order = orders.order(orders.hosts(2))
    make().launch(order)
    before = {kind: seen.get(kind, order) for kind in KINDS}
    renewed = orders.order(orders.hosts(2), certificate=b"renewed")
    make(image="another", labels={"team": "physics"}, max_lifetime=60.0).launch(renewed)
    after = {kind: seen.get(kind, order) for kind in KINDS}
    for kind in KINDS:
        assert after[kind]["metadata"]["uid"] == before[kind]["metadata"]["uid"]
        assert after[kind].get("spec") == before[kind].get("spec")
        assert after[kind].get("data") == before[kind].get("data")


@pytest.mark.parametrize("lost", ["secrets", "services"])
def test_an_order_of_which_a_part_was_lost_is_completed(make: Make, seen: Seen, lost: str) -> None:
    order, provider = orders.order(orders.hosts(1)), make()
    provider.launch(order)
    seen.api.delete(seen.path(lost, order))
    provider.launch(order)
    owner = seen.get("jobs", order)
    assert seen.get(lost, order)["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]


@pytest.mark.parametrize("refused", ["secrets", "services"])
def test_an_order_of_which_a_part_is_refused_leaves_nothing(make: Make, seen: Seen, refused: str) -> None:
    seen.quota(**{f"count/{refused}": "0"})
    provider = make()
    with pytest.raises(QuotaExceeded, match="403 Forbidden" if refused == "secrets" else "exceeded quota"):
        provider.launch(orders.order(orders.hosts(1)))
    eventually(lambda: seen.ours() == [] and provider.list_nodes() == [])


def test_an_order_that_is_being_deleted_is_no_order_that_is_there(
    make: Make, seen: Seen, three_nodes: tuple[FakeNode, ...]
) -> None:
    provider, order = make(patch={"metadata": {"finalizers": ["example.com/hold"]}}), orders.order(orders.hosts(1))
    provider.launch(order)
    running(provider, 1)
    provider.release([node.node_id for node in provider.list_nodes()])
    with pytest.raises(ProviderUnavailable, match="is being deleted"):
        provider.launch(order)
    (pod,) = seen.pods()
    seen.api.patch(f"{seen.core}/pods/{pod['metadata']['name']}", {"metadata": {"finalizers": None}})


def test_what_belongs_to_a_job_is_owned_by_it(provider: KubernetesProvider, seen: Seen) -> None:
    order = orders.order(orders.hosts(1))
    provider.launch(order)
    owner = seen.api.get(f"{seen.batch}/jobs/{objects.name_of(order.request_id)}")
    for item in seen.ours():
        if item["metadata"]["uid"] != owner["metadata"]["uid"]:
            assert [one["uid"] for one in item["metadata"]["ownerReferences"]] == [owner["metadata"]["uid"]]


def test_a_field_that_the_api_does_not_know_is_refused_in_the_servers_words(make: Make) -> None:
    provider = make(patch={"spec": {"nodeSelektor": {"disk": "fast"}}})
    with pytest.raises(InvalidOrder, match="nodeSelektor"):
        provider.launch(orders.order(orders.hosts(1)))


def test_without_the_certificate_nothing_is_made(provider: KubernetesProvider, seen: Seen) -> None:
    order = orders.order(orders.hosts(1))
    with pytest.raises(InvalidOrder, match="curve_cert"):
        provider.launch(dataclasses.replace(order, boot=dataclasses.replace(order.boot, curve_cert=None)))
    assert seen.ours() == []


# A life


@pytest.mark.usefixtures("three_nodes")
class TestOnThreeNodes:
    def test_the_same_order_twice_buys_once(self, provider: KubernetesProvider, seen: Seen) -> None:
        order = orders.order(orders.hosts(2))
        provider.launch(order)
        provider.launch(order)
        running(provider, 2)
        provider.launch(order)
        assert len(seen.pods()) == 2

    def test_a_launched_order_is_listed_at_once(self, provider: KubernetesProvider) -> None:
        provider.list_nodes()  # so that what is launched has to be heard of
        provider.launch(orders.order(orders.hosts(3)))
        listed = provider.list_nodes()
        assert [(node.host, node.pool, node.request_id) for node in listed] == [
            (host, "c2", "b-aaaabbbbcccc") for host in orders.hosts(3)
        ]
        assert {node.node_id for node in listed} == {f"b-aaaabbbbcccc.{host}" for host in orders.hosts(3)}

    def test_each_pod_is_the_host_of_its_index_on_a_machine_of_its_own(
        self, provider: KubernetesProvider, seen: Seen, kubelet: Kubelet, namespace: str
    ) -> None:
        wanted = (Host("c2-3"), Host("c2-0"), Host("c2-2"))
        provider.launch(orders.order(wanted))
        running(provider, 3)
        for pod in seen.pods():
            host = wanted[int(pod["metadata"]["labels"][objects.INDEX])]
            eventually(
                lambda pod=pod, host=host: f"-Shostname={host} " in kubelet.log(namespace, pod["metadata"]["name"])
            )
        assert len({pod["spec"]["nodeName"] for pod in seen.pods()}) == 3

    def test_any_node_is_given_back_alone_and_nothing_comes_in_its_place(
        self, provider: KubernetesProvider, seen: Seen
    ) -> None:
        provider.launch(orders.order(orders.hosts(3)))
        running(provider, 3)
        (middle,) = [node.node_id for node in provider.list_nodes() if node.host == "c2-1"]
        provider.release([middle])
        eventually(lambda: phases(provider) == {Host("c2-0"): NodePhase.RUNNING, Host("c2-2"): NodePhase.RUNNING})

        def has_ended(job: Object) -> bool:
            # one that is told to go before it can listen fails; no index is tried again either way
            return "1" in (job["status"].get("completedIndexes"), job["status"].get("failedIndexes"))

        job = seen.api.wait_for(f"{seen.batch}/jobs", has_ended)
        assert job["status"]["active"] == 2
        assert len(seen.pods()) == 2

    def test_with_its_last_node_an_order_leaves_nothing(self, provider: KubernetesProvider, seen: Seen) -> None:
        provider.launch(orders.order(orders.hosts(2)))
        running(provider, 2)
        first, second = (node.node_id for node in provider.list_nodes())
        provider.release([first])
        provider.release([second])
        eventually(lambda: provider.list_nodes() == [])
        eventually(lambda: provider.list_nodes() == [] and seen.ours() == [])
        provider.release([first, second])  # unknown ids are fine

    def test_a_broker_that_left_is_listed_until_its_pod_is_given_back(
        self, make: Make, seen: Seen, tmp_path: Path
    ) -> None:
        provider = make(flux=orders.follower(tmp_path, "#!/bin/sh\nexit 0\n"))
        provider.launch(orders.order(orders.hosts(1)))
        eventually(lambda: phases(provider) == {Host("c2-0"): NodePhase.STOPPING})
        assert [node.detail for node in provider.list_nodes()] == ["its broker left with status 0"]
        provider.release([node.node_id for node in provider.list_nodes()])
        eventually(lambda: seen.ours() == [] and provider.list_nodes() == [])

    def test_pods_whose_job_was_deleted_without_them_are_listed_and_given_back(
        self, provider: KubernetesProvider, seen: Seen
    ) -> None:
        order = orders.order(orders.hosts(2))
        provider.launch(order)
        running(provider, 2)
        seen.api.delete(seen.path("jobs", order), propagationPolicy="Orphan")
        seen.api.wait_gone(f"{seen.batch}/jobs", objects.name_of(order.request_id))
        assert phases(provider) == dict.fromkeys(orders.hosts(2), NodePhase.RUNNING)
        for node in provider.list_nodes():
            provider.release([node.node_id])
        eventually(lambda: provider.list_nodes() == [] and seen.pods() == [])

    def test_a_pod_without_our_annotations_is_not_taken_for_a_machine(
        self, provider: KubernetesProvider, seen: Seen
    ) -> None:
        labels = {objects.CLUSTER: orders.CLUSTER, objects.PROVIDER: orders.PROVIDER}
        spec = {"containers": [{"name": "x", "image": "x", "command": ["sleep", "60"]}]}
        seen.api.post(f"{seen.core}/pods", {"metadata": {"name": "copy", "labels": labels}, "spec": spec})
        assert provider.list_nodes() == []
        seen.api.delete(f"{seen.core}/pods/copy")

    def test_the_certificate_is_in_the_secret_alone(
        self, provider: KubernetesProvider, seen: Seen, kubelet: Kubelet, namespace: str, control_plane: ControlPlane
    ) -> None:
        provider.launch(orders.order(orders.hosts(1)))
        running(provider, 1)
        needles = (b"this-must-not-be-seen", base64.b64encode(orders.CERTIFICATE)[8:40])
        (pod,) = seen.pods()
        everything = {
            kind: json.dumps(seen.api.get(f"{seen.core}/{kind}")).encode()
            for kind in ("configmaps", "events", "pods", "services")
        }
        everything["jobs"] = json.dumps(seen.api.get(f"{seen.batch}/jobs")).encode()
        everything["log"] = kubelet.log(namespace, pod["metadata"]["name"]).encode()
        everything["repr"] = repr(orders.order(orders.hosts(1))).encode()
        assert [where for where, text in everything.items() if any(needle in text for needle in needles)] == []
        assert needles[1] in json.dumps(seen.api.get(f"{seen.core}/secrets")).encode()

    # What goes wrong

    def test_an_image_that_does_not_exist_fails_its_nodes(self, make: Make, kubelet: Kubelet) -> None:
        kubelet.images["nowhere"] = Image(missing=True)
        provider = make(image="nowhere")
        provider.launch(orders.order(orders.hosts(1)))
        assert failed(provider, "c2-0").detail.startswith(
            ("image nowhere: ErrImagePull", "image nowhere: ImagePullBackOff")
        )

    def test_an_image_whose_registry_gives_no_answer_is_waited_for(self, make: Make, kubelet: Kubelet) -> None:
        kubelet.images["far"] = Image(unreachable=True)
        patient, hasty = make(image="far"), make(image="far", schedule_timeout=0.0)
        patient.launch(orders.order(orders.hosts(1)))
        assert "i/o timeout" in failed(hasty, "c2-0").detail
        (waiting,) = patient.list_nodes()
        assert (waiting.phase, "i/o timeout" in waiting.detail) == (NodePhase.STARTING, True)

    def test_a_broker_that_fails_again_and_again_fails_its_node_with_its_last_words(
        self, make: Make, tmp_path: Path
    ) -> None:
        provider = make(flux=orders.follower(tmp_path, "#!/bin/sh\necho no way to the lead\nexit 3\n"), retries=0)
        provider.launch(orders.order(orders.hosts(1)))
        assert failed(provider, "c2-0").detail == "Error with status 3: no way to the lead"

    def test_an_evicted_pod_is_a_failed_node_and_is_not_replaced(
        self, provider: KubernetesProvider, seen: Seen, kubelet: Kubelet, namespace: str
    ) -> None:
        provider.launch(orders.order(orders.hosts(2)))
        running(provider, 2)
        (first,) = [pod for pod in seen.pods() if pod["metadata"]["labels"][objects.INDEX] == "0"]
        kubelet.evict(namespace, first["metadata"]["name"])
        assert failed(provider, "c2-0").detail.startswith("Evicted: The node was low on resource: memory.")
        seen.api.wait_for(f"{seen.batch}/jobs", lambda found: found["status"].get("failedIndexes") == "0")
        assert len(seen.pods()) == 2
        assert phases(provider)[Host("c2-1")] is NodePhase.RUNNING

    def test_a_quota_of_two_fails_the_third_of_a_gang_with_the_quotas_words(
        self, provider: KubernetesProvider, seen: Seen
    ) -> None:
        seen.quota(pods="2")
        provider.launch(orders.order(orders.hosts(3)))

        def refused() -> list[str]:
            return [node.detail for node in provider.list_nodes() if node.phase is NodePhase.FAILED]

        eventually(lambda: len(refused()) == 1)
        assert "exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2" in refused()[0]

    def test_what_is_given_back_before_its_pod_could_be_made_leaves_nothing(
        self, provider: KubernetesProvider, seen: Seen
    ) -> None:
        seen.quota(pods="1")
        provider.launch(orders.order(orders.hosts(2)))
        eventually(lambda: sorted(phases(provider).values()) == [NodePhase.FAILED, NodePhase.RUNNING])
        first, second = sorted(provider.list_nodes(), key=lambda node: node.phase)
        provider.release([first.node_id])
        assert phases(provider) == {first.host: NodePhase.STOPPING, second.host: NodePhase.RUNNING}
        provider.release([second.node_id])
        eventually(lambda: provider.list_nodes() == [] and seen.ours() == [])

    def test_a_pod_that_is_made_after_it_was_given_back_goes_with_the_next_try(
        self, provider: KubernetesProvider, seen: Seen
    ) -> None:
        seen.quota(pods="1")
        provider.launch(orders.order(orders.hosts(2)))
        eventually(lambda: sorted(phases(provider).values()) == [NodePhase.FAILED, NodePhase.RUNNING])
        (late,) = [node.node_id for node in provider.list_nodes() if node.phase is NodePhase.FAILED]
        provider.release([late])
        seen.api.patch(f"{seen.core}/resourcequotas/small", {"spec": {"hard": {"pods": "2"}}})
        seen.api.wait_for(f"{seen.core}/pods", lambda pod: late.endswith(objects.host_of(pod)))

        def gone() -> bool:
            provider.release([late])  # as the controller does until it is no longer listed
            return late not in {node.node_id for node in provider.list_nodes()}

        eventually(gone)
        assert list(phases(provider).values()) == [NodePhase.RUNNING]

    def test_a_pod_without_a_place_waits_and_fails_in_time_with_the_schedulers_words(self, make: Make) -> None:
        patient, hasty = (
            make(node_selector={"moon": "full"}),
            make(node_selector={"moon": "full"}, schedule_timeout=0.0),
        )
        patient.launch(orders.order(orders.hosts(1)))
        assert "didn't match Pod's node affinity/selector" in failed(hasty, "c2-0").detail
        assert phases(patient) == {Host("c2-0"): NodePhase.STARTING}

    def test_a_pod_whose_deletion_hangs_is_listed_until_it_is_gone(self, make: Make, seen: Seen) -> None:
        provider = make(patch={"metadata": {"finalizers": ["example.com/hold"]}})
        provider.launch(orders.order(orders.hosts(1)))
        running(provider, 1)
        provider.release([node.node_id for node in provider.list_nodes()])
        eventually(lambda: phases(provider) == {Host("c2-0"): NodePhase.STOPPING})
        eventually(lambda: seen.pods()[0]["status"]["phase"] == "Succeeded")
        provider.release([node.node_id for node in provider.list_nodes()])
        assert phases(provider) == {Host("c2-0"): NodePhase.STOPPING}
        (pod,) = seen.pods()
        seen.api.patch(f"{seen.core}/pods/{pod['metadata']['name']}", {"metadata": {"finalizers": None}})
        eventually(lambda: provider.list_nodes() == [] and seen.ours() == [])


def test_a_quota_on_jobs_is_a_typed_error_of_the_launch(provider: KubernetesProvider, seen: Seen) -> None:
    seen.quota(**{"count/jobs.batch": "0"})
    with pytest.raises(QuotaExceeded, match="exceeded quota: small"):
        provider.launch(orders.order(orders.hosts(1)))
    assert seen.ours() == []


@pytest.mark.parametrize("hang", [False, True], ids=["refuses", "hangs"])
def test_while_the_api_server_is_away_nothing_is_known_and_then_everything(
    make: Make, control_plane: ControlPlane, hang: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxburst_kubernetes.cluster.QUIET_S", 1.0)
    provider = make(request_timeout=1.0)
    provider.launch(orders.order(orders.hosts(2)))
    assert len(provider.list_nodes()) == 2
    control_plane.pause(hang=hang)
    try:
        eventually(lambda: _raises(provider.list_nodes))
        with pytest.raises(ProviderUnavailable, match="provider kubernetes: the API server"):
            provider.launch(orders.order(orders.hosts(2)))
    finally:
        control_plane.resume()
    assert len(provider.list_nodes()) == 2
    provider.release([node.node_id for node in provider.list_nodes()])
    eventually(lambda: provider.list_nodes() == [])


def _raises(call: Callable[[], object]) -> bool:
    try:
        call()
    except ProviderUnavailable:
        return True
    return False


def test_refused_credentials_are_read_anew(make: Make, control_plane: ControlPlane, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    control_plane.write_kubeconfig(path, "an-expired-token")
    provider = make(kubeconfig=path)
    with pytest.raises(AuthDenied, match="Unauthorized"):
        provider.list_nodes()
    path.write_bytes(control_plane.kubeconfig.read_bytes())
    assert provider.list_nodes() == []


def test_no_credentials_are_an_error_that_names_the_fix(make: Make, tmp_path: Path) -> None:
    provider = make(kubeconfig=tmp_path / "nothing")
    with pytest.raises(AuthDenied, match="set kubeconfig and context"):
        provider.list_nodes()


# How much is asked


def test_an_order_of_256_takes_a_constant_number_of_requests(
    make: Make, control_plane: ControlPlane, kubelet: Kubelet, seen: Seen
) -> None:
    kubelet.register(*(FakeNode(f"many-{index}") for index in range(8)))

    def asked(count: int, request_id: str) -> list[str]:
        provider = make(pool_hosts=256, share_nodes=True, requests={"cpu": "1m"})
        before = len(control_plane.requests(agent="fluxburst"))
        provider.launch(orders.order(orders.hosts(count), request_id))
        eventually(lambda: list(phases(provider).values()) == [NodePhase.RUNNING] * count, 90)
        provider.release([node.node_id for node in provider.list_nodes()])
        eventually(lambda: provider.list_nodes() == [], 90)
        provider.close()
        return [f"{one.verb} {one.uri.partition('?')[0].rpartition('/')[2]}"
                for one in control_plane.requests(agent="fluxburst")[before:]]  # fmt: skip

    one, many = asked(1, "b-one"), asked(256, "b-many")
    # the server ends a watch whose reader is slow, and here the same process runs 256 pods, too: it is gone on with,
    # after a listing where the server has forgotten that long ago
    heard = [[request for request in asked if request.startswith(("watch", "list"))] for asked in (one, many)]
    said = [[request for request in asked if not request.startswith(("watch", "list"))] for asked in (one, many)]
    assert len(said[0]) == len(said[1]) == 4, said
    assert len(heard[1]) <= len(heard[0]) + 8, heard


# Before


def test_offers_are_what_the_pool_says(make: Make) -> None:
    (offer,) = make(spot=True, instance_type="n2-standard-4", join_time=90.0).offers(Demand(1, 1, 1))
    assert (offer.pool, offer.instance_type, offer.cores, offer.spot) == ("c2", "n2-standard-4", 2, True)  # type: ignore[union-attr]
    assert offer.join_s == 90.0  # type: ignore[union-attr]


def test_check_finds_nothing_wrong_and_changes_nothing(provider: KubernetesProvider, seen: Seen) -> None:
    findings = provider.check()
    assert {finding.severity for finding in findings} == {Severity.OK}, findings
    assert seen.ours() == []


def test_check_names_the_missing_verbs_and_what_the_cluster_does_not_admit(
    make: Make, api: Api, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    asked = api.post(
        f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token", {"spec": {"expirationSeconds": 600}}
    )
    control_plane.write_kubeconfig(tmp_path / "account", asked["status"]["token"])
    findings = {finding.subject: finding for finding in make(kubeconfig=tmp_path / "account").check()}
    assert findings["permissions"].severity is Severity.ERROR
    assert "get jobs, list jobs, watch jobs, create jobs, delete jobs" in findings["permissions"].message
    assert "cannot create resource" in findings["pool c2"].message
    wrong = {finding.subject: finding for finding in make(patch={"spec": {"hostPid": True}}).check()}
    assert "hostPid" in wrong["pool c2"].message


@pytest.fixture
def account(api: Api, seen: Seen, control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Path:
    """A kubeconfig with the rights of the example's role."""
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    paths = {
        "ServiceAccount": f"{seen.core}/serviceaccounts",
        "Role": f"{rbac}/roles",
        "RoleBinding": f"{rbac}/rolebindings",
    }
    for item in yaml.safe_load_all((EXAMPLES / "role.yaml").read_text()):
        for subject in item.get("subjects", ()):
            subject["namespace"] = namespace  # as kubectl fills it in
        api.post(paths[item["kind"]], item, fieldValidation="Strict")
    asked = api.post(f"{seen.core}/serviceaccounts/fluxburst/token", {"spec": {"expirationSeconds": 600}})
    control_plane.write_kubeconfig(tmp_path / "account", asked["status"]["token"])
    return tmp_path / "account"


def test_the_examples_role_is_all_that_it_takes(make: Make, seen: Seen, account: Path) -> None:
    provider = make(kubeconfig=account)
    assert {finding.severity for finding in provider.check()} == {Severity.OK}
    provider.launch(orders.order(orders.hosts(2)))
    provider.release([node.node_id for node in provider.list_nodes() if node.host == "c2-0"])
    provider.release([node.node_id for node in provider.list_nodes()])
    eventually(lambda: provider.list_nodes() == [] and seen.ours() == [])


@pytest.mark.usefixtures("three_nodes")
def test_it_is_for_miniclusters_too_from_the_first_to_the_last_of_them(
    account: Path, minicluster_crd: Object, api: Api, namespace: str, tmp_path: Path
) -> None:
    flux = Path(orders.follower(tmp_path)).rename(tmp_path / "flux")  # as the operator's scripts call it
    hosts = (Host("c2-0-0"),)
    options = {"workload": "minicluster", "flux": str(flux), "requests": {"cpu": "1"}, "patch": {"maxSize": 3}}
    provider = orders.provider(account, namespace, tmp_path, declared=hosts, **options)
    more = (Host("c2-0-1"), Host("c2-0-2"))
    table = {"kubeconfig": str(account), "namespace": namespace, "mode": "resize"}
    home = build(ProviderContext("own", "corona", table, {"home": PoolSpec("home", more, 2)}, tmp_path))
    try:
        with Operator(api, namespace):
            assert {finding.severity for finding in provider.check()} == {Severity.OK}
            provider.launch(orders.order(hosts))
            eventually(lambda: phases(provider) == {hosts[0]: NodePhase.RUNNING})
            assert {finding.severity for finding in home.check()} == {Severity.OK}
            home.launch(dataclasses.replace(orders.order(more, "b-more"), pool="home"))
            eventually(lambda: phases(home) == dict.fromkeys(more, NodePhase.RUNNING))
            home.release([node.node_id for node in home.list_nodes()])
            eventually(lambda: home.list_nodes() == [])
            provider.release([node.node_id for node in provider.list_nodes()])
            eventually(lambda: provider.list_nodes() == [])
    finally:
        provider.close()
        home.close()


def test_check_without_a_cluster_is_one_error(make: Make, tmp_path: Path) -> None:
    (finding,) = make(kubeconfig=tmp_path / "nothing").check()
    assert (finding.subject, finding.severity) == ("cluster", Severity.ERROR)
