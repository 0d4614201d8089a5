"""What goes wrong around the service, and what it must not lead to: each was a bug or could be one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fluxburst.errors import ConfigError, InvalidOrder, NoCapacity, ProviderUnavailable, QuotaExceeded, RateLimited
from fluxburst.model import Demand, Host, Offer, Refusal
from fluxburst.states import NodeState
from fluxburst.store import Store
from fluxburst_mock.cloud import MockProvider
from tests.controller.conftest import MakeRig
from tests.rig import POOL, Rig

SHRINKS = pytest.mark.parametrize("shrink", ["order", "tail"])


def with_shrink(shrink: str, pool: str = POOL) -> str:
    return f'{pool}[provider.mock]\nshrink = "{shrink}"\n'


def overlaps(rig: Rig) -> list[str]:
    """Hosts that had two machines at one time."""
    lives: dict[str, list[tuple[float, float]]] = {}
    for machine in rig.cloud.machines.values():
        lives.setdefault(machine.host, []).append((machine.ordered_at, machine.gone_at))
    return [
        host
        for host, spans in lives.items()
        if any(first[1] > second[0] for first, second in zip(sorted(spans), sorted(spans)[1:], strict=False))
    ]


def test_a_launch_that_takes_longer_than_the_join_timeout_is_neither_bought_twice_nor_forgotten(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    launch = rig.service._providers.launch
    rig.run_for(1)
    # the answer, and with it the machines, come only after 700 s
    monkeypatch.setattr(
        rig.service._providers, "launch", lambda provider, order: rig.later(700.0, lambda: launch(provider, order))
    )
    job = rig.submit(nodes=2)
    rig.run_for(650)
    rig.flux.cancel(job)
    rig.run_for(3600)
    assert rig.all_gone()
    assert overlaps(rig) == []


@pytest.mark.parametrize("errors", [[QuotaExceeded("half of it")], [ProviderUnavailable("lost"), QuotaExceeded("no")]])
def test_a_machine_that_is_listed_late_is_found_and_given_back(rig: Rig, errors: list[Any]) -> None:
    rig.cloud.listing_lag_s = 20.0
    for error in errors:
        rig.cloud.fail("launch", error, after=True)
    job = rig.submit(nodes=2)
    rig.run_for(2)
    rig.flux.cancel(job)
    rig.run_for(600)
    assert rig.all_gone()


@SHRINKS
def test_nodes_that_can_only_leave_together_stay_up_together_while_some_are_kept_warm(
    make_rig: MakeRig, shrink: str
) -> None:
    rig = make_rig(with_shrink(shrink))
    job = rig.submit(nodes=4, run_s=5)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.ask("request", pool="burst", nodes=2, for_s=3600)
    rig.run_until(lambda: rig.ended(job))
    rig.run_for(600)
    up = 4 if shrink == "order" else 2
    assert list(rig.states().values()) == [NodeState.JOINED] * up
    rig.run_until(rig.all_gone, 7200)


@SHRINKS
def test_releasing_one_host_releases_those_that_have_to_go_with_it(make_rig: MakeRig, shrink: str) -> None:
    rig = make_rig(with_shrink(shrink))
    job = rig.submit(nodes=3, run_s=200)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    message = rig.ask("release", hosts="burst-1")["message"]
    assert message.startswith("burst-[0-2]" if shrink == "order" else "burst-[1-2]")
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(rig.all_gone, 200)


def test_a_job_that_does_not_start_on_nodes_that_are_up_does_not_keep_them_for_ever(rig: Rig) -> None:
    rig.run_for(1)
    rig.flux.set_queue("burst", started=False)
    job = rig.submit(nodes=2)
    rig.run_for(3 * 3600)
    busy_s = sum(min(machine.gone_at, rig.loop.time()) - machine.ordered_at for machine in rig.cloud.machines.values())
    assert busy_s < 3 * 3600, "of 2 nodes for 3 hours"
    assert "did not start" in rig.ask("explain", id=job)["verdict"] + str(rig.ask("explain", id=job)["history"])
    rig.flux.set_queue("burst", started=True)
    rig.run_until(lambda: rig.ended(job), 7200)


def test_nodes_that_join_and_vanish_again_are_bought_ever_more_rarely(rig: Rig) -> None:
    job = rig.submit(nodes=2)
    rig.flux.set_queue("staging", started=False)

    def vanish() -> None:
        for machine in rig.cloud.living():
            if machine.up_at <= rig.cloud.now():
                rig.cloud.interrupt(machine.host)
        rig.loop.call_later(0.001, vanish)

    rig.connection.move = lambda job_id, queue: rig.later(3600.0, lambda: None)  # type: ignore[method-assign,assignment]
    vanish()
    rig.run_for(1200)
    assert len(rig.cloud.machines) <= 14
    assert not rig.ended(job)


def test_max_nodes_counts_nodes_that_are_leaving(make_rig: MakeRig) -> None:
    rig = make_rig(POOL.replace("idle_timeout", "max_nodes = 2\nidle_timeout"))
    rig.cloud.release_tries = 6
    jobs = [rig.submit(nodes=2, run_s=1)]
    rig.run_until(lambda: rig.ended(*jobs))
    rig.run_until(lambda: NodeState.RELEASING in rig.states().values())
    jobs.append(rig.submit(nodes=2, run_s=1))
    while not rig.ended(*jobs):
        rig.run_for(1)
        assert len(rig.cloud.living()) <= 2


def test_a_burst_toml_that_no_longer_has_a_live_node_is_refused_by_name(rig: Rig) -> None:
    job = rig.submit(nodes=2, run_s=500)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.crash()
    rig.config = rig.parse(POOL.replace("burst-[0-3]", "burst-[1-3]"))
    with pytest.raises(ConfigError, match="burst-0 live"):
        rig.start()
    rig.store.close()
    rig.config = rig.parse(POOL)
    rig.start()


def test_holds_and_cooldowns_of_a_pool_that_is_gone_are_forgotten(rig: Rig) -> None:
    rig.store.set_setting("holds", [{"id": "x", "pool": "old", "nodes": 2, "until_at": None}])
    breaker = {"key": ["pool", "old"], "failures": 2, "until_at": 1e12, "reason": "x", "pools": ["old"], "probe": ""}
    rig.store.set_setting("breakers", [breaker])
    rig.store.set_setting("join_times", [{"pool": "old", "instance_type": "x", "spot": False, "samples_s": [1.0]}])
    rig.store.commit()
    rig.restart()
    rig.run_for(10)
    assert rig.states() == {}
    assert (rig.service.world.breakers.state(), rig.service.world.joins.state()) == ([], [])


def test_an_adopted_machine_in_a_stale_listing_is_not_adopted_twice(rig: Rig) -> None:
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.crash()
    for path in rig.config.state_path().glob("state.sqlite*"):
        path.unlink()
    rig.start()
    rig.run_until(lambda: len(rig.states()) == 2)
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(lambda: NodeState.RELEASING in rig.states().values())
    rig.cloud.listing_lag_s = 5.0
    rig.run_until(rig.all_gone)
    rig.restart()
    rig.run_for(100)
    assert rig.all_gone()


@pytest.mark.parametrize("answer", [None, ["x"], [None]])
def test_a_provider_that_answers_nonsense_is_told_of_and_ends_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    rig.run_for(1)
    monkeypatch.setattr(MockProvider, "offers", lambda self, demand: answer)
    job = rig.submit(nodes=2)
    rig.run_for(5)
    assert "not a sequence of Offer" in rig.ask("explain", id=job)["verdict"]
    monkeypatch.setattr(MockProvider, "list_nodes", lambda self: answer)
    monkeypatch.undo()
    rig.run_until(lambda: rig.ended(job))


def test_a_host_that_flux_still_shows_online_after_its_record_ended_gets_no_job(rig: Rig) -> None:
    first = rig.submit(nodes=2, run_s=1)
    rig.run_until(lambda: rig.ended(first))
    rig.flux.leave = lambda hosts: None  # type: ignore[method-assign,assignment]
    rig.connection.stop_brokers = lambda hosts: rig.later(0.0, lambda: None)  # type: ignore[method-assign,assignment]
    kill, rig.flux.kill = rig.flux.kill, lambda hosts: None  # type: ignore[method-assign,assignment]
    rig.run_until(lambda: not rig.states())
    assert {"burst-0", "burst-1"} <= rig.flux.online()
    second = rig.submit(nodes=2, run_s=1)
    rig.run_for(20)
    assert rig.flux.state(second).name != "RUN"
    kill([Host("burst-0"), Host("burst-1")])
    rig.flux.kill = kill  # type: ignore[method-assign]
    rig.run_until(lambda: rig.ended(second))


def test_a_node_that_comes_up_after_it_was_given_up_gets_no_job(make_rig: MakeRig) -> None:
    rig = make_rig(with_shrink("order", POOL.replace("idle_timeout", 'join_timeout = "2m"\nidle_timeout')))
    rig.cloud.boot_s[Host("burst-0")] = 130.0
    job = rig.submit(nodes=2, run_s=3000)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN", 1200)
    rig.run_until(lambda: rig.ended(job))
    assert all(event != "exception" for event in rig.kinds(job))


def test_a_busy_housekeeping_is_asked_after_ever_more_rarely(rig: Rig) -> None:
    job = rig.submit(nodes=2, run_s=1)
    rig.run_until(lambda: rig.ended(job))
    asked = []

    def allocated() -> Any:
        asked.append(rig.loop.time())
        return rig.later(0.001, lambda: frozenset({Host("burst-0"), Host("burst-1")}))

    rig.connection.allocated = allocated  # type: ignore[method-assign]
    rig.run_for(600)
    assert 3 <= len(asked) <= 30


def test_a_provider_that_is_always_busy_now_is_asked_once_a_second_at_most(rig: Rig) -> None:
    for _ in range(200):
        rig.cloud.fail("launch", RateLimited("slow down", retry_after_s=0.0))
    rig.submit(nodes=2)
    rig.run_for(60)
    assert len(rig.calls("launch")) <= 3


def test_a_refusal_until_a_time_that_is_past_is_no_hot_loop(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offers(self: MockProvider, demand: Demand) -> Sequence[Offer | Refusal]:
        asked.append(demand)
        return [Refusal("burst", "mock", "not yet", retry_at=0.0)]

    monkeypatch.setattr(MockProvider, "offers", offers)
    rig.submit(nodes=2)
    rig.run_for(60)
    assert 2 <= len(asked) <= 70


def test_sold_out_is_asked_again_without_any_event(rig: Rig) -> None:
    rig.cloud.stock["burst"] = 1
    job = rig.submit(nodes=2)
    rig.run_for(600)
    assert "too few of mock left" in rig.ask("explain", id=job)["verdict"]
    rig.cloud.stock["burst"] = 4
    rig.run_until(lambda: rig.ended(job), 600)


def test_a_warm_pool_gets_warm_although_its_provider_could_not_be_asked_at_first(make_rig: MakeRig) -> None:
    rig = make_rig(POOL.replace("idle_timeout", "keep_warm = 1\nidle_timeout"))
    rig.cloud.fail("offers", ProviderUnavailable("down"))
    rig.cloud.fail("offers", ProviderUnavailable("down"))
    rig.run_for(300)
    assert list(rig.states().values()) == [NodeState.JOINED]


def test_a_refused_move_is_tried_again(rig: Rig) -> None:
    rig.run_for(1)
    rig.flux.disable_queue("burst", "maintenance")
    job = rig.submit(nodes=2)
    rig.run_for(60)
    assert any(entry["kind"] == "not moved" for entry in rig.ask("explain", id=job)["history"])
    rig.flux.enable_queue("burst")
    rig.run_until(lambda: rig.ended(job), 900)


def test_an_undrain_that_failed_is_repeated(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rig.submit(nodes=2, run_s=1)
    rig.run_until(lambda: rig.ended(first))
    rig.run_until(lambda: NodeState.DRAINING in rig.states().values())
    undrain, rig.connection.undrain = rig.connection.undrain, lambda hosts: rig.failing("busy")  # type: ignore[method-assign]
    second = rig.submit(nodes=2, run_s=1)
    rig.run_for(2)
    rig.connection.undrain = undrain  # type: ignore[method-assign]
    rig.run_until(lambda: rig.ended(second))
    assert len(rig.bought()) <= 4


def test_many_gangs_that_fail_at_once_are_one_failure(rig: Rig) -> None:
    for _ in range(2):
        rig.cloud.fail("launch", NoCapacity("sold out"))
    rig.submit(nodes=2)
    rig.submit(nodes=2)
    rig.run_for(5)
    assert [breaker["failures"] for breaker in rig.service.world.breakers.state()] == [1]


def test_small_jobs_are_ordered_apart_once_their_common_order_failed(rig: Rig) -> None:
    rig.submit(slots=2, burstable=False, run_s=5000)
    rig.run_for(1)
    jobs = [rig.submit(cores=2, run_s=5) for _ in range(4)]
    rig.cloud.stock["burst"] = 2
    rig.service.world.book.forget("mock")
    rig.cloud.left = lambda pool: None  # type: ignore[method-assign]
    rig.run_until(lambda: rig.ended(*jobs), 3600)


def test_jobs_of_one_shape_are_one_question_whatever_their_durations(rig: Rig) -> None:
    for minutes in range(1, 60):
        rig.submit(nodes=2, duration_s=60.0 * minutes, run_s=1)
    rig.run_for(1)
    assert len(rig.calls("offers")) <= 9


def test_a_clock_that_was_set_back_between_two_runs_stops_nothing(rig: Rig) -> None:
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.crash()
    rig.loop._epoch -= 6 * 3600
    rig.start()
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(rig.all_gone, 600)


def test_the_state_directory_is_the_owners_alone(rig: Rig) -> None:
    state = rig.config.state_path()
    assert state.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in state.glob("state.sqlite*")} == {0}
    assert isinstance(rig.store, Store)


def test_a_provider_that_is_down_for_days_ends_nothing(rig: Rig) -> None:
    job = rig.submit(nodes=2, run_s=200_000)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.flux.cancel(job)
    for _ in range(1500):
        rig.cloud.fail("release", ProviderUnavailable("down"))
    rig.run_for(100_000)
    rig.run_until(rig.all_gone)


def test_a_node_that_joins_before_any_listing_shows_it_is_not_taken_for_gone(make_rig: MakeRig) -> None:
    rig = make_rig(POOL.replace("boot_s = 30.0", "boot_s = 1.0").replace('"60s"', '"2s"'))
    rig.cloud.listing_lag_s = 10.0
    jobs = [rig.submit(nodes=2, run_s=1)]
    rig.run_until(lambda: rig.ended(*jobs))
    rig.run_for(4)
    jobs.append(rig.submit(nodes=2, run_s=1))
    rig.run_until(lambda: rig.ended(*jobs))
    rig.run_until(rig.all_gone)
    assert overlaps(rig) == []


def test_a_restart_does_not_forget_a_cooldown_because_a_job_runs_in_the_pool(rig: Rig) -> None:
    running = rig.submit(nodes=2, run_s=1000)
    rig.run_until(lambda: rig.flux.state(running).name == "RUN")
    rig.cloud.fail("launch", InvalidOrder("no such image"))
    rig.submit(nodes=2)
    rig.run_for(5)
    rig.restart()
    rig.run_for(600)
    assert len(rig.calls("launch")) == 2


def test_a_reconnect_does_not_launch_twice_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.run_for(1)
    providers = rig.service._providers
    slow = rig.later(100.0, lambda: None)
    calls = []
    monkeypatch.setattr(
        providers, "_executor", type("Slow", (), {"submit": lambda self, *a: calls.append(a) or slow})()
    )
    order: Any = type("Order", (), {"request_id": "b-one"})()
    assert providers.launch("mock", order) is providers.launch("mock", order)
    assert len(calls) == 1


def test_a_resubmission_that_cannot_succeed_is_given_up(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + '[policy]\non_node_loss = "resubmit"\n')
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.connection.jobspec = lambda job_id: rig.failing("no such job")  # type: ignore[method-assign]
    rig.cloud.interrupt(Host("burst-1"))
    rig.run_for(3600)
    assert "not resubmitted" in rig.kinds(job)
    assert rig.service.world.resubmissions == {}


def test_a_job_that_failed_by_itself_long_ago_was_not_lost_with_its_node(make_rig: MakeRig) -> None:
    rig = make_rig(POOL.replace('"60s"', '"1h"') + '[policy]\non_node_loss = "resubmit"\n')
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.flux._fail(rig.flux._known(job), "exec", "task exited with 1")
    rig.run_for(120)
    rig.cloud.interrupt(Host("burst-1"))
    rig.run_for(60)
    assert "resubmitted" not in rig.kinds(job)


def test_a_ghost_is_not_left_drained_by_a_drain_that_came_too_late(rig: Rig) -> None:
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    drain = rig.connection.drain
    rig.connection.drain = lambda hosts, reason: rig.later(5.0, lambda: drain(hosts, reason))  # type: ignore[method-assign]
    rig.cloud.interrupt(Host("burst-1"))
    rig.run_until(rig.all_gone)
    rig.run_for(60)
    assert {host for host, view in rig.service.world.hosts.items() if view.drained is not None} == set()


def test_a_machine_that_goes_before_it_has_joined_is_replaced_at_once(rig: Rig) -> None:
    job = rig.submit(nodes=2)
    rig.run_until(lambda: rig.states().get(Host("burst-0")) is NodeState.BOOTING)
    (machine,) = [one for one in rig.cloud.living() if one.host == "burst-0"]
    machine.releases, rig.cloud.release_tries = 1, 3  # as somebody did who is not the service
    rig.run_until(lambda: rig.ended(job), 120)
    assert len(rig.bought()) == 3
    record = next(node for node in rig.store.node_history() if node.host == "burst-0")
    assert "boot failed: the provider lists it as stopping" in record.reason
