"""What holds for every plan, of a planner made anew and of one that follows what changes.

The nodes are booked and the dollars counted a second time here, by other means, from the verdicts and purchases alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fluxburst.model import Account, Demand, Host, JobId, Offer, Refusal, RequestId, Shrink, Verdict, VerdictKind
from fluxburst.moment import (
    NOBODY,
    Cap,
    FleetNode,
    Moment,
    Plan,
    PoolState,
    Quote,
    Request,
    Resident,
    Rules,
    Shape,
)
from fluxburst.plan import Packer

T = TypeVar("T")
PLAIN = Rules()
NOW = 1_800_000_000.0
PROVIDERS = {"a": "p", "b": "p", "c": "q"}
PLACED = (VerdictKind.COMING, VerdictKind.BURST)
JOIN_S = 120.0
Answers = Mapping[tuple[str, Demand], Sequence[Quote | Refusal]]


class Listed:
    """A market with these answers; what it lacks has to be asked."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def quotes(self, provider: str, demand: Demand, *, old: bool = False) -> Sequence[Quote | Refusal] | None:
        return self._answers.get((provider, demand))


@dataclass(frozen=True)
class Caps:
    """Limits on what one plan may buy: nodes in all and by pool, dollars in all and by user. None is no limit."""

    nodes: int | None = None
    pool_nodes: Mapping[str, int] = field(default_factory=dict)
    usd: float | None = None
    user_usd: Mapping[str, float] = field(default_factory=dict)

    def of_nodes(self, pool: str) -> Iterator[tuple[str, int]]:
        if self.nodes is not None:
            yield "", self.nodes
        if pool in self.pool_nodes:
            yield pool, self.pool_nodes[pool]

    def of_usd(self, account: Account) -> Iterator[tuple[str, float]]:
        if self.usd is not None:
            yield "", self.usd
        if account.user in self.user_usd:
            yield account.user, self.user_usd[account.user]


class Purse:
    """A draft that keeps to some caps, and does not let itself be overdrawn."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._taken: list[tuple[Account, str, int, float]] = []

    def _nodes(self, pool: str) -> int:
        return sum(nodes for _, name, nodes, _ in self._taken if pool in ("", name))

    def _usd(self, user: str) -> float:
        return sum(usd for account, _, _, usd in self._taken if user in ("", account.user))

    def spent(self) -> float:
        return self._usd("")

    def allowed(self, account: Account, pool: str, usd_per_node: float | None) -> tuple[int, Cap | None]:
        found: tuple[int, Cap | None] = (1_000, None)
        for name, limit in self._caps.of_nodes(pool):
            used = self._nodes(name)
            found = min(found, (limit - used, Cap(f"nodes {name}", "nodes", limit, used)), key=lambda one: one[0])
        for name, usd in self._caps.of_usd(account):
            spent = self._usd(name)
            count = 0 if usd_per_node is None else self._count(usd - spent, usd_per_node)
            found = min(found, (count, Cap(f"usd {name}", "usd", usd, spent)), key=lambda one: one[0])
        return found

    @staticmethod
    def _count(usd: float, usd_per_node: float) -> int:
        return math.floor(usd / usd_per_node + 1e-9) if usd_per_node else 1_000

    def take(self, account: Account, pool: str, nodes: int, usd_per_node: float | None) -> None:
        assert 0 < nodes <= self.allowed(account, pool, usd_per_node)[0]
        self._taken.append((account, pool, nodes, nodes * (usd_per_node or 0.0)))

    def extend(self, account: Account, pool: str, usd: float | None) -> Cap | None:
        for name, limit in self._caps.of_usd(account):
            spent = self._usd(name)
            if usd is None or spent + usd > limit + 1e-9:
                return Cap(f"usd {name}", "usd", limit, spent)
        self._taken.append((account, pool, 0, usd or 0.0))
        return None

    def left_usd(self, account: Account, pool: str) -> float:
        return min((limit - self._usd(name) for name, limit in self._caps.of_usd(account)), default=float("inf"))

    def capped(self, pool: str) -> bool:
        return self._caps.usd is not None

    def keep(self, pool: str, usd: float) -> None:
        self._taken.append((NOBODY, pool, 0, usd))

    def mark(self) -> int:
        return len(self._taken)

    def rollback(self, mark: int) -> None:
        del self._taken[mark:]


class SmallHome:
    """One queue's cores, each with the time at which it is free."""

    def __init__(self, free_at: Sequence[float]) -> None:
        self._free_at = sorted(free_at)

    def start_at(self, queue: str, demand: Demand) -> float:
        cores = demand.slots * demand.cores_per_slot
        return self._free_at[cores - 1] if cores <= len(self._free_at) else math.inf

    def take(self, queue: str, demand: Demand, start_at: float) -> None:
        cores = min(demand.slots * demand.cores_per_slot, len(self._free_at))
        ends = [start_at + (demand.duration_s or 3600.0)] * cores
        self._free_at = sorted(self._free_at[cores:] + ends)


@dataclass(frozen=True)
class Case:
    """One moment, as often as it is needed: a draft and a forecast serve only once."""

    requests: tuple[Request, ...]
    pools: Mapping[str, PoolState]
    answers: Answers
    caps: Caps = Caps()
    rules: Rules = PLAIN
    home: tuple[float, ...] | None = None
    residents: tuple[Resident, ...] = ()
    holds: Mapping[str, int] = field(default_factory=dict)
    now: float = NOW

    def moment(
        self, changed_jobs: Collection[JobId] | None = None, changed_pools: Collection[str] | None = None
    ) -> Moment:
        return Moment(
            self.now,
            {request.job_id: request for request in self.requests},
            self.pools,
            Listed(self.answers),
            Purse(self.caps),
            dataclasses.replace(self.rules, capped=self.caps.usd is not None or bool(self.caps.user_usd)),
            None if self.home is None else SmallHome(self.home),
            self.residents,
            self.holds,
            changed_jobs,
            changed_pools,
        )

    def plan(self) -> Plan:
        return Packer().plan(self.moment())


# Cases. Strategies are made once: to make them while drawing takes longer than to draw.


def seldom(*values: T, usual: T) -> st.SearchStrategy[T]:
    """The usual value six times out of seven: a case where everything is in the way buys nothing and tests nothing."""
    return st.sampled_from([usual] * 6 * len(values) + list(values))


