"""Every provider's offers as one list of quotes: prices after the site's rules, measured join times, health.

::

    Prices        the site's [[price]] rules
    JoinTimes     how long nodes took to join, by pool, instance type and spot or not
    Breakers      what failed lately, by scope, and what is therefore left alone
    OfferBook     the providers' answers, with all of these
    MarketView    the book at one moment: what the planner sees of it

Pure: no clock, no I/O. The controller tells the time, and keeps the states of join times and breakers in its store.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from fluxburst.config import Price
from fluxburst.errors import Scope
from fluxburst.model import Demand, Offer, Refusal
from fluxburst.moment import Quote

ANSWER_TTL_S = 30.0
"""How long an offer may be bought on before its provider is asked again."""
ANSWER_RENEWED_S = 25.0
"""Where jobs wait for what a provider has, it is asked again before its answer is too old."""
ANSWER_KEPT_S = 3600.0
"""How long an answer is kept to be shown, and a refusal for good is believed."""
PAST_RETRY_S = 1.0
"""An answer is used for so long at least: a provider may name a time to ask again that is past."""
GUESS_JOIN_S = 60.0
"""The join time that is reckoned with where nothing was measured and the provider has no guess of its own."""

Answers = tuple[Offer | Refusal, ...]
Quotes = Sequence[Quote | Refusal]
OrderOffers = Callable[[Demand, Sequence[Offer]], Sequence[Offer] | None]


@lru_cache(maxsize=4096)
def asked_as(demand: Demand) -> Demand:
    """The demand as providers are asked about it: its duration rounded up to a power of two minutes.

    Else every user's own ``-t`` would be a question of its own.
    """
    if not demand.duration_s:
        return demand
    return dataclasses.replace(demand, duration_s=60.0 * 2.0 ** max(0, math.ceil(math.log2(demand.duration_s / 60.0))))


def describe(offer: Offer) -> str:
    """An offer in a few words, such as ``spot c2-standard-4 in us-central1-a``."""
    where = f" in {offer.zone}" if offer.zone else ""
    return f"{'spot ' if offer.spot else ''}{offer.instance_type}{where}"


Stock = tuple[str, str, str, str, str, bool]


def stock_of(offer: Offer) -> Stock:
    """What its ``nodes_left`` are taken from, whichever demand it answers."""
    return offer.provider, offer.pool, offer.instance_type, offer.zone, offer.region, offer.spot


class Prices:
    """The site's rules on prices (``[[price]]`` of burst.toml)."""

    def __init__(self, rules: Sequence[Price] = ()) -> None:
        self._rules = tuple(rules)
        self._matching: dict[tuple[str, str, str, str, bool], tuple[Price, ...]] = {}

    def apply(self, offer: Offer) -> Offer:
        """The offer at the site's own price. An unknown price stays unknown unless a rule sets one."""
        if not self._rules:
            return offer
        usd = offer.usd_per_node_hour
        for rule in self._rules_for(offer):
            if rule.usd_per_node_hour is not None:
                usd = rule.usd_per_node_hour
            if usd is not None:
                usd = usd * rule.factor + rule.plus_usd
        return offer if usd == offer.usd_per_node_hour else dataclasses.replace(offer, usd_per_node_hour=usd)

    def _rules_for(self, offer: Offer) -> tuple[Price, ...]:
        what = (offer.pool, offer.provider, offer.instance_type, offer.zone, offer.spot)
        found = self._matching.get(what)
        if found is None:
            found = tuple(rule for rule in self._rules if _matches(rule, offer))
            self._matching[what] = found
        return found


def _matches(rule: Price, offer: Offer) -> bool:
    return (
        rule.spot in (None, offer.spot)
        and fnmatchcase(offer.pool, rule.pool)
        and fnmatchcase(offer.provider, rule.provider)
        and fnmatchcase(offer.instance_type, rule.instance_type)
        and fnmatchcase(offer.zone, rule.zone)
    )


@dataclass(frozen=True, slots=True)
class JoinTime:
    """How long a node takes from its order to a broker that is up: the median and the 90th percentile, in seconds."""

    p50_s: float
    p90_s: float
    samples: int


