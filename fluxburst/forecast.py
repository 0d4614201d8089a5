"""When a job would start at home: the free cores and GPUs of the instance's own nodes over time. Pure.

The profile is a step function of time, and each step is one integer for the cores and one for the GPUs. It is made of
planes with a bit for each node: in plane k are the nodes that have more than k free. In this unary form what stays free
over several steps is the bitwise *and* of them, the nodes with at least k free are plane k - 1, and taking k from nodes
moves their bits k planes down: so a job finds its room by few operations on integers, for all nodes at once.
"""

from __future__ import annotations

import json
import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from itertools import accumulate, pairwise

from fluxburst import jobspec
from fluxburst.model import Demand, Host, HostShare

DEPTH = 256
"""How many jobs get a place of their own before the rest is taken for a fluid."""

_BITS = 1 << 16
"""How many bits a step has at the most; where there are more cores they are counted in larger units."""

_ALL = -1


@dataclass(frozen=True, slots=True)
class HomeNode:
    """One of the instance's own nodes that is up and not drained."""

    host: Host
    rank: int
    cores: int
    gpus: int = 0
    properties: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Running:
    """A job that holds something at home. ``duration_s`` is its time limit, 0 when it has none."""

    shares: tuple[HostShare, ...]
    started_at: float
    duration_s: float = 0.0

    def end_at(self, now: float, assume_duration_s: float) -> float:
        """When it is reckoned to have ended.

        A job without a time limit is reckoned to run for ``assume_duration_s``; if it runs on, as long again as it has
        run. One that is still there after its limit, in its epilog perhaps, is reckoned to stay as long again as it has
        overstayed.
        """
        end_at = self.started_at + (self.duration_s or assume_duration_s)
        if end_at > now:
            return end_at
        return 2 * now - (end_at if self.duration_s else self.started_at)