FLAG = st.booleans()
NODES, SLOTS, FEW = st.integers(0, 3), st.integers(1, 9), st.integers(1, 2)
SIZE, GPUS, LENGTH = st.integers(2, 5), st.integers(0, 2), st.integers(1, 7)
PICK = st.integers(0, 11)
ONE_GPU = seldom(1, usual=0)
DURATION = st.sampled_from([3840.0, 1920.0, 7680.0, 0.0])  # as providers are asked: powers of two minutes
CONSTRAINT = seldom('{"hostlist":["a0,a2,b1"]}', '{"properties":["big"]}', '{"ranks":["1-2"]}', usual="")
SPOT = seldom(True, False, usual=None)
SHRINK = st.sampled_from([Shrink.ANY, *Shrink])
BLOCKS: st.SearchStrategy[Callable[[Sequence[Host]], tuple[tuple[Host, ...], ...]]] = st.sampled_from(
    [
        *[lambda hosts: ()] * 3,
        lambda hosts: (tuple(hosts),),
        lambda hosts: tuple(filter(None, (tuple(hosts[:2]), tuple(hosts[2:])))),
    ]
)
"""How a pool's hosts are in blocks: mostly not at all; in one; in two."""
HOST = st.sampled_from(["free"] * 5 + ["whole", "coming", "part", "full", "reserved"])
CLOSED = seldom("cools down", usual="")
LEFT = st.sampled_from([None, None, None, 1, 2, 3])
PRICE = st.sampled_from([0.5, 1.0, 1.5, 2.0, 0.0])
ANY_PRICE = seldom(None, usual=1.0)
TYPE = st.sampled_from(["large", "huge"])
ANSWER = st.sampled_from([["offer"], ["offer", "offer"], ["offer", "offer"], ["offer", "refusal"], ["refusal"], []])
RETRY = st.sampled_from([None, NOW + 60])
MAX_USD = seldom(0.5, 2.0, 8.0, usual=None)
NOT_BEFORE = seldom(NOW + 10, usual=0.0)
NAMES = st.sampled_from(["a", "ab", "abc", "ac"])
ANSWERED = seldom(False, usual=True)
USER = st.sampled_from(["", "ann", "ben"])
NODE_CAP, USD_CAP = st.sampled_from([None, None, 1, 2, 4]), st.sampled_from([None, None, 1.0, 3.0, 10.0])
MIN_WAIT = seldom(300.0, usual=0.0)
SAVED = seldom(0.5, 5.0, usual=None)
HOME = seldom((NOW, NOW), (NOW, NOW + 900.0, NOW + 900.0, NOW + 7200.0), usual=None)
PRIORITY = st.sampled_from([16, 16, 20])
HELD = st.integers(0, 5)


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


@st.composite
def pool_states(draw: st.DrawFn, name: str) -> PoolState:
    cores, gpus = draw(SIZE), draw(GPUS)
    fleet, free = [], []
    hosts = [Host(f"{name}{index}") for index in range(draw(SIZE))]
    for host in hosts:
        price, spot, paid_until_at = draw(ANY_PRICE), draw(FLAG), NOW + 60.0 * (1 + draw(PICK))
        node = FleetNode(
            host, cores, gpus, whole=True, up=True, paid_until_at=paid_until_at, usd_per_node_hour=price, spot=spot
        )
        if draw(FLAG):
            node = dataclasses.replace(node, request_id=RequestId(f"{name}-{len(fleet) // 3}"))
        match draw(HOST):
            case "free":
                free.append(host)
            case "whole":
                fleet.append(node)
            case "coming":
                fleet.append(dataclasses.replace(node, up=False, at=NOW + 60, latest_at=NOW + 600))
            case "part":
                fleet.append(busy(node, cores - draw(FEW), min(gpus, draw(GPUS))))
            case "full":
                fleet.append(busy(node, 0, 0))
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
        closed=closed,
        closed_until_at=NOW + 30 if closed else None,
        failing=draw(PICK) == 11,
        boot_s=600.0,
        tail_s=300.0,
        idle_s=120.0,
        shrink=draw(SHRINK),
        blocks=draw(BLOCKS)(hosts),
    )


def busy(node: FleetNode, cores: int, gpus: int) -> FleetNode:
    end_at = NOW + 900.0
    return dataclasses.replace(node, cores=cores, gpus=gpus, whole=False, end_at=end_at, paid_until_at=end_at + 300.0)


def draw_answers(draw: st.DrawFn, pools: Collection[PoolState]) -> list[Quote | Refusal]:
    """Each pool's offers and refusals in the market's order."""
    found: list[Quote | Refusal] = []
    for pool in pools:
        for number, kind in enumerate(draw(ANSWER)):
            if kind == "refusal":
                found.append(Refusal(pool.name, pool.provider, "stockout", draw(RETRY)))
                continue
            offer = Offer(
                pool.name,
                pool.provider,
                draw(TYPE),
                pool.cores,
                pool.gpus,
                usd_per_node_hour=draw(PRICE) if draw(ANY_PRICE) else None,
                spot=draw(FLAG),
                zone=str(number),
                nodes_left=draw(LEFT),
            )
            closed = draw(CLOSED)
            found.append(Quote(offer, JOIN_S, 2 * JOIN_S, closed=closed, closed_until_at=NOW + 30 if closed else None))
    return ordered(found)


def ordered(answers: Sequence[Quote | Refusal]) -> list[Quote | Refusal]:
    def preference(answer: Quote | Refusal) -> tuple[bool, bool, float, float]:
        if isinstance(answer, Refusal):
            return True, True, 0.0, 0.0
        price = answer.offer.usd_per_node_hour
        return False, price is None, price or 0.0, answer.join_s

    return sorted(answers, key=preference)


def draw_shapes(draw: st.DrawFn, names: str) -> list[Shape]:
    """Some shapes, one object for those that are equal."""
    admitted = [
        names,
        *(order for length in range(1, len(names) + 1) for order in itertools.permutations(names, length)),
    ]
    found: dict[Shape, Shape] = {}
    for demand in draw(DEMANDS):
        shape = Shape(demand, tuple(admitted[draw(SLOTS) % len(admitted)]), draw(MAX_USD), Account(draw(USER)))
        found.setdefault(shape, shape)
    return list(found)


DEMANDS = st.lists(demands(), min_size=1, max_size=4)
POOLS = {name: pool_states(name) for name in PROVIDERS}


def draw_caps(draw: st.DrawFn, names: str) -> Caps:
    pool_nodes = {name: cap for name in names if (cap := draw(NODE_CAP)) is not None}
    user_usd = {user: usd for user in ("ann", "ben") if (usd := draw(USD_CAP)) is not None}
    return Caps(draw(NODE_CAP), pool_nodes, draw(USD_CAP), user_usd)


