"""One burst.toml, ten jobs, one plan: in a simulation, on the mock and on a real Flux.

Home is one busy node of two cores everywhere, and the provider is the same mock, whose machines are all in memory: only
what is decided is compared, nothing has to come up. Buying is paused until all ten are there, so that one plan decides.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fluxburst import config as configuration
from fluxburst import hostlist, jobid
from fluxburst.flux.protocol import Caller
from fluxburst.model import Demand, JobId
from fluxburst.simulate.engine import Scenario, Simulation, mocked, spec
from fluxburst.simulate.trace import Trace, TraceJob
from fluxburst.testing import PrivateSite
from tests.real import steps
from tests.rig import Rig

BURST_TOML = """
[limits]
usd_per_day = 20
[pool.small]
provider = "cloud"
hosts = "small-[0-3]"
cores = 2
[pool.small.options]
boot_s = 60.0
usd_per_node_hour = 0.10
[pool.large]
provider = "cloud"
hosts = "large-[0-4]"
cores = 4
[pool.large.options]
boot_s = 90.0
offers = [
  { instance_type = "l", usd_per_node_hour = 0.24 },
  { instance_type = "l", zone = "zone-b", usd_per_node_hour = 0.09, spot = true, stock = 2 },
]
[pool.wide]
provider = "other"
hosts = "wide-[0-2]"
cores = 8
[pool.wide.options]
boot_s = 60.0
usd_per_node_hour = 0.35
[provider.cloud]
plugin = "mock"
[provider.other]
plugin = "mock"
"""
HEAD = 'cluster = "simulated"\n[lead]\nconnect = "tcp://127.0.0.1:8050"\n'
RUN_S = 600.0
BLOCKER = TraceJob("home", 0.0, 7200.0, Demand(1, 1, 2, exclusive=True, duration_s=7200.0), burstable=False)


def wanted(demand: Demand, **burst: Any) -> TraceJob:
    return TraceJob("", 1.0, RUN_S, demand, burstable=True, burst=burst)


def gang(nodes: int, cores: int, duration_s: float) -> Demand:
    return Demand(nodes, nodes, cores, exclusive=True, duration_s=duration_s)


TEN = tuple(
    dataclasses.replace(job, id=str(number))
    for number, job in enumerate(
        [
            wanted(Demand(0, 1, 1, duration_s=600.0)),
            wanted(Demand(0, 1, 1, duration_s=600.0)),
            wanted(Demand(0, 1, 1, duration_s=600.0)),
            wanted(Demand(0, 3, 2, duration_s=1800.0)),
            wanted(gang(2, 2, 3600.0)),
            wanted(gang(2, 8, 1200.0), max_usd=4.0),
            wanted(gang(6, 4, 600.0)),  # fits no pool
            wanted(gang(3, 8, 3600.0), max_usd=0.05),  # no offer is so cheap
            wanted(gang(1, 4, 900.0), spot=True),
            wanted(Demand(0, 1, 4), wait="1h"),
        ]
    )
)
NEVER, TOO_DEAR, PATIENT = 6, 7, 9

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Decided:
    """A plan with each job by its place among the ten.

    ``kinds`` is how many verdicts there were of each, ``verdicts`` kind, pool and hosts by job once the nodes are on
    their way. ``purchases`` is what would be bought: pool, hosts, price of a node-hour, instance type, spot or not,
    jobs, dollars an hour and dollars reserved; ``orders`` the first three of what was bought then.
    """

    verdicts: tuple[tuple[str, str, str], ...]
    kinds: Mapping[str, int]
    purchases: frozenset[tuple[Any, ...]]
    orders: frozenset[tuple[Any, ...]]


def decided(plan: Answer, jobs: Answer, nodes: Answer) -> Decided:
    rows = sorted(jobs["jobs"], key=lambda row: row["id"])
    place = {row["f58"]: number for number, row in enumerate(rows)}
    orders: dict[str, list[Answer]] = {}
    for node in nodes["nodes"]:
        orders.setdefault(node["request_id"], []).append(node)
    return Decided(
        verdicts=tuple((row["state"], row["pool"], row["hosts"]) for row in rows),
        kinds=plan["verdicts"],
        purchases=frozenset(
            (
                bought["pool"],
                bought["hosts"],
                bought["usd_per_node_hour"],
                bought["instance_type"],
                bought["spot"],
                tuple(place[job] for job in bought["jobs"]),
                bought["usd_per_hour"],
                round(bought["reserved_usd"], 4),
            )
            for bought in plan["purchases"]
        ),
        orders=frozenset(
            (order[0]["pool"], hostlist.fold(sorted(node["host"] for node in order)), order[0]["usd_per_node_hour"])
            for order in orders.values()
        ),
    )


def all_planned(jobs: Answer, plan: Answer) -> bool:
    """Whether all ten were seen, none still waits for its batching window, and the providers have answered."""
    return len(jobs["jobs"]) == len(TEN) and not plan["asks"] and "home" not in plan["verdicts"]


def simulated(directory: Path) -> Decided:
    trace = Trace(Path("ten"), lambda: iter((BLOCKER, *TEN)), 1 + len(TEN), 0, TEN[-1].submit_s, None)
    scenario = Scenario(home_nodes=1, cores_per_node=2)
    config = mocked(configuration.parse(HEAD + BURST_TOML), scenario, directory)
    simulation = Simulation(trace, config, scenario, None, None)
    answers: dict[str, Answer] = {}

    def ask(*methods: str) -> None:
        assert simulation.service is not None
        answers.update((method, simulation.service.handle(method, {}, Caller(0, owner=True))) for method in methods)

    try:
        for at_s, methods in {
            0.5: ["pause"],
            10: ["plan"],
            20: ["plan", "jobs"],
            21: ["resume"],
            30: ["nodes"],
        }.items():
            simulation.loop.call_later(at_s, ask, *methods)
        simulation.loop.call_later(20.5, lambda: answers.update(paused=answers["jobs"]))
        simulation.loop.call_later(30, ask, "jobs")
        simulation.run()
    finally:
        simulation.close()
    assert all_planned(answers["paused"], answers["plan"])
    return decided(answers["plan"], answers["jobs"], answers["nodes"])


def mock(directory: Path) -> Decided:
    rig = Rig(directory, BURST_TOML)
    rig.ask("pause")
    rig.flux.submit(spec(BLOCKER, burstable=False))
    rig.run_for(1)
    for job in TEN:
        rig.flux.submit(spec(job, burstable=True))
    rig.run_for(5)
    rig.ask("plan")
    rig.run_for(5)
    plan = rig.ask("plan")
    assert all_planned(rig.ask("jobs"), plan)
    rig.ask("resume")
    rig.run_for(10)
    found = decided(plan, rig.ask("jobs"), rig.ask("nodes"))
    rig.crash()
    return found


def real(directory: Path) -> Decided:
    with PrivateSite(directory, BURST_TOML, scheduler="fluxion-easy", strays=False) as site:
        steps.serve(site)
        site.call("pause")
        steps.await_event(site, submit(site, BLOCKER, burstable=False), "start")
        for job in TEN:
            submit(site, job, burstable=True)
        steps.eventually(lambda: all_planned(site.call("jobs"), site.call("plan")))
        plan = site.call("plan")
        site.call("resume")
        steps.eventually(lambda: len(site.call("nodes")["nodes"]) == plan["nodes"])
        # what was bought is on its way once its order is accepted
        steps.eventually(lambda: all(job["state"] != "burst" for job in site.call("jobs")["jobs"]))
        found = decided(plan, site.call("jobs"), site.call("nodes"))
        steps.clean_up(site)
        return found


def submit(site: PrivateSite, job: TraceJob, *, burstable: bool) -> JobId:
    path = site.directory / f"job-{job.id}.json"
    path.write_text(json.dumps(spec(job, burstable=burstable)))
    return jobid.parse(site.instance.run("job", "submit", str(path)).strip())


@pytest.mark.parametrize("where", [mock, pytest.param(real, marks=pytest.mark.flux)])
def test_the_plan_for_the_same_jobs_is_the_same_as_in_a_simulation(
    where: Callable[[Path], Decided], tmp_path: Path, plain_directory: Path
) -> None:
    expected = simulated(tmp_path)
    assert where(plain_directory) == expected
    assert {purchase[:3] for purchase in expected.purchases} == expected.orders
    assert {pool for pool, *_ in expected.orders} == {"small", "large", "wide"}
    kinds = [kind for kind, _, _ in expected.verdicts]
    assert {number for number, kind in enumerate(kinds) if kind == "refused"} == {NEVER, TOO_DEAR}
    assert {number for number, kind in enumerate(kinds) if kind == "wait"} == {PATIENT}
    assert expected.kinds["burst"] + expected.kinds["coming"] == len(TEN) - 3
    assert any(spot for *_, spot, _, _, _ in expected.purchases)
