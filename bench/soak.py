"""A month of a site's life in virtual time: 100,000 jobs at random, whatever can go wrong with clouds, and caps.

Jobs come by day more than by night, and now and then in bursts of one shape: parts of nodes, whole nodes, gangs, some
without a time limit, some that outlive theirs, a few that fit nowhere. Three pools at two providers run out, boot
slowly or not at all, lose spot nodes and answers, and have outages. Caps hold for nodes, days, months, users, a pool
and a provider. At the end it is asserted that

- nothing leaked: no machine lives, no record is live, nothing is reserved, nothing was bought after the last job;
- nothing was overspent: the caps are counted up from the machines' lives as the cloud knows them, for users by what the
  ledger says whose each stretch of a life was; and the ledger counts no less than the cloud bills;
- no job was forgotten: each has ended, or was refused with a reason, and only those are refused that fit nowhere.

Usage: python bench/soak.py [--days 30] [--jobs 100000] [--seed 0] [--limit-s 300]
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import logging
import math
import random
import resource
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from fluxburst import config as configuration
from fluxburst.budget import Segment, own_table, totals
from fluxburst.config import BurstConfig, Money
from fluxburst.model import Demand, Host, RequestId, VerdictKind
from fluxburst.simulate.engine import Outcome, Scenario, Simulation, mocked
from fluxburst.simulate.faults import Faults
from fluxburst.simulate.metrics import Summary, summarize
from fluxburst.simulate.trace import Trace, TraceJob
from fluxburst.store import MemoryStore

DAY_S = 86400.0
START_AT = datetime(2026, 1, 16, tzinfo=UTC).timestamp()
"""In the middle of a month, so that the caps of two months hold."""
BURST_TOML = """
cluster = "soak"
[lead]
connect = "tcp://127.0.0.1:8050"
[policy]
on_node_loss = "resubmit"
max_resubmits = 20
cooldown_max = "10m"
[limits]
nodes = 60
usd_per_day = 75
usd_per_month = 950
user."*" = { usd_per_day = 15, usd_per_month = 170 }
user.100003 = { usd_per_day = 8 }
pool.large = { usd_per_day = 30 }
provider.beta = { nodes = 10, usd_per_month = 700 }
[pool.spot]
provider = "alpha"
hosts = "spot-[0-31]"
cores = 4
release_timeout = "20m"
[pool.spot.options]
boot_s = 60.0
usd_per_node_hour = 0.06
spot = true
stock = 24
[pool.plain]
provider = "alpha"
hosts = "plain-[0-47]"
cores = 4
min_lifetime = "10m"
release_timeout = "20m"
[pool.plain.options]
boot_s = 120.0
offers = [
  { instance_type = "a", zone = "z1", usd_per_node_hour = 0.19, stock = 30 },
  { instance_type = "a", zone = "z2", usd_per_node_hour = 0.20 },
]
[pool.large]
provider = "beta"
hosts = "large-[0-15]"
cores = 16
max_nodes = 12
billing_increment = "60s"
billing_minimum = "60s"
idle_timeout = "2m"
release_timeout = "20m"
[pool.large.options]
boot_s = 90.0
usd_per_node_hour = 0.68
[provider.alpha]
plugin = "mock"
[provider.beta]
plugin = "mock"
shrink = "order"
"""
SCENARIO = Scenario(
    home_nodes=20,
    cores_per_node=4,
    faults=Faults(
        stock_out=0.05, lost_answer=0.03, slow_boot=0.03, slow_factor=9.0, failed_boot=0.02, spot_loss=0.05, outages=2.0
    ),
)
OWNER = ""
HOME_NODES = 0.016
"""Nodes of home for each job of a day: about as much as all of them need on the mean, so that days are too busy."""
USERS = (OWNER, OWNER, OWNER, *(f"user{number}" for number in range(9)))
LOSS_SEEN_S = 5.0
"""A job fails so soon after its node is lost."""
IMPOSSIBLE = 0.001
"""The share of jobs that fit nowhere."""
TOO_LARGE = Demand(200, 200, 4, exclusive=True, duration_s=600.0)


def arrivals(dice: random.Random, days: float, count: int) -> list[float]:
    """When jobs come, in seconds: thrice as often at three in the afternoon as at three at night."""
    found: list[float] = []
    while len(found) < count:
        at_s = dice.uniform(0, days * DAY_S)
        if dice.random() < 0.67 - 0.33 * math.cos((at_s / DAY_S - 0.125) * math.tau):
            # one in 200 is a burst of many at once
            found += [at_s + dice.uniform(0, 120)] * 1 if dice.random() > 0.005 else [at_s] * dice.randint(20, 200)
    return sorted(found[:count])


def demand(dice: random.Random) -> tuple[Demand, float]:
    """What a job wants, and how long it runs.

    What cannot be paid for within anybody's caps would wait for ever, so large gangs are short; and what has no limit
    ends within the hour that is assumed, as nothing else bounds what it costs.
    """
    kind = dice.random()
    run_s = round(min(dice.lognormvariate(5.9, 1.2), 6 * 3600.0 if kind < 0.9 else 1800.0), 1)
    limits = [1.0, 1.2, 1.5] if kind >= 0.9 else [1.0, 1.5, 2.0, 4.0] if run_s > 3000 else [0.0, 1.0, 1.5, 2.0, 4.0]
    limit_s = float(math.ceil(run_s * (dice.choice(limits) if dice.random() < 0.97 else 0.8)))
    if kind < 0.70:
        return Demand(0, dice.choice([1, 1, 1, 2, 3, 8]), dice.choice([1, 1, 2, 4]), duration_s=limit_s), run_s
    if kind < 0.90:
        return Demand(1, dice.choice([1, 2, 4]), 1, exclusive=True, duration_s=limit_s), run_s
    nodes = dice.choice([2, 2, 4, 4, 8, 16]) if kind < 0.999 else 20
    return Demand(nodes, nodes, 4, exclusive=True, duration_s=limit_s), run_s


def made(days: float, count: int, seed: int) -> Trace:
    """A trace of so many jobs. What comes at one moment is of one user and shape."""
    dice = random.Random(seed)
    jobs: list[TraceJob] = []
    before = -1.0
    for number, at_s in enumerate(arrivals(dice, days, count)):
        if at_s != before:
            wants, run_s = (TOO_LARGE, 60.0) if dice.random() < IMPOSSIBLE else demand(dice)
            user, burstable, before = dice.choice(USERS), dice.random() < 0.8, at_s
            burstable = burstable or wants is TOO_LARGE
        jobs.append(TraceJob(str(number), at_s, run_s, wants, user=user, burstable=burstable))
    return Trace(Path("soak"), lambda: iter(jobs), count, 0, jobs[-1].submit_s, START_AT)


class Witness(MemoryStore):
    """Keeps the latest of every segment that the ledger ever wrote down."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[RequestId, Host], dict[float, Segment]] = defaultdict(dict)

    def save_segment(self, segment: Segment) -> None:
        self.rows[segment.request_id, segment.host][segment.from_at] = segment
        super().save_segment(segment)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a machine's life, POSIX seconds, and whose it is."""

    pool: str
    provider: str
    user: str
    usd_per_hour: float
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Soaked:
    """``wrong`` is what must not be, in words. ``refusals`` counts reasons.

    ``caps`` is the largest share of each dollar cap that was ever spent.
    """

    outcome: Outcome
    summary: Summary
    wrong: tuple[str, ...]
    refusals: Counter[str]
    caps: Mapping[str, float]
    booked_usd: float
    wall_s: float
    cpu_s: float


