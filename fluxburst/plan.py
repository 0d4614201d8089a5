"""Demands, fleet, offers and limits in; a verdict for every job and the purchases out. Pure: no clock, no I/O.

The first plan is simple: jobs in the scheduler's order (priority, then age), a whole job in one pool, nodes that are
up or coming before new ones, the first acceptable offer in order of price. What differs between jobs is only their
:class:`Request`; equal requests that failed once in a plan are not tried again: what can be bought only shrinks, and
room left over on nodes bought meanwhile is for the next plan, which gives it to the first of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fluxburst import durations, jobspec
from fluxburst.model import Demand, Host, JobId, Offer, Refusal, Verdict, VerdictKind


@dataclass(frozen=True, slots=True)
class FleetNode:
    """One node that is up or on its way, with what nobody holds of it now. ``whole`` is False once anyone does."""

    host: Host
    cores: int
    gpus: int
    whole: bool
    up: bool


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool at the moment of planning.

    ``declared`` is all its hosts with their ranks; ``fleet`` those that are up or coming; ``free`` those that may be
    ordered now; ``unusable`` counts the nodes that are paid for and in neither: leaving, or drained by others.
    ``failing`` is True after a launch or boot failed, until a node serves again: then every job's nodes are ordered
    apart. ``closed`` says why nothing may be bought in it now (empty: it may), ``closed_until_at`` until when.
    """

    name: str
    provider: str
    cores: int
    gpus: int
    properties: frozenset[str]
    declared: Mapping[Host, int]
    fleet: tuple[FleetNode, ...] = ()
    free: tuple[Host, ...] = ()
    max_nodes: int | None = None
    unusable: int = 0
    failing: bool = False
    closed: str = ""
    closed_until_at: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One job that asks: its demand, the pools it admits, its own limits.

    ``not_before_at`` is ``burst.wait``'s end. ``booked`` is what its latest verdict named, ``(pool, hosts)``: it keeps
    these hosts while they can be had, so that planning again shuffles nobody and buys nothing in vain.
    """

    job_id: JobId
    demand: Demand
    pools: tuple[str, ...]
    max_usd: float | None = None
    not_before_at: float = 0.0
    booked: tuple[str, tuple[Host, ...]] = ("", ())


@dataclass(frozen=True, slots=True)
class Purchase:
    """Nodes to buy in one order, and the jobs that they are bought for (none: to keep the pool warm)."""

    offer: Offer
    hosts: tuple[Host, ...]
    job_ids: tuple[JobId, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """``asks`` are the questions that have to be answered before ``undecided`` jobs get more than a passing verdict."""

    verdicts: Mapping[JobId, Verdict]
    purchases: tuple[Purchase, ...] = ()
    asks: frozenset[tuple[str, Demand]] = frozenset()
    undecided: frozenset[JobId] = frozenset()
    holds: Mapping[str, str] = field(default_factory=dict)
    """Pools whose warm nodes could not all be had, with the reason."""

    def booked(self) -> frozenset[Host]:
        """Every host that some job's verdict counts on."""
        return frozenset(host for verdict in self.verdicts.values() for host in verdict.hosts)


ANSWER_TTL_S = 30.0
"""How long an offer may be bought on before its provider is asked again."""

ASKING = "its providers are being asked for offers"

Answers = Mapping[tuple[str, Demand], Sequence[Offer | Refusal]]
OrderOffers = Callable[[Demand, Sequence[Offer]], Sequence[Offer]]


def asked_as(demand: Demand) -> Demand:
    """The demand as providers are asked about it: its duration rounded up to a power of two minutes.

    Else every user's own ``-t`` would be a question of its own.
    """
    if not demand.duration_s:
        return demand
    return dataclasses.replace(demand, duration_s=60.0 * 2.0 ** max(0, math.ceil(math.log2(demand.duration_s / 60.0))))


