"""The ledger and its caps, one promise at a time."""

from __future__ import annotations

import dataclasses
import sys
from datetime import UTC, datetime

import pytest

from fluxburst import config
from fluxburst.budget import (
    GROUPS,
    Ledger,
    Line,
    Segment,
    Window,
    accounted,
    cost_usd,
    place,
    reckoned,
    totals,
)
from fluxburst.cli import show
from fluxburst.config import BurstConfig
from fluxburst.errors import ConfigError
from fluxburst.model import Account, Host, RequestId
from fluxburst.moment import NOBODY, Cap

HOUR, DAY = 3600.0, 86400.0
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
NEXT_MONTH = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
ALICE = Account("alice", "physics", "higgs")
BOB = Account("bob", "physics", "")


def site(limits: str = "", pool: str = "") -> BurstConfig:
    return config.parse(f"""
cluster = "corona"
[lead]
connect = "tcp://127.0.0.1:8050"
[limits]
{limits}
[pool.c2]
provider = "gke"
hosts = "c2-[0-9]"
cores = 4
{pool}
[pool.d2]
provider = "gke"
hosts = "d2-[0-9]"
cores = 4
[pool.e2]
provider = "eks"
hosts = "e2-[0-9]"
cores = 4
""")


def book(limits: str = "", pool: str = "", at: float = NOON) -> Ledger:
    return Ledger(site(limits, pool), (), at)


def buy(
    ledger: Ledger,
    hours: float,
    *,
    at: float = NOON,
    host: str = "c2-0",
    account: Account = ALICE,
    usd: float | None = 1.0,
) -> Segment:
    return ledger.reserve(
        at, RequestId(f"b-{host}"), Host(host), host.partition("-")[0], account, usd, at + hours * HOUR
    )


def line(ledger: Ledger, now: float, kind: str = "day", scope: str = "all", name: str = "") -> Line:
    (found,) = [one for one in ledger.report(now) if (one.window.kind, one.scope, one.name) == (kind, scope, name)]
    return found


def money(ledger: Ledger, now: float, kind: str = "day", scope: str = "all", name: str = "") -> tuple[float, float]:
    found = line(ledger, now, kind, scope, name)
    return found.spent_usd, found.reserved_usd


@pytest.mark.parametrize(
    ("kind", "name", "begin", "end"),
    [
        ("day", "2026-11-22", datetime(2026, 11, 22, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC)),
        ("month", "2026-11", datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)),
    ],
)
def test_days_and_months_are_utcs(kind: str, name: str, begin: datetime, end: datetime) -> None:
    window = Window.at(kind, NOON)
    assert (window.name, window.from_at, window.until_at) == (name, begin.timestamp(), end.timestamp())
    assert window.next() == Window.at(kind, end.timestamp())


