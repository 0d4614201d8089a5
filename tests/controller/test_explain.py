"""What `flux burst explain` tells in each situation: the deciding number, and what would have to change."""

from __future__ import annotations

import copy
import io
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fluxburst.cli import tables
from fluxburst.errors import NoCapacity, ProviderError, ProviderUnavailable, QuotaExceeded
from fluxburst.fit import ASKING
from fluxburst.flux.protocol import Caller
from fluxburst.jobid import f58
from fluxburst.model import Host, JobId
from fluxburst.states import NodeState
from tests.controller.conftest import MakeRig
from tests.rig import POOL, Rig

GUEST = Caller(4000000001, owner=False)
HOUR = 3600.0


def shown(renderable: RenderableType, width: int = 400) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def explained(rig: Rig, job: JobId) -> str:
    return shown(tables.explain(rig.ask("explain", id=job)))


def limits(text: str) -> str:
    return f"{POOL}\n[limits]\n{text}\n"


def policy(text: str) -> str:
    return f"{POOL}\n[policy]\n{text}\n"


def options(text: str) -> str:
    """The pool with other options of the mock cloud."""
    return POOL.replace("usd_per_node_hour = 0.5", text)


def one(**job: Any) -> Callable[[Rig], JobId]:
    """A single job, some seconds later."""

    def submit(rig: Rig) -> JobId:
        submitted = rig.submit(**job)
        rig.run_for(3)
        return submitted

    return submit


def after(*before: dict[str, Any], **job: Any) -> Callable[[Rig], JobId]:
    """A job after others, each some seconds after the one before."""

    def submit(rig: Rig) -> JobId:
        for other in before:
            rig.submit(**other)
            rig.run_for(3)
        return one(**job)(rig)

    return submit


def failing(*errors: ProviderError, run_s: float = 3) -> Callable[[Rig], JobId]:
    """A job of two nodes whose orders fail."""

    def submit(rig: Rig) -> JobId:
        rig.run_for(1)
        for error in errors:
            rig.cloud.fail("launch", error)
        job = rig.submit(nodes=2, duration_s=HOUR)
        rig.run_for(run_s)
        return job

    return submit


def booting_badly(rig: Rig) -> JobId:
    rig.cloud.die_in_boot.update(map(Host, ("burst-0", "burst-1")))
    job = rig.submit(nodes=2)
    rig.run_for(45)
    return job


def unlisted(rig: Rig) -> JobId:
    rig.crash()
    for _ in range(9):
        rig.cloud.fail("list_nodes", ProviderUnavailable("down"))
    rig.start()
    return one(nodes=2)(rig)


def paused(rig: Rig) -> JobId:
    rig.ask("pause")
    return one(nodes=2)(rig)


def stopped(rig: Rig) -> JobId:
    rig.run_for(1)
    rig.flux.set_queue("burst", started=False)
    job = rig.submit(nodes=2)
    rig.run_for(95)
    return job


def running(rig: Rig) -> JobId:
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.run_for(1)
    return job


def depending(rig: Rig) -> JobId:
    first = rig.submit(**BUSY_HOME)
    return one(nodes=2, dependencies=[{"scheme": "afterany", "value": str(first)}])(rig)


def behind_busy_nodes(rig: Rig) -> JobId:
    first = rig.submit(nodes=2, run_s=60.0, duration_s=60.0)
    rig.run_until(lambda: rig.flux.state(first).name == "RUN")
    return one(nodes=2)(rig)


def behind_a_gang(rig: Rig) -> JobId:
    rig.ask("request", pool="burst", nodes=4)
    rig.run_until(lambda: list(rig.states().values()) == [NodeState.JOINED] * 4)
    first = rig.submit(nodes=3, run_s=2 * HOUR, duration_s=2 * HOUR)
    rig.run_until(lambda: rig.flux.state(first).name == "RUN")
    gang = {"nodes": 4, "duration_s": HOUR}
    return after(BUSY_FOR_HOURS, gang, slots=2, duration_s=3 * HOUR)(rig)