@st.composite
def cases(draw: st.DrawFn, *, plain: bool = False, capped: bool = True) -> Case:
    """``plain`` leaves out home, rules and holds; without ``capped`` nothing is limited."""
    names = draw(NAMES)
    pools = {name: draw(POOLS[name]) for name in names}
    shapes = draw_shapes(draw, names)
    requests = tuple(
        Request(
            JobId(number),
            shapes[draw(PICK) % len(shapes)],
            (-draw(PRIORITY), number),
            not_before_at=draw(NOT_BEFORE),
        )
        for number in range(1, 1 + draw(LENGTH))
    )
    answers: dict[tuple[str, Demand], Sequence[Quote | Refusal]] = {}
    for provider in sorted({PROVIDERS[name] for name in names}):
        for demand in dict.fromkeys(shape.demand for shape in shapes):
            if plain or draw(ANSWERED):
                answers[provider, demand] = draw_answers(
                    draw, [pool for pool in pools.values() if pool.provider == provider]
                )
    caps = draw_caps(draw, names) if capped and draw(FLAG) else Caps()
    if plain:
        return Case(requests, pools, answers, caps)
    home = draw(HOME)
    residents = () if home is None else (Resident((-16, 0), Demand(0, 1, 1, duration_s=1800.0)),)
    holds = {} if draw(PICK) < 11 else {names[0]: draw(HELD)}
    rules = Rules(draw(MIN_WAIT), draw(SAVED), usd_per_job=draw(MAX_USD))
    return Case(requests, pools, answers, caps, rules, home, residents, holds)


# Booking by other means


@dataclass(frozen=True)
class Node:
    cores: int
    gpus: int
    whole: bool

    def slots(self, demand: Demand) -> int:
        return 0 if demand.exclusive and not self.whole else demand.slots_on(self.cores, self.gpus)

    def less(self, demand: Demand, slots: int) -> Node:
        if demand.exclusive:
            return Node(0, 0, whole=False)
        cores, gpus = self.cores - slots * demand.cores_per_slot, self.gpus - slots * demand.gpus_per_slot
        return Node(cores, gpus, whole=False)


Nodes = dict[Host, Node]
Booking = tuple[Demand, tuple[Host, ...]]


def book(nodes: Nodes, bookings: Sequence[Booking]) -> Nodes | None:
    """What is left of the nodes, or None where they do not hold all bookings, however slots are spread."""
    if not bookings:
        return nodes
    (demand, hosts), rest = bookings[0], bookings[1:]
    for spread in spreads(nodes, demand, hosts):
        changed = {host: nodes[host].less(demand, slots) for host, slots in zip(hosts, spread, strict=True)}
        left = book(nodes | changed, rest)
        if left is not None:
            return left
    return None


def spreads(nodes: Nodes, demand: Demand, hosts: Sequence[Host]) -> Iterator[tuple[int, ...]]:
    """The ways to put a job on exactly these hosts: so many slots on each."""
    most = [nodes[host].slots(demand) for host in hosts]
    if demand.nodes:
        if min(most) >= demand.slots_per_node():
            yield (demand.slots_per_node(),) * len(hosts)
    elif demand.exclusive:
        if sum(most) >= demand.slots and min(most) > 0:
            yield tuple(most)
    else:
        yield from (
            spread
            for spread in itertools.product(*(range(held, 0, -1) for held in most))
            if sum(spread) == demand.slots
        )


def has_room(nodes: Nodes, pool: PoolState, demand: Demand) -> bool:
    """Whether the whole demand fits on those of the pool's nodes that its constraint admits."""
    slots = [node.slots(demand) for host, node in nodes.items() if eligible(pool, host, demand)]
    if demand.nodes:
        return sum(held >= demand.slots_per_node() for held in slots) >= demand.nodes
    return sum(slots) >= demand.slots


def eligible(pool: PoolState, host: Host, demand: Demand) -> bool:
    if not demand.constraint:
        return True
    ((operator, (operand,)),) = json.loads(demand.constraint).items()
    if operator == "hostlist":
        return host in ("a0", "a2", "b1")
    return pool.declared[host] in (1, 2) if operator == "ranks" else operand in pool.properties


def fleet_of(pools: Mapping[str, PoolState]) -> Nodes:
    return {node.host: Node(node.cores, node.gpus, node.whole) for pool in pools.values() for node in pool.fleet}


def bought_by(plan: Plan) -> dict[Host, Offer]:
    return {host: purchase.offer for purchase in plan.purchases for host in purchase.hosts}


def placed(plan: Plan) -> dict[JobId, Verdict]:
    return {job_id: verdict for job_id, verdict in plan.verdicts.items() if verdict.kind in PLACED}


# What every plan has to keep to, each in a function, as both kinds of planners are held to it


def check_verdicts(case: Case, plan: Plan) -> None:
    """Exactly one for each request, with a reason; a job is placed whole in one pool that it admits, or not at all."""
    assert plan.verdicts.keys() == {request.job_id for request in case.requests}
    pool_of = {host: name for name, pool in case.pools.items() for host in pool.declared}
    here = fleet_of(case.pools)
    bought = bought_by(plan)
    spot = {node.host: node.spot for pool in case.pools.values() for node in pool.fleet}
    spot |= {host: offer.spot for host, offer in bought.items()}
    for request in case.requests:
        verdict, demand = plan.verdicts[request.job_id], request.shape.demand
        assert verdict.reason
        assert {name for name, _ in verdict.pool_reasons} <= set(request.shape.pools)
        assert len(set(verdict.hosts)) == len(verdict.hosts)
        assert {pool_of[host] for host in verdict.hosts} <= {verdict.pool}
        if verdict.kind in PLACED:
            assert verdict.pool in request.shape.pools
            assert verdict.hosts
            assert demand.spot is None or {spot[host] for host in verdict.hosts} == {demand.spot}
            assert all(eligible(case.pools[verdict.pool], host, demand) for host in verdict.hosts)
            assert not demand.nodes or len(verdict.hosts) == demand.nodes
            assert verdict.kind is VerdictKind.COMING or set(verdict.hosts) & bought.keys()
        elif verdict.kind is VerdictKind.WAIT:
            assert set(verdict.hosts) <= here.keys() | bought.keys(), "a job waits for nodes that there will be"
        else:
            assert verdict.kind is VerdictKind.REFUSED
            assert not verdict.hosts
            assert [name for name, _ in verdict.pool_reasons] == list(request.shape.pools)
            assert all(reason for _, reason in verdict.pool_reasons)
    counted = {host for verdict in plan.verdicts.values() for host in verdict.hosts}
    certain = {host for verdict in plan.verdicts.values() if verdict.kind in PLACED for host in verdict.hosts}
    idle = {node.host for pool in case.pools.values() for node in pool.fleet if node.up and not node.end_at}
    assert certain <= set(plan.booked) <= counted
    assert counted - set(plan.booked) <= idle, "idle nodes that only jobs wait for that wait for others, too"