class JoinTimes:
    """Measured join times by pool, instance type and spot or not.

    The latest :data:`KEPT` samples of each count, once there are :data:`LEAST`. Percentiles are inclusive ones
    (:func:`statistics.quantiles`), to two significant digits: who is told of less changes his mind with every node.
    """

    KEPT = 50
    LEAST = 3

    def __init__(self, state: Iterable[Mapping[str, Any]] = ()) -> None:
        self._samples: dict[tuple[str, str, bool], deque[float]] = {}
        self._measured: dict[tuple[str, str, bool], JoinTime] = {}
        self._fresh: set[tuple[str, str, bool]] = set()
        """Where samples came that nobody has looked at yet: the nodes of a large order come all at once."""
        self._version = 0
        for entry in state:
            key = (str(entry["pool"]), str(entry["instance_type"]), bool(entry["spot"]))
            self._samples[key] = deque(map(float, entry["samples_s"]), self.KEPT)
            self._fresh.add(key)

    @property
    def version(self) -> int:
        """Changes whenever something measured does."""
        while self._fresh:
            self._measure(self._fresh.pop())
        return self._version

    def add(self, offer: Offer, sample_s: float) -> None:
        """Take in how long one node of this offer took.

        Raises:
            ValueError: the sample is negative or not finite.
        """
        if not 0 <= sample_s < math.inf:
            raise ValueError(f"{sample_s} s is no join time")
        key = (offer.pool, offer.instance_type, offer.spot)
        self._samples.setdefault(key, deque(maxlen=self.KEPT)).append(sample_s)
        self._fresh.add(key)

    def of(self, offer: Offer) -> JoinTime | None:
        """What was measured; None while there are too few samples."""
        key = (offer.pool, offer.instance_type, offer.spot)
        if key in self._fresh:
            self._fresh.discard(key)
            self._measure(key)
        return self._measured.get(key)

    def state(self) -> list[dict[str, Any]]:
        """All samples as JSON values, as the constructor takes them."""
        return [
            {"pool": pool, "instance_type": instance_type, "spot": spot, "samples_s": list(samples)}
            for (pool, instance_type, spot), samples in self._samples.items()
        ]

    def _measure(self, key: tuple[str, str, bool]) -> None:
        samples = self._samples[key]
        if len(samples) < self.LEAST:
            return
        tenths = statistics.quantiles(samples, n=10, method="inclusive")
        measured = JoinTime(_rough(tenths[4]), _rough(tenths[8]), len(samples))
        if measured != self._measured.get(key):
            self._measured[key] = measured
            self._version += 1


def _rough(seconds: float) -> float:
    return float(f"{seconds:.2g}")


Key = tuple[str, ...]
"""What a breaker is for: the scope's word, then the names that tell it from others of that scope."""

_PROBED = frozenset({Scope.OFFER, Scope.ZONE, Scope.REGION, Scope.PROVIDER})
"""The scopes that are tried out with one order."""

BOOT = "boot"
"""The word of the breakers that count failed boots of a pool, apart from its failed launches."""


def boot_key(pool: str) -> Key:
    return (BOOT, pool)


def scope_key(offer: Offer, scope: Scope) -> Key:
    """What an error of this scope reaches, if an order of this offer met it.

    A zone or region reaches across the pools of its provider. Where the offer names none, the pool stands for it.
    """
    provider = offer.provider
    if scope is Scope.PROVIDER:
        return (scope.value, provider)
    if scope is Scope.REGION and offer.region:
        return (scope.value, provider, offer.region)
    if scope is Scope.ZONE and offer.zone:
        return (scope.value, provider, offer.region, offer.zone)
    if scope is Scope.OFFER:
        kind = "spot" if offer.spot else "on-demand"
        return (scope.value, provider, offer.pool, offer.instance_type, offer.zone, kind)
    return (Scope.POOL.value, offer.pool)


def _keys_over(offer: Offer) -> tuple[Key, ...]:
    """Every breaker that this offer is under."""
    return (*(scope_key(offer, scope) for scope in Scope), boot_key(offer.pool))


@dataclass(frozen=True, slots=True)
class Breaker:
    """What failed: how often in a row, until when it is left alone, and why.

    ``pools`` are those whose orders met the failures. ``probe`` is the order (its request id) that tries the scope out
    after the cool-down; empty while none does.
    """

    failures: int
    until_at: float
    reason: str
    pools: tuple[str, ...]
    probe: str = ""


@dataclass(frozen=True, slots=True)
class Closed:
    """Why nothing may be ordered now: in a line, and the ``error`` behind it.

    ``until_at`` is None where a probe is under way: until it has its answer.
    """

    reason: str
    error: str
    until_at: float | None


