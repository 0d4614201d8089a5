"""What a queue was given: the Standard Workload Format, or what ``flux burst record`` wrote; each may be gzipped.

The format: https://www.cs.huji.ac.il/labs/parallel/workload/swf.html, version 2.2. One job a line, 18 numbers, -1 for
what is not known; ``;`` begins a comment, and those on top are ``; Label: value``.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fluxburst.errors import FluxburstError
from fluxburst.model import Demand


class TraceError(FluxburstError):
    """A trace cannot be read. The message names the file, the line and the field."""


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job of a trace.

    ``submit_s`` counts from the trace's start; ``run_s`` is how long it runs when nothing ends it sooner.
    ``demand.duration_s`` is its time limit, 0 where it has none. ``burstable`` is None where the trace does not tell.
    ``burst`` are its ``burst.*`` options as they were submitted.
    """

    id: str
    submit_s: float
    run_s: float
    demand: Demand
    queue: str = ""
    user: str = ""
    bank: str = ""
    project: str = ""
    burstable: bool | None = None
    burst: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace that was read through once, so that it has no mistake. ``jobs()`` reads it again, job by job.

    ``start_at`` is POSIX seconds, None where the trace does not tell. ``count`` is how many jobs there are, ``skipped``
    how many lines are of jobs that never ran or whose size is not known. ``last_s`` is when the last job comes.
    """

    path: Path
    jobs: Callable[[], Iterator[TraceJob]]
    count: int
    skipped: int
    last_s: float
    start_at: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a Standard Workload Format leaves open.

    ``procs_per_node``: with 1, each processor is a node of its own, and a job a gang of whole nodes; with more, a
    processor is a core, and jobs share nodes. ``limit_factor``: where a job has no requested time, its limit is its run
    time times this; with None it has no limit.
    """

    procs_per_node: int = 1
    limit_factor: float | None = 1.0


def load(path: Path, reading: Reading | None = None) -> Trace:
    """Read a trace through once.

    Raises:
        TraceError: it cannot be read, a line is wrong, the jobs are not in the order of their submission, or there are
            none.
    """
    with _Lines(path) as lines:
        first = next(iter(lines), "")
    if first.startswith("{"):
        return _load_record(path)
    reading = reading or Reading()
    with _Lines(path) as lines:
        jobs = _Swf(lines, reading)
        count, last_s = 0, 0.0
        for job in jobs:
            count, last_s = count + 1, job.submit_s
    if not count:
        raise TraceError(f"{path}: holds no job that ran")

    def again() -> Iterator[TraceJob]:
        with _Lines(path) as lines:
            yield from _Swf(lines, reading)

    return Trace(path, again, count, jobs.skipped, last_s, jobs.start_at)