def soak(days: float, jobs: int, seed: int, burst_toml: str = BURST_TOML) -> Soaked:
    trace = made(days, jobs, seed)
    scenario = dataclasses.replace(SCENARIO, home_nodes=max(20, round(HOME_NODES * jobs / days)), seed=seed)
    witness = Witness()
    begun, cpu_begun_s = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="fb-") as directory:
        config = mocked(configuration.parse(burst_toml), scenario, Path(directory))
        simulation = Simulation(trace, config, scenario, None, None, store=lambda: witness)
        try:
            outcome = simulation.run()
            wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_begun_s
            summary = summarize(outcome, config)
            refusals: Counter[str] = Counter()
            caps: dict[str, float] = {}
            wrong = [
                *leaked(simulation, outcome),
                *forgotten(simulation, outcome, trace, refusals),
                *summary.caps_exceeded,
                *overspent(simulation, config, witness, caps),
            ]
        finally:
            simulation.close()
    segments = [segment for row in witness.rows.values() for segment in row.values()]
    booked_usd = math.fsum(total.spent_usd for total in totals(segments, "pool", 0.0, math.inf))
    if summary.usd is None or booked_usd < summary.usd * (1 - 1e-9):
        wrong.append(f"the ledger counts ${booked_usd}, the cloud bills ${summary.usd}")
    return Soaked(outcome, summary, tuple(wrong), refusals, caps, booked_usd, wall_s, cpu_s)


