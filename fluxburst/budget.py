"""The ledger: what was reserved when nodes were bought, settled when they went; and what may still be spent. Pure.

A node's life is a row of segments, each on one account: the first from its launch to the latest end that its jobs may
reach, each further one where a job goes on beyond that. A live segment counts with its reserved length, which is an
upper bound; when the node goes, each is cut at the real end. A node that outlives its row goes on on the last account.

A window (day, month; UTC) counts the whole of what was reserved in it, and of each older segment the most that falls
into this window or any later one. A window so begins with no more than the one before it had at its end, and counts no
less than what it will really cost: while nodes end within their reservations, no window ever costs more than its cap.
A provider's billing increment falls into the window in which it begins.

Inside, money is exact: integers that count a price of a nano-dollar an hour for a millisecond (:data:`_DOLLAR` of them
are a dollar). No rounding of floats lets a cap be exceeded.
One thread, the controller's: a :class:`Ledger` needs no lock, and a draft is good until the ledger changes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fluxburst.config import BurstConfig, Money
from fluxburst.model import Account, Host, RequestId
from fluxburst.moment import NOBODY, Cap

WINDOWS = ("day", "month")
GROUPS = ("day", "month", "user", "bank", "project", "pool", "provider")
"""By what :func:`totals` can tell costs apart."""

_NANO = 10**9
_DOLLAR = _NANO * 3_600_000
_MICRO_DOLLAR = _DOLLAR // 10**6


@dataclass(frozen=True, slots=True)
class Window:
    """One day or month of UTC."""

    kind: str
    from_at: float
    until_at: float

    @classmethod
    def at(cls, kind: str, when: float) -> Window:
        """The window of this kind that ``when`` is in."""
        start = datetime.fromtimestamp(when, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if kind == "day":
            return cls(kind, start.timestamp(), (start + timedelta(days=1)).timestamp())
        start = start.replace(day=1)
        return cls(kind, start.timestamp(), (start + timedelta(days=31)).replace(day=1).timestamp())

    def next(self) -> Window:
        return Window.at(self.kind, self.until_at)

    @property
    def name(self) -> str:
        """Such as ``2026-11-22`` or ``2026-11``."""
        date = datetime.fromtimestamp(self.from_at, UTC).date().isoformat()
        return date if self.kind == "day" else date[:7]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _amount(usd: float) -> int:
    """Whole micro-dollars, rounded up; those that were whole before they became a float stay what they were."""
    return math.ceil(round(usd * 10**6, 2)) * _MICRO_DOLLAR


def _cost(usd_per_hour: float, life_ms: int, increment_s: float, minimum_s: float) -> int:
    """What a node has cost when it has lived for so long. Two stretches never cost less than both in one."""
    if life_ms <= 0:
        return 0
    increment_ms = max(1, _ms(increment_s))
    billed_ms = -(-max(life_ms, _ms(minimum_s)) // increment_ms) * increment_ms
    return round(usd_per_hour * _NANO) * billed_ms


def cost_usd(
    usd_per_node_hour: float, from_at: float, until_at: float, increment_s: float = 1.0, minimum_s: float = 0.0
) -> float:
    """What a node costs that is launched at ``from_at`` and gone by ``until_at``, rounded up to a micro-dollar.

    It is also the most by which a node's cost grows when it stays from ``from_at`` to ``until_at``.
    """
    cost = _cost(usd_per_node_hour, _ms(until_at) - _ms(from_at), increment_s, minimum_s)
    return -(-cost // _MICRO_DOLLAR) / 10**6


def reckoned(config: BurstConfig, usd_per_node_hour: float | None) -> float | None:
    """The price to reckon with: the known one, else ``[limits] assume_usd_per_node_hour``, else None."""
    return config.limits.assume_usd_per_node_hour if usd_per_node_hour is None else usd_per_node_hour


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of one node's life that one account pays for.

    ``usd_per_node_hour`` is the price that is reckoned with (None: unknown, and counted as nothing). ``launched_at`` is
    the node's, with which its billing begins; ``reserved_at`` is when the segment was bought. It is reserved from
    ``from_at`` to ``until_at``; ``ended_at`` is its real end, None while the node lives.
    """

    request_id: RequestId
    host: Host
    pool: str
    provider: str
    account: Account
    usd_per_node_hour: float | None
    launched_at: float
    reserved_at: float
    from_at: float
    until_at: float
    increment_s: float = 1.0
    minimum_s: float = 0.0
    ended_at: float | None = None

    @property
    def end_at(self) -> float:
        return self.until_at if self.ended_at is None else self.ended_at

    def cost(self, from_at: float = -math.inf, until_at: float = math.inf) -> int:
        """What the part of it between two times costs. Parts add up to the whole."""
        begin, end = max(from_at, self.from_at), min(until_at, self.end_at)
        if end <= begin or self.usd_per_node_hour is None:
            return 0
        launched_ms = _ms(self.launched_at)
        after = _cost(self.usd_per_node_hour, _ms(end) - launched_ms, self.increment_s, self.minimum_s)
        if begin == self.launched_at:
            return after
        return after - _cost(self.usd_per_node_hour, _ms(begin) - launched_ms, self.increment_s, self.minimum_s)

    def counted(self, window: Window) -> int:
        """What it counts in a window: see the module."""
        if self.reserved_at >= window.from_at:
            return self.cost()
        most = 0
        while window.from_at < self.end_at:
            most = max(most, self.cost(window.from_at, window.until_at))
            window = window.next()
        return most

    def name(self, group: str) -> str:
        """Its user, bank, project, pool or provider."""
        name: str = getattr(self if group in ("pool", "provider") else self.account, group)
        return name