BUSY_HOME: dict[str, Any] = {"slots": 2, "run_s": 40.0, "duration_s": 40.0, "burstable": False}
BUSY_FOR_HOURS = BUSY_HOME | {"run_s": 4 * HOUR, "duration_s": 4 * HOUR}
BUSY_POOL: dict[str, Any] = {"nodes": 4, "run_s": 2 * HOUR, "duration_s": 2 * HOUR}
SLOW = POOL.replace("boot_s = 30.0", "boot_s = 120.0")


@dataclass(frozen=True)
class Situation:
    """``shows`` are parts of what is shown: the deciding number, and the fix."""

    name: str
    job: Callable[[Rig], JobId]
    shows: tuple[str, ...]
    pools: str = POOL


TWO_BUSY = BUSY_POOL | {"nodes": 2}
OF_USER = {"userid": GUEST.userid}
SITUATIONS = [
    Situation(
        "larger nodes",
        one(slots=1, cores=3),
        ("needs 3 cores on a node, the pool's nodes have 2 cores", "ask for no more than 2 cores a node, or a pool of"),
    ),
    Situation(
        "more nodes than declared",
        one(nodes=5),
        ("needs 5 nodes, the pool declares 4", "ask for 4 nodes or fewer, or declare more hosts in [pool.burst] hosts"),
    ),
    Situation(
        "a constraint",
        one(nodes=2, queue="burst", constraints={"hostlist": ["burst-9"]}),
        ('no host satisfies the job\'s constraint {"and":[{"hostlist":["burst-9"]}', "drop --requires, or name"),
    ),
    Situation(
        "no price under a cap",
        one(nodes=2, duration_s=HOUR),
        ("no known price, and [limits] usd_per_day is set", "a price in [[price]] or [pool.NAME], or [limits] assume_"),
        options("") + "\n[limits]\nusd_per_day = 10\n",
    ),
    Situation(
        "above the job's limit",
        one(nodes=2, duration_s=HOUR, burst={"max_usd": 0.5}),
        ("would cost $1.01, more than burst.max_usd = 0.5", "a limit of $1.01, fewer nodes, or a shorter time limit"),
    ),
    Situation(
        "no time limit",
        one(nodes=2, burst={"max_usd": 0.5}),
        ("no time limit, and the job sets burst.max_usd", "what would change it: burst: submit it with -t"),
    ),
    Situation(
        "the site's limit for a job",
        one(nodes=2, duration_s=HOUR),
        ("would cost $1.01, more than [limits] usd_per_job = 0.5", "a limit of $1.01, fewer nodes"),
        limits("usd_per_job = 0.5"),
    ),
    Situation(
        "all nodes",
        after(TWO_BUSY, nodes=2),
        ("burst: [limits] nodes = 3 leaves too few nodes (2 of 3 committed, 2 needed)",
         "wait for other jobs to end, or raise [limits] nodes"),
        limits("nodes = 3"),
    ),
    Situation(
        "a pool's nodes",
        after(TWO_BUSY, nodes=2),
        ("[pool.burst] max_nodes = 3 leaves too few nodes (2 of 3 committed, 2 needed)",
         "wait for other jobs to end, or raise [pool.burst] max_nodes"),
        POOL.replace("cores = 2", "cores = 2\nmax_nodes = 3"),
    ),
    Situation(
        "a provider's nodes",
        after(TWO_BUSY, nodes=2),
        ("[limits.provider.mock] nodes = 3 leaves too few nodes (2 of 3 committed, 2 needed)",
         "raise [limits.provider.mock] nodes"),
        limits("provider.mock = { nodes = 3 }"),
    ),
    Situation(
        "more nodes than a cap",
        one(nodes=4),
        ("needs 4 nodes, [limits] nodes = 3", "[limits] nodes = 4 or more, or fewer nodes"),
        limits("nodes = 3"),
    ),
    Situation(
        "the day's dollars",
        after(TWO_BUSY, nodes=2, duration_s=HOUR),
        ("[limits] usd_per_day = 3 leaves too little ($2.22 of $3.00 committed, $1.22 needed), renewed in 1d",
         "wait until it is renewed, or raise [limits] usd_per_day"),
        limits("usd_per_day = 3"),
    ),
    Situation(
        "the user's month",
        after(TWO_BUSY | OF_USER, nodes=2, duration_s=HOUR, **OF_USER),
        ('[limits.user."*"] usd_per_month = 3 leaves too little ($2.22 of $3.00 committed, $1.22 needed)',
         "renewed in 31d", 'wait until it is renewed, or raise [limits.user."*"] usd_per_month'),
        limits('user."*" = { usd_per_month = 3 }'),
    ),
    Situation(
        "more than a day's dollars",
        one(nodes=2, duration_s=10 * HOUR),
        ("would reserve $10.22, more than [limits] usd_per_day = 3 ($0.00 of $3.00 committed, $10.22 needed)",
         "[limits] usd_per_day = 10.22 or more, fewer nodes, or a shorter time limit"),
        limits("usd_per_day = 3"),
    ),
    Situation(
        "too few left",
        one(nodes=3),
        ("the provider has too few of mock left (2 left, 3 needed), for another", "the provider is asked again then"),
        options("usd_per_node_hour = 0.5\nstock = 2"),
    ),
    Situation(
        "sold out",
        failing(NoCapacity("sold out")),
        ("mock in zone-a ($0.5 an hour, joins in 30s by guess): left alone after a failure: sold out, for another 27",
         "nothing; it is tried again then"),
    ),
    Situation(
        "a region's quota",
        failing(QuotaExceeded("quota CPUS is 0")),
        ("region region is left alone after a failure: quota CPUS is 0, for another 27", "it is tried again then"),
    ),
    Situation(
        "bad boots",
        booting_badly,
        ("pool burst (mock): left alone after a failure: boot failed: died in its boot, for another 1",
         "it is tried again then"),
    ),
    Situation("paused", paused, ("buying is paused", "an administrator resumes it with `flux burst resume`")),
    Situation(
        "the provider's machines are unknown",
        unlisted,
        ("what provider mock already runs is not known yet", "see `flux burst providers` and `flux burst check`"),
    ),
    Situation(
        "home is sooner",
        after(BUSY_HOME, slots=2, duration_s=HOUR),
        ("what decided: home in 34s, burst in 2m for $0.52: home is sooner", "nothing; it starts there"),
        SLOW,
    ),
    Situation(
        "too short a wait",
        after(BUSY_HOME, slots=2, duration_s=HOUR),
        ("home in 34s, burst in 30s for $0.50, [policy] min_wait = 5m: too short a wait to burst",
         "nothing, or a lower [policy] min_wait"),
        policy('min_wait = "5m"'),
    ),
    Situation(
        "too dear an hour",
        after(BUSY_FOR_HOURS, slots=2, duration_s=20 * HOUR),
        ("home in 4h, burst in 30s for $10.00: $10.00 for 3h59m saved is $2.51 an hour saved, "
         "[policy] max_usd_per_hour_saved = 2", "nothing, or [policy] max_usd_per_hour_saved = 2.51"),
        policy("max_usd_per_hour_saved = 2"),
    ),
    Situation(
        "burst.wait",
        one(nodes=2, burst={"wait": "10m"}),
        ("what decided: burst.wait ends in 10m; until then nothing is bought", "a smaller burst.wait lets it burst"),
    ),
    Situation(
        "busy nodes are sooner",
        behind_busy_nodes,
        ("burst-[0-1] expected to be free in 57s, a new node could be up in 2m", "nothing; it starts there"),
        SLOW,
    ),
    Situation(
        "behind a gang",
        behind_a_gang,
        ("ƒ", "comes first and waits for its nodes; this job would not end in time, for another 2h",
         "a time limit that ends before that job can start"),
    ),
    Situation(
        "no spot nodes",
        one(nodes=2, burst={"spot": True}),
        ("its nodes are not spot", "the provider says so; see `flux burst check`"),
    ),
    Situation(
        "a user who may not",
        one(nodes=2, userid=GUEST.userid),
        ("user 4000000001 may not burst; ask for an entry in [select] users", "mend what the reason says"),
        POOL + '\n[select]\nusers = ["root"]\n',
    ),
    Situation("held", one(nodes=2, urgency=0), ("it is held (urgency 0)", "flux job urgency JOB default")),
    Situation("depending", depending, ("it has unmet dependencies", "what it depends on has to come first")),
    Situation(
        "stuck",
        stopped,
        ("its nodes were up for 1m and it did not start; see `flux queue status`, for another 25", "it is tried again"),
    ),
    Situation("coming", one(nodes=2), ("burst-[0-1] expected to be up in 27.1s, and kept for it", "coming")),
    Situation("running", running, ("queue burst: running on burst-[0-1]", "it started")),
]  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS, ids=[one.name for one in SITUATIONS])
def test_a_jobs_explanation_names_the_deciding_number_and_the_fix(make_rig: MakeRig, situation: Situation) -> None:
    rig = make_rig(situation.pools)
    text = explained(rig, situation.job(rig)).partition("TIME ")[0]
    for part in situation.shows:
        assert part in text