def check_capacity(case: Case, plan: Plan) -> None:
    """No node is booked beyond what it has, no exclusive one shared, none bought twice or in vain."""
    nodes = fleet_of(case.pools)
    for purchase in plan.purchases:
        pool = case.pools[purchase.offer.pool]
        assert purchase.hosts
        assert len(purchase.until_at) == len(purchase.hosts)
        assert not pool.closed
        for host in purchase.hosts:
            assert host in pool.free
            assert host not in nodes, "bought twice"
            nodes[host] = Node(pool.cores, pool.gpus, whole=True)
    shape_of = {request.job_id: request.shape for request in case.requests}
    bookings = [(shape_of[job_id].demand, verdict.hosts) for job_id, verdict in placed(plan).items()]
    assert book(nodes, sorted(bookings, key=lambda booking: len(booking[1]))) is not None, "overbooked"
    used = {host for _, hosts in bookings for host in hosts}
    for purchase in plan.purchases:
        assert not purchase.job_ids or set(purchase.hosts) <= used, "bought for nobody"
        for job_id in purchase.job_ids:
            assert set(plan.verdicts[job_id].hosts) & set(purchase.hosts)


def check_offers(case: Case, plan: Plan) -> None:
    """What is bought was offered to the job, is as it wants it, and no more than is left."""
    for offer, count in Counter(bought_by(plan).values()).items():
        assert offer.nodes_left is None or count <= offer.nodes_left
    by_id = {request.job_id: request for request in case.requests}
    for purchase in plan.purchases:
        for job_id in purchase.job_ids:
            request, offer = by_id[job_id], purchase.offer
            assert request.not_before_at <= case.now
            quotes = case.answers[offer.provider, request.shape.demand]
            (quote,) = [one for one in quotes if isinstance(one, Quote) and one.offer == offer]
            assert not quote.closed
            assert request.shape.demand.spot in (None, offer.spot)


def check_orders(plan: Plan) -> None:
    """An order names the jobs that it is for, and has one node for each of several.

    So a gang that lacks several nodes has orders of its own, and has them whole or not at all.
    """
    named = {job_id for purchase in plan.purchases for job_id in purchase.job_ids}
    assert named == {job_id for job_id, verdict in plan.verdicts.items() if verdict.kind is VerdictKind.BURST}
    for purchase in plan.purchases:
        if len(purchase.job_ids) == 1:
            assert set(purchase.hosts) <= set(plan.verdicts[purchase.job_ids[0]].hosts)
        elif purchase.job_ids:
            assert len(purchase.hosts) == len(set(purchase.job_ids))


def check_blocks(case: Case, plan: Plan) -> None:
    """An order takes the first hosts of one block that no other order has any of."""
    for pool in case.pools.values():
        taken: set[tuple[Host, ...]] = set()
        for purchase in plan.purchases:
            if pool.blocks and purchase.offer.pool == pool.name:
                (block,) = [block for block in pool.blocks if purchase.hosts[0] in block]
                assert purchase.hosts == block[: len(purchase.hosts)]
                assert set(block) <= set(pool.free)
                assert block not in taken
                taken.add(block)


def check_caps(case: Case, plan: Plan) -> float:
    """Nodes by pool and in all; dollars by user and in all, for what the ledger will have reserved; dollars by job.

    Returns all dollars that are reserved.
    """
    nodes: Counter[str] = Counter()
    usd: defaultdict[str, float] = defaultdict(float)
    unpriced: set[str] = set()
    until: dict[Host, float] = {node.host: node.paid_until_at for pool in case.pools.values() for node in pool.fleet}
    price = {node.host: node.usd_per_node_hour for pool in case.pools.values() for node in pool.fleet}

    def reserve(host: Host, account: Account, from_at: float, until_at: float) -> None:
        assert until_at > from_at
        rate = price[host]
        unpriced.update(("", account.user) if rate is None else ())
        for user in ("", account.user) if account.user else ("",):
            usd[user] += (rate or 0.0) * (until_at - from_at) / 3600

    for purchase in plan.purchases:
        nodes[purchase.offer.pool] += len(purchase.hosts)
        nodes[""] += len(purchase.hosts)
        for host, until_at in zip(purchase.hosts, purchase.until_at, strict=True):
            price[host] = purchase.offer.usd_per_node_hour
            reserve(host, purchase.account, case.now, until_at)
            until[host] = until_at
    for extension in plan.extensions:
        reserve(extension.host, extension.account, until[extension.host], extension.until_at)
        until[extension.host] = extension.until_at
    for pool in case.pools:
        for name, limit in case.caps.of_nodes(pool):
            assert nodes[name] <= limit
    for user in ("", "ann", "ben"):
        for name, dollars in case.caps.of_usd(Account(user)):
            assert usd[name] <= dollars + 1e-6
            assert name not in unpriced, "no price is known, and dollars are capped"
    check_job_caps(case, plan)
    return usd[""]


def check_reserved(case: Case, plan: Plan) -> None:
    """Every node is reserved for as long as its jobs may need it, so that a cap holds whatever happens."""
    shape_of = {request.job_id: request.shape for request in case.requests}
    bought = bought_by(plan)
    until = {node.host: node.paid_until_at for pool in case.pools.values() for node in pool.fleet}
    until |= {host: at for one in plan.purchases for host, at in zip(one.hosts, one.until_at, strict=True)}
    until |= {extension.host: extension.until_at for extension in plan.extensions}
    for job_id, verdict in placed(plan).items():
        pool = case.pools[verdict.pool]
        duration_s = shape_of[job_id].demand.duration_s or case.rules.assume_duration_s
        # a gang waits for the last of its nodes
        begin_at = case.now + (pool.boot_s if any(host in bought for host in verdict.hosts) else 0.0)
        for host in verdict.hosts:
            for mate in staying_with(host, pool, plan):
                assert until[mate] >= begin_at + duration_s + pool.tail_s - 1e-6


def orders_of(pool: PoolState, plan: Plan) -> list[list[Host]]:
    """The hosts of each order by rank; a node that was not bought is by itself."""
    found: defaultdict[str, list[Host]] = defaultdict(list)
    for node in pool.fleet:
        found[node.request_id or node.host].append(node.host)
    new = [list(purchase.hosts) for purchase in plan.purchases if purchase.offer.pool == pool.name]
    return [sorted(hosts, key=lambda host: pool.declared[host]) for hosts in (*found.values(), *new)]


