"""Packing: in which order, and in which way, the jobs of one plan are given their places. Pure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence

from fluxburst.model import Demand
from fluxburst.moment import Request, Shape
from fluxburst.work import Batch, Outcome, Way, Work

SMALL = 12
"""So many shapes, or fewer, are packed in several ways, the cheapest of which is taken."""

_INF = float("inf")


def pack(work: Work, askers: Sequence[Request], *, followed: bool = False) -> Outcome:
    """Find every asker its place, or its reason; what is scarce is kept from those that follow, too, where some do."""
    batches = sorted(_by_shape(askers, work.now), key=_longest_first)
    way = Way(batches)
    outcome = work.attempt(way)
    if work.scanty and (outcome.homeless or len(batches) <= SMALL):
        whole, score = way, outcome.score()
        work.undo(outcome)
        way = dataclasses.replace(way, split=True)
        outcome = work.attempt(way)
        if outcome.score() > score or (outcome.score() == score and not outcome.homeless):
            work.undo(outcome)
            way = whole
            outcome = work.attempt(way)
    if outcome.scarce:
        if followed or (len(batches) > 1 and outcome.placed):
            work.undo(outcome)
            return work.attempt(dataclasses.replace(way, batches=list(_in_line(askers, work.now))), reserve=True)
        return outcome
    sharing = any(not batch.shape.demand.exclusive for batch in batches)
    if not work.has_bought() or len(askers) == 1 or len(batches) > SMALL or work.is_large() or not sharing:
        return outcome  # jobs that share nothing have the cheapest offers already
    return _improve(work, way, outcome)


def _improve(work: Work, first: Way, outcome: Outcome) -> Outcome:
    """Pack a few shapes in other ways, too, and keep the cheapest; then let single shapes go first while that helps."""
    batches = list(first.batches)
    best = (outcome.score(), first)

    def attempt(way: Way) -> None:
        nonlocal best, outcome
        work.undo(outcome)
        outcome = work.attempt(way)
        if outcome.score() < best[0]:
            best = (outcome.score(), way)

    pools = ("", *dict.fromkeys(name for batch in batches for name in batch.shape.pools))
    gangs = sum(batch.shape.demand.nodes > 1 for batch in batches)
    orders = [batches, sorted(batches, key=_largest_first)]
    if gangs:
        orders.append(sorted(batches, key=_gangs_first))
    apart, split = (False, True) if gangs > 1 else (False,), (False, True) if work.scanty else (False,)
    for choices in itertools.product(orders, (False, True), pools, apart, split):
        attempt(Way(*choices))
    before = None
    while best is not before:
        before, way = best, best[1]
        for batch in batches:
            rest = [other for other in way.batches if other is not batch]
            attempt(dataclasses.replace(way, batches=[batch, *rest]))
    work.undo(outcome)
    return work.attempt(best[1])


def _by_shape(askers: Sequence[Request], now: float) -> Collection[Batch]:
    """One batch for all jobs of a shape. Shapes that are equal are one, whoever made them."""
    batches: dict[Shape, Batch] = {}
    known: dict[int, Batch] = {}
    for request in askers:  # once, in order: a million of them are more than a processor caches
        shape = request.shape
        batch = known.get(id(shape))
        if batch is None:
            batch = known[id(shape)] = batches.setdefault(shape, Batch(shape, request.order))
        if request.not_before_at <= now:
            batch.ready.append(request.job_id)
        else:
            batch.early.append(request)
    return batches.values()


def _in_line(askers: Sequence[Request], now: float) -> Iterator[Batch]:
    """The scheduler's order; neighbours of one shape together."""
    for _, neighbours in itertools.groupby(askers, key=lambda request: request.shape):
        yield from _by_shape(list(neighbours), now)


def _longest_first(batch: Batch) -> tuple[object, ...]:
    demand = batch.shape.demand
    return (-(demand.duration_s or _INF), -demand.nodes, -_size(demand), batch.order)


def _largest_first(batch: Batch) -> tuple[object, ...]:
    demand = batch.shape.demand
    return (-_size(demand), -(demand.duration_s or _INF), -demand.nodes, batch.order)


def _gangs_first(batch: Batch) -> tuple[object, ...]:
    return (-batch.shape.demand.nodes, *_longest_first(batch))


def _size(demand: Demand) -> int:
    return demand.slots * demand.cores_per_slot