@pytest.mark.parametrize("situation", SITUATIONS, ids=[one.name for one in SITUATIONS])
def test_an_explanation_is_json_and_changes_nothing(make_rig: MakeRig, situation: Situation) -> None:
    rig = make_rig(situation.pools)
    job = situation.job(rig)
    before = state(rig)
    json.dumps(rig.ask("explain", id=job), allow_nan=False)
    json.dumps(rig.ask("explain"), allow_nan=False)
    json.dumps(rig.ask("plan"), allow_nan=False)
    assert state(rig) == before


def test_each_offer_of_each_pool_is_told_with_its_own_answer(make_rig: MakeRig) -> None:
    other = POOL.replace("[pool.burst", "[pool.other").replace("burst-[0-3]", "other-[0-1]")
    offers = """offers = [
        {instance_type = "cheap", usd_per_node_hour = 0.5, stock = 1},
        {instance_type = "dear", zone = "zone-b", usd_per_node_hour = 2.0, spot = true},
        {instance_type = "unpriced"},
    ]"""
    rig = make_rig(options(offers) + other)
    rig.ask("pause")
    job = one(nodes=3, duration_s=HOUR, burst={"max_usd": 5.0})(rig)
    explained(rig, job)
    rig.run_for(1)  # while buying is paused, providers are asked because somebody wants to know
    text = explained(rig, job)
    assert "\npool burst (mock): buying is paused; an administrator resumes it with `flux burst resume`\n" in text
    assert (
        "\n  cheap in zone-a ($0.5 an hour, joins in 30s by guess, 1 left): would start it in 30s for $4.54 on 3"
        in text
    )
    assert (
        "\n  spot dear in zone-b ($2 an hour, joins in 30s by guess): would cost $6.05, more than burst.max_usd" in text
    )
    assert "\n    to change it: a limit of $6.05, fewer nodes, or a shorter time limit\n" in text
    assert (
        "\n  unpriced in zone-a (no known price, joins in 30s by guess): has no known price, and the job sets" in text
    )
    assert "\npool other (mock): needs 3 nodes, the pool declares 2\n" in text


