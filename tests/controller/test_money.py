"""The ledger in the running service: what is reserved, settled, told, and kept through a crash."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from fluxburst.controller.effects import Launch
from fluxburst.errors import NoCapacity, RequestError
from fluxburst.flux.protocol import Caller
from fluxburst.model import Account, Host
from fluxburst.moment import Extension
from fluxburst.store import LogEntry
from tests.controller.conftest import MakeRig
from tests.rig import POOL, Rig

LIMITS = '\n[limits]\nusd_per_day = 1000\nuser."*" = { usd_per_month = 500 }\n'
GUEST = Caller(4000000001, owner=False)


def caps(rig: Rig) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    return {(line["scope"], line["name"], line["window"]): line for line in rig.ask("budget")["caps"]}


def told(rig: Rig) -> list[LogEntry]:
    return [entry for entry in rig.store.history("service") if entry.kind == "budget"]


def real_usd(rig: Rig) -> float:
    """What the mock cloud's machines have cost, by the second."""
    now = rig.cloud.now()
    lives = [min(machine.gone_at, now) - machine.ordered_at for machine in rig.cloud.machines.values()]
    return sum(lives) * 0.5 / 3600


def test_a_burst_is_reserved_at_launch_and_settled_by_its_real_life(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + LIMITS)
    job = rig.submit(nodes=2, duration_s=600.0, userid=4000000002, bank="physics")
    rig.run_until(lambda: len(rig.states()) == 2)
    day = caps(rig)["all", "", "day"]
    assert day["spent_usd"] == pytest.approx(0.0, abs=0.001)
    assert 2 * 600 * 0.5 / 3600 <= day["reserved_usd"] <= 2 * 2000 * 0.5 / 3600
    assert caps(rig)["user", "4000000002", "month"]["reserved_usd"] == day["reserved_usd"]
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(rig.all_gone)
    day = caps(rig)["all", "", "day"]
    assert day["reserved_usd"] == 0.0
    assert real_usd(rig) <= day["spent_usd"] <= 1.1 * real_usd(rig)
    (total,) = rig.ask("budget", by="bank")["totals"]
    assert (total["name"], total["nodes"], total["spent_usd"]) == ("physics", 2, day["spent_usd"])


def test_the_real_account_is_entered_even_where_no_cap_asks_for_it(rig: Rig) -> None:
    job = rig.submit(nodes=2, userid=4000000002, project="higgs")
    rig.run_until(lambda: rig.ended(job))
    assert [total["name"] for total in rig.ask("budget", by="user")["totals"]] == ["4000000002"]
    assert [total["name"] for total in rig.ask("budget", by="project")["totals"]] == ["higgs"]


def test_a_reservation_is_there_after_a_crash_between_the_commit_and_the_launch(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + LIMITS)
    perform = rig.service._perform
    rig.service._perform = lambda effect: Future() if isinstance(effect, Launch) else perform(effect)  # type: ignore[method-assign]
    job = rig.submit(nodes=2)
    rig.run_until(lambda: len(rig.states()) == 2)
    assert rig.calls("launch") == []
    before = rig.ask("budget")
    rig.restart()
    assert rig.ask("budget") == before
    rig.run_until(lambda: rig.ended(job))
    assert len(rig.store.segments(0.0)) == 2, "the launch after the restart reserves nothing twice"


def test_a_launch_that_failed_costs_nothing(make_rig: MakeRig) -> None:
    rig = make_rig(POOL.replace("cores = 2", 'cores = 2\nbilling_minimum = "1h"') + LIMITS)
    rig.cloud.fail("launch", NoCapacity("stockout"))
    job = rig.submit(nodes=2, run_s=1.0)
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(rig.all_gone)
    costs = {segment.request_id: segment.cost() for segment in rig.store.segments(0.0)}
    assert len(costs) == 2, "the second order was taken"
    assert [cost > 0 for _, cost in sorted(costs.items())] == [False, True]
    assert caps(rig)["all", "", "day"]["spent_usd"] == 2 * 0.5, "an hour each"


def test_an_adopted_machine_is_reserved_on_nobodys_account(make_rig: MakeRig) -> None:
    rig = make_rig(POOL.replace("cores = 2", "cores = 2\nusd_per_node_hour = 0.75") + LIMITS)
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.crash()
    for path in rig.config.state_path().glob("state.sqlite*"):
        path.unlink()
    rig.start()
    rig.run_until(lambda: len(rig.states()) == 2)
    assert {(one.account, one.usd_per_node_hour) for one in rig.store.segments(0.0)} == {(Account(), 0.75)}
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(rig.all_gone)
    assert all(segment.ended_at is not None for segment in rig.store.segments(0.0))


