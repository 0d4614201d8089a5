"""The launchers that run an order's followers as one job of a batch system, one follower a node.

The batch system is the record: a job's name says which order it is, and the job itself carries the pool and the hosts,
so its listing is right without any file of ours. The order's directory only holds what the nodes read, and their logs.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from fluxburst.bootkit import boot_script
from fluxburst.errors import InvalidOrder, ProviderError, ProviderUnavailable
from fluxburst.model import (
    Demand,
    Finding,
    Host,
    NodeId,
    NodePhase,
    NodeReport,
    Offer,
    Order,
    Refusal,
    RequestId,
    Shrink,
)
from fluxburst.provider import ProviderContext
from fluxburst_local import pools
from fluxburst_local.commands import check_flux, find
from fluxburst_local.options import JobOptions
from fluxburst_local.supervisor import last_line, replace

KEEP_S = 3600.0
"""How long the directory of an order without a job stays: an unanswered submission may still become a job."""


@dataclass(frozen=True, slots=True)
class Tags:
    """What a job carries, beside its name, to tell whose nodes it holds."""

    pool: str
    hosts: tuple[Host, ...]

    def dumps(self) -> str:
        """One line of JSON."""
        return json.dumps({"pool": self.pool, "hosts": self.hosts})

    @classmethod
    def loads(cls, text: str) -> Tags:
        data = json.loads(text)
        return cls(data["pool"], tuple(Host(host) for host in data["hosts"]))


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the batch system sees it. ``phase`` is None when it ended well or was cancelled."""

    job_id: int
    name: str
    phase: NodePhase | None
    detail: str = ""

    @property
    def active(self) -> bool:
        return self.phase not in (None, NodePhase.FAILED)


class BatchSystem(Protocol):
    """Flux or Slurm. Every call may raise a :class:`ProviderError`."""

    kind: ClassVar[str]
    index_variable: ClassVar[str]
    """The environment variable that tells a task its number, from 0 on, one task a node."""

    def submit(self, name: str, order: Order, tags: Tags, directory: Path) -> None:
        """Submit ``directory / BOOT`` for one task on each of as many whole nodes as the order has hosts."""

    def jobs(self, prefix: str, names: Collection[str]) -> Sequence[Job]:
        """All active jobs whose name begins with ``prefix``, and ended ones of ``names`` as far as they are known."""

    def tags(self, job_id: int) -> Tags:
        """What the job was submitted with."""

    def cancel(self, job_ids: Collection[int]) -> None:
        """Stop jobs; one that has ended is fine."""

    def check(self) -> Sequence[Finding]: ...


BOOT = "boot.sh"