def test_nothing_is_cut_off_on_a_narrow_terminal(make_rig: MakeRig) -> None:
    rig = make_rig(limits("usd_per_day = 3"))
    answer = {**rig.ask("explain", id=after(TWO_BUSY, nodes=2, duration_s=HOUR)(rig)), "history": []}
    narrow = shown(tables.explain(answer), 60)
    assert max(map(len, narrow.splitlines())) <= 60
    assert narrow.split() == shown(tables.explain(answer)).split()


def test_the_whole_queue_is_told_by_verdict_and_reason_the_most_first(rig: Rig) -> None:
    jobs = [rig.submit(nodes=9) for _ in range(5)]
    held = rig.submit(nodes=2, urgency=0, userid=GUEST.userid)
    rig.run_for(3)
    answer = rig.ask("explain")
    assert answer["total"] == 6
    (first, second) = answer["groups"]
    assert (first["state"], first["count"], len(first["examples"])) == ("refused", 5, 3)
    assert (first["reason"], second["reason"]) == (
        "burst: needs 9 nodes, the pool declares 4",
        "it is held (urgency 0)",
    )
    assert first["examples"] == [f58(job) for job in jobs[:3]]
    lines = shown(tables.explain_all(answer), 160).splitlines()
    assert lines[0].split() == ["STATE", "JOBS", "EXAMPLES", "POOL", "REASON", "FIX"]
    assert lines[1].startswith("refused  5     ƒ2UzHM ƒ3xyZh ƒ5Sxr3 …")
    assert "ask for 4 nodes or fewer" in lines[1]
    assert [group["examples"] for group in rig.service.handle("explain", {}, GUEST)["groups"]] == [[f58(held)]]


