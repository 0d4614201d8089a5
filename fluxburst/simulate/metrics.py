"""Figures and curves of an outcome. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fluxburst.config import BurstConfig, Pool
from fluxburst.simulate.engine import JobRow, MachineRow, Outcome

SLOWDOWN_LEAST_S = 10.0
"""Bounded slowdown (Feitelson and others, JSSPP 1997) reckons with a run time of this at least."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Of the jobs that started: seconds from submission to the start of the run that counted.

    ``slowdown`` is the mean bounded slowdown: max(1, (wait + run) / max(run, 10 s)). All are None without any job.
    """

    mean_s: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    slowdown: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy's figures on one trace.

    ``jobs`` were submitted, ``burst_jobs`` of them ran on bought nodes, ``refused`` Flux would not take, ``not_ended``
    never ended, ``failed`` ended without having run to their end or limit. ``bought_h`` is from order to end,
    ``used_h`` what jobs held of it, ``boot_h`` before the broker was up, ``idle_h`` the rest. ``usd`` is what is
    billed; None where a price is not known. ``caps_exceeded`` names each cap of burst.toml that was broken.
    """

    jobs: int
    burst_jobs: int
    refused: int
    not_ended: int
    failed: int
    resubmitted: int
    waits: Waits
    burst_waits: Waits
    bought_h: float
    used_h: float
    boot_h: float
    idle_h: float
    usd: float | None
    nodes: int
    orders: int
    survived: Mapping[str, int]
    caps_exceeded: tuple[str, ...]
    days: float

    @property
    def used_share(self) -> float | None:
        return self.used_h / self.bought_h if self.bought_h else None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: the fields, rounded to what is no noise of floating point."""
        rounded: dict[str, Any] = _rounded(dataclasses.asdict(self) | {"used_share": self.used_share})
        return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_rounded(item) for item in value]
    return value


def summarize(outcome: Outcome, config: BurstConfig) -> Summary:
    machines = outcome.machines
    bought_s = math.fsum(machine.end_s - machine.ordered_s for machine in machines)
    boot_s = math.fsum(
        (machine.end_s if machine.up_s is None else machine.up_s) - machine.ordered_s for machine in machines
    )
    used_s = math.fsum(outcome.used_s.values())
    bills = [bill(machine, config.pool[machine.pool]) for machine in machines]
    known = [usd for usd in bills if usd is not None]
    return Summary(
        jobs=len(outcome.jobs),
        burst_jobs=sum(job.burst for job in outcome.jobs),
        refused=outcome.refused,
        not_ended=sum(job.end_s is None for job in outcome.jobs),
        failed=sum(job.failure not in ("", "timeout") for job in outcome.jobs),
        resubmitted=outcome.resubmitted,
        waits=_waits(outcome.jobs),
        burst_waits=_waits([job for job in outcome.jobs if job.burst]),
        bought_h=bought_s / 3600,
        used_h=used_s / 3600,
        boot_h=boot_s / 3600,
        idle_h=max(0.0, bought_s - boot_s - used_s) / 3600,
        usd=math.fsum(known) if len(known) == len(bills) else None,
        nodes=len(machines),
        orders=outcome.orders,
        survived=outcome.survived,
        caps_exceeded=tuple(exceeded(outcome, config)),
        days=outcome.end_s / 86400,
    )


def _waits(jobs: Iterable[JobRow]) -> Waits:
    started = [(job.start_s - job.submit_s, job.run_s) for job in jobs if job.start_s is not None]
    if not started:
        return Waits(None, None, None, None, None)
    waits = sorted(wait for wait, _ in started)
    slowdowns = [max(1.0, (wait + run) / max(run, SLOWDOWN_LEAST_S)) for wait, run in started]
    return Waits(
        mean_s=math.fsum(waits) / len(waits),
        p50_s=quantile(waits, 0.5),
        p90_s=quantile(waits, 0.9),
        p99_s=quantile(waits, 0.99),
        slowdown=math.fsum(slowdowns) / len(slowdowns),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of the sorted values does not exceed (nearest rank)."""
    return values[max(math.ceil(share * len(values)), 1) - 1]


def bill(machine: MachineRow, pool: Pool) -> float | None:
    """What a provider takes for a node's life in US dollars, in its pool's increments; None without a price."""
    if machine.usd_per_hour is None:
        return None
    life_s = max(machine.end_s - machine.ordered_s, pool.billing_minimum)
    # the sum of floating-point steps must not become one increment more
    increments = math.ceil(life_s / pool.billing_increment - 1e-6)
    return increments * pool.billing_increment / 3600 * machine.usd_per_hour