@pytest.mark.parametrize("month", range(1, 13))
def test_every_month_ends_where_the_next_begins(month: int) -> None:
    begin = datetime(2028, month, 1, tzinfo=UTC)
    end = datetime(2028 + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    assert Window.at("month", begin.timestamp()).until_at == end.timestamp()


@pytest.mark.parametrize(
    ("seconds", "increment_s", "minimum_s", "usd"),
    [
        (0.0, 1.0, 60.0, 0.0),
        (1.0, 1.0, 0.0, 0.001),
        (1.5, 1.0, 0.0, 0.002),
        (1.0, 1.0, 60.0, 0.06),
        (61.0, 1.0, 60.0, 0.061),
        (1.0, 3600.0, 0.0, 3.6),
        (3600.0, 3600.0, 0.0, 3.6),
        (3601.0, 3600.0, 0.0, 7.2),
        (10.0, 60.0, 90.0, 0.12),
    ],
)
def test_a_node_costs_whole_increments_and_its_minimum(
    seconds: float, increment_s: float, minimum_s: float, usd: float
) -> None:
    assert cost_usd(3.6, NOON, NOON + seconds, increment_s, minimum_s) == usd


def test_a_reservation_is_spent_as_time_goes_by_and_settled_by_the_real_life() -> None:
    ledger = book()
    buy(ledger, 8)
    assert money(ledger, NOON) == (0.0, 8.0)
    assert money(ledger, NOON + 2 * HOUR) == (2.0, 6.0)
    (settled,) = ledger.settle(NOON + 3 * HOUR, Host("c2-0"), NOON + 3 * HOUR)
    assert (settled.until_at, settled.ended_at) == (NOON + 8 * HOUR, NOON + 3 * HOUR)
    assert money(ledger, NOON + 4 * HOUR) == (3.0, 0.0)
    assert Host("c2-0") not in ledger


def test_what_was_never_there_costs_nothing() -> None:
    ledger = book(pool='billing_minimum = "1h"')
    buy(ledger, 8)
    ledger.settle(NOON + HOUR, Host("c2-0"), NOON)
    assert money(ledger, NOON + HOUR) == (0.0, 0.0)


def test_who_makes_a_node_live_longer_pays_for_that_and_no_more() -> None:
    ledger = book('user."*" = { usd_per_day = 100 }')
    buy(ledger, 2)
    assert ledger.extend(NOON + HOUR, Host("c2-0"), BOB, NOON + 2 * HOUR) == (), "it fits inside"
    first, second = ledger.extend(NOON + HOUR, Host("c2-0"), BOB, NOON + 5 * HOUR)
    assert (first.account, first.until_at) == (ALICE, NOON + 2 * HOUR)
    assert (second.account, second.from_at, second.until_at) == (BOB, NOON + 2 * HOUR, NOON + 5 * HOUR)
    assert money(ledger, NOON + HOUR, "day", "user", "alice") == (1.0, 1.0)
    assert money(ledger, NOON + HOUR, "day", "user", "bob") == (0.0, 3.0)
    settled = ledger.settle(NOON + 2.5 * HOUR, Host("c2-0"), NOON + 2.5 * HOUR)
    assert [one.ended_at for one in settled] == [NOON + 2 * HOUR, NOON + 2.5 * HOUR]
    assert money(ledger, NOON + 3 * HOUR, "day", "user", "alice") == (2.0, 0.0)
    assert money(ledger, NOON + 3 * HOUR, "day", "user", "bob") == (0.5, 0.0)


def test_an_end_before_an_extension_begins_makes_it_worth_nothing() -> None:
    ledger = book('user."*" = { usd_per_day = 100 }')
    buy(ledger, 2)
    ledger.extend(NOON, Host("c2-0"), BOB, NOON + 5 * HOUR)
    assert line(ledger, NOON, "day", "user", "bob").reserved_usd == 3.0
    settled = ledger.settle(NOON + HOUR, Host("c2-0"), NOON + HOUR)
    assert [one.cost() > 0 for one in settled] == [True, False]
    assert money(ledger, NOON + HOUR, "day", "user", "alice") == (1.0, 0.0)


def test_prolonging_again_and_again_on_one_account_keeps_one_segment_a_day() -> None:
    ledger = book()
    buy(ledger, 1)
    for hour in range(2, 12):
        changed = ledger.extend(NOON, Host("c2-0"), ALICE, NOON + hour * HOUR)
        assert [one.until_at for one in changed] == [NOON + hour * HOUR]
    assert len(ledger.live(NOON)) == 1
    assert len(ledger.extend(MIDNIGHT - HOUR, Host("c2-0"), ALICE, MIDNIGHT + DAY)) == 1
    assert len(ledger.extend(MIDNIGHT + HOUR, Host("c2-0"), ALICE, MIDNIGHT + 2 * DAY)) == 2, "the day after"


def test_a_node_that_outlives_its_reservation_goes_on_on_the_last_account() -> None:
    ledger = book('user."*" = { usd_per_day = 100 }')
    buy(ledger, 1)
    ledger.extend(NOON, Host("c2-0"), BOB, NOON + 2 * HOUR)
    assert money(ledger, NOON + 4 * HOUR, "day", "user", "alice") == (1.0, 0.0)
    assert money(ledger, NOON + 4 * HOUR, "day", "user", "bob") == (3.0, 0.0)
    first, second = ledger.extend(NOON + 5 * HOUR, Host("c2-0"), ALICE, NOON + 6 * HOUR)
    assert (first.account, first.until_at, second.from_at) == (BOB, NOON + 5 * HOUR, NOON + 5 * HOUR)


def test_a_day_counts_what_was_bought_in_it_whole_and_of_older_nodes_its_own_part() -> None:
    ledger = book("usd_per_day = 40")
    buy(ledger, 36)  # 12 hours of today and all of tomorrow
    assert money(ledger, NOON) == (0.0, 36.0)
    assert money(ledger, MIDNIGHT + HOUR) == (1.0, 23.0)
    assert money(ledger, MIDNIGHT + HOUR, "month") == (13.0, 23.0)
    assert ledger.draft(MIDNIGHT + HOUR, {}).allowed(NOBODY, "c2", 1.0)[0] == 16


def test_an_older_reservation_that_falls_into_a_later_day_counts_already() -> None:
    ledger = book("usd_per_day = 24")
    buy(ledger, 0.5)
    ledger.extend(NOON, Host("c2-0"), ALICE, NOON + 12.5 * HOUR)
    ledger.extend(NOON, Host("c2-0"), BOB, NOON + 24 * HOUR)
    tomorrow = ledger.draft(MIDNIGHT, {})
    assert tomorrow.allowed(NOBODY, "c2", 1.0)[0] == 12, "what was not for tomorrow is free again"


def test_a_month_ends_and_its_cap_begins_anew_with_what_still_lives() -> None:
    ledger = book("usd_per_month = 50", at=NEXT_MONTH - 20 * HOUR)
    buy(ledger, 40, at=NEXT_MONTH - 20 * HOUR)
    assert ledger.draft(NEXT_MONTH - HOUR, {}).allowed(NOBODY, "c2", 1.0)[0] == 10
    assert ledger.draft(NEXT_MONTH, {}).allowed(NOBODY, "c2", 1.0)[0] == 30
    assert line(ledger, NEXT_MONTH, "month").window.name == "2026-12"


USER_CAPS = """
user.alice = { usd_per_day = 5 }
user.root = {}
user."*" = { usd_per_day = 3, usd_per_month = 20 }
"""


@pytest.mark.parametrize(
    ("limits", "pool", "account", "live", "usd", "allowed", "cap"),
    [
        ("", "", ALICE, {}, None, sys.maxsize, None),
        ("nodes = 5", "", ALICE, {"c2": 1, "e2": 2}, None, 2, Cap("[limits] nodes", "nodes", 5, 3)),
        ("nodes = 2", "", ALICE, {"c2": 3}, 1.0, 0, Cap("[limits] nodes", "nodes", 2, 3)),
        ("", "max_nodes = 4", ALICE, {"c2": 1, "d2": 3}, 1.0, 3, Cap("[pool.c2] max_nodes", "nodes", 4, 1)),
        (
            "provider.gke = { nodes = 4 }", "", ALICE, {"c2": 1, "d2": 1, "e2": 9}, 1.0, 2,
            Cap("[limits.provider.gke] nodes", "nodes", 4, 2),
        ),
        (
            'provider.eks = {}\nprovider."*" = { nodes = 4 }', "", ALICE, {"d2": 3}, 1.0, 1,
            Cap('[limits.provider."*"] nodes', "nodes", 4, 3),
        ),
        ("usd_per_day = 10", "", NOBODY, {}, 3.0, 3, Cap("[limits] usd_per_day", "usd", 10, 0, MIDNIGHT)),
        ("usd_per_month = 10", "", NOBODY, {}, 0.1, 100, Cap("[limits] usd_per_month", "usd", 10, 0, NEXT_MONTH)),
        ("usd_per_day = 10", "", NOBODY, {}, 0.0, sys.maxsize, None),
        ("usd_per_day = 0", "", NOBODY, {}, 0.0, sys.maxsize, None),
        ("usd_per_day = 0", "", NOBODY, {}, 0.1, 0, Cap("[limits] usd_per_day", "usd", 0, 0, MIDNIGHT)),
        ("usd_per_day = 10", "", NOBODY, {}, None, 0, Cap("[limits] usd_per_day", "price", 10, 0, MIDNIGHT)),
        (USER_CAPS, "", ALICE, {}, 1.0, 5, Cap("[limits.user.alice] usd_per_day", "usd", 5, 0, MIDNIGHT)),
        (USER_CAPS, "", BOB, {}, 1.0, 3, Cap('[limits.user."*"] usd_per_day', "usd", 3, 0, MIDNIGHT)),
        (USER_CAPS, "", Account("root"), {}, 1.0, sys.maxsize, None),
        (USER_CAPS, "", NOBODY, {}, None, sys.maxsize, None),
        (USER_CAPS, "", BOB, {}, None, 0, Cap('[limits.user."*"] usd_per_day', "price", 3, 0, MIDNIGHT)),
        (
            "bank.physics = { usd_per_day = 2 }", "", BOB, {}, 1.0, 2,
            Cap("[limits.bank.physics] usd_per_day", "usd", 2, 0, MIDNIGHT),
        ),
        (
            'project."*" = { usd_per_day = 2 }', "", ALICE, {}, 1.0, 2,
            Cap('[limits.project."*"] usd_per_day', "usd", 2, 0, MIDNIGHT),
        ),
        ('project."*" = { usd_per_day = 2 }', "", BOB, {}, 1.0, sys.maxsize, None),
        (
            "pool.c2 = { usd_per_day = 2 }", "", BOB, {}, 1.0, 2,
            Cap("[limits.pool.c2] usd_per_day", "usd", 2, 0, MIDNIGHT),
        ),
        ("pool.d2 = { usd_per_day = 2 }", "", BOB, {}, 1.0, sys.maxsize, None),
        (
            'provider."*" = { usd_per_day = 2 }\nusd_per_day = 9', "", BOB, {}, 1.0, 2,
            Cap('[limits.provider."*"] usd_per_day', "usd", 2, 0, MIDNIGHT),
        ),
    ],
)  # fmt: skip
def test_the_tightest_cap_decides_and_is_named_as_in_the_file(
    limits: str,
    pool: str,
    account: Account,
    live: dict[str, int],
    usd: float | None,
    allowed: int,
    cap: Cap | None,
) -> None:
    assert book(limits, pool).draft(NOON, live).allowed(account, "c2", usd) == (allowed, cap)


def test_everyone_under_a_star_has_a_cap_of_his_own() -> None:
    ledger = book(USER_CAPS)
    buy(ledger, 2, account=BOB)
    draft = ledger.draft(NOON, {})
    assert draft.allowed(BOB, "c2", 1.0)[0] == 1
    assert draft.allowed(Account("carol"), "c2", 1.0)[0] == 3
    draft.take(Account("carol"), "e2", 3, 1.0)
    assert (draft.allowed(Account("carol"), "c2", 1.0)[0], draft.allowed(BOB, "c2", 1.0)[0]) == (0, 1)


def test_pools_share_the_caps_of_their_provider_and_of_all() -> None:
    draft = book("nodes = 9\nprovider.gke = { nodes = 5, usd_per_day = 4 }").draft(NOON, {"e2": 1})
    draft.take(ALICE, "d2", 3, 1.0)
    assert draft.allowed(BOB, "c2", 1.0)[0] == 1
    assert draft.allowed(BOB, "c2", 0.1)[0] == 2
    assert draft.allowed(BOB, "e2", 1.0)[0] == 5


def test_a_draft_goes_back_to_its_marks() -> None:
    draft = book("nodes = 9\nusd_per_day = 10").draft(NOON, {})
    draft.take(ALICE, "c2", 2, 1.0)
    mark = draft.mark()
    draft.take(BOB, "d2", 3, 2.0)
    assert draft.extend(BOB, "c2", 1.5) is None
    assert draft.allowed(ALICE, "c2", 0.5) == (1, Cap("[limits] usd_per_day", "usd", 10, 9.5, MIDNIGHT))
    draft.rollback(mark)
    assert draft.allowed(ALICE, "c2", 0.5) == (7, Cap("[limits] nodes", "nodes", 9, 2))


def test_no_more_is_taken_than_is_allowed() -> None:
    draft = book("nodes = 2").draft(NOON, {})
    with pytest.raises(ValueError, match=r"3 nodes in c2 .* 2 are allowed by "):
        draft.take(ALICE, "c2", 3, 1.0)
    draft.take(ALICE, "c2", 2, 1.0)


def test_an_extension_is_refused_by_the_cap_that_it_would_break_and_takes_no_node() -> None:
    draft = book("nodes = 1\nusd_per_day = 10").draft(NOON, {"c2": 1})
    assert draft.extend(ALICE, "c2", 8.0) is None
    assert draft.extend(ALICE, "c2", 2.5) == Cap("[limits] usd_per_day", "usd", 10, 8, MIDNIGHT)
    assert draft.extend(ALICE, "c2", 0.0) is None
    assert draft.extend(ALICE, "c2", None) == Cap("[limits] usd_per_day", "price", 10, 8, MIDNIGHT)
    assert book().draft(NOON, {}).extend(ALICE, "c2", None) is None


def test_thirds_of_a_dollar_never_add_up_to_more_than_a_cap() -> None:
    ledger = book("usd_per_day = 1")
    usd = ledger.cost_usd("c2", 1.0, NOON, NOON + 1200)
    assert ledger.draft(NOON, {}).allowed(NOBODY, "c2", usd)[0] == 2, "a third is rounded up"
    for index in range(10):
        buy(ledger, 0.1, host=f"c2-{index}")
    assert line(ledger, NOON).share == 1.0
    assert ledger.draft(NOON, {}).allowed(NOBODY, "c2", 0.000001)[0] == 0


def test_an_unknown_price_is_assumed_where_the_site_says_so_and_else_counts_nothing() -> None:
    assumed = site("assume_usd_per_node_hour = 2\nusd_per_day = 100")
    assert (reckoned(assumed, None), reckoned(assumed, 0.0), reckoned(site(), None)) == (2.0, 0.0, None)
    ledger = Ledger(assumed, (), NOON)
    assert ledger.cost_usd("c2", None, NOON, NOON + HOUR) == 2.0
    assert buy(ledger, 3, usd=None).usd_per_node_hour == 2.0
    assert money(ledger, NOON) == (0.0, 6.0)
    unknown = book()
    assert unknown.cost_usd("c2", None, NOON, NOON + HOUR) is None
    buy(unknown, 3, usd=None)
    assert money(unknown, NOON) == (0.0, 0.0)
    (total,) = totals(unknown.live(NOON + HOUR), "pool", NOON, NOON + HOUR)
    assert (total.node_hours, total.unpriced_hours, total.spent_usd) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ("usd_per_day = 1\npool.c2 = { usd_per_day = 1 }", NOBODY),
        ("user.alice = { usd_per_day = 1 }", Account(user="alice")),
        ("user.bob = { usd_per_day = 1 }", NOBODY),
        ('user."*" = { usd_per_month = 1 }\nuser.alice = {}', NOBODY),
        ('bank."*" = { usd_per_month = 0 }', Account(bank="physics")),
        ('project."*" = { usd_per_month = 1 }\nbank.physics = { usd_per_day = 1 }', Account("", "physics", "higgs")),
    ],
)
def test_an_account_is_told_apart_only_where_a_cap_asks_for_it(limits: str, kept: Account) -> None:
    assert accounted(site(limits), ALICE) == kept
    assert accounted(site(limits), NOBODY) == NOBODY