def test_an_empty_queue_says_so(rig: Rig) -> None:
    assert shown(tables.explain_all(rig.ask("explain"))) == "no active burstable jobs\n"


def state(rig: Rig) -> object:
    """Everything that is kept: the store's content, the jobs' verdicts, the records, and what is to be planned."""
    world = rig.service.world
    with closing(sqlite3.connect(rig.config.state_path() / "state.sqlite")) as database:
        stored = list(database.iterdump())
    return copy.deepcopy(
        (
            stored,
            [(job.id, job.verdict, job.memo, job.ready_at, job.stuck_until_at) for job in world.jobs.values()],
            [node.record for node in world.nodes.values()],
            world.unplanned,
            world.dirty,
            world.plan_due,
            world.plan_again_at,
            set(world.plan.booked),
            world.placed,
            world.untold,
            world.orders,
            world.retries,
            world.book.latest(rig.loop.wall()),
            world.book.refusals(),
            world.breakers.state(),
            world.ledger.report(rig.loop.wall()),
            len(rig.cloud.calls),
        )
    )


def test_a_plan_tells_what_would_be_bought_with_prices_reservations_and_jobs(rig: Rig) -> None:
    rig.ask("pause")
    job, never = rig.submit(nodes=2, duration_s=HOUR), rig.submit(nodes=9)
    rig.run_for(3)
    first = rig.ask("plan")
    assert (first["purchases"], first["undecided"]) == ([], 1)
    assert [(ask["provider"], ask["nodes"]) for ask in first["asks"]] == [("mock", 2)]
    rig.run_for(1)
    answer = rig.ask("plan")
    (purchase,) = answer["purchases"]
    assert {key: purchase[key] for key in ("pool", "instance_type", "hosts", "nodes", "jobs", "spot")} == {
        "pool": "burst",
        "instance_type": "mock",
        "hosts": "burst-[0-1]",
        "nodes": 2,
        "jobs": [f58(job)],
        "spot": False,
    }
    assert (answer["nodes"], answer["usd_per_hour"]) == (2, 1.0)
    assert answer["reserved_usd"] == pytest.approx(2 * 0.5 * (600 + 3600 + 60 + 60 + 60) / 3600, abs=1e-4)
    assert (answer["verdicts"], answer["asks"], answer["paused"]) == ({"burst": 1, "refused": 1}, [], True)
    assert rig.calls("launch") == []
    assert rig.service.handle("plan", {}, GUEST)["purchases"][0]["jobs"] == []
    rig.flux.cancel(never)
    rig.ask("resume")
    rig.run_for(1)
    assert [call.args[0].hosts for call in rig.calls("launch")] == [("burst-0", "burst-1")], "as the plan said"
    after_all = rig.ask("plan")
    assert (after_all["purchases"], after_all["verdicts"]) == ([], {"coming": 1})


def test_a_plan_counts_warm_nodes_and_what_has_no_price(make_rig: MakeRig) -> None:
    rig = make_rig(options(""))
    rig.ask("pause")
    rig.run_for(1)
    rig.ask("request", pool="burst", nodes=3)
    assert rig.ask("plan")["unmet"] == {"burst": ASKING}
    rig.run_for(1)
    answer = rig.ask("plan")
    (purchase,) = answer["purchases"]
    assert (purchase["nodes"], purchase["jobs"], answer["usd_per_hour"], answer["reserved_usd"]) == (3, [], None, None)
    assert "in all 3 new nodes, unknown an hour, unknown reserved" in shown(tables.plan(answer))


def test_a_plan_shows_that_a_cap_stops_it(make_rig: MakeRig) -> None:
    rig = make_rig(limits("nodes = 1"))
    rig.submit(nodes=2)
    rig.run_for(3)
    text = shown(tables.plan(rig.ask("plan")))
    assert text == "nothing would be bought\nverdicts: 1 refused; `flux burst explain` tells the reasons\n"