def staying_with(host: Host, pool: PoolState, plan: Plan) -> list[Host]:
    """The hosts that do not leave before this one."""
    if pool.shrink is Shrink.ANY:
        return [host]
    (mates,) = [hosts for hosts in orders_of(pool, plan) if host in hosts]
    return mates if pool.shrink is Shrink.ORDER else mates[: mates.index(host) + 1]


def check_job_caps(case: Case, plan: Plan) -> None:
    """A job with a limit of its own buys nothing of unknown price, nor nodes for itself alone that cost more."""
    jobs_on: Counter[Host] = Counter(host for verdict in placed(plan).values() for host in verdict.hosts)
    bought = bought_by(plan)
    for request in case.requests:
        verdict, demand = plan.verdicts[request.job_id], request.shape.demand
        limits = [limit for limit in (request.shape.max_usd, case.rules.usd_per_job) if limit is not None]
        if verdict.kind is VerdictKind.BURST and limits:
            alone = [bought[host] for host in verdict.hosts if host in bought and jobs_on[host] == 1]
            assert all(offer.usd_per_node_hour is not None for offer in alone)
            hours = (demand.duration_s or case.rules.assume_duration_s) / 3600
            assert sum(offer.usd_per_node_hour or 0.0 for offer in alone) * hours <= min(limits) + 1e-6


def check_nothing_in_vain(case: Case, plan: Plan) -> None:
    """Nothing is bought for a job that would fit on nodes that are up or coming, which no other job has booked.

    Not looked at: what may be forbidden by a cap in dollars, as staying longer on a node that is there costs, too.
    """
    if case.caps.usd is not None or case.caps.user_usd or case.rules.usd_per_job is not None:
        return
    shape_of = {request.job_id: request.shape for request in case.requests}
    awaited = {host for verdict in plan.verdicts.values() if verdict.kind is VerdictKind.WAIT for host in verdict.hosts}
    here = fleet_of(case.pools)
    spot = {node.host: node.spot for pool in case.pools.values() for node in pool.fleet}
    for job_id, verdict in plan.verdicts.items():
        shape = shape_of[job_id]
        if verdict.kind is not VerdictKind.BURST or shape.max_usd is not None:
            continue
        others = [
            (shape_of[other].demand, there)
            for other, found in placed(plan).items()
            if other != job_id
            and (there := tuple(host for host in found.hosts if host in here))
            and (shape_of[other].demand.nodes or len(there) == len(found.hosts))
        ]
        left = book(here, sorted(others, key=lambda booking: len(booking[1])))
        assert left is not None
        taken = awaited | {
            host for other, found in placed(plan).items() if other != job_id and not shape_of[other].demand.nodes
            for host in found.hosts if len(found.hosts) > 1
        }  # fmt: skip
        for name in shape.pools:
            suited = {
                host
                for host in case.pools[name].declared.keys() & left.keys() - taken
                if shape.demand.spot in (None, spot[host])
            }
            mine = {host: left[host] for host in suited}
            assert not has_room(mine, case.pools[name], shape.demand), f"job {job_id} fits in pool {name}"


def check(case: Case, plan: Plan) -> None:
    check_verdicts(case, plan)
    check_capacity(case, plan)
    check_offers(case, plan)
    check_orders(plan)
    check_blocks(case, plan)
    check_caps(case, plan)
    check_nothing_in_vain(case, plan)


# The properties


@given(cases())
def test_every_request_gets_exactly_one_verdict_and_a_gang_its_whole_place_or_none(case: Case) -> None:
    check_verdicts(case, case.plan())


@given(cases())
def test_what_a_job_waits_for_is_not_over(case: Case) -> None:
    plan = case.plan()
    untils = [verdict.until_at for verdict in plan.verdicts.values() if verdict.until_at is not None]
    assert all(until_at >= NOW for until_at in untils), "now is when home starts it at once"
    assert plan.again_at is None or plan.again_at > NOW


@given(cases())
def test_no_node_is_booked_beyond_what_it_has_and_none_is_bought_for_nobody(case: Case) -> None:
    check_capacity(case, case.plan())


@given(cases())
def test_only_what_is_offered_is_bought_and_no_more_than_is_left(case: Case) -> None:
    check_offers(case, case.plan())


@given(cases())
def test_an_order_names_its_jobs_and_has_one_node_for_each_of_several(case: Case) -> None:
    check_orders(case.plan())


@given(cases())
def test_an_order_takes_the_beginning_of_a_block_that_nobody_has(case: Case) -> None:
    check_blocks(case, case.plan())


@given(cases())
def test_no_plan_exceeds_a_cap(case: Case) -> None:
    """And what it takes from the draft is what the ledger will have to reserve for it."""
    purse = Purse(case.caps)
    plan = Packer().plan(dataclasses.replace(case.moment(), draft=purse))
    kept = sum(plan.kept.values())
    assert check_caps(case, plan) + kept == pytest.approx(purse.spent(), abs=1e-4), "but for rounding"


@given(cases(), st.randoms(use_true_random=False))
def test_what_is_kept_back_pays_for_any_nodes_that_flux_may_choose(case: Case, dice: random.Random) -> None:
    """Not where only whole nodes at one price are asked for: there jobs exchange what is reserved."""
    plan = dataclasses.replace(case, caps=dataclasses.replace(case.caps, usd=20.0)).plan()
    demand_of = {request.job_id: request.shape.demand for request in case.requests}
    until = {node.host: node.paid_until_at for pool in case.pools.values() for node in pool.fleet}
    until |= {host: at for one in plan.purchases for host, at in zip(one.hosts, one.until_at, strict=True)}
    until |= {extension.host: extension.until_at for extension in plan.extensions}
    price = {node.host: node.usd_per_node_hour or 0.0 for pool in case.pools.values() for node in pool.fleet}
    price |= {host: one.offer.usd_per_node_hour or 0.0 for one in plan.purchases for host in one.hosts}
    coming = {host for pool in case.pools.values() for host in (node.host for node in pool.fleet if not node.up)}
    coming |= {host for one in plan.purchases for host in one.hosts}
    for pool in case.pools.values():
        hosts = [host for hosts in orders_of(pool, plan) for host in hosts]
        jobs = {job: verdict for job, verdict in placed(plan).items() if verdict.pool == pool.name}
        part = any(not demand_of[job].exclusive and demand_of[job].cores_per_slot < pool.cores for job in jobs)
        if pool.shrink is Shrink.ANY and len({price[host] for host in hosts}) <= 1 and not part:
            continue
        needed: dict[Host, float] = {}
        for job, verdict in jobs.items():
            begin_at = case.now + (pool.boot_s if coming.intersection(verdict.hosts) else 0.0)
            duration_s = demand_of[job].duration_s or case.rules.assume_duration_s
            leaves_at = begin_at + duration_s + pool.tail_s - pool.idle_s
            # mostly where it costs most: on nodes that would go soon, and that no other job has taken yet
            soon = sorted(hosts, key=lambda host: (host in needed, until[host]))
            for host in soon[: len(verdict.hosts)] if dice.random() < 0.8 else dice.sample(hosts, len(verdict.hosts)):
                for mate in staying_with(host, pool, plan):
                    needed[mate] = max(leaves_at, needed.get(mate, 0.0))
        more_usd = sum(max(0.0, at - max(until[host], case.now)) * price[host] for host, at in needed.items()) / 3600
        assert more_usd <= plan.kept.get(pool.name, 0.0) + 1e-6