def by_price(demand: Demand, offers: Sequence[Offer]) -> Sequence[Offer]:
    """Known prices first, the lowest in front; then the shortest join time; then the order in which they came."""
    del demand
    return sorted(
        offers,
        key=lambda offer: (
            offer.usd_per_node_hour is None,
            offer.usd_per_node_hour or 0.0,
            offer.join_s if offer.join_s is not None else float("inf"),
        ),
    )


def make_plan(
    requests: Iterable[Request],
    pools: Mapping[str, PoolState],
    answers: Answers,
    *,
    now: float,
    nodes_left: int | None = None,
    holds: Mapping[str, int] | None = None,
    order_offers: OrderOffers = by_price,
) -> Plan:
    """Give every request its verdict, in the order given, and say what to buy.

    Args:
        requests: in the order in which they are served.
        pools: by name.
        answers: what providers said to (provider, demand); what is missing comes back as ``Plan.asks``.
        now: POSIX seconds, compared with ``not_before_at`` and ``retry_at`` only.
        nodes_left: how many nodes may still be bought in all; None is no limit.
        holds: pool to the number of nodes that it should have whether jobs need them or not.
        order_offers: the order of preference; leaves out what must not be used.
    """
    planner = _Planner(pools, answers, now, nodes_left, order_offers)
    verdicts = {request.job_id: planner.decide(request) for request in requests}
    unmet = {pool: reason for pool, wanted in (holds or {}).items() if (reason := planner.hold(pool, wanted))}
    undecided = frozenset(job_id for job_id, verdict in verdicts.items() if verdict.reason == ASKING)
    return Plan(verdicts, tuple(planner.purchases()), frozenset(planner.asks), undecided, unmet)


@dataclass(slots=True)
class _Room:
    """What is left of one node while the plan is made."""

    host: Host
    cores: int
    gpus: int
    whole: bool
    up: bool

    def slots(self, demand: Demand) -> int:
        return 0 if demand.exclusive and not self.whole else demand.slots_on(self.cores, self.gpus)

    def take(self, demand: Demand, slots: int) -> None:
        self.whole = False
        if demand.exclusive:
            self.cores = self.gpus = 0
        else:
            self.cores -= slots * demand.cores_per_slot
            self.gpus -= slots * demand.gpus_per_slot


@dataclass(slots=True)
class _No:
    """Why a pool cannot serve a request. ``lasting`` means that time alone will not change it."""

    reason: str
    lasting: bool
    until_at: float | None = None