class _Lines:
    """The lines of a file, unpacked where it is packed, with their numbers at hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        self._file: IO[str] | None = None

    def __enter__(self) -> _Lines:
        try:
            raw = self.path.open("rb")
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be read: {error.strerror}") from None
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        self._file = io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8", errors="replace")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[str]:
        assert self._file is not None
        try:
            for line in self._file:
                self.number += 1
                yield line
        except (OSError, EOFError, zlib.error) as error:
            raise self.error(f"cannot be read: {error}") from None

    def error(self, message: str) -> TraceError:
        return TraceError(f"{self.path}:{self.number}: {message}")


_FIELDS = (
    "job number", "submit time", "wait time", "run time", "allocated processors", "average CPU time", "used memory",
    "requested processors", "requested time", "requested memory", "status", "user", "group", "executable", "queue",
    "partition", "preceding job", "think time",
)  # fmt: skip
_NUMBER, _SUBMIT, _RUN, _ALLOCATED, _REQUESTED, _LIMIT, _USER, _GROUP, _QUEUE = 0, 1, 3, 4, 7, 8, 11, 12, 14
_USED = (_NUMBER, _SUBMIT, _RUN, _ALLOCATED, _REQUESTED, _LIMIT, _USER, _GROUP, _QUEUE)
_LABEL = re.compile(r";\s*(\w+):\s*(-?\d+)\s*$")


class _Swf:
    """The jobs of a Standard Workload Format, in one pass."""

    def __init__(self, lines: _Lines, reading: Reading) -> None:
        self._lines = lines
        self._reading = reading
        self.skipped = 0
        self.start_at: float | None = None

    def __iter__(self) -> Iterator[TraceJob]:
        latest_s = 0.0
        for line in self._lines:
            if line.startswith(";"):
                label = _LABEL.match(line)
                if label is not None and label[1] == "UnixStartTime" and int(label[2]) > 0:
                    self.start_at = float(label[2])
                continue
            words = line.split()
            if not words:
                continue
            job = self._job(words)
            if job is None:
                self.skipped += 1
                continue
            if job.submit_s < latest_s:
                raise self._lines.error(
                    f"submit time: {job.submit_s:g} is before the {latest_s:g} of a line above; "
                    "sort the jobs by their submit time"
                )
            latest_s = job.submit_s
            yield job

    def _job(self, words: list[str]) -> TraceJob | None:
        if len(words) != len(_FIELDS):
            raise self._lines.error(f"has {len(words)} fields, not the {len(_FIELDS)} of the Standard Workload Format")
        value = {}
        for index in _USED:
            try:
                value[index] = float(words[index])
            except ValueError:
                raise self._lines.error(
                    f"{_FIELDS[index]} (field {index + 1}): {words[index]!r} is no number"
                ) from None
        if value[_SUBMIT] < 0:
            raise self._wrong(_SUBMIT, words, "is below 0")
        processors = int(value[_ALLOCATED] if value[_ALLOCATED] > 0 else value[_REQUESTED])
        run_s = value[_RUN]
        if processors < 1 or run_s < 0:
            return None
        limit_s = value[_LIMIT]
        if limit_s <= 0:
            limit_s = run_s * (self._reading.limit_factor or 0.0)
        return TraceJob(
            id=words[_NUMBER],
            submit_s=value[_SUBMIT],
            run_s=run_s,
            demand=_demand(processors, self._reading.procs_per_node, limit_s),
            queue="" if value[_QUEUE] < 0 else words[_QUEUE],
            user="" if value[_USER] < 0 else words[_USER],
            bank="" if value[_GROUP] < 0 else words[_GROUP],
        )

    def _wrong(self, index: int, words: list[str], what: str) -> TraceError:
        return self._lines.error(f"{_FIELDS[index]} (field {index + 1}): {words[index]!r} {what}")


def _demand(processors: int, procs_per_node: int, limit_s: float) -> Demand:
    if procs_per_node == 1:
        return Demand(processors, processors, 1, exclusive=True, duration_s=limit_s)
    return Demand(0, processors, 1, duration_s=limit_s)


def _text(value: object) -> object:
    return "" if value is None else value


Text = Annotated[str, BeforeValidator(_text)]


class Recorded(BaseModel):
    """One job in what ``flux burst record`` writes: a line of JSON.

    ``submit`` is POSIX seconds; ``duration`` is the time limit, 0 for none; ``run`` is how long it ran, or has run so
    far where ``ended`` is false; null where it has not started.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    submit: float = Field(ge=0)
    nodes: int = Field(ge=0)
    slots: int = Field(ge=1)
    cores_per_slot: int = Field(ge=1)
    gpus_per_slot: int = Field(default=0, ge=0)
    exclusive: bool = False
    duration: float = Field(default=0.0, ge=0)
    run: float | None = Field(default=None, ge=0)
    ended: bool = True
    queue: Text = ""
    user: Text = ""
    bank: Text = ""
    project: Text = ""
    burstable: bool = False
    burst: dict[str, Any] = Field(default_factory=dict)

    def job(self, start_at: float) -> TraceJob:
        assert self.run is not None
        return TraceJob(
            id=self.id,
            submit_s=self.submit - start_at,
            run_s=self.run,
            demand=Demand(
                nodes=self.nodes,
                slots=self.slots,
                cores_per_slot=self.cores_per_slot,
                gpus_per_slot=self.gpus_per_slot,
                exclusive=self.exclusive,
                duration_s=self.duration,
            ),
            queue=self.queue,
            user=self.user,
            bank=self.bank,
            project=self.project,
            burstable=self.burstable,
            burst=self.burst,
        )


class RecordHead(BaseModel):
    """The first line of a record."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: Literal["fluxburst-record"]
    version: Literal[1]

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "format" not in value:
            raise ValueError('the first line must be {"format": "fluxburst-record", "version": 1}')
        return value


def _load_record(path: Path) -> Trace:
    """A record is written as its jobs end, so it is read whole and sorted."""
    found: list[Recorded] = []
    skipped = 0
    with _Lines(path) as lines:
        for line in lines:
            job = _parsed(RecordHead if lines.number == 1 else Recorded, line, lines)
            if isinstance(job, Recorded):
                if job.run is None:
                    skipped += 1
                else:
                    found.append(job)
    if not found:
        raise TraceError(f"{path}: holds no job that ran")
    found.sort(key=lambda job: (job.submit, job.id))
    start_at = found[0].submit
    jobs = [job.job(start_at) for job in found]
    return Trace(path, lambda: iter(jobs), len(jobs), skipped, jobs[-1].submit_s, start_at)


def _parsed(model: type[BaseModel], line: str, lines: _Lines) -> BaseModel:
    try:
        return model.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise lines.error(f"not JSON: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise lines.error(": ".join(filter(None, [field, first["msg"].removeprefix("Value error, ")]))) from None