@dataclass(frozen=True, slots=True)
class _Limit:
    """One dollar cap. ``name`` is its place in burst.toml."""

    kind: str
    name: str
    amount: int


class _Caps:
    """The dollar caps of burst.toml, found by scope and name."""

    def __init__(self, config: BurstConfig) -> None:
        limits = config.limits
        self.tables: dict[str, Mapping[str, Money]] = {
            "user": limits.user,
            "bank": limits.bank,
            "project": limits.project,
            "pool": limits.pool,
            "provider": limits.provider,
        }
        self._known: dict[tuple[str, str], tuple[_Limit, ...]] = {("all", ""): tuple(_limits("[limits]", limits))}
        self.any = bool(self._known["all", ""]) or any(
            any(_limits("", money)) for table in self.tables.values() for money in table.values()
        )

    def of(self, scope: str, name: str) -> tuple[_Limit, ...]:
        """The caps of one name. What has no name, such as a job without a bank, is capped by none of its scope."""
        known = self._known.get((scope, name))
        if known is None:
            key = own_table(self.tables[scope], name) if name else None
            known = () if key is None else tuple(_limits(place(scope, key), self.tables[scope][key]))
            self._known[scope, name] = known
        return known

    def scopes(self, account: Account, pool: str, provider: str) -> Iterator[tuple[str, str]]:
        """Scope and name of everything that may cap such a purchase."""
        yield "all", ""
        yield "user", account.user
        yield "bank", account.bank
        yield "project", account.project
        yield "pool", pool
        yield "provider", provider


def own_table(tables: Mapping[str, object], name: str) -> str | None:
    """The table that holds for a name: its own, else ``*``; None where there is neither."""
    return name if name in tables else "*" if "*" in tables else None


def place(scope: str, name: str) -> str:
    """A table of caps as it stands in burst.toml."""
    return f"[limits.{scope}.{name if re.fullmatch(r'[A-Za-z0-9_-]+', name) else json.dumps(name)}]"


def _limits(table: str, money: Money) -> Iterator[_Limit]:
    for kind, usd in (("day", money.usd_per_day), ("month", money.usd_per_month)):
        if usd is not None:
            yield _Limit(kind, f"{table} usd_per_{kind}", math.floor(round(usd * 10**6, 2)) * _MICRO_DOLLAR)


def accounted(config: BurstConfig, account: Account) -> Account:
    """The account with only those names that some dollar cap asks for: so few kinds of jobs have to be told apart."""
    tables = {"user": config.limits.user, "bank": config.limits.bank, "project": config.limits.project}
    kept = {}
    for scope, table in tables.items():
        name: str = getattr(account, scope)
        key = own_table(table, name) if name else None
        if key is not None and any(_limits("", table[key])):
            kept[scope] = name
    return Account(**kept) if kept else NOBODY


@dataclass(frozen=True, slots=True)
class Line:
    """What one scope has spent and reserved in the present day or month, against its cap where it has one.

    ``cap`` is the cap's place in burst.toml, empty without one. ``level`` is 1.0 or ``[limits] warn_at``, whichever
    ``share`` has reached, else 0.0.
    """

    scope: str
    name: str
    window: Window
    spent_usd: float
    reserved_usd: float
    cap: str = ""
    limit_usd: float | None = None
    share: float | None = None
    level: float = 0.0


