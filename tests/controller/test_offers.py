"""Several offers in a pool, and what becomes of them when something fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from fluxburst.errors import (
    AuthDenied,
    InvalidOrder,
    NoCapacity,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    Scope,
)
from fluxburst.model import Demand, Host, Offer, Refusal
from fluxburst.states import NodeState
from fluxburst_mock.cloud import MockProvider, stock_of
from tests.controller.conftest import MakeRig
from tests.rig import POOL, Rig

POOLS = """
[pool.burst]
provider = "mock"
hosts = "burst-[0-7]"
cores = 2
idle_timeout = "60s"
[pool.burst.options]
boot_s = 30.0
region = "west"
offers = [
    {instance_type = "dear", zone = "e-1", region = "east", usd_per_node_hour = 2.0},
    {instance_type = "cheap", zone = "w-1", usd_per_node_hour = 0.5},
    {instance_type = "middle", zone = "w-2", usd_per_node_hour = 1.0, spot = true, stock = 8},
]
"""
OTHER = POOL.replace("[pool.burst", "[pool.other").replace("burst-", "other-").replace("0.5", "5.0")


@pytest.fixture
def three(make_rig: MakeRig) -> Rig:
    return make_rig(POOLS)


def launched(rig: Rig) -> list[str]:
    """What was ordered, in the order of the calls, whatever came of them."""
    return [call.args[0].offer.instance_type for call in rig.calls("launch")]


def health(rig: Rig) -> dict[str, str]:
    return {row["instance_type"]: row["health"] for row in rig.ask("offers")["offers"]}


def orders(rig: Rig) -> list[dict[str, Any]]:
    """The log's line on each order, in the order of the calls."""
    names = dict.fromkeys(call.args[0].request_id for call in rig.calls("launch"))
    return [rig.store.history(f"order/{name}")[0].data for name in names]


def cooldowns(rig: Rig) -> dict[str, str]:
    return {pool["pool"]: pool["cooldown"] for pool in rig.ask("status")["pools"]}


def test_an_offer_that_is_sold_out_falls_to_the_next_at_once_and_nothing_else_is_left_alone(three: Rig) -> None:
    three.run_for(1)
    three.cloud.fail("launch", NoCapacity("sold out"))
    job = three.submit(nodes=2)
    three.run_for(2)
    assert launched(three) == ["cheap", "middle"]
    alone = "left alone after a failure: sold out"
    assert health(three) == {"cheap": alone, "middle": "open", "dear": "open"}
    assert cooldowns(three) == {"burst": ""}
    first, second = orders(three)
    assert "failed_before" not in first
    assert second["failed_before"] == ["cheap in w-1 (burst): sold out"]
    three.run_until(lambda: three.ended(job))
    prices = {record.usd_per_node_hour for record in three.store.node_history() if record.joined_at is not None}
    assert prices == {1.0}


def test_each_offer_that_fails_is_told_until_one_is_accepted(three: Rig) -> None:
    three.run_for(1)
    three.cloud.fail("launch", NoCapacity("sold out"))
    three.cloud.fail("launch", NoCapacity("none left"))
    job = three.submit(nodes=2)
    three.run_until(lambda: three.ended(job))
    *_, last = orders(three)
    assert last["failed_before"] == ["cheap in w-1 (burst): sold out", "spot middle in w-2 (burst): none left"]
    three.run_until(three.all_gone)
    three.run_for(3600)
    again = three.submit(nodes=2)
    three.run_until(lambda: three.ended(again))
    assert "failed_before" not in orders(three)[-1]


def test_a_pool_whose_offers_have_all_failed_is_shown_as_left_alone_and_tried_again(three: Rig) -> None:
    three.run_for(1)
    for _ in range(3):
        three.cloud.fail("launch", NoCapacity("sold out"))
    job = three.submit(nodes=2)
    three.run_for(5)
    assert cooldowns(three) == {"burst": "sold out"}
    assert "left alone after a failure: sold out" in three.ask("explain", id=job)["verdict"]
    three.run_until(lambda: three.ended(job), 120)
    assert launched(three) == ["cheap", "middle", "dear", "cheap"]


def test_the_stock_of_each_offer_is_its_own(three: Rig) -> None:
    three.cloud.stock[stock_of("burst", "cheap", "w-1", spot=False)] = 2
    jobs = [three.submit(nodes=3), three.submit(nodes=2)]
    three.run_until(lambda: three.ended(*jobs))
    assert sorted(launched(three)) == ["cheap", "middle"]
    three.run_until(three.all_gone)
    assert three.cloud.stock == {"burst/cheap/w-1": 2, "burst/middle/w-2/spot": 8}


