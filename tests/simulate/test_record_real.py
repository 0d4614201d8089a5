"""`flux burst record` beside a real Flux, and what it wrote in the simulator."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxburst.simulate.trace import load
from fluxburst.testing import PrivateSite
from tests.real import steps

pytestmark = pytest.mark.flux


@pytest.fixture(scope="module")
def site() -> Iterator[PrivateSite]:
    """Two cores of home and no service: the queue alone is of interest."""
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    pool = '[pool.burst]\nprovider = "local"\nhosts = "burst-[0-3]"\ncores = 2\n'
    with PrivateSite(directory, pool, scheduler="sched-simple", strays=False) as site:
        site.instance.run("queue", "stop", "--quiet", "staging")  # as the service would
        yield site
    shutil.rmtree(directory, ignore_errors=True)


def recording(site: PrivateSite, file: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start to record, and wait until it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fluxburst", "record", str(file), *arguments],
        env=site.environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    steps.eventually(lambda: file.exists() and file.stat().st_size > 0)
    return process


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]


def test_a_recorded_queue_tells_what_ran_and_simulates(site: PrivateSite, tmp_path: Path) -> None:
    file = tmp_path / "queue.jsonl"
    before = site.submit("-n1", "sleep", "inf")
    steps.await_event(site, before, "start")
    process = recording(site, file)
    marked = site.submit("-N2", "-t1m", "--setattr=burstable=true", "--setattr=system.bank=lab", "sleep", "inf")
    short = site.submit("-n1", "-t2m", "--env=SECRET=hidden", "sleep", "0.3")
    site.instance.run("job", "wait-event", "--timeout=20", str(short), "clean")
    site.instance.run("cancel", str(before))
    steps.eventually(lambda: len(lines(file)) >= 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert out == f"3 jobs in {file}\n"
    site.instance.run("cancel", str(marked))

    text = file.read_text()
    assert "hidden" not in text
    assert "sleep" not in text
    by_id = {int(site.instance.run("job", "id", "--to=dec", str(line["id"]))): line for line in lines(file)}
    assert by_id.keys() == {before, marked, short}
    assert (by_id[marked]["nodes"], by_id[marked]["burstable"], by_id[marked]["duration"]) == (2, True, 60.0)
    assert (by_id[marked]["run"], by_id[marked]["ended"], by_id[marked]["bank"]) == (None, False, "lab")
    run = by_id[short]["run"]
    assert isinstance(run, float)
    assert 0.25 < run < 5
    assert (by_id[short]["slots"], by_id[short]["cores_per_slot"], by_id[short]["burstable"]) == (1, 1, False)

    trace = load(file)
    assert (trace.count, trace.skipped) == (2, 1)
    done = steps.flux_burst(site, "simulate", str(file), "--home", "1", "--home-cores", "2", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["policies"]["home"]["jobs"] == 2


def test_recording_ends_by_itself_after_the_time_given(site: PrivateSite, tmp_path: Path) -> None:
    file = tmp_path / "queue.jsonl"
    process = recording(site, file, "--for", "300ms", "--hash-users")
    job = site.submit("true")
    site.instance.run("job", "wait-event", "--timeout=20", str(job), "clean")
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


def test_a_file_that_is_there_is_left_alone(site: PrivateSite, tmp_path: Path) -> None:
    file = tmp_path / "queue.jsonl"
    file.write_text("precious")
    done = steps.flux_burst(site, "record", str(file))
    assert (done.returncode, file.read_text()) == (1, "precious")
    assert done.stderr == f"flux burst: {file}: is there already; choose another name\n"
