"""What holds for every plan. The nodes are booked a second time here, by other means, from the verdicts alone."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

from hypothesis import assume, given
from hypothesis import strategies as st

from fluxburst.model import Demand, Host, JobId, Offer, Refusal, VerdictKind
from fluxburst.plan import FleetNode, Plan, PoolState, Request, make_plan

T = TypeVar("T")
NOW = 1000.0
PROVIDERS = {"a": "p", "b": "p", "c": "q"}
Answers = dict[tuple[str, Demand], list[Offer | Refusal]]


@dataclass(frozen=True)
class Case:
    pools: Mapping[str, PoolState]
    requests: tuple[Request, ...]
    answers: Answers
    nodes_left: int | None

    def plan(self) -> Plan:
        return make_plan(self.requests, self.pools, self.answers, now=NOW, nodes_left=self.nodes_left)


def seldom(*values: T, usual: T) -> st.SearchStrategy[T]:
    """The usual value six times out of seven: a case where everything is in the way buys nothing and tests nothing."""
    return st.sampled_from([usual] * 6 * len(values) + list(values))


# made once: to make strategies while drawing takes longer than to draw
FLAG = st.booleans()
NODES, SLOTS, FEW = st.integers(0, 3), st.integers(1, 9), st.integers(1, 2)
SIZE, GPUS, LENGTH = st.integers(2, 5), st.integers(0, 2), st.integers(1, 6)
ONE_GPU = seldom(1, usual=0)
DURATION = st.sampled_from([3840.0, 1920.0, 0.0])  # as providers are asked: powers of two minutes
CONSTRAINT = seldom('{"hostlist":["a0,a2,b1"]}', '{"properties":["big"]}', '{"ranks":["1-2"]}', usual="")
SPOT = seldom(True, False, usual=None)
HOST = st.sampled_from(["free"] * 4 + ["whole", "part", "reserved"])
CLOSED = seldom("cools down", "paused", usual="")
LIMIT = st.sampled_from([None, None, None, 1, 2, 3, 0])
PRICE = st.sampled_from([0.5, 1.0, 0.0, None])
TYPE = st.sampled_from(["large", "huge"])
JOIN = st.sampled_from([None, 30.0])
ANSWERS = st.sampled_from([["offer"], ["offer"], ["offer", "offer"], ["offer", "refusal"], ["refusal"], []])
RETRY = st.sampled_from([None, NOW + 60])
MAX_USD = seldom(0.0, 0.5, 2.0, usual=None)
NOT_BEFORE = seldom(NOW + 10, usual=0.0)
NAMES = st.sampled_from(["a", "ab", "abc", "ac"])
ANSWERED = seldom(False, usual=True)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    nodes = draw(NODES)
    return Demand(
        nodes,
        slots=nodes * draw(FEW) if nodes else draw(SLOTS),
        cores_per_slot=draw(FEW),
        gpus_per_slot=draw(ONE_GPU),
        exclusive=draw(FLAG),
        duration_s=draw(DURATION),
        constraint=draw(CONSTRAINT),
        spot=draw(SPOT),
    )


def pool_state(draw: st.DrawFn, name: str) -> PoolState:
    cores, gpus = draw(SIZE), draw(GPUS)
    fleet, free = [], []
    hosts = [Host(f"{name}{index}") for index in range(draw(SIZE))]
    for host in hosts:
        match draw(HOST):
            case "free":
                free.append(host)
            case "whole":
                fleet.append(FleetNode(host, cores, gpus, whole=True, up=draw(FLAG)))
            case "part":
                fleet.append(FleetNode(host, cores - draw(FEW), min(gpus, draw(GPUS)), whole=False, up=True))
    closed = draw(CLOSED)
    return PoolState(
        name,
        PROVIDERS[name],
        cores,
        gpus,
        frozenset({name, "big"} if draw(FLAG) else {name}),
        {host: rank for rank, host in enumerate(hosts)},
        tuple(fleet),
        tuple(free),
        max_nodes=draw(LIMIT),
        closed=closed,
        closed_until_at=NOW + 30 if closed == "cools down" else None,
    )


def answer(draw: st.DrawFn, pool: PoolState, kind: str) -> Offer | Refusal:
    if kind == "refusal":
        return Refusal(pool.name, pool.provider, "stockout", draw(RETRY))
    return Offer(
        pool.name,
        pool.provider,
        draw(TYPE),
        pool.cores,
        pool.gpus,
        usd_per_node_hour=draw(PRICE),
        spot=draw(FLAG),
        join_s=draw(JOIN),
        nodes_left=draw(LIMIT),
    )


SHAPES = st.lists(demands(), min_size=1, max_size=3)


@st.composite
def cases(draw: st.DrawFn, answered: bool = False) -> Case:
    names = draw(NAMES)
    admitted = [names, *(order for length in range(1, len(names) + 1) for order in permutations(names, length))]
    pools = {name: pool_state(draw, name) for name in names}
    shapes = draw(SHAPES)
    requests = tuple(
        Request(
            JobId(index),
            shapes[draw(GPUS) % len(shapes)],
            tuple(admitted[draw(SLOTS) % len(admitted)]),
            max_usd=draw(MAX_USD),
            not_before_at=draw(NOT_BEFORE),
        )
        for index in range(draw(LENGTH))
    )
    answers: Answers = {}
    for provider in sorted({PROVIDERS[name] for name in names}):
        for shape in shapes:
            if answered or draw(ANSWERED):
                mine = [pool for pool in pools.values() if pool.provider == provider]
                answers[provider, shape] = [answer(draw, pool, kind) for pool in mine for kind in draw(ANSWERS)]
    return Case(pools, requests, answers, draw(LIMIT))


@dataclass
class Node:
    cores: int
    gpus: int
    whole: bool


class Ledger:
    """All nodes of a case with what is left on them; bookings and purchases are entered one by one."""

    def __init__(self, case: Case, plan: Plan) -> None:
        self.case = case
        self.nodes = {
            node.host: Node(node.cores, node.gpus, node.whole) for pool in case.pools.values() for node in pool.fleet
        }
        self.pool_of = {host: pool.name for pool in case.pools.values() for host in pool.declared}
        self.offer_of = {host: purchase.offer for purchase in plan.purchases for host in purchase.hosts}

    def fits(self, host: Host, demand: Demand) -> int:
        """Slots of the demand that this node can take."""
        node, pool = self.nodes[host], self.case.pools[self.pool_of[host]]
        if not eligible(pool, host, demand) or (demand.exclusive and not node.whole):
            return 0
        slots = node.cores // demand.cores_per_slot
        return min(slots, node.gpus // demand.gpus_per_slot) if demand.gpus_per_slot else slots

    def has_room(self, pool: str, demand: Demand) -> bool:
        """Whether the whole demand fits on this pool's nodes as they are."""
        fits = [self.fits(host, demand) for host in self.nodes if self.pool_of[host] == pool]
        if demand.nodes:
            return sum(slots >= demand.slots_per_node() for slots in fits) >= demand.nodes
        return sum(fits) >= demand.slots

    def buy(self, hosts: Sequence[Host]) -> None:
        for host in hosts:
            pool = self.case.pools[self.pool_of[host]]
            assert host in pool.free
            assert host not in self.nodes
            self.nodes[host] = Node(pool.cores, pool.gpus, whole=True)

    def book(self, hosts: Sequence[Host], demand: Demand) -> None:
        """Book the whole demand on these hosts, which all are needed for it and hold all of it."""
        assert len(set(hosts)) == len(hosts)
        if demand.nodes:
            assert len(hosts) == demand.nodes
        missing = demand.slots
        for host in hosts:
            most = demand.slots_per_node() if demand.nodes else missing
            slots = min(self.fits(host, demand), most)
            assert slots == most if demand.nodes else slots > 0
            missing -= slots
            node = self.nodes[host]
            node.whole = False
            node.cores -= node.cores if demand.exclusive else slots * demand.cores_per_slot
            node.gpus -= node.gpus if demand.exclusive else slots * demand.gpus_per_slot
        assert missing <= 0


