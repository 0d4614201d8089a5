"""One plan in the making: places for jobs on nodes that are there, on their way, or to be bought. Pure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from fluxburst import hostlist
from fluxburst.budget import cost_usd
from fluxburst.fit import (
    ASKING,
    TRIED_AGAIN,
    Answers,
    Fit,
    No,
    closed_pool,
    fit_of,
    is_asking,
    over_cap,
    rounded_up,
    slots_on,
)
from fluxburst.jobid import f58
from fluxburst.model import Account, Demand, Host, JobId, Refusal, Shrink, Verdict, VerdictKind
from fluxburst.moment import (
    NOBODY,
    Extension,
    Moment,
    Order,
    PoolState,
    Purchase,
    Quote,
    Request,
    Shape,
)
from fluxburst.offers import ANSWER_TTL_S, Stock, asked_as, stock_of
from fluxburst.rooms import LOOKS, PoolRooms, Room, Seat, Take, seat_of

LARGE = 5_000
"""Where there are more nodes than this, each look at all of them takes too long to be repeated."""

_INF = float("inf")
_ON_THE_WAY = "nodes on their way serve it"


@dataclass(slots=True)
class Option:
    """A place for the next job, or jobs, of a shape. ``usd`` is what the first of them costs; None is not known.

    ``rooms`` are there or bought already in this plan; ``parts`` are new nodes by their offer. ``later`` means that the
    rooms are busy until ``start_at``.
    """

    pool: PoolRooms
    fit: Fit
    rooms: list[tuple[Room, Take]]
    start_at: float
    usd: float | None
    parts: Sequence[tuple[Quote, int]] = ()
    jobs: int = 1
    later: bool = False


Place = tuple[Shape, tuple[tuple[str, Room], ...]]
"""The rooms in which jobs of a shape have their parts, each with its pool's name."""


@dataclass(slots=True)
class Outcome:
    """What one attempt at packing came to. ``decided`` has the jobs of one verdict, and the place that each has."""

    decided: list[tuple[Sequence[JobId], Verdict, Place | None]] = field(default_factory=list)
    placed: bool = False
    """Some job has a place."""
    usd: float = 0.0
    homeless: int = 0
    """Jobs without a place."""
    orders: int = 0
    scarce: bool = False
    """Some job lacks what others have."""

    def decide(self, jobs: Sequence[JobId], verdict: Verdict, place: Place | None = None) -> None:
        self.decided.append((jobs, verdict, place))
        self.placed = self.placed or place is not None

    def score(self) -> tuple[int, float, int]:
        """The less, the better."""
        return self.homeless, round(self.usd, 9), self.orders


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs of one shape in the scheduler's order, the first of which comes at ``order``.

    ``ready`` may have nodes bought for them; of ``early`` ones ``burst.wait`` has not passed yet.
    """

    shape: Shape
    order: Order
    ready: list[JobId] = field(default_factory=list)
    early: list[Request] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to pack: in which order, and how new nodes are chosen.

    ``dense`` judges one by all that it could hold, else it is judged by what a batch puts on it. ``prefer`` is a pool
    that comes before all others. ``apart`` lets gangs have new nodes rather than what others of this plan leave free.
    ``split`` lets a gang take the last nodes of one offer and the rest of another, in two orders.
    """

    batches: Sequence[Batch]
    dense: bool = False
    prefer: str = ""
    apart: bool = False
    split: bool = False


Fits = list[tuple[PoolRooms, Fit]]
Seated = tuple[Fits, Fits, dict[str, No]]
"""The pools that a shape fits, those in which it may be spread, and why it does not fit the others."""


@dataclass(frozen=True, slots=True, eq=False)
class Kin:
    """What shapes have in common that fail alike. Equal ones are one object, which is quickly looked up."""

    shape: Shape


_kin = lru_cache(maxsize=4096)(Kin)


@dataclass(frozen=True, slots=True)
class Facts:
    """What one plan knows of a shape. Shapes of one ``alike`` fail alike, however long they run."""

    shape: Shape
    asked: Demand
    duration_s: float
    fits: Fits
    spreads: Fits
    unfit: dict[str, No]
    alike: Kin
    limit: tuple[float, str] | None
    """The most that one job may cost, and who says so."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Jobs that are alike, and take from ``least_s`` to ``most_s``, have no place in this attempt."""

    least_s: float
    most_s: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Blocked:
    """Jobs of a kin, those that take ``least_s`` or longer, that lacked hosts, or what a cap leaves, in every pool.

    ``lacked`` tells by pool what the cheapest node would have reserved, the soonest join, and the answers that say so.
    As long as these stand, few numbers tell whether that is still so.
    """

    least_s: float
    lacked: dict[str, tuple[float | None, float, object]]


