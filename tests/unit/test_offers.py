"""One list of offers: the site's prices, measured join times, and what is left alone after a failure."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fluxburst.config import Price
from fluxburst.errors import Scope
from fluxburst.model import Demand, Offer, Refusal
from fluxburst.moment import Market, Quote
from fluxburst.offers import (
    ANSWER_KEPT_S,
    ANSWER_TTL_S,
    GUESS_JOIN_S,
    Breakers,
    JoinTimes,
    MarketView,
    OfferBook,
    OrderOffers,
    Prices,
    asked_as,
    boot_key,
    describe,
    scope_key,
)

ONE = Demand(1, 1, 4, exclusive=True)
OFFER = Offer("c2", "gke", "n2", 4, usd_per_node_hour=1.0, zone="a", region="west", join_s=40.0)
COOLDOWN_S, COOLDOWN_MAX_S = 30.0, 240.0


def offer(**fields: Any) -> Offer:
    return dataclasses.replace(OFFER, **fields)


# Prices


@pytest.mark.parametrize(
    ("rules", "usd"),
    [
        ([], 1.0),
        ([{"factor": 0.7}], 0.7),
        ([{"plus_usd": 0.25}], 1.25),
        ([{"usd_per_node_hour": 3.0, "factor": 0.5, "plus_usd": 1.0}], 2.5),
        ([{"factor": 2.0}, {"plus_usd": 1.0}, {"factor": 0.5}], 1.5),
        ([{"usd_per_node_hour": 0.0}], 0.0),
        ([{"pool": "c[0-9]", "provider": "g*", "instance_type": "n?", "zone": "a", "spot": False, "factor": 0.5}], 0.5),
        ([{"pool": "C2", "factor": 0.5}], 1.0),
        ([{"provider": "eks", "factor": 0.5}], 1.0),
        ([{"instance_type": "n", "factor": 0.5}], 1.0),
        ([{"zone": "b", "factor": 0.5}], 1.0),
        ([{"spot": True, "factor": 0.5}], 1.0),
    ],
)
def test_the_rules_that_match_are_taken_in_their_order(rules: Sequence[Mapping[str, Any]], usd: float) -> None:
    prices = Prices([Price(**fields) for fields in rules])
    assert prices.apply(OFFER) == offer(usd_per_node_hour=usd)
    assert prices.apply(OFFER) == offer(usd_per_node_hour=usd), "what is remembered of an offer is the same"


def test_an_unknown_price_is_never_a_number_unless_a_rule_sets_one() -> None:
    unknown = offer(usd_per_node_hour=None)
    assert Prices([Price(factor=0.5, plus_usd=2.0)]).apply(unknown).usd_per_node_hour is None
    assert Prices([Price(plus_usd=2.0), Price(usd_per_node_hour=1.0)]).apply(unknown).usd_per_node_hour == 1.0


# Join times


def test_join_times_are_told_from_three_samples_on_and_of_the_latest_fifty() -> None:
    joins = JoinTimes()
    for sample in (30.0, 40.0):
        joins.add(OFFER, sample)
    assert joins.of(OFFER) is None
    joins.add(OFFER, 50.0)
    measured = joins.of(OFFER)
    assert measured is not None
    assert (measured.p50_s, measured.p90_s, measured.samples) == (40.0, 48.0, 3)
    for _ in range(50):
        joins.add(OFFER, 100.0)
    measured = joins.of(OFFER)
    assert measured is not None
    assert (measured.p50_s, measured.p90_s, measured.samples) == (100.0, 100.0, 50)


def test_join_times_are_of_a_pool_a_type_and_a_kind_whatever_the_zone() -> None:
    joins = JoinTimes()
    for zone in "abc":
        joins.add(offer(zone=zone), 40.0)
    assert joins.of(offer(zone="d")) == joins.of(OFFER) is not None
    assert [joins.of(other) for other in (offer(pool="d4"), offer(instance_type="n4"), offer(spot=True))] == [None] * 3


@pytest.mark.parametrize("sample", [-1.0, float("inf"), float("nan")])
def test_what_is_no_join_time_is_refused(sample: float) -> None:
    with pytest.raises(ValueError, match="no join time"):
        JoinTimes().add(OFFER, sample)


@given(st.lists(st.floats(0.0, 1e6), max_size=120))
def test_join_times_survive_a_restart_and_lie_among_the_samples(samples: list[float]) -> None:
    joins = JoinTimes()
    for sample in samples:
        joins.add(OFFER, sample)
    again = JoinTimes(json.loads(json.dumps(joins.state())))
    measured = joins.of(OFFER)
    assert again.of(OFFER) == measured
    kept = samples[-50:]
    if len(kept) < 3:
        assert measured is None
        return
    assert measured is not None
    assert measured.samples == len(kept)
    assert measured.p50_s == pytest.approx(statistics.median(kept), rel=0.05)
    assert measured.p50_s <= measured.p90_s <= max(kept) * 1.05


def test_a_sample_that_changes_nothing_measured_is_no_news() -> None:
    joins = JoinTimes()
    for _ in range(50):
        joins.add(OFFER, 40.0)
    version = joins.version
    joins.add(OFFER, 40.1)
    assert joins.version == version
    for _ in range(40):
        joins.add(OFFER, 80.0)
    assert joins.version > version


# Breakers


def breakers() -> Breakers:
    return Breakers(COOLDOWN_S, COOLDOWN_MAX_S)


OTHERS = {
    "another type": offer(instance_type="n4"),
    "spot": offer(spot=True),
    "another pool": offer(pool="d4"),
    "another zone": offer(zone="b"),
    "another region": offer(zone="x", region="east"),
    "another provider": offer(provider="eks", pool="e2"),
}


@pytest.mark.parametrize(
    ("scope", "open_still"),
    [
        (Scope.OFFER, set(OTHERS)),
        (Scope.ZONE, {"another zone", "another region", "another provider"}),
        (Scope.REGION, {"another region", "another provider"}),
        (Scope.POOL, {"another pool", "another provider"}),
        (Scope.PROVIDER, {"another provider"}),
    ],
)
def test_a_failure_closes_its_scope_and_nothing_else(scope: Scope, open_still: set[str]) -> None:
    health = breakers()
    health.fail(scope_key(OFFER, scope), "c2", "quota", 100.0)
    closed = health.closed(OFFER, 129.9)
    assert closed is not None
    assert (closed.until_at, closed.reason.endswith("left alone after a failure: quota")) == (130.0, True)
    assert {name for name, other in OTHERS.items() if health.closed(other, 129.9) is None} == open_still
    assert health.closed(OFFER, 130.0) is None


def test_a_boot_failure_is_the_pools_and_is_counted_apart_from_its_launches() -> None:
    health = breakers()
    health.fail(scope_key(OFFER, Scope.POOL), "c2", "launch", 0.0)
    assert health.fail(boot_key("c2"), "c2", "boot", 0.0).failures == 1
    assert health.closed(OTHERS["another type"], 1.0) is not None
    assert health.closed(OTHERS["another pool"], 1.0) is None
    assert health.serves("c2")
    assert health.closed(OFFER, 1.0) is None
    assert not health.serves("c2")


@pytest.mark.parametrize("scope", [Scope.ZONE, Scope.REGION])
def test_an_offer_that_names_no_place_has_its_pool_left_alone(scope: Scope) -> None:
    assert scope_key(offer(zone="", region=""), scope) == ("pool", "c2")


def test_each_failure_after_a_cooldown_doubles_the_next_up_to_the_longest() -> None:
    health, now, waits = breakers(), 0.0, []
    for _ in range(6):
        until_at = health.fail(boot_key("c2"), "c2", "x", now).until_at
        waits.append(until_at - now)
        now = until_at
    assert waits == [30.0, 60.0, 120.0, 240.0, 240.0, 240.0]


def test_what_fails_during_a_cooldown_is_the_same_failure_once_more() -> None:
    health = breakers()
    health.fail(boot_key("c2"), "c2", "x", 0.0)
    again = health.fail(boot_key("c2"), "c2", "y", 10.0)
    assert (again.failures, again.until_at, again.reason) == (1, 30.0, "y")
    assert health.fail(boot_key("c2"), "c2", "y", 10.0, wait_s=100.0).until_at == 110.0


def test_a_failure_may_ask_for_more_than_the_longest_cooldown() -> None:
    assert breakers().fail(boot_key("c2"), "c2", "x", 0.0, wait_s=1000.0).until_at == 1000.0


def test_after_the_cooldown_one_order_tries_it_out_and_the_others_wait_for_its_answer() -> None:
    health = breakers()
    health.fail(scope_key(OFFER, Scope.REGION), "c2", "quota", 0.0)
    assert not health.probe(OFFER, "b-1", 29.0)
    assert health.probe(OFFER, "b-1", 30.0)
    assert not health.probe(OTHERS["spot"], "b-2", 30.0)
    assert health.closed(OFFER, 30.0, "b-1") is None
    waits = health.closed(OTHERS["spot"], 30.0, "b-2")
    assert waits is not None
    assert (waits.until_at, waits.reason) == (None, "region west is tried with one order first after a failure: quota")
    assert health.probes() == {"b-1"}


def test_a_probe_that_is_taken_closes_the_breaker() -> None:
    health = breakers()
    health.fail(scope_key(OFFER, Scope.OFFER), "c2", "sold out", 0.0)
    health.probe(OFFER, "b-1", 30.0)
    assert health.failing("c2", 30.0)
    health.settle("b-1", taken=True)
    assert (health.closed(OFFER, 30.0), health.failing("c2", 30.0), health.state()) == (None, False, [])


def test_a_probe_that_fails_opens_it_for_twice_as_long() -> None:
    health = breakers()
    health.fail(scope_key(OFFER, Scope.OFFER), "c2", "sold out", 0.0)
    health.probe(OFFER, "b-1", 30.0)
    again = health.fail(scope_key(OFFER, Scope.OFFER), "c2", "sold out", 31.0)
    assert (again.failures, again.until_at, again.probe) == (2, 91.0, "")


def test_a_probe_that_comes_to_nothing_lets_the_next_one_try() -> None:
    health = breakers()
    health.fail(scope_key(OFFER, Scope.OFFER), "c2", "sold out", 0.0)
    health.probe(OFFER, "b-1", 30.0)
    health.settle("b-1", taken=False)
    assert health.closed(OFFER, 30.0, "b-2") is None
    assert health.probe(OFFER, "b-2", 30.0)


def test_a_pool_is_not_tried_with_one_order_but_with_orders_apart_until_a_node_serves() -> None:
    health = breakers()
    health.fail(boot_key("c2"), "c2", "boot", 0.0)
    assert not health.probe(OFFER, "b-1", 30.0)
    assert health.failing("c2", 30.0)
    assert not health.failing("d4", 30.0)
    health.serves("c2")
    assert not health.failing("c2", 30.0)


def test_a_breaker_that_nobody_tries_out_is_forgotten() -> None:
    health = breakers()
    health.fail(scope_key(OFFER, Scope.OFFER), "c2", "sold out", 0.0)
    late = 30.0 + COOLDOWN_MAX_S
    assert health.failing("c2", late - 1)
    assert not health.failing("c2", late)
    assert health.fail(scope_key(OFFER, Scope.OFFER), "c2", "sold out", late).failures == 1
    health.fail(boot_key("d4"), "d4", "x", late * 3)
    assert [entry["key"] for entry in health.state()] == [["boot", "d4"]]


def test_the_longest_closure_over_an_offer_is_the_one_that_is_told() -> None:
    health = breakers()
    health.fail(scope_key(OFFER, Scope.OFFER), "c2", "sold out", 0.0)
    health.fail(scope_key(OFFER, Scope.PROVIDER), "c2", "down", 0.0, wait_s=100.0)
    closed = health.closed(OFFER, 1.0)
    assert closed is not None
    assert (closed.reason, closed.until_at) == ("provider gke is left alone after a failure: down", 100.0)
    assert health.closed_pool("d4", "gke", 1.0) == closed
    assert health.closed_pool("c2", "eks", 1.0) is None
    assert (health.next_at(1.0), health.next_at(30.0), health.next_at(100.0)) == (30.0, 100.0, None)


OFFERS = [OFFER, *OTHERS.values()]


class AnyFailures(RuleBasedStateMachine):
    """Failures, probes and their outcomes in any sequence, beside a restart at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.health = breakers()
        self.now = 0.0
        self.count = 0
        self.under_way: dict[str, Offer] = {}

    @rule(seconds=st.sampled_from([0.5, 29.0, 31.0, 300.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(of=st.sampled_from(OFFERS), scope=st.sampled_from([*Scope, None]))
    def fails(self, of: Offer, scope: Scope | None) -> None:
        key = boot_key(of.pool) if scope is None else scope_key(of, scope)
        before = self.health.closed(of, self.now)
        self.health.fail(key, of.pool, "x", self.now)
        after = self.health.closed(of, self.now)
        assert after is not None
        assert after.until_at is not None
        assert self.now < after.until_at
        assert before is None or before.until_at is None or before.until_at <= after.until_at
        assert self.health.failing(of.pool, self.now)

    @rule(of=st.sampled_from(OFFERS))
    def orders(self, of: Offer) -> None:
        self.count += 1
        name = f"b-{self.count}"
        if self.health.closed(of, self.now, name) is None and self.health.probe(of, name, self.now):
            self.under_way[name] = of
            others = [other for other in self.under_way if other != name]
            assert all(self.health.closed(of, self.now, other) is not None for other in others)

    @precondition(lambda self: self.under_way)
    @rule(taken=st.booleans())
    def is_answered(self, taken: bool) -> None:
        name = next(iter(self.under_way))
        del self.under_way[name]
        self.health.settle(name, taken=taken)
        assert name not in self.health.probes()

    @rule(pool=st.sampled_from(["c2", "d4", "e2"]))
    def a_node_serves(self, pool: str) -> None:
        self.health.serves(pool)

    @rule()
    def restarts(self) -> None:
        again = Breakers(COOLDOWN_S, COOLDOWN_MAX_S, json.loads(json.dumps(self.health.state())))
        assert [again.closed(of, self.now) for of in OFFERS] == [self.health.closed(of, self.now) for of in OFFERS]
        assert again.probes() == self.health.probes()
        self.health = again

    @invariant()
    def nothing_is_closed_longer_than_the_longest_cooldown(self) -> None:
        for of in OFFERS:
            closed = self.health.closed(of, self.now)
            if closed is not None and closed.until_at is not None:
                assert closed.until_at <= self.now + COOLDOWN_MAX_S

    @invariant()
    def only_probes_that_are_under_way_are_waited_for(self) -> None:
        assert self.health.probes() <= self.under_way.keys()


TestAnyFailures = AnyFailures.TestCase
TestAnyFailures.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# The book


def leave(demand: Demand, offers: Sequence[Offer]) -> None:
    """The hook of a site without plugins."""


class Book:
    """An offer book with one provider, and what it is made of."""

    def __init__(self, rules: Sequence[Price] = (), order_offers: OrderOffers = leave) -> None:
        self.joins, self.breakers = JoinTimes(), breakers()
        pools = {"c2": (4, 0), "d4": (4, 1)}
        self.book = OfferBook(pools, Prices(rules), self.joins, self.breakers, order_offers)

    def answered(self, *answers: Offer | Refusal, demand: Demand = ONE, at: float = 0.0) -> Book:
        self.book.put("gke", demand, at, answers)
        return self

    def quotes(self, now: float = 1.0, demand: Demand = ONE) -> list[Quote | Refusal]:
        market: Market = self.book.at(now)
        found = market.quotes("gke", demand)
        assert found is not None
        return list(found)

    def offers(self, now: float = 1.0) -> list[Offer]:
        return [quote.offer for quote in self.quotes(now) if isinstance(quote, Quote)]


def test_what_was_not_asked_has_to_be_asked() -> None:
    view = Book().book.at(0.0)
    assert isinstance(view, MarketView)
    assert view.quotes("gke", ONE) is None


def test_known_prices_come_first_then_the_lowest_then_the_soonest_then_as_given() -> None:
    unknown, dear, cheap = offer(usd_per_node_hour=None), offer(usd_per_node_hour=2.0), offer(usd_per_node_hour=0.5)
    late, soon, soon_too = offer(join_s=90.0), offer(join_s=30.0), offer(join_s=30.0, zone="z")
    book = Book().answered(unknown, dear, late, soon, soon_too, cheap)
    assert book.offers() == [cheap, soon, soon_too, late, dear, unknown]


def test_free_of_charge_is_cheaper_than_anything_and_unknown_is_dearer() -> None:
    free, unknown = offer(usd_per_node_hour=0.0), offer(usd_per_node_hour=None, join_s=0.1)
    assert Book().answered(unknown, OFFER, free).offers() == [free, OFFER, unknown]


def test_the_sites_prices_decide_the_order_and_are_what_is_quoted() -> None:
    mine = offer(instance_type="mine", usd_per_node_hour=None)
    book = Book([Price(instance_type="mine", usd_per_node_hour=0.1)]).answered(OFFER, mine)
    assert book.offers() == [dataclasses.replace(mine, usd_per_node_hour=0.1), OFFER]


def test_the_join_time_is_the_providers_guess_or_ours_until_it_is_measured() -> None:
    book = Book().answered(OFFER, offer(instance_type="n4", join_s=None))
    guessed = [(quote.join_s, quote.join_p90_s, quote.samples) for quote in book.quotes() if isinstance(quote, Quote)]
    assert guessed == [(40.0, 40.0, 0), (GUESS_JOIN_S, GUESS_JOIN_S, 0)]
    for sample in (100.0, 110.0, 120.0):
        book.joins.add(OFFER, sample)
    (_, quote) = book.quotes()
    assert isinstance(quote, Quote)
    assert (quote.offer, quote.join_s, quote.join_p90_s, quote.samples) == (OFFER, 110.0, 120.0, 3)


def test_what_is_left_alone_keeps_its_place_with_its_reason() -> None:
    dear = offer(zone="b", usd_per_node_hour=2.0)
    book = Book().answered(dear, OFFER)
    book.breakers.fail(scope_key(OFFER, Scope.OFFER), "c2", "sold out", 1.0)
    first, second = book.quotes()
    assert isinstance(first, Quote)
    assert isinstance(second, Quote)
    assert (first.offer, first.closed, first.closed_until_at) == (OFFER, "left alone after a failure: sold out", 31.0)
    assert (second.offer, second.closed, second.closed_until_at) == (dear, "", None)


def test_a_quote_opens_when_the_cooldown_ends_without_any_news() -> None:
    book = Book().answered(OFFER)
    book.breakers.fail(scope_key(OFFER, Scope.OFFER), "c2", "sold out", 1.0)
    closed = [quote.closed != "" for now in (1.0, 29.9) for quote in book.quotes(now) if isinstance(quote, Quote)]
    book.answered(OFFER, at=30.0)
    closed += [quote.closed != "" for now in (30.0, 31.0) for quote in book.quotes(now) if isinstance(quote, Quote)]
    assert closed == [True, True, True, False]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (
            offer(cores=2),
            "n2 in a has 2 cores, [pool.c2] cores = 4; lower that, or let the provider offer a larger type",
        ),
        (offer(pool="d4", spot=True), "spot n2 in a has 0 gpus, [pool.d4] gpus = 1; lower that, or let the provider"),
        (offer(pool="x"), "offers n2 in a for a pool that is not its own"),
        (offer(provider="eks"), "offers n2 in a for a pool that is not its own"),
    ],
)
def test_an_offer_of_less_than_its_pool_declares_is_refused_with_the_reason(made: Offer, reason: str) -> None:
    quote, no = Book().answered(made, OFFER).quotes()
    assert isinstance(quote, Quote)
    assert isinstance(no, Refusal)
    assert (no.pool, no.retry_at) == (made.pool, None)
    assert reason in no.reason


def test_an_offer_of_more_than_its_pool_declares_is_welcome() -> None:
    assert Book().answered(offer(cores=8, gpus=1)).offers() == [offer(cores=8, gpus=1)]


REFUSED = Refusal("c2", "gke", "no such thing")


@pytest.mark.parametrize(
    ("answers", "fresh_until_s"),
    [
        ((OFFER,), ANSWER_TTL_S),
        ((OFFER, REFUSED), ANSWER_TTL_S),
        ((REFUSED,), ANSWER_KEPT_S),
        ((), ANSWER_KEPT_S),
        ((dataclasses.replace(REFUSED, retry_at=5.0),), 5.0),
        ((dataclasses.replace(REFUSED, retry_at=500.0),), ANSWER_TTL_S),
        ((dataclasses.replace(REFUSED, retry_at=9.0), OFFER, REFUSED, dataclasses.replace(REFUSED, retry_at=7.0)), 7.0),
        ((dataclasses.replace(REFUSED, retry_at=-7.0),), 1.0),
    ],
)
def test_an_answer_is_used_until_it_is_stale(answers: tuple[Offer | Refusal, ...], fresh_until_s: float) -> None:
    book = Book().answered(*answers).book
    assert book.at(fresh_until_s - 0.01).quotes("gke", ONE) is not None
    assert book.at(fresh_until_s).quotes("gke", ONE) is None


def test_a_new_answer_to_the_same_question_is_fresh_again_even_if_it_is_the_same() -> None:
    book = Book().answered(OFFER)
    book.answered(OFFER, at=29.0)
    assert book.offers(now=58.0) == [OFFER]
    book.answered(offer(usd_per_node_hour=9.0), at=58.0)
    assert book.offers(now=58.0) == [offer(usd_per_node_hour=9.0)]


def test_a_stale_answer_is_shown_for_a_while_and_then_forgotten() -> None:
    book = Book().answered(OFFER).book
    book.at(ANSWER_KEPT_S - 1)
    assert [quote.offer for _, quote in book.latest(ANSWER_KEPT_S - 1)] == [OFFER]
    assert (book.has("gke", ONE), book.oldest_at()) == (True, 0.0)
    book.at(ANSWER_KEPT_S)
    assert (book.latest(ANSWER_KEPT_S), book.has("gke", ONE), book.oldest_at()) == ([], False, None)


def test_a_provider_whose_answers_are_not_true_any_more_is_asked_anew() -> None:
    book = Book().answered(OFFER).book
    book.put("eks", ONE, 0.0, (REFUSED,))
    book.forget("gke")
    assert (book.at(1.0).quotes("gke", ONE), book.at(1.0).quotes("eks", ONE)) == (None, (REFUSED,))


def test_demands_with_equal_answers_share_one_list_and_it_stays_the_same_object() -> None:
    demands = [dataclasses.replace(ONE, slots=slots) for slots in range(1, 20)]
    book = Book()
    for demand in demands:
        book.answered(*[dataclasses.replace(OFFER), REFUSED], demand=demand)
    lists = {id(book.book.at(now).quotes("gke", demand)) for now in (1.0, 2.0, 29.0) for demand in demands}
    assert len(lists) == 1


def news(book: Book) -> dict[str, Callable[[], object]]:
    elsewhere, here = offer(pool="d4", gpus=1), OFFER
    return {
        "a failure elsewhere": lambda: book.breakers.fail(boot_key("x"), "x", "boot", 1.0),
        "join times elsewhere": lambda: [book.joins.add(elsewhere, 9.0) for _ in range(3)],
        "the same answer": lambda: book.answered(OFFER, at=1.0),
        "a failure here": lambda: book.breakers.fail(scope_key(here, Scope.OFFER), "c2", "sold out", 1.0),
        "join times here": lambda: [book.joins.add(here, 9.0) for _ in range(3)],
        "another answer": lambda: book.answered(OFFER, REFUSED, at=1.0),
    }


@pytest.mark.parametrize("plugin", [leave, lambda demand, offers: list(offers)])
@pytest.mark.parametrize("what", news(Book()))
def test_a_list_is_another_object_only_when_something_in_it_changed(what: str, plugin: OrderOffers) -> None:
    book = Book(order_offers=plugin).answered(OFFER)
    before = book.book.at(1.0).quotes("gke", ONE)
    news(book)[what]()
    after = book.book.at(1.0).quotes("gke", ONE)
    assert (after is before) == (what in ("a failure elsewhere", "join times elsewhere", "the same answer"))
    assert (after == before) == (after is before)


def test_plugins_order_offers_and_leave_some_out() -> None:
    cheap, dear, left_out = offer(usd_per_node_hour=0.5), offer(usd_per_node_hour=2.0), offer(zone="b")
    seen: list[tuple[Demand, tuple[Offer, ...]]] = []

    def choose(demand: Demand, offers: Sequence[Offer]) -> list[Offer]:
        seen.append((demand, tuple(offers)))
        return [made for made in reversed(offers) if made.zone == "a"]

    first, second, third, fourth = Book(order_offers=choose).answered(cheap, REFUSED, left_out, dear).quotes()
    assert seen == [(ONE, (cheap, left_out, dear))]
    assert isinstance(first, Quote)
    assert isinstance(second, Quote)
    assert [(first.offer, first.rank), (second.offer, second.rank)] == [(dear, 0), (cheap, 1)]
    assert third == Refusal("c2", "gke", "a plugin of this site left its offer out: n2 in b")
    assert fourth == REFUSED


def test_plugins_see_each_demand_and_are_asked_again_when_there_is_an_answer() -> None:
    seen: list[Demand] = []

    def choose(demand: Demand, offers: Sequence[Offer]) -> Sequence[Offer] | None:
        seen.append(demand)
        return None if demand.exclusive else []

    book, shared = Book(order_offers=choose), dataclasses.replace(ONE, exclusive=False)
    for _ in range(3):
        book.answered(OFFER).answered(OFFER, demand=shared)
        for _ in range(3):
            assert (len(book.quotes()), [type(no) for no in book.quotes(demand=shared)]) == (1, [Refusal])
    assert seen == [ONE, shared] * 3


def test_what_a_plugin_makes_up_is_not_bought() -> None:
    book = Book(order_offers=lambda demand, offers: [offer(usd_per_node_hour=0.0), *offers, *offers])
    assert book.answered(OFFER).offers() == [OFFER]


@given(st.floats(0.1, 1e7))
def test_a_question_covers_the_demand_and_is_its_own_question(duration_s: float) -> None:
    asked = asked_as(dataclasses.replace(ONE, duration_s=duration_s))
    assert duration_s <= asked.duration_s
    assert asked.duration_s == 60.0 or asked.duration_s < 2 * duration_s
    assert asked_as(asked) == asked
    assert Book().answered(OFFER, demand=asked).quotes(demand=dataclasses.replace(ONE, duration_s=duration_s))


SOME = st.builds(
    offer,
    zone=st.sampled_from("ab"),
    spot=st.booleans(),
    usd_per_node_hour=st.sampled_from([None, 0.0, 0.5, 1.0, 2.0]),
    join_s=st.sampled_from([None, 10.0, 90.0]),
    cores=st.sampled_from([2, 4, 8]),
    instance_type=st.sampled_from(["n2", "n4"]),
)


@given(st.lists(SOME, max_size=12), st.sampled_from(["none", "price", "leave"]), st.lists(SOME, max_size=3))
def test_every_answer_is_quoted_or_refused_with_a_reason(made: list[Offer], plugin: str, failed: list[Offer]) -> None:
    hooks: dict[str, OrderOffers] = {
        "none": leave,
        "price": lambda demand, offers: list(reversed(offers)),
        "leave": lambda demand, offers: [one for one in offers if one.spot],
    }
    rules = [Price(zone="b", factor=0.5, plus_usd=0.1)]
    book = Book(rules, hooks[plugin]).answered(*made)
    for one in failed:
        book.breakers.fail(scope_key(one, Scope.OFFER), "c2", "sold out", 0.0)
    quotes = [item for item in book.quotes() if isinstance(item, Quote)]
    refusals = [item for item in book.quotes() if isinstance(item, Refusal)]
    assert all(no.reason for no in refusals)
    fit = {Prices(rules).apply(one) for one in made if one.cores >= 4}
    left_out = {one for one in fit if plugin == "leave" and not one.spot}
    assert {quote.offer for quote in quotes} == fit - left_out
    assert len(refusals) == sum(one.cores < 4 for one in made) + len(left_out)
    closed = {scope_key(one, Scope.OFFER) for one in failed}
    assert all((quote.closed != "") == (scope_key(quote.offer, Scope.OFFER) in closed) for quote in quotes)
    unknown = [quote.offer.usd_per_node_hour is None for quote in quotes]
    known = [quote.offer.usd_per_node_hour or 0.0 for quote in quotes if quote.offer.usd_per_node_hour is not None]
    if plugin == "none":
        assert unknown == sorted(unknown)
        assert known == sorted(known)
        assert {quote.rank for quote in quotes} <= {0}
    else:
        assert [quote.rank for quote in quotes] == list(range(len(quotes)))


def test_all_offers_are_shown_once_at_their_latest_and_refusals_with_what_they_refuse() -> None:
    book = Book().answered(OFFER, REFUSED)
    book.answered(offer(nodes_left=3), offer(zone="b", usd_per_node_hour=0.5), demand=Demand(2, 2, 4), at=10.0)
    book.answered(offer(cores=1, zone="c"), demand=Demand(3, 3, 4), at=20.0)
    shown = [(at, quote.offer) for at, quote in book.book.latest(20.0)]
    assert shown == [(10.0, offer(zone="b", usd_per_node_hour=0.5)), (10.0, offer(nodes_left=3))]
    newer, older = book.book.refusals()
    assert (newer[0], newer[1], "has 1 cores" in newer[2].reason) == (20.0, Demand(3, 3, 4), True)
    assert older == (0.0, ONE, REFUSED)


def test_an_offer_is_described_in_a_few_words() -> None:
    assert describe(OFFER) == "n2 in a"
    assert describe(offer(spot=True, zone="")) == "spot n2"


def test_what_was_ordered_is_not_offered_again_before_the_provider_says_so() -> None:
    one = offer(nodes_left=3)
    book = Book().answered(one)
    for left in (1, 0):
        book.book.sell(one, 2)
        assert [found.nodes_left for found in book.offers()] == [left]
    assert [found.nodes_left for found in book.answered(one).offers()] == [3]
