"""One job looked at on demand: what home and each offer answer to it, and which number decided. Pure.

A verdict is kept, compared and written to the job, so its words hold as long as the reason does. Here are the numbers
of the moment behind it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fluxburst import durations, hostlist
from fluxburst.fit import ASKING, No, closed_pool
from fluxburst.model import Demand, Host, JobId
from fluxburst.moment import Cap, Moment, PoolState, Quote, Request, Shape
from fluxburst.pack import pack
from fluxburst.plan import Packer, Told
from fluxburst.work import Facts, Option, Way, Work

_INF = float("inf")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is in the way of a job.

    ``fix`` says what would have to change, ``until_at`` when time alone does it. ``needed`` is what the job takes: of
    ``cap``, in its unit, where a cap binds; else nodes, of which ``left`` are to be had (None: the reason says it all).
    """

    reason: str
    fix: str = ""
    until_at: float | None = None
    cap: Cap | None = None
    needed: float = 0.0
    left: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job would start, and when.

    ``hosts`` are there, coming, or (``busy``) in use until then; ``buys`` new nodes of ``instance_type`` come beside.
    ``usd`` is what the job would cost there: nodes of its own from now to its end, others for as long as they stay
    because of it; None where no price is known.
    """

    pool: str
    start_at: float
    usd: float | None
    hosts: tuple[Host, ...] = ()
    busy: bool = False
    buys: int = 0
    instance_type: str = ""


@dataclass(frozen=True, slots=True)
class OfferAnswer:
    """What one offer comes to for the job: a place, or what is in the way. ``left`` is what this plan may still buy."""

    quote: Quote
    place: Place | None
    obstacle: Obstacle | None
    left: int | None


@dataclass(frozen=True, slots=True)
class PoolAnswer:
    """What one pool comes to: ``there`` on nodes that it has, ``offers`` on new ones.

    ``obstacle`` is in the way of the pool as a whole, whatever its offers say.
    """

    pool: str
    provider: str
    there: Place | None = None
    offers: tuple[OfferAnswer, ...] = ()
    obstacle: Obstacle | None = None


@dataclass(frozen=True, slots=True)
class HomeAnswer:
    """When home is expected to start the job (None: never), and whether the scheduler says so itself."""

    start_at: float | None
    told: bool = False


@dataclass(frozen=True, slots=True)
class Consideration:
    """What was weighed for one job, at ``at``.

    ``decided`` is the comparison that decided, with its numbers; ``fix`` is what would have to change for another
    result. ``home`` is None where it was not asked: the job has its nodes, or nothing is known of home. ``place`` is
    the best one beside home. ``asks`` are the questions to providers that are not answered yet.
    """

    job_id: JobId
    at: float
    decided: str
    fix: str
    home: HomeAnswer | None
    place: Place | None
    pools: tuple[PoolAnswer, ...]
    asks: frozenset[tuple[str, Demand]] = frozenset()


def consider(moment: Moment, request: Request) -> Consideration:
    """Weigh one job against what those before it in the scheduler's order leave, as a plan of this moment would.

    It costs as much as a plan for these. ``moment.home`` and ``moment.draft`` are used up.
    """
    line, now = _Line(request, moment), moment.now
    place = line.kept or _place(line.found)
    if line.kept is not None:
        decided, fix = f"{_where(line.kept, now)}, and kept for it", ""
    elif line.stays:
        decided, fix = _why_home(line.home_at, place, moment)
    elif place is not None:
        decided, fix = _why_burst(line.home_at, place, line.pools, moment)
    elif line.found is None:
        decided = f"burst.wait ends {_in(request.not_before_at, now)}; until then nothing is bought for it"
        fix = "nothing; a smaller burst.wait lets it burst earlier"
    else:
        nos = {name: _obstacle(line.nos[name]) for name in request.shape.pools if name in line.nos}
        decided, fix = _why_nothing(nos, now)
    home = None
    if moment.home is not None and line.kept is None:
        known = line.home_at < _INF
        home = HomeAnswer(line.home_at if known else None, told=known and line.home_at == request.home_at)
    return Consideration(request.job_id, now, decided, fix, home, place, line.pools, line.asks)


def words(obstacle: Obstacle, now: float) -> str:
    """An obstacle in a line, with its numbers."""
    text, cap = obstacle.reason, obstacle.cap
    if cap is not None and cap.unit == "usd":
        text += f" (${cap.used:.2f} of ${cap.limit:.2f} committed, ${obstacle.needed:.2f} needed)"
    elif cap is not None:
        text += f" ({cap.used:g} of {cap.limit:g} committed, {obstacle.needed:g} needed)"
    elif obstacle.left is not None:
        text += f" ({obstacle.left:g} left, {obstacle.needed:g} needed)"
    if obstacle.until_at is not None and obstacle.until_at > now:
        text += ", renewed in " if cap is not None else ", for another "
        text += durations.show(obstacle.until_at - now)
    return text


def _why_home(home_at: float, place: Place | None, moment: Moment) -> tuple[str, str]:
    now, rules = moment.now, moment.rules
    if place is None:
        return f"home {_in(home_at, now)}, and no pool can serve it before", ""
    both = f"home {_in(home_at, now)}, {_where(place, now)}"
    if place.start_at < home_at:
        if home_at - now < rules.min_wait_s:
            least = f"[policy] min_wait = {durations.show(rules.min_wait_s)}"
            return f"{both}, {least}: too short a wait to burst", "nothing, or a lower [policy] min_wait"
        if rules.max_usd_per_hour_saved is not None:
            told, rate = _rate(home_at, place, rules.max_usd_per_hour_saved)
            return f"{both}: {told}", f"nothing, or [policy] max_usd_per_hour_saved = {math.ceil(rate * 100) / 100:.2f}"
    return f"{both}: home is sooner", "nothing; it starts there"


def _why_burst(home_at: float, place: Place, pools: Sequence[PoolAnswer], moment: Moment) -> tuple[str, str]:
    now, where = moment.now, _where(place, moment.now)
    if place.busy:
        new = min((one.place.start_at for pool in pools for one in pool.offers if one.place is not None), default=None)
        if new is not None:
            return f"{where}, a new node could be up {_in(new, now)}", "nothing; it starts there"
        in_the_way = {pool.pool: no for pool in pools if (no := _first_obstacle(pool)) is not None}
        told, fix = _why_nothing(in_the_way, now)
        return f"{where}; nothing new can be had: {told}", fix
    if not place.buys or moment.home is None:
        return where, ""
    if home_at == _INF:
        return f"{where}; home is not expected ever to start it", ""
    both = f"home {_in(home_at, now)}, {where}"
    most = moment.rules.max_usd_per_hour_saved
    if most is None or place.start_at >= home_at:
        return f"{both}: it bursts", ""
    return f"{both}: {_rate(home_at, place, most)[0]}", ""


def _why_nothing(obstacles: Mapping[str, Obstacle], now: float) -> tuple[str, str]:
    told = "; ".join(f"{name}: {words(no, now)}" for name, no in obstacles.items())
    return told, "; ".join(f"{name}: {no.fix}" for name, no in obstacles.items() if no.fix)


def _first_obstacle(pool: PoolAnswer) -> Obstacle | None:
    return pool.obstacle or next((one.obstacle for one in pool.offers if one.obstacle is not None), None)


def _rate(home_at: float, place: Place, most: float) -> tuple[str, float]:
    """What an hour saved against home costs, in words and in dollars."""
    saved_s, usd = home_at - place.start_at, place.usd or 0.0
    rate = usd / saved_s * 3600
    told = f"${usd:.2f} for {durations.show(saved_s)} saved is ${rate:.2f} an hour saved"
    return f"{told}, [policy] max_usd_per_hour_saved = {most:g}", rate


def _where(place: Place, now: float) -> str:
    """Such as ``c2 in 2m for $1.20``, or ``c2-[0-1] expected to be free in 20s``."""
    if place.buys:
        usd = "at an unknown price" if place.usd is None else f"for ${place.usd:.2f}"
        return f"{place.pool} {_in(place.start_at, now)} {usd}"
    hosts = hostlist.fold(place.hosts)
    if place.start_at <= now:
        return f"{hosts} up"
    return f"{hosts} expected {'to be free' if place.busy else 'to be up'} {_in(place.start_at, now)}"


def _in(at: float, now: float) -> str:
    return f"in {durations.show(at - now)}" if at > now else "now"


def _place(option: object) -> Place | None:
    if not isinstance(option, Option):
        return None
    return Place(
        pool=option.pool.state.name,
        start_at=option.start_at,
        usd=option.usd,
        hosts=tuple(room.host for room, _ in option.rooms),
        busy=option.later,
        buys=sum(nodes for _, nodes in option.parts),
        instance_type=" and ".join(dict.fromkeys(quote.offer.instance_type for quote, _ in option.parts)),
    )


def _obstacle(no: No) -> Obstacle:
    return Obstacle(no.reason, no.fix, no.until_at, no.cap, no.needed, no.left)


class _Inquiry(Work):
    """A plan in the making, asked what each pool says, and not only for the best."""

    def begin(self) -> None:
        """How others were packed, and what they wait for, is no matter from now on."""
        self._way = Way((), split=True)
        self.asks.clear()

    def best(self, shape: Shape) -> Option | dict[str, No]:
        """What the plan would choose: a cap may forbid that nodes stay for longer."""
        facts = self.facts(shape)
        while isinstance(found := self.option(facts, 1), Option):
            if found.later or self._lengthen(facts, found, 1):
                break
        return found

    def early(self, shape: Shape) -> Option | None:
        """What there is for a job for which nothing is bought yet."""
        return self._on_fleet(self.facts(shape))

    def answers(self, shape: Shape) -> tuple[PoolAnswer, ...]:
        facts = self.facts(shape)
        fits = {pool.state.name: (pool, fit) for pool, fit in facts.fits}
        return tuple(
            self._answer(self.pools[name].state, dataclasses.replace(facts, fits=[fits[name]]))
            if name in fits
            else PoolAnswer(name, self.pools[name].state.provider, obstacle=_obstacle(facts.unfit[name]))
            for name in shape.pools
        )

    def _answer(self, state: PoolState, facts: Facts) -> PoolAnswer:
        """What the one pool in ``facts`` says."""
        ((pool, fit),) = facts.fits
        quotes, no = self._offers(state, facts)
        if no is not None and no.reason == ASKING:
            self.ask(state, facts)
        offers = []
        for number, quote in enumerate(quotes):
            bought = self._buy(pool, fit, quotes[number:], facts, 1, beside=True)
            obstacle = _obstacle(bought) if isinstance(bought, No) else None
            offers.append(OfferAnswer(quote, _place(bought), obstacle, self._left(quote)))
        if state.closed:
            no = closed_pool(state)
        there = self._on_fleet(facts) or self._later(facts, _INF)
        return PoolAnswer(
            state.name, state.provider, _place(there), tuple(offers), None if no is None else _obstacle(no)
        )


class _Line(Packer):
    """The queue up to one job: those before it have their places, and it is its turn."""

    def __init__(self, request: Request, moment: Moment) -> None:
        super().__init__()
        self._mine = request.job_id
        self.home_at = _INF
        self.stays = False
        """Home serves it well enough."""
        self.found: Option | dict[str, No] | None = None
        """Where it would burst, or why nowhere; None while ``burst.wait`` forbids to buy and nothing is there."""
        before = {job: one for job, one in moment.requests.items() if one.order < request.order or one.booked[1]}
        residents = [resident for resident in moment.residents if resident.order < request.order]
        moment = dataclasses.replace(
            moment, requests=before | {self._mine: request}, residents=residents, changed_jobs=None, changed_pools=None
        )
        told = Told(self._verdicts)
        self._begin(moment, told)
        work = _Inquiry(moment, self._pools, self._facts, self._blocked)
        self._set_aside(moment, work, told)
        if self._take_back(self._mine):
            self._waiting[self._mine] = request
        askers = [one for one in self._stay_home(moment, work, told) if one.job_id != self._mine]
        pack(work, askers, followed=True)
        work.begin()
        self.pools = work.answers(request.shape)
        self.asks = frozenset(work.asks)
        if self.kept is not None:
            # what it holds itself is not free for it again
            self.pools = tuple(dataclasses.replace(pool, there=None) for pool in self.pools)
        if self.stays or self.kept is not None:
            return
        early = request.not_before_at > moment.now
        self.found = work.early(request.shape) if early else work.best(request.shape)

    @property
    def nos(self) -> dict[str, No]:
        """Why no pool has a place for it; empty where one has."""
        return self.found if isinstance(self.found, dict) else {}

    @property
    def kept(self) -> Place | None:
        """The place that an earlier plan gave it."""
        if self._mine not in self._placed:
            return None
        _, parts = self._placed[self._mine]
        start_at = max(room.at for _, room in parts)
        return Place(parts[0][0], start_at, None, tuple(room.host for _, room in parts))

    def _home_serves(self, work: Work, request: Request, start_at: float) -> bool:
        serves = super()._home_serves(work, request, start_at)
        if request.job_id == self._mine:
            self.home_at, self.stays = start_at, serves
            self.found = work.option(work.facts(request.shape), 1)
        return serves
