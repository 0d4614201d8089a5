"""The mock's nodes and its two schedulers. Pure: no loop, no events; time is an argument.

``Fifo`` does what flux-core's sched-simple does: one queue of all jobs by priority, then age; its head blocks. ``Easy``
does what Fluxion does with ``queue-policy = "easy"``: each named queue on its own, the first job that cannot start gets
a reservation, others may pass it as long as they do not delay it. Both take the nodes with the most free cores first.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from fluxburst import jobspec
from fluxburst.model import Demand, Host, HostShare, JobId

Free = tuple[int, int]
"""Free cores and free GPUs of a node."""


@dataclass(slots=True)
class Node:
    """A declared rank. ``up`` is what a scheduler may use: online and not drained."""

    rank: int
    host: Host
    cores: int
    gpus: int
    properties: frozenset[str]
    online: bool = False
    drained: str | None = None
    """The reason, when it is drained."""
    free: Free = field(init=False)

    def __post_init__(self) -> None:
        self.free = (self.cores, self.gpus)

    @property
    def up(self) -> bool:
        return self.online and self.drained is None


@dataclass(frozen=True, slots=True)
class Request:
    """A job as a scheduler sees it.

    ``shape`` is what it needs of its nodes, with the job's whole constraint and without its duration: jobs that differ
    in nothing else have the same.
    """

    job_id: JobId
    priority: int
    queue: str
    shape: Demand
    duration_s: float

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts the highest priority first, then the oldest."""
        return (-self.priority, self.job_id)


@dataclass(frozen=True, slots=True)
class Allocated:
    job_id: JobId
    shares: tuple[HostShare, ...]


