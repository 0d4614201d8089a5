"""One order: a directory with its root module, its state, and what is wanted of it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxburst.model import Host, NodeId, NodePhase, NodeReport, RequestId
from fluxburst_terraform.terraform import Terraform, TerraformFailed

RECORD = "order.json"
ROOT = "main.tf.json"
BEGUN = "applying"
"""A file that is there while Terraform applies, and after it was killed: it writes its state at the end."""


@dataclass
class Job:
    """What is known of an order. ``lock`` guards all but what is constant.

    Attributes:
        request_id: Its own.
        pool: Whose it is.
        hosts: All that were ordered.
        root: Its root module, whose hosts are replaced by those that are wanted.
        wanted: Those that have not been given back.
        made: Those that are there, as far as is known: by the module's output, and before it what was tried.
        done: What ``made`` was brought to; None while that is not known.
        trouble: Why Terraform did not do what it should.
        busy: Terraform works on it, or is about to.
    """

    request_id: RequestId
    pool: str
    hosts: tuple[Host, ...]
    root: dict[str, Any]
    wanted: tuple[Host, ...]
    made: tuple[Host, ...] = ()
    done: tuple[Host, ...] | None = None
    trouble: str = ""
    busy: bool = False
    gone: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reports(self) -> list[NodeReport]:
        with self.lock:
            if self.gone:
                return []
            there = self.hosts if self.done is None else (*self.wanted, *self.made)
            return [self._report(host) for host in self.hosts if host in there]

    def _report(self, host: Host) -> NodeReport:
        phase, detail = NodePhase.STARTING, ""
        if host not in self.wanted:
            phase, detail = NodePhase.STOPPING, self.trouble
        elif self.trouble:
            phase, detail = NodePhase.FAILED, self.trouble
        elif host in self.made and self.done is not None:
            phase = NodePhase.RUNNING
        elif not self.busy:
            phase, detail = NodePhase.FAILED, "the module's output nodes has no such host"
        return NodeReport(node_id(self.request_id, host), self.pool, self.request_id, host, phase, detail)


class Orders:
    """All orders of a provider, below one directory.

    Args:
        directory: A directory of its own, mode 0700.
        terraform: Makes a :class:`~fluxburst_terraform.terraform.Terraform` for an order's directory.
        start: Runs something in the background, such as a thread pool's ``submit``.
    """

    def __init__(
        self, directory: Path, terraform: Callable[[Path], Terraform], start: Callable[[Callable[[], None]], object]
    ) -> None:
        self._directory = directory
        self._terraform = terraform
        self._start = start
        self._lock = threading.Lock()
        self._jobs: dict[RequestId, Job] | None = None

    def add(self, job: Job) -> None:
        """Take an order, and begin with it; one that is there stays as it is."""
        with self._lock:
            known = self._known()
            if job.request_id in known:
                return
            self._write(job)
            known[job.request_id] = job
        self._work_on(job)

    def all(self) -> list[Job]:
        with self._lock:
            known = self._known()
            for request_id in [job.request_id for job in known.values() if job.gone]:
                del known[request_id]
            return list(known.values())

    def give_back(self, node_ids: Collection[NodeId]) -> None:
        for job in self.all():
            with job.lock:
                left = tuple(host for host in job.wanted if node_id(job.request_id, host) not in node_ids)
                asked = any(node_id(job.request_id, host) in node_ids for host in job.hosts)
                changed = left != job.wanted
                if changed:
                    job.wanted = left
                    self._write(job)
                # what failed is tried again, as long as somebody asks for it
                again = changed or (asked and job.done != job.wanted)
            if again:
                self._work_on(job)

    def _known(self) -> dict[RequestId, Job]:
        """Those of an earlier process are gone on with."""
        if self._jobs is None:
            self._jobs = {}
            for path in sorted(self._directory.glob(f"*/{RECORD}")):
                job = _read(json.loads(path.read_text(encoding="utf-8")))
                self._jobs[job.request_id] = job
            for job in self._jobs.values():
                self._work_on(job)
        return self._jobs

    def _work_on(self, job: Job) -> None:
        with job.lock:
            if job.busy or job.gone:
                return  # whoever works on it looks again at the end
            job.busy = True
        self._start(lambda: self._work(job))

    def _work(self, job: Job) -> None:
        """Until it is as it is wanted, or cannot be."""
        while True:
            with job.lock:
                wanted = job.wanted
                if job.done == wanted:
                    job.busy = False
                    return
            try:
                made = self._bring_to(job, wanted)
            except (TerraformFailed, OSError) as error:
                with job.lock:
                    job.trouble = str(error)
                    if job.wanted == wanted:
                        job.busy = False
                        return
                    continue
            except BaseException as error:
                with job.lock:  # told by the listing: nobody looks at what a thread raises
                    job.trouble, job.busy = f"{type(error).__name__}: {error}", False
                raise
            with job.lock:
                job.trouble, job.made, job.done = "", made, wanted
                if not wanted:
                    job.gone, job.busy = True, False
                    return

    def _bring_to(self, job: Job, wanted: tuple[Host, ...]) -> tuple[Host, ...]:
        directory = self._directory / job.request_id
        terraform = self._terraform(directory)
        if not wanted:
            if (directory / ROOT).exists():
                terraform.init()
                if (directory / BEGUN).exists():
                    _apply(terraform, directory)  # what it made, and does not know of, is found by its name
                terraform.destroy()
            shutil.rmtree(directory)
            return ()
        module = {**job.root["module"]["nodes"], "hosts": list(wanted)}
        _replace(directory / ROOT, json.dumps({**job.root, "module": {"nodes": module}}, indent=1))
        terraform.init()
        _apply(terraform, directory)
        nodes: Mapping[str, Any] = terraform.outputs().get("nodes", {})  # Terraform leaves out what is null
        return tuple(host for host in job.hosts if host in nodes)

    def _write(self, job: Job) -> None:
        directory = self._directory / job.request_id
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        record = {
            "request_id": job.request_id,
            "pool": job.pool,
            "hosts": job.hosts,
            "wanted": job.wanted,
            "root": job.root,
        }
        _replace(directory / RECORD, json.dumps(record))


def _apply(terraform: Terraform, directory: Path) -> None:
    (directory / BEGUN).touch()
    try:
        terraform.apply()
    except TerraformFailed as error:
        if not error.killed:
            (directory / BEGUN).unlink()
        raise
    (directory / BEGUN).unlink()


def node_id(request_id: RequestId, host: Host) -> NodeId:
    return NodeId(f"{request_id}.{host}")


def _read(record: Mapping[str, Any]) -> Job:
    hosts, wanted = (tuple(map(Host, record[key])) for key in ("hosts", "wanted"))
    return Job(RequestId(record["request_id"]), record["pool"], hosts, record["root"], wanted)


def _replace(path: Path, text: str) -> None:
    """Whole or not at all, whenever the process ends."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
