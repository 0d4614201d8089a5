"""A Flux instance in memory: its jobs, queues, scheduler and brokers.

:class:`MockInstance` is the instance itself, with what users, administrators and machines do to it; each
:meth:`MockInstance.connect` is a connection such as the service has. Wherever fluxburst looks it behaves as flux-core
0.88 does; the contract suite holds it to that. All time is the loop's. A job whose command is ``sleep N`` runs for N
seconds, any other ends at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Literal, TypeVar

from fluxburst import durations, jobspec
from fluxburst.errors import Disconnected, InstanceError, JobspecError
from fluxburst.flux.protocol import (
    Caller,
    CaughtUp,
    ConnectionLost,
    InstanceEvent,
    JobEvent,
    Loop,
    ResourceEvent,
    RpcHandler,
    Timer,
)
from fluxburst.flux.render import bootstrap_hosts, shapes
from fluxburst.model import Demand, Host, HostShare, InstanceFacts, JobId
from fluxburst_mock.scheduler import SCHEDULERS, Allocated, Forecast, Node, Request

T = TypeVar("T")

VERSION = "0.88.0"

VALIDATE_S = 0.01
"""From ``submit`` to the events after it: the job manager's batch timeout."""
SCHEDULE_S = 0.001
START_S = 0.005
RUN_S = 0.01
"""How long a command other than ``sleep`` runs."""
END_S = 0.002
LEAVE_S = 0.1
"""From a broker's signal, or its death, until its jobs fail."""
OFFLINE_S = 0.1
"""From there until it is told to be offline. The scheduler may still hand it out meanwhile, as Flux's does."""

CANCELLED, TIMED_OUT, LOST = 143 << 8, 142 << 8, 1 << 8
"""Wait statuses in ``finish``: the shell ended by SIGTERM or SIGALRM, or its node gone."""

URGENCY_EXPEDITE = 31
PRIORITY_MAX = (1 << 32) - 1


class State(Enum):
    """RFC 21's job states, PRIORITY left out because it takes no time here."""

    NEW = auto()
    DEPEND = auto()
    SCHED = auto()
    RUN = auto()
    CLEANUP = auto()
    INACTIVE = auto()


@dataclass(slots=True)
class Queue:
    requires: tuple[str, ...] | None = None
    started: bool = False
    disabled: str = ""
    """The reason, when it takes no jobs."""

    def constraint(self) -> dict[str, Any]:
        return {} if self.requires is None else {"properties": list(self.requires)}


@dataclass(slots=True)
class Job:
    id: JobId
    userid: int
    urgency: int
    submitted: Mapping[str, Any]
    """The jobspec as its owner gave it."""
    spec: dict[str, Any]
    """As in the journal: amended at ingest, every update applied, without the environment. Replaced, never changed."""
    demand: Demand
    run_s: float
    priority: int = 0
    state: State = State.NEW
    memo: dict[str, Any] = field(default_factory=dict)
    events: list[JobEvent] = field(default_factory=list)
    allocation: tuple[HostShare, ...] = ()
    waits_for: set[JobId] = field(default_factory=set)
    timer: Timer | None = None
    forecast: bool = False
    """The scheduler has said when it will start."""

    @property
    def queue(self) -> str:
        return str(jobspec.system(self.spec).get("queue", ""))


@dataclass(slots=True)
class Leaving:
    """A broker that was told to end, or was ended, and is not offline yet. ``note`` is what its jobs are told."""

    node: Node
    note: str
    dead: bool = False


