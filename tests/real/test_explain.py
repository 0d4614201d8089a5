"""What would be bought is shown before it is, by commands on a real Flux: `explain`, `plan`, `run --dry-run`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fluxburst.jobid import f58
from fluxburst.testing import PrivateSite
from tests.real import steps

pytestmark = pytest.mark.flux


def said(site: PrivateSite, *arguments: str) -> str:
    done = steps.flux_burst(site, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def dry_run(site: PrivateSite, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`flux burst run --dry-run` beside whatever runs; it has to end in good order."""
    command = (sys.executable, "-m", "fluxburst", "run", "--dry-run", "--log-format", "json")
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=site.environment())
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(steps.PATIENCE_S) == 0, log_path.read_text()


def lines(log_path: Path, event: str) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in log_path.read_text().splitlines()]
    return [line for line in told if line["event"] == event]


def test_while_buying_is_paused_the_plan_shows_what_resume_buys(site: PrivateSite) -> None:
    said(site, "pause")
    orders = steps.orders_taken(site)
    job = site.submit(steps.BURSTABLE, "-N2", "-t10m", "true")
    never = site.submit(steps.BURSTABLE, "-N9", "true")
    steps.eventually(lambda: steps.memo(site, never).get("state") == "refused")
    (purchase,) = json.loads(said(site, "plan", "--json"))["purchases"]
    assert (purchase["hosts"], purchase["jobs"]) == ("burst-[0-1]", [f58(job)])
    assert "in all 2 new nodes" in said(site, "plan")
    assert steps.orders_taken(site) == orders
    queue = said(site, "explain")
    assert f58(job) in queue
    assert "burst: needs 9 nodes, the pool declares 4" in queue
    story = said(site, "explain", f58(job))
    assert "pool burst (local): buying is paused" in story
    said(site, "resume")
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0
    assert set(steps.hosts_of(site, job)) == {"burst-0", "burst-1"}


def test_a_dry_run_beside_the_service_tells_and_touches_nothing(site: PrivateSite, tmp_path: Path) -> None:
    said(site, "pause")
    log_path = tmp_path / "dry.log"
    with dry_run(site, log_path) as process:
        job = site.submit(steps.BURSTABLE, "-N2", "-t10m", "true")
        steps.eventually(lambda: lines(log_path, "would buy"))
        (line,) = lines(log_path, "would buy")
        assert (line["hosts"], line["jobs"]) == (["burst-0", "burst-1"], [f58(job)])
        assert steps.memo(site, job)["state"] == "wait", "as the service says"
        said(site, "resume")
        assert steps.await_event(site, job, "finish")["context"]["status"] == 0
        steps.eventually(lambda: steps.nothing_left(site))
        assert process.poll() is None
    assert [entry["kind"] for entry in site.call("explain", {"id": job})["history"]][-1] == "ended"


def test_a_dry_run_needs_no_service_and_leaves_nothing(site: PrivateSite, tmp_path: Path) -> None:
    site.stop_service()
    before = sorted(site.config.state_path().iterdir())
    log_path = tmp_path / "dry.log"
    with dry_run(site, log_path):
        job = site.submit(steps.BURSTABLE, "-N2", "true")
        steps.eventually(lambda: lines(log_path, "would buy"))
        assert steps.memo(site, job) == {}
        done = steps.flux_burst(site, "status")
        assert "the burst service does not run on this instance" in done.stderr
        site.instance.run("cancel", str(job))
    assert sorted(site.config.state_path().iterdir()) == before
