"""The mock cloud: what it does when all goes well, and each of its faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pluggy
import pytest

from fluxburst.errors import ConfigError, InvalidOrder, NoCapacity, ProviderUnavailable
from fluxburst.model import BootMaterial
from fluxburst.provider import (
    Demand,
    Host,
    NodeId,
    NodePhase,
    Offer,
    Order,
    PoolSpec,
    ProviderContext,
    Refusal,
    RequestId,
    Severity,
    Shrink,
    hookspecs,
)
from fluxburst_mock import plugin
from fluxburst_mock.cloud import MockCloud, MockProvider
from fluxburst_mock.instance import MockInstance
from fluxburst_mock.loop import VirtualLoop

HOSTS = tuple(Host(f"c2-{index}") for index in range(4))
ONE_CORE = Demand(nodes=0, slots=1, cores_per_slot=1)
FLUX_CONFIG = {
    "bootstrap": {"hosts": [{"host": "lead0"}, {"host": "c2-[0-3]"}]},
    "resource": {"config": [{"hosts": "lead0,c2-[0-3]", "cores": "0-3"}]},
}


def context(options: dict[str, Any] | None = None, **pool_options: Any) -> ProviderContext:
    pool = PoolSpec("c2", HOSTS, cores=4, options={"boot_s": 30.0, **pool_options})
    return ProviderContext("mock", "test", options or {}, {"c2": pool}, Path("unused"))


def order(*hosts: Host, request: str = "b-1") -> Order:
    offer = Offer("c2", "mock", "mock", cores=4)
    return Order(RequestId(request), "test", "c2", hosts, offer, BootMaterial("", ""), 0.0)


class Sky:
    """A cloud under an instance, and its provider."""

    def __init__(self, **pool_options: Any) -> None:
        self.loop = VirtualLoop()
        self.flux = MockInstance(self.loop, FLUX_CONFIG, wall=self.loop.wall)
        self.cloud = MockCloud(self.loop, self.flux)
        self.provider = MockProvider(context(**pool_options), self.cloud)

    def ghosts_online(self) -> set[Host]:
        return set(self.flux.online()) - {Host("lead0")}

    def phases(self) -> dict[Host, NodePhase]:
        return {report.host: report.phase for report in self.provider.list_nodes()}

    def release_all(self) -> None:
        self.provider.release([report.node_id for report in self.provider.list_nodes()])


@pytest.fixture
def sky() -> Sky:
    return Sky()


def test_machines_join_after_their_boot(sky: Sky) -> None:
    sky.provider.launch(order(*HOSTS[:2]))
    sky.loop.run_for(29.9)
    assert sky.phases() == dict.fromkeys(HOSTS[:2], NodePhase.STARTING)
    assert sky.ghosts_online() == set()
    sky.loop.run_for(0.2)
    assert sky.phases() == dict.fromkeys(HOSTS[:2], NodePhase.RUNNING)
    assert sky.ghosts_online() == set(HOSTS[:2])


def test_the_same_request_twice_buys_once(sky: Sky) -> None:
    sky.cloud.stock["c2"] = 2
    sky.provider.launch(order(*HOSTS[:2]))
    sky.provider.launch(order(*HOSTS[:2]))
    assert len(sky.provider.list_nodes()) == 2
    assert sky.cloud.stock["c2"] == 0


def test_a_listing_tells_request_host_and_pool(sky: Sky) -> None:
    sky.provider.launch(order(HOSTS[0], request="b-abc"))
    (report,) = sky.provider.list_nodes()
    assert (report.request_id, report.host, report.pool) == ("b-abc", HOSTS[0], "c2")


def test_release_kills_the_broker_and_frees_the_stock() -> None:
    sky = Sky(stock=2)
    sky.provider.launch(order(*HOSTS[:2]))
    sky.loop.run_for(31.0)
    sky.release_all()
    assert sky.provider.list_nodes() == []
    sky.loop.run_for(1.0)
    assert sky.ghosts_online() == set()
    assert sky.cloud.stock["c2"] == 2
    assert sky.cloud.living() == []


def test_a_machine_released_in_its_boot_never_joins(sky: Sky) -> None:
    sky.provider.launch(order(HOSTS[0]))
    sky.release_all()
    sky.loop.run_forever()
    assert sky.ghosts_online() == set()


def test_releasing_the_unknown_and_the_gone_is_fine(sky: Sky) -> None:
    sky.cloud.stock["c2"] = 4
    sky.provider.launch(order(HOSTS[0]))
    (report,) = sky.provider.list_nodes()
    for _ in range(2):
        sky.provider.release([report.node_id, NodeId("never-was")])
    assert sky.cloud.stock["c2"] == 4


def test_a_host_name_can_be_used_again(sky: Sky) -> None:
    for request in ("b-1", "b-2"):
        sky.provider.launch(order(HOSTS[0], request=request))
        sky.loop.run_for(31.0)
        assert sky.ghosts_online() == {HOSTS[0]}
        sky.release_all()
        sky.loop.run_for(1.0)
        assert sky.ghosts_online() == set()


def test_an_order_beyond_the_stock_starts_nothing() -> None:
    sky = Sky(stock=1)
    with pytest.raises(NoCapacity, match="2 machines wanted, 1 left"):
        sky.provider.launch(order(*HOSTS[:2]))
    assert sky.provider.list_nodes() == []
    sky.provider.launch(order(HOSTS[0]))


def test_an_order_for_another_pool_is_invalid(sky: Sky) -> None:
    other = MockProvider(ProviderContext("other", "test", {}, {}, Path("unused")), sky.cloud)
    with pytest.raises(InvalidOrder, match="no pool c2"):
        other.launch(order(HOSTS[0]))
    sky.provider.launch(order(HOSTS[0]))
    assert other.list_nodes() == []


def test_a_fault_before_the_work_leaves_it_undone_and_happens_once(sky: Sky) -> None:
    sky.cloud.fail("launch", ProviderUnavailable("timed out"))
    with pytest.raises(ProviderUnavailable):
        sky.provider.launch(order(HOSTS[0]))
    assert sky.provider.list_nodes() == []
    sky.provider.launch(order(HOSTS[0]))
    assert len(sky.provider.list_nodes()) == 1


def test_a_lost_answer_leaves_the_work_done(sky: Sky) -> None:
    sky.cloud.fail("launch", ProviderUnavailable("the answer is lost"), after=True)
    with pytest.raises(ProviderUnavailable):
        sky.provider.launch(order(HOSTS[0]))
    assert len(sky.provider.list_nodes()) == 1


def test_faults_of_one_method_queue_up_and_spare_the_others(sky: Sky) -> None:
    sky.cloud.fail("list_nodes", ProviderUnavailable("one"))
    sky.cloud.fail("list_nodes", ProviderUnavailable("two"))
    sky.provider.offers(ONE_CORE)
    for what in ("one", "two"):
        with pytest.raises(ProviderUnavailable, match=what):
            sky.provider.list_nodes()
    assert sky.provider.list_nodes() == []


def test_a_stale_listing_shows_new_and_gone_machines_late(sky: Sky) -> None:
    sky.loop.run_for(100.0)
    sky.cloud.listing_lag_s = 10.0
    sky.provider.launch(order(HOSTS[0]))
    sky.loop.run_for(9.9)
    assert sky.phases() == {}
    sky.loop.run_for(0.2)
    assert sky.phases() == {HOSTS[0]: NodePhase.STARTING}
    sky.release_all()
    sky.loop.run_for(9.0)
    assert set(sky.phases()) == {HOSTS[0]}
    sky.loop.run_for(2.0)
    assert sky.phases() == {}


def test_one_host_may_boot_slowly(sky: Sky) -> None:
    sky.cloud.boot_s[HOSTS[1]] = 300.0
    sky.provider.launch(order(*HOSTS[:2]))
    sky.loop.run_for(299.0)
    assert sky.phases() == {HOSTS[0]: NodePhase.RUNNING, HOSTS[1]: NodePhase.STARTING}
    sky.loop.run_for(2.0)
    assert sky.ghosts_online() == set(HOSTS[:2])


def test_a_machine_may_never_boot(sky: Sky) -> None:
    sky.cloud.never_boot.add(HOSTS[0])
    sky.provider.launch(order(HOSTS[0]))
    sky.loop.run_for(1e6)
    assert sky.phases() == {HOSTS[0]: NodePhase.STARTING}
    assert sky.ghosts_online() == set()
    assert len(sky.cloud.living()) == 1, "it costs money all the same"


def test_a_machine_may_die_in_its_boot(sky: Sky) -> None:
    sky.cloud.die_in_boot.add(HOSTS[0])
    sky.provider.launch(order(HOSTS[0]))
    assert sky.phases() == {HOSTS[0]: NodePhase.STARTING}
    sky.loop.run_for(31.0)
    (report,) = sky.provider.list_nodes()
    assert (report.phase, report.detail) == (NodePhase.FAILED, "died in its boot")
    assert sky.ghosts_online() == set()


def test_an_interrupted_machine_dies_and_stays_listed(sky: Sky) -> None:
    sky.provider.launch(order(*HOSTS[:2]))
    sky.loop.run_for(31.0)
    sky.cloud.interrupt(HOSTS[0])
    sky.loop.run_for(1.0)
    assert sky.ghosts_online() == {HOSTS[1]}
    assert sky.phases() == {HOSTS[0]: NodePhase.FAILED, HOSTS[1]: NodePhase.RUNNING}
    assert [machine.host for machine in sky.cloud.living()] == [HOSTS[1]]


def test_a_machine_interrupted_in_its_boot_never_joins(sky: Sky) -> None:
    sky.provider.launch(order(HOSTS[0]))
    sky.cloud.interrupt(HOSTS[0])
    sky.loop.run_forever()
    assert sky.ghosts_online() == set()


def test_a_release_may_need_several_tries(sky: Sky) -> None:
    sky.cloud.release_tries = 3
    sky.provider.launch(order(HOSTS[0]))
    for _ in range(2):
        sky.release_all()
        assert sky.phases() == {HOSTS[0]: NodePhase.STOPPING}
    sky.release_all()
    assert sky.phases() == {}


def test_every_call_is_taken_down_with_its_time(sky: Sky) -> None:
    sky.provider.offers(ONE_CORE)
    sky.loop.run_for(5.0)
    sky.cloud.fail("launch", NoCapacity("none"))
    with pytest.raises(NoCapacity):
        sky.provider.launch(order(HOSTS[0]))
    sky.provider.release([NodeId("x")])
    assert [(call.method, call.at) for call in sky.cloud.calls] == [("offers", 0.0), ("launch", 5.0), ("release", 5.0)]
    assert sky.cloud.calls[1].args == (order(HOSTS[0]),)
    assert sky.cloud.calls[2].args == (("x",),)


def test_an_offer_tells_what_the_pool_and_its_options_say() -> None:
    sky = Sky(stock=3, usd_per_node_hour=0.5, spot=True, instance_type="c2.large", boot_s=7.0)
    (offer,) = sky.provider.offers(ONE_CORE)
    assert isinstance(offer, Offer)
    assert (offer.pool, offer.provider, offer.instance_type, offer.cores) == ("c2", "mock", "c2.large", 4)
    assert (offer.usd_per_node_hour, offer.spot, offer.join_s, offer.nodes_left) == (0.5, True, 7.0, 3)


@pytest.mark.parametrize(
    ("demand", "pool_options", "reason"),
    [
        (Demand(0, 1, cores_per_slot=5), {}, "a slot needs 5 core(s), its nodes have 4"),
        (Demand(0, 1, cores_per_slot=1, gpus_per_slot=1), {}, "a slot needs 1 GPU(s), its nodes have 0"),
        (Demand(0, 1, cores_per_slot=1, spot=False), {"spot": True}, "its nodes are spot"),
    ],
)
def test_what_a_pool_cannot_serve_is_refused_with_a_reason(
    demand: Demand, pool_options: dict[str, Any], reason: str
) -> None:
    (refusal,) = Sky(**pool_options).provider.offers(demand)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason


def test_wrong_options_name_their_table_and_key() -> None:
    with pytest.raises(ConfigError, match=r"\[pool\.c2\.options\] boots: unknown key"):
        MockProvider(context(boots=3), MockCloud())
    with pytest.raises(ConfigError, match=r"\[provider\.mock\] shrink"):
        MockProvider(context({"shrink": "never"}), MockCloud())


def test_a_provider_can_be_told_how_it_shrinks() -> None:
    assert MockProvider(context({"shrink": "tail"}), MockCloud()).shrink is Shrink.TAIL


def test_check_finds_nothing_wrong(sky: Sky) -> None:
    assert [finding.severity for finding in sky.provider.check()] == [Severity.OK]


def manager(registered: object) -> pluggy.PluginManager:
    plugins = pluggy.PluginManager("fluxburst")
    plugins.add_hookspecs(hookspecs)
    plugins.register(registered)
    return plugins


def test_the_plugin_brings_a_provider_with_a_cloud_of_its_own() -> None:
    (kinds,) = manager(plugin).hook.fluxburst_providers()
    provider = kinds["mock"](context())
    provider.launch(order(HOSTS[0]))
    assert [report.host for report in provider.list_nodes()] == [HOSTS[0]]
    assert kinds["mock"](context()).list_nodes() == []


def test_a_plugin_object_brings_its_own_cloud(sky: Sky) -> None:
    (kinds,) = manager(plugin.MockPlugin(sky.cloud)).hook.fluxburst_providers()
    kinds["mock"](context()).launch(order(HOSTS[0]))
    assert [machine.host for machine in sky.cloud.living()] == [HOSTS[0]]