class Ledger:
    """What all that lives was reserved for, and the sums of the present day and month. One thread.

    ``segments`` are all those of live nodes, and those of others that ended in ``now``'s month. ``now`` never goes back
    from call to call. What a method returns has to be stored before anything is done that relies on it.
    """

    def __init__(self, config: BurstConfig, segments: Iterable[Segment], now: float) -> None:
        self._config = config
        self._caps = _Caps(config)
        self._lives: dict[Host, list[Segment]] = {}
        self._windows = {kind: Window.at(kind, now) for kind in WINDOWS}
        self._sums: dict[tuple[str, str, str], int] = defaultdict(int)
        self._scopes_of: dict[tuple[Account, str, str], tuple[tuple[str, str], ...]] = {}
        self.version = 0
        """Grows whenever a sum may have changed."""
        for segment in sorted(segments, key=lambda segment: segment.from_at):
            if segment.ended_at is None:
                self._lives.setdefault(segment.host, []).append(segment)
            self._count(segment, 1)

    def __contains__(self, host: Host) -> bool:
        """Whether a live node of this host is accounted for."""
        return host in self._lives

    def reserve(
        self,
        launched_at: float,
        request_id: RequestId,
        host: Host,
        pool: str,
        account: Account,
        usd_per_node_hour: float | None,
        until_at: float,
    ) -> Segment:
        """A node is bought, and expected to be gone by ``until_at`` at the latest."""
        self._roll(launched_at)
        table = self._config.pool[pool]
        segment = Segment(
            request_id=request_id,
            host=host,
            pool=pool,
            provider=table.provider,
            account=account,
            usd_per_node_hour=reckoned(self._config, usd_per_node_hour),
            launched_at=launched_at,
            reserved_at=launched_at,
            from_at=launched_at,
            until_at=max(until_at, launched_at),
            increment_s=table.billing_increment,
            minimum_s=table.billing_minimum,
        )
        self._lives[host] = [segment]
        self._count(segment, 1)
        return segment

    def extend(self, now: float, host: Host, account: Account, until_at: float) -> tuple[Segment, ...]:
        """A live node is needed until then; what goes beyond its reservation is on this account. What changed."""
        self._roll(now)
        self._overrun(host, now)
        row = self._lives[host]
        last = row[-1]
        if until_at <= last.until_at:
            return ()
        today = self._windows["day"].from_at
        if last.until_at == last.from_at or (last.account == account and last.reserved_at >= today):
            # counted whole in the same windows as a segment of its own would be
            self._replace(row, dataclasses.replace(last, account=account, until_at=until_at))
            return (row[-1],)
        beyond = dataclasses.replace(last, account=account, reserved_at=now, from_at=last.until_at, until_at=until_at)
        row.append(beyond)
        self._count(beyond, 1)
        return last, beyond

    def exchange(self, now: float, booked: Host, used: Host) -> tuple[Segment, ...]:
        """A job runs on another node of its pool than was booked for it: what was reserved there is reserved here.

        ``used`` gets the longer reservation of the two, and ``booked`` the other. Whoever was to pay for the stretch
        between them still does, so that nobody's cap is touched. What changed.
        """
        self._roll(now)
        self._overrun(booked, now)
        self._overrun(used, now)
        longer, shorter = self.paid_until(booked), max(now, self.paid_until(used))
        if longer <= shorter:
            return ()
        changed: list[Segment] = []
        row, kept = self._lives[booked], list[Segment]()
        moved = [segment for segment in row if segment.until_at > shorter]
        for segment in row:
            if segment.until_at <= shorter:
                kept.append(segment)
                continue
            self._count(segment, -1)
            if kept and segment.from_at >= shorter:
                # nothing is left of it, and nothing must be left open in the store
                changed.append(dataclasses.replace(segment, ended_at=segment.from_at))
                continue
            kept.append(dataclasses.replace(segment, until_at=shorter))
            self._count(kept[-1], 1)
            changed.append(kept[-1])
        self._lives[booked] = kept
        for segment in moved:
            changed += self.extend(now, used, segment.account, segment.until_at)
        return tuple(changed)

    def settle(self, now: float, host: Host, ended_at: float) -> tuple[Segment, ...]:
        """A node is gone; it ended at ``ended_at``, which may be its launch where nothing ever ran. What changed."""
        self._roll(now)
        row = self._lives.pop(host)
        settled = []
        for segment in row:
            last = segment is row[-1]
            end_at = max(segment.from_at, ended_at if last else min(ended_at, segment.until_at))
            settled.append(dataclasses.replace(segment, ended_at=end_at))
            self._count(segment, -1)
            self._count(settled[-1], 1)
        return tuple(settled)

    def paid_until(self, host: Host) -> float:
        """Until when a live node is reserved; 0 for one that is not known."""
        return self._lives[host][-1].until_at if host in self._lives else 0.0

    def cost_usd(self, pool: str, usd_per_node_hour: float | None, from_at: float, until_at: float) -> float | None:
        """What will be reserved for a node from one time to another, at the most; None where no price is known.

        What a :class:`Draft` is asked in must be reckoned with this.
        """
        price = reckoned(self._config, usd_per_node_hour)
        table = self._config.pool[pool]
        if price is None:
            return None
        return cost_usd(price, from_at, until_at, table.billing_increment, table.billing_minimum)

    @property
    def capped(self) -> bool:
        """Whether any dollar cap holds for anybody."""
        return self._caps.any

    def draft(self, now: float, live: Mapping[str, int]) -> Draft:
        """What may be bought now. ``live`` is each pool's number of nodes that are live or in flight."""
        if self._caps.any:
            self.live(now)
        return Draft(self._config, self._caps, self._windows, self._sums, live)

    def live(self, now: float) -> list[Segment]:
        """The segments of all live nodes; what outlived its reservation has it until now."""
        self._roll(now)
        for host in self._lives:
            self._overrun(host, now)
        return [segment for row in self._lives.values() for segment in row]

    def report(self, now: float) -> list[Line]:
        """The present day and month as a whole, and of every name that a cap holds for."""
        live = self.live(now)
        spent = defaultdict(int, self._sums)
        for segment in live:
            scopes = self._scopes(segment)
            for kind, window in self._windows.items():
                ahead = segment.counted(window) - segment.cost(window.from_at, now)
                for scope, name in scopes:
                    spent[kind, scope, name] -= ahead
        return [
            self._line(scope, name, window, spent[kind, scope, name])
            for scope, name in self._named()
            for kind, window in self._windows.items()
            if scope == "all" or any(limit.kind == kind for limit in self._caps.of(scope, name))
        ]

    def levels(self) -> dict[tuple[str, str, str], float]:
        """Window's name, scope and name of every cap that is used to ``[limits] warn_at`` or more, with its level."""
        return {
            (self._windows[kind].name, scope, name): level
            for (kind, scope, name), amount in self._sums.items()
            for limit in self._caps.of(scope, name)
            if limit.kind == kind and amount and (level := self._level(amount, limit))
        }

    def _named(self) -> list[tuple[str, str]]:
        """Every scope and name to report: those with tables, and those under a ``*`` that have bought."""
        named = {("all", ""): None}
        for scope, table in self._caps.tables.items():
            seen = sorted({name for (_, of, name), amount in self._sums.items() if of == scope and amount})
            named |= dict.fromkeys((scope, name) for name in [*table, *seen] if name != "*")
        return list(named)

    def _line(self, scope: str, name: str, window: Window, spent: int) -> Line:
        committed = self._sums.get((window.kind, scope, name), 0)
        line = Line(scope, name, window, spent / _DOLLAR, (committed - spent) / _DOLLAR)
        for limit in self._caps.of(scope, name):
            if limit.kind == window.kind:
                share = committed / limit.amount if limit.amount else 1.0
                level = self._level(committed, limit)
                return dataclasses.replace(
                    line, cap=limit.name, limit_usd=limit.amount / _DOLLAR, share=share, level=level
                )
        return line

    def _level(self, committed: int, limit: _Limit) -> float:
        if committed >= limit.amount:
            return 1.0
        warn_at = self._config.limits.warn_at
        return warn_at if committed >= warn_at * limit.amount else 0.0

    def _roll(self, now: float) -> None:
        """Begin a new day or month, with what lives now."""
        for kind, window in self._windows.items():
            if now >= window.until_at:
                self._windows[kind] = Window.at(kind, now)
                for key in [key for key in self._sums if key[0] == kind]:
                    del self._sums[key]
                for row in self._lives.values():
                    for segment in row:
                        self._count(segment, 1, (kind,))

    def _overrun(self, host: Host, now: float) -> None:
        """A node that lives beyond its reservation has it until now; nothing is stored, as time alone tells."""
        row = self._lives[host]
        if row[-1].until_at < now:
            self._replace(row, dataclasses.replace(row[-1], until_at=now))

    def _replace(self, row: list[Segment], last: Segment) -> None:
        self._count(row[-1], -1)
        row[-1] = last
        self._count(last, 1)

    def _scopes(self, segment: Segment) -> tuple[tuple[str, str], ...]:
        """What a segment's cost is added to: everything, and each name that a cap holds for."""
        of = (segment.account, segment.pool, segment.provider)
        found = self._scopes_of.get(of)
        if found is None:
            found = self._scopes_of[of] = tuple(
                (scope, name) for scope, name in self._caps.scopes(*of) if scope == "all" or self._caps.of(scope, name)
            )
        return found

    def _count(self, segment: Segment, times: int, kinds: Sequence[str] = WINDOWS) -> None:
        self.version += 1
        scopes = self._scopes(segment)
        whole = times * segment.cost()
        for kind in kinds:
            window = self._windows[kind]
            amount = whole if segment.reserved_at >= window.from_at else times * segment.counted(window)
            if amount:
                for scope, name in scopes:
                    self._sums[kind, scope, name] += amount