class Breakers:
    """Circuit breakers, one for each scope in which something failed lately.

    A failure opens the scope's breaker: the scope is left alone for ``cooldown_s``, twice as long after each further
    failure, ``cooldown_max_s`` at most. Then it is half open: one order, the *probe*, may be under way, until it is
    known that the provider took it, which closes the breaker, or that it failed. A pool's own breakers have no probe:
    it takes a node that serves, minutes after its order, to close them, and until then :meth:`failing` has the pool's
    nodes ordered apart.

    A breaker that nobody has tried out for ``cooldown_max_s`` is forgotten.
    """

    def __init__(self, cooldown_s: float, cooldown_max_s: float, state: Iterable[Mapping[str, Any]] = ()) -> None:
        self._cooldown_s = cooldown_s
        self._cooldown_max_s = cooldown_max_s
        self._breakers: dict[Key, Breaker] = {}
        for entry in state:
            fields = {name: value for name, value in entry.items() if name != "key"}
            self._breakers[tuple(entry["key"])] = Breaker(**fields | {"pools": tuple(entry["pools"])})
        self._version = 0

    def state(self) -> list[dict[str, Any]]:
        """All breakers as JSON values, as the constructor takes them."""
        return [{"key": list(key), **dataclasses.asdict(breaker)} for key, breaker in self._breakers.items()]

    def stamp(self, now: float) -> tuple[int, int]:
        """Two moments with equal stamps have the same scopes open and half open."""
        return self._version, sum(breaker.until_at > now for breaker in self._breakers.values())

    def of(self, key: Key) -> Breaker | None:
        return self._breakers.get(key)

    def fail(self, key: Key, pool: str, reason: str, now: float, *, wait_s: float = 0.0) -> Breaker:
        """Something failed: leave the scope alone for as long as its failures say, and for ``wait_s`` at least.

        What fails while it is left alone was ordered before, and is the same failure once more.
        """
        self._forget_stale(now)
        last = self._breakers.get(key)
        again = last is None or last.until_at <= now
        failures = (last.failures if last else 0) + again
        seconds = max(min(self._cooldown_s * 2 ** min(failures - 1, 32), self._cooldown_max_s), wait_s)
        until_at = now + seconds if last is None or again else max(last.until_at, now + wait_s)
        pools = tuple(sorted({pool, *(last.pools if last else ())}))
        breaker = Breaker(failures, until_at, reason, pools)
        self._put(key, breaker)
        return breaker

    def serves(self, pool: str) -> bool:
        """A node of the pool serves: the pool's own failures are forgotten. Whether there were any."""
        return self._close([(Scope.POOL.value, pool), boot_key(pool)])

    def closed(self, offer: Offer, now: float, request_id: str = "") -> Closed | None:
        """Why nothing of this offer may be ordered now; None if it may. An order is not kept from being the probe."""
        return self._closed(_keys_over(offer), now, request_id) if self._breakers else None

    def closed_pool(self, pool: str, provider: str, now: float) -> Closed | None:
        """Why nothing at all may be ordered in a pool now; None if something may."""
        return self._closed(((Scope.POOL.value, pool), boot_key(pool), (Scope.PROVIDER.value, provider)), now)

    def failing(self, pool: str, now: float) -> bool:
        """Whether an order of this pool met a failure that nothing has ended: its nodes are ordered apart."""
        return any(pool in breaker.pools and not self._stale(breaker, now) for breaker in self._breakers.values())

    def next_at(self, now: float) -> float | None:
        """When the next scope becomes half open."""
        return min((breaker.until_at for breaker in self._breakers.values() if breaker.until_at > now), default=None)

    def probes(self) -> set[str]:
        """The orders that try something out."""
        return {breaker.probe for breaker in self._breakers.values() if breaker.probe}

    def probe(self, offer: Offer, request_id: str, now: float) -> bool:
        """Let an order be the probe of whatever it is under that is half open. Whether there is anything."""
        found = False
        for key in _keys_over(offer):
            breaker = self._breakers.get(key)
            if breaker and key[0] in _PROBED and breaker.until_at <= now and not breaker.probe:
                self._put(key, dataclasses.replace(breaker, probe=request_id))
                found = True
        return found

    def settle(self, request_id: str, *, taken: bool) -> None:
        """A probe is over: the provider took the order, or nothing is known but that it is no longer under way."""
        mine = [(key, breaker) for key, breaker in self._breakers.items() if breaker.probe == request_id]
        if taken:
            self._close([key for key, _ in mine])
        else:
            for key, breaker in mine:
                self._put(key, dataclasses.replace(breaker, probe=""))

    def _closed(self, keys: Iterable[Key], now: float, request_id: str = "") -> Closed | None:
        cooling: tuple[Key, Breaker] | None = None
        probed: tuple[Key, Breaker] | None = None
        for key in keys:
            breaker = self._breakers.get(key)
            if breaker is None:
                continue
            if breaker.until_at > now:
                if cooling is None or breaker.until_at > cooling[1].until_at:
                    cooling = (key, breaker)
            elif breaker.probe not in ("", request_id):
                probed = probed or (key, breaker)
        if cooling is not None:
            key, breaker = cooling
            why = f"{_about(key)}left alone after a failure: {breaker.reason}"
            return Closed(why, breaker.reason, breaker.until_at)
        if probed is not None:
            key, breaker = probed
            why = f"{_about(key)}tried with one order first after a failure: {breaker.reason}"
            return Closed(why, breaker.reason, None)
        return None

    def _put(self, key: Key, breaker: Breaker) -> None:
        self._breakers[key] = breaker
        self._version += 1

    def _close(self, keys: Iterable[Key]) -> bool:
        closed = [key for key in keys if self._breakers.pop(key, None) is not None]
        self._version += len(closed)
        return bool(closed)

    def _stale(self, breaker: Breaker, now: float) -> bool:
        return not breaker.probe and breaker.until_at + self._cooldown_max_s <= now

    def _forget_stale(self, now: float) -> None:
        self._close([key for key, breaker in self._breakers.items() if self._stale(breaker, now)])


