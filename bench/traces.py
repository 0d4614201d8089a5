"""What each policy makes of whole traces: dollars, waits, node-hours, at three sizes of home and of two price lists.

Home is a quarter, a half and the whole of the trace's largest job, so that NASA iPSC (128 nodes) is tried at 32, 64 and
128, Lublin's 256 at 64, 128 and 256. The price lists:

one   a pool as large as the largest job, $0.10 a node-hour
two   a pool of a quarter of that, $0.06, and one as large as it, $0.12, and a daily cap: twice what the dearest job may
      cost, so that each can be paid for, and not all at once

All nodes take 120 s to join and are billed by the second. Every job may burst. Of each run it is asserted that every
job has ended as it should, as each fits a pool, and that no cap was exceeded, counted from the machines' lives alone.
Then ours stands beside each other policy: "better" is no dearer and no longer in the 90th percentile of all waits.

Usage: python bench/traces.py TRACE.swf.gz ... [--jobs N] [--policy NAME] [--prices one] [--home 0.5] [--json PATH]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fluxburst import config as configuration
from fluxburst.config import BurstConfig
from fluxburst.simulate.engine import JOIN_S, Scenario, simulate
from fluxburst.simulate.metrics import Summary, summarize
from fluxburst.simulate.policies import HOME, POLICIES
from fluxburst.simulate.trace import Trace, load

HOMES = (0.25, 0.5, 1.0)
PRICES = ("one", "two")
SAME = 1 + 1e-9
"""Sums of the same dollars in another order differ by less than this."""

HEAD = """
cluster = "traces"
[lead]
connect = "tcp://127.0.0.1:8050"
[policy]
{policy}
"""
POOL = """
[pool.{name}]
provider = "mock"
hosts = "{name}-[0-{last}]"
cores = 1
usd_per_node_hour = {usd}
{idle}
[pool.{name}.options]
boot_s = {boot_s}
"""


@dataclass(frozen=True, slots=True)
class Ours:
    """What our own policy is told beside the pools; the others set their own times."""

    idle_s: float | None
    min_wait_s: float
    usd_per_hour_saved: float | None

    def policy(self) -> str:
        worth = self.usd_per_hour_saved
        return f"min_wait = {self.min_wait_s}\n" + ("" if worth is None else f"max_usd_per_hour_saved = {worth}\n")


@dataclass(frozen=True, slots=True)
class Case:
    """One run. ``jobs`` cuts the trace; None is all of it."""

    trace: Path
    jobs: int | None
    share: float
    prices: str
    policy: str
    ours: Ours


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    home: int
    summary: Summary
    wrong: tuple[str, ...]
    wall_s: float


def cut(trace: Trace, count: int | None) -> Trace:
    """The first jobs of a trace."""
    if count is None or count >= trace.count:
        return trace
    jobs = list(itertools.islice(trace.jobs(), count))
    return dataclasses.replace(trace, jobs=lambda: iter(jobs), count=count, last_s=jobs[-1].submit_s)


def burst_toml(trace: Trace, largest: int, case: Case) -> BurstConfig:
    pools = {"one": [("all", largest, 0.10)], "two": [("cheap", largest // 4, 0.06), ("dear", largest, 0.12)]}
    text = HEAD.format(policy=case.ours.policy() if case.policy == "ours" else "")
    for name, count, usd in pools[case.prices]:
        idle = "" if case.ours.idle_s is None else f"idle_timeout = {case.ours.idle_s}"
        text += POOL.format(name=name, last=count - 1, usd=usd, idle=idle, boot_s=JOIN_S)
    if case.prices == "two":
        text += f"[limits]\nusd_per_day = {2 * dearest_usd(trace, configuration.parse(text), case):.2f}\n"
    return configuration.parse(text)


def dearest_usd(trace: Trace, config: BurstConfig, case: Case) -> float:
    """The most that is reserved for one job, under the policy's own times."""
    pool = POLICIES[case.policy].adapt(config).pool["dear"]
    around_s = pool.join_timeout + pool.idle_most_s() + pool.stop_timeout + pool.release_timeout
    assert pool.usd_per_node_hour is not None
    demands = (job.demand for job in trace.jobs())
    return max(demand.nodes * (demand.duration_s + around_s) for demand in demands) / 3600 * pool.usd_per_node_hour


def run(case: Case) -> Result:
    # what the service says of virtual days is of no use; its mistakes are
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    trace = load(case.trace)
    largest = max(job.demand.nodes for job in trace.jobs())
    trace, home = cut(trace, case.jobs), round(largest * case.share)
    bursts = case.policy != HOME.name
    policy = POLICIES[case.policy] if bursts else HOME
    config = policy.adapt(burst_toml(trace, largest, case if bursts else dataclasses.replace(case, policy="ours")))
    begun = time.perf_counter()
    outcome = simulate(trace, config, Scenario(home_nodes=home, bursting=bursts), planner=policy.planner)
    wall_s = time.perf_counter() - begun
    summary = summarize(outcome, config)
    return Result(case, home, summary, tuple(mistakes(summary, trace, bursts=bursts)), wall_s)