def eligible(pool: PoolState, host: Host, demand: Demand) -> bool:
    if not demand.constraint:
        return True
    ((operator, (operand,)),) = json.loads(demand.constraint).items()
    if operator == "hostlist":
        return host in ("a0", "a2", "b1")
    return pool.declared[host] in (1, 2) if operator == "ranks" else operand in pool.properties


@given(cases())
def test_every_job_has_one_verdict_with_a_reason(case: Case) -> None:
    plan = case.plan()
    assert list(plan.verdicts) == [request.job_id for request in case.requests]
    assert all(verdict.reason for verdict in plan.verdicts.values())
    assert {verdict.kind for verdict in plan.verdicts.values()} <= set(VerdictKind) - {VerdictKind.HOME}


@given(cases())
def test_a_job_is_placed_whole_in_one_pool_that_it_admits_or_not_at_all(case: Case) -> None:
    plan = case.plan()
    ledger = Ledger(case, plan)
    for request in case.requests:
        verdict = plan.verdicts[request.job_id]
        if verdict.kind not in (VerdictKind.COMING, VerdictKind.BURST):
            assert (verdict.pool, verdict.hosts) == ("", ())
            continue
        assert verdict.pool in request.pools
        assert {ledger.pool_of[host] for host in verdict.hosts} == {verdict.pool}