@given(cases())
def test_nodes_are_reserved_until_their_jobs_have_ended(case: Case) -> None:
    check_reserved(case, case.plan())


@given(cases(capped=False))
def test_nothing_is_bought_that_fits_on_nodes_up_or_coming(case: Case) -> None:
    check_nothing_in_vain(case, case.plan())


@given(cases())
def test_asked_is_only_what_is_not_answered_and_who_is_undecided_waits_for_it(case: Case) -> None:
    plan = case.plan()
    assert not plan.asks & case.answers.keys()
    useful = {
        (case.pools[name].provider, request.shape.demand)
        for request in case.requests
        for name in request.shape.pools
        if not case.pools[name].closed and (case.home is not None or request.not_before_at <= NOW)
    }
    assert case.holds or plan.asks <= useful
    for request in case.requests:
        mine = {(case.pools[name].provider, request.shape.demand) for name in request.shape.pools}
        if request.job_id in plan.undecided:
            assert plan.verdicts[request.job_id].kind is VerdictKind.WAIT
            assert mine & plan.asks
        elif plan.verdicts[request.job_id].kind is VerdictKind.REFUSED:
            assert not mine & plan.asks, "a refusal is for good"


@given(cases(plain=True))
def test_a_plan_with_all_answers_asks_nothing_and_decides(case: Case) -> None:
    plan = case.plan()
    assert plan.asks == frozenset()
    assert plan.undecided == frozenset()


@given(cases(plain=True, capped=False), PRICE, TYPE, FLAG, LEFT)
def test_one_more_offer_never_makes_equal_placements_dearer(
    case: Case, price: float, instance_type: str, spot: bool, left: int | None
) -> None:
    name, pool = next(iter(case.pools.items()))
    offer = Offer(name, pool.provider, instance_type, pool.cores, pool.gpus, price, spot, zone="new", nodes_left=left)
    more = {
        key: ordered([*answers, Quote(offer, JOIN_S, 2 * JOIN_S)]) if key[0] == pool.provider else answers
        for key, answers in case.answers.items()
    }
    before, after = case.plan(), dataclasses.replace(case, answers=more).plan()
    assume(placements(before) == placements(after))
    assert reserved_usd(after) <= reserved_usd(before) + 1e-6


def placements(plan: Plan) -> object:
    """Which jobs are placed in which pool, and which of them share a node, whatever the hosts' names."""
    sharing: dict[Host, set[JobId]] = defaultdict(set)
    for job_id, verdict in placed(plan).items():
        for host in verdict.hosts:
            sharing[host].add(job_id)
    together = Counter((host in bought_by(plan), frozenset(jobs)) for host, jobs in sharing.items())
    return {job_id: verdict.pool for job_id, verdict in placed(plan).items()}, together


def reserved_usd(plan: Plan) -> float:
    """What is reserved for; a node of unknown price is reckoned dearer than every known one."""
    return sum(
        (1_000.0 if purchase.offer.usd_per_node_hour is None else purchase.offer.usd_per_node_hour)
        * (until_at - NOW) / 3600
        for purchase in plan.purchases
        for until_at in purchase.until_at
    )  # fmt: skip


@given(cases())
def test_the_same_input_gives_the_same_plan(case: Case) -> None:
    """Equal, but other objects, and entered the other way round."""
    shapes = {request.shape: dataclasses.replace(request.shape) for request in case.requests}
    again = dataclasses.replace(
        case,
        requests=tuple(
            dataclasses.replace(request, shape=shapes[request.shape]) for request in reversed(case.requests)
        ),
        answers={
            (provider, dataclasses.replace(demand)): [dataclasses.replace(answer) for answer in answers]
            for (provider, demand), answers in reversed(list(case.answers.items()))
        },
    )
    assert told(case.plan()) == told(again.plan())


def told(plan: Plan) -> object:
    """All that a plan says, without the order in which a mapping happens to have it."""
    return (
        dict(plan.verdicts),
        plan.purchases,
        set(plan.extensions),
        plan.asks,
        plan.undecided,
        set(plan.booked),
        plan.again_at,
        dict(plan.unmet),
    )


@given(cases())
def test_which_of_equal_jobs_comes_first_changes_names_alone(case: Case) -> None:
    """Jobs of one shape swap their ids; whoever has a place in the order gets what belongs to that place."""
    same: dict[object, list[JobId]] = defaultdict(list)
    for request in case.requests:
        same[request.shape, request.not_before_at, request.order[0]].append(request.job_id)
    name: dict[JobId, JobId] = {}
    for ids in same.values():
        name.update(zip(ids, reversed(ids), strict=True))
    swapped = tuple(dataclasses.replace(request, job_id=name[request.job_id]) for request in case.requests)
    one, other = case.plan(), dataclasses.replace(case, requests=swapped).plan()
    assert {name[job_id]: nameless(verdict) for job_id, verdict in one.verdicts.items()} == {
        job_id: nameless(verdict) for job_id, verdict in other.verdicts.items()
    }
    assert [dataclasses.replace(purchase, job_ids=()) for purchase in one.purchases] == [
        dataclasses.replace(purchase, job_ids=()) for purchase in other.purchases
    ]
    assert [{name[job_id] for job_id in purchase.job_ids} for purchase in one.purchases] == [
        set(purchase.job_ids) for purchase in other.purchases
    ]


def nameless(verdict: Verdict) -> Verdict:
    """Without the ids of other jobs in its reasons."""
    reasons = tuple((pool, re.sub(r"ƒ\w+", "", reason)) for pool, reason in verdict.pool_reasons)
    return dataclasses.replace(verdict, reason=re.sub(r"ƒ\w+", "", verdict.reason), pool_reasons=reasons)