class MockInstance:
    """A Flux instance that is up, with its lead online and every other declared host a ghost.

    ``config`` is the lead's Flux configuration as a table: ``[bootstrap] hosts``, ``[resource] config``, ``[queues]``
    and the default queue in ``[policy]`` are read. ``scheduler`` is ``fifo`` (flux-core's sched-simple) or ``easy``
    (Fluxion). Named queues are stopped, as in Flux, but for those in ``started``. ``frobnicate`` may amend a jobspec at
    ingest, between Flux's own ``defaults`` and ``constraints``; a ValueError refuses the job. ``wall`` gives POSIX
    seconds. ``latency_s`` is how long a request takes to arrive, and its answer to come back. Without ``keep_past``
    ended jobs are kept only if they failed, as they may be submitted again, and a new subscriber is told the present
    state of the resources for their past.

    What users and machines do happens at once and raises :class:`~fluxburst.errors.InstanceError` in Flux's own words.
    """

    def __init__(
        self,
        loop: Loop,
        config: Mapping[str, Any],
        *,
        scheduler: Literal["fifo", "easy"] = "fifo",
        started: Collection[str] = (),
        frobnicate: Callable[[dict[str, Any]], None] | None = None,
        wall: Callable[[], float] = time.time,
        owner_uid: int = 1000,
        latency_s: float = 0.001,
        keep_past: bool = True,
    ) -> None:
        self.loop = loop
        self.latency_s = latency_s
        self.wall = wall
        self._frobnicate = frobnicate
        hosts = tuple(Host(host) for host in bootstrap_hosts(config))
        declared = shapes(config["resource"]["config"])
        self._nodes = {
            host: Node(rank, host, len(declared[host].cores), len(declared[host].gpus), declared[host].properties)
            for rank, host in enumerate(hosts)
        }
        self._lead = hosts[0]
        self._scheduler = SCHEDULERS[scheduler](tuple(self._nodes.values()))
        named = config.get("queues", {})
        self._queues = {
            name: Queue(tuple(table["requires"]) if "requires" in table else None, name in started)
            for name, table in named.items()
        } or {"": Queue(started=True)}
        system_defaults = config.get("policy", {}).get("jobspec", {}).get("defaults", {}).get("system", {})
        self._default_queue = str(system_defaults.get("queue", ""))
        self.facts = InstanceFacts(VERSION, owner_uid, hosts, config, tuple(named))
        self._active: dict[JobId, Job] = {}
        self._keep_past = keep_past
        self._ended: set[JobId] = set()
        self._inactive: dict[JobId, Job] = {}
        """Those of them that are kept."""
        # Ids as large and as far apart as Flux's own (RFC 19).
        self._ids = (JobId(number << 24) for number in itertools.count(1))
        self._dependents: dict[JobId, list[Job]] = {}
        self._on_host: dict[Host, set[JobId]] = {host: set() for host in hosts}
        self._leaving: dict[Host, Leaving] = {}
        self._resource_log: list[ResourceEvent] = []
        self._connections: list[MockConnection] = []
        self._service: tuple[MockConnection, RpcHandler] | None = None
        self._pass: Timer | None = None
        self.join([self._lead])

    # Connections

    def connect(self) -> MockConnection:
        """A connection of the instance owner, independent of all others."""
        connection = MockConnection(self)
        self._connections.append(connection)
        return connection

    def disconnect(self, reason: str = "the broker closed the connection") -> None:
        """Break every connection, as when the broker restarts. The instance itself goes on."""
        for connection in tuple(self._connections):
            connection.lose(reason)

    def register(self, connection: MockConnection, handler: RpcHandler) -> None:
        """Take on a connection's service ``burst``."""
        if self._service is not None:
            raise InstanceError("cannot register the service burst: File exists")
        self._service = (connection, handler)

    def forget(self, connection: MockConnection) -> None:
        """A connection has gone, and its service with it."""
        if connection in self._connections:
            self._connections.remove(connection)
        if self._service is not None and self._service[0] is connection:
            self._service = None

    def history(self) -> Iterable[InstanceEvent]:
        """What a new subscriber is told first. As in Flux, jobs come in no order, and with their jobspec of today."""
        yield from self._resource_log if self._keep_past else self._resource_state()
        for job in sorted(self._active.values(), key=lambda job: job.id * 0x9E3779B97F4A7C15 % (1 << 64)):
            for event in job.events:
                yield dataclasses.replace(event, jobspec=job.spec) if event.name == "submit" else event
        yield CaughtUp(self.wall())

    def _resource_state(self) -> Iterator[ResourceEvent]:
        now = self.wall()
        yield ResourceEvent("online", now, tuple(node.host for node in self._nodes.values() if node.online))
        for node in self._nodes.values():
            if node.drained is not None:
                yield ResourceEvent("drain", now, (node.host,), node.drained)

    def call(self, method: str, payload: Mapping[str, Any], caller: Caller | None = None) -> Mapping[str, Any]:
        """What the service ``burst`` answers to ``burst.METHOD``; the instance owner asks unless ``caller`` is given.

        Raises:
            InstanceError: nobody serves it.
            FluxburstError: the handler's own refusal.
        """
        if self._service is None:
            raise InstanceError(f"No service matching burst.{method} is registered")
        return self._service[1](method, payload, caller or Caller(self.facts.owner_uid, owner=True))

    # What users do

    def submit(self, spec: Mapping[str, Any], *, urgency: int = 16, userid: int | None = None) -> JobId:
        """Take in a job, by default of the instance owner."""
        visible = self._ingest(spec)
        system = jobspec.system(visible)
        try:
            demand = jobspec.demand(visible, constraint=system.get("constraints"))
        except JobspecError as error:
            raise InstanceError(str(error)) from None
        queue = self._queue(str(system.get("queue", "")))
        if queue.disabled:
            raise InstanceError(f"job submission to {system.get('queue', '')} is disabled: {queue.disabled}")
        job = Job(
            id=next(self._ids),
            userid=self.facts.owner_uid if userid is None else userid,
            urgency=urgency,
            submitted=spec,
            spec=visible,
            demand=demand,
            run_s=run_seconds(visible),
        )
        context = {"userid": job.userid, "urgency": urgency, "flags": 0, "version": 1}
        self._post(job, "submit", context, jobspec=visible)
        try:
            self._hold_back(job, system.get("dependencies", ()))
        except InstanceError:
            self._post(job, "invalidate")
            raise
        self._active[job.id] = job
        self.loop.call_later(VALIDATE_S, self._validated, job)
        return job.id

    def cancel(self, job_id: JobId) -> None:
        job = self._lookup(job_id)
        self._fail(job, "cancel", "", CANCELLED, userid=job.userid)

    def set_urgency(self, job_id: JobId, urgency: int) -> None:
        job = self._lookup(job_id)
        if not 0 <= urgency <= URGENCY_EXPEDITE:
            raise InstanceError("urgency value is out of range")
        if job.state in (State.RUN, State.CLEANUP):
            raise InstanceError("urgency cannot be changed once resources are allocated")
        job.urgency = urgency
        self._post(job, "urgency", {"userid": job.userid, "urgency": urgency})
        self._reprioritize(job)

    def move(self, job_id: JobId, name: str) -> None:
        job = self._lookup(job_id)
        if job.state in (State.RUN, State.CLEANUP):
            raise InstanceError("update of queue for running job not supported")
        if job.queue == name:
            raise InstanceError(f"job queue is already set to {name}")
        queue = self._queue(name)
        if queue.disabled:
            raise InstanceError(f"queue {name} is currently disabled")
        system = jobspec.system(job.spec)
        if (system.get("constraints") or {}) != self._queue(job.queue).constraint():
            raise InstanceError(f"job appears to have non-queue constraints, unable to update queue to {job.queue}")
        constraint = queue.constraint()
        demand = dataclasses.replace(job.demand, constraint=jobspec.canonical(constraint))
        if refusal := self._scheduler.infeasible(demand):
            raise InstanceError(refusal)
        job.demand = demand
        updates = {"attributes.system.queue": name, "attributes.system.constraints": constraint}
        self._post(job, "jobspec-update", updates)
        job.spec = with_system(job.spec, {**system, "queue": name, "constraints": constraint})
        self._reprioritize(job)

    def set_memo(self, job_id: JobId, memo: Mapping[str, Any]) -> None:
        job = self._lookup(job_id)
        merge(job.memo, memo)
        self._post(job, "memo", memo)

    def memo(self, job_id: JobId) -> Mapping[str, Any]:
        """A job's memo as it is now, inactive jobs included."""
        return self._known(job_id).memo

    def allocation(self, job_id: JobId) -> tuple[HostShare, ...]:
        """What a job was given, also after its end; empty if it never started."""
        return self._known(job_id).allocation

    def state(self, job_id: JobId) -> State:
        return self._known(job_id).state

    def jobspec(self, job_id: JobId) -> Mapping[str, Any]:
        return self._known(job_id).submitted

    # What administrators do

    def set_queue(self, name: str, *, started: bool) -> None:
        queue = self._queue(name)
        queue.started = started
        for job in self._active.values():
            if job.queue == name and job.state is State.SCHED:
                self._scheduler.remove(job.id)
                self._enqueue(job)

    def enable_queue(self, name: str) -> None:
        self._queue(name).disabled = ""

    def disable_queue(self, name: str, reason: str) -> None:
        self._queue(name).disabled = reason

    def drain(self, hosts: Collection[Host], reason: str) -> None:
        nodes = self._lookup_nodes(hosts)
        for node in nodes:
            node.drained = reason
        self._nodes_changed("drain", nodes, reason)

    def undrain(self, hosts: Collection[Host]) -> None:
        nodes = [node for node in self._lookup_nodes(hosts) if node.drained is not None]
        for node in nodes:
            node.drained = None
        if nodes:
            self._nodes_changed("undrain", nodes)

    def allocated(self) -> frozenset[Host]:
        return frozenset(host for host, jobs in self._on_host.items() if jobs)

    def online(self) -> frozenset[Host]:
        return frozenset(node.host for node in self._nodes.values() if node.online)

    # What machines do

    def join(self, hosts: Iterable[Host]) -> None:
        """These hosts' brokers come up. One that died a moment ago is noticed first; one that is up is left alone."""
        nodes = self._lookup_nodes(hosts)
        for node in nodes:
            if node.host in self._leaving:
                self._offline([self._leaving[node.host]])
        joined = [node for node in nodes if not node.online]
        for node in joined:
            node.online = True
        if joined:
            self._nodes_changed("online", joined)

    def leave(self, hosts: Iterable[Host]) -> None:
        """SIGTERM to these hosts' brokers: a little later they are offline, and what ran there has failed."""
        self._end(hosts, lambda _: "flux_job_event_watch_get: Function not implemented")

    def kill(self, hosts: Iterable[Host]) -> None:
        """SIGKILL to these hosts' brokers: a little later the lead notices."""
        self._end(hosts, lambda node: f"node failure on {node.host} (rank {node.rank})")

    def _end(self, hosts: Iterable[Host], note: Callable[[Node], str]) -> None:
        together: list[Leaving] = []
        for node in self._lookup_nodes(hosts):
            if node.host == self._lead:
                raise ValueError("the lead's end is the instance's")
            if node.online and node.host not in self._leaving:
                self._leaving[node.host] = Leaving(node, note(node))
                together.append(self._leaving[node.host])
        if together:
            self.loop.call_later(LEAVE_S, self._die, together)

    def _die(self, together: Collection[Leaving]) -> None:
        for leaving in self._still(together):
            leaving.dead = True
            self._fail_jobs(leaving.node, leaving.note)
        self.loop.call_later(OFFLINE_S, self._offline, together)

    def _offline(self, together: Collection[Leaving]) -> None:
        ended = self._still(together)
        for leaving in ended:
            del self._leaving[leaving.node.host]
            self._fail_jobs(leaving.node, leaving.note)
            leaving.node.online = False
        if ended:
            self._nodes_changed("offline", [leaving.node for leaving in ended])

    def _still(self, together: Collection[Leaving]) -> list[Leaving]:
        """Those that have not come up again before they were noticed to be gone."""
        return [leaving for leaving in together if self._leaving.get(leaving.node.host) is leaving]

    def _fail_jobs(self, node: Node, note: str) -> None:
        for job_id in sorted(self._on_host[node.host]):
            job = self._active[job_id]
            if job.state is State.RUN:
                self._fail(job, "exec", note, LOST)

    def _nodes_changed(self, name: str, nodes: Collection[Node], reason: str = "") -> None:
        self._scheduler.nodes_changed(nodes)
        self._kick()
        event = ResourceEvent(name, self.wall(), tuple(node.host for node in nodes), reason)
        if self._keep_past:
            self._resource_log.append(event)
        self._deliver(event)

    def _lookup_nodes(self, hosts: Iterable[Host]) -> list[Node]:
        """The hosts' nodes in rank order."""
        try:
            return sorted((self._nodes[host] for host in hosts), key=lambda node: node.rank)
        except KeyError as error:
            raise InstanceError(f"{error.args[0]} is not a host of this instance") from None

    # A job's life (RFC 21)

    def _ingest(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The jobspec as the journal shows it: amended by the frobnicators, without the environment."""
        system = dict(jobspec.system(spec))
        if self._default_queue:
            system.setdefault("queue", self._default_queue)
        amended = with_system(spec, system)
        if self._frobnicate is not None:
            try:
                self._frobnicate(amended)
            except ValueError as error:
                raise InstanceError(str(error)) from None
        system = amended["attributes"]["system"]
        if queue := system.get("queue"):
            if queue not in self._queues:
                raise InstanceError(f"Invalid queue '{queue}' specified")
            add_constraint(system, self._queues[queue])
        system.pop("environment", None)
        return amended

    def _hold_back(self, job: Job, dependencies: Iterable[Mapping[str, Any]]) -> None:
        for dependency in dependencies:
            scheme, value = dependency["scheme"], dependency["value"]
            if scheme != "afterany":
                raise InstanceError(f'dependency scheme "{scheme}" not supported')
            other = JobId(int(value))
            if other in self._active:
                job.waits_for.add(other)
                self._dependents.setdefault(other, []).append(job)
            elif other not in self._ended:
                raise InstanceError(f"dependency: afterany: id {value}: job not found")

    def _validated(self, job: Job) -> None:
        if job.state is State.NEW:
            job.state = State.DEPEND
            self._ready(job)

    def _ready(self, job: Job) -> None:
        """Leave DEPEND when all dependencies are met."""
        if job.state is State.DEPEND and not job.waits_for:
            self._post(job, "depend")
            job.state = State.SCHED
            self._reprioritize(job)

    def _reprioritize(self, job: Job) -> None:
        """Set the priority that follows from the urgency, and ask the scheduler anew."""
        if job.state is not State.SCHED:
            return
        job.priority = PRIORITY_MAX if job.urgency == URGENCY_EXPEDITE else job.urgency
        self._scheduler.remove(job.id)
        self._post(job, "priority", {"priority": job.priority})
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        if job.priority and self._queues[job.queue].started:
            shape = dataclasses.replace(job.demand, duration_s=0.0)
            self._scheduler.add(Request(job.id, job.priority, job.queue, shape, job.demand.duration_s))
        self._kick()

    def _kick(self) -> None:
        if self._pass is None:
            self._pass = self.loop.call_later(SCHEDULE_S, self._schedule)

    def _schedule(self) -> None:
        self._pass = None
        for outcome in self._scheduler.schedule(self.wall()):
            job = self._active[outcome.job_id]
            if isinstance(outcome, Forecast):
                self._annotate(job, outcome.at)
            elif isinstance(outcome, Allocated):
                self._allocate(job, outcome.shares)
            else:
                self._fail(job, "alloc", outcome.note)

    def _annotate(self, job: Job, at: float | None) -> None:
        """Tell when the scheduler will start a job; no event log keeps it."""
        job.forecast = at is not None
        sched = {} if at is None else {"sched": {"t_estimate": at, "selection_type": "reserved"}}
        self._tell_annotations(job, sched)

    def _tell_annotations(self, job: Job, sched: Mapping[str, Any]) -> None:
        annotations = {**({"user": dict(job.memo)} if job.memo else {}), **sched}
        self._deliver(JobEvent(job.id, "annotations", self.wall(), {"annotations": annotations or None}))

    def _allocate(self, job: Job, shares: tuple[HostShare, ...]) -> None:
        if job.forecast:
            self._tell_annotations(job, {"sched": {"selection_type": "reserved"}})
        job.state = State.RUN
        job.allocation = shares
        for share in shares:
            self._on_host[share.host].add(job.id)
        job.timer = self.loop.call_later(START_S, self._start, job)
        self._post(job, "alloc", allocation=shares)

    def _start(self, job: Job) -> None:
        for share in job.allocation:
            if (leaving := self._leaving.get(share.host)) is not None and leaving.dead:
                self._fail(job, "exec", leaving.note, LOST)
                return
        limit_s = job.demand.duration_s
        if limit_s and limit_s < job.run_s:
            timeout = (job, "timeout", "resource allocation expired", TIMED_OUT)
            job.timer = self.loop.call_later(limit_s - START_S, self._fail, *timeout)
        else:
            job.timer = self.loop.call_later(job.run_s, self._finish, job, 0)
        self._post(job, "start")

    def _fail(self, job: Job, kind: str, note: str, status: int = LOST, userid: int | None = None) -> None:
        """A fatal exception: what ran is ended with this wait status, what waited is over."""
        before, job.state = job.state, State.CLEANUP
        self._scheduler.remove(job.id)
        self._kick()
        context = {"type": kind, "severity": 0, "note": note}
        self._post(job, "exception", context | {"userid": self.facts.owner_uid if userid is None else userid})
        if before is State.RUN:
            assert job.timer is not None  # of its start or its end
            job.timer.cancel()
            self.loop.call_later(END_S, self._finish, job, status)
        elif before is not State.CLEANUP:
            self._clean(job)

    def _finish(self, job: Job, status: int) -> None:
        job.state = State.CLEANUP
        self._post(job, "finish", {"status": status})
        self.loop.call_later(END_S, self._free, job)

    def _free(self, job: Job) -> None:
        for share in job.allocation:
            self._on_host[share.host].discard(job.id)
        self._scheduler.free(job.id)
        self._kick()
        self._post(job, "free")
        self._clean(job)

    def _clean(self, job: Job) -> None:
        job.state = State.INACTIVE
        self._ended.add(job.id)
        del self._active[job.id]
        if self._keep_past or any(event.name == "exception" for event in job.events):
            self._inactive[job.id] = job
        self._post(job, "clean")
        job.events.clear()
        for dependent in self._dependents.pop(job.id, ()):
            dependent.waits_for.discard(job.id)
            self._ready(dependent)

    def _post(
        self,
        job: Job,
        name: str,
        context: Mapping[str, Any] | None = None,
        *,
        jobspec: Mapping[str, Any] | None = None,
        allocation: tuple[HostShare, ...] = (),
    ) -> None:
        event = JobEvent(job.id, name, self.wall(), context or {}, jobspec, allocation)
        job.events.append(event)
        self._deliver(event)

    def _deliver(self, event: JobEvent | ResourceEvent) -> None:
        for connection in tuple(self._connections):
            connection.deliver(event)

    def _queue(self, name: str) -> Queue:
        try:
            return self._queues[name]
        except KeyError:
            raise InstanceError(f"'{name}' is not a valid queue" if name else "a named queue is required") from None

    def _lookup(self, job_id: JobId) -> Job:
        if job_id in self._ended:
            raise InstanceError("job is inactive")
        return self._known(job_id)

    def _known(self, job_id: JobId) -> Job:
        job = self._active.get(job_id) or self._inactive.get(job_id)
        if job is None:
            raise InstanceError("unknown job id")
        return job


class MockConnection:
    """:class:`fluxburst.flux.protocol.Instance`: one connection to a :class:`MockInstance`.

    Requests arrive in the order in which they were made, one latency later, and are carried out even if the connection
    has gone by then; their answers need another latency.
    """

    def __init__(self, instance: MockInstance) -> None:
        self._instance = instance
        self._sink: Callable[[InstanceEvent], None] | None = None
        self._requests: deque[Callable[[], None]] = deque()
        self._unanswered: dict[Future[Any], None] = {}
        self._gone = ""

    @property
    def facts(self) -> InstanceFacts:
        return self._instance.facts

    def subscribe(self, sink: Callable[[InstanceEvent], None]) -> None:
        if self._gone:
            raise Disconnected(self._gone)
        if self._sink is not None:
            raise InstanceError("this connection has a subscriber already")

        def start() -> None:
            for event in self._instance.history():
                if self._gone:
                    return
                sink(event)
            self._sink = sink

        self._send(start)

    def move(self, job_id: JobId, queue: str) -> Future[None]:
        return self._call(lambda: self._instance.move(job_id, queue))

    def memo(self, job_id: JobId, memo: Mapping[str, Any]) -> Future[None]:
        return self._call(lambda: self._instance.set_memo(job_id, memo))

    def submit(self, jobspec: Mapping[str, Any], *, urgency: int = 16) -> Future[JobId]:
        return self._call(lambda: self._instance.submit(jobspec, urgency=urgency))

    def jobspec(self, job_id: JobId) -> Future[Mapping[str, Any]]:
        return self._call(lambda: self._instance.jobspec(job_id))

    def drain(self, hosts: Collection[Host], reason: str) -> Future[None]:
        return self._call(lambda: self._instance.drain(hosts, reason))

    def undrain(self, hosts: Collection[Host]) -> Future[None]:
        return self._call(lambda: self._instance.undrain(hosts))

    def allocated(self) -> Future[frozenset[Host]]:
        return self._call(self._instance.allocated)

    def stop_brokers(self, hosts: Collection[Host]) -> Future[None]:
        return self._call(lambda: self._instance.leave(hosts))

    def set_queue(self, queue: str, *, started: bool) -> Future[None]:
        return self._call(lambda: self._instance.set_queue(queue, started=started))

    def serve(self, handler: RpcHandler) -> None:
        if self._gone:
            raise Disconnected(self._gone)
        self._instance.register(self, handler)

    def close(self) -> None:
        """See the protocol. What is unanswered fails with :class:`Disconnected`."""
        self._leave("the connection was closed")

    def lose(self, reason: str) -> None:
        """Break this connection, and tell the subscriber."""
        sink = self._sink
        self._leave(reason)
        if sink is not None:
            sink(ConnectionLost(self._instance.wall(), reason))

    def deliver(self, event: InstanceEvent) -> None:
        if self._sink is not None:
            self._sink(event)

    def _leave(self, reason: str) -> None:
        self._gone, self._sink = self._gone or reason, None
        self._instance.forget(self)
        unanswered, self._unanswered = self._unanswered, {}
        for future in unanswered:
            future.set_exception(Disconnected(self._gone))

    def _call(self, action: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        if self._gone:
            future.set_exception(Disconnected(self._gone))
            return future
        self._unanswered[future] = None

        def carry_out() -> None:
            try:
                result = action()
            except InstanceError as error:
                self._instance.loop.call_later(
                    self._instance.latency_s, self._answer, future, future.set_exception, error
                )
            else:
                self._instance.loop.call_later(
                    self._instance.latency_s, self._answer, future, future.set_result, result
                )

        self._send(carry_out)
        return future

    def _send(self, request: Callable[[], None]) -> None:
        # A loop may run two callbacks that are due at the same time in either order: the deque keeps ours.
        self._requests.append(request)
        self._instance.loop.call_later(self._instance.latency_s, self._arrive)

    def _arrive(self) -> None:
        self._requests.popleft()()

    def _answer(self, future: Future[Any], complete: Callable[[Any], None], value: object) -> None:
        if future in self._unanswered:
            del self._unanswered[future]
            complete(value)


def with_system(spec: Mapping[str, Any], system: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a jobspec with other ``attributes.system``."""
    return {**spec, "attributes": {**(spec.get("attributes") or {}), "system": system}}


def add_constraint(system: dict[str, Any], queue: Queue) -> None:
    """What Flux's frobnicator plugin ``constraints`` does: add the properties that the queue requires."""
    own = system.get("constraints")
    if queue.requires is None:
        return
    if own is None:
        system["constraints"] = queue.constraint()
    elif "properties" in own:
        more = [name for name in queue.requires if name not in own["properties"]]
        system["constraints"] = {**own, "properties": [*own["properties"], *more]}
    else:
        system["constraints"] = {"and": [own, queue.constraint()]}


def run_seconds(spec: Mapping[str, Any]) -> float:
    """How long a job runs: ``sleep N`` says so itself."""
    command = spec["tasks"][0]["command"]
    return durations.parse(command[1]) if command[0] == "sleep" else RUN_S


def merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Merge nested tables as ``job-manager.memo`` does: a null removes its key."""
    for key, value in more.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, Mapping):
            table = into.get(key)
            into[key] = dict(table) if isinstance(table, Mapping) else {}
            merge(into[key], value)
        else:
            into[key] = value