@dataclass(frozen=True, slots=True)
class Denied:
    job_id: JobId
    note: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a job that waits will start; None takes back what was said before."""

    job_id: JobId
    at: float | None


class Scheduler(Protocol):
    def add(self, request: Request) -> None: ...
    def remove(self, job_id: JobId) -> None:
        """Forget a request that waits; one that does not is fine."""

    def free(self, job_id: JobId) -> None:
        """Take back what a job holds."""

    def nodes_changed(self, nodes: Collection[Node]) -> None:
        """Some nodes came up or went down."""

    def infeasible(self, demand: Demand) -> str:
        """Why the instance could never run this, down nodes counted in; empty when it could."""

    def schedule(self, now: float) -> Iterator[Allocated | Denied | Forecast]:
        """Decide what can be decided at POSIX time ``now``. Requests may come and go while it is iterated."""


def nodes_wanted(demand: Demand) -> int:
    """The nodes of a job that counts nodes, else 0. An exclusive slot without a node is a node."""
    return demand.nodes or (demand.slots if demand.exclusive else 0)


def needs(demand: Demand) -> Free:
    """What a node must have for one node's share of the job, or for one slot where it only counts slots."""
    slots = -(-demand.slots // nodes_wanted(demand)) if nodes_wanted(demand) else 1
    return (slots * demand.cores_per_slot, slots * demand.gpus_per_slot)


def slots_in(demand: Demand, free: Free) -> int:
    """How many of the job's slots fit into this much."""
    slots = free[0] // demand.cores_per_slot
    return min(slots, free[1] // demand.gpus_per_slot) if demand.gpus_per_slot else slots


def places_in(demand: Demand, node: Node, free: Free) -> int:
    """How much of the job a node with ``free`` could take, counted as the job counts: slots, or nodes."""
    if not nodes_wanted(demand):
        return slots_in(demand, free)
    if demand.exclusive and free != (node.cores, node.gpus):
        return 0
    cores, gpus = needs(demand)
    return int(free[0] >= cores and free[1] >= gpus)


def places_wanted(demand: Demand) -> int:
    return nodes_wanted(demand) or demand.slots


class Domain:
    """The nodes that one constraint admits; those that are up are kept in buckets of equal free resources.

    So a choice looks at as many buckets as it needs and not at every node.
    """

    def __init__(self, nodes: Sequence[Node], highest_first: bool) -> None:
        self.nodes = {node.rank: node for node in nodes}
        self._highest_first = highest_first
        self._buckets: dict[Free, list[int]] = {}
        for node in nodes:
            if node.up:
                self.insert(node)

    def insert(self, node: Node) -> None:
        insort(self._buckets.setdefault(node.free, []), node.rank)

    def discard(self, node: Node) -> None:
        bucket = self._buckets.get(node.free, [])
        index = bisect_left(bucket, node.rank)
        if index < len(bucket) and bucket[index] == node.rank:
            del bucket[index]
            if not bucket:
                del self._buckets[node.free]

    def candidates(self, demand: Demand, avoid: Collection[int] = ()) -> Iterator[tuple[Node, int]]:
        """Nodes that can take something of the job, in the order in which they are to be taken, and how much."""
        for free in sorted(self._buckets, reverse=True):
            if free[0] < demand.cores_per_slot:
                return
            bucket = self._buckets[free]
            for rank in reversed(bucket) if self._highest_first else bucket:
                places = places_in(demand, self.nodes[rank], free)
                if places and rank not in avoid:
                    yield self.nodes[rank], places

    def choose(self, demand: Demand, avoid: Collection[int] = ()) -> list[tuple[Node, Free]] | None:
        """Nodes for the whole job and what to take of each, or None."""
        missing = places_wanted(demand)
        cores, gpus = needs(demand)
        chosen: list[tuple[Node, Free]] = []
        for node, places in self.candidates(demand, avoid):
            taken = min(places, missing)
            chosen.append((node, node.free if demand.exclusive else (taken * cores, taken * gpus)))
            missing -= taken
            if not missing:
                return chosen
        return None


class Pool:
    """All nodes, what each job holds of them, and a domain for each constraint that was ever asked for."""

    def __init__(self, nodes: Sequence[Node], highest_first: bool) -> None:
        self._nodes = nodes
        self._highest_first = highest_first
        self._domains: dict[str, Domain] = {}
        self._of_rank: list[list[Domain]] = [[] for _ in nodes]
        self.held: dict[JobId, list[tuple[Node, Free]]] = {}

    def domain(self, demand: Demand) -> Domain:
        domain = self._domains.get(demand.constraint)
        if domain is None:
            constraint = json.loads(demand.constraint or "{}")
            domain = self._domains[demand.constraint] = Domain(
                [
                    node
                    for node in self._nodes
                    if jobspec.matches(constraint, host=node.host, rank=node.rank, properties=node.properties)
                ],
                self._highest_first,
            )
            for rank in domain.nodes:
                self._of_rank[rank].append(domain)
        return domain

    def take(self, job_id: JobId, chosen: list[tuple[Node, Free]]) -> tuple[HostShare, ...]:
        self.held[job_id] = chosen
        for node, (cores, gpus) in chosen:
            self._set_free(node, (node.free[0] - cores, node.free[1] - gpus))
        return tuple(
            HostShare(node.host, cores, gpus) for node, (cores, gpus) in sorted(chosen, key=lambda pair: pair[0].rank)
        )

    def give_back(self, job_id: JobId) -> None:
        for node, (cores, gpus) in self.held.pop(job_id):
            self._set_free(node, (node.free[0] + cores, node.free[1] + gpus))

    def changed(self, nodes: Collection[Node]) -> None:
        for node in nodes:
            for domain in self._of_rank[node.rank]:
                domain.discard(node)
                if node.up:
                    domain.insert(node)

    def _set_free(self, node: Node, free: Free) -> None:
        domains = self._of_rank[node.rank] if node.up else ()
        for domain in domains:
            domain.discard(node)
        node.free = free
        for domain in domains:
            domain.insert(node)


class Fifo:
    """flux-core's sched-simple: strictly first in, first out, by priority, over all queues."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._pool = Pool(nodes, highest_first=False)
        self._waiting: dict[JobId, Request] = {}
        self._heap: list[tuple[tuple[int, int], int, Request]] = []
        self._order = itertools.count()
        self.free = self._pool.give_back
        self.nodes_changed = self._pool.changed
        self.infeasible = cache(self._infeasible)  # what nodes have never changes

    def add(self, request: Request) -> None:
        self._waiting[request.job_id] = request
        heapq.heappush(self._heap, (request.rank, next(self._order), request))

    def remove(self, job_id: JobId) -> None:
        self._waiting.pop(job_id, None)

    def _infeasible(self, demand: Demand) -> str:
        """In sched-simple's own words."""
        nodes = list(self._pool.domain(demand).nodes.values())
        wanted = nodes_wanted(demand)
        cores, gpus = needs(demand)
        if wanted:
            eligible = sum(node.cores >= cores and node.gpus >= gpus for node in nodes)
            if eligible >= wanted:
                return ""
            if demand.exclusive:
                return f"unsatisfiable request: need {wanted} exclusive node(s), only {eligible} eligible"
            return (
                f"unsatisfiable request: need {wanted} node(s) with {cores} cores"
                + (f" and {gpus} GPUs" if gpus else "")
                + f" each, only {eligible} eligible"
            )
        slots = sum(node.cores // demand.cores_per_slot for node in nodes)
        if slots < demand.slots:
            return (
                f"unsatisfiable request: need {demand.slots} slot(s) of {demand.cores_per_slot} core(s), "
                f"only {slots} such slot(s) available (total cores: {sum(node.cores for node in nodes)})"
            )
        slots = sum(slots_in(demand, (node.cores, node.gpus)) for node in nodes)
        if slots < demand.slots:
            return (
                f"unsatisfiable request: need {demand.slots} slot(s) with {demand.gpus_per_slot} GPU(s) each, "
                f"only {slots} available (total GPUs: {sum(node.gpus for node in nodes)})"
            )
        return ""

    def schedule(self, now: float) -> Iterator[Allocated | Denied]:
        while self._heap:
            request = self._heap[0][2]
            if self._waiting.get(request.job_id) is not request:  # removed, or added anew since
                heapq.heappop(self._heap)
                continue
            chosen = self._pool.domain(request.shape).choose(request.shape)
            if chosen is not None:
                outcome: Allocated | Denied = Allocated(request.job_id, self._pool.take(request.job_id, chosen))
            elif note := self.infeasible(request.shape):
                outcome = Denied(request.job_id, note)
            else:
                return
            heapq.heappop(self._heap)
            del self._waiting[request.job_id]
            yield outcome


@dataclass(frozen=True, slots=True)
class Reservation:
    """The blocked head of a queue: when it can start at the latest, and on which ranks."""

    job_id: JobId
    at: float
    ranks: frozenset[int]
    epoch: int


class Easy:
    """Fluxion with the policy ``easy``.

    A job that wants more nodes than there are waits for ever, one that wants more slots is denied, as in Fluxion 0.54.
    Its habit of denying a job while all time is taken by a reservation without an end is not copied. It forecasts the
    start of the job that has a reservation, in whole seconds.
    """

    def __init__(self, nodes: Sequence[Node], queue_depth: int = 32) -> None:
        self._pool = Pool(nodes, highest_first=True)
        self._depth = queue_depth
        self._waiting: dict[JobId, Request] = {}
        self._queues: dict[str, list[tuple[tuple[int, int], JobId]]] = {}
        self._ends: list[tuple[float, JobId]] = []
        self._end_of: dict[JobId, float] = {}
        self._reservations: dict[str, Reservation] = {}
        self._forecasts: dict[str, Forecast] = {}
        """What was said last in each queue."""
        self._epoch = 0
        self.infeasible = cache(self._infeasible)  # what nodes have never changes

    def add(self, request: Request) -> None:
        self._waiting[request.job_id] = request
        insort(self._queues.setdefault(request.queue, []), (request.rank, request.job_id))

    def remove(self, job_id: JobId) -> None:
        request = self._waiting.pop(job_id, None)
        if request is not None:
            if request.queue in self._forecasts and self._forecasts[request.queue].job_id == job_id:
                del self._forecasts[request.queue]
            queue = self._queues[request.queue]
            del queue[bisect_left(queue, (request.rank, job_id))]

    def free(self, job_id: JobId) -> None:
        self._pool.give_back(job_id)
        del self._ends[bisect_left(self._ends, (self._end_of.pop(job_id), job_id))]

    def nodes_changed(self, nodes: Collection[Node]) -> None:
        self._pool.changed(nodes)
        self._epoch += 1

    def _infeasible(self, demand: Demand) -> str:
        nodes = self._pool.domain(demand).nodes.values()
        possible = sum(places_in(demand, node, (node.cores, node.gpus)) for node in nodes)
        return "" if possible >= places_wanted(demand) else "Unsatisfiable request"

    def schedule(self, now: float) -> Iterator[Allocated | Denied | Forecast]:
        for queue in self._queues.values():
            yield from self._schedule_queue(queue, now)

    def _schedule_queue(
        self, queue: list[tuple[tuple[int, int], JobId]], now: float
    ) -> Iterator[Allocated | Denied | Forecast]:
        reservation: Reservation | None = None
        blocked: set[tuple[Demand, bool]] = set()
        position = 0
        while position < min(len(queue), self._depth):
            request = self._waiting[queue[position][1]]
            end = now + (request.duration_s or math.inf)
            delays = reservation is not None and end > reservation.at
            if not blocked.isdisjoint(((request.shape, False), (request.shape, delays))):
                position += 1
                continue
            avoid = reservation.ranks if reservation is not None and delays else ()
            chosen = self._pool.domain(request.shape).choose(request.shape, avoid)
            if chosen is not None:
                self.remove(request.job_id)
                insort(self._ends, (end, request.job_id))
                self._end_of[request.job_id] = end
                yield Allocated(request.job_id, self._pool.take(request.job_id, chosen))
            elif not nodes_wanted(request.shape) and self.infeasible(request.shape):
                self.remove(request.job_id)
                yield Denied(request.job_id, 'alloc denied due to type="unsatisfiable"')
            else:
                if not blocked:
                    reservation = self._reserve(request)
                    yield from self._forecast(request, reservation)
                blocked.add((request.shape, delays))
                position += 1

    def _forecast(self, request: Request, reservation: Reservation | None) -> Iterator[Forecast]:
        said = self._forecasts.pop(request.queue, None)
        at = None if reservation is None else float(math.floor(reservation.at))
        if said is not None and said.job_id in self._waiting and (at is None or said.job_id != request.job_id):
            yield Forecast(said.job_id, None)
        if at is not None:
            now = self._forecasts[request.queue] = Forecast(request.job_id, at)
            if now != said:
                yield now

    def _reserve(self, request: Request) -> Reservation | None:
        """When and where the job could start if the running jobs end when they must; None when only more nodes help."""
        known = self._reservations.get(request.queue)
        if known is not None and known.job_id == request.job_id and known.epoch == self._epoch:
            return known  # jobs that ended early since only make it sooner
        domain = self._pool.domain(request.shape)
        free: dict[int, Free] = {}
        places = {node.rank: count for node, count in domain.candidates(request.shape)}
        total, wanted = sum(places.values()), places_wanted(request.shape)
        for at, job_id in self._ends:
            if math.isinf(at):
                break
            for node, (cores, gpus) in self._pool.held[job_id]:
                if node.rank not in domain.nodes or not node.up:
                    continue
                had = free.get(node.rank, node.free)
                free[node.rank] = (had[0] + cores, had[1] + gpus)
                count = places_in(request.shape, node, free[node.rank])
                total += count - places.get(node.rank, 0)
                places[node.rank] = count
            if total >= wanted:
                ranks = frozenset(rank for rank, count in places.items() if count)
                self._reservations[request.queue] = Reservation(request.job_id, at, ranks, self._epoch)
                return self._reservations[request.queue]
        return None


SCHEDULERS: Mapping[str, Callable[[Sequence[Node]], Scheduler]] = {"fifo": Fifo, "easy": Easy}