def leaked(simulation: Simulation, outcome: Outcome) -> Iterator[str]:
    service, store = simulation.service, simulation.store
    assert service is not None
    assert store is not None
    now = outcome.start_at + outcome.end_s
    if living := simulation.cloud.living():
        yield f"{len(living)} machines live, such as {living[0]}"
    if records := [*service.world.nodes, *store.live_nodes()]:
        yield f"{len(records)} records are live, such as {records[0]}"
    if segments := [*service.world.ledger.live(now), *(one for one in store.segments(0.0) if one.ended_at is None)]:
        yield f"{len(segments)} reservations are left, such as {segments[0]}"
    last_s = max(job.end_s for job in outcome.jobs if job.end_s is not None)
    if late := [machine for machine in outcome.machines if machine.ordered_s > last_s]:
        yield f"{len(late)} machines were bought after the last job, such as {late[0]}"


def forgotten(simulation: Simulation, outcome: Outcome, trace: Trace, refusals: Counter[str]) -> Iterator[str]:
    assert simulation.service is not None
    known = simulation.service.world.jobs
    if len(outcome.jobs) != trace.count:
        yield f"of {trace.count} jobs {len(outcome.jobs)} were submitted, and {outcome.refused} refused then"
    for job_id, active in simulation.active.items():
        job, row = known.get(job_id), active.row
        verdict = None if job is None else job.verdict
        if verdict is not None and verdict.kind is VerdictKind.REFUSED and verdict.reason:
            refusals[verdict.reason] += 1
        else:
            yield f"job {job_id} has neither ended nor been refused: {row}, {verdict}"
        if row.nodes != TOO_LARGE.nodes:
            yield f"job {job_id} of {row.nodes} nodes never ran: {verdict}"
    if missing := sum(job.end_s is None for job in outcome.jobs) - len(simulation.active):
        yield f"{missing} jobs are neither active nor ended"
    losses = sorted(machine.failed_at for machine in simulation.cloud.machines.values() if machine.failed_at < math.inf)
    for asked, row in zip(trace.jobs(), outcome.jobs, strict=True):
        if row.failure in ("", "timeout"):
            continue
        ended_s, at = row.end_s or 0.0, bisect.bisect(losses, row.end_s or 0.0)
        # a guest's job must not be submitted again by the owner, so it ends with its node
        if asked.user == OWNER or row.failure != "exec" or not at or ended_s - losses[at - 1] > LOSS_SEEN_S:
            yield f"job {asked.id} of {asked.user or 'the owner'} failed: {row}"