def _about(key: Key) -> str:
    """What is closed, in words, where it is more than the pool or the offer that the words stand by."""
    wide = key[0] in (Scope.ZONE, Scope.REGION, Scope.PROVIDER)
    return f"{key[0]} {key[-1]} is " if wide else ""


class _Batch:
    """One sequence of answers, whatever demands it answers, with what is derived from it."""

    __slots__ = ("answers", "lasting", "offers", "quotes", "retry_at", "stamp")

    def __init__(self, answers: Answers) -> None:
        refusals = [answer for answer in answers if isinstance(answer, Refusal)]
        self.answers = answers
        self.retry_at = min((no.retry_at for no in refusals if no.retry_at is not None), default=math.inf)
        """When the first refusal says that it is to be asked again."""
        self.lasting = len(refusals) == len(answers) and self.retry_at == math.inf
        """Nothing but a change of configuration will turn any of it."""
        self.stamp: object = None
        self.quotes: Quotes = ()
        self.offers: tuple[Offer, ...] = ()
        """Those in ``quotes``, in the same order."""


@dataclass(slots=True)
class _Entry:
    """What one provider answered to one demand, and the list that its plugins made of it."""

    at: float
    batch: _Batch
    base: Quotes | None = None
    quotes: Quotes = ()


class OfferBook:
    """All answers of all providers, under the site's prices, the measured join times and the breakers.

    Args:
        pools: cores and GPUs that each pool declares.
        order_offers: the plugins' ``fluxburst_order_offers``.
    """

    def __init__(
        self,
        pools: Mapping[str, tuple[int, int]],
        prices: Prices,
        joins: JoinTimes,
        breakers: Breakers,
        order_offers: OrderOffers,
    ) -> None:
        self.prices = prices
        self.joins = joins
        self.breakers = breakers
        self._pools = pools
        self._order_offers = order_offers
        self.version = 0
        """Grows with every answer that says something new, or that is there again after one that was too old."""
        self._sold: Counter[Key] = Counter()
        """Nodes ordered of an offer since its provider last answered."""
        self.sales = 0
        """Grows with every change of that."""
        self._entries: dict[tuple[str, Demand], _Entry] = {}
        self._batches: dict[Answers, _Batch] = {}

    def put(self, provider: str, demand: Demand, at: float, answers: Sequence[Offer | Refusal]) -> bool:
        """Take in what a provider answered to a demand (as :func:`asked_as` has it), and say whether that is news."""
        sold = [key for key in self._sold if key[1] == provider]
        for key in sold:
            del self._sold[key]
            self.sales += 1
        given = tuple(answers)
        batch = self._batches.get(given)
        if batch is None:
            batch = self._batches[given] = _Batch(given)
        former = self._entries.get((provider, demand))
        news = bool(sold) or former is None or former.batch is not batch or not _fresh(former, at)
        self.version += news
        if former is not None and former.batch is batch:
            # the plugins are asked anew: their mind may have changed
            former.at, former.base = at, None
        else:
            self._entries[provider, demand] = _Entry(at, batch)
        return news

    def answered_at(self, provider: str, demand: Demand) -> float | None:
        """When the answer to this was given that is kept."""
        entry = self._entries.get((provider, demand))
        return None if entry is None else entry.at

    def latest(self, now: float) -> list[tuple[float, Quote]]:
        """Every offer once, with when it was last made, whatever it was asked for; in order of preference."""
        found: dict[Key, tuple[float, Offer]] = {}
        for at, provider, _, answers in self._distinct():
            for answer in answers:
                if isinstance(answer, Offer) and not self._unfit(answer, provider):
                    found.setdefault((*scope_key(answer, Scope.OFFER), answer.region), (at, answer))
        quotes = [(at, self.quote(offer, now)) for at, offer in found.values()]
        return sorted(quotes, key=lambda row: _preference(row[1]))

    def refusals(self) -> list[tuple[float, Demand, Refusal]]:
        """Every reason once, with when it was last given, and to which demand; the newest first."""
        found: dict[tuple[str, str, str], tuple[float, Demand, Refusal]] = {}
        for at, provider, demand, answers in self._distinct():
            for answer in answers:
                why = answer.reason if isinstance(answer, Refusal) else self._unfit(answer, provider)
                if why:
                    no = answer if isinstance(answer, Refusal) else Refusal(answer.pool, answer.provider, why)
                    found.setdefault((no.pool, no.provider, why), (at, demand, no))
        return list(found.values())

    def _distinct(self) -> list[tuple[float, str, Demand, Answers]]:
        """The answers that differ, each with when it was last given, by whom, and to what; the newest first."""
        newest: dict[tuple[str, int], tuple[float, str, Demand, Answers]] = {}
        for (provider, demand), entry in sorted(self._entries.items(), key=lambda item: -item[1].at):
            newest.setdefault((provider, id(entry.batch)), (entry.at, provider, demand, entry.batch.answers))
        return list(newest.values())

    def has(self, provider: str, demand: Demand) -> bool:
        """Whether there is an answer, however old."""
        return (provider, demand) in self._entries

    def forget(self, provider: str) -> None:
        """Let a provider be asked anew: what it said before is not true any more."""
        self._drop([key for key in self._entries if key[0] == provider])

    def oldest_at(self) -> float | None:
        """When the oldest answer that is kept was given."""
        return min((entry.at for entry in self._entries.values()), default=None)

    def at(self, now: float, *, old: bool = False) -> MarketView:
        """The book at one moment, with the answers that are too ``old`` to be bought on where these are wanted.

        Drops what is too old to be shown.
        """
        self._drop([key for key, entry in self._entries.items() if entry.at + ANSWER_KEPT_S <= now])
        return MarketView(self, now, old=old)

    def quotes(self, provider: str, demand: Demand, now: float, stamp: object, *, old: bool) -> Quotes | None:
        """For :class:`MarketView`. ``stamp`` tells whether what quotes are made of has changed."""
        demand = asked_as(demand)
        entry = self._entries.get((provider, demand))
        if entry is None or not (old or _fresh(entry, now)):
            return None
        batch = entry.batch
        if batch.stamp != stamp:
            self._refresh(batch, provider, now)
            batch.stamp = stamp
        if entry.base is not batch.quotes:
            ordered = self._as_plugins_order(demand, batch)
            # what is derived from a list is kept for the object: a new one with the same content would throw it away
            entry.quotes = entry.quotes if ordered == entry.quotes and ordered is not batch.quotes else ordered
            entry.base = batch.quotes
        return entry.quotes

    def sell(self, offer: Offer, nodes: int) -> None:
        """So many nodes of an offer were ordered: until its provider answers again, as many fewer are left."""
        self._sold[scope_key(offer, Scope.OFFER)] += nodes
        self.sales += 1

    def quote(self, offer: Offer, now: float) -> Quote:
        """One offer at the site's price, with its join time and its health, and what is left of it."""
        priced = self.prices.apply(offer)
        sold = self._sold.get(scope_key(offer, Scope.OFFER), 0) if offer.nodes_left else 0
        if sold and offer.nodes_left:
            priced = dataclasses.replace(priced, nodes_left=max(0, offer.nodes_left - sold))
        measured = self.joins.of(offer)
        closed = self.breakers.closed(offer, now)
        return Quote(
            offer=priced,
            join_s=self.join_s(offer),
            join_p90_s=measured.p90_s if measured else _guess_s(offer),
            samples=measured.samples if measured else 0,
            closed=closed.reason if closed else "",
            closed_until_at=closed.until_at if closed else None,
        )

    def join_s(self, offer: Offer) -> float:
        """How long a node of this offer is expected to take, as its quote has it."""
        measured = self.joins.of(offer)
        return measured.p50_s if measured else _guess_s(offer)

    def _refresh(self, batch: _Batch, provider: str, now: float) -> None:
        quotes: list[Quote] = []
        refusals: list[Refusal] = []
        for answer in batch.answers:
            if isinstance(answer, Refusal):
                refusals.append(answer)
            elif why := self._unfit(answer, provider):
                refusals.append(Refusal(answer.pool, answer.provider, why))
            else:
                quotes.append(self.quote(answer, now))
        quotes.sort(key=_preference)
        fresh: Quotes = (*quotes, *refusals)
        if fresh != batch.quotes:
            batch.quotes = fresh
            batch.offers = tuple(quote.offer for quote in quotes)

    def _unfit(self, offer: Offer, provider: str) -> str:
        """Why an offer is not what its pool declares; empty if it is. Flux drains a node that has less (RFC 20's R)."""
        if offer.pool not in self._pools or offer.provider != provider:
            return f"provider {provider} offers {describe(offer)} for a pool that is not its own"
        for what, has, declared in zip(
            ("cores", "gpus"), (offer.cores, offer.gpus), self._pools[offer.pool], strict=True
        ):
            if has < declared:
                return (
                    f"{describe(offer)} has {has} {what}, [pool.{offer.pool}] {what} = {declared}; "
                    "lower that, or let the provider offer a larger type"
                )
        return ""

    def _as_plugins_order(self, demand: Demand, batch: _Batch) -> Quotes:
        """The quotes in the plugins' order; those that they left out as refusals."""
        chosen = self._order_offers(demand, batch.offers) if batch.offers else None
        if chosen is None:
            return batch.quotes
        quotes = {quote.offer: quote for quote in batch.quotes if isinstance(quote, Quote)}
        ordered: list[Quote | Refusal] = []
        for offer in chosen:
            quote = quotes.pop(offer, None) if isinstance(offer, Offer) else None
            if quote is not None:
                ordered.append(dataclasses.replace(quote, rank=len(ordered)))
        left_out = [
            Refusal(offer.pool, offer.provider, f"a plugin of this site left its offer out: {describe(offer)}")
            for offer in quotes
        ]
        return (*ordered, *left_out, *(no for no in batch.quotes if isinstance(no, Refusal)))

    def _drop(self, keys: Collection[tuple[str, Demand]]) -> None:
        for key in keys:
            del self._entries[key]
        if keys:
            self._batches = {entry.batch.answers: entry.batch for entry in self._entries.values()}


