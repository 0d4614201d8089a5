from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from fluxburst import jobid
from fluxburst.errors import ConfigError
from fluxburst.flux.protocol import CaughtUp, JobEvent
from fluxburst.model import Demand, JobId
from fluxburst.simulate.record import Recorder, hashed
from fluxburst.simulate.trace import load

SPEC: dict[str, Any] = {
    "version": 1,
    "resources": [{"type": "slot", "count": 2, "label": "t", "with": [{"type": "core", "count": 3}]}],
    "tasks": [{"command": ["secret"], "slot": "t", "count": {"per_slot": 1}}],
    "attributes": {
        "system": {"duration": 60.0, "queue": "batch", "bank": "b", "burstable": True, "environment": {"KEY": "hidden"}}
    },
}


def event(job: int, name: str, at: float, spec: dict[str, Any] | None = None, **context: object) -> JobEvent:
    return JobEvent(JobId(job), name, at, context, spec)


def life(job: int, at: float, *, run_s: float = 5.0, spec: dict[str, Any] = SPEC) -> list[JobEvent]:
    return [
        event(job, "submit", at, spec, userid=4_000_000),
        event(job, "start", at + 1),
        event(job, "finish", at + 1 + run_s),
        event(job, "clean", at + 2 + run_s),
    ]


def recorded(*events: JobEvent, out: io.BytesIO | None = None) -> Recorder:
    recorder = Recorder(out or io.BytesIO())
    recorder.begin()
    for each in events:
        recorder.take(each)
    recorder.take(CaughtUp(0.0))
    return recorder


def test_a_record_tells_shape_times_and_names_and_never_what_a_job_does(tmp_path: Path) -> None:
    out = io.BytesIO()
    recorder = recorded(*life(1, 100.0), out=out)
    assert recorder.written == 1
    assert b"secret" not in out.getvalue()
    assert b"hidden" not in out.getvalue()
    path = tmp_path / "record"
    path.write_bytes(out.getvalue())
    (job,) = load(path).jobs()
    assert job.demand == Demand(0, 2, 3, duration_s=60)
    assert (job.id, job.run_s, job.user, job.queue, job.bank, job.burstable) == (
        jobid.f58(1), 5, "4000000", "batch", "b", True,
    )  # fmt: skip


def test_jobs_that_have_not_ended_are_written_with_what_is_known() -> None:
    out = io.BytesIO()
    recorder = recorded(*life(1, 100.0)[:2], *life(2, 100.0)[:1], out=out)
    assert recorder.written == 0
    recorder.finish(111.0)
    running, waiting = (json.loads(line) for line in out.getvalue().splitlines()[1:])
    assert (running["run"], running["ended"]) == (10.0, False)
    assert (waiting["run"], waiting["ended"]) == (None, False)


def test_a_cancelled_job_that_never_started_has_no_run_time() -> None:
    out = io.BytesIO()
    first, *_, last = life(1, 100.0)
    recorded(first, last, out=out)
    assert json.loads(out.getvalue().splitlines()[1])["run"] is None


def test_refused_jobs_are_forgotten_and_shapes_that_are_not_understood_are_counted() -> None:
    strange = SPEC | {"resources": [{"type": "rack", "count": 1}]}
    recorder = recorded(life(1, 0.0)[0], event(1, "invalidate", 0.1), *life(2, 0.0, spec=strange))
    recorder.finish(1.0)
    assert (recorder.written, recorder.unread) == (0, 1)


def test_hashed_names_stand_for_the_same_user_in_one_record_and_for_nobody_in_another() -> None:
    one, other = hashed(), hashed()
    assert one("ann") == one("ann") != one("bob")
    assert one("ann") != other("ann")
    assert "ann" not in one("ann")


def test_a_full_disk_is_told_in_one_line() -> None:

    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(ConfigError, match="/dev/full: cannot be written"),
    ):
        Recorder(full).begin()
