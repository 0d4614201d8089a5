"""The tables of burst.toml, what follows from them, and that nothing is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluxburst.errors import ConfigError
from fluxburst.model import Demand, Host, Offer, PoolSpec
from fluxburst.provider import ProviderContext
from fluxburst_gke import make
from fluxburst_gke.options import GkeOptions, GkePodOptions, short
from fluxburst_gke.pools import Place, node_pool, on, places


def context(*, location: str = "us-central1-a", gpus: int = 0, **options: Any) -> ProviderContext:
    pool = {"machine_type": "c2-standard-4", "image": "follower", **options}
    spec = PoolSpec("c2", (Host("c2-0"),), 4, gpus, usd_per_node_hour=0.2, options=pool)
    return ProviderContext("gke", "corona", {"project": "p", "location": location}, {"c2": spec}, Path())


def offers(context: ProviderContext) -> list[Offer]:
    provider = make(context)
    try:
        return [offer for offer in provider.offers(Demand(1, 1, 1)) if isinstance(offer, Offer)]
    finally:
        provider.close()


@pytest.mark.parametrize("firewall", [{}, {"target_tags": ["a"], "target_service_accounts": ["b"]}])
def test_a_firewall_rule_is_for_one_kind_of_target(firewall: dict[str, Any]) -> None:
    table = {"project": "p", "location": "us-central1-a", "firewall": firewall}
    with pytest.raises(ConfigError, match="name the lead's machine by either target_tags or"):
        make(ProviderContext("gke", "corona", table, context().pools, Path()))


def test_one_offer_a_zone() -> None:
    (one,) = offers(context())
    assert (one.zone, one.region, one.instance_type) == ("us-central1-a", "us-central1", "c2-standard-4")
    several = offers(context(location="us-central1", zones=["us-central1-b", "us-central1-f"], spot=True))
    assert [(offer.zone, offer.spot) for offer in several] == [("us-central1-b", True), ("us-central1-f", True)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"location": "us-central1"}, "us-central1 is a region; name zones"),
        ({"share_nodes": True}, "share_nodes"),
        ({"gpus": 1}, "accelerator_type"),
        ({"machine": "x"}, "machine"),
        ({"node_pool": "Big"}, "node_pool"),
    ],
)
def test_a_wrong_table_is_told(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(context(**wrong))


def test_names_fit_and_differ() -> None:
    assert short("fb-corona-c2") == "fb-corona-c2"
    long = [short(f"fb-{'x' * 32}-{pool}-f") for pool in ("a" * 32, "b" * 32)]
    assert all(len(name) <= 40 for name in long)
    assert long[0] != long[1]
    pods = {"c2": GkePodOptions(machine_type="c2", image="i", zones=("us-central1-b", "us-central1-f"))}
    found = places(context(), GkeOptions(project="p", location="us-central1"), pods)
    assert list(found) == ["fb-corona-c2-b", "fb-corona-c2-f"]


def test_only_followers_land_on_its_nodes_and_they_nowhere_else() -> None:
    pod = GkePodOptions(machine_type="c2", image="i", node_selector={"disk": "fast"}, tolerations=({"key": "x"},))
    place = Place("fb-corona-c2", "c2", "us-central1-a")
    site = context(gpus=2, accelerator_type="nvidia-l4")
    made = node_pool(
        place, pod.model_copy(update={"accelerator_type": "nvidia-l4", "compact": True}), site.pools["c2"], site, 3
    )
    (taint,) = made.config.taints
    assert (taint.key, taint.value, taint.effect.name) == ("fluxburst/cluster", "corona", "NO_SCHEDULE")
    assert made.config.accelerators[0].accelerator_count == 2
    assert made.placement_policy.type_.name == "COMPACT"
    assert (made.initial_node_count, list(made.locations)) == (3, ["us-central1-a"])
    placed = on(place, pod, "corona")
    assert placed.node_selector == {"disk": "fast", "cloud.google.com/gke-nodepool": "fb-corona-c2"}
    assert placed.tolerations[1] == {
        "key": "fluxburst/cluster",
        "operator": "Equal",
        "value": "corona",
        "effect": "NoSchedule",
    }


def test_pods_are_kept_from_machines_that_go_beside_what_the_site_asks() -> None:
    place = Place("fb-corona-c2", "c2", "us-central1-a")
    term = {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    site = {"spec": {"hostNetwork": True, "affinity": {"nodeAffinity": {required: {"nodeSelectorTerms": [term]}}}}}
    away = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["gke-a", "gke-b"]}
    for patch, own in ((site, term["matchExpressions"]), ({}, [])):
        placed = on(place, GkePodOptions(machine_type="c2", image="i", patch=patch), "corona", ["gke-b", "gke-a"])
        terms = placed.patch["spec"]["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"]
        assert terms == [{"matchExpressions": [*own, away]}]
        assert placed.patch["spec"].get("hostNetwork") == patch.get("spec", {}).get("hostNetwork")


def test_importing_it_imports_no_library_of_a_cloud() -> None:
    code = "import sys, fluxburst_gke, fluxburst_gke.provider, fluxburst_gke.commands; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    loaded = {name.partition(".")[0] for name in modules}
    assert not loaded & {"google", "grpc", "kubernetes", "requests", "urllib3"}
    assert not [name for name in modules if name.startswith("google.")]