@given(cases())
def test_no_node_is_booked_beyond_what_it_has_and_no_exclusive_node_is_shared(case: Case) -> None:
    plan = case.plan()
    ledger = Ledger(case, plan)
    for request in case.requests:
        verdict = plan.verdicts[request.job_id]
        if verdict.hosts:
            ledger.buy([host for host in verdict.hosts if host not in ledger.nodes])
            ledger.book(verdict.hosts, request.demand)


@given(cases())
def test_nothing_is_bought_for_a_job_that_fits_on_nodes_up_or_coming(case: Case) -> None:
    plan = case.plan()
    ledger = Ledger(case, plan)
    for request in case.requests:
        verdict = plan.verdicts[request.job_id]
        room = [pool for pool in request.pools if ledger.has_room(pool, request.demand)]
        if verdict.kind is VerdictKind.BURST:
            assert room == []
        if verdict.kind is VerdictKind.COMING:
            assert verdict.pool in room
        if verdict.hosts:
            new = [host for host in verdict.hosts if host not in ledger.nodes]
            assert bool(new) == (verdict.kind is VerdictKind.BURST)
            ledger.buy(new)
            ledger.book(verdict.hosts, request.demand)
    assert set(ledger.offer_of) <= set(ledger.nodes), "nothing is bought that no verdict counts on"


@given(cases())
def test_purchases_keep_to_every_limit(case: Case) -> None:
    plan = case.plan()
    hosts = [host for purchase in plan.purchases for host in purchase.hosts]
    assert len(set(hosts)) == len(hosts)
    if case.nodes_left is not None:
        assert len(hosts) <= case.nodes_left
    by_pool = Counter(purchase.offer.pool for purchase in plan.purchases for _ in purchase.hosts)
    for name, count in by_pool.items():
        pool = case.pools[name]
        assert not pool.closed
        assert pool.max_nodes is None or len(pool.fleet) + count <= pool.max_nodes
    by_offer = Counter(purchase.offer for purchase in plan.purchases for _ in purchase.hosts)
    assert all(offer.nodes_left is None or count <= offer.nodes_left for offer, count in by_offer.items())
    for purchase in plan.purchases:
        assert purchase.hosts
        assert set(purchase.hosts) <= set(case.pools[purchase.offer.pool].free)


@given(cases())
def test_a_gang_is_one_order_and_an_order_names_the_jobs_that_it_is_for(case: Case) -> None:
    plan = case.plan()
    ordered = {host: purchase for purchase in plan.purchases for host in purchase.hosts}
    seen: set[Host] = {node.host for pool in case.pools.values() for node in pool.fleet}
    for request in case.requests:
        verdict = plan.verdicts[request.job_id]
        new = [host for host in verdict.hosts if host not in seen]
        seen.update(new)
        orders = {id(ordered[host]): ordered[host] for host in new}
        assert len(orders) == (verdict.kind is VerdictKind.BURST)
        assert all(request.job_id in order.job_ids for order in orders.values())
        if len(new) > 1:
            assert all(order.job_ids == (request.job_id,) and set(order.hosts) == set(new) for order in orders.values())


@given(cases())
def test_what_a_job_pays_is_known_wanted_and_within_its_limit(case: Case) -> None:
    plan = case.plan()
    for request in case.requests:
        verdict = plan.verdicts[request.job_id]
        if verdict.kind is not VerdictKind.BURST:
            continue
        assert request.not_before_at <= NOW
        (offer,) = {purchase.offer for purchase in plan.purchases if request.job_id in purchase.job_ids}
        assert offer in case.answers[offer.provider, request.demand]
        assert request.demand.spot in (None, offer.spot)
        if request.max_usd is not None:
            assert request.demand.duration_s > 0
            assert offer.usd_per_node_hour is not None
            cost = offer.usd_per_node_hour * len(verdict.hosts) * request.demand.duration_s / 3600
            assert cost <= request.max_usd