@pytest.mark.parametrize(
    ("error", "next_one", "closed"),
    [
        (QuotaExceeded("quota is 0"), "dear", {"cheap", "middle"}),
        (NoCapacity("zone is full", scope=Scope.ZONE), "middle", {"cheap"}),
        (InvalidOrder("no such image"), None, {"cheap", "middle", "dear"}),
        (AuthDenied("no credentials"), None, {"cheap", "middle", "dear"}),
    ],
)
def test_an_error_closes_the_offers_of_its_scope_and_no_others(
    three: Rig, error: ProviderError, next_one: str | None, closed: set[str]
) -> None:
    three.run_for(1)
    three.cloud.fail("launch", error)
    three.submit(nodes=2, run_s=500)
    three.run_for(5)
    assert launched(three) == (["cheap", next_one] if next_one else ["cheap"])
    assert {name for name, why in health(three).items() if why != "open"} == closed


def test_an_error_of_the_provider_closes_all_its_pools_and_one_of_a_pool_does_not(make_rig: MakeRig) -> None:
    rig = make_rig(POOLS + OTHER)
    rig.run_for(1)
    rig.cloud.fail("launch", AuthDenied("no credentials"))
    rig.submit(nodes=2, run_s=500)
    rig.run_for(5)
    assert cooldowns(rig) == {"burst": "no credentials", "other": "no credentials"}
    rig.cloud.fail("launch", InvalidOrder("no such image"))
    rig.run_for(30)
    assert launched(rig) == ["cheap", "cheap", "mock"]
    assert cooldowns(rig) == {"burst": "no such image", "other": ""}


def test_after_a_cooldown_one_order_is_tried_and_the_others_share_its_fate(make_rig: MakeRig) -> None:
    rig = make_rig(POOLS.replace('region = "east"', 'region = "west"'))
    rig.run_for(1)
    for _ in range(2):
        rig.cloud.fail("launch", QuotaExceeded("quota is 0"))
    jobs = [rig.submit(nodes=3, run_s=5)]
    rig.run_for(10)
    jobs += [rig.submit(nodes=3, run_s=5), rig.submit(nodes=2, run_s=5)]
    rig.run_for(25)
    assert [len(call.args[0].hosts) for call in rig.calls("launch")] == [3, 2], "the smallest order tries it out"
    (breaker,) = rig.service.world.breakers.state()
    assert (breaker["failures"], breaker["probe"]) == (2, "")
    told = [entry.data["reason"] for host in range(8) for entry in rig.store.history(f"node/burst-{host}")]
    assert "launch failed: region west is left alone after a failure: quota is 0" in told
    rig.run_until(lambda: rig.ended(*jobs), 300)
    assert len(rig.calls("launch")) == 5
    assert rig.service.world.breakers.state() == []


def test_while_one_order_tries_it_out_new_jobs_do_not_follow_it(three: Rig) -> None:
    three.run_for(1)
    three.cloud.fail("launch", QuotaExceeded("quota is 0"))
    first = three.submit(nodes=2, run_s=500)
    three.run_until(lambda: three.flux.state(first).name == "RUN")
    providers = three.service._providers
    launch = providers.launch
    providers.launch = lambda name, order: three.later(20.0, lambda: launch(name, order))  # type: ignore[method-assign]
    second = three.submit(nodes=2, run_s=500)
    three.run_for(5)
    assert health(three)["middle"] == "region west is tried with one order first after a failure: quota is 0"
    third = three.submit(nodes=2, run_s=500)
    three.run_until(lambda: all(three.flux.state(job).name == "RUN" for job in (second, third)))
    assert launched(three) == ["cheap", "dear", "cheap", "dear"]
    assert set(health(three).values()) == {"open"}


def test_a_restart_knows_what_is_left_alone_and_what_is_tried_out(three: Rig) -> None:
    three.run_for(1)
    three.cloud.fail("launch", QuotaExceeded("quota is 0"))
    job = three.submit(nodes=8, run_s=5)
    three.cloud.stock[stock_of("burst", "dear", "e-1", spot=False)] = 0
    three.run_for(5)
    three.restart()
    three.run_for(20)
    assert launched(three) == ["cheap"]
    assert health(three)["cheap"] == "region west is left alone after a failure: quota is 0"
    three.run_until(lambda: bool(three.service.world.breakers.probes()))
    (probe,) = three.service.world.breakers.probes()
    three.restart()
    assert three.service.world.breakers.probes() == {probe}
    three.run_until(lambda: three.ended(job))
    assert three.service.world.breakers.state() == []
    assert len(three.bought()) == 8


