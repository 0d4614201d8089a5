"""Lets a trace happen again: the service, its controller and its store, on a mock Flux and a mock cloud.

One thread and virtual time: the same trace, configuration and scenario give the same outcome.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import pwd
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fluxburst import jobspec
from fluxburst.config import BurstConfig, Pool, Select
from fluxburst.errors import ConfigError
from fluxburst.flux.protocol import InstanceEvent, JobEvent
from fluxburst.flux.render import first_ids, render
from fluxburst.model import Demand, HostShare, JobId, RequestId
from fluxburst.moment import Planner
from fluxburst.provider.discovery import Plugins
from fluxburst.provider.manager import Providers
from fluxburst.service import Service
from fluxburst.simulate.faults import Faults, FaultyCloud
from fluxburst.simulate.trace import Trace, TraceJob
from fluxburst.store import MemoryStore
from fluxburst_mock.ingest import frobnicator
from fluxburst_mock.instance import MockInstance
from fluxburst_mock.loop import EPOCH, InlineExecutor, VirtualLoop
from fluxburst_mock.plugin import MockPlugin

JOIN_S = 120.0
"""How long a node takes from its order to its broker, unless told otherwise."""
CALL_S = 0.5
"""How long a provider takes for an answer."""
DAY_S = 86400.0
GC_OBJECTS = 50_000
"""So many more objects than before, and garbage is looked for."""
HOME_PREFIX = "home-"
FIRST_USERID = 100_000
"""Users whom this machine does not know get ids from here on."""


@dataclass(frozen=True, slots=True)
class Burstable:
    """Which jobs of a trace may burst: a ``share`` of those that all rules admit. None admits all.

    Where the trace tells which jobs were marked (``flux burst record``) and ``share`` is None, it is as it was.
    """

    share: float | None = None
    users: frozenset[str] | None = None
    queues: frozenset[str] | None = None
    max_nodes: int | None = None

    def admits(self, job: TraceJob, seed: int) -> bool:
        if self.users is not None and job.user not in self.users:
            return False
        if self.queues is not None and job.queue not in self.queues:
            return False
        if self.max_nodes is not None and (job.demand.nodes or 1) > self.max_nodes:
            return False
        if self.share is None:
            return job.burstable is not False
        # by the job and not by its turn: what is drawn for one does not depend on the others
        drawn = hashlib.blake2b(f"{seed}/{job.id}".encode(), digest_size=8).digest()
        return int.from_bytes(drawn) < self.share * 2**64


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is tried beside the trace and burst.toml.

    Home is ``home_nodes`` of ``cores_per_node`` and ``gpus_per_node``. ``join_s`` overrides how long every pool's nodes
    take to join. ``bursting`` is False to see how home alone does.
    """

    home_nodes: int
    cores_per_node: int = 1
    gpus_per_node: int = 0
    burstable: Burstable = Burstable()
    faults: Faults = field(default_factory=Faults)
    join_s: float | None = None
    seed: int = 0
    bursting: bool = True