@given(cases())
def test_a_job_without_a_place_has_a_reason_for_each_of_its_pools(case: Case) -> None:
    plan = case.plan()
    for request in case.requests:
        verdict = plan.verdicts[request.job_id]
        if verdict.kind is VerdictKind.REFUSED:
            assert [pool for pool, _ in verdict.pool_reasons] == list(request.pools)
            assert all(reason for _, reason in verdict.pool_reasons)
        if verdict.kind is VerdictKind.WAIT:
            assert {pool for pool, _ in verdict.pool_reasons} <= set(request.pools)
            assert verdict.until_at is None or verdict.until_at > NOW


@given(cases())
def test_providers_are_asked_only_what_is_not_answered_for_jobs_that_found_no_room(case: Case) -> None:
    plan = case.plan()
    useful = {
        (case.pools[name].provider, request.demand)
        for request in case.requests
        for name in request.pools
        if not case.pools[name].closed
        and request.not_before_at <= NOW
        and plan.verdicts[request.job_id].kind is not VerdictKind.COMING
    }
    assert plan.asks <= useful - set(case.answers)


@given(cases(answered=True))
def test_a_plan_with_all_answers_asks_nothing_and_decides(case: Case) -> None:
    plan = case.plan()
    assert plan.asks == frozenset()
    assert plan.undecided == frozenset()


@given(cases())
def test_a_job_that_is_undecided_waits_for_an_answer_of_one_of_its_pools(case: Case) -> None:
    plan = case.plan()
    for request in case.requests:
        verdict = plan.verdicts[request.job_id]
        asked = [name for name in request.pools if (case.pools[name].provider, request.demand) in plan.asks]
        if request.job_id in plan.undecided:
            assert verdict.kind is VerdictKind.WAIT
            assert asked
        elif verdict.kind is VerdictKind.REFUSED:
            closed = [name for name, reason in verdict.pool_reasons if reason == case.pools[name].closed]
            assert closed == [], "a refusal is for good"


@given(cases())
def test_the_same_input_gives_the_same_plan(case: Case) -> None:
    again = dataclasses.replace(case, answers=copied(case.answers))
    assert case.plan() == again.plan()


def copied(answers: Answers) -> Answers:
    """Equal, but other objects, and inserted the other way round."""
    return {
        (provider, dataclasses.replace(demand)): [dataclasses.replace(answer) for answer in said]
        for (provider, demand), said in reversed(answers.items())
    }


@given(cases())
def test_which_of_equal_jobs_comes_first_changes_names_alone(case: Case) -> None:
    def twins(first: int, second: int) -> tuple[Case, list[JobId]]:
        requests = tuple(
            dataclasses.replace(request, job_id=JobId(request.job_id + offset))
            for request in case.requests
            for offset in (first, second)
        )
        return dataclasses.replace(case, requests=requests), [request.job_id for request in requests]

    one, ids = twins(0, 100)
    other, swapped = twins(100, 0)
    plan, other_plan = one.plan(), other.plan()
    assert [plan.verdicts[job_id] for job_id in ids] == [other_plan.verdicts[job_id] for job_id in swapped]
    name = dict(zip(ids, swapped, strict=True))
    assert list(other_plan.purchases) == [
        dataclasses.replace(purchase, job_ids=tuple(name[job_id] for job_id in purchase.job_ids))
        for purchase in plan.purchases
    ]


@given(cases(), st.integers(1, 5))
def test_a_pool_is_held_at_its_size_within_its_limits_or_says_why_not(case: Case, wanted: int) -> None:
    name, pool = next(iter(case.pools.items()))
    missing = wanted - len(pool.fleet)
    assume(missing > 0)
    demand = Demand(missing, missing, pool.cores, pool.gpus, exclusive=True)
    offer = Offer(name, pool.provider, "large", pool.cores, pool.gpus)
    plan = make_plan(
        (), case.pools, {(pool.provider, demand): [offer]}, now=NOW, nodes_left=case.nodes_left, holds={name: wanted}
    )
    bought = [host for purchase in plan.purchases for host in purchase.hosts]
    possible = (
        not pool.closed
        and missing <= len(pool.free)
        and (pool.max_nodes is None or wanted <= pool.max_nodes)
        and (case.nodes_left is None or missing <= case.nodes_left)
    )
    assert len(bought) == (missing if possible else 0)
    assert bool(plan.holds.get(name)) != possible
    assert all(purchase.job_ids == () for purchase in plan.purchases)