class Work:
    """One plan in the making."""

    def __init__(
        self,
        moment: Moment,
        pools: Mapping[str, PoolRooms],
        facts: dict[int, Facts],
        blocked: dict[Kin, Blocked],
    ) -> None:
        self.moment = moment
        self.now = moment.now
        self.rules = moment.rules
        self.pools = pools
        self.asks: set[tuple[str, Demand]] = set()
        self.watches: set[tuple[str, Demand]] = set()
        """The questions to whose answers somebody waits for another one."""
        self.untils: set[float] = set()
        self._facts = facts
        self._blocked = blocked
        self._seats: dict[tuple[Seat, tuple[str, ...]], Seated] = {}
        self._answers: dict[int, Answers] = {}
        self._estimates: dict[int, tuple[float, float | None]] = {}
        self._estimating = self._on_old = False
        self._hopeless: dict[object, dict[str, No]] = {}
        """Why there is no place for what is alike, as long as nothing was given away in this plan."""
        self._kept = {
            name: pool.exposure_usd(self.now, self._price) for name, pool in pools.items() if moment.draft.capped(name)
        }
        """What is kept back for what Flux's choice of nodes may cost those that were placed before."""
        for name, usd in self._kept.items():
            moment.draft.keep(name, usd)
        self._lefts: dict[tuple[Account, str], float] = {}
        """What the caps leave to an account in a pool before anybody gets anything, in dollars."""
        self._mark = moment.draft.mark()
        self._way = Way(())
        self.scanty = False
        """Some offer has nodes left, and too few of them for a gang."""
        self._reset()

    def _reset(self) -> None:
        self._orders: dict[tuple[object, ...], tuple[Quote, list[Room], list[JobId]]] = {}
        self._opened: dict[str, list[Room]] = {}
        self._longer: dict[tuple[Host, float], Extension] = {}
        self._untils: dict[Room, float] = {}
        """Until when rooms were reserved that are needed for longer now."""
        self._sold: dict[Stock, int] = {}
        self._barred: dict[tuple[Host, object], float] = {}
        """The rooms that cannot be paid for any longer on an account, by jobs that take so long, or longer."""
        self._bought_until: dict[Host, float] = {}
        self._failed: dict[Kin, Failure] = {}
        self._shortest: dict[Kin, Facts] = {}
        self.kept = dict(self._kept)
        """What is kept back now, by pool, in dollars; only where a cap holds."""
        self._reserved: tuple[frozenset[str], float, JobId, int | None] | None = None

    def facts(self, shape: Shape) -> Facts:
        found = self._facts.get(id(shape))
        if found is not None:
            return found
        demand, seat = shape.demand, seat_of(shape.demand)
        fits, spreads, unfit = self._seated(seat, shape)
        limits = [(shape.max_usd, "burst.max_usd"), (self.rules.usd_per_job, "[limits] usd_per_job")]
        limit = min(((usd, who) for usd, who in limits if usd is not None), default=None)
        timed = limit is not None or self.rules.max_usd_per_hour_saved is not None
        untimed = demand if timed else dataclasses.replace(demand, duration_s=0.0)
        alike = _kin(dataclasses.replace(shape, demand=untimed))
        duration_s = demand.duration_s or self.rules.assume_duration_s
        found = Facts(shape, asked_as(demand), duration_s, fits, spreads, unfit, alike, limit)
        self._facts[id(shape)] = found
        return found

    def _seated(self, seat: Seat, shape: Shape) -> Seated:
        """How a shape sits on the nodes of its pools; the same for all that differ in times and money only."""
        found = self._seats.get((seat, shape.pools))
        if found is not None:
            return found
        fits: Fits = []
        unfit: dict[str, No] = {}
        for name in shape.pools:
            pool = self.pools[name]
            fit = pool.fit(shape.demand, fit_of)
            if isinstance(fit, No):
                unfit[name] = fit
            else:
                fits.append((pool, fit))
        spreads = [(pool, fit.spread) for pool, fit in fits if fit.spread is not None]
        self._seats[seat, shape.pools] = fits, spreads, unfit
        return fits, spreads, unfit

    # The way through the jobs

    def attempt(self, way: Way, *, reserve: bool = False) -> Outcome:
        """Give each batch its places, in order.

        With ``reserve`` the first job that has to wait for what others have keeps it from those after it.
        """
        self._way = way
        outcome = Outcome()
        for batch in way.batches:
            if batch.ready:
                # each node gets a slice: the garbage collector soon forgets tuples of numbers, lists it goes through
                self._serve(batch.shape, tuple(batch.ready), outcome, reserve)
            for request in batch.early:
                self._serve_early(batch.shape, request, outcome)
        outcome.orders = len(self._orders)
        return outcome

    def is_large(self) -> bool:
        """Whether each look at all nodes takes too long to be repeated."""
        return sum(len(pool.rooms) for pool in self.pools.values()) > LARGE

    def has_bought(self) -> bool:
        return bool(self._opened)

    def undo(self, outcome: Outcome) -> None:
        """Take an attempt back."""
        for jobs, _, place in outcome.decided:
            for name, room in place[1] if place is not None else ():
                if room.node is not None:
                    self.pools[name].unbook(room, jobs)
        for room, until in self._untils.items():
            room.until = until
        for name, opened in self._opened.items():
            self.pools[name].close(opened)
        self.moment.draft.rollback(self._mark)
        self._reset()

    def _serve(self, shape: Shape, jobs: Sequence[JobId], outcome: Outcome, reserve: bool) -> None:
        facts, done = self.facts(shape), 0
        while done < len(jobs):
            verdict = self._failed_before(facts)
            if verdict is None:
                # who may have something kept for him needs to know how much he lacks by now
                known = None if reserve and self._reserved is None else self._known_no(facts, outcome)
                found = known or self.option(facts, len(jobs) - done)
                if isinstance(found, Option):
                    done += self._take(facts, jobs, done, found, outcome)
                    continue
                verdict = self._refusal(facts, found)
                outcome.scarce = outcome.scarce or any(no.scarce or no.money for no in found.values())
                if reserve and self._reserved is None and self._reserve(facts, jobs[done], found, verdict, outcome):
                    done += 1
                    continue
                self._fails(facts, found, verdict)
            rest = jobs[done:]
            outcome.decide(rest, verdict)
            outcome.homeless += len(rest)
            return

    def _failed_before(self, facts: Facts) -> Verdict | None:
        """The verdict of an earlier job of this attempt, where this one has no place for the same reason."""
        failure = self._failed.get(facts.alike)
        if failure is None or not failure.least_s <= facts.duration_s <= failure.most_s:
            return None
        return failure.verdict

    def _fails(self, facts: Facts, nos: Mapping[str, No], verdict: Verdict) -> None:
        """Remember that there is no place for a job.

        Where time or money is in its way, those that take longer have none either. Where not even the shortest that is
        alike has one, none of them has, which spares a look at each: a queue that waits for others is mostly alike.
        """
        duration_s = facts.duration_s
        if any(_names_usd(no) for no in nos.values()):
            self._failed[facts.alike] = Failure(duration_s, duration_s, verdict)
            return
        least_s = duration_s if self._reserved is not None or _is_money(nos) else 0.0
        if least_s:
            shortest = self._shortest_of(facts.alike)
            if shortest.duration_s < least_s and not isinstance(self.option(shortest, 1), Option):
                least_s = shortest.duration_s
        self._failed[facts.alike] = Failure(least_s, _INF, verdict)

    def _shortest_of(self, kin: Kin) -> Facts:
        if not self._shortest:
            for batch in self._way.batches:
                facts = self.facts(batch.shape)
                known = self._shortest.get(facts.alike)
                if known is None or facts.duration_s < known.duration_s:
                    self._shortest[facts.alike] = facts
        return self._shortest[kin]

    def _known_no(self, facts: Facts, outcome: Outcome) -> dict[str, No] | None:
        """What :meth:`estimate` has found out, if that still holds.

        What has been given to others since only makes it worse, unless it leaves a part of a new node.
        """
        known = self._nos(facts)
        if known is None or is_asking(known) or self._way.apart or self._way.split:
            return None
        return None if outcome.placed and self._on_fleet(facts) else known

    def _nos(self, facts: Facts) -> dict[str, No] | None:
        """Why there was no place at the beginning, where :meth:`estimate` found none for this or what is alike.

        What a cap in dollars forbids it may allow to a shorter job.
        """
        return self._hopeless.get(facts.alike) or self._hopeless.get((facts.alike, facts.duration_s))

    def forbidden(self, shape: Shape, before: Verdict | None = None) -> Verdict | None:
        """The verdict of a shape that caps in dollars forbid before anything is given to anybody.

        None where something else is in its way, or nothing. ``before`` is what was said last, in those words.
        """
        facts = self.facts(shape)
        if before is not None and self._still_forbidden(facts, before):
            return before
        if self.estimate(shape)[0] < _INF:
            return None
        nos = self._nos(facts)
        if nos is None or not _is_money(nos) or is_asking(nos) or any(no.scarce for no in nos.values()):
            return None
        return self._refusal(facts, nos)

    def _still_forbidden(self, facts: Facts, before: Verdict) -> bool:
        """Whether dollars are still what is lacking in every pool, as :meth:`_still_blocked` would find out."""
        blocked = self._blocked.get(facts.alike)
        if blocked is None or facts.duration_s < blocked.least_s or not blocked.lacked:
            return False
        if before.until_at is not None and before.until_at <= self.now:
            return False
        if self._may_have_room(facts):
            return False
        market, account = self.moment.market, facts.shape.account
        for pool, fit in facts.fits:
            state = pool.state
            each, _, answers = blocked.lacked.get(state.name, (None, 0.0, None))
            if each is None or state.closed:
                return False
            left = self._lefts.get((account, state.name))
            if left is None:
                left = self._lefts[account, state.name] = self.moment.draft.left_usd(account, state.name)
            enough = left >= each * fit.count - 1e-6
            if enough or answers is not market.quotes(state.provider, facts.asked, old=True):
                return False
        if before.until_at is not None:
            self.untils.add(before.until_at)
        return True

    def _serve_early(self, shape: Shape, request: Request, outcome: Outcome) -> None:
        """A job whose ``burst.wait`` has not passed takes what is there, and buys nothing."""
        facts = self.facts(shape)
        while (option := self._on_fleet(facts)) is not None:
            if self._take(facts, [request.job_id], 0, option, outcome):
                return
        verdict = Verdict(
            VerdictKind.WAIT,
            "burst.wait has not passed yet",
            until_at=request.not_before_at,
            fix="nothing; a smaller burst.wait lets it burst earlier",
        )
        self.untils.add(request.not_before_at)
        outcome.decide([request.job_id], verdict)

    # What could serve the next job of a shape

    def option(self, facts: Facts, jobs: int) -> Option | dict[str, No]:
        """The best place for the next of so many jobs, or each pool's reason why there is none."""
        nos = self._still_blocked(facts)
        if nos is not None:
            return nos
        found = self._option(facts, jobs)
        if not isinstance(found, Option):
            self._remember(facts, found)
        return found

    def _still_blocked(self, facts: Facts) -> dict[str, No] | None:
        """Each pool's reason, where there was no place in an earlier plan and what was lacking then still is.

        A queue that waits for hosts or money is mostly this: it is not worth working out again what each offer costs.
        """
        blocked = self._blocked.get(facts.alike)
        if blocked is None or facts.duration_s < blocked.least_s or self._may_have_room(facts):
            return None
        nos = dict(facts.unfit)
        for pool, fit in facts.fits:
            name = pool.state.name
            if pool.state.closed:
                nos[name] = closed_pool(pool.state)
                continue
            each, join_s, answers = blocked.lacked.get(name, (None, 0.0, ()))
            no, _ = self._lacks(pool, fit, facts, fit.count, each, self.now + join_s + facts.duration_s)
            if no is None or no.lasting:
                return None
            old = self._estimating or no.money  # as for who is told so the first time
            if answers is not self.moment.market.quotes(pool.state.provider, facts.asked, old=old):
                return None
            nos[name] = no
        return nos

    def _remember(self, facts: Facts, nos: Mapping[str, No]) -> None:
        """Keep what :meth:`_still_blocked` needs, where that will do."""
        self._blocked.pop(facts.alike, None)
        if self._may_have_room(facts):
            return
        lacked: dict[str, tuple[float | None, float, object]] = {}
        for pool, fit in facts.fits:
            name = pool.state.name
            if pool.state.closed:
                continue
            if not nos[name].hosts and nos[name].cap is None:
                return
            answers = self.moment.market.quotes(pool.state.provider, facts.asked, old=True)
            quotes, _ = self._told(pool.state, facts, answers)
            if not quotes:
                return
            costs = [self._reserved_usd(pool.state, quote.offer.usd_per_node_hour, facts) for quote in quotes]
            each = None if None in costs else min(cost for cost in costs if cost is not None)
            join_s = min(quote.join_s for quote in quotes)
            no, _ = self._lacks(pool, fit, facts, fit.count, each, self.now + join_s + facts.duration_s)
            if no is None or no.lasting:
                return
            lacked[name] = each, join_s, answers
        self._blocked[facts.alike] = Blocked(facts.duration_s, lacked)

    def _may_have_room(self, facts: Facts) -> bool:
        """Whether a part of some job may have room on what is there, or was bought in this plan."""
        for pool, fit in facts.fits:
            if pool.may_hold(fit.take):
                return True
        return any(pool.may_hold(fit.take) for pool, fit in facts.spreads)

    def _option(self, facts: Facts, jobs: int) -> Option | dict[str, No]:
        there = self._on_fleet(facts)
        apart = self._way.apart and there is not None and len(there.rooms) > 1
        if there is not None and not (apart and all(room.node is None for room, _ in there.rooms)):
            return there
        new = self._new(facts, jobs)
        if there is not None:
            return new if isinstance(new, Option) and new.pool is there.pool else there
        if not isinstance(new, Option):
            return new
        value = self.rules.max_usd_per_hour_saved
        later = self._later(facts, new.start_at if value is None else _INF)
        if later is None or value is None:
            return later or new
        return min(later, new, key=lambda option: self._score(option, value))

    def _score(self, option: Option, usd_per_hour: float) -> float:
        shared = option.fit.sharing if option.parts and option.fit.count == 1 else 1
        return (option.usd or 0.0) / min(shared, option.jobs) + usd_per_hour * (option.start_at - self.now) / 3600

    def _free(self, facts: Facts, pool: PoolRooms, fit: Fit) -> Iterable[Room]:
        """The pool's rooms that have enough free for a job, and that it may use."""
        rooms = pool.candidates(fit.take, fit.hosts)
        return rooms if facts.shape.demand.spot is None and not self._barred else self._suited(facts, rooms)

    def _suited(self, facts: Facts, rooms: Iterable[Room]) -> Iterator[Room]:
        spot, account = facts.shape.demand.spot, facts.shape.account
        for room in rooms:
            if spot in (None, room.spot) and facts.duration_s < self._barred.get((room.host, account), _INF):
                yield room

    def _on_fleet(self, facts: Facts) -> Option | None:
        """Room on nodes that are there, coming, or bought in this plan already: the earliest, then the cheapest."""
        return self._room(facts, facts.fits) or self._room(facts, facts.spreads)

    def _room(self, facts: Facts, fits: Iterable[tuple[PoolRooms, Fit]]) -> Option | None:
        best: tuple[float, float] | None = None
        option: Option | None = None
        for pool, fit in fits:
            if not pool.may_hold(fit.take) or (not fit.slots and fit.count > pool.spare):
                continue
            least = (max(self.now, pool.soonest_at), 0.0)
            if best is not None and best <= least:
                continue
            rooms = self._free(facts, pool, fit)
            if fit.count == 1:
                for looked, room in enumerate(rooms):
                    if looked >= LOOKS:
                        break
                    start_at = max(self.now, room.at)
                    longer_s = max(0.0, start_at + facts.duration_s - max(room.end, start_at))
                    if best is None or (start_at, longer_s) < best:
                        usd = _usd(self._price(room.price), longer_s)
                        found = Option(pool, fit, [(room, fit.take)], start_at, usd)
                        if self._may(facts, found):
                            best, option = (start_at, longer_s), found
                    if best is not None and best <= least:
                        break
                continue
            near = _first(rooms, (fit.slots or fit.count) + LOOKS)
            near.sort(key=lambda room: (max(self.now, room.at), room.rank))
            chosen, missing = fit.partial(near)
            if not missing:
                start_at = max(self.now, *(room.at for room, _ in chosen))
                if best is None or (start_at, 0.0) < best:
                    found = Option(pool, fit, chosen, start_at, self._longer_usd(chosen, start_at + facts.duration_s))
                    if self._may(facts, found):
                        best, option = (start_at, 0.0), found
        return option

    def _later(self, facts: Facts, deadline_at: float) -> Option | None:
        """Nodes that are busy now and are expected to be free before anything else could serve."""
        option: Option | None = None
        for pool, fit in facts.fits:
            if fit.slots:
                continue  # spread as the scheduler likes; that is not to be foreseen
            busy = list(self._suited(facts, pool.busy(fit.take, fit.hosts, deadline_at)))
            if not busy:
                continue
            ready = [room for room in _first(self._free(facts, pool, fit), fit.count) if room.at <= deadline_at]
            if len(ready) + len(busy) < fit.count:
                continue
            rooms = [*ready, *busy][: fit.count]
            start_at = max(self.now, *(room.free_at(fit.take) for room in rooms))
            chosen = [(room, fit.take) for room in rooms]
            usd = self._longer_usd(chosen, start_at + facts.duration_s)
            found = Option(pool, fit, chosen, start_at, usd, later=True)
            if (option is None or start_at < option.start_at) and self._may(facts, found):
                option = found
        return option

    def _new(self, facts: Facts, jobs: int, *, beside: bool = True) -> Option | dict[str, No]:
        """The best offer to buy on, or each pool's reason why nothing is bought there.

        ``beside`` lets a gang have what room there is, and only the rest bought.
        """
        nos = dict(facts.unfit)
        best: tuple[object, ...] | None = None
        option: Option | None = None
        for pool, fit in facts.fits:
            name = pool.state.name
            if pool.state.closed:
                nos[name] = closed_pool(pool.state)
                continue
            quotes, no = self._offers(pool.state, facts)
            if no is not None and no.reason == ASKING:
                forbidden = self._unaffordable(pool, fit, facts, beside=beside) if self.rules.capped else None
                if forbidden is None:
                    self.ask(pool.state, facts)
                no = forbidden or no
            if no is not None:
                nos[name] = no
            if best is not None and fit.count == 1 and self._is_dearer(pool, fit, quotes, facts, jobs, best):
                continue
            for number, quote in enumerate(quotes):
                found = self._buy(pool, fit, quotes[number:], facts, jobs, beside=beside)
                if isinstance(found, No):
                    if no is None or no.lasting:
                        nos[name] = no = found
                    if fit.count == 1 and not no.lasting and not pool.orderable_count(fit.hosts):
                        break  # no other offer has a host for its node, either
                    continue
                price = quote.offer.usd_per_node_hour
                cost = (price or 0.0) / pool.state.cores if self._way.dense else (found.usd or 0.0) / found.jobs
                value = self.rules.max_usd_per_hour_saved
                if value is not None:
                    cost = self._score(found, value)
                score = (quote.rank, self._way.prefer not in ("", name), price is None, cost, quote.join_s)
                if best is None or score < best:
                    best, option = score, found
                break
        return option or nos

    def _is_dearer(
        self, pool: PoolRooms, fit: Fit, quotes: Sequence[Quote], facts: Facts, jobs: int, best: tuple[object, ...]
    ) -> bool:
        """Whether not even a pool's cheapest offer, with nodes that were up at once, could be the best."""
        price = quotes[0].offer.usd_per_node_hour if quotes else None
        if price is None or quotes[-1].rank or self._way.prefer or self.rules.max_usd_per_hour_saved is not None:
            return False
        nodes = -(-jobs // fit.sharing)
        least = price / pool.state.cores if self._way.dense else price * nodes / jobs * facts.duration_s / 3600
        return (0, False, False, least) > best[:4]

    def _offers(self, state: PoolState, facts: Facts) -> tuple[list[Quote], No | None]:
        """The pool's quotes in order of preference, and the provider's no, where it said that."""
        market = self.moment.market
        answers = market.quotes(state.provider, facts.asked)
        if answers is None and self._estimating:
            answers = market.quotes(state.provider, facts.asked, old=True)
            self._on_old = self._on_old or answers is not None
        return self._told(state, facts, answers)

    def _told(
        self, state: PoolState, facts: Facts, answers: Sequence[Quote | Refusal] | None
    ) -> tuple[list[Quote], No | None]:
        if answers is None:
            return [], No(ASKING, lasting=False, fix="nothing; the answers are a moment away")
        known = self._answers.get(id(answers))
        if known is None:
            known = self._answers[id(answers)] = Answers(answers)
        return known.of(state, facts.shape.demand.spot)

    def ask(self, state: PoolState, facts: Facts) -> None:
        """Let the pool's provider be asked for offers."""
        self.asks.add((state.provider, facts.asked))

    def _unaffordable(self, pool: PoolRooms, fit: Fit, facts: Facts, *, beside: bool) -> No | None:
        """Why a cap in dollars forbids whatever the provider offered last: then it need not be asked again for that."""
        old = self.moment.market.quotes(pool.state.provider, facts.asked, old=True)
        quotes, _ = self._told(pool.state, facts, old)
        first: No | None = None
        for number in range(len(quotes)):
            found = self._buy(pool, fit, quotes[number:], facts, 1, beside=beside)
            if not isinstance(found, No) or found.cap is None or found.cap.unit != "usd":
                return None
            first = first or found
        return first

    def _buy(
        self, pool: PoolRooms, fit: Fit, quotes: Sequence[Quote], facts: Facts, jobs: int, *, beside: bool
    ) -> Option | No:
        """New nodes of the first of these offers for the next of so many jobs, or what stops that."""
        quote, count = quotes[0], fit.count
        rooms: list[tuple[Room, Take]] = []
        if quote.closed:
            return No(quote.closed, lasting=False, until_at=quote.closed_until_at, fix=TRIED_AGAIN)
        if beside and count > 1 and pool.rooms:
            near = _first(self._free(facts, pool, fit), count)
            rooms, count = fit.partial(room for room in near if room.at <= self.now + quote.join_s)
        left = self._left(quote)
        if self._way.apart and not fit.slots:
            bought = min(pool.orderable_count(fit.hosts), fit.count if left is None else left)
            rooms = rooms[: max(0, fit.count - bought)]
            count = fit.count - len(rooms)
        if not count:  # other nodes than those that are the earliest, which were too dear
            start_at = max(self.now, *(room.at for room, _ in rooms))
            end_at = start_at + facts.duration_s
            usd = self._longer_usd(rooms, end_at)
            no = self._kept_for_another(pool, end_at) or self._too_dear(facts, usd)
            return no or Option(pool, fit, rooms, start_at, usd)
        parts, join_s = [(quote, count)], quote.join_s
        if left is not None and left < count:
            self.scanty = self.scanty or (left > 0 and count > 1)
            others = quotes[1:] if left and self._way.split and not pool.state.blocks else ()
            rest = next((other for other in others if self._has(other, count - left)), None)
            if rest is None:
                # what we forbid ourselves comes first: then the provider need not be asked again and again
                reserved = self._reserved_usd(pool.state, quote.offer.usd_per_node_hour, facts)
                no, _ = self._lacks(pool, fit, facts, count, reserved, self.now + join_s + facts.duration_s)
                return no or No(
                    f"the provider has too few of {quote.offer.instance_type} left",
                    lasting=False,
                    until_at=self.now + ANSWER_TTL_S,
                    fix="nothing; the provider is asked again then; or fewer nodes",
                    scarce=count if count <= (quote.offer.nodes_left or 0) else 0,
                    needed=count,
                    left=left,
                    stock=True,
                )
            parts, join_s = [(quote, left), (rest, count - left)], max(join_s, rest.join_s)
        start_at = self.now + join_s
        end_at = start_at + facts.duration_s
        usd = self._longer_usd(rooms, end_at) if rooms else 0.0
        dearest = self._price(quote.offer.usd_per_node_hour)
        for part, nodes in parts:
            price = self._price(part.offer.usd_per_node_hour)
            usd = _sum((usd, _usd(price, nodes * (end_at - self.now))))
            dearest = None if price is None or dearest is None else max(price, dearest)
        no = self._too_dear(facts, usd)
        if no is not None:
            return no
        reserved = self._reserved_usd(pool.state, dearest, facts)
        no, most = self._lacks(pool, fit, facts, count, reserved, end_at)
        no = no or self._kept_for_another(pool, end_at, most - count)
        no = no or (None if rooms else self._exposed(pool, fit, parts, facts, end_at, 1))
        if no is not None:
            return no
        serves = 1
        if not rooms and len(parts) == 1:
            most = most if left is None else min(most, left)
            if pool.state.blocks and (fit.count > 1 or pool.state.failing):
                most = count  # one order each, and so a block each
            serves = min(jobs, most // count) if fit.count > 1 else min(jobs, most * fit.sharing)
            needed = count * serves if fit.count > 1 else -(-serves // fit.sharing)
            if serves > 1 and self._exposed(pool, fit, [(quote, needed)], facts, end_at, serves) is not None:
                serves, needed = 1, count
            usd = None if usd is None else usd / count * needed
            parts = [(quote, needed)]
        return Option(pool, fit, rooms, start_at, usd, parts, serves)

    def _lacks(
        self, pool: PoolRooms, fit: Fit, facts: Facts, count: int, usd_per_node: float | None, end_at: float
    ) -> tuple[No | None, int]:
        """Whether caps or too few hosts forbid so many new nodes, and how many there may be."""
        allowed, cap = self.moment.draft.allowed(facts.shape.account, pool.state.name, usd_per_node)
        over = over_cap(cap, count, allowed, usd_per_node) if allowed < count else None
        room = pool.orderable_count(fit.hosts)
        if room >= count or (over is not None and over.lasting):
            return over, min(allowed, room)
        kept = self._kept_for_another(pool, end_at, room - count)
        if kept is not None:
            kept.hosts = True
            return kept, min(allowed, room)
        declared = len(pool.state.declared) if fit.hosts is None else len(fit.hosts)
        what = "no large enough block of its" if pool.state.blocks else "too few of its"
        no = No(
            f"{what} {declared} hosts {'is' if pool.state.blocks else 'are'} free",
            lasting=False,
            scarce=count - room,
            fix=f"wait for other jobs to end, or declare more hosts in [pool.{pool.state.name}] hosts",
            needed=count,
            left=room,
            hosts=True,
        )
        return no, min(allowed, room)

    def _left(self, quote: Quote) -> int | None:
        """How many nodes of an offer this plan may still buy; None where the provider sets no limit."""
        left = quote.offer.nodes_left
        return None if left is None else max(0, left - self._sold.get(stock_of(quote.offer), 0))

    def _has(self, quote: Quote, nodes: int) -> bool:
        left = self._left(quote)
        return not quote.closed and (left is None or left >= nodes)

    def _reserved_usd(self, pool: PoolState, usd_per_node_hour: float | None, facts: Facts) -> float | None:
        return self._bill(pool, usd_per_node_hour, self.now, self._until(pool, facts))

    def _until(self, pool: PoolState, facts: Facts) -> float:
        """Until when a node that is bought now may live for a job."""
        return self.now + pool.boot_s + max(facts.duration_s, pool.least_s) + pool.tail_s

    def _kept_for_another(self, pool: PoolRooms, end_at: float, leaves: float = _INF) -> No | None:
        """Whether a job would delay the one that comes first: it ends too late, and leaves too few nodes to buy.

        ``leaves`` is how many could still be bought after it. What is free on nodes was not booked for that job, and so
        is not in its way, unless all pools' nodes are.
        """
        if self._reserved is None:
            return None
        pools, until_at, job, needs = self._reserved
        if pool.state.name not in pools or end_at <= until_at or (needs is not None and leaves >= needs):
            return None
        return No(
            f"{f58(job)} comes first and waits for its nodes; this job would not end in time",
            lasting=False,
            until_at=until_at,
            fix="a time limit that ends before that job can start",
        )

    def _may(self, facts: Facts, option: Option) -> bool:
        """Whether a job may use what is there: what it pays for it, and whom it would delay."""
        if self._kept_for_another(option.pool, option.start_at + facts.duration_s) is not None:
            return False
        return facts.limit is None or self._too_dear(facts, option.usd) is None

    def _too_dear(self, facts: Facts, usd: float | None) -> No | None:
        if facts.limit is None:
            return None
        most, who = facts.limit
        sets = f"and the job sets {who}" if who.startswith("burst.") else f"and {who} is set"
        if usd is None:
            fix = "a price in [[price]] or [pool.NAME], or no such limit"
            return No(f"has no known price, {sets}", lasting=True, fix=fix)
        if not facts.shape.demand.duration_s:
            return No(f"the job has no time limit, {sets}; submit it with -t", lasting=True, fix="submit it with -t")
        if usd > most:
            return No(
                f"would cost ${usd:.2f}, more than {who} = {most:g}",
                lasting=True,
                fix=f"a limit of ${rounded_up(usd):.2f}, fewer nodes, or a shorter time limit",
            )
        return None

    def _longer_usd(self, chosen: Sequence[tuple[Room, Take]], end_at: float) -> float | None:
        return _sum(_usd(self._price(room.price), end_at - max(room.end, self.now)) for room, _ in chosen)

    def estimate(self, shape: Shape) -> tuple[float, float | None]:
        """When one more job of this shape would start if it burst, and for how much; infinite if it cannot.

        Answers that are too old to be bought on will do for that: who stays at home need not ask for others.
        """
        found = self._estimates.get(id(shape))
        if found is None:
            facts, found = self.facts(shape), (_INF, None)
            if self._nos(facts) is None:
                self._estimating, self._on_old = True, False
                option = self.option(facts, 1)
                self._estimating = False
                if isinstance(option, Option):
                    found = option.start_at, option.usd
                elif not self._on_old:
                    self._hopeless[(facts.alike, facts.duration_s) if _is_money(option) else facts.alike] = option
            self._estimates[id(shape)] = found
        return found

    def worth(self, home_at: float, start_at: float, usd: float | None) -> bool:
        """Whether starting then, for so much, is worth not waiting for home (docs/decisions/0006-deciding.md)."""
        saved_s = home_at - start_at
        if saved_s <= 0 or home_at - self.now < self.rules.min_wait_s:
            return False
        value = self.rules.max_usd_per_hour_saved
        return value is None or (usd or 0.0) <= value * saved_s / 3600

    # Taking it

    def _take(self, facts: Facts, jobs: Sequence[JobId], done: int, option: Option, outcome: Outcome) -> int:
        """Book an option for as many of the jobs from ``done`` on as it serves, and say how many these are."""
        if option.parts:
            return self._take_new(facts, jobs, done, option, outcome)
        first = jobs[done]
        end_at, name = option.start_at + facts.duration_s, option.pool.state.name
        place = facts.shape, tuple([(name, room) for room, _ in option.rooms])
        if option.later:
            for room, take in option.rooms:
                option.pool.book_later(room, first, take.over(option.start_at, end_at))
            hosts = tuple(room.host for room, _ in option.rooms)
            busy = "is" if len(hosts) == 1 else "are"
            verdict = Verdict(
                VerdictKind.WAIT,
                f"{hostlist.fold(hosts)} {busy} expected to be free before a new node could be up",
                pool=name,
                hosts=hosts,
                until_at=option.start_at,
                fix="nothing; it starts there, or at home if that comes first",
            )
            outcome.decide((first,), verdict, place)
            self.untils.add(option.start_at)
            return 1
        mine: Sequence[JobId] = (first,)
        if option.fit.count == 1:
            room, take = option.rooms[0]
            held = 1 if take.whole else min(len(jobs) - done, slots_on(take, room))
            mine = jobs[done : done + held]
        if not self._lengthen(facts, option, len(mine)):
            return 0
        for room, take in option.rooms:
            option.pool.book(room, mine, take.over(option.start_at, end_at))
        self._keep(option.pool)
        outcome.decide(mine, served_by(name, [room for room, _ in option.rooms], self.now), place)
        outcome.usd += option.usd or 0.0
        return len(mine)

    def _take_new(self, facts: Facts, jobs: Sequence[JobId], done: int, option: Option, outcome: Outcome) -> int:
        pool, fit, shape, name = option.pool, option.fit, facts.shape, option.pool.state.name
        end_at = option.start_at + facts.duration_s
        if option.rooms and not self._lengthen(facts, option, 1):
            return 0
        opened = self._open(facts, pool, fit, option)
        outcome.usd += option.usd or 0.0
        quote = option.parts[0][0]
        price = quote.offer.usd_per_node_hour
        position = done
        if fit.count == 1:
            take, reason = fit.take.over(option.start_at, end_at), _buying(option.parts, len(opened))
            for room in opened:
                end = min(position + fit.sharing, done + option.jobs)
                mine = jobs[position:end]
                pool.book(room, mine, take)
                place = shape, ((name, room),)
                hosts: tuple[Host, ...] = (room.host,)
                verdict = Verdict(VerdictKind.BURST, reason, pool=name, hosts=hosts, usd_per_hour=price)
                outcome.decide(mine[:1], verdict, place)
                if len(mine) > 1:
                    verdict = Verdict(VerdictKind.COMING, _ON_THE_WAY, pool=name, hosts=hosts)
                    outcome.decide(mine[1:], verdict, place)
                if pool.state.failing:
                    self._order(quote, facts, (room,), mine[:1], room.host)
                position = end
            if not pool.state.failing:
                self._order(quote, facts, opened, jobs[done : position : fit.sharing], None)
            self._keep(pool)
            return position - done
        step = len(opened) // option.jobs
        reason = _buying(option.parts, option.jobs)
        usd_per_hour = _sum(_usd(part.offer.usd_per_node_hour, 3600.0 * nodes) for part, nodes in option.parts)
        usd_per_hour = None if usd_per_hour is None else usd_per_hour / option.jobs
        for first in range(0, len(opened), step):
            job = jobs[position]
            position += 1
            new = opened[first : first + step]
            parts = [*option.rooms, *fit.partial(new)[0]] if not fit.slots else self._spread(fit, option.rooms, new)
            for room, take in parts:
                pool.book(room, (job,), take.over(option.start_at, end_at))
            rooms = [room for room, _ in parts]
            hosts = tuple(room.host for room in rooms)
            verdict = Verdict(VerdictKind.BURST, reason, pool=name, hosts=hosts, usd_per_hour=usd_per_hour)
            outcome.decide((job,), verdict, (shape, tuple((name, room) for room in rooms)))
            # a gang is one order, so that it is had whole or not at all
            for part, _ in option.parts:
                of_part = [room for room in new if room.quote is part]
                self._order(part, facts, of_part, (job,), job if step > 1 or pool.state.failing else None)
        self._keep(pool)
        return position - done

    def _open(self, facts: Facts, pool: PoolRooms, fit: Fit, option: Option) -> list[Room]:
        """The rooms of an option's new nodes, reserved."""
        opened: list[Room] = []
        account, name = facts.shape.account, pool.state.name
        for quote, count in option.parts:
            price = quote.offer.usd_per_node_hour
            self.moment.draft.take(account, name, count, self._reserved_usd(pool.state, price, facts))
            stock = stock_of(quote.offer)
            self._sold[stock] = self._sold.get(stock, 0) + count
            latest, until = self.now + pool.state.boot_s, self._until(pool.state, facts)
            hosts = pool.orderable(fit.hosts, count)
            self._bought_until.update(dict.fromkeys(hosts, until))
            for host in hosts:
                room = pool.open(host, quote, option.start_at)
                room.payer, room.latest, room.until = account, latest, until
                opened.append(room)
        self._opened.setdefault(name, []).extend(opened)
        return opened

    @staticmethod
    def _spread(fit: Fit, rooms: Sequence[tuple[Room, Take]], new: Sequence[Room]) -> list[tuple[Room, Take]]:
        """The parts of a job that only counts slots: what is there first, the rest over new nodes."""
        taken = sum(1 if take.whole else take.cores // fit.take.cores for _, take in rooms)
        rest = dataclasses.replace(fit, slots=fit.slots - taken)
        return [*rooms, *rest.partial(new)[0]]

    def _price(self, usd_per_node_hour: float | None) -> float | None:
        """A price, or what the site says to assume where none is known."""
        return self.rules.assume_usd_per_node_hour if usd_per_node_hour is None else usd_per_node_hour

    def _bill(self, pool: PoolState, usd_per_node_hour: float | None, from_at: float, until_at: float) -> float | None:
        """What has to be reserved for so long a life, as the provider bills it."""
        price = self._price(usd_per_node_hour)
        if price is None:
            return None
        return cost_usd(price, from_at, until_at, pool.billing_increment_s, pool.billing_minimum_s)

    def _order(self, quote: Quote, facts: Facts, rooms: Sequence[Room], jobs: Sequence[JobId], apart: object) -> None:
        # nodes that leave together are reserved for as long
        together = self.pools[quote.offer.pool].state.shrink is not Shrink.ANY
        block = next((block for block in self.pools[quote.offer.pool].state.blocks if rooms[0].host in block), None)
        key = (id(quote), facts.shape.account, apart, facts.duration_s if together else None, block)
        _, mine, for_jobs = self._orders.setdefault(key, (quote, [], []))
        mine.extend(rooms)
        for_jobs.extend(jobs)
        for room in rooms:
            room.order = key

    def _keep(self, pool: PoolRooms) -> None:
        """Keep back what Flux's choice may cost with all that is placed now."""
        name = pool.state.name
        if name in self.kept:
            usd = pool.exposure_usd(self.now, self._price)
            if usd > self.kept[name]:
                self.moment.draft.keep(name, usd - self.kept[name])
                self.kept[name] = usd

    def _exposed(
        self, pool: PoolRooms, fit: Fit, parts: Sequence[tuple[Quote, int]], facts: Facts, end_at: float, jobs: int
    ) -> No | None:
        """Whether the caps have no room for such new nodes and for what Flux's choice may cost beside."""
        name, draft = pool.state.name, self.moment.draft
        if name not in self.kept:
            return None
        until, mark = self._until(pool.state, facts), draft.mark()
        new = [(until, quote.offer.usd_per_node_hour) for quote, nodes in parts for _ in range(nodes)]
        for quote, nodes in parts:
            reserved = self._reserved_usd(pool.state, quote.offer.usd_per_node_hour, facts)
            draft.take(facts.shape.account, name, nodes, reserved)
        more = [(fit.take.over(self.now, end_at), until)] * (jobs * fit.count)
        usd = pool.exposure_usd(self.now, self._price, more, new) - self.kept[name]
        cap = draft.extend(NOBODY, name, usd) if usd > 0 else None
        draft.rollback(mark)
        if cap is None:
            return None
        return No(
            f"{cap.name} = {cap.limit:g} leaves too little, as Flux may start it beside others' jobs",
            lasting=False,
            until_at=cap.until_at,
            fix=f"wait until those that wait have started, or raise {cap.name}",
            money=True,
            cap=cap,
            needed=usd,
        )

    def _lengthen(self, facts: Facts, option: Option, jobs: int) -> bool:
        """Reserve an option's rooms for as long as so many jobs need them, where its new nodes can be paid for, too.

        False where a cap forbids it, which bars the rooms for this account.
        """
        pool, account, draft = option.pool, facts.shape.account, self.moment.draft
        name, boot_s = pool.state.name, pool.state.boot_s if option.parts else 0.0
        # those on their way may come up as late as their timeout allows, and all the others wait for them
        start_at = max(option.start_at, self.now + boot_s, *(room.latest for room, _ in option.rooms))
        until = start_at + facts.duration_s + pool.state.tail_s
        mark, before = draft.mark(), dict[Room, float]()

        def forbid() -> bool:
            draft.rollback(mark)
            for room, paid_until in before.items():
                room.until = paid_until
            self._barred.update(((room.host, account), facts.duration_s) for room, _ in option.rooms)
            return False

        for room in (mate for own, _ in option.rooms for mate in pool.staying_with(own)):
            if until <= room.until:
                continue
            usd = self._bill(pool.state, room.price, max(room.until, self.now), until)
            if draft.extend(account, name, usd) is not None:
                return forbid()
            before[room], room.until = room.until, until
        lengthened = draft.mark()
        for quote, count in option.parts:
            reserved = self._reserved_usd(pool.state, quote.offer.usd_per_node_hour, facts)
            if draft.allowed(account, name, reserved)[0] < count:
                return forbid()
            draft.take(account, name, count, reserved)  # all parts together must be within the caps
        if name in self.kept:
            end_at = option.start_at + facts.duration_s
            more = [(take.over(option.start_at, end_at), room.until) for room, take in option.rooms] * jobs
            usd = pool.exposure_usd(self.now, self._price, more) - self.kept[name]
            if usd > 0 and draft.extend(NOBODY, name, usd) is not None:
                return forbid()
        draft.rollback(lengthened)
        for room, paid_until in before.items():
            self._untils.setdefault(room, paid_until)
            self._longer[room.host, until] = Extension(room.host, account, until)
        return True

    def _reserve(self, facts: Facts, job: JobId, nos: Mapping[str, No], verdict: Verdict, outcome: Outcome) -> bool:
        """Keep what comes free for a job that waits for what others have, as EASY backfilling does for the first one.

        False where nothing says when that will be: then nobody waits behind it.
        """
        found: tuple[float, PoolRooms, Fit, list[Room], frozenset[str]] | None = None
        for pool, fit in facts.fits:
            no = nos.get(pool.state.name)
            if no is None or not no.scarce or fit.slots:
                continue
            rooms = _first(self._free(facts, pool, fit), fit.count)
            new = max(0, fit.count - len(rooms) - no.scarce)
            busy = self._suited(facts, pool.busy(fit.take, fit.hosts, _INF))
            rooms += _first(busy, fit.count - len(rooms) - new)
            ends = [room.free_at(fit.take) for room in rooms]
            missing, names = fit.count - len(rooms) - new, frozenset({pool.state.name})
            if missing and no.everywhere:
                names = frozenset(self.pools)
                elsewhere = (other for other in self.pools.values() if other is not pool)
                others = sorted(room.end for other in elsewhere for room in other.rooms.values())[:missing]
                missing -= len(others)
                ends += others
            if missing:
                continue  # these nodes are on their way out, and nobody knows for how long
            start_at = max([self.now, *ends])
            if ends and (found is None or start_at < found[0]):
                found = (start_at, pool, fit, rooms, names)
        if found is None:
            return False
        start_at, pool, fit, rooms, names = found
        take = fit.take.over(start_at, start_at + facts.duration_s)
        for room in rooms:
            pool.book_later(room, job, take)
        name, hosts = pool.state.name, tuple(room.host for room in rooms)
        # what everybody's nodes are in the way of needs all of them, what one pool's are needs those to be bought
        self._reserved = (names, start_at, job, new if names == {name} else None)
        self._failed.clear()
        outcome.homeless += 1
        place = (facts.shape, tuple((name, room) for room in rooms)) if rooms else None
        waits = dataclasses.replace(verdict, kind=VerdictKind.WAIT, pool=name, hosts=hosts, until_at=start_at)
        outcome.decide((job,), waits, place)
        self.untils.add(start_at)
        return True

    def _refusal(self, facts: Facts, nos: Mapping[str, No]) -> Verdict:
        """The verdict of a job for which there is no place."""
        nos = {name: nos[name] for name in facts.shape.pools if name in nos}
        reasons = tuple((name, no.reason) for name, no in nos.items())
        fixes = {name: no.fix for name, no in nos.items() if no.fix}
        if is_asking(nos):
            return Verdict(VerdictKind.WAIT, ASKING, pool_reasons=reasons)
        passing = {name: no for name, no in nos.items() if not no.lasting}
        told = passing or nos
        fix = "; ".join(f"{name}: {fixes[name]}" for name in told if name in fixes)
        reason = "; ".join(f"{name}: {no.reason}" for name, no in told.items())
        until = min((no.until_at for no in passing.values() if no.until_at is not None), default=None)
        self.untils.update(no.until_at for no in passing.values() if no.until_at is not None and not no.stock)
        for name, no in passing.items():
            if no.stock:
                self.watches.add((self.pools[name].state.provider, facts.asked))
        kind = VerdictKind.WAIT if passing else VerdictKind.REFUSED
        return Verdict(kind, reason, until_at=until, pool_reasons=reasons, fix=fix)

    # Warm nodes, and what comes out

    def hold(self, name: str, wanted: int) -> str:
        """Buy what the pool lacks of ``wanted`` nodes; the reason where that fails, empty where all is well."""
        pool = self.pools[name]
        missing = wanted - len(pool.rooms)
        if missing <= 0:
            return ""
        if pool.state.blocks:
            missing = max(1, min(missing, pool.orderable_count(None)))  # and the rest with the next plans
        demand = Demand(missing, missing, pool.state.cores, pool.state.gpus, exclusive=True)
        facts = self.facts(Shape(demand, (name,)))
        found = self._new(facts, 1, beside=False)
        if isinstance(found, dict):
            return found[name].reason
        rooms = self._open(facts, pool, found.fit, found)
        for quote, _ in found.parts:
            self._order(quote, facts, [room for room in rooms if room.quote is quote], (), "warm")
        self._keep(pool)
        return ""

    def purchases(self) -> Iterator[Purchase]:
        for quote, rooms, jobs in self._orders.values():
            yield Purchase(
                quote.offer,
                tuple([room.host for room in rooms]),
                tuple(jobs),
                rooms[0].payer,
                tuple([self._bought_until[room.host] for room in rooms]),
            )

    def extensions(self) -> Iterator[Extension]:
        return iter(self._longer.values())


def _is_money(nos: Mapping[str, No]) -> bool:
    """Whether a cap in dollars has to do with it."""
    return any(no.cap is not None and no.cap.unit == "usd" for no in nos.values())


def _names_usd(no: No) -> bool:
    """Whether a reason tells what this very job would cost."""
    return no.lasting and no.cap is not None and no.cap.unit == "usd"


def _buying(parts: Sequence[tuple[Quote, int]], jobs: int) -> str:
    """What is bought for each of so many jobs, in words."""
    told = []
    for quote, nodes in parts:
        price = quote.offer.usd_per_node_hour
        each = "" if price is None else f" at ${price:g} an hour each"
        told.append(f"{max(1, nodes // jobs)} of {quote.offer.instance_type}{each}")
    return "buying " + " and ".join(told)


def _usd(price: float | None, seconds: float) -> float | None:
    return None if price is None else price * max(0.0, seconds) / 3600


def _sum(parts: Iterable[float | None]) -> float | None:
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return total


def _first(rooms: Iterable[Room], count: int) -> list[Room]:
    return list(itertools.islice(rooms, count))


def served_by(pool: str, rooms: Sequence[Room], now: float) -> Verdict:
    up = all(room.up and room.at <= now for room in rooms)
    reason = "its nodes are up" if up else _ON_THE_WAY
    return Verdict(VerdictKind.COMING, reason, pool=pool, hosts=tuple([room.host for room in rooms]))