def mistakes(summary: Summary, trace: Trace, *, bursts: bool) -> Iterator[str]:
    """What must not be. Without bursting, what is larger than home is refused at submit."""
    if summary.not_ended:
        yield f"{summary.not_ended} jobs never ended"
    if summary.failed:
        yield f"{summary.failed} jobs failed"
    if bursts and summary.refused:
        yield f"{summary.refused} jobs were refused"
    if summary.jobs + summary.refused != trace.count:
        yield f"{trace.count - summary.jobs - summary.refused} jobs were forgotten"
    yield from summary.caps_exceeded


def beside(ours: Summary, other: Summary) -> str:
    """How ours stands beside another: by dollars, and by the 90th percentile of all waits."""
    cheaper = _usd(ours) <= _usd(other) * SAME
    sooner = _p90_s(ours) <= _p90_s(other) * SAME
    return {(True, True): "better", (True, False): "cheaper, later", (False, True): "sooner, dearer"}.get(
        (cheaper, sooner), "WORSE"
    )


def _usd(summary: Summary) -> float:
    assert summary.usd is not None
    return summary.usd


def _p90_s(summary: Summary) -> float:
    return summary.waits.p90_s or 0.0


COLUMNS = ("", "usd", "p90 s", "mean s", "burst p90 s", "burst jobs", "used/bought", "nodes", "wall s", "ours is")


def row(name: str, result: Result, ours: Result | None) -> tuple[str, ...]:
    summary = result.summary
    used = summary.used_share
    cells = [
        name,
        f"{_usd(summary):,.2f}",
        f"{_p90_s(summary):,.1f}",
        f"{summary.waits.mean_s or 0.0:,.1f}",
        f"{summary.burst_waits.p90_s or 0.0:,.1f}",
        f"{summary.burst_jobs:,}",
        "" if used is None else f"{used:.3f}",
        f"{summary.nodes:,}",
        f"{result.wall_s:.1f}",
        "" if ours is None or name in ("ours", HOME.name) else beside(ours.summary, summary),
    ]
    return (*cells, *result.wrong)


def show(results: Sequence[Result]) -> None:
    def place(result: Result) -> tuple[str, str, int]:
        return result.case.trace.name, result.case.prices, result.home

    for (trace, prices, home), group in itertools.groupby(sorted(results, key=place), key=place):
        found = {result.case.policy: result for result in group}
        print(f"\n{trace}: home of {home}, prices {prices}")
        table = [
            COLUMNS,
            *(row(name, found[name], found.get("ours")) for name in (HOME.name, *POLICIES) if name in found),
        ]
        widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS))]
        for line in table:
            cells = [
                cell.rjust(width) if at else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=False))
            ]
            print("  ".join([*cells, *line[len(COLUMNS) :]]))
        least_usd = min(_usd(result.summary) for name, result in found.items() if name != HOME.name)
        print(
            "cheapest:",
            ", ".join(n for n, r in found.items() if n != HOME.name and _usd(r.summary) <= least_usd * SAME),
        )


def as_json(result: Result) -> dict[str, Any]:
    case = dataclasses.asdict(result.case) | {"trace": result.case.trace.name}
    return case | {
        "home": result.home,
        "wall_s": round(result.wall_s, 2),
        "wrong": result.wrong,
        **result.summary.as_json(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, nargs="+", help="Standard Workload Format, gzipped or not")
    parser.add_argument("--jobs", type=int, help="only so many of each trace")
    parser.add_argument("--home", type=float, action="append", help="share of the largest job; may be repeated")
    parser.add_argument("--policy", action="append", choices=[HOME.name, *POLICIES], help="may be repeated")
    parser.add_argument("--prices", action="append", choices=PRICES, help="may be repeated")
    parser.add_argument("--idle-s", type=float, help="idle_timeout of ours (default: burst.toml's)")
    parser.add_argument("--min-wait-s", type=float, default=0.0, help="[policy] min_wait of ours")
    parser.add_argument("--usd-per-hour-saved", type=float, help="[policy] max_usd_per_hour_saved of ours")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    ours = Ours(options.idle_s, options.min_wait_s, options.usd_per_hour_saved)
    cases = [
        Case(trace, options.jobs, share, prices, policy, ours)
        for trace in options.traces
        for share in options.home or HOMES
        for prices in options.prices or PRICES
        for policy in options.policy or (HOME.name, *POLICIES)
    ]
    results = []
    with ProcessPoolExecutor(options.processes) as pool:
        for count, future in enumerate(as_completed([pool.submit(run, case) for case in cases]), 1):
            result = future.result()
            results.append(result)
            case = result.case
            what = f"{case.trace.name} home {result.home} prices {case.prices} {case.policy}"
            figures = f"${_usd(result.summary):.2f}, p90 {_p90_s(result.summary):.1f} s, took {result.wall_s:.1f} s"
            print(f"{count}/{len(cases)} {what}: {figures}", *result.wrong, sep="; ", file=sys.stderr)
    show(results)
    if options.json is not None:
        options.json.write_text(json.dumps([as_json(result) for result in results], indent=1) + "\n", encoding="utf-8")
    assert not any(result.wrong for result in results), "what must not be has been: see the last column"


if __name__ == "__main__":
    main()
