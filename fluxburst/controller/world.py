"""What the controller knows: jobs, hosts, records, answers. Changed by ``sync`` from events, by stages for records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxburst import hostlist
from fluxburst.config import BurstConfig
from fluxburst.controller.effects import Effect, Launch, key
from fluxburst.errors import ConfigError, Scope
from fluxburst.model import (
    BootMaterial,
    Demand,
    Host,
    HostShare,
    InstanceFacts,
    JobId,
    NodeRecord,
    NodeReport,
    Offer,
    OrderRecord,
    Refusal,
    RequestId,
    Shrink,
    Verdict,
)
from fluxburst.plan import Plan
from fluxburst.select import Candidate
from fluxburst.states import NodeState, check_transition
from fluxburst.store import Store

_OUR_DRAIN = "fluxburst: "


def drain_reason(why: str) -> str:
    """A drain reason by which :func:`our_drain` knows it again."""
    return _OUR_DRAIN + why


def our_drain(drained: str | None) -> bool:
    """Whether a host was drained by us, and not by an administrator or by Flux, whose drains we never undo."""
    return drained is not None and drained.startswith(_OUR_DRAIN)


SUSPECT_S = 60.0
"""A job that failed on a node no longer than this before the node went away unasked was lost with it."""


@dataclass(slots=True)
class Job:
    """One active burstable job."""

    id: JobId
    userid: int
    submitted_at: float
    urgency: int
    spec: Mapping[str, Any]
    """The jobspec without its tasks and environment, with the updates applied."""
    candidate: Candidate
    home_queue: str
    """Where it was before we moved it."""
    queue: str
    priority: int = 0
    depends: bool = True
    ripe: bool = False
    """The batching window in which it became eligible has closed."""
    allocation: tuple[HostShare, ...] = ()
    allocated_at: float | None = None
    verdict: Verdict | None = None
    ready_at: float | None = None
    """Since when all hosts that its verdict names have been up and it has not started."""
    stuck: str = ""
    """Why nodes were of no use to it; it is left out of the plan until ``stuck_until_at``."""
    stuck_until_at: float = 0.0
    stuck_times: int = 0
    memo: Mapping[str, Any] = field(default_factory=dict)
    """``burst`` in the job's memo, as Flux last showed or was last told."""
    exception: str = ""
    lost_host: Host | None = None
    """Where it ran when that node was lost."""
    resubmitted_as: JobId | None = None

    @property
    def pending(self) -> bool:
        """May the scheduler start it: no unmet dependency, not held, not started, not failed."""
        return not self.depends and self.priority > 0 and self.allocated_at is None and not self.exception


@dataclass(slots=True)
class HostView:
    """One declared host as the resource journal shows it. ``drained`` is the reason, None when it is not drained."""

    online: bool = False
    drained: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The latest whole listing of one provider. ``begun_at`` is when it was asked for."""

    begun_at: float
    at: float
    nodes: tuple[NodeReport, ...]


@dataclass(frozen=True, slots=True)
class Cooldown:
    failures: int
    until_at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Nodes that an administrator asked for: ``nodes`` in ``pool`` until ``until_at`` (None: until released)."""

    id: str
    pool: str
    nodes: int
    until_at: float | None


@dataclass(frozen=True, slots=True)
class Resubmission:
    """A lost job that is to be submitted again, as its ``attempt``-th copy (1 is the first)."""

    host: Host
    attempt: int
    urgency: int


@dataclass(slots=True)
class Node:
    """A live record with what is remembered about it only while the service runs."""

    record: NodeRecord
    idle_votes: int = 0
    last_vote_at: float | None = None
    checked_at: float | None = None
    """When the job manager last said that nothing is allocated on it, after the drain."""
    check_again_at: float = 0.0
    checks: int = 0
    used: bool = False
    """A job has run on it."""
    asked: bool = False
    """An administrator asked for it to be given back."""
    released_at: float | None = None
    """When the provider last took the call to release it."""
    releases: int = 0


