"""What the ledger must keep whatever happens: no window costs more than its cap, and a restart changes nothing."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fluxburst import config
from fluxburst.budget import Draft, Ledger, Segment, Window
from fluxburst.config import BurstConfig
from fluxburst.model import Account, Host, RequestId

HOUR, DAY = 3600.0, 86400.0
SITE = """
cluster = "corona"
[lead]
connect = "tcp://127.0.0.1:8050"
[limits]
nodes = 12
usd_per_day = 30
usd_per_month = 200
[limits.user.alice]
usd_per_day = 9.5
[limits.user."*"]
usd_per_month = 40
[limits.bank."*"]
usd_per_day = 12
[limits.provider.gke]
nodes = 9
usd_per_month = 150
[limits.pool.hourly]
usd_per_day = 14
[pool.seconds]
provider = "gke"
hosts = "s-[0-15]"
cores = 4
billing_increment = "60s"
billing_minimum = "10m"
[pool.hourly]
provider = "gke"
hosts = "h-[0-15]"
cores = 4
max_nodes = 7
billing_increment = "1h"
[pool.shifts]
provider = "eks"
hosts = "e-[0-15]"
cores = 4
billing_increment = "7h"
"""
CONFIG = config.parse(SITE)
CAPS: dict[tuple[str, str], dict[str, float]] = {
    ("all", ""): {"day": 30, "month": 200},
    ("user", "alice"): {"day": 9.5},
    ("user", "bob"): {"month": 40},
    ("user", "carol"): {"month": 40},
    ("bank", "physics"): {"day": 12},
    ("bank", "chemistry"): {"day": 12},
    ("provider", "gke"): {"month": 150},
    ("pool", "hourly"): {"day": 14},
}
POOLS = st.sampled_from(["seconds", "hourly", "shifts"])
ACCOUNTS = st.builds(
    Account, st.sampled_from(["", "alice", "bob", "carol"]), st.sampled_from(["", "physics", "chemistry"])
)
PRICES = st.sampled_from([0.0, 0.07, 1 / 3, 1.0, 2.5])
LENGTHS = st.one_of(
    st.floats(1.0, 2 * HOUR),
    st.floats(HOUR, 3 * DAY),
    st.floats(DAY, 70 * DAY),
    st.sampled_from([HOUR, 7 * HOUR, DAY, 30 * DAY]),
)
STARTS = st.sampled_from(
    [
        datetime(2027, 1, 30, 22, tzinfo=UTC),
        datetime(2028, 2, 28, 23, 59, tzinfo=UTC),
        datetime(2026, 12, 31, tzinfo=UTC),
    ]
)


@dataclass
class Life:
    """One node as the test itself keeps it: who owns which stretch, and when it really ended."""

    pool: str
    launched_at: float
    usd_per_hour: float
    owners: list[tuple[Account, float]] = field(default_factory=list)
    ended_at: float | None = None

    @property
    def until_at(self) -> float:
        return self.owners[-1][1]

    def steps(self, from_at: float, until_at: float) -> int:
        """How many billed steps begin between two times; those of the minimum begin at once."""
        table = CONFIG.pool[self.pool]
        increment_ms, minimum_ms = round(table.billing_increment * 1000), round(table.billing_minimum * 1000)
        end_at = self.until_at if self.ended_at is None else self.ended_at
        zero, begin, end = (round(at * 1000) for at in (self.launched_at, from_at, min(until_at, end_at)))
        if end <= begin or end <= zero:
            return 0
        first, last = -(-(begin - zero) // increment_ms), -(-(end - zero) // increment_ms)
        least = -(-minimum_ms // increment_ms)
        return max(last, least) - (max(first, least) if begin > zero else 0)

    def costs(self) -> Iterator[tuple[str, float, Account, Fraction]]:
        """What each day and month costs whom, in dollars."""
        usd = Fraction(round(self.usd_per_hour * 10**9), 10**9) * round(CONFIG.pool[self.pool].billing_increment) / 3600
        for kind in ("day", "month"):
            from_at = self.launched_at
            for account, until_at in [*self.owners[:-1], (self.owners[-1][0], max(self.until_at, self.ended_at or 0))]:
                while from_at < until_at:
                    window = Window.at(kind, from_at)
                    end_at = min(until_at, window.until_at)
                    yield kind, window.from_at, account, usd * self.steps(from_at, end_at)
                    from_at = end_at


def real_costs(lives: list[Life]) -> dict[tuple[str, str, str, float], Fraction]:
    """What each window of each scope and name costs, by window's kind and beginning."""
    costs: dict[tuple[str, str, str, float], Fraction] = defaultdict(Fraction)
    for life in lives:
        provider = CONFIG.pool[life.pool].provider
        for kind, from_at, account, usd in life.costs():
            for scope, name in (
                ("all", ""), ("user", account.user), ("bank", account.bank), ("pool", life.pool), ("provider", provider)
            ):  # fmt: skip
                if kind in CAPS.get((scope, name), ()):
                    costs[scope, name, kind, from_at] += usd
    return costs