def test_the_report_has_every_cap_and_who_bought_under_a_star() -> None:
    ledger = book(USER_CAPS + 'warn_at = 0.5\nbank."*" = { usd_per_day = 9 }')
    buy(ledger, 2, account=BOB)
    found = {(one.scope, one.name, one.window.kind): one for one in ledger.report(NOON + HOUR)}
    assert list(found) == [
        ("all", "", "day"), ("all", "", "month"), ("user", "alice", "day"), ("user", "bob", "day"),
        ("user", "bob", "month"), ("bank", "physics", "day"),
    ]  # fmt: skip
    bob = found["user", "bob", "day"]
    assert (bob.cap, bob.limit_usd, bob.spent_usd, bob.reserved_usd) == ('[limits.user."*"] usd_per_day', 3.0, 1.0, 1.0)
    assert bob.share == pytest.approx(2 / 3)
    assert bob.level == 0.5
    assert found["all", "", "day"].limit_usd is None
    assert ledger.levels() == {("2026-11-22", "user", "bob"): 0.5}


@pytest.mark.parametrize(("hours", "level"), [(7.9, 0.0), (8.0, 0.8), (9.9, 0.8), (10.0, 1.0), (11.0, 1.0)])
def test_a_level_is_reached_at_its_share_of_the_cap(hours: float, level: float) -> None:
    ledger = book("usd_per_day = 10")
    buy(ledger, hours)
    assert line(ledger, NOON).level == level
    assert ledger.levels() == ({("2026-11-22", "all", ""): level} if level else {})


