"""What the controller knows of home: the instance's own hosts, what runs there, and who waits there beside the askers.

``sync`` feeds it with every job's events, burstable or not; so it keeps of each job only what a forecast needs.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from fluxburst import jobspec
from fluxburst.config import BurstConfig
from fluxburst.errors import JobspecError
from fluxburst.flux.protocol import JobEvent, ResourceEvent
from fluxburst.flux.render import excluded, shapes
from fluxburst.forecast import HomeForecast, HomeNode, Running
from fluxburst.model import Demand, Host, InstanceFacts, JobId
from fluxburst.moment import Resident

if TYPE_CHECKING:
    from fluxburst.controller.world import World

T = TypeVar("T")

_by_order = attrgetter("order")


@dataclass(slots=True)
class _Waiting:
    """A job that does not ask to burst, or may not, until it starts. ``listed`` while the scheduler may start it."""

    demand: Demand | None
    """None: its jobspec cannot be read, and nobody knows what it takes."""
    queue: str
    priority: int = 0
    depends: bool = True
    failed: bool = False
    home_at: float | None = None
    listed: Resident | None = None


class HomeView:
    """Home as the journals show it."""

    def __init__(self, config: BurstConfig, facts: InstanceFacts) -> None:
        ghosts = {host for pool in config.pool for host in config.hosts_of(pool)}
        declared, out = shapes(facts.config.get("resource", {}).get("config", ())), excluded(facts.config)
        self._nodes = {
            host: HomeNode(host, rank, len(declared[host].cores), len(declared[host].gpus), declared[host].properties)
            for rank, host in enumerate(facts.hosts)
            if host not in ghosts and host not in out and host in declared and declared[host].cores
        }
        self._online: set[Host] = set()
        self._drained: set[Host] = set()
        elsewhere = {config.staging_queue, *config.pool_queues()} if config.mode == "queue" else set()
        named = facts.config.get("queues", {})
        self._queues = {
            name: frozenset((table or {}).get("requires", ())) for name, table in named.items() if name not in elsewhere
        } or {"": frozenset()}
        self._waiting: dict[JobId, _Waiting] = {}
        self._running: dict[JobId, Running] = {}
        self.residents: list[Resident] = []
        """The jobs that wait at home and do not ask, in the scheduler's order."""
        self.version = 0
        """Grows when something has changed by which another job may start at another time."""

    def job_event(self, event: JobEvent, asks: Demand | None) -> None:
        """Take in one event of any job. ``asks`` is what a job that may burst demands, None for all others."""
        match event.name:
            case "submit" if asks is None:
                self._waiting[event.job_id] = _read(event.jobspec or {})
                return
            case "alloc":
                self._starts(event, asks)
            case "free" | "clean" | "invalidate":
                if self._running.pop(event.job_id, None) is not None:
                    self.version += 1
            case "jobspec-update" if event.job_id in self._running:
                self._runs_on(event.job_id, event.context)
        waiting = self._waiting.get(event.job_id)
        if waiting is not None:
            self._wait(event, waiting)

    def resource_event(self, event: ResourceEvent) -> None:
        hosts = [host for host in event.hosts if host in self._nodes]
        match event.name:
            case "online":
                self._online.update(hosts)
            case "offline":
                self._online.difference_update(hosts)
            case "drain":
                self._drained.update(hosts)
            case "undrain":
                self._drained.difference_update(hosts)
        self.version += bool(hosts)

    def forecast(self, now: float, assume_duration_s: float) -> HomeForecast:
        up = [node for host, node in self._nodes.items() if host in self._online and host not in self._drained]
        return HomeForecast(now, up, self._running.values(), self._queues, assume_duration_s=assume_duration_s)

    def _starts(self, event: JobEvent, asks: Demand | None) -> None:
        shares = tuple(share for share in event.allocation if share.host in self._nodes)
        if shares:
            waited = self._waiting.get(event.job_id)
            demand = asks if waited is None else waited.demand
            self._running[event.job_id] = Running(shares, event.at, demand.duration_s if demand else 0.0)
            self.version += 1

    def _runs_on(self, job_id: JobId, updates: Mapping[str, Any]) -> None:
        duration_s = updates.get("attributes.system.duration")
        if duration_s is not None:
            self._running[job_id] = dataclasses.replace(self._running[job_id], duration_s=float(duration_s))
            self.version += 1

    def _wait(self, event: JobEvent, job: _Waiting) -> None:
        match event.name:
            case "depend":
                job.depends = False
            case "priority":
                job.priority, job.home_at = int(event.context["priority"]), None
            case "annotations":
                job.home_at = estimate(event.context)
            case "jobspec-update":
                _update(job, event.context)
            case "exception" if int(event.context.get("severity", 1)) == 0:
                job.failed = True
            case "alloc" | "clean" | "invalidate":
                del self._waiting[event.job_id]
                job.failed = True
        self._list(event.job_id, job)

    def _list(self, job_id: JobId, job: _Waiting) -> None:
        now = None
        if job.demand is not None and not job.depends and job.priority > 0 and not job.failed:
            now = Resident((-job.priority, job_id), job.demand, job.queue, job.home_at)
        if now == job.listed:
            return
        if job.listed is not None:
            del self.residents[bisect_left(self.residents, job.listed.order, key=_by_order)]
        if now is not None:
            insort(self.residents, now, key=_by_order)
        job.listed = now
        self.version += 1


def forecast(world: World, now: float) -> HomeForecast:
    """When jobs would start at home, beside what runs there now; nobody who waits has a place in it yet."""
    return world.home.forecast(now, world.config.policy.assume_duration)


def residents(world: World) -> Sequence[Resident]:
    """The jobs that wait at home and do not ask to burst, or may not, in the scheduler's order.

    A job whose jobspec cannot be read is not among them, as nobody knows what it takes.
    """
    return world.home.residents


def estimate(context: Mapping[str, Any]) -> float | None:
    """The scheduler's forecast in an ``annotations`` event, where it makes one (RFC 27: ``sched.t_estimate``)."""
    sched = (context.get("annotations") or {}).get("sched") or {}
    at = sched.get("t_estimate")
    return float(at) if isinstance(at, int | float) and at > 0 else None


@lru_cache(maxsize=4096)
def _shared(value: T) -> T:
    """One object for equal values."""
    return value


def _read(spec: Mapping[str, Any]) -> _Waiting:
    try:
        system = jobspec.system(spec)
        demand = _shared(jobspec.demand(spec, constraint=system.get("constraints")))
        return _Waiting(demand, _shared(jobspec.queue(spec)))
    except JobspecError:
        return _Waiting(None, "")


def _update(job: _Waiting, updates: Mapping[str, Any]) -> None:
    job.home_at = None
    job.queue = _shared(str(updates.get("attributes.system.queue", job.queue)))
    demand = job.demand
    if demand is None:
        return
    if "attributes.system.duration" in updates:
        demand = dataclasses.replace(demand, duration_s=float(updates["attributes.system.duration"]))
    if "attributes.system.constraints" in updates:
        constraint = jobspec.canonical(updates["attributes.system.constraints"])
        demand = dataclasses.replace(demand, constraint=constraint)
    job.demand = _shared(demand)