class World:
    def __init__(
        self,
        config: BurstConfig,
        store: Store,
        facts: InstanceFacts,
        boot: Callable[[], BootMaterial],
        new_id: Callable[[], RequestId],
        shrink: Mapping[str, Shrink],
    ) -> None:
        self.config = config
        self.store = store
        self.facts = facts
        self.boot = boot
        self.new_id = new_id
        self.shrink = shrink
        _check_fit(config, store, facts)
        self.ranks = {host: rank for rank, host in enumerate(facts.hosts)}
        self.pool_of = {host: pool for pool in config.pool for host in config.hosts_of(pool)}
        self.declared = {
            pool: {host: self.ranks[host] for host in config.hosts_of(pool) if host in self.ranks}
            for pool in config.pool
        }
        self.pool_queues = config.pool_queues()
        self.jobs: dict[JobId, Job] = {}
        self.hosts: dict[Host, HostView] = {host: HostView() for host in self.pool_of}
        self.drained_by_us: set[Host] = set()
        self.usage: dict[Host, dict[JobId, HostShare]] = {}
        self.hosts_of_job: dict[JobId, tuple[Host, ...]] = {}
        self.nodes: dict[Host, Node] = {node.host: Node(node) for node in store.live_nodes()}
        self.listings: dict[str, Listing] = {}
        self.answers: dict[tuple[str, Demand], tuple[float, Sequence[Offer | Refusal]]] = {}
        self.cooldowns: dict[str, Cooldown] = {
            pool: Cooldown(**value) for pool, value in store.setting("cooldowns", {}).items() if pool in config.pool
        }
        self.holds: dict[str, Hold] = {
            value["id"]: Hold(**value) for value in store.setting("holds", []) if value["pool"] in config.pool
        }
        for host, request_id in store.setting("asked", []):
            if host in self.nodes and self.nodes[host].record.request_id == request_id:
                self.nodes[host].asked = True
        self.resubmissions: dict[JobId, Resubmission] = {
            JobId(int(job_id)): Resubmission(**value) for job_id, value in store.setting("resubmissions", {}).items()
        }
        """Lost jobs that are to be submitted again and for which no new id is known yet."""
        self._suspects: dict[JobId, tuple[float, Job]] = {}
        self.lost: dict[JobId, Job] = {}
        """Jobs whose loss has just been heard of; some have ended since."""
        self.home_queues: dict[str, str] = store.setting("home_queues", {})
        """Where the jobs that we moved came from; the journal forgets it, as it shows jobspecs with updates applied."""
        self.paused: bool = store.setting("paused", False)
        self.plan = Plan({})
        self.placed: tuple[JobId, ...] = ()
        """The jobs whose verdict names hosts."""
        self.lent: set[JobId] = set()
        """The jobs that wait in a pool's queue."""
        self.untold: set[JobId] = set()
        """The jobs whose story may have changed since their memo was last written."""
        self.caught_up = False
        self.window: tuple[float, float] | None = None
        """First and latest moment at which a job of the open batching window became eligible."""
        self.plan_due = True
        self.plan_again_at: float | None = None
        self.orders: dict[RequestId, OrderRecord] = {}
        for node in self.nodes.values():
            self._load_order(node.record.request_id)
        self.compared_at: dict[str, float] = {}
        self.look_after_at: dict[str, float] = {}
        """When to list a provider once more after its last node has gone."""
        self.orphans_seen_at: dict[str, float] = {}
        self.queue_states: dict[str, bool] = {}
        self.retries: dict[tuple[object, ...], tuple[int, float]] = {}
        """Failed effects: how often in a row, and not before when again."""

    def _load_order(self, request_id: RequestId) -> None:
        order = self.store.order(request_id)
        if order is not None:
            self.orders[request_id] = order

    def order_mates(self, node: Node) -> list[Node]:
        """The live nodes of the same order, in the order's own sequence of hosts, this one among them."""
        mates = [other for other in self.nodes.values() if other.record.request_id == node.record.request_id]
        # an order's hosts are in the order of their ranks; of an adopted machine no more is known than that
        return sorted(mates, key=lambda other: self.ranks[other.record.host])

    def leaves_with(self, node: Node) -> list[Node]:
        """The live nodes that go when this one goes, this one among them, by how its provider can shrink."""
        shrink = self.shrink[node.record.provider]
        if shrink is Shrink.ANY:
            return [node]
        mates = self.order_mates(node)
        return mates[mates.index(node) :] if shrink is Shrink.TAIL else mates

    def online(self, host: Host) -> bool:
        return self.hosts[host].online

    def usable(self, host: Host) -> bool:
        """Up, not drained, and not on its way out."""
        view, node = self.hosts[host], self.nodes.get(host)
        return view.online and view.drained is None and (node is None or node.record.state is NodeState.JOINED)

    def cool(self, pools: Iterable[str], reason: str, now: float, *, wait_s: float = 0.0) -> None:
        """Leave these pools alone, each twice as long as after its last failure, and ``wait_s`` at least.

        What fails while a pool cools down was bought before, and is the same failure once more.
        """
        policy = self.config.policy
        for pool in pools:
            last = self.cooldowns.get(pool)
            again = last is None or last.until_at <= now
            failures = (last.failures if last else 0) + again
            seconds = max(min(policy.cooldown * 2 ** min(failures - 1, 32), policy.cooldown_max), wait_s)
            until_at = now + seconds if again or last is None else max(last.until_at, now + wait_s)
            self.cooldowns[pool] = Cooldown(failures, until_at, reason)
            self.store.log(now, f"pool/{pool}", "cooldown", reason=reason, failures=failures, seconds=until_at - now)
        self._save_cooldowns()

    def warm(self, pool: str) -> None:
        """A node of the pool serves: its failures are forgotten."""
        if self.cooldowns.pop(pool, None) is not None:
            self._save_cooldowns()

    def _save_cooldowns(self) -> None:
        self.store.set_setting("cooldowns", {pool: dataclasses.asdict(value) for pool, value in self.cooldowns.items()})

    def save_holds(self) -> None:
        self.store.set_setting("holds", [dataclasses.asdict(hold) for hold in self.holds.values()])

    def save_resubmissions(self) -> None:
        entries = {str(job_id): dataclasses.asdict(entry) for job_id, entry in self.resubmissions.items()}
        self.store.set_setting("resubmissions", entries)

    def resubmitted(self, now: float, old: JobId, new: JobId) -> None:
        """A lost job runs again under a new id."""
        entry = self.resubmissions.pop(old, None)
        if entry is None:
            return  # the journal showed the new job before the submission was answered
        self.save_resubmissions()
        self.store.log(now, f"job/{old}", "resubmitted", new=new, host=entry.host, attempt=entry.attempt)
        self.store.log(now, f"job/{new}", "resubmit", of=old, host=entry.host, attempt=entry.attempt)
        if old in self.jobs:
            self.jobs[old].resubmitted_as = new
            self.untold.add(old)

    def suspect(self, job: Job, now: float) -> None:
        """A job failed on our nodes; it was lost if one of them goes away unasked within :data:`SUSPECT_S`."""
        self._suspects = {
            other.id: (failed_at, other) for failed_at, other in self._suspects.values() if failed_at + SUSPECT_S >= now
        }
        self._suspects[job.id] = (now, job)

    def suspected(self, now: float) -> list[Job]:
        """The jobs that failed on our nodes just now."""
        return [job for failed_at, job in self._suspects.values() if failed_at + SUSPECT_S >= now]

    def give_up_resubmission(self, now: float, job_id: JobId, why: str) -> None:
        del self.resubmissions[job_id]
        self.save_resubmissions()
        self.store.log(now, f"job/{job_id}", "not resubmitted", reason=why)

    def lose(self, job: Job, host: Host) -> None:
        """A job failed because this host went away under it."""
        job.lost_host = host
        self.lost[job.id] = job
        self._suspects.pop(job.id, None)
        if job.id in self.jobs:
            self.untold.add(job.id)

    def lend(self, job: Job) -> None:
        """Remember where a job came from, before it is moved to a pool's queue."""
        self.home_queues[str(job.id)] = job.home_queue
        self.store.set_setting("home_queues", self.home_queues)

    def forget_home(self, job_id: JobId) -> None:
        if self.home_queues.pop(str(job_id), None) is not None:
            self.store.set_setting("home_queues", self.home_queues)

    def forget_homes_of_ended(self) -> None:
        """Drop what was kept of jobs that ended while the service was away."""
        for job_id in [job_id for job_id in self.home_queues if JobId(int(job_id)) not in self.jobs]:
            self.forget_home(JobId(int(job_id)))

    def save_asked(self) -> None:
        self.store.set_setting(
            "asked", [[host, node.record.request_id] for host, node in self.nodes.items() if node.asked]
        )

    def pools_under(self, pool: str, scope: Scope) -> list[str]:
        """The pools that an error of one pool's provider poisons."""
        if scope is not Scope.PROVIDER:
            return [pool]
        provider = self.config.pool[pool].provider
        return [name for name, other in self.config.pool.items() if other.provider == provider]

    def forget_answers(self, provider: str) -> None:
        for asked in [asked for asked in self.answers if asked[0] == provider]:
            del self.answers[asked]