@dataclass(slots=True)
class JobRow:
    """What became of one job of the trace; a job that was submitted again goes on here. Seconds from the start.

    ``start_s`` is its latest start, ``end_s`` its end; None where there was none. ``burst`` tells whether its latest
    run was on bought nodes, ``lost`` how many runs were lost with a node, ``failure`` how it failed for good.
    """

    submit_s: float
    run_s: float
    nodes: int
    burstable: bool
    start_s: float | None = None
    end_s: float | None = None
    burst: bool = False
    lost: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class MachineRow:
    """One bought node. Seconds from the start; ``up_s`` is when its broker joined, None if it never did."""

    pool: str
    host: str
    ordered_s: float
    end_s: float
    up_s: float | None
    usd_per_hour: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a simulation left. ``used_s`` is, by pool, the time that jobs held nodes: a part of a node counts as
    that part. ``refused`` are the jobs that Flux would not take: larger than home, and not to burst. ``survived``
    counts the faults that happened.
    """

    jobs: tuple[JobRow, ...]
    machines: tuple[MachineRow, ...]
    used_s: Mapping[str, float]
    orders: int
    refused: int
    resubmitted: int
    survived: Mapping[str, int]
    start_at: float
    end_s: float


Progress = Callable[[int, float], None]
"""Told now and then: how many jobs have ended, and the virtual time in seconds."""
PROGRESS_JOBS = 50


def simulate(
    trace: Trace,
    config: BurstConfig,
    scenario: Scenario,
    *,
    planner: Callable[[], Planner] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Run a trace to its end: until all jobs have ended and all nodes are gone, or nothing has happened for long.

    ``planner`` makes the one that decides; by default the service's own.

    Raises:
        ConfigError: burst.toml cannot be tried, such as for a pool whose hosts are named as home's.
        TraceError: see :func:`fluxburst.simulate.trace.load`.
    """
    with TemporaryDirectory(prefix="fluxburst-") as directory, _rare_collections():
        simulation = Simulation(trace, mocked(config, scenario, Path(directory)), scenario, planner, progress)
        try:
            return simulation.run()
        finally:
            simulation.close()


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for garbage cycles seldom: a simulation makes millions of objects and hardly a cycle."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def mocked(config: BurstConfig, scenario: Scenario, state_dir: Path) -> BurstConfig:
    """The same burst.toml, with the mock behind every provider's name.

    Prices, limits, hosts and times stay, but nobody asks for history. Who may burst is the scenario's business: a trace
    has other users and queues.
    """
    provider = {
        name: {**(table if _is_mock(name, table) else {}), "plugin": "mock"}
        for name in sorted({pool.provider for pool in config.pool.values()})
        for table in [config.provider.get(name, {})]
    }
    pools = {
        name: pool.model_copy(
            update={
                "options": _options(pool, _is_mock(pool.provider, config.provider.get(pool.provider, {})), scenario)
            }
        )
        for name, pool in config.pool.items()
    }
    select = Select(max_nodes_per_job=config.select.max_nodes_per_job)
    return config.model_copy(
        update={
            "provider": provider,
            "pool": pools,
            "select": select,
            "state_dir": state_dir,
            "keep_history": DAY_S,
        }
    )


def _is_mock(name: str, table: Mapping[str, Any]) -> bool:
    return bool(table.get("plugin", name) == "mock")


def _options(pool: Pool, is_mock: bool, scenario: Scenario) -> dict[str, Any]:
    """A real pool's options say nothing to the mock but for a few words that all clouds have in common."""
    options = dict(pool.options)
    if not is_mock:
        kinds = {"instance_type": str, "zone": str, "region": str, "spot": bool}
        options = {key: options[key] for key, kind in kinds.items() if isinstance(options.get(key), kind)}
    options.setdefault("boot_s", JOIN_S)
    if scenario.join_s is not None:
        options["boot_s"] = scenario.join_s
        if isinstance(options.get("offers"), list):
            options["offers"] = [{**offer, "boot_s": scenario.join_s} for offer in options["offers"]]
    return options


def _home(config: BurstConfig, scenario: Scenario) -> dict[str, Any]:
    """The site's own Flux configuration, such as an administrator gives to `config render`."""
    names = [f"{HOME_PREFIX}{index}" for index in range(scenario.home_nodes)]
    taken = {host for pool in config.pool for host in config.hosts_of(pool)}
    for name in names:
        if name in taken:
            raise ConfigError(f"[pool] hosts: {name} is what home's own node is called here; choose another prefix")
    lead = {"host": names[0], "bind": "tcp://127.0.0.1:8050", "connect": "tcp://127.0.0.1:8050"}
    resources: dict[str, Any] = {"hosts": ",".join(names), "cores": first_ids(scenario.cores_per_node)}
    if scenario.gpus_per_node:
        resources["gpus"] = first_ids(scenario.gpus_per_node)
    return {
        "bootstrap": {"curve_cert": "/etc/flux/curve.cert", "hosts": [lead, *({"host": name} for name in names[1:])]},
        "resource": {"config": [resources]},
    }


def spec(job: TraceJob, *, burstable: bool) -> dict[str, Any]:
    """The jobspec (RFC 25) of a trace's job, which sleeps for its run time."""
    demand = job.demand
    shape: list[dict[str, Any]] = [{"type": "core", "count": demand.cores_per_slot}]
    if demand.gpus_per_slot:
        shape.append({"type": "gpu", "count": demand.gpus_per_slot})
    slot = {"type": "slot", "count": demand.slots_per_node() or demand.slots, "label": "task", "with": shape}
    node = {"type": "node", "count": demand.nodes, "exclusive": demand.exclusive, "with": [slot]}
    system: dict[str, Any] = {"duration": demand.duration_s}
    if burstable:
        system["burstable"] = True
    if job.burst:
        system["burst"] = dict(job.burst)
    system |= {key: value for key, value in (("bank", job.bank), ("project", job.project)) if value}
    return {
        "version": 1,
        "resources": [node if demand.nodes else slot],
        "tasks": [{"command": ["sleep", str(job.run_s)], "slot": "task", "count": {"per_slot": 1}}],
        "attributes": {"system": system},
    }