def probes(draft: Draft) -> list[object]:
    """What a draft answers to many questions."""
    return [
        draft.allowed(Account(user, bank), pool, usd)
        for user in ("", "alice", "bob")
        for bank in ("", "physics")
        for pool in CONFIG.pool
        for usd in (None, 0.0, 0.25, 3.0)
    ]


class Spending(RuleBasedStateMachine):
    """Nodes are bought, extended and given back within their reservations, as far as the drafts allow."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ledger: Ledger
        self.stored: dict[tuple[str, str, float], Segment] = {}
        self.lives: dict[Host, Life] = {}
        self.past: list[Life] = []
        self.count = 0

    @initialize(start=STARTS)
    def begin(self, start: datetime) -> None:
        self.now = start.timestamp()
        self.ledger = Ledger(CONFIG, (), self.now)

    def store(self, *segments: Segment) -> None:
        for segment in segments:
            self.stored[segment.request_id, segment.host, segment.from_at] = segment

    def draft(self) -> Draft:
        live: dict[str, int] = defaultdict(int)
        for life in self.lives.values():
            live[life.pool] += 1
        return self.ledger.draft(self.now, live)

    def settle(self, host: Host, ended_at: float) -> None:
        self.store(*self.ledger.settle(self.now, host, ended_at))
        life = self.lives.pop(host)
        life.ended_at = ended_at
        self.past.append(life)

    @rule(account=ACCOUNTS, pool=POOLS, price=PRICES, length_s=LENGTHS, wanted=st.integers(1, 9))
    def buy(self, account: Account, pool: str, price: float, length_s: float, wanted: int) -> None:
        until_at = self.now + length_s
        usd = self.ledger.cost_usd(pool, price, self.now, until_at)
        draft = self.draft()
        nodes = min(wanted, draft.allowed(account, pool, usd)[0])
        draft.take(account, pool, nodes, usd)
        for _ in range(nodes):
            self.count += 1
            host = Host(f"n-{self.count}")
            request = RequestId(f"b-{self.count}")
            self.store(self.ledger.reserve(self.now, request, host, pool, account, price, until_at))
            self.lives[host] = Life(pool, self.now, price, [(account, until_at)])

    @precondition(lambda self: self.lives)
    @rule(account=ACCOUNTS, length_s=LENGTHS, data=st.data())
    def extend(self, account: Account, length_s: float, data: st.DataObject) -> None:
        host = data.draw(st.sampled_from(sorted(self.lives)))
        life = self.lives[host]
        until_at = life.until_at + length_s
        usd = self.ledger.cost_usd(life.pool, life.usd_per_hour, life.until_at, until_at)
        if self.draft().extend(account, life.pool, usd) is None:
            self.store(*self.ledger.extend(self.now, host, account, until_at))
            life.owners.append((account, until_at))
        assert self.ledger.paid_until(host) == life.until_at

    @precondition(lambda self: self.lives)
    @rule(account=ACCOUNTS, share=st.floats(0, 1), data=st.data())
    def fit_inside(self, account: Account, share: float, data: st.DataObject) -> None:
        host = data.draw(st.sampled_from(sorted(self.lives)))
        inside = self.now + share * (self.lives[host].until_at - self.now)
        assert self.ledger.extend(self.now, host, account, inside) == ()

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.settle(data.draw(st.sampled_from(sorted(self.lives))), self.now)

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def never_there(self, data: st.DataObject) -> None:
        host = data.draw(st.sampled_from(sorted(self.lives)))
        self.settle(host, self.lives[host].launched_at)

    @rule(length_s=LENGTHS)
    def wait(self, length_s: float) -> None:
        until = self.now + length_s
        for host, life in sorted(self.lives.items(), key=lambda item: item[1].until_at):
            if life.until_at <= until:
                self.now = max(self.now, life.until_at)
                self.settle(host, self.now)
        self.now = until

    @rule()
    def restart(self) -> None:
        since = Window.at("month", self.now).from_at
        loaded = [one for one in self.stored.values() if one.ended_at is None or one.ended_at > since]
        again = Ledger(CONFIG, loaded, self.now)
        assert again.report(self.now) == self.ledger.report(self.now)
        assert {host: again.paid_until(host) for host in self.lives} == {
            host: self.ledger.paid_until(host) for host in self.lives
        }
        before = probes(self.draft())
        self.ledger = again
        assert probes(self.draft()) == before

    @rule(
        takes=st.lists(st.tuples(ACCOUNTS, POOLS, st.integers(0, 5), st.floats(0, 9)), max_size=4),
        extra=st.tuples(ACCOUNTS, POOLS, st.floats(0, 9)),
    )
    def think_again(self, takes: list[tuple[Account, str, int, float]], extra: tuple[Account, str, float]) -> None:
        draft = self.draft()
        before, mark = probes(draft), draft.mark()
        for account, pool, nodes, usd in takes:
            draft.take(account, pool, min(nodes, draft.allowed(account, pool, usd)[0]), usd)
        draft.extend(*extra)
        draft.rollback(mark)
        assert probes(draft) == before

    @invariant()
    def nodes_stay_within_their_caps(self) -> None:
        pools = [life.pool for life in self.lives.values()]
        assert len(pools) <= 12
        assert pools.count("hourly") <= 7
        assert len(pools) - pools.count("shifts") <= 9

    @invariant()
    def what_is_reported_is_within_the_caps_and_no_less_than_what_is_real(self) -> None:
        if not self.now:
            return
        real = real_costs([*self.past, *self.lives.values()])
        for line in self.ledger.report(self.now):
            committed = line.spent_usd + line.reserved_usd
            assert line.limit_usd is None or committed <= line.limit_usd + 1e-9
            assert committed >= real[line.scope, line.name, line.window.kind, line.window.from_at] - 1e-9

    def teardown(self) -> None:
        for (scope, name, kind, from_at), usd in real_costs([*self.past, *self.lives.values()]).items():
            assert usd <= CAPS[scope, name][kind], (scope, name, kind, datetime.fromtimestamp(from_at, UTC))


Spending.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None, phases=[Phase.generate])
test_no_window_ever_costs_more_than_its_cap = Spending.TestCase


class Overrunning(RuleBasedStateMachine):
    """Nodes outlive their reservations, and drafts are asked or not: the ledger is the same as one made anew."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2027, 1, 30, 12, tzinfo=UTC).timestamp()
        self.ledger = Ledger(CONFIG, (), self.now)
        self.stored: dict[tuple[str, str, float], Segment] = {}
        self.live: list[Host] = []

    def store(self, *segments: Segment) -> None:
        for segment in segments:
            self.stored[segment.request_id, segment.host, segment.from_at] = segment

    @rule(account=ACCOUNTS, pool=POOLS, price=st.one_of(st.none(), PRICES), length_s=st.floats(0, DAY))
    def buy(self, account: Account, pool: str, price: float | None, length_s: float) -> None:
        host = Host(f"n-{len(self.stored)}")
        self.store(
            self.ledger.reserve(self.now, RequestId(f"b-{host}"), host, pool, account, price, self.now + length_s)
        )
        self.live.append(host)

    @precondition(lambda self: self.live)
    @rule(account=ACCOUNTS, length_s=st.floats(0, DAY), data=st.data())
    def extend(self, account: Account, length_s: float, data: st.DataObject) -> None:
        host = data.draw(st.sampled_from(self.live))
        self.store(*self.ledger.extend(self.now, host, account, self.now + length_s))
        assert self.ledger.paid_until(host) >= self.now + length_s

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        host = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        settled = self.ledger.settle(self.now, host, self.now)
        self.store(*settled)
        lived = [(one.from_at, one.ended_at) for one in settled if one.ended_at != one.from_at]
        ends = [settled[0].launched_at, *(end_at for _, end_at in lived)]
        assert [from_at for from_at, _ in lived] == ends[:-1], "without a gap"
        assert ends[-1] == self.now

    @rule(length_s=LENGTHS)
    def wait(self, length_s: float) -> None:
        self.now += length_s

    @rule()
    def plan(self) -> None:
        self.ledger.draft(self.now, {})

    @invariant()
    def a_ledger_made_anew_is_the_same(self) -> None:
        since = Window.at("month", self.now).from_at
        again = Ledger(
            CONFIG, [one for one in self.stored.values() if one.ended_at is None or one.ended_at > since], self.now
        )
        ours, new = self.ledger.report(self.now), again.report(self.now)
        assert {line for line in new if line.cap or line.scope == "all"} == {
            line for line in ours if line.cap or line.scope == "all"
        }
        assert again.levels() == self.ledger.levels()
        assert probes(again.draft(self.now, {})) == probes(self.ledger.draft(self.now, {}))