def overspent(simulation: Simulation, config: BurstConfig, witness: Witness, caps: dict[str, float]) -> Iterator[str]:
    """Dollar caps that were broken. ``caps`` gets the largest share of each that was spent."""
    spent: dict[tuple[str, str, str, str], float] = defaultdict(float)
    for stretch in stretches(simulation, witness):
        for begin, end in by_day(stretch.begin, stretch.end):
            day = datetime.fromtimestamp(begin, UTC).date().isoformat()
            usd = (end - begin) / 3600 * stretch.usd_per_hour
            for scope, name in (
                ("", ""),
                ("user", stretch.user),
                ("pool", stretch.pool),
                ("provider", stretch.provider),
            ):
                spent[scope, name, "usd_per_day", day] += usd
                spent[scope, name, "usd_per_month", day[:7]] += usd
    limits = config.limits
    tables: dict[str, Mapping[str, Money]] = {"user": limits.user, "pool": limits.pool, "provider": limits.provider}
    for (scope, name, key, window), usd in sorted(spent.items()):
        table = own_table(tables[scope], name) if scope else None
        money = tables[scope][table] if table is not None else limits
        cap = getattr(money, key) if table is not None or not scope else None
        if cap is None:
            continue
        where = f"[limits{''.join(f'.{part}' for part in (scope, table) if part)}] {key}"
        caps[where] = max(caps.get(where, 0.0), usd / cap)
        if usd > cap * (1 + 1e-9):
            yield f"{where}: {name or 'all'} spent ${usd:.4f} in {window}, ${cap:g} allowed"


def stretches(simulation: Simulation, witness: Witness) -> Iterator[Stretch]:
    """Every machine's life as the cloud knows it, cut where the ledger says that another pays."""
    start_at = START_AT
    for machine in simulation.cloud.machines.values():
        price = simulation.cloud.orders[machine.request_id].offer.usd_per_node_hour
        assert price is not None
        begin, end = (start_at + at for at in (machine.ordered_at, min(machine.failed_at, machine.gone_at)))
        for segment in sorted(witness.rows[machine.request_id, machine.host].values(), key=lambda one: one.from_at):
            until = min(end, segment.end_at)
            if until > begin:
                yield Stretch(machine.pool, segment.provider, segment.account.user, price, begin, until)
                begin = until
        if end > begin + 1e-3:
            yield Stretch(machine.pool, "", "", price, begin, end)


def by_day(begin: float, end: float) -> Iterator[tuple[float, float]]:
    while begin < end:
        until = min(end, (begin // DAY_S + 1) * DAY_S)
        yield begin, until
        begin = until


def show(found: Soaked) -> None:
    outcome, summary = found.outcome, found.summary
    waits = summary.waits
    print(f"{summary.jobs:,} jobs in {summary.days:.1f} days took {found.wall_s:.1f} s, {found.cpu_s:.1f} s of CPU")
    print(
        f"  ended {summary.jobs - summary.not_ended:,}, {summary.burst_jobs:,} on bought nodes, of these lost and ",
        end="",
    )
    print(f"submitted again {summary.resubmitted:,}; refused at submit {summary.refused}, by the service:")
    for reason, count in found.refusals.items():
        print(f"    {count} x {reason}")
    quantiles = ((50, waits.p50_s), (90, waits.p90_s), (99, waits.p99_s))
    print(f"  waits: mean {waits.mean_s:,.0f} s", *(f"p{share} {wait:,.0f} s" for share, wait in quantiles), sep=", ")
    print(f"  nodes: {summary.nodes:,} in {summary.orders:,} orders, used/bought {summary.used_share or 0:.3f}")
    print(f"  billed ${summary.usd:,.2f}, in the ledger ${found.booked_usd:,.2f}")
    for cap, share in sorted(found.caps.items()):
        print(f"    {share:6.1%} of {cap}")
    print("  survived:", ", ".join(f"{count:,} {name}" for name, count in outcome.survived.items()))
    print(f"  memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=300.0, help="the most wall time that it may take")
    options = parser.parse_args()
    # what the service says of virtual days is of no use; its mistakes are
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found = soak(options.days, options.jobs, options.seed)
    show(found)
    for line in found.wrong:
        print("WRONG:", line)
    assert not found.wrong, f"seed {options.seed}: {len(found.wrong)} things are wrong"
    assert found.wall_s <= options.limit_s, f"took {found.wall_s:.0f} s, {options.limit_s:.0f} s allowed"


if __name__ == "__main__":
    main()