@given(cases(plain=True))
def test_a_job_that_home_starts_at_once_is_not_burst(case: Case) -> None:
    first = min(case.requests, key=lambda request: request.order)
    need = first.shape.demand.slots * first.shape.demand.cores_per_slot
    verdict = dataclasses.replace(case, home=(NOW,) * need).plan().verdicts[first.job_id]
    assert verdict.kind is not VerdictKind.BURST


@given(cases(plain=True), st.integers(1, 5))
def test_a_pool_is_held_at_its_size_within_its_limits_or_says_why_not(case: Case, wanted: int) -> None:
    name, pool = next(iter(case.pools.items()))
    missing = wanted - len(pool.fleet)
    assume(missing > 0)
    most = len(pool.free)
    if pool.blocks:  # one at a time
        most = max([len(block) for block in pool.blocks if set(block) <= set(pool.free)], default=0)
        missing = max(1, min(missing, most))
    demand = Demand(missing, missing, pool.cores, pool.gpus, exclusive=True)
    offer = Offer(name, pool.provider, "large", pool.cores, pool.gpus, usd_per_node_hour=1.0)
    held = Case((), case.pools, {(pool.provider, demand): [Quote(offer, JOIN_S, JOIN_S)]}, holds={name: wanted})
    held = dataclasses.replace(held, caps=Caps(case.caps.nodes, case.caps.pool_nodes))
    plan = held.plan()
    bought = [host for purchase in plan.purchases for host in purchase.hosts]
    room = min([most, *(limit for _, limit in held.caps.of_nodes(name))])
    possible = not pool.closed and missing <= room
    assert len(bought) == (missing if possible else 0)
    assert bool(plan.unmet.get(name)) != possible
    assert all(purchase.job_ids == () and purchase.account == NOBODY for purchase in plan.purchases)


# A planner that follows what changes


def fed_back(case: Case, plan: Plan, *, launched: bool = True) -> Case:
    """The moment after: what was bought is on its way (or, where the launch failed, is not), bookings are fed back."""
    at = case.now + JOIN_S
    pools = dict(case.pools)
    for purchase in plan.purchases if launched else ():
        pool = pools[purchase.offer.pool]
        coming = tuple(
            FleetNode(
                host, pool.cores, pool.gpus, whole=True, up=False, at=at, latest_at=case.now + pool.boot_s,
                paid_until_at=until_at,
                usd_per_node_hour=purchase.offer.usd_per_node_hour, spot=purchase.offer.spot,
            )
            for host, until_at in zip(purchase.hosts, purchase.until_at, strict=True)
        )  # fmt: skip
        free = tuple(host for host in pool.free if host not in purchase.hosts)
        pools[pool.name] = dataclasses.replace(pool, fleet=pool.fleet + coming, free=free)
    longer = {extension.host: extension.until_at for extension in plan.extensions}
    for name, pool in pools.items():
        if any(node.host in longer for node in pool.fleet):
            fleet = tuple(
                dataclasses.replace(node, paid_until_at=longer.get(node.host, node.paid_until_at))
                for node in pool.fleet
            )
            pools[name] = dataclasses.replace(pool, fleet=fleet)
    sold = Counter(purchase.offer for purchase in plan.purchases for _ in purchase.hosts)
    answers = {key: [less(answer, sold) for answer in found] for key, found in case.answers.items()}
    requests = tuple(
        # as the controller does it: what only waits has nothing to keep
        dataclasses.replace(request, booked=(verdict.pool, verdict.hosts) if verdict.kind in SERVED else ("", ()))
        for request in case.requests
        if (verdict := plan.verdicts[request.job_id])
    )
    if not launched:
        return dataclasses.replace(case, requests=requests, pools=pools)
    return dataclasses.replace(case, requests=requests, pools=pools, answers=answers, caps=left_of(case, plan))


SERVED = (VerdictKind.COMING, VerdictKind.BURST)


def less(answer: Quote | Refusal, sold: Mapping[Offer, int]) -> Quote | Refusal:
    if isinstance(answer, Refusal) or answer.offer.nodes_left is None or answer.offer not in sold:
        return answer
    left = answer.offer.nodes_left - sold[answer.offer]
    return dataclasses.replace(answer, offer=dataclasses.replace(answer.offer, nodes_left=left))


def left_of(case: Case, plan: Plan) -> Caps:
    """The caps less what the plan has bought."""
    count = Counter(purchase.offer.pool for purchase in plan.purchases for _ in purchase.hosts)
    usd: defaultdict[str, float] = defaultdict(float)
    paid = {node.host: node for pool in case.pools.values() for node in pool.fleet}
    for purchase in plan.purchases:
        price = purchase.offer.usd_per_node_hour or 0.0
        cost = sum(price * (until_at - case.now) / 3600 for until_at in purchase.until_at)
        usd[""] += cost
        usd[purchase.account.user] += cost if purchase.account.user else 0.0
    for extension in plan.extensions:
        if (node := paid.get(extension.host)) is not None:
            cost = (node.usd_per_node_hour or 0.0) * (extension.until_at - node.paid_until_at) / 3600
            paid[extension.host] = dataclasses.replace(node, paid_until_at=extension.until_at)
            usd[""] += cost
            usd[extension.account.user] += cost if extension.account.user else 0.0
    caps = case.caps
    return Caps(
        None if caps.nodes is None else caps.nodes - count.total(),
        {name: limit - count[name] for name, limit in caps.pool_nodes.items()},
        None if caps.usd is None else caps.usd - usd[""],
        {user: limit - usd[user] for user, limit in caps.user_usd.items()},
    )


@pytest.mark.parametrize("anew", [True, False], ids=["planner made anew", "same planner"])
@given(case=cases())
def test_planning_again_with_the_bookings_fed_back_buys_nothing_more(case: Case, anew: bool) -> None:
    """The second may reserve a node for longer, for one that waits for it now; the third has nothing to add."""
    packer = Packer()
    plan = packer.plan(case.moment())
    hosts = {job_id: verdict.hosts for job_id, verdict in placed(plan).items()}
    for last in (False, True):
        after = fed_back(case, plan)
        changed = [name for name in case.pools if after.pools[name] is not case.pools[name]]
        plan = Packer().plan(after.moment()) if anew else packer.plan(after.moment(list(plan.changed), changed))
        case = after
        assert plan.purchases == ()
        assert not last or tuple(plan.extensions) == ()
        for job_id, booked in hosts.items():
            assert plan.verdicts[job_id].kind is VerdictKind.COMING
            assert plan.verdicts[job_id].hosts == booked