@dataclass(slots=True)
class _Meter:
    """One cap and what counts against it, in nodes or in the ledger's money."""

    name: str
    limit: int
    used: int
    until_at: float | None = None

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)

    def cap(self, unit: str) -> Cap:
        scale = 1 if unit == "nodes" else _DOLLAR
        return Cap(self.name, unit, self.limit / scale, self.used / scale, self.until_at)


class Draft:
    """What one plan may still buy; :class:`fluxburst.moment.Draft`. Made by :meth:`Ledger.draft`.

    Where no price is known and a dollar cap holds, nothing may be bought: that cap is returned with the unit "price".
    """

    def __init__(
        self,
        config: BurstConfig,
        caps: _Caps,
        windows: Mapping[str, Window],
        sums: Mapping[tuple[str, str, str], int],
        live: Mapping[str, int],
    ) -> None:
        self._config = config
        self._caps = caps
        self._windows = windows
        self._sums = sums
        self._live = live
        self._meters: dict[str, dict[str, _Meter]] = {}
        self._found: dict[tuple[Account, str], tuple[tuple[_Meter, ...], tuple[_Meter, ...]]] = {}
        self._taken: list[tuple[Account, str, int, int]] = []

    def allowed(self, account: Account, pool: str, usd_per_node: float | None) -> tuple[int, Cap | None]:
        """How many nodes may be bought and the cap that binds next; ``sys.maxsize`` and None where none does."""
        nodes, dollars = self._of(account, pool)
        if usd_per_node is None and dollars:
            return 0, dollars[0].cap("price")
        most, binding = sys.maxsize, None
        for meter in nodes:
            if meter.left < most:
                most, binding = meter.left, (meter, "nodes")
        each = _amount(usd_per_node or 0.0)
        for meter in dollars if each else ():
            if meter.left // each < most:
                most, binding = meter.left // each, (meter, "usd")
        return most, None if binding is None else binding[0].cap(binding[1])

    def take(self, account: Account, pool: str, nodes: int, usd_per_node: float | None) -> None:
        """Reserve that.

        Raises:
            ValueError: it is more than :meth:`allowed`.
        """
        allowed, cap = self.allowed(account, pool, usd_per_node)
        if nodes > allowed:
            raise ValueError(f"{nodes} nodes in {pool} at {usd_per_node}: {allowed} are allowed by {cap}")
        self._take(account, pool, nodes, nodes * _amount(usd_per_node or 0.0))

    def extend(self, account: Account, pool: str, usd: float | None) -> Cap | None:
        """Reserve more for nodes that are there, unless a dollar cap forbids it, which is returned then."""
        _, dollars = self._of(account, pool)
        if usd is None:
            return dollars[0].cap("price") if dollars else None
        amount = _amount(usd)
        for meter in dollars if amount else ():
            if amount > meter.left:
                return meter.cap("usd")
        self._take(account, pool, 0, amount)
        return None

    def left_usd(self, account: Account, pool: str) -> float:
        """How many dollars the tightest cap leaves; infinite where none holds."""
        return min((meter.left / _DOLLAR for meter in self._of(account, pool)[1]), default=math.inf)

    def capped(self, pool: str) -> bool:
        """Whether a dollar cap holds for everyone in this pool: one in all, of the pool or of its provider."""
        return bool(self._of(NOBODY, pool)[1])

    def keep(self, pool: str, usd: float) -> None:
        """Keep so much back from these caps, whether they have room for it or not."""
        self._take(NOBODY, pool, 0, _amount(usd))

    def mark(self) -> int:
        return len(self._taken)

    def rollback(self, mark: int) -> None:
        while len(self._taken) > mark:
            account, pool, nodes, amount = self._taken.pop()
            self._add(account, pool, -nodes, -amount)

    def _take(self, account: Account, pool: str, nodes: int, amount: int) -> None:
        self._taken.append((account, pool, nodes, amount))
        self._add(account, pool, nodes, amount)

    def _add(self, account: Account, pool: str, nodes: int, amount: int) -> None:
        of_nodes, of_dollars = self._of(account, pool)
        for meter in of_nodes:
            meter.used += nodes
        for meter in of_dollars:
            meter.used += amount

    def _of(self, account: Account, pool: str) -> tuple[tuple[_Meter, ...], tuple[_Meter, ...]]:
        """The caps of nodes and of dollars that hold for such a purchase."""
        found = self._found.get((account, pool))
        if found is None:
            found = self._found[account, pool] = (tuple(self._node_caps(pool)), tuple(self._dollar_caps(account, pool)))
        return found

    def _node_caps(self, pool: str) -> Iterator[_Meter]:
        config, live = self._config, self._live
        table = config.pool[pool]
        if table.max_nodes is not None:
            yield self._meter(f"[pool.{pool}] max_nodes", pool, table.max_nodes, live.get(pool, 0))
        key = own_table(config.limits.provider, table.provider)
        if key is not None and (limit := config.limits.provider[key].nodes) is not None:
            used = sum(live.get(name, 0) for name, mate in config.pool.items() if mate.provider == table.provider)
            yield self._meter(f"{place('provider', key)} nodes", table.provider, limit, used)
        if config.limits.nodes is not None:
            yield self._meter("[limits] nodes", "", config.limits.nodes, sum(live.values()))

    def _dollar_caps(self, account: Account, pool: str) -> Iterator[_Meter]:
        for scope, name in self._caps.scopes(account, pool, self._config.pool[pool].provider):
            for limit in self._caps.of(scope, name):
                used = self._sums.get((limit.kind, scope, name), 0)
                yield self._meter(limit.name, name, limit.amount, used, self._windows[limit.kind].until_at)

    def _meter(self, name: str, who: str, limit: int, used: int, until_at: float | None = None) -> _Meter:
        """The one meter of a cap and of who is under it; a ``*`` has one for each."""
        return self._meters.setdefault(name, {}).setdefault(who, _Meter(name, limit, used, until_at))


