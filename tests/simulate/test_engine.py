"""Whole runs of the service on small traces made by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from fluxburst import config as configuration
from fluxburst.config import BurstConfig
from fluxburst.errors import ConfigError
from fluxburst.model import Demand
from fluxburst.simulate import metrics
from fluxburst.simulate.engine import Burstable, Outcome, Scenario, mocked, simulate, spec
from fluxburst.simulate.faults import Faults
from fluxburst.simulate.policies import POLICIES
from fluxburst.simulate.trace import Trace, TraceJob

BURST = """
cluster = "sim"
[lead]
connect = "tcp://127.0.0.1:8050"
[pool.cloud]
provider = "mock"
hosts = "c-[0-15]"
cores = 2
idle_timeout = "60s"
[pool.cloud.options]
boot_s = 30.0
usd_per_node_hour = 1.0
"""


def config(more: str = "") -> BurstConfig:
    return configuration.parse(BURST + more)


def gang(nodes: int, run_s: float = 600, limit_s: float | None = None) -> Demand:
    return Demand(nodes, nodes, 1, exclusive=True, duration_s=run_s if limit_s is None else limit_s)


def job(number: int, submit_s: float, nodes: int, run_s: float = 600, **fields: object) -> TraceJob:
    return TraceJob(str(number), submit_s, run_s, gang(nodes, run_s), **fields)  # type: ignore[arg-type]


def trace(*jobs: TraceJob) -> Trace:
    return Trace(Path("made"), lambda: iter(jobs), len(jobs), 0, jobs[-1].submit_s, None)


def waits(outcome: Outcome) -> list[float | None]:
    return [None if row.start_s is None else round(row.start_s - row.submit_s) for row in outcome.jobs]


BUSY = trace(job(1, 0, 2), job(2, 10, 2), job(3, 20, 3), job(4, 30, 1))


def test_home_alone_runs_what_fits_one_after_the_other_and_refuses_what_is_larger() -> None:
    outcome = simulate(BUSY, config(), Scenario(2, bursting=False))
    assert waits(outcome) == [0, 590, 1170]
    assert (outcome.refused, outcome.machines) == (1, ())
    assert all(row.end_s is not None for row in outcome.jobs)


def test_with_bursting_all_jobs_run_and_all_nodes_are_given_back() -> None:
    outcome = simulate(BUSY, config(), Scenario(2))
    assert outcome.refused == 0
    assert [row.burst for row in outcome.jobs] == [False, True, True, True]
    assert all(wait is not None and wait <= 60 for wait in waits(outcome))
    assert all(row.end_s is not None and row.failure == "" for row in outcome.jobs)
    assert outcome.machines
    assert all(machine.end_s < outcome.end_s for machine in outcome.machines)


def test_what_jobs_held_is_reckoned_by_node_and_what_was_bought_by_machine() -> None:
    outcome = simulate(trace(job(1, 0, 4)), config(), Scenario(2))
    assert outcome.used_s["cloud"] == pytest.approx(4 * 600, abs=1)
    summary = metrics.summarize(outcome, config())
    assert summary.bought_h == pytest.approx(4 * (30 + 600 + 60) / 3600, rel=0.05)
    assert summary.usd == pytest.approx(summary.bought_h, rel=0.01)  # billed by the second, rounded up
    assert summary.boot_h == pytest.approx(4 * 30 / 3600, rel=0.01)
    assert (summary.nodes, summary.orders) == (4, 1)


def test_jobs_of_a_few_cores_share_nodes_and_hold_their_part() -> None:
    small = [TraceJob(str(number), 0, 600, Demand(0, 1, 1, duration_s=600)) for number in range(4)]
    outcome = simulate(trace(*small), config(), Scenario(1, cores_per_node=2))
    assert len(outcome.machines) == 1
    assert outcome.used_s["cloud"] == pytest.approx(600, abs=1)


def test_the_join_time_can_be_set_for_all_pools() -> None:
    outcome = simulate(trace(job(1, 0, 4)), config(), Scenario(2, join_s=300))
    (up,) = {round(machine.up_s - machine.ordered_s) for machine in outcome.machines if machine.up_s is not None}
    assert up == 300


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_one_seed_gives_one_outcome_under_every_policy(policy: object) -> None:
    chosen = POLICIES[policy.name]  # type: ignore[attr-defined]
    scenario = Scenario(2, burstable=Burstable(0.7), faults=Faults(0.2, 0.2, 0.2, 3.0, 0.2, 0.0), seed=3)
    many = trace(*(job(number, 40 * number, 1 + number % 5, 100 + 50 * (number % 7)) for number in range(40)))

    def run() -> Outcome:
        return simulate(many, chosen.adapt(config()), scenario, planner=chosen.planner)

    first = run()
    assert first == run()
    assert sum(first.survived.values()) > 0
    assert all(row.end_s is not None for row in first.jobs if row.burstable)


def test_another_seed_draws_other_jobs() -> None:
    many = [job(number, 0, 1) for number in range(100)]

    def chosen(seed: int) -> list[bool]:
        return [Burstable(0.5).admits(each, seed) for each in many]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)
    assert 30 < sum(chosen(1)) < 70


@pytest.mark.parametrize(
    ("rule", "admitted"),
    [
        (Burstable(), True),
        (Burstable(0.0), False),
        (Burstable(1.0), True),
        (Burstable(users=frozenset({"ann"})), True),
        (Burstable(users=frozenset({"bob"})), False),
        (Burstable(queues=frozenset({"debug"})), False),
        (Burstable(max_nodes=4), True),
        (Burstable(max_nodes=3), False),
    ],
)
def test_rules_choose_who_may_burst(rule: Burstable, admitted: bool) -> None:
    assert rule.admits(job(1, 0, 4, user="ann", queue="batch"), 0) is admitted


def test_a_recorded_job_that_was_not_marked_stays_home_unless_a_share_is_given() -> None:
    plain = job(1, 0, 4, burstable=False)
    assert not Burstable().admits(plain, 0)
    assert Burstable(1.0).admits(plain, 0)


@pytest.mark.parametrize(
    ("faults", "happened"),
    [
        (Faults(stock_out=0.5), "stock_out"),
        (Faults(lost_answer=0.5), "lost_answer"),
        (Faults(slow_boot=0.5), "slow_boot"),
        (Faults(failed_boot=0.3), "failed_boot"),
    ],
)
def test_every_job_ends_whatever_goes_wrong(faults: Faults, happened: str) -> None:
    jobs = trace(*(job(number, 60 * number, 3) for number in range(12)))
    outcome = simulate(jobs, config(), Scenario(2, faults=faults, seed=1))
    assert outcome.survived[happened] > 0
    assert all(row.end_s is not None and row.failure == "" for row in outcome.jobs)
    assert all(machine.end_s < outcome.end_s for machine in outcome.machines)


def test_a_job_that_is_lost_with_a_spot_node_runs_again_in_its_own_row() -> None:
    spot = config('spot = true\n[policy]\non_node_loss = "resubmit"\nmax_resubmits = 100\n')
    jobs = trace(*(job(number, 60 * number, 3, 3600) for number in range(4)))
    outcome = simulate(jobs, spot, Scenario(2, faults=Faults(spot_loss=0.3), seed=1))
    assert outcome.survived["spot_loss"] > 0
    assert outcome.resubmitted == sum(row.lost for row in outcome.jobs) > 0
    assert len(outcome.jobs) == 4
    assert all(row.failure == "" and row.end_s is not None for row in outcome.jobs)


def test_a_lost_job_of_another_user_than_the_instances_owner_has_failed() -> None:
    spot = config('spot = true\n[policy]\non_node_loss = "resubmit"\n')
    outcome = simulate(trace(job(1, 0, 3, 36000, user="ann")), spot, Scenario(2, faults=Faults(spot_loss=1.0)))
    (row,) = outcome.jobs
    assert (row.lost, row.failure, outcome.resubmitted) == (1, "exec", 0)


def test_nodes_that_are_not_spot_are_not_lost() -> None:
    outcome = simulate(trace(job(1, 0, 3)), config(), Scenario(2, faults=Faults(spot_loss=100.0)))
    assert outcome.survived == {}


def test_a_job_that_no_pool_can_have_is_waited_for_no_longer_than_two_days() -> None:
    outcome = simulate(trace(job(1, 0, 99), job(2, 10, 1)), config(), Scenario(2))
    assert waits(outcome) == [None, 0]
    assert 2 * 86400 < outcome.end_s < 3 * 86400


def test_a_cap_of_a_day_lets_jobs_wait_for_the_next() -> None:
    # a node is reserved for the longest boot, the job, idling and stopping: 22 minutes, of which half are settled
    capped = config("[limits]\nusd_per_day = 2.0\n")
    outcome = simulate(trace(job(1, 0, 4), job(2, 3000, 5)), capped, Scenario(2))
    first, second = waits(outcome)
    assert first is not None
    assert second is not None
    assert first < 60
    assert second > 80000
    assert metrics.summarize(outcome, capped).caps_exceeded == ()


def test_gangs_under_a_cap_of_a_day_have_the_nodes_that_are_paid_and_then_wait_for_the_next() -> None:
    gangs = trace(*(job(number, number, 4) for number in (1, 2, 3)))
    outcome = simulate(gangs, config("[limits]\nusd_per_day = 2.0\n"), Scenario(2))
    assert waits(outcome) == [pytest.approx(30, abs=5), pytest.approx(630, abs=10), pytest.approx(86400, abs=120)]
    assert len(outcome.machines) == 8


def test_every_provider_becomes_the_mock_and_prices_limits_and_times_stay() -> None:
    real = configuration.parse(
        BURST.replace('"mock"', '"clouds"')
        .replace("boot_s = 30.0\nusd_per_node_hour = 1.0", 'instance_type = "c7"\nspot = true\nami = "x"')
        .replace("cores = 2", "cores = 2\nusd_per_node_hour = 0.5\nmax_nodes = 3")
        + '[provider.clouds]\nplugin = "aws"\nprofile = "x"\n[limits]\nnodes = 3\n[select]\nusers = ["ann"]\n'
    )
    made = mocked(real, Scenario(2), Path("/state"))
    assert made.provider == {"clouds": {"plugin": "mock"}}
    assert made.pool["cloud"].options == {"instance_type": "c7", "spot": True, "boot_s": 120.0}
    assert (made.pool["cloud"].max_nodes, made.limits, made.select.users) == (3, real.limits, ())
    assert made.state_dir == Path("/state")


def test_the_mocks_own_options_stay_and_the_join_time_goes_before_them() -> None:
    made = mocked(config(), Scenario(2, join_s=5.0), Path("/state"))
    assert made.pool["cloud"].options == {"boot_s": 5.0, "usd_per_node_hour": 1.0}


def test_a_pool_may_not_be_named_as_home_is() -> None:
    named = configuration.parse(BURST.replace('"c-[0-15]"', '"home-[0-15]"'))
    with pytest.raises(ConfigError, match="home-0 is what home's own node is called here"):
        simulate(BUSY, named, Scenario(2))


def shapes() -> Iterable[tuple[Demand, dict[str, object]]]:
    slot = {"type": "slot", "label": "task"}
    core = {"type": "core", "count": 3}
    yield Demand(0, 5, 3), {**slot, "count": 5, "with": [core]}
    yield (
        Demand(2, 4, 3, 1, exclusive=True),
        {
            "type": "node",
            "count": 2,
            "exclusive": True,
            "with": [{**slot, "count": 2, "with": [core, {"type": "gpu", "count": 1}]}],
        },
    )


@pytest.mark.parametrize(("demand", "resources"), list(shapes()))
def test_a_jobs_shape_is_written_as_flux_reads_it(demand: Demand, resources: dict[str, object]) -> None:
    assert spec(TraceJob("1", 0, 5, demand), burstable=True)["resources"] == [resources]