class World:
    """A case that goes on: jobs come, start and go, nodes join and are lost, pools close, prices and time change."""

    def __init__(self, case: Case, shapes: Sequence[Shape]) -> None:
        self.case = case
        self._shapes = shapes
        self._next_id = 1 + max(request.job_id for request in case.requests)
        self.changed_jobs: set[JobId] = set()
        self.changed_pools: set[str] = set()

    def moment(self) -> Moment:
        moment = self.case.moment(frozenset(self.changed_jobs), frozenset(self.changed_pools))
        self.changed_jobs.clear()
        self.changed_pools.clear()
        return moment

    def feed(self, plan: Plan, *, launched: bool) -> None:
        after = fed_back(self.case, plan, launched=launched)
        before = {request.job_id: request for request in self.case.requests}
        self.changed_jobs |= {request.job_id for request in after.requests if request != before[request.job_id]}
        self.changed_pools |= {name for name, pool in after.pools.items() if pool is not self.case.pools[name]}
        self.case = after

    def happen(self, event: str, pick: int) -> None:
        getattr(self, f"_{event}")(pick)

    def _submit(self, pick: int) -> None:
        request = Request(JobId(self._next_id), self._shapes[pick % len(self._shapes)], (-16, self._next_id))
        self._next_id += 1
        self.changed_jobs.add(request.job_id)
        self.case = dataclasses.replace(self.case, requests=(*self.case.requests, request))

    def _cancel(self, pick: int) -> None:
        if self.case.requests:
            self._gone(self.case.requests[pick % len(self.case.requests)])

    def _gone(self, request: Request) -> None:
        self.changed_jobs.add(request.job_id)
        left = tuple(one for one in self.case.requests if one is not request)
        self.case = dataclasses.replace(self.case, requests=left)

    def _start(self, pick: int) -> None:
        """A job whose nodes are all up starts on them, each slot where there is room for it."""
        up = {node.host for pool in self.case.pools.values() for node in pool.fleet if node.up}
        ready = [one for one in self.case.requests if one.booked[1] and up.issuperset(one.booked[1])]
        if not ready:
            return
        request = ready[pick % len(ready)]
        (name, hosts), demand = request.booked, request.shape.demand
        left = book(fleet_of(self.case.pools), [(demand, hosts)])
        if left is None:
            return
        end_at = self.case.now + (demand.duration_s or 3600.0)
        self._gone(request)
        self._nodes(
            name,
            {
                host: {"cores": left[host].cores, "gpus": left[host].gpus, "whole": False, "end_at": end_at}
                for host in hosts
            },
        )

    def _nodes(self, name: str, changes: Mapping[Host, Mapping[str, object]]) -> None:
        pool = self.case.pools[name]
        fleet = tuple(
            dataclasses.replace(node, **changes[node.host]) if node.host in changes else node  # type: ignore[arg-type]
            for node in pool.fleet
        )
        self._pool(dataclasses.replace(pool, fleet=fleet))

    def _pool(self, pool: PoolState) -> None:
        self.changed_pools.add(pool.name)
        self.case = dataclasses.replace(self.case, pools={**self.case.pools, pool.name: pool})

    def _picked(self, pick: int) -> PoolState:
        return list(self.case.pools.values())[pick % len(self.case.pools)]

    def _join(self, pick: int) -> None:
        pool = self._picked(pick)
        self._nodes(pool.name, {node.host: {"up": True, "at": 0.0} for node in pool.fleet})

    def _end(self, pick: int) -> None:
        """All that runs in a pool has ended."""
        pool = self._picked(pick)
        idle = {"cores": pool.cores, "gpus": pool.gpus, "whole": True, "end_at": 0.0}
        self._nodes(pool.name, {node.host: idle for node in pool.fleet if node.up and not node.whole})

    def _lose(self, pick: int) -> None:
        pool = self._picked(pick)
        if pool.fleet:
            lost = pool.fleet[pick % len(pool.fleet)]
            fleet = tuple(node for node in pool.fleet if node is not lost)
            free = tuple(sorted((*pool.free, lost.host), key=pool.declared.__getitem__))
            self._pool(dataclasses.replace(pool, fleet=fleet, free=free))

    def _close(self, pick: int) -> None:
        pool = self._picked(pick)
        closed = "" if pool.closed else "cools down"
        self._pool(dataclasses.replace(pool, closed=closed, closed_until_at=self.case.now + 30 if closed else None))

    def _reprice(self, pick: int) -> None:
        """Offers get dearer or cheaper by their zone; all answers are new objects."""
        factor = (0.5, 2.0)[pick % 2]

        def priced(answer: Quote | Refusal) -> Quote | Refusal:
            if isinstance(answer, Refusal) or answer.offer.usd_per_node_hour is None or answer.offer.zone == "1":
                return answer
            price = answer.offer.usd_per_node_hour * factor
            return dataclasses.replace(answer, offer=dataclasses.replace(answer.offer, usd_per_node_hour=price))

        answers = {key: ordered(list(map(priced, answers))) for key, answers in self.case.answers.items()}
        self.case = dataclasses.replace(self.case, answers=answers)

    def _pass(self, pick: int) -> None:
        self.case = dataclasses.replace(self.case, now=self.case.now + (15.0, 45.0, 900.0)[pick % 3])


EVENTS = ("submit", "submit", "cancel", "start", "join", "end", "lose", "close", "reprice", "pass")
STEPS = st.lists(
    st.tuples(st.lists(st.tuples(st.sampled_from(EVENTS), PICK), max_size=3), seldom(False, usual=True)),
    min_size=1,
    max_size=6,
)


@given(cases(plain=True), STEPS)
def test_a_planner_that_follows_changes_plans_as_one_made_anew(
    case: Case, steps: list[tuple[list[tuple[str, int]], bool]]
) -> None:
    """And keeps to all that a plan has to keep to, and names exactly the verdicts that are new.

    The two are not compared while a job that only counts slots is booked on several nodes: a booking names hosts, not
    the slots on each, which are the scheduler's choice; a planner made anew fills these hosts one after the other, the
    one that follows leaves each its slots. What is free then differs from host to host.
    """
    world = World(case, list({request.shape: None for request in case.requests}))
    packer = Packer()
    plan = packer.plan(case.moment())
    before = dict(plan.verdicts)
    for events, launched in steps:
        world.feed(plan, launched=launched)
        for event, pick in events:
            world.happen(event, pick)
        plan = packer.plan(world.moment())
        check(world.case, plan)
        if not any(request.booked[1][1:] and not request.shape.demand.nodes for request in world.case.requests):
            assert told(plan) == told(world.case.plan())
        now_said = dict(plan.verdicts)
        fresh = {job_id for job_id, verdict in now_said.items() if before.get(job_id) != verdict}
        assert set(plan.changed) == fresh
        before = now_said
