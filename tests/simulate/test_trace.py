from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fluxburst.model import Demand
from fluxburst.simulate.trace import Reading, TraceError, load

HEAD = "; Version: 2.2\n; UnixStartTime: 749458803\n; Note: nothing\n;\n"


def line(
    number: int = 1, submit: float = 0, run: float = 60, procs: int = 4, asked: int = -1, limit: float = -1
) -> str:
    return f"{number} {submit} -1 {run} {procs} -1 -1 {asked} {limit} -1 1 7 2 -1 1 -1 -1 -1\n"


def swf(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "trace.swf"
    path.write_text(HEAD + "".join(lines))
    return path


def test_a_job_of_a_standard_workload_trace_is_a_gang_of_whole_nodes(tmp_path: Path) -> None:
    trace = load(swf(tmp_path, line(5, submit=10)))
    (job,) = trace.jobs()
    assert (job.id, job.submit_s, job.run_s, job.user, job.bank, job.queue) == ("5", 10, 60, "7", "2", "1")
    assert job.demand == Demand(4, 4, 1, exclusive=True, duration_s=60)
    assert (trace.count, trace.skipped, trace.last_s, trace.start_at) == (1, 0, 10, 749458803)


def test_processors_are_cores_of_shared_nodes_where_a_node_has_more_than_one(tmp_path: Path) -> None:
    (job,) = load(swf(tmp_path, line()), Reading(procs_per_node=8)).jobs()
    assert job.demand == Demand(0, 4, 1, duration_s=60)


@pytest.mark.parametrize(("factor", "limit_s"), [(1.0, 60), (2.5, 150), (None, 0)])
def test_a_job_that_requests_no_time_is_limited_by_its_run_time_times_the_factor(
    tmp_path: Path, factor: float | None, limit_s: float
) -> None:
    (job,) = load(swf(tmp_path, line()), Reading(limit_factor=factor)).jobs()
    assert job.demand.duration_s == limit_s


def test_a_requested_time_goes_before_the_factor(tmp_path: Path) -> None:
    (job,) = load(swf(tmp_path, line(limit=90)), Reading(limit_factor=5)).jobs()
    assert job.demand.duration_s == 90


def test_requested_processors_stand_in_for_allocated_ones(tmp_path: Path) -> None:
    (job,) = load(swf(tmp_path, line(procs=-1, asked=3))).jobs()
    assert job.demand.nodes == 3


def test_jobs_that_never_ran_are_left_out_and_counted(tmp_path: Path) -> None:
    trace = load(swf(tmp_path, line(1, run=-1), line(2, procs=0), line(3)))
    assert [job.id for job in trace.jobs()] == ["3"]
    assert (trace.count, trace.skipped) == (1, 2)


def test_a_packed_trace_reads_the_same_whatever_its_name(tmp_path: Path) -> None:
    path = swf(tmp_path, line(1), line(2, submit=3))
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(load(packed).jobs()) == list(load(path).jobs())


def test_jobs_are_read_anew_each_time(tmp_path: Path) -> None:
    trace = load(swf(tmp_path, line(1), line(2)))
    assert list(trace.jobs()) == list(trace.jobs())


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("1 2 3\n", ":6: has 3 fields, not the 18 of the Standard Workload Format"),
        (line().replace(" 60 ", " x "), ":6: run time (field 4): 'x' is no number"),
        (line(submit=-1), ":6: submit time (field 2): '-1' is below 0"),
        (line(submit=0), ":6: submit time: 0 is before the 5 of a line above; sort the jobs by their submit time"),
    ],
)
def test_an_error_names_file_line_and_field(tmp_path: Path, bad: str, told: str) -> None:
    path = swf(tmp_path, line(submit=5), bad)
    with pytest.raises(TraceError) as caught:
        load(path)
    assert str(caught.value) == f"{path}{told}"


def test_a_file_that_is_not_there_or_cut_off_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        load(tmp_path / "none")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(line().encode() * 1000)[:-20])
    with pytest.raises(TraceError, match="cannot be read"):
        load(cut)
    with pytest.raises(TraceError, match="holds no job that ran"):
        load(swf(tmp_path))


def recorded(**fields: object) -> str:
    job = {"id": "f1", "submit": 100.0, "nodes": 2, "slots": 4, "cores_per_slot": 3, "run": 5.0, "burstable": True}
    return json.dumps(job | fields) + "\n"


def record(tmp_path: Path, *lines: str, head: str = '{"format": "fluxburst-record", "version": 1}\n') -> Path:
    path = tmp_path / "record.jsonl"
    path.write_text(head + "".join(lines))
    return path


def test_a_record_is_read_in_the_order_of_submission(tmp_path: Path) -> None:
    later = recorded(id="f2", submit=150.0, user="ann", exclusive=True, duration=9, burstable=False)
    trace = load(record(tmp_path, later, recorded()))
    first, second = trace.jobs()
    assert (first.id, first.submit_s, first.run_s, first.burstable) == ("f1", 0, 5, True)
    assert first.demand == Demand(2, 4, 3)
    assert (second.id, second.submit_s, second.user, second.burstable) == ("f2", 50, "ann", False)
    assert second.demand == Demand(2, 4, 3, exclusive=True, duration_s=9)
    assert (trace.count, trace.start_at, trace.last_s) == (2, 100, 50)


def test_jobs_of_a_record_that_had_not_started_are_left_out(tmp_path: Path) -> None:
    trace = load(record(tmp_path, recorded(), recorded(id="f2", run=None, ended=False)))
    assert (trace.count, trace.skipped) == (1, 1)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("{\n", ":2: not JSON: "),
        (recorded(slots=0), ":2: slots: Input should be greater than or equal to 1"),
        (recorded(command="sleep"), ":2: command: Extra inputs are not permitted"),
    ],
)
def test_an_error_in_a_record_names_file_line_and_field(tmp_path: Path, bad: str, told: str) -> None:
    path = record(tmp_path, bad)
    with pytest.raises(TraceError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}{told}")


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=":1: the first line must be"):
        load(record(tmp_path, head='{"id": "f1"}\n'))
    with pytest.raises(TraceError, match=":1: version: "):
        load(record(tmp_path, head='{"format": "fluxburst-record", "version": 2}\n'))