class HomeForecast:
    """:class:`fluxburst.moment.Home`: conservative backfilling into what the running jobs leave.

    Jobs are told in the order of their priority, each with :meth:`start_at` and then :meth:`take`. A job starts at the
    earliest time at which it fits, for its whole duration, beside those that were told before it; so no later job ever
    delays an earlier one. A job without a time limit is reckoned to run for ``assume_duration_s``; see also
    :meth:`Running.end_at`. Nodes that are not in ``nodes`` do not count, as nobody knows when they come back.

    As Flux's schedulers do, a job takes the nodes with the most free cores first. The scheduler is taken to backfill
    with a plan for every job; Fluxion's ``easy`` has one for the first job of each queue, and sched-simple for none.

    ``depth`` jobs get a place of their own. Those after them, which no scheduler looks at yet either, are taken for a
    fluid: each starts where the profile has room for it for good, and not before the cores that it may use could have
    done the work that was told before it.
    """

    def __init__(
        self,
        now: float,
        nodes: Sequence[HomeNode],
        running: Iterable[Running],
        queues: Mapping[str, frozenset[str]],
        *,
        assume_duration_s: float,
        depth: int = DEPTH,
    ) -> None:
        """``queues`` is the properties that each queue at home requires (RFC 31); without named queues it is ``""``."""
        self._nodes = nodes
        self._queues = queues
        self._assume_duration_s = assume_duration_s
        self._left = depth
        self._unit = -(-sum(node.cores for node in nodes) // _BITS) or 1
        self._planes = _Planes(len(nodes), max((max(self._units(node.cores), node.gpus) for node in nodes), default=0))
        self._times = [now]
        self._cores: list[int] = []
        self._gpus: list[int] = []
        ends = [(job.end_at(now, assume_duration_s), job.shares) for job in running]
        self._build(sorted(ends, key=operator.itemgetter(0)))
        self._domains: dict[tuple[str, str], _Domain] = {}
        self._shapes: dict[tuple[object, ...], _Shape] = {}
        self._found: tuple[_Shape, float, float] | None = None
        """The latest answer, while it holds."""

    def start_at(self, queue: str, demand: Demand) -> float:
        """When a job would start at home that is next in line now, POSIX seconds; infinite if never.

        Raises:
            JobspecError: ``demand.constraint`` is malformed.
        """
        shape = self._shape(queue, demand)
        if not shape.ever:
            return math.inf
        if self._left > 0:
            duration_s = demand.duration_s or self._assume_duration_s
            at = self._find(shape, self._times[0], duration_s)
            self._found = shape, duration_s, at
            return at
        return max(self._front_at(shape), self._done_at(shape.domain))

    def take(self, queue: str, demand: Demand, start_at: float) -> None:
        """Let a job have its place, from ``start_at`` for its duration.

        If it does not fit there, as may be when the scheduler and not :meth:`start_at` has named the time, it gets the
        first place after that. One that never starts takes nothing.

        Raises:
            JobspecError: ``demand.constraint`` is malformed.
        """
        shape = self._shape(queue, demand)
        if not shape.ever or math.isinf(start_at):
            return
        duration_s = demand.duration_s or self._assume_duration_s
        if self._left > 0:
            self._left -= 1
            found = self._found == (shape, duration_s, start_at)
            self._place(shape, start_at if found else self._find(shape, start_at, duration_s), duration_s)
            self._found = None
            return
        work = shape.cores * duration_s
        shape.domain.own_work += work
        for domain, part in shape.domain.overlaps:
            domain.work += work * part

    def profile(self) -> list[tuple[float, int, int]]:
        """How many cores and GPUs are free in all, each time with the moment from which on it is so."""
        return [
            (at, cores.bit_count() * self._unit, gpus.bit_count())
            for at, cores, gpus in zip(self._times, self._cores, self._gpus, strict=True)
        ]

    def _build(self, ends: Sequence[tuple[float, tuple[HostShare, ...]]]) -> None:
        index = {node.host: i for i, node in enumerate(self._nodes)}
        cores = [node.cores for node in self._nodes]
        gpus = [node.gpus for node in self._nodes]
        for _, shares in ends:
            for share in shares:
                if (i := index.get(share.host)) is not None:
                    cores[i] -= share.cores
                    gpus[i] -= share.gpus
        # a node seems to have less than nothing while the end of one job is not known yet and the next one's start is
        units = [self._units(node.cores) for node in self._nodes]
        free_cores = self._planes.of([cores[i] * units[i] // node.cores for i, node in enumerate(self._nodes)])
        free_gpus = self._planes.of(gpus)
        for at, shares in ends:
            if at > self._times[-1]:
                self._cores.append(free_cores)
                self._gpus.append(free_gpus)
                self._times.append(at)
            for share in shares:
                if (i := index.get(share.host)) is not None:
                    cores[i] += share.cores
                    free_cores |= self._planes.column(cores[i] * units[i] // self._nodes[i].cores) << i
                    if share.gpus:
                        gpus[i] += share.gpus
                        free_gpus |= self._planes.column(gpus[i]) << i
        self._cores.append(free_cores)
        self._gpus.append(free_gpus)
        self._room = [step.bit_count() for step in self._cores]

    def _units(self, cores: int) -> int:
        """How many units a node with so many cores has."""
        return max(1, cores // self._unit)

    def _find(self, shape: _Shape, from_at: float, duration_s: float) -> float:
        """The earliest time at which a job fits for its duration."""
        times, room, end = self._times, self._room, len(self._times)
        wanted, least = shape.wanted, shape.least
        at = max(from_at, shape.not_before(duration_s))
        i = max(0, bisect_right(times, at) - 1)
        at = max(at, times[i])
        j, free = i, _ALL
        while j == i or (j < end and times[j] < at + duration_s):
            left = free & self._places(shape, j) if room[j] >= least else 0
            if left.bit_count() < wanted:
                # start over at the earliest step from which it fits until the end of this one
                i, free = j + 1, _ALL
                while room[i - 1] >= least and (left := free & self._places(shape, i - 1)).bit_count() >= wanted:
                    i, free = i - 1, left
                at = times[i]
            else:
                free = left
            j += 1
        if from_at == times[0]:
            shape.found(duration_s, at)
        return at

    def _places(self, shape: _Shape, i: int) -> int:
        return shape.places(self._cores[i], self._gpus[i])

    def _place(self, shape: _Shape, at: float, duration_s: float) -> None:
        first, end = self._split(at), self._split(at + duration_s)
        cores = reduce(operator.and_, self._cores[first:end])
        gpus = reduce(operator.and_, self._gpus[first:end])
        for nodes, level in shape.choose(cores, gpus):
            self._planes.take(self._cores, first, end, nodes, level.cores)
            self._room[first:end] = [room - nodes.bit_count() * level.cores for room in self._room[first:end]]
            if level.gpus:
                self._planes.take(self._gpus, first, end, nodes, level.gpus)

    def _split(self, at: float) -> int:
        """The index of the step that begins at this time."""
        i = bisect_right(self._times, at) - 1
        if self._times[i] < at:
            i += 1
            self._times.insert(i, at)
            self._cores.insert(i, self._cores[i - 1])
            self._gpus.insert(i, self._gpus[i - 1])
            self._room.insert(i, self._room[i - 1])
        return i

    def _shape(self, queue: str, demand: Demand) -> _Shape:
        key = (
            queue,
            demand.nodes,
            demand.slots,
            demand.cores_per_slot,
            demand.gpus_per_slot,
            demand.exclusive,
            demand.constraint,
        )
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = self._new_shape(self._domain(queue, demand.constraint), demand)
        return shape

    def _new_shape(self, domain: _Domain, demand: Demand) -> _Shape:
        # an exclusive slot without a node is a node
        nodes = demand.nodes or (demand.slots if demand.exclusive else 0)
        # a place is a node, or the least number of slots that fill a unit
        slots = -(-demand.slots // nodes) if nodes else 1
        if not nodes and not demand.gpus_per_slot:
            slots = max(1, self._unit // demand.cores_per_slot)

        def level(places: int) -> _Level:
            cores, gpus = places * slots * demand.cores_per_slot, places * slots * demand.gpus_per_slot
            fit = {kind: members for kind, members in domain.kinds.items() if kind[0] >= cores and kind[1] >= gpus}
            units = min((self._units(kind[0]) for kind in fit), default=1)
            return _Level(self._planes, _union(fit.values()), min(units, -(-cores // self._unit)), gpus)

        if demand.exclusive:
            kinds = [(kind, members & level(1).nodes) for kind, members in domain.kinds.items()]
            levels = [_Level(self._planes, fit, self._units(kind[0]), kind[1]) for kind, fit in kinds if fit]
            return _Shape(domain, nodes, True, levels)
        if nodes:
            return _Shape(domain, nodes, True, [level(1)])
        wanted, levels = -(-demand.slots // slots), [level(1)]
        while levels[-1].nodes and len(levels) < wanted:
            levels.append(level(len(levels) + 1))
        return _Shape(domain, wanted, False, levels if levels[-1].nodes else levels[:-1])

    def _domain(self, queue: str, constraint: str) -> _Domain:
        domain = self._domains.get((queue, constraint))
        if domain is None:
            domain = self._domains[queue, constraint] = self._new_domain(queue, constraint)
            for other in self._domains.values():
                both = (domain.nodes & other.nodes).bit_count()
                if both:
                    domain.overlaps.append((other, both / domain.nodes.bit_count()))
                    if other is not domain:
                        other.overlaps.append((domain, both / other.nodes.bit_count()))
                        domain.work += other.own_work * both / other.nodes.bit_count()
        return domain

    def _new_domain(self, queue: str, constraint: str) -> _Domain:
        wanted, requires = json.loads(constraint or "{}"), self._queues.get(queue)
        kind_of = [
            (node.cores, node.gpus)
            if requires is not None
            and requires <= node.properties
            and jobspec.matches(wanted, host=node.host, rank=node.rank, properties=node.properties)
            else None
            for node in self._nodes
        ]
        kinds = {
            kind: self._planes.members(other == kind for other in kind_of)
            for kind in dict.fromkeys(kind_of)
            if kind is not None
        }
        counts = [(self._units(cores), gpus, members.bit_count()) for (cores, gpus), members in kinds.items()]
        of_gpus = sum(gpus * count for _, gpus, count in counts)
        per_gpu = sum(units * count for units, _, count in counts) / of_gpus if of_gpus else 0.0
        return _Domain(_union(kinds.values()), kinds, per_gpu)

    # Beyond the profile, which does not change any more then

    def _front_at(self, shape: _Shape) -> float:
        """From when on a job fits for good."""
        if shape.front_at is None:
            i, places = len(self._times), _ALL
            while i and (left := places & self._places(shape, i - 1)).bit_count() >= shape.wanted:
                i, places = i - 1, left
            shape.front_at = self._times[i]
        return shape.front_at

    def _done_at(self, domain: _Domain) -> float:
        """When the cores of a domain that are free for good could have done the work that was told since."""
        if not domain.areas:
            every = self._planes.spread(domain.nodes)
            left = accumulate(reversed(self._cores), operator.and_)
            domain.free = [(cores & every).bit_count() for cores in left][::-1]
            spans = [after - before for before, after in pairwise(self._times)]
            domain.areas = list(accumulate(map(operator.mul, domain.free, spans), initial=0.0))
        i = bisect_right(domain.areas, domain.work) - 1
        return self._times[i] + (domain.work - domain.areas[i]) / domain.free[i]


class _Planes:
    """Sets of nodes, each a bit for every node, and counts for all nodes as planes of such sets."""

    def __init__(self, nodes: int, count: int) -> None:
        self.count = count
        """How many planes there are at the most."""
        self.bytes = -(-nodes // 8) or 1
        self.bits = self.bytes * 8
        """The distance from a plane to the next."""
        self.column = cache(self._column)

    def members(self, chosen: Iterable[bool]) -> int:
        """The set of the nodes for which it is so."""
        return int("".join(["01"[yes] for yes in chosen])[::-1] or "0", 2)

    def of(self, counts: Sequence[int]) -> int:
        """The planes of one count for each node."""
        planes = [self.members(count > k for count in counts) for k in range(max(counts, default=0))]
        return int.from_bytes(b"".join([plane.to_bytes(self.bytes, "little") for plane in planes]), "little")

    def _column(self, count: int) -> int:
        """The planes of this count for the first node and none for the others."""
        return sum(1 << k * self.bits for k in range(count))

    def spread(self, nodes: int) -> int:
        """These nodes in every plane."""
        return int.from_bytes(nodes.to_bytes(self.bytes, "little") * self.count, "little")

    def take(self, steps: list[int], first: int, end: int, nodes: int, count: int) -> None:
        """Leave so many fewer on each of these nodes, which have them, in the steps from ``first`` up to ``end``."""
        every, down = self.spread(nodes), count * self.bits
        for i in range(first, end):
            theirs = steps[i] & every
            steps[i] ^= theirs ^ (theirs >> down)


@dataclass(slots=True)
class _Domain:
    """The nodes that one queue and one constraint admit, by kind: cores and GPUs.

    ``units_per_gpu`` is how many units of cores there are to each of their GPUs.

    Beyond the profile, ``work`` is the unit-seconds that were told, ``own_work`` those by jobs of this very domain, and
    ``overlaps`` the domains that share nodes with it, itself too, each with the part of its nodes that they share.
    ``free`` is how many units are free for good from each step of the profile on, ``areas`` its integral until there.
    """

    nodes: int
    kinds: Mapping[tuple[int, int], int]
    units_per_gpu: float
    work: float = 0.0
    own_work: float = 0.0
    overlaps: list[tuple[_Domain, float]] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Level:
    """Nodes of which each could hold a certain part of a job, and the units of cores and the GPUs that it needs."""

    planes: _Planes
    nodes: int
    cores: int
    gpus: int

    def free_in(self, cores: int, gpus: int) -> int:
        """Those of the nodes that have it free."""
        fit = self.nodes & (cores >> (self.cores - 1) * self.planes.bits)
        return fit & (gpus >> (self.gpus - 1) * self.planes.bits) if self.gpus else fit


class _Shape:
    """What jobs that ask for the same in the same domain have in common, whatever their duration.

    A job that counts nodes (``per_node``) wants nodes of any of its ``levels``: one for each kind of node when it wants
    them whole, else a single one. One that counts slots has a level for each number of slots that a node could hold.
    """

    def __init__(self, domain: _Domain, wanted: int, per_node: bool, levels: Sequence[_Level]) -> None:
        self.domain = domain
        self.wanted = wanted
        self._per_node = per_node
        self._levels = levels
        self._found: list[tuple[float, float]] = []
        """Durations and the earliest starts that were found for them, both increasing."""
        self.front_at: float | None = None
        """From when on it fits for good, once the profile does not change any more."""
        self.least = (
            min((level.cores / (1 if per_node else n) for n, level in enumerate(levels, 1)), default=0) * wanted
        )
        """How many units of cores it takes at least."""
        plain = not per_node and not any(level.gpus for level in levels)
        self._plain = _union(level.nodes << (level.cores - 1) * level.planes.bits for level in levels) if plain else 0
        """Where the planes of a step tell its places by themselves."""
        self.ever = self.places(_ALL, _ALL).bit_count() >= wanted
        """Whether it would fit if nothing ran."""
        self.cores = self._busy()
        """How many units of cores it keeps busy, with the fair part of its GPUs where that is more."""

    def not_before(self, duration_s: float) -> float:
        """A job of this duration cannot start earlier, as the profile only shrinks."""
        known = bisect_right(self._found, (duration_s, math.inf))
        return self._found[known - 1][1] if known else -math.inf

    def found(self, duration_s: float, at: float) -> None:
        """A job of this duration starts then, and one that takes longer no earlier."""
        if at > self.not_before(duration_s):
            first = end = bisect_left(self._found, (duration_s, -math.inf))
            while end < len(self._found) and self._found[end][1] <= at:
                end += 1
            self._found[first:end] = [(duration_s, at)]

    def places(self, cores: int, gpus: int) -> int:
        """A set with a member for each place of the job that is free in a step of the profile.

        The places that are free over several steps are the intersection.
        """
        if self._plain:
            return cores & self._plain
        free, shift = 0, 0
        for level in self._levels:
            free |= level.free_in(cores, gpus) << shift
            if not self._per_node:
                shift += level.planes.bits
        return free

    def choose(self, cores: int, gpus: int) -> Iterator[tuple[int, _Level]]:
        """Nodes for the job out of what is free, those with most free first, and what it takes of each of them."""
        planes, missing, left = self._levels[0].planes, self.wanted, self.domain.nodes
        for k in range(planes.count - 1, -1, -1):
            freest = left & (cores >> k * planes.bits)
            left ^= freest
            for n in range(len(self._levels), 0, -1):
                level, places = self._levels[n - 1], 1 if self._per_node else n
                if not freest:
                    break
                if level.cores > k + 1:
                    continue
                nodes = freest & level.free_in(cores, gpus)
                freest ^= nodes
                if chosen := _highest(nodes, missing // places):
                    yield chosen, level
                missing -= chosen.bit_count() * places
                if missing < places and nodes != chosen:
                    if missing:
                        yield _highest(nodes ^ chosen, 1), self._levels[missing - 1]
                    return
                if not missing:
                    return

    def _busy(self) -> float:
        """Of the kinds of nodes that can serve it, the mean."""
        levels, slots = (self._levels, 1) if self._per_node else (self._levels[-1:], len(self._levels))
        of_gpus, nodes = self.domain.units_per_gpu, sum(level.nodes.bit_count() for level in levels)
        of_nodes = sum(level.nodes.bit_count() * max(level.cores, level.gpus * of_gpus) for level in levels)
        return self.wanted * of_nodes / nodes / slots if nodes else 0.0


def _union(sets: Iterable[int]) -> int:
    return reduce(operator.or_, sets, 0)


def _highest(nodes: int, count: int) -> int:
    """So many of these nodes, those of the highest ranks; all where there are no more."""
    surplus = nodes.bit_count() - count
    if surplus <= 0:
        return nodes
    low = bisect_left(range(nodes.bit_length()), surplus, key=lambda bits: (nodes & (1 << bits) - 1).bit_count())
    return nodes >> low << low