@pytest.mark.parametrize(
    ("name", "table"), [("alice", "[limits.user.alice]"), ("*", '[limits.user."*"]'), ("a.b", '[limits.user."a.b"]')]
)
def test_a_table_is_named_so_that_it_can_be_written_into_the_file(name: str, table: str) -> None:
    assert place("user", name) == table


def test_totals_tell_costs_apart_by_what_is_asked() -> None:
    ledger = book()
    buy(ledger, 2, host="c2-0", account=ALICE)
    ledger.extend(NOON, Host("c2-0"), BOB, NOON + 3 * HOUR)
    buy(ledger, 24, host="e2-0", account=BOB, usd=2.0)
    gone = ledger.settle(NOON + 4 * HOUR, Host("c2-0"), NOON + 3 * HOUR)
    rows = [*gone, *ledger.live(NOON + 4 * HOUR)]

    def told(group: str, since_at: float = NOON) -> list[tuple[str, int, float, float, float]]:
        return [
            (one.name, one.nodes, one.node_hours, one.spent_usd, one.reserved_usd)
            for one in totals(rows, group, since_at, NOON + 4 * HOUR)
        ]

    assert told("pool") == [("c2", 1, 3.0, 3.0, 0.0), ("e2", 1, 4.0, 8.0, 40.0)]
    assert told("provider") == [("eks", 1, 4.0, 8.0, 40.0), ("gke", 1, 3.0, 3.0, 0.0)]
    assert told("user") == [("alice", 1, 2.0, 2.0, 0.0), ("bob", 2, 5.0, 9.0, 40.0)]
    assert told("bank") == [("physics", 2, 7.0, 11.0, 40.0)]
    assert told("project") == [("", 2, 5.0, 9.0, 40.0), ("higgs", 1, 2.0, 2.0, 0.0)]
    assert told("day") == [("2026-11-22", 2, 7.0, 11.0, 16.0), ("2026-11-23", 1, 0.0, 0.0, 24.0)]
    assert told("month") == [("2026-11", 2, 7.0, 11.0, 40.0)]
    assert told("user", NOON + 3 * HOUR) == [("bob", 1, 1.0, 2.0, 40.0)], "only what happened since"