def test_a_probe_whose_answer_is_lost_is_waited_for_until_its_order_is_known(three: Rig) -> None:
    three.run_for(1)
    three.cloud.fail("launch", QuotaExceeded("quota is 0"))
    three.cloud.fail("launch", ProviderUnavailable("the answer was lost"), after=True)
    three.cloud.stock[stock_of("burst", "dear", "e-1", spot=False)] = 0
    three.cloud.listing_lag_s = 10.0
    job = three.submit(nodes=2, run_s=500)
    three.run_until(lambda: len(three.calls("launch")) == 2)
    three.run_for(0.5)
    assert len(three.service.world.breakers.probes()) == 1
    three.run_until(lambda: three.flux.state(job).name == "RUN")
    assert three.service.world.breakers.state() == []
    assert len(three.bought()) == 2


def test_boots_that_fail_leave_the_pool_alone_and_are_counted_apart(three: Rig) -> None:
    three.cloud.die_in_boot = {Host("burst-0"), Host("burst-1")}
    three.submit(nodes=2)
    three.run_until(lambda: bool(three.service.world.breakers.state()))
    assert cooldowns(three) == {"burst": "boot failed: died in its boot"}
    assert set(health(three).values()) == {"left alone after a failure: boot failed: died in its boot"}
    for line in (entry for entry in three.store.history("pool/burst") if entry.kind == "cooldown"):
        assert (line.data["scope"], line.data["failures"], line.data["seconds"]) == ("boot", 1, 30.0)


def test_a_cooldown_is_logged_with_its_scope(three: Rig) -> None:
    three.run_for(1)
    three.cloud.fail("launch", QuotaExceeded("quota is 0"))
    three.submit(nodes=2)
    three.run_for(5)
    (line,) = three.store.history("region/mock/west")
    assert (line.kind, line.data["scope"], line.data["reason"]) == ("cooldown", "region", "quota is 0")


def test_join_times_are_measured_shown_and_kept(three: Rig) -> None:
    first = three.submit(nodes=4, run_s=5)
    three.run_until(lambda: three.ended(first))
    three.run_until(three.all_gone)
    three.restart()
    three.run_for(1)
    rows = {row["instance_type"]: row for row in three.ask("offers")["offers"]}
    assert (rows["cheap"]["samples"], rows["dear"]["samples"]) == (4, 0)
    assert (rows["cheap"]["join_s"], rows["cheap"]["join_p90_s"], rows["dear"]["join_s"]) == (30.0, 30.0, 30.0)


def test_a_node_that_came_up_while_the_service_was_away_is_no_measure(three: Rig) -> None:
    three.submit(nodes=4, run_s=5000)
    three.run_until(lambda: NodeState.BOOTING in three.states().values())
    three.crash()
    three.run_for(600)
    three.start()
    three.run_until(lambda: set(three.states().values()) == {NodeState.JOINED})
    assert three.service.world.joins.state() == []


def test_the_sites_prices_decide_what_is_bought_and_are_what_it_costs(make_rig: MakeRig) -> None:
    rig = make_rig(POOLS + '[[price]]\ninstance_type = "dear"\nfactor = 0.1\n[[price]]\nspot = true\nplus_usd = 0.5\n')
    job = rig.submit(nodes=2, run_s=500)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    assert launched(rig) == ["dear"]
    assert rig.node("burst-0").usd_per_node_hour == pytest.approx(0.2)
    shown = [(row["instance_type"], row["usd_per_node_hour"]) for row in rig.ask("offers")["offers"]]
    assert shown == [("dear", pytest.approx(0.2)), ("cheap", 0.5), ("middle", 1.5)]


def test_an_offer_of_less_than_the_pool_declares_is_refused_and_its_fix_told(
    three: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = MockProvider.offers

    def smaller(self: MockProvider, demand: Demand) -> Sequence[Offer | Refusal]:
        made = offers(self, demand)
        return [dataclasses.replace(one, cores=1) if isinstance(one, Offer) else one for one in made]

    monkeypatch.setattr(MockProvider, "offers", smaller)
    job = three.submit(nodes=2)
    three.run_for(5)
    assert "has 1 cores, [pool.burst] cores = 2" in three.ask("explain", id=job)["verdict"]
    answer = three.ask("offers")
    assert (answer["offers"], len(answer["refusals"])) == ([], 3)
    assert three.calls("launch") == []
