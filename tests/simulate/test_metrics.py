from __future__ import annotations

import dataclasses

import pytest

from fluxburst import config as configuration
from fluxburst.config import BurstConfig
from fluxburst.simulate import metrics
from fluxburst.simulate.engine import JobRow, MachineRow, Outcome

HEAD = 'cluster = "sim"\n[lead]\nconnect = "tcp://127.0.0.1:8050"\n'
POOL = '[pool.cloud]\nprovider = "mock"\nhosts = "c-[0-9]"\ncores = 4\n'
NOON = 1_767_225_600.0 + 12 * 3600
"""2026-01-01 12:00 UTC."""


def config(text: str = "") -> BurstConfig:
    return configuration.parse(HEAD + POOL + text)


def machine(ordered_s: float = 0, end_s: float = 3600, up_s: float | None = 120, usd: float | None = 1.0) -> MachineRow:
    return MachineRow("cloud", "c-0", ordered_s, end_s, up_s, usd)


def outcome(*machines: MachineRow, jobs: tuple[JobRow, ...] = (), used_s: float = 0) -> Outcome:
    return Outcome(
        jobs=jobs,
        machines=machines,
        used_s={"cloud": used_s},
        orders=len(machines),
        refused=0,
        resubmitted=0,
        survived={},
        start_at=NOON,
        end_s=7200,
    )


def job(wait_s: float | None, run_s: float = 100, *, burst: bool = False) -> JobRow:
    end_s = None if wait_s is None else 50 + wait_s + run_s
    return JobRow(50, run_s, 1, burst, None if wait_s is None else 50 + wait_s, end_s, burst)


def test_what_is_bought_is_used_in_boot_or_idle() -> None:
    summary = metrics.summarize(outcome(machine(), machine(0, 1800, None), used_s=2880), config())
    assert (summary.bought_h, summary.used_h) == (1.5, 0.8)
    assert summary.boot_h == pytest.approx((120 + 1800) / 3600)
    assert summary.idle_h == pytest.approx(1.5 - 0.8 - 1920 / 3600)
    assert summary.used_share == pytest.approx(0.8 / 1.5)
    assert (summary.usd, summary.nodes) == (1.5, 2)


def test_dollars_are_not_known_where_one_price_is_not() -> None:
    assert metrics.summarize(outcome(machine(), machine(usd=None)), config()).usd is None


@pytest.mark.parametrize(
    ("rules", "life_s", "usd"),
    [
        ("", 1800, 0.5),
        ('billing_increment = "1h"\n', 3601, 2),
        ('billing_increment = "1h"\n', 3600, 1),
        ('billing_minimum = "10m"\n', 1, 1 / 6),
    ],
)
def test_a_life_is_billed_in_the_pools_increments(rules: str, life_s: float, usd: float) -> None:
    pool = config(rules).pool["cloud"]
    assert metrics.bill(machine(100, 100 + life_s), pool) == pytest.approx(usd)


def test_waits_are_of_the_jobs_that_started_and_of_burst_jobs_apart() -> None:
    jobs = (job(0), job(10, 1), job(100, burst=True), job(1000, burst=True), job(None))
    summary = metrics.summarize(outcome(jobs=jobs), config())
    assert (summary.jobs, summary.burst_jobs, summary.not_ended) == (5, 2, 1)
    assert summary.waits == metrics.Waits(
        mean_s=277.5, p50_s=10, p90_s=1000, p99_s=1000, slowdown=(1 + 11 / 10 + 2 + 11) / 4
    )
    assert summary.burst_waits == metrics.Waits(mean_s=550, p50_s=100, p90_s=1000, p99_s=1000, slowdown=6.5)


def test_without_a_job_there_are_no_waits() -> None:
    assert set(dataclasses.astuple(metrics.summarize(outcome(), config()).burst_waits)) == {None}


@pytest.mark.parametrize(
    ("caps", "told"),
    [
        ("[limits]\nnodes = 1", "[limits] nodes: 2 at once, 1 allowed"),
        ("max_nodes = 1", "[pool.cloud] nodes: 2 at once, 1 allowed"),
        ("[limits.provider.mock]\nnodes = 1", "[limits.provider.mock] nodes: 2 at once, 1 allowed"),
        ("[limits]\nusd_per_day = 23", "[limits] usd_per_day: $24.00 in 2026-01-01, $23 allowed"),
        ("[limits]\nusd_per_month = 47", "[limits] usd_per_month: $48.00 in 2026-01, $47 allowed"),
        ("[limits.pool.'*']\nusd_per_day = 23", "[limits.pool.cloud] usd_per_day: $24.00 in 2026-01-01, $23 allowed"),
    ],
)
def test_a_broken_cap_is_told_with_its_numbers(caps: str, told: str) -> None:
    day = outcome(machine(0, 86400), machine(0, 86400))  # half of it on each of two days
    assert told in list(metrics.exceeded(day, config(caps)))


@pytest.mark.parametrize(
    "caps", ["", "max_nodes = 2", "[limits]\nnodes = 2\nusd_per_day = 24.0\nusd_per_month = 48", "[limits]\nnodes = 2"]
)
def test_a_cap_that_is_just_kept_is_not_told(caps: str) -> None:
    day = outcome(machine(0, 86400), machine(0, 86400))
    assert list(metrics.exceeded(day, config(caps))) == []


def test_a_node_that_goes_as_another_comes_is_not_two_at_once() -> None:
    assert list(metrics.exceeded(outcome(machine(0, 10), machine(10, 20)), config("max_nodes = 1"))) == []


def test_curves_show_peaks_of_the_queue_means_of_nodes_and_the_sum_of_dollars() -> None:
    jobs = (job(10), job(20), job(2000))
    shown = metrics.curves(outcome(machine(0, 1800), machine(900, 1800), jobs=jobs), config(), 3600, cells=2)
    assert shown.at_s == (0, 1800)
    assert shown.queue == (3, 1)
    assert shown.nodes == {"cloud": (1.5, 0)}
    assert shown.usd == (0.75, 0.75)
    assert shown.waits_s == (10, 20, 2000)


def test_figures_for_programs_are_rounded_to_what_is_no_noise() -> None:
    told = metrics.summarize(outcome(machine(0, 1 / 3), used_s=0.1), config()).as_json()
    assert told["bought_h"] == 0.000093
    assert told["waits"]["p50_s"] is None