@dataclass(frozen=True, slots=True)
class Total:
    """What was spent on nodes, and what is reserved for those that live. ``unpriced_hours`` have no known price."""

    name: str
    nodes: int
    node_hours: float
    unpriced_hours: float
    spent_usd: float
    reserved_usd: float


def totals(segments: Iterable[Segment], group: str, since_at: float, now: float) -> list[Total]:
    """What happened since a time, told apart by one of :data:`GROUPS`, in the order of the names.

    Live segments are as :meth:`Ledger.live` gives them.
    """
    nodes: dict[str, set[tuple[RequestId, Host]]] = defaultdict(set)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0, 0])
    for segment in segments:
        for name, from_at, until_at in _parts(segment, group, since_at):
            hours = max(0.0, min(until_at, segment.end_at, now) - max(from_at, segment.from_at)) / 3600
            entry = sums[name]
            nodes[name].add((segment.request_id, segment.host))
            entry[0] += hours
            entry[1] += hours if segment.usd_per_node_hour is None else 0.0
            entry[2] += segment.cost(from_at, min(until_at, now))
            entry[3] += segment.cost(max(from_at, now), until_at)
    return [
        Total(name, len(nodes[name]), hours, unpriced, spent / _DOLLAR, reserved / _DOLLAR)
        for name, (hours, unpriced, spent, reserved) in sorted(sums.items())
    ]


def _parts(segment: Segment, group: str, since_at: float) -> Iterator[tuple[str, float, float]]:
    """The names that a segment belongs to, each with its times."""
    if group not in WINDOWS:
        if segment.end_at > since_at:
            yield segment.name(group), since_at, math.inf
        return
    window = Window.at(group, max(segment.from_at, since_at))
    while window.from_at < segment.end_at and window.until_at > since_at:
        yield window.name, max(window.from_at, since_at), window.until_at
        window = window.next()
