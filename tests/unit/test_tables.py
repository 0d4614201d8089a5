"""What people see of the service's answers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fluxburst.cli import tables


def shown(renderable: RenderableType, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line.split()


POOL: dict[str, Any] = {
    "pool": "c2", "provider": "gke", "queue": "c2", "declared": 64,
    "states": {"planned": 1, "ordered": 2, "booting": 3, "joined": 5, "draining": 1, "stopped": 1, "releasing": 2},
    "busy": 4, "warm": 7, "warm_unmet": "", "cooldown": "", "cooldown_s": 0.0,
}  # fmt: skip
STATUS: dict[str, Any] = {
    "version": "0.1.0", "cluster": "corona", "mode": "queue", "ready": True, "paused": False,
    "jobs": {"running": 2, "burst": 1}, "nodes": 15, "nodes_limit": 64, "pools": [POOL],
    "budget": [],
}  # fmt: skip
LINE: dict[str, Any] = {
    "scope": "all", "name": "", "window": "day", "until_at": 86400.0, "spent_usd": 12.5, "reserved_usd": 30.0,
    "cap": "[limits] usd_per_day", "limit_usd": 200.0, "share": 0.2125, "level": 0.0,
}  # fmt: skip
STAR = LINE | {
    "scope": "user", "name": "bob", "cap": '[limits.user."*"] usd_per_month', "limit_usd": 50.0, "share": 0.85,
    "level": 0.8, "window": "month",
}  # fmt: skip
NODE: dict[str, Any] = {
    "host": "c2-0", "pool": "c2", "provider": "gke", "state": "joined", "reason": "", "request_id": "b-one",
    "node_id": "i-1", "planned_at": 1000.0, "joined_at": 1042.0, "changed_at": 1042.0, "age_s": 300.0, "join_s": None,
    "online": True, "drained": None, "jobs": ["ƒA", "ƒB"], "idle_votes": 0, "usd_per_node_hour": 0.25,
}  # fmt: skip
JOB: dict[str, Any] = {
    "id": 7, "f58": "ƒ8", "userid": 1001, "queue": "batch", "home_queue": "batch", "nodes": 2, "slots": 4,
    "cores_per_slot": 2, "gpus_per_slot": 1, "state": "burst", "pool": "c2", "reason": "buying 2 of c2-large",
    "hosts": "c2-[0-1]", "submitted_at": 1000.0, "waited_s": 12.0,
}  # fmt: skip
OFFER: dict[str, Any] = {
    "provider": "gke", "pool": "c2", "age_s": 12.0, "instance_type": "c2-standard-4", "usd_per_node_hour": None,
    "spot": True, "zone": "us-central1-a", "region": "us-central1", "cores": 2, "memory_bytes": 16 * 2**30, "gpus": 1,
    "gpu_model": "L4", "join_s": 55.0, "join_p90_s": 90.0, "samples": 12, "nodes_left": 9, "health": "open",
    "closed_s": None,
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "provider": "gke", "pool": "d4", "age_s": 12.0, "nodes": 2, "slots": 4, "cores_per_slot": 2, "gpus_per_slot": 0,
    "reason": "quota [C2_CPUS] is 0", "retry_at": None,
}  # fmt: skip


def test_the_status_counts_nodes_by_what_they_do() -> None:
    text = shown(tables.status(STATUS))
    head = "cluster corona, queue mode, ready; 15 of 64 nodes bought; burstable jobs: 1 burst, 2 running"
    assert text.startswith(head)
    assert words(text, "c2") == ["c2", "gke", "c2", "64", "6", "5", "4", "4", "7"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"paused": True}, "paused"),
        ({"ready": False}, "catching up"),
        ({"jobs": {}}, "burstable jobs: none"),
        ({"nodes_limit": None}, "15 nodes bought"),
        ({"pools": [POOL | {"cooldown": "no capacity", "cooldown_s": 90.0}]}, "left alone for 2m: no capacity"),
        ({"pools": [POOL | {"cooldown": "no capacity"}]}, "tried with one order first: no capacity"),
        ({"pools": [POOL | {"warm_unmet": "stockout"}]}, "warm nodes: stockout"),
    ],
)
def test_the_status_tells_what_is_out_of_the_ordinary(change: dict[str, Any], word: str) -> None:
    assert word in shown(tables.status(STATUS | change))


def test_the_status_tells_the_sites_budget_and_whose_is_nearly_used_up() -> None:
    text = shown(tables.status(STATUS | {"budget": [LINE, STAR, STAR | {"name": "eve", "level": 0.0}]}))
    assert "[limits] usd_per_day: $42.50 of $200.00 spent or reserved (21%)\n" in text
    assert '[limits.user."*"] usd_per_month bob: $42.50 of $50.00 spent or reserved (85%)\n' in text
    assert "eve" not in text


def test_the_budget_shows_every_cap_and_what_was_spent_on_what() -> None:
    total = {"nodes": 3, "node_hours": 7.125, "spent_usd": 3.5, "reserved_usd": 1.25}
    totals = [
        {"name": "alice", "unpriced_hours": 0.0, **total},
        {"name": "", "unpriced_hours": 2.0, **total},
    ]
    free = LINE | {"window": "month", "cap": "", "limit_usd": None, "share": None}
    answer = {"caps": [LINE, free, STAR], "by": "user", "since_at": 86400.0, "totals": totals}
    text = shown(tables.budget(answer))
    assert words(text, "day") == ["day", "all", "$12.50", "$30.00", "$200.00", "21%", "[limits]", "usd_per_day"]
    assert words(text, "month   all") == ["month", "all", "$12.50", "$30.00"]
    assert words(text, "month   user")[2:] == [
        "bob", "$12.50", "$30.00", "$50.00", "85%", '[limits.user."*"]', "usd_per_month",
    ]  # fmt: skip
    assert "since 1970-01-02:\n" in text
    assert words(text, "alice") == ["alice", "3", "7.12", "$3.50", "$1.25"]
    assert words(text, "-") == ["-", "3", "7.12", "$3.50", "$1.25", "2.00"]
    assert "nothing was bought" in shown(tables.budget(answer | {"totals": []}))


def test_a_node_is_shown_with_its_times_its_jobs_and_its_price() -> None:
    text = shown(tables.nodes({"nodes": [NODE]}))
    assert words(text, "c2-0") == ["c2-0", "c2", "gke", "joined", "5m", "42s", "ƒA", "ƒB", "$0.25"]


def test_a_node_that_boots_shows_how_far_it_is_and_never_as_done() -> None:
    booting = NODE | {"state": "booting", "joined_at": None, "jobs": [], "join_s": 60.0, "usd_per_node_hour": None}
    bars = [shown(tables.nodes({"nodes": [booting | {"age_s": age}]})).count("━") for age in (0.0, 30.0, 6000.0)]
    assert bars == [0, 10, 19], "of 20"
    assert "unknown" in shown(tables.nodes({"nodes": [booting]}))


def test_a_node_that_is_gone_is_shown_with_its_age_at_the_end_and_why() -> None:
    keys = ("host", "pool", "provider", "request_id", "planned_at", "joined_at")
    gone = {key: NODE[key] for key in keys} | {"state": "gone", "reason": "idle for 5m", "changed_at": 4600.0}
    assert words(shown(tables.nodes({"nodes": [gone]})), "c2-0")[3:6] == ["gone", "1h", "42s"]
    assert "idle for 5m" in shown(tables.nodes({"nodes": [gone]}))


def test_no_nodes_and_no_jobs_and_no_offers_are_said_in_words() -> None:
    assert shown(tables.nodes({"nodes": []})) == "no nodes\n"
    assert shown(tables.jobs({"jobs": [], "total": 0})) == "no active burstable jobs\n"
    assert shown(tables.offers({"offers": [], "refusals": []})) == "no provider has been asked yet\n"


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({}, "2N 8c 4g"),
        ({"gpus_per_slot": 0}, "2N 8c"),
        ({"nodes": 0, "gpus_per_slot": 0}, "8c"),
        ({"nodes": None, "slots": None, "cores_per_slot": None, "gpus_per_slot": None}, "?"),
    ],
)
def test_a_job_is_shown_with_its_needs(change: dict[str, Any], needs: str) -> None:
    text = shown(tables.jobs({"jobs": [JOB | change], "total": 1}))
    expected = ["ƒ8", "1001", "batch", *needs.split(), "burst", "c2", "c2-[0-1]", "12s"]
    assert words(text, "ƒ8") == [*expected, "buying", "2", "of", "c2-large"]


def test_the_jobs_that_are_left_out_are_counted() -> None:
    assert "and 41 more; see --limit" in shown(tables.jobs({"jobs": [JOB], "total": 42}))
    assert "more" not in shown(tables.jobs({"jobs": [JOB], "total": 1}))


EXPLAIN: dict[str, Any] = {
    "id": 7, "f58": "ƒ8", "active": True, "job": JOB, "verdict": "wait: c2: stockout, for another 1m",
    "now": 1000.0, "fix": "", "considered": None,
    "pools": [["c2", "stockout"], ["d4", "has no spot offer"]],
    "history": [
        {"at": 1.5, "kind": "burst", "reason": "buying 2", "pool": "c2", "hosts": ["c2-0", "c2-1"],
         "pools": [["x", "y"]]},
        {"at": 86399.25, "kind": "start", "n": 0},
    ],
}  # fmt: skip


def test_a_jobs_story_has_its_verdict_a_line_for_each_pool_and_its_history() -> None:
    lines = shown(tables.explain(EXPLAIN)).splitlines()
    assert lines[0] == "ƒ8 needs 2N 8c 4g, queue batch: burst on c2-[0-1]"
    assert lines[1] == "wait: c2: stockout, for another 1m"
    assert lines[2:4] == ["  pool c2: stockout", "  pool d4: has no spot offer"]
    assert lines[6].split() == ["00:00:01.500Z", "burst", "buying", "2", "pool=c2", "hosts=c2-0,c2-1"]
    assert lines[7].split() == ["23:59:59.250Z", "start"]


def test_a_job_that_is_no_longer_active_still_has_its_history() -> None:
    text = shown(tables.explain(EXPLAIN | {"active": False, "job": None, "verdict": "", "pools": []}))
    assert text.startswith("ƒ8 is no longer active\n")
    assert "buying 2" in text


PROVIDERS: dict[str, Any] = {
    "providers": [
        {"provider": "west", "kind": "gke", "distribution": "fluxburst-gke 0.1.0", "pools": ["c2", "d4"],
         "shrink": "any", "listed_s": 12.0, "machines": 3},
        {"provider": "east", "kind": "gke", "distribution": "fluxburst-gke 0.1.0", "pools": [],
         "shrink": "tail", "listed_s": None, "machines": None},
    ],
    "plugins": [
        {"name": "gke", "distribution": "fluxburst-gke 0.1.0", "kinds": ["gke"]},
        {"name": "local", "distribution": "fluxburst-local 0.1.0", "kinds": ["local"]},
        {"name": "bank", "distribution": "acme-bank 1.0", "kinds": []},
    ],
    "skipped": [{"name": "eks", "distribution": "fluxburst-eks 0.1.0", "error": "ImportError: no [boto3]"}],
}  # fmt: skip


def test_providers_are_shown_with_unused_and_broken_plugins() -> None:
    text = shown(tables.providers(PROVIDERS))
    assert words(text, "west") == ["west", "gke", "fluxburst-gke", "0.1.0", "c2", "d4", "any", "3", "12s", "ago"]
    assert words(text, "east") == ["east", "gke", "fluxburst-gke", "0.1.0", "tail", "?", "never"]
    assert "also installed: local (fluxburst-local 0.1.0): local" in text
    assert "also installed: bank (acme-bank 1.0): hooks only" in text
    assert "also installed: gke" not in text
    assert "skipped: eks (fluxburst-eks 0.1.0): ImportError: no [boto3]" in text


def test_offers_and_refusals_are_shown_with_their_age() -> None:
    text = shown(tables.offers({"offers": [OFFER], "refusals": [REFUSED]}))
    expected = "c2 gke c2-standard-4 us-central1-a us-central1 yes 2 16GiB 1 L4 unknown 55s 2m 12 nodes 9 12s ago open"
    assert words(text, "c2") == expected.split()
    assert words(text, "d4") == ["d4", "gke", "2N", "8c", "12s", "ago", "quota", "[C2_CPUS]", "is", "0"]


def test_an_offer_that_is_left_alone_says_why_and_for_how_long_and_a_guess_is_called_one() -> None:
    unmeasured = {"samples": 0, "memory_bytes": None, "gpus": 0, "gpu_model": ""}
    closed = {"health": "left alone after a failure: sold out", "closed_s": 20.0, "nodes_left": None}
    text = shown(tables.offers({"offers": [OFFER | unmeasured | closed], "refusals": []}))
    expected = "yes 2 unknown 55s 2m guess 12s ago left alone after a failure: sold out, for another 20s"
    assert words(text, "c2")[5:] == expected.split()


@pytest.mark.parametrize(
    "reason", ["[limits] nodes leaves room for 0 more", "see [/var/log]", "[red]no[/red]", ":x: a:b:c"]
)
def test_a_reason_is_shown_letter_by_letter_whatever_it_looks_like(reason: str) -> None:
    assert reason in shown(tables.jobs({"jobs": [JOB | {"reason": reason}], "total": 1}))
    assert reason in shown(tables.nodes({"nodes": [NODE | {"state": "releasing", "reason": reason}]}))
    assert reason in shown(tables.offers({"offers": [], "refusals": [REFUSED | {"reason": reason}]}))
    assert reason in shown(tables.status(STATUS | {"pools": [POOL | {"warm_unmet": reason}]}))
    told = EXPLAIN | {
        "verdict": reason,
        "pools": [["c2", reason]],
        "history": [EXPLAIN["history"][0] | {"reason": reason}],
    }
    assert shown(tables.explain(told)).count(reason) == 3


def test_nothing_is_cut_off_on_a_narrow_terminal() -> None:
    text = shown(tables.live(STATUS, {"nodes": [NODE]}, {"jobs": [JOB | {"reason": "x" * 300}], "total": 1}), width=60)
    assert text.count("x") == 300
