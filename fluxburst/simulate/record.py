"""Writes down what a live instance's queue is given, for the simulator. Nothing of what jobs do is kept.

A record is JSON lines: a head, then one :class:`~fluxburst.simulate.trace.Recorded` for each job, as it ends.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from fluxburst import jobspec
from fluxburst.errors import ConfigError, FluxburstError
from fluxburst.flux.protocol import InstanceEvent, JobEvent
from fluxburst.jobid import f58
from fluxburst.model import Demand, JobId
from fluxburst.select import is_burstable, user_name
from fluxburst.simulate.trace import Recorded, RecordHead


def hashed() -> Callable[[str], str]:
    """A function that turns names into others, the same name always into the same; nobody can undo it later.

    The key is forgotten with the process: a plain hash of a user name is found by trying all names.
    """
    key = secrets.token_bytes(16)
    return lambda name: "u" + hashlib.blake2b(name.encode(), key=key, digest_size=6).hexdigest()


@dataclass(slots=True)
class _Seen:
    userid: int
    submit_at: float
    demand: Demand
    queue: str
    bank: str
    project: str
    burstable: bool
    burst: dict[str, Any]
    started_at: float | None = None
    finished_at: float | None = None


@dataclass(slots=True)
class Recorder:
    """Takes an instance's events; writes a line for each job that ends.

    ``out`` should be unbuffered. The jobs that are active at first are recorded, too. A job whose shape is not
    understood is left out and counted in ``unread``.
    """

    out: BinaryIO
    name: Callable[[str], str] = lambda name: name
    written: int = 0
    unread: int = 0
    _seen: dict[JobId, _Seen] = field(default_factory=dict)

    def begin(self) -> None:
        self._write(RecordHead(format="fluxburst-record", version=1).model_dump())

    def take(self, event: InstanceEvent) -> None:
        """Take in one event of the journals."""
        if not isinstance(event, JobEvent):
            return
        if event.name == "submit":
            self._submitted(event)
            return
        job = self._seen.get(event.job_id)
        if job is None:
            return
        match event.name:
            case "start":
                job.started_at = event.at
            case "finish":
                job.finished_at = event.at
            case "clean":
                self._ended(event.job_id, job, job.finished_at)
            case "invalidate":
                del self._seen[event.job_id]

    def finish(self, now: float) -> None:
        """Write down the jobs that have not ended: those that run with their time so far, those that wait without."""
        for job_id, job in sorted(self._seen.items(), key=lambda item: item[0]):
            self._ended(job_id, job, None if job.started_at is None else now, ended=False)

    def _submitted(self, event: JobEvent) -> None:
        spec = event.jobspec or {}
        try:
            system = jobspec.system(spec)
            self._seen[event.job_id] = _Seen(
                userid=int(event.context.get("userid", -1)),
                submit_at=event.at,
                demand=jobspec.demand(spec),
                queue=_word(system, "queue"),
                bank=_word(system, "bank"),
                project=_word(system, "project"),
                burstable=is_burstable(spec),
                burst=_table(system, "burst"),
            )
        except FluxburstError:
            self.unread += 1

    def _ended(self, job_id: JobId, job: _Seen, at: float | None, *, ended: bool = True) -> None:
        del self._seen[job_id]
        demand = job.demand
        run_s = None if job.started_at is None or at is None else max(0.0, at - job.started_at)
        line = Recorded(
            id=f58(job_id),
            submit=job.submit_at,
            nodes=demand.nodes,
            slots=demand.slots,
            cores_per_slot=demand.cores_per_slot,
            gpus_per_slot=demand.gpus_per_slot,
            exclusive=demand.exclusive,
            duration=demand.duration_s,
            run=run_s,
            ended=ended,
            queue=job.queue,
            user=self.name(user_name(job.userid)),
            bank=job.bank,
            project=job.project,
            burstable=job.burstable,
            burst=job.burst,
        )
        self._write(line.model_dump())
        self.written += 1

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self.out.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise ConfigError(f"{self.out.name}: cannot be written: {error.strerror}; make room for it") from None


def _table(system: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = system.get(key)
    return dict(value) if isinstance(value, Mapping) else {}


def _word(system: Mapping[str, Any], key: str) -> str:
    value = system.get(key)
    return value if isinstance(value, str) else ""