def test_what_was_bought_before_there_was_a_ledger_is_entered_at_the_next_start(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + LIMITS)
    rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: len(rig.states()) == 2)
    rig.crash()
    with closing(sqlite3.connect(rig.config.state_path() / "state.sqlite")) as database:
        database.execute("DROP TABLE ledger")
        database.execute("PRAGMA user_version = 1")
    rig.start()
    rig.run_for(1)
    planned_at = rig.node("burst-0").planned_at
    first = [one for one in rig.store.segments(0.0) if one.from_at == planned_at]
    assert [(one.launched_at, one.account, one.usd_per_node_hour) for one in first] == [
        (planned_at, Account(), 0.5)
    ] * 2


def test_an_extension_is_on_the_account_that_asks_for_it(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + LIMITS)
    rig.submit(nodes=2, run_s=100, duration_s=200.0)
    rig.run_until(lambda: len(rig.states()) == 2)
    world, now = rig.service.world, rig.loop.wall()
    until_at = world.ledger.paid_until(Host("burst-0")) + 3600.0
    world.extend(now, Extension(Host("burst-0"), Account("carol"), until_at))
    world.store.commit()
    rig.restart()
    assert rig.service.world.ledger.paid_until(Host("burst-0")) == until_at
    assert caps(rig)["user", "carol", "month"]["reserved_usd"] == pytest.approx(0.5)


def test_a_caps_warning_is_told_once_for_its_window_and_again_when_all_is_committed(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + "\n[limits]\nusd_per_day = 1.0\n")
    assert told(rig) == []
    rig.submit(nodes=2, run_s=20.0, duration_s=60.0)
    rig.run_until(lambda: len(rig.states()) == 2)
    assert told(rig) == []

    def extend(usd: float) -> None:
        world = rig.service.world
        until_at = world.ledger.paid_until(Host("burst-0")) + usd / 0.5 * 3600
        world.extend(rig.loop.wall(), Extension(Host("burst-0"), Account("carol"), until_at))
        rig.ask("status")
        rig.run_for(0.1)

    committed = caps(rig)["all", "", "day"]["reserved_usd"] + caps(rig)["all", "", "day"]["spent_usd"]
    extend(0.85 - committed)
    (warning,) = told(rig)
    assert (warning.data["cap"], warning.data["reason"]) == ("[limits] usd_per_day", "80% is committed")
    assert warning.data["window"] == datetime.fromtimestamp(rig.loop.wall(), UTC).date().isoformat()
    rig.restart()
    rig.run_for(1)
    extend(0.05)
    assert len(told(rig)) == 1, "once, also over a restart"
    extend(0.2)
    assert [entry.data["reason"] for entry in told(rig)[1:]] == ["all is committed: nothing new is bought"]


@pytest.mark.parametrize(("limits", "shown"), [("", []), (LIMITS, ["[limits] usd_per_day"])])
def test_the_status_shows_what_is_capped(make_rig: MakeRig, limits: str, shown: list[str]) -> None:
    assert [line["cap"] for line in make_rig(POOL + limits).ask("status")["budget"]] == shown


def test_a_guest_sees_what_is_everyones_and_his_own(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + LIMITS + 'bank."*" = { usd_per_day = 100 }\npool.burst = { usd_per_day = 100 }\n')
    jobs = [rig.submit(nodes=2, run_s=5.0, userid=uid, bank="physics") for uid in (GUEST.userid, 4000000002)]
    rig.run_until(lambda: rig.ended(*jobs))
    seen = rig.service.handle("budget", {"by": "user"}, GUEST)
    assert [total["name"] for total in seen["totals"]] in (["4000000001"], [])
    scopes = {(line["scope"], line["name"]) for line in seen["caps"]}
    assert ("user", "4000000002") not in scopes
    assert ("bank", "physics") not in scopes
    assert {("all", ""), ("pool", "burst")} <= scopes


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"by": "moon"}, "by: 'moon' is none of day, month, user, bank, project, pool, provider"),
        ({"by": ["day"]}, "by: "),
        ({"since_at": "today"}, "since_at: 'today' is no time in seconds since 1970"),
        ({"since_at": -1}, "since_at: -1"),
        ({"since_at": 1e300}, "since_at: 1e"),
        ({"since_at": True}, "since_at: True"),
    ],
)
def test_a_budget_is_asked_for_in_words_that_it_knows(rig: Rig, payload: dict[str, Any], error: str) -> None:
    with pytest.raises(RequestError) as raised:
        rig.ask("budget", **payload)
    assert str(raised.value).startswith(error)