class _Planner:
    def __init__(
        self,
        pools: Mapping[str, PoolState],
        answers: Answers,
        now: float,
        nodes_left: int | None,
        order_offers: OrderOffers,
    ) -> None:
        self._pools = pools
        self._answers = answers
        self._now = now
        self._nodes_left = nodes_left
        self._order_offers = order_offers
        self._rooms = {
            name: [
                _Room(node.host, node.cores, node.gpus, node.whole, node.up)
                for node in sorted(pool.fleet, key=lambda node: not node.up)
            ]
            for name, pool in pools.items()
        }
        self._free = {name: list(pool.free) for name, pool in pools.items()}
        self._live = {name: len(pool.fleet) + pool.unusable for name, pool in pools.items()}
        self._bought: dict[tuple[Offer, JobId | None], tuple[list[Host], list[JobId]]] = {}
        self._offer_used: dict[Offer, int] = {}
        self._eligible: dict[tuple[str, str], frozenset[Host] | None] = {}
        self._failed: dict[tuple[Demand, tuple[str, ...], float | None], Verdict] = {}
        self.asks: set[tuple[str, Demand]] = set()

    def decide(self, request: Request) -> Verdict:
        if request.not_before_at > self._now:
            placed = self._on_fleet(request)
            if placed is not None:
                return placed
            return Verdict(VerdictKind.WAIT, "burst.wait has not passed yet", until_at=request.not_before_at)
        key = (request.demand, request.pools, request.max_usd)
        verdict = self._failed.get(key)
        if verdict is None:
            verdict = self._on_fleet(request) or self._buy(request)
            if verdict.kind in (VerdictKind.WAIT, VerdictKind.REFUSED):
                self._failed[key] = verdict
        return verdict

    def hold(self, pool: str, wanted: int) -> str:
        """Buy what the pool lacks of ``wanted`` nodes; the reason where that fails, empty where all is well."""
        state = self._pools[pool]
        missing = wanted - len(self._rooms[pool])
        if missing <= 0:
            return ""
        demand = Demand(missing, missing, state.cores, state.gpus, exclusive=True)
        answer = self._offers(demand, (pool,))
        for offer in answer.offers:
            no = self._cannot_buy(state, offer, demand, missing)
            if no is None:
                self._take_new(state, offer, demand, missing, [], None)
                return ""
            answer.refusals[pool] = no
        return answer.refusals[pool].reason if pool in answer.refusals else "asking the provider"

    def purchases(self) -> Iterable[Purchase]:
        for (offer, _), (hosts, jobs) in self._bought.items():
            yield Purchase(offer, tuple(hosts), tuple(jobs))

    def _on_fleet(self, request: Request) -> Verdict | None:
        pool, hosts = request.booked
        places = [(name, self._candidates(name, request.demand)) for name in request.pools]
        if pool in request.pools:
            kept = [room for room in self._candidates(pool, request.demand) if room.host in hosts]
            places.insert(0, (pool, kept))
        for name, rooms in places:
            chosen = self._fit(rooms, request.demand)
            if chosen is not None:
                for room, slots in chosen:
                    room.take(request.demand, slots)
                up = all(room.up for room, _ in chosen)
                return Verdict(
                    VerdictKind.COMING,
                    "its nodes are up" if up else "nodes on their way serve it",
                    pool=name,
                    hosts=tuple(room.host for room, _ in chosen),
                )
        return None

    def _buy(self, request: Request) -> Verdict:
        demand = request.demand
        nos: dict[str, _No] = {}
        possible = []
        for name in request.pools:
            no = self._never(self._pools[name], demand)
            if no is None:
                possible.append(name)
            else:
                nos[name] = no
        answer = self._offers(demand, tuple(possible))
        nos |= answer.refusals
        for offer in answer.offers:
            state = self._pools[offer.pool]
            existing = self._partial(self._candidates(offer.pool, demand), demand)
            count = self._new_nodes(state, demand, existing)
            no = self._too_dear(request, offer, count + len(existing)) or self._cannot_buy(state, offer, demand, count)
            if no is None:
                hosts = self._take_new(state, offer, demand, count, existing, request.job_id)
                price = offer.usd_per_node_hour
                return Verdict(
                    VerdictKind.BURST,
                    f"buying {count} of {offer.instance_type}"
                    + ("" if price is None else f" at ${price:g} an hour each"),
                    pool=offer.pool,
                    hosts=hosts,
                    usd_per_hour=None if price is None else price * count,
                )
            if offer.pool not in nos or nos[offer.pool].lasting:
                nos[offer.pool] = no
        reasons = tuple((name, nos[name].reason) for name in request.pools if name in nos)
        if answer.asked:
            return Verdict(VerdictKind.WAIT, ASKING, pool_reasons=reasons)
        passing = [no for no in nos.values() if not no.lasting]
        if passing:
            until = [no.until_at for no in passing if no.until_at is not None]
            return Verdict(
                VerdictKind.WAIT,
                "; ".join(f"{name}: {no.reason}" for name, no in nos.items() if not no.lasting),
                until_at=min(until) if until else None,
                pool_reasons=reasons,
            )
        return Verdict(
            VerdictKind.REFUSED, "; ".join(f"{name}: {reason}" for name, reason in reasons), pool_reasons=reasons
        )

    def _never(self, pool: PoolState, demand: Demand) -> _No | None:
        """What makes the pool unfit for this demand at any time."""
        whole = _Room(Host(""), pool.cores, pool.gpus, whole=True, up=False)
        per_node = demand.slots_per_node() or 1
        if whole.slots(demand) < per_node:
            need = f"{per_node * demand.cores_per_slot} cores"
            have = f"{pool.cores} cores"
            if demand.gpus_per_slot:
                need += f" and {per_node * demand.gpus_per_slot} GPUs"
                have += f" and {pool.gpus} GPUs"
            return _No(f"needs {need} on a node, the pool's nodes have {have}", lasting=True)
        fit = len(self._hosts(pool, demand))
        if fit == 0:
            return _No(f"no host satisfies the job's constraint {demand.constraint}", lasting=True)
        most = fit if pool.max_nodes is None else min(fit, pool.max_nodes)
        least = demand.nodes or -(-demand.slots // whole.slots(demand))
        if least > most:
            what = "declares" if pool.max_nodes is None or pool.max_nodes >= fit else "is limited to"
            return _No(f"needs {least} nodes, the pool {what} {most}", lasting=True)
        return None

    @dataclass(slots=True)
    class _Answer:
        offers: list[Offer] = field(default_factory=list)
        refusals: dict[str, _No] = field(default_factory=dict)
        asked: bool = False

    def _offers(self, demand: Demand, names: Sequence[str]) -> _Answer:
        """The offers for these pools in order of preference, the refusals by pool, and who has to be asked first."""
        found = self._Answer()
        offers: list[Offer] = []
        for name in names:
            pool = self._pools[name]
            if pool.closed:
                found.refusals[name] = _No(pool.closed, lasting=False, until_at=pool.closed_until_at)
                continue
            key = (pool.provider, asked_as(demand))
            if key not in self._answers:
                self.asks.add(key)
                found.asked = True
                continue
            mine = [answer for answer in self._answers[key] if answer.pool == name]
            for answer in mine:
                if isinstance(answer, Refusal):
                    found.refusals[name] = _No(answer.reason, answer.retry_at is None, answer.retry_at)
                elif demand.spot is not None and answer.spot is not demand.spot:
                    kind = "spot" if demand.spot else "on-demand"
                    found.refusals.setdefault(name, _No(f"has no {kind} offer", lasting=True))
                else:
                    offers.append(answer)
            if not mine:
                found.refusals[name] = _No(f"provider {pool.provider} gave no answer for it", lasting=True)
        found.offers = list(self._order_offers(demand, offers))
        for offer in offers:
            if offer not in found.offers:
                found.refusals.setdefault(offer.pool, _No("a plugin of this site left its offer out", lasting=True))
        return found

    def _too_dear(self, request: Request, offer: Offer, count: int) -> _No | None:
        if request.max_usd is None:
            return None
        if offer.usd_per_node_hour is None:
            return _No("has no known price, and the job sets burst.max_usd", lasting=True)
        if not request.demand.duration_s:
            return _No("the job sets burst.max_usd but no duration; submit it with -t", lasting=True)
        cost = offer.usd_per_node_hour * count * request.demand.duration_s / 3600
        if cost > request.max_usd:
            return _No(f"would cost ${cost:.2f}, more than burst.max_usd = {request.max_usd:g}", lasting=True)
        return None

    def _cannot_buy(self, pool: PoolState, offer: Offer, demand: Demand, count: int) -> _No | None:
        """What stops ``count`` more nodes of this offer just now.

        The reasons hold no number that changes with every node: they stand in the memo of every job that waits.
        """
        eligible = self._hosts(pool, demand)
        if count > sum(host in eligible for host in self._free[pool.name]):
            return _No(f"too few of its {len(eligible)} hosts are free", lasting=False)
        if pool.max_nodes is not None and self._live[pool.name] + count > pool.max_nodes:
            return _No(f"max_nodes = {pool.max_nodes} leaves too few nodes", lasting=False)
        if self._nodes_left is not None and count > self._nodes_left:
            return _No("[limits] nodes leaves too few nodes", lasting=False)
        left = None if offer.nodes_left is None else offer.nodes_left - self._offer_used.get(offer, 0)
        if left is not None and count > left:
            until_at = self._now + ANSWER_TTL_S
            return _No(f"the provider has too few of {offer.instance_type} left", lasting=False, until_at=until_at)
        return None

    def _take_new(
        self,
        pool: PoolState,
        offer: Offer,
        demand: Demand,
        count: int,
        existing: Sequence[tuple[_Room, int]],
        job_id: JobId | None,
    ) -> tuple[Host, ...]:
        """Book the existing rooms and ``count`` new nodes; all hosts of the job."""
        eligible = self._hosts(pool, demand)
        new = [host for host in self._free[pool.name] if host in eligible][:count]
        rooms = [_Room(host, pool.cores, pool.gpus, whole=True, up=False) for host in new]
        for host in new:
            self._free[pool.name].remove(host)
        self._rooms[pool.name] += rooms
        self._live[pool.name] += count
        if self._nodes_left is not None:
            self._nodes_left -= count
        self._offer_used[offer] = self._offer_used.get(offer, 0) + count
        # a gang is one order, so that it is had whole or not at all; single nodes for small jobs share one
        key = (offer, job_id if count > 1 or pool.failing else None)
        hosts, jobs = self._bought.setdefault(key, ([], []))
        hosts += new
        if job_id is not None:
            jobs.append(job_id)
        chosen = list(existing)
        for room, slots in chosen:
            room.take(demand, slots)
        taken = sum(slots for _, slots in chosen)
        for room in rooms:
            slots = demand.slots_per_node() or min(room.slots(demand), demand.slots - taken)
            room.take(demand, slots)
            taken += slots
        return tuple(room.host for room, _ in chosen) + tuple(new)

    def _new_nodes(self, pool: PoolState, demand: Demand, existing: Sequence[tuple[_Room, int]]) -> int:
        if demand.nodes:
            return demand.nodes - len(existing)
        whole = _Room(Host(""), pool.cores, pool.gpus, whole=True, up=False)
        missing = demand.slots - sum(slots for _, slots in existing)
        return -(-missing // whole.slots(demand))

    def _candidates(self, pool: str, demand: Demand) -> Iterable[_Room]:
        if demand.constraint:
            eligible = self._hosts(self._pools[pool], demand)
            return [room for room in self._rooms[pool] if room.host in eligible]
        return self._rooms[pool]

    def _fit(self, rooms: Iterable[_Room], demand: Demand) -> list[tuple[_Room, int]] | None:
        chosen = self._partial(rooms, demand)
        complete = len(chosen) == demand.nodes if demand.nodes else sum(slots for _, slots in chosen) == demand.slots
        return chosen if complete else None

    @staticmethod
    def _partial(rooms: Iterable[_Room], demand: Demand) -> list[tuple[_Room, int]]:
        """As much of the demand as these rooms hold, first fit, with the slots on each."""
        chosen: list[tuple[_Room, int]] = []
        per_node, missing = demand.slots_per_node(), demand.slots
        for room in rooms:
            if (len(chosen) == demand.nodes) if demand.nodes else missing == 0:
                break
            slots = room.slots(demand)
            if per_node:
                slots = per_node if slots >= per_node else 0
            slots = min(slots, missing) if not per_node else slots
            if slots:
                chosen.append((room, slots))
                missing -= slots
        return chosen

    def _hosts(self, pool: PoolState, demand: Demand) -> frozenset[Host]:
        """The pool's declared hosts that satisfy the demand's own constraint."""
        key = (pool.name, demand.constraint)
        found = self._eligible.get(key)
        if found is None:
            constraint = json.loads(demand.constraint) if demand.constraint else {}
            found = frozenset(
                host
                for host, rank in pool.declared.items()
                if not constraint or jobspec.matches(constraint, host=host, rank=rank, properties=pool.properties)
            )
            self._eligible[key] = found
        return found


def describe(verdict: Verdict, now: float) -> str:
    """The verdict in one line for people."""
    text = f"{verdict.kind}: {verdict.reason}"
    if verdict.pool:
        text += f" (pool {verdict.pool})"
    if verdict.usd_per_hour is not None:
        text += f", ${verdict.usd_per_hour:g} an hour in all"
    if verdict.until_at is not None and verdict.until_at > now:
        text += f", for another {durations.show(verdict.until_at - now)}"
    return text