class JobProvider:
    """Node ids are ``REQUEST_ID.HOST``. An allocation is given back whole, once all of its nodes are to be released."""

    shrink = Shrink.ORDER

    def __init__(self, context: ProviderContext, options: JobOptions, system: BatchSystem) -> None:
        self._context = context
        self._options = options
        self._system = system
        # A cluster's name has no dot, so no cluster's prefix begins another's.
        self._prefix = f"fluxburst-{context.cluster}."
        shared = options.shared_dir
        self._orders = (shared / context.cluster / context.name if shared else context.state_dir) / "orders"
        self._lock = threading.Lock()
        self._tags: dict[int, Tags] = {}
        self._given_back: defaultdict[RequestId, set[Host]] = defaultdict(set)

    def check(self) -> Sequence[Finding]:
        return [check_flux(self._options.flux), *self._system.check()]

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        return pools.offers(self._context, demand, instance_type=self._system.kind)

    def launch(self, order: Order, /) -> None:
        """Submit the order's job, unless the batch system knows one of its name.

        Looking first suffices, since the batch system's own list is what answers: it lacks a job only while an earlier,
        unanswered submission is under way, and then the singleton dependency, which goes by the name, holds the
        second job until :meth:`release` cancels both.
        """
        if order.pool not in self._context.pools:
            raise InvalidOrder(f"[pool.{order.pool}] is not in the configuration of provider {self._context.name}")
        name = self._prefix + order.request_id
        with self._lock:
            jobs = self._system.jobs(self._prefix, {name, *self._kept()})
            if any(job.name == name for job in jobs):
                return
            self._sweep(jobs)
            directory = self._write(order)
            try:
                self._system.submit(name, order, Tags(order.pool, order.hosts), directory)
            except ProviderUnavailable:
                raise  # it may have become a job, which then needs the directory
            except ProviderError:
                shutil.rmtree(directory, ignore_errors=True)
                raise

    def list_nodes(self) -> Sequence[NodeReport]:
        kept = self._kept()
        jobs = self._system.jobs(self._prefix, kept)
        return [report for job in self._first_of_each(jobs, kept) for report in self._reports(job)]

    def release(self, node_ids: Collection[NodeId], /) -> None:
        with self._lock:
            for node_id in node_ids:
                request_id, _, host = node_id.rpartition(".")
                self._given_back[RequestId(request_id)].add(Host(host))
            kept = self._kept()
            jobs = self._system.jobs(self._prefix, kept)
            listed = {self._request_id(job): job for job in self._first_of_each(jobs, kept)}
            cancelled: set[str] = set()
            for request_id, hosts in list(self._given_back.items()):
                job = listed.get(request_id)
                if job is not None and job.active and not hosts.issuperset(self._tags_of(job).hosts):
                    continue  # a part stays booked: its jobs may still run
                del self._given_back[request_id]
                if job is None:
                    continue
                if job.active:
                    cancelled.add(job.name)
                else:
                    shutil.rmtree(self._directory(request_id), ignore_errors=True)
            if cancelled:
                self._system.cancel([job.job_id for job in jobs if job.active and job.name in cancelled])

    def close(self) -> None:
        """Nothing is held between calls."""

    @staticmethod
    def _first_of_each(jobs: Iterable[Job], kept: Collection[str]) -> list[Job]:
        """One job for each order: the oldest active one, or a failed one that was not released yet."""
        first: dict[str, Job] = {}
        for job in sorted(jobs, key=lambda job: (not job.active, job.job_id)):
            if job.active or (job.phase is NodePhase.FAILED and job.name in kept):
                first.setdefault(job.name, job)
        return list(first.values())

    def _reports(self, job: Job) -> Iterable[NodeReport]:
        tags, request_id = self._tags_of(job), self._request_id(job)
        for host in tags.hosts:
            detail = job.detail
            if job.phase is NodePhase.FAILED and (said := last_line(self._directory(request_id) / host / "broker.log")):
                detail = f"{detail}: {said}"
            assert job.phase is not None
            yield NodeReport(NodeId(f"{request_id}.{host}"), tags.pool, request_id, host, job.phase, detail)

    def _tags_of(self, job: Job) -> Tags:
        if job.job_id not in self._tags:
            self._tags[job.job_id] = self._system.tags(job.job_id)
        return self._tags[job.job_id]

    def _request_id(self, job: Job) -> RequestId:
        return RequestId(job.name.removeprefix(self._prefix))

    # -- directories -------------------------------------------------------------------------------------------------

    def _directory(self, request_id: str) -> Path:
        return self._orders / request_id

    def _kept(self) -> set[str]:
        """The names of the jobs that have a directory: those whose failure is still to be told."""
        return {self._prefix + path.name for path in self._orders.iterdir()} if self._orders.is_dir() else set()

    def _write(self, order: Order) -> Path:
        flux = find(self._options.flux)
        directory = self._directory(order.request_id)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = directory / "broker.toml"
        replace(config, order.boot.config_toml)
        script = boot_script(
            flux,
            str(config),
            order.hosts,
            self._system.index_variable,
            str(directory),
            self._options.retries,
        )
        replace(directory / BOOT, script)
        return directory

    def _sweep(self, jobs: Iterable[Job]) -> None:
        """Remove the directories of orders whose jobs are over, or never were."""
        needed = {self._request_id(job) for job in jobs if job.phase is not None}
        if not self._orders.is_dir():
            return
        for path in self._orders.iterdir():
            if path.name not in needed and path.stat().st_mtime + KEEP_S < time.time():
                shutil.rmtree(path, ignore_errors=True)