def _fresh(entry: _Entry, now: float) -> bool:
    """Whether an answer may still be used. A refusal that names no time to ask again stays for long."""
    if now < entry.at + PAST_RETRY_S:
        return True
    if entry.batch.retry_at <= now:
        return False
    return now < entry.at + ANSWER_TTL_S or entry.batch.lasting


def _guess_s(offer: Offer) -> float:
    return GUESS_JOIN_S if offer.join_s is None else offer.join_s


def _preference(quote: Quote) -> tuple[bool, float, float]:
    """Known prices first, the lowest in front; then the shortest join time; then (sorts are stable) as given."""
    usd = quote.offer.usd_per_node_hour
    return usd is None, usd or 0.0, quote.join_s


class MarketView:
    """:class:`fluxburst.moment.Market`: an :class:`OfferBook` at one moment."""

    def __init__(self, book: OfferBook, now: float, *, old: bool = False) -> None:
        self._book = book
        self._now = now
        self._old = old
        self._stamp = (book.breakers.stamp(now), book.joins.version, book.sales)

    def quotes(self, provider: str, demand: Demand, *, old: bool = False) -> Quotes | None:
        """A provider's answers in order of preference, refusals last; None where it has to be asked (again) first.

        With ``old`` answers will do that are too old to be bought on.

        Quotes that are closed keep their place. Demands with equal answers share one list, as long as no plugin orders
        them otherwise, and it is the same object until something in it changes.
        """
        return self._book.quotes(provider, demand, self._now, self._stamp, old=old or self._old)

    def quote(self, offer: Offer) -> Quote:
        """One offer at the site's price, with its join time and its health."""
        return self._book.quote(offer, self._now)