@dataclass(slots=True)
class _Active:
    """A job that the instance has now."""

    row: JobRow
    allocated_s: float = 0.0
    held: tuple[HostShare, ...] = ()
    """What it holds of bought nodes."""
    replaced: bool = False
    """Another job goes on in its row."""


class Simulation:
    """What :func:`simulate` runs, for those who look inside. ``service`` and ``store`` are None without bursting.

    ``active`` are the jobs that have not ended.
    """

    def __init__(
        self,
        trace: Trace,
        config: BurstConfig,
        scenario: Scenario,
        planner: Callable[[], Planner] | None,
        progress: Progress | None,
        *,
        store: Callable[[], MemoryStore] = MemoryStore,
    ) -> None:
        self._trace = trace
        self._config = config
        self._scenario = scenario
        self._progress = progress
        self._start_at = EPOCH if trace.start_at is None else trace.start_at
        self.loop = VirtualLoop(self._start_at)
        lead = render(config, _home(config, scenario), frobnicator=Path("/burst-frobnicator.py")).lead
        self._flux = MockInstance(
            self.loop,
            lead,
            scheduler="easy",
            started=(config.home.queue,),
            wall=self.loop.wall,
            frobnicate=frobnicator(lead),
            keep_past=False,
        )
        self._flux.join([host for host in self._flux.facts.hosts if host.startswith(HOME_PREFIX)])
        self.cloud = FaultyCloud(self.loop, self._flux, scenario.faults, scenario.seed)
        self._pool_of = {host: pool for pool in config.pool for host in config.hosts_of(pool)}
        self._jobs = trace.jobs()
        self._next: TraceJob | None = None
        self._rows: list[JobRow] = []
        self.active: dict[JobId, _Active] = {}
        self._lost: dict[JobId, JobRow] = {}
        """Jobs that failed with a node, until they are submitted again."""
        self._userids: dict[str, int] = {}
        self._used_s: dict[str, float] = dict.fromkeys(config.pool, 0.0)
        self._refused = self._resubmitted = self._ended = 0
        self._quiet_since_s = 0.0
        self.service: Service | None = None
        self.store: MemoryStore | None = None
        if scenario.bursting:
            self._start_service(planner, store())

    def _start_service(self, planner: Callable[[], Planner] | None, store: MemoryStore) -> None:
        plugins = Plugins([MockPlugin(self.cloud)])
        self.store = store
        ids = itertools.count()
        self.service = Service(
            self._config,
            self._flux.connect(),
            self.loop,
            Providers(self._config, plugins, InlineExecutor(self.loop, CALL_S)),
            plugins,
            self.store,
            clock=self.loop.wall,
            new_id=lambda: RequestId(f"b-{next(ids):012d}"),
            planner=None if planner is None else planner(),
        )
        self.service.start()

    def close(self) -> None:
        if self.service is not None:
            self.service.close()
        if self.store is not None:
            self.store.close()

    def run(self) -> Outcome:
        self._flux.connect().subscribe(self._see)
        self._advance()
        # a cap of a month may hold jobs back for as long; nothing else takes more than a day
        patience_s = 32 * DAY_S if _monthly(self._config) else 2 * DAY_S
        self.loop.run_until(lambda: self._over(patience_s))
        now = self.loop.time()
        machines = tuple(
            MachineRow(
                pool=machine.pool,
                host=machine.host,
                ordered_s=machine.ordered_at,
                end_s=min(machine.failed_at, machine.gone_at, now),
                up_s=machine.up_at if machine.up_at < min(machine.failed_at, machine.gone_at, now) else None,
                usd_per_hour=self.cloud.orders[machine.request_id].offer.usd_per_node_hour,
            )
            for machine in self.cloud.machines.values()
        )
        return Outcome(
            jobs=tuple(self._rows),
            machines=machines,
            used_s=self._used_s,
            orders=len(self.cloud.orders),
            refused=self._refused,
            resubmitted=self._resubmitted,
            survived=dict(sorted(self.cloud.happened.items())),
            start_at=self._start_at,
            end_s=now,
        )

    def _over(self, patience_s: float) -> bool:
        if self._next is not None:
            return False
        if self.active or (self.service is not None and self.service.world.resubmissions):
            if self.loop.time() - self._quiet_since_s <= patience_s:
                return False
            return all(active.row.start_s is None for active in self.active.values())
        return self.service is None or not (self.service.world.nodes or self.cloud.living())

    # Submission, one job ahead

    def _advance(self) -> None:
        """Wait for the next job that Flux would take."""
        self._next = next(self._jobs, None)
        if self._next is not None:
            self.loop.call_later(self._next.submit_s - self.loop.time(), self._submit, self._next)

    def _submit(self, job: TraceJob) -> None:
        burstable = self._scenario.bursting and self._scenario.burstable.admits(job, self._scenario.seed)
        if burstable or _fits(job.demand, self._scenario):
            row = JobRow(self.loop.time(), job.run_s, job.demand.nodes, burstable)
            self._rows.append(row)
            job_id = self._flux.submit(spec(job, burstable=burstable), userid=self._userid(job.user))
            self.active[job_id] = _Active(row)
            self._quiet_since_s = self.loop.time()
        else:
            self._refused += 1
        self._advance()

    def _userid(self, user: str) -> int | None:
        """The user's id on this machine, so that caps by name apply, else one of its own; None is Flux's owner."""
        if not user:
            return None
        if user not in self._userids:
            try:
                self._userids[user] = pwd.getpwnam(user).pw_uid
            except KeyError:
                self._userids[user] = FIRST_USERID + len(self._userids)
        return self._userids[user]

    # What the journal tells

    def _see(self, event: InstanceEvent) -> None:
        if not isinstance(event, JobEvent) or event.name in ("memo", "priority", "depend", "jobspec-update"):
            return
        self._quiet_since_s = now = self.loop.time()
        if event.name == "submit":
            self._see_copy(event)
            return
        active = self.active[event.job_id]
        row = active.row
        match event.name:
            case "alloc":
                active.allocated_s = now
                active.held = tuple(share for share in event.allocation if share.host in self._pool_of)
                row.burst = bool(active.held)
            case "start":
                row.start_s = now
            case "exception" if int(event.context.get("severity", 1)) == 0:
                row.failure = str(event.context["type"])
                if row.failure == "exec":
                    row.lost += 1
                    self._lost[event.job_id] = row
            case "free":
                for share in active.held:
                    pool = self._pool_of[share.host]
                    table = self._config.pool[pool]
                    part = max(share.cores / table.cores, share.gpus / table.gpus if table.gpus else 0.0)
                    self._used_s[pool] += part * (now - active.allocated_s)
            case "clean":
                self._see_end(self.active.pop(event.job_id), now)

    def _see_copy(self, event: JobEvent) -> None:
        """A job that was submitted again goes on in the row of the one that was lost."""
        of = jobspec.resubmit_of(event.jobspec or {})
        if of is None:
            return
        row = self._lost.pop(of)
        row.start_s, row.end_s, row.failure = None, None, ""
        self.active[event.job_id] = _Active(row)
        self._resubmitted += 1
        if of in self.active:  # it has failed, and is not cleaned up yet
            self.active[of].replaced = True
        else:
            self._ended -= 1

    def _see_end(self, active: _Active, now: float) -> None:
        if active.replaced:
            return
        active.row.end_s = now
        self._ended += 1
        if self._progress is not None and self._ended % PROGRESS_JOBS == 0:
            self._progress(self._ended, now)


def _fits(demand: Demand, scenario: Scenario) -> bool:
    """Whether home could ever run it; Flux's feasibility validator refuses the others at submit."""
    slots = demand.slots_on(scenario.cores_per_node, scenario.gpus_per_node)
    if demand.nodes:
        return demand.nodes <= scenario.home_nodes and demand.slots_per_node() <= slots
    return demand.slots <= slots * scenario.home_nodes


def _monthly(config: BurstConfig) -> bool:
    limits = config.limits
    tables = (limits.user, limits.bank, limits.project, limits.pool, limits.provider)
    money = itertools.chain([limits], *(table.values() for table in tables))
    return any(cap.usd_per_month is not None for cap in money)
