"""The nodes of one pool as the planner fills them: what is free on each, when, and who booked it."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from fluxburst import jobspec
from fluxburst.model import Demand, Host, JobId, Shrink
from fluxburst.moment import NOBODY, FleetNode, PoolState, Quote

T = TypeVar("T")

_INF = float("inf")

Free = tuple[int, int]
"""Free cores and GPUs of a node."""

Place = tuple[float, bool, int]
"""Where a node stands among those with as much free: when it can be used, whether it is not up, its rank."""

Seat = tuple[int, int, int, int, bool, str]
"""What of a demand tells on which nodes it fits, and how: all but its duration and whether these are spot."""

LOOKS = 16
"""How many rooms a choice looks at beyond those that it needs: those that fit best come first."""


def seat_of(demand: Demand) -> Seat:
    per_slot = demand.cores_per_slot, demand.gpus_per_slot
    return demand.nodes, demand.slots, *per_slot, demand.exclusive, demand.constraint


class Take(NamedTuple):
    """What one job has booked of one node: cores and GPUs (all of it, where ``whole``), from when until when."""

    cores: int
    gpus: int
    whole: bool
    start_at: float = 0.0
    end_at: float = 0.0

    def over(self, start_at: float, end_at: float) -> Take:
        """The same at another time."""
        return Take(self.cores, self.gpus, self.whole, start_at, end_at)


class Room:
    """One node: there, on its way, or to be bought in this plan (then ``node`` is None and ``quote`` its offer).

    ``at`` is when it can be used, ``end`` when all that it runs and has promised is expected to have ended, ``due``
    when the first of its bookings begins, ``until`` until when the ledger has it reserved. ``promised`` means that all
    of it is promised from ``at`` on, when what it runs has ended: until then nobody else can use it. ``order`` is what
    the nodes of one order have in common.
    """

    __slots__ = (
        *("at", "cores", "due", "end", "gpus", "host", "jobs", "key", "latest", "node"),
        *("order", "payer", "promised", "quote", "rank", "until", "whole"),
    )

    def __init__(self, host: Host, rank: int, node: FleetNode | None, quote: Quote | None, at: float) -> None:
        self.host = host
        self.rank = rank
        self.node = node
        self.quote = quote
        self.at = self.latest = at
        self.promised = False
        self.payer = NOBODY
        self.order: object = None
        self.until = 0.0
        self.jobs: dict[JobId, Take] = {}
        self.key: tuple[Free, Place] | None = None
        self.cores = self.gpus = 0
        self.end = at
        self.due = _INF
        self.whole = True

    @property
    def up(self) -> bool:
        return self.node is not None and self.node.up

    @property
    def price(self) -> float | None:
        if self.quote is not None:
            return self.quote.offer.usd_per_node_hour
        return self.node.usd_per_node_hour if self.node is not None else None

    @property
    def spot(self) -> bool:
        if self.quote is not None:
            return self.quote.offer.spot
        return self.node is not None and self.node.spot

    def free_at(self, take: Take) -> float:
        """When it has room for this: when it can be used, or when what it runs and has promised has ended."""
        return self.at if self.fits(take) else self.end

    def fits(self, take: Take) -> bool:
        return self.whole if take.whole else self.cores >= take.cores and self.gpus >= take.gpus


class PoolRooms:
    """All rooms of one pool, filed under what is free on them."""

    def __init__(self, state: PoolState) -> None:
        self.state = state
        self.rooms: dict[Host, Room] = {}
        self.free: dict[Host, None] = {}
        """The hosts that may be ordered, in order."""
        self._there: dict[Host, Room] = {}
        """The rooms that are not only planned."""
        self._buckets: dict[Free, list[Place]] = {}
        self._keys: list[Free] = []
        self._by_rank: dict[int, Room] = {}
        self._eligible: dict[str, frozenset[Host] | None] = {"": None}
        self._fits: dict[Seat, Any] = {}
        self._opened: list[Room] = []
        self.soonest_at = _INF
        """What is free on any of the rooms can be used at this time, or later."""
        self.update(state)

    def update(self, state: PoolState) -> tuple[set[JobId], set[JobId]]:
        """Take in how the pool is now: jobs that have lost what they had booked, and jobs whose nodes changed.

        What was opened and is not in the fleet now was not bought.
        """
        if state.declared is not self.state.declared:
            self._eligible = {"": None}
            self._fits.clear()
        lost: set[JobId] = set()
        touched: set[JobId] = set()
        unbought = any(room.node is None for room in self._opened)
        if state is not self.state or unbought or not self.rooms:
            fleet = {node.host: node for node in state.fleet}
            for host in [host for host in self.rooms if host not in fleet]:
                lost.update(self.rooms[host].jobs)
                self._drop(self.rooms[host])
            for host, node in fleet.items():
                room = self.rooms.get(host)
                if room is None:
                    room = Room(host, state.declared[host], node, None, node.at)
                    self.rooms[host] = self._there[host] = self._by_rank[room.rank] = room
                    self._reckon(room)
                elif room.node is not node:
                    room.node, room.quote = node, None
                    self._there[host] = room
                    self._reckon(room)
                    if (
                        room.cores < 0
                        or room.gpus < 0
                        or (not node.whole and any(take.whole for take in room.jobs.values()))
                    ):
                        lost.update(room.jobs)
                        room.jobs.clear()
                        self._reckon(room)
                    touched.update(room.jobs)
            self.free = dict.fromkeys(state.free)
            self.soonest_at = min((room.at for room in self.rooms.values() if room.key is not None), default=_INF)
        self.state = state
        self._opened.clear()
        return lost, touched

    def hosts(self, demand: Demand) -> frozenset[Host] | None:
        """The declared hosts that satisfy the demand's own constraint; None for all."""
        found = self._eligible.get(demand.constraint, ...)
        if found is ...:
            constraint = json.loads(demand.constraint)
            found = frozenset(
                host
                for host, rank in self.state.declared.items()
                if jobspec.matches(constraint, host=host, rank=rank, properties=self.state.properties)
            )
            self._eligible[demand.constraint] = found
        return found

    def open(self, host: Host, quote: Quote, at: float) -> Room:
        """A room that is to be bought: an empty node. It is a candidate once somebody has booked a part of it."""
        del self.free[host]
        room = Room(host, self.state.declared[host], None, quote, at)
        room.cores, room.gpus = self.state.cores, self.state.gpus
        self.rooms[host] = self._by_rank[room.rank] = room
        self._opened.append(room)
        return room

    def close(self, rooms: Sequence[Room]) -> None:
        """Undo :meth:`open`; nothing is booked on them any more."""
        for room in rooms:
            self._drop(room)
        closed = set(map(id, rooms))
        self._opened = [room for room in self._opened if id(room) not in closed]
        mine = {room.host for room in self._opened}
        self.free = dict.fromkeys(host for host in self.state.free if host not in mine)

    def book(self, room: Room, jobs: Sequence[JobId], take: Take) -> None:
        """Let each of these jobs have ``take``; the caller has seen that it fits, now or when ``end`` has come."""
        booked = dict.fromkeys(jobs, take)
        if room.jobs:
            room.jobs.update(booked)
        else:
            room.jobs = booked
        self._hold(room, take, len(jobs))
        self._file(room)

    def book_later(self, room: Room, job: JobId, take: Take) -> None:
        """Let a job have its part of a room when that has room for it, see :meth:`Room.free_at`."""
        if room.fits(take):
            self.book(room, (job,), take)
            return
        room.at, room.promised = room.end, True
        room.cores, room.gpus, room.whole = self.state.cores, self.state.gpus, True
        self.book(room, (job,), take)

    def unbook(self, room: Room, jobs: Iterable[JobId]) -> None:
        for job in jobs:
            room.jobs.pop(job, None)
        if room.host in self.rooms:
            self._reckon(room)

    def rebook(self, room: Room, job: JobId, take: Take) -> None:
        """Let a job have what it has at another time."""
        room.jobs[job] = take
        self._reckon(room)

    def booked(self, now: float, waiting: Collection[JobId]) -> Iterator[Host]:
        """The hosts that somebody counts on, but for idle ones that nobody needs for longer than a node may idle.

        Those that only jobs count on that are ``waiting`` for others to end had better go, and be bought again in time.
        """
        for host, room in self.rooms.items():
            idle = room.node is not None and room.node.up and not room.node.end_at
            far = idle and room.due > now + self.state.idle_s and all(job in waiting for job in room.jobs)
            if room.jobs and not far:
                yield host

    def staying_with(self, room: Room) -> list[Room]:
        """The rooms whose nodes cannot be given back before this one's, itself among them."""
        shrink = self.state.shrink
        if shrink is Shrink.ANY:
            return [room]
        return [
            other
            for other in self.rooms.values()
            if other.order == room.order and (shrink is Shrink.ORDER or other.rank <= room.rank)
        ]

    def exposure_usd(
        self,
        now: float,
        price: Callable[[float | None], float | None],
        more: Sequence[tuple[Take, float]] = (),
        new: Sequence[tuple[float, float | None]] = (),
    ) -> float:
        """The most that Flux's choice among these nodes may add to what is reserved; see docs/decisions/0008.

        Args:
            now: POSIX seconds.
            price: what has to be reckoned with for a node's price.
            more: what further jobs would book, with the time until which the node that they book is reserved.
            new: until when the nodes of one further order would be reserved, each with its price.
        """
        state, apart = self.state, self.state.shrink is Shrink.ANY
        taken = [(take, room.until) for room in self.rooms.values() for take in room.jobs.values()]
        taken += more
        if not taken:
            return 0.0
        prices = {price(usd) or 0.0 for _, usd in new} | {price(room.price) or 0.0 for room in self.rooms.values()}
        if apart and len(prices) == 1 and all(take.whole or take.cores >= state.cores for take, _ in taken):
            return 0.0  # a job that starts on another node leaves its own one free, and these exchange what is reserved
        # one that starts late does so as far as was reserved for it, and idle nothing has to be
        late_s = state.boot_s + state.tail_s - state.idle_s
        needs = sorted((min(until - state.idle_s, take.end_at + late_s) for take, until in taken), reverse=True)
        lives: dict[object, float] = {}
        for room in self.rooms.values():
            key = room.host if apart else room.order
            lives[key] = min(room.until, lives.get(key, _INF))
        together = 1
        if apart:
            ends = [*lives.values(), *(until for until, _ in new)]
        else:
            ends = [*lives.values(), *(until for until, _ in new[:1])]
            together = max([len(new), *Counter(room.order for room in self.rooms.values()).values()])
        ends.sort()
        longer_s = sum(max(0.0, need - max(end, now)) for need, end in zip(needs, ends, strict=False))
        return max(prices) * together * longer_s / 3600

    def postpone(self, now: float) -> None:
        """What should have begun before now, and is still only booked, begins now at the earliest."""
        for room in self._there.values():
            if room.due < now:
                for job, take in room.jobs.items():
                    if take.start_at < now:
                        room.jobs[job] = take.over(now, now + take.end_at - take.start_at)
                self._reckon(room)

    def fit(self, demand: Demand, judge: Callable[[PoolRooms, Demand], T]) -> T:
        """What ``judge`` says of a demand on this pool's nodes, remembered while these are declared as they are."""
        seat = seat_of(demand)
        if seat not in self._fits:
            self._fits[seat] = judge(self, demand)
        found: T = self._fits[seat]
        return found

    def may_hold(self, take: Take) -> bool:
        """Whether :meth:`candidates` are worth asking for: some node may have enough free."""
        if take.whole:
            return (self.state.cores, self.state.gpus) in self._buckets
        return bool(self._keys) and self._keys[-1] >= (take.cores, take.gpus)

    def candidates(self, take: Take, hosts: frozenset[Host] | None) -> Iterator[Room]:
        """The rooms with enough free, those with the least to spare first, then the earliest."""
        full = (self.state.cores, self.state.gpus)
        keys = [full] if take.whole else self._keys[bisect_left(self._keys, (take.cores, take.gpus)) :]
        for free in keys:
            if free[1] < take.gpus:
                continue
            for _, _, rank in self._buckets.get(free, ()):
                room = self._by_rank[rank]
                if (room.whole or not take.whole) and (hosts is None or room.host in hosts):
                    yield room

    def busy(self, take: Take, hosts: frozenset[Host] | None, deadline_at: float) -> list[Room]:
        """The rooms that would do if they were empty, and are expected to be by then; the earliest first."""
        if not self._there:
            return []
        found = [
            room
            for room in self._there.values()
            if (room.promised or not room.fits(take)) and room.end > room.at and room.free_at(take) <= deadline_at
            if hosts is None or room.host in hosts
        ]
        found.sort(key=lambda room: (room.free_at(take), room.rank))
        return found

    @property
    def spare(self) -> int:
        """How many rooms have anything free."""
        return sum(map(len, self._buckets.values()))

    def orderable(self, hosts: frozenset[Host] | None, count: int) -> list[Host]:
        """The first hosts that may be ordered, ``count`` at most; of blocks, of the smallest that has so many."""
        if self.state.blocks:
            starts = [start for start in self._starts(hosts) if len(start) >= count]
            return min(starts, key=len)[:count] if starts else []
        found: list[Host] = []
        if count > 0:
            for host in self.free:
                if hosts is None or host in hosts:
                    found.append(host)
                    if len(found) == count:
                        break
        return found

    def orderable_count(self, hosts: frozenset[Host] | None) -> int:
        """How many of these hosts one order may have now."""
        if self.state.blocks:
            return max(map(len, self._starts(hosts)), default=0)
        return len(self.free) if hosts is None else sum(host in hosts for host in self.free)

    def most(self, hosts: frozenset[Host] | None) -> int:
        """How many of these hosts a job may have at the most: of blocks, as many as an order has."""
        if self.state.blocks:
            return max(len(_start(block, hosts)) for block in self.state.blocks)
        return len(self.state.declared) if hosts is None else len(hosts)

    def _starts(self, hosts: frozenset[Host] | None) -> Iterator[list[Host]]:
        """What an order may take of each block that no order has any of."""
        for block in self.state.blocks:
            if all(host in self.free for host in block):
                yield _start(block, hosts)

    def _reckon(self, room: Room) -> None:
        """Work out what is free from the node and the bookings, and file it."""
        node = room.node
        room.due = _INF
        if node is not None:
            room.cores, room.gpus, room.whole = node.cores, node.gpus, node.whole
            room.at, room.end, room.until = node.at, max(node.end_at, node.at), node.paid_until_at
            room.latest, room.promised, room.order = node.latest_at, False, node.request_id or room.host
        else:
            room.cores, room.gpus, room.whole, room.end = self.state.cores, self.state.gpus, True, room.at
        for take in room.jobs.values():
            self._hold(room, take, 1)
        self._file(room)

    @staticmethod
    def _hold(room: Room, take: Take, times: int) -> None:
        room.whole = False
        if take.whole:
            room.cores = room.gpus = 0
        else:
            room.cores -= times * take.cores
            room.gpus -= times * take.gpus
        room.end = max(room.end, take.end_at)
        room.due = min(room.due, take.start_at)

    def _file(self, room: Room) -> None:
        key = None
        if room.cores > 0 and not room.promised:
            key = ((room.cores, room.gpus), (room.at, not room.up, room.rank))
        if key == room.key:
            return
        self._unfile(room)
        room.key = key
        if key is not None:
            bucket = self._buckets.get(key[0])
            if bucket is None:
                bucket = self._buckets[key[0]] = []
                insort(self._keys, key[0])
            insort(bucket, key[1])
            self.soonest_at = min(self.soonest_at, room.at)

    def _unfile(self, room: Room) -> None:
        if room.key is None:
            return
        free, place = room.key
        bucket = self._buckets[free]
        del bucket[bisect_left(bucket, place)]
        if not bucket:
            del self._buckets[free]
            del self._keys[bisect_left(self._keys, free)]
        room.key = None

    def _drop(self, room: Room) -> None:
        self._unfile(room)
        del self.rooms[room.host]
        self._there.pop(room.host, None)
        del self._by_rank[room.rank]


def _start(block: Sequence[Host], hosts: frozenset[Host] | None) -> list[Host]:
    return list(itertools.takewhile(lambda host: hosts is None or host in hosts, block))