def _check_fit(config: BurstConfig, store: Store, facts: InstanceFacts) -> None:
    """Refuse a burst.toml under which records or queues would have no place.

    Raises:
        ConfigError: a live node's host or pool, or a pool's queue, is not there.
    """
    strays = [
        node.host
        for node in store.live_nodes()
        if node.pool not in config.pool or node.host not in config.hosts_of(node.pool) or node.host not in facts.hosts
    ]
    if strays:
        raise ConfigError(
            f"[pool] hosts: {hostlist.fold(strays)} live, and burst.toml or the instance no longer declares them in "
            "their pool; put them back, release them with `flux burst release`, and only then remove them"
        )
    missing = [queue for queue in config.pool_queues() if queue not in facts.config.get("queues", {})]
    if missing:
        raise ConfigError(
            f"[pool] queue: this instance has no queue {', '.join(missing)}; write its configuration with "
            "`flux burst config render` and restart the lead"
        )


@dataclass(frozen=True, slots=True)
class Change:
    """One committed change of a node's record."""

    node: NodeRecord
    old: NodeState | None


class Tick:
    """One step in the making: what was recorded, what shall be done, and when to look again."""

    def __init__(self, world: World, now: float, in_flight: set[tuple[object, ...]]) -> None:
        self.world = world
        self.now = now
        self.effects: list[Effect] = []
        self.changes: list[Change] = []
        self.look_again_at: float | None = None
        self._in_flight = in_flight

    def at(self, when: float | None) -> bool:
        """Whether ``when`` has come; if not, the next step happens by then. None never comes."""
        if when is None:
            return False
        if when <= self.now:
            return True
        if self.look_again_at is None or when < self.look_again_at:
            self.look_again_at = when
        return False

    def do(self, effect: Effect) -> bool:
        """Let an effect go after the commit, unless one of its key is under way or has to wait after a failure."""
        its_key = key(effect)
        if its_key in self._in_flight:
            return False
        retry = self.world.retries.get(its_key)
        if retry is not None and not self.at(retry[1]):
            return False
        self._in_flight.add(its_key)
        self.effects.append(effect)
        return True

    def launching(self, request_id: RequestId) -> bool:
        """Whether the call that buys an order is under way."""
        return (Launch, request_id) in self._in_flight

    def count(self, kind: type) -> int:
        """How many effects of one kind are under way."""
        return sum(its_key[0] is kind for its_key in self._in_flight)

    def create(self, record: NodeRecord) -> None:
        """Record a new node."""
        record = dataclasses.replace(record, version=1)
        self.world.nodes[record.host] = Node(record)
        self._record(record, None)

    def change(self, node: Node, state: NodeState, reason: str, **fields: Any) -> None:
        """Move a node to another state.

        Raises:
            IllegalTransition: the table in :mod:`fluxburst.states` does not have it.
        """
        old = node.record.state
        check_transition(node.record.host, old, state)
        node.record = dataclasses.replace(
            node.record, state=state, reason=reason, changed_at=self.now, version=node.record.version + 1, **fields
        )
        node.idle_votes, node.last_vote_at = 0, None
        if state is NodeState.GONE:
            del self.world.nodes[node.record.host]
            if not any(other.record.request_id == node.record.request_id for other in self.world.nodes.values()):
                self.world.orders.pop(node.record.request_id, None)
        self._record(node.record, old)

    def note(self, node: Node, **fields: Any) -> None:
        """Keep something about a node without changing its state."""
        node.record = dataclasses.replace(node.record, version=node.record.version + 1, **fields)
        self.world.store.save_node(node.record)

    def _record(self, record: NodeRecord, old: NodeState | None) -> None:
        self.world.store.save_node(record)
        self.world.store.log(
            self.now,
            f"node/{record.host}",
            str(record.state),
            reason=record.reason,
            pool=record.pool,
            request_id=record.request_id,
        )
        self.changes.append(Change(record, old))
        self.world.plan_due = True