def test_the_command_offers_every_group() -> None:
    assert show._GROUPS == GROUPS


def test_a_ledger_without_dollar_caps_does_not_look_at_what_lives() -> None:
    ledger = book("nodes = 5")
    buy(ledger, 1)
    ledger.draft(NOON + DAY, {})
    assert ledger.paid_until(Host("c2-0")) == NOON + HOUR
    capped = Ledger(site("usd_per_day = 5"), [dataclasses.replace(buy(book(), 1))], NOON)
    capped.draft(NOON + DAY, {})
    assert capped.paid_until(Host("c2-0")) == NOON + DAY
    assert capped.paid_until(Host("c2-1")) == 0.0


@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
@pytest.mark.parametrize("key", ["usd_per_day", "usd_per_month", "assume_usd_per_node_hour"])
def test_a_cap_is_a_finite_number_of_dollars(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[limits\] {key}: "):
        site(f"{key} = {value}")


@pytest.mark.parametrize("name", ['""', '" alice"'])
@pytest.mark.parametrize("scope", ["user", "bank", "project"])
def test_a_cap_is_for_someone_who_may_exist(scope: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf'\[limits\.{scope}\.".*"\]: no {scope} is called that'):
        site(f"{scope}.{name} = {{ usd_per_day = 1 }}")


def test_a_job_on_another_node_than_its_own_moves_what_was_reserved_and_every_account_pays_what_it_did() -> None:
    ledger = book("user.alice.usd_per_day = 100\nuser.bob.usd_per_day = 100")
    stored = {(first.host, first.from_at): first for first in (buy(ledger, 1), buy(ledger, 1, host="c2-1"))}

    def store(changed: tuple[Segment, ...]) -> None:
        stored.update({(segment.host, segment.from_at): segment for segment in changed})

    store(ledger.extend(NOON, Host("c2-0"), BOB, NOON + 3 * HOUR))
    before = {name: money(ledger, NOON, scope="user", name=name) for name in ("alice", "bob")}
    store(ledger.exchange(NOON + 60, Host("c2-0"), Host("c2-1")))
    assert (ledger.paid_until(Host("c2-0")), ledger.paid_until(Host("c2-1"))) == (NOON + HOUR, NOON + 3 * HOUR)
    assert {name: money(ledger, NOON, scope="user", name=name) for name in ("alice", "bob")} == before
    for host in ("c2-0", "c2-1"):
        store(ledger.settle(NOON + HOUR, Host(host), NOON + HOUR))
    assert all(segment.ended_at is not None for segment in stored.values())