Overrunning.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, phases=[Phase.generate]
)
test_a_node_that_overruns_is_the_same_after_a_restart = Overrunning.TestCase


def segments(config: BurstConfig = CONFIG) -> st.SearchStrategy[Segment]:
    start = datetime(2027, 1, 30, 22, tzinfo=UTC).timestamp()

    def build(launch: float, ahead_s: float, gap_s: float, length_s: float, price: float, pool: str) -> Segment:
        table = config.pool[pool]
        from_at = start + launch + gap_s
        return Segment(
            RequestId("b-1"), Host("n-1"), pool, table.provider, Account(), price, start + launch,
            max(start + launch, from_at - ahead_s), from_at, from_at + length_s,
            table.billing_increment, table.billing_minimum,
        )  # fmt: skip

    gaps = st.one_of(st.just(0.0), LENGTHS)
    return st.builds(build, st.floats(0, 3 * DAY), gaps, gaps, LENGTHS, PRICES, POOLS)


@given(segment=segments(), cuts=st.lists(st.floats(0, 1), max_size=4))
def test_parts_of_a_segment_add_up_to_the_whole(segment: Segment, cuts: list[float]) -> None:
    length_s = segment.until_at - segment.from_at
    at = [segment.from_at, *sorted(segment.from_at + cut * length_s for cut in cuts), segment.until_at]
    assert sum(segment.cost(*part) for part in pairwise(at)) == segment.cost()


@given(segment=segments(), kind=st.sampled_from(["day", "month"]), end=st.floats(0, 1))
def test_no_window_begins_with_more_than_the_one_before_it_had(segment: Segment, kind: str, end: float) -> None:
    window = Window.at(kind, segment.reserved_at)
    counted = [segment.counted(window)]
    for _ in range(5):
        window = window.next()
        counted.append(segment.counted(window))
        assert counted[-1] >= segment.cost(window.from_at, window.until_at)
    assert counted == sorted(counted, reverse=True)
    ended = dataclasses.replace(segment, ended_at=segment.from_at + end * (segment.until_at - segment.from_at))
    assert ended.counted(window) <= segment.counted(window), "an earlier end never counts more"