def exceeded(outcome: Outcome, config: BurstConfig) -> Iterator[str]:
    """The caps of burst.toml on nodes and dollars that were broken, in words.

    From the machines alone and not from the ledger, so that it can tell on it. What a user, a bank or a project may
    spend is not seen by a cloud, and not checked here.
    """
    limits, machines = config.limits, outcome.machines
    groups: list[tuple[str, int | None, float | None, float | None, list[MachineRow]]] = [
        ("[limits]", limits.nodes, limits.usd_per_day, limits.usd_per_month, list(machines))
    ]
    for name, pool in config.pool.items():
        mine = [machine for machine in machines if machine.pool == name]
        money = limits.pool.get(name, limits.pool.get("*"))
        groups.append((f"[pool.{name}]", pool.max_nodes, None, None, mine))
        if money is not None:
            groups.append((f"[limits.pool.{name}]", None, money.usd_per_day, money.usd_per_month, mine))
    for name in sorted({pool.provider for pool in config.pool.values()}):
        caps = limits.provider.get(name, limits.provider.get("*"))
        if caps is not None:
            mine = [machine for machine in machines if config.pool[machine.pool].provider == name]
            groups.append((f"[limits.provider.{name}]", caps.nodes, caps.usd_per_day, caps.usd_per_month, mine))
    for where, nodes, usd_per_day, usd_per_month, mine in groups:
        most = max((count for _, count in steps((machine.ordered_s, machine.end_s) for machine in mine)), default=0)
        if nodes is not None and most > nodes:
            yield f"{where} nodes: {most} at once, {nodes} allowed"
        for key, form, cap in (("usd_per_day", "%Y-%m-%d", usd_per_day), ("usd_per_month", "%Y-%m", usd_per_month)):
            if cap is not None:
                for window, usd in sorted(_spent(mine, outcome.start_at, form).items()):
                    if usd > cap * (1 + 1e-9):
                        yield f"{where} {key}: ${usd:.2f} in {window}, ${cap:g} allowed"


def _spent(machines: Iterable[MachineRow], start_at: float, form: str) -> dict[str, float]:
    """Dollars of nodes' lives by the day or month (UTC) into which each hour of them falls."""
    spent: dict[str, float] = defaultdict(float)
    for machine in machines:
        begin, end = start_at + machine.ordered_s, start_at + machine.end_s
        while begin < end:
            until = min(end, (begin // 86400 + 1) * 86400)
            spent[datetime.fromtimestamp(begin, UTC).strftime(form)] += (
                (until - begin) / 3600 * (machine.usd_per_hour or 0.0)
            )
            begin = until
    return dict(spent)


def steps(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, int]]:
    """How many intervals hold at each moment at which that changes."""
    changes: dict[float, int] = defaultdict(int)
    for begin, end in intervals:
        changes[begin] += 1
        changes[end] -= 1
    count, found = 0, []
    for at in sorted(changes):
        count += changes[at]
        found.append((at, count))
    return found


@dataclass(frozen=True, slots=True)
class Curves:
    """What changes over time, on an even grid: ``at_s`` is where each cell begins.

    ``queue`` is the largest number of waiting jobs in each cell, ``nodes`` by pool the mean number of bought nodes,
    ``usd`` what has been spent by the cell's end, ``waits_s`` the sorted waits of all jobs that started.
    """

    at_s: tuple[float, ...]
    queue: tuple[float, ...]
    nodes: Mapping[str, tuple[float, ...]]
    usd: tuple[float, ...]
    waits_s: tuple[float, ...]


def curves(outcome: Outcome, config: BurstConfig, end_s: float, cells: int = 600) -> Curves:
    """``end_s`` is where the grid ends, the same for all that are shown in one plot."""
    width = end_s / cells
    waiting = steps((job.submit_s, end_s if job.start_s is None else job.start_s) for job in outcome.jobs)
    usd = [0.0] * cells
    nodes = {pool: [0.0] * cells for pool in config.pool}
    for machine in outcome.machines:
        for cell, seconds in _overlaps(machine.ordered_s, machine.end_s, width, cells):
            nodes[machine.pool][cell] += seconds / width
            usd[cell] += seconds / 3600 * (machine.usd_per_hour or 0.0)
    total = 0.0
    for cell in range(cells):
        total += usd[cell]
        usd[cell] = total
    return Curves(
        at_s=tuple(cell * width for cell in range(cells)),
        queue=tuple(_highest(waiting, width, cells)),
        nodes={pool: tuple(values) for pool, values in nodes.items()},
        usd=tuple(usd),
        waits_s=tuple(sorted(job.start_s - job.submit_s for job in outcome.jobs if job.start_s is not None)),
    )


def _overlaps(begin: float, end: float, width: float, cells: int) -> Iterator[tuple[int, float]]:
    for cell in range(int(begin / width), min(int(end / width), cells - 1) + 1):
        seconds = min(end, (cell + 1) * width) - max(begin, cell * width)
        if seconds > 0:
            yield cell, seconds


def _highest(changes: Sequence[tuple[float, int]], width: float, cells: int) -> Iterator[float]:
    index, count = 0, 0
    for cell in range(cells):
        highest = count
        while index < len(changes) and (changes[index][0] < (cell + 1) * width or cell == cells - 1):
            count = changes[index][1]
            highest = max(highest, count)
            index += 1
        yield highest
