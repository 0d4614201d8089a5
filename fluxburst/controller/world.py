"""What the controller knows: jobs, hosts, records, answers. Changed by ``sync`` from events, by stages for records."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from fluxburst import hostlist, jobspec
from fluxburst.budget import Draft, Ledger, Window, accounted
from fluxburst.config import BurstConfig
from fluxburst.controller.effects import QUESTIONS, Drain, Effect, Launch, Undrain, drain_key, keys
from fluxburst.controller.effects import Key as EffectKey
from fluxburst.controller.home import HomeView
from fluxburst.errors import ConfigError, Scope
from fluxburst.forecast import Running
from fluxburst.model import (
    Account,
    BootMaterial,
    Demand,
    Host,
    HostShare,
    InstanceFacts,
    JobId,
    NodeId,
    NodeRecord,
    NodeReport,
    OrderRecord,
    RequestId,
    Shrink,
    Verdict,
)
from fluxburst.moment import NOBODY, Extension, Plan
from fluxburst.offers import (
    BOOT,
    GUESS_JOIN_S,
    Breakers,
    Closed,
    JoinTimes,
    Key,
    MarketView,
    OfferBook,
    OrderOffers,
    Prices,
    describe,
)
from fluxburst.select import Candidate, user_name
from fluxburst.states import COMING, NodeState, check_transition
from fluxburst.store import Records

_OUR_DRAIN = "fluxburst: "


def drain_reason(why: str) -> str:
    """A drain reason by which :func:`our_drain` knows it again."""
    return _OUR_DRAIN + why


def our_drain(drained: str | None) -> bool:
    """Whether a host was drained by us, and not by an administrator or by Flux, whose drains we never undo."""
    return drained is not None and drained.startswith(_OUR_DRAIN)


COMING_IN_TURN = tuple(state for state in NodeState if state in COMING)
STAYING_IN_TURN = (*COMING_IN_TURN, NodeState.JOINED)
"""For :meth:`World.in_state`, whose order must not be a set's, which differs from process to process."""

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
    home_at: float | None = None
    """When it will start where it is, by the scheduler's own forecast (``sched.t_estimate``)."""
    exception: str = ""
    lost_host: Host | None = None
    """Where it ran when that node was lost."""
    failed_offers: dict[str, str] = field(default_factory=dict)
    """The offers on which an order for it failed since one was accepted, each with the reason."""
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


@dataclass(frozen=True)
class Listing:
    """The latest whole listing of one provider. ``begun_at`` is when it was asked for."""

    begun_at: float
    at: float
    nodes: tuple[NodeReport, ...]

    @cached_property
    def node_ids(self) -> Mapping[tuple[RequestId, Host], NodeId]:
        """What is listed, by the identity that our records know from the start."""
        return {(node.request_id, node.host): node.node_id for node in self.nodes}


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
    inherited: bool = False
    """Its record is older than this run of the service, so nobody saw when its broker came up."""
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
    report: NodeReport | None = None
    """What was taken in of the latest listing."""
    released_at: float | None = None
    """When the provider last took the call to release it."""
    releases: int = 0


class World:
    def __init__(
        self,
        config: BurstConfig,
        store: Records,
        facts: InstanceFacts,
        boot: Callable[[], BootMaterial],
        new_id: Callable[[], RequestId],
        shrink: Mapping[str, Shrink],
        in_blocks: Collection[str],
        order_offers: OrderOffers,
        *,
        now: float,
    ) -> None:
        self.config = config
        self.store = store
        self.facts = facts
        self.boot = boot
        self.new_id = new_id
        self.shrink = shrink
        _check_fit(config, store, facts)
        self.dirty: set[Host] = set()
        """The pools' hosts of which something changed since the latest plan."""
        self.user_name = cache(user_name)
        self.ranks = {host: rank for rank, host in enumerate(facts.hosts)}
        self.pool_of = {host: pool for pool in config.pool for host in config.hosts_of(pool)}
        self.declared = {
            pool: {host: self.ranks[host] for host in config.hosts_of(pool) if host in self.ranks}
            for pool in config.pool
        }
        self.blocks = {
            name: hostlist.blocks(config.hosts_of(name)) if pool.provider in in_blocks else ()
            for name, pool in config.pool.items()
        }
        """The blocks of hosts of each pool whose provider takes them so."""
        self.properties = {
            name: frozenset({config.property_of(name), *pool.properties}) for name, pool in config.pool.items()
        }
        self.pool_queues = config.pool_queues()
        self.jobs: dict[JobId, Job] = {}
        self.hosts: dict[Host, HostView] = {host: HostView() for host in self.pool_of}
        self.home = HomeView(config, facts)
        self.drained_by_us: set[Host] = set()
        self.usage: dict[Host, dict[JobId, HostShare]] = {}
        self.hosts_of_job: dict[JobId, tuple[Host, ...]] = {}
        self.nodes: dict[Host, Node] = {}
        self._in_state: dict[NodeState, dict[Host, Node]] = {state: {} for state in NodeState}
        self.live: Counter[str] = Counter()
        """How many live nodes each pool has."""
        self.of_order: dict[RequestId, dict[Host, Node]] = {}
        """The live nodes of each order."""
        self.unseen: dict[Host, Node] = {}
        """The live nodes that no listing has shown yet."""
        self.unsettled: dict[Host, None] = {}
        """The hosts where the record and what Flux shows may not go together; ``join`` looks at these."""
        for record in store.live_nodes():
            node = self.nodes[record.host] = Node(record, inherited=True)
            self.enters(node, None)
        self.ledger = Ledger(config, store.segments(Window.at("month", now).from_at), now)
        for node in self.nodes.values():
            if node.record.host not in self.ledger:
                self.reserve(node.record)  # bought before there was a ledger
        self.budget_seen = 0
        """The ledger's version when its caps were last looked at."""
        self.listings: dict[str, Listing] = {}
        self.joins = JoinTimes(entry for entry in store.setting("join_times", []) if entry["pool"] in config.pool)
        self.breakers = Breakers(
            config.policy.cooldown,
            config.policy.cooldown_max,
            (entry for entry in store.setting("breakers", []) if not config.pool.keys().isdisjoint(entry["pools"])),
        )
        shapes = {name: (pool.cores, pool.gpus) for name, pool in config.pool.items()}
        self.book = OfferBook(shapes, Prices(config.price), self.joins, self.breakers, order_offers)
        self.held: set[RequestId] = set()
        """The orders that are not let go before the one that tries their offer out has its answer."""
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
        self.asks: set[tuple[str, Demand]] = set()
        """What somebody who asked why wants to know of providers, whether the planner needs it or not."""
        self.unplanned: set[JobId] = set()
        """The jobs of which something changed since the latest plan."""
        self.hopeful: set[JobId] = set()
        """The jobs that wait without hosts, such as for home."""
        self.unripe: set[JobId] = set()
        """The jobs that have become eligible within the open batching window."""
        self.placed: dict[JobId, tuple[Host, ...]] = {}
        """The jobs whose verdict names hosts, with these."""
        self._bookings: dict[Host, set[JobId]] = {}
        self.lent: set[JobId] = set()
        """The jobs that wait in a pool's queue."""
        self.voted: set[Host] = set()
        """The hosts that were idle and not booked when ``drain`` looked last."""
        self.untold: set[JobId] = set()
        """The jobs whose story may have changed since their memo was last written."""
        self.caught_up = False
        self.window: tuple[float, float] | None = None
        """First and latest moment at which a job of the open batching window became eligible."""
        self.plan_due = True
        self.plan_anew = False
        """Home may serve somebody later than was expected."""
        self.stale = True
        """Something has changed that a stage may look at, and not every stage has run since."""
        self.plan_again_at: float | None = None
        self.forget_at = 0.0
        """When the store is to forget again what is old."""
        self.orders: dict[RequestId, OrderRecord] = {}
        for node in self.nodes.values():
            self._load_order(node.record.request_id)
        self.compared_at: dict[str, float] = {}
        self.look_after_at: dict[str, float] = {}
        """When to list a provider once more after its last node has gone."""
        self.orphans_seen_at: dict[str, float] = {}
        self.queue_states: dict[str, bool] = {}
        self.retries: dict[EffectKey, tuple[int, float]] = {}
        """Failed effects: how often in a row, and not before when again."""

    def _load_order(self, request_id: RequestId) -> None:
        order = self.store.order(request_id)
        if order is not None:
            self.orders[request_id] = order

    def account(self, job: Job) -> Account:
        """Whose job it is; the bank and the project as flux-accounting's plugin reads them."""
        system = jobspec.system(job.spec)
        return Account(self.user_name(job.userid), str(system.get("bank", "")), str(system.get("project", "")))

    def payer(self, account: Account, job_ids: Collection[JobId]) -> Account:
        """The whole account of the first of these jobs that ``account`` stands for.

        Plans tell only those names apart that some cap asks for; reports tell all.
        """
        accounts = (self.account(self.jobs[job_id]) for job_id in job_ids if job_id in self.jobs)
        return next((whole for whole in accounts if accounted(self.config, whole) == account), account)

    def reserve(self, record: NodeRecord, account: Account = NOBODY, until_at: float | None = None) -> None:
        """Enter a new node into the ledger, until its broker must be up where nothing else is known."""
        if until_at is None:
            until_at = record.planned_at + self.config.pool[record.pool].join_timeout
        segment = self.ledger.reserve(
            record.planned_at, record.request_id, record.host, record.pool, account, record.usd_per_node_hour, until_at
        )
        self.store.save_segment(segment)

    def extend(self, now: float, extension: Extension) -> None:
        """Reserve a live node for longer."""
        self.dirty.add(extension.host)
        for segment in self.ledger.extend(now, extension.host, extension.account, extension.until_at):
            self.store.save_segment(segment)

    def place(self, job_id: JobId, hosts: tuple[Host, ...]) -> None:
        """A job's verdict names these hosts from now on."""
        self.unplace(job_id)
        self.placed[job_id] = hosts
        for host in hosts:
            self._bookings.setdefault(host, set()).add(job_id)

    def unplace(self, job_id: JobId) -> None:
        """A job's verdict names no hosts any more."""
        for host in self.placed.pop(job_id, ()):
            self._bookings[host].discard(job_id)

    def pays(self, now: float, job: Job) -> None:
        """A job has started: the nodes that it runs on, which need not be those that were booked for it, are paid for.

        What was reserved for it alone is reserved where it runs. What Flux's choice of nodes costs beyond that is on
        the job's account as far as its caps allow, and on nobody's else; see docs/decisions/0008.
        """
        used = [share.host for share in job.allocation if share.host in self.ledger]
        booked = self.placed.get(job.id, ())
        self.unplace(job.id)
        self._exchange(now, set(used).difference(booked), set(booked).difference(used))
        draft: Draft | None = None
        account = self.account(job)
        for host in sorted(used):
            table = self.config.pool[self.pool_of[host]]
            leaves_at = self.end_of(job.id, now) + table.stop_timeout + table.release_timeout
            for mate in self.stays_with(self.nodes[host]):
                if leaves_at + table.idle_most_s() > self.ledger.paid_until(mate.record.host):
                    draft = draft or self.ledger.draft(now, {})
                    self._pay(now, draft, mate.record, account, leaves_at)

    def _exchange(self, now: float, used: set[Host], left: set[Host]) -> None:
        """Let nodes that a job took instead of its own, and those that it left free, exchange what is reserved.

        Only where both can be given back by themselves, at the same price, and nobody else needs what was left.
        """

        def alone(host: Host) -> bool:
            record = self.nodes[host].record if host in self.nodes else None
            return record is not None and host in self.ledger and self.shrink[record.provider] is Shrink.ANY

        free = sorted(
            (host for host in left if alone(host) and not self.usage.get(host) and not self._bookings.get(host)),
            key=lambda host: (-self.ledger.paid_until(host), host),
        )
        taken = sorted(filter(alone, used), key=lambda host: (self.ledger.paid_until(host), host))
        for host, mine in zip(free, taken, strict=False):
            pair = host, mine
            if self.nodes[host].record.usd_per_node_hour != self.nodes[mine].record.usd_per_node_hour:
                continue
            if self.ledger.paid_until(host) < self.ledger.paid_until(mine):
                if len(self.usage[mine]) > 1 or not self._bookings.get(mine):
                    continue
                pair = mine, host  # for the one who booked it, and who will have to go where this job was to run
            self.dirty.update(pair)
            for segment in self.ledger.exchange(now, *pair):
                self.store.save_segment(segment)

    def _pay(self, now: float, draft: Draft, record: NodeRecord, account: Account, leaves_at: float) -> None:
        """Reserve a node until ``leaves_at``, and for its time of idling, too, where that can be paid for."""
        pool, payer = record.pool, accounted(self.config, account)
        paid_until_at = max(now, self.ledger.paid_until(record.host))

        def usd(until_at: float) -> float | None:
            return self.ledger.cost_usd(pool, record.usd_per_node_hour, paid_until_at, until_at)

        idle_until_at, mark = leaves_at + self.config.pool[pool].idle_most_s(), draft.mark()
        for name, kept in self.plan.kept.items():
            draft.keep(name, kept)
        idles = draft.extend(payer, pool, usd(idle_until_at)) is None
        draft.rollback(mark)
        until_at = idle_until_at if idles else leaves_at
        if draft.extend(payer, pool, usd(until_at)) is not None:
            draft.keep(pool, usd(until_at) or 0.0)
            account = NOBODY
        if until_at > paid_until_at:
            self.extend(now, Extension(record.host, account, until_at))

    def overdue_at(self, host: Host) -> float | None:
        """When a node has to leave so that it is gone before its reservation ends; None where no cap in dollars holds.

        An idle node must not live beyond that, whoever may want it.
        """
        if not self.ledger.capped:
            return None
        table = self.config.pool[self.pool_of[host]]
        return self.ledger.paid_until(host) - table.stop_timeout - table.release_timeout

    def settle(self, now: float, record: NodeRecord) -> None:
        """Cut what was reserved for a node that is gone."""
        # what no listing ever showed and whose broker never came up was never there
        lived = record.node_id is not None or record.joined_at is not None
        for segment in self.ledger.settle(now, record.host, now if lived else record.planned_at):
            self.store.save_segment(segment)

    def in_state(self, *states: NodeState) -> list[Node]:
        """The nodes in these states, one state after the other, in the order in which they came into each."""
        return [node for state in states for node in self._in_state[state].values()]

    def hosts_in(self, *states: NodeState) -> set[Host]:
        """The hosts of the nodes in these states."""
        return set[Host]().union(*(self._in_state[state] for state in states))

    def enters(self, node: Node, old: NodeState | None) -> None:
        """Keep the indices when a node's record has changed, ``old`` being its state before (None: it is new)."""
        self.dirty.add(node.record.host)
        record = node.record
        if old is not record.state:
            if old is None:
                self.live[record.pool] += 1
                self.of_order.setdefault(record.request_id, {})[record.host] = node
            else:
                del self._in_state[old][record.host]
            if record.state is NodeState.GONE:
                self._leaves(record)
            else:
                self._in_state[record.state][record.host] = node
        if record.node_id is None and record.state is not NodeState.GONE:
            self.unseen[record.host] = node
        else:
            self.unseen.pop(record.host, None)
        self.unsettled[record.host] = None
        self.stale = True

    def _leaves(self, record: NodeRecord) -> None:
        self.live[record.pool] -= 1
        mates = self.of_order[record.request_id]
        del mates[record.host]
        if not mates:
            del self.of_order[record.request_id]
            self.orders.pop(record.request_id, None)

    def order_mates(self, node: Node) -> list[Node]:
        """The live nodes of the same order, in the order's own sequence of hosts, this one among them."""
        mates = self.of_order[node.record.request_id].values()
        # an order's hosts are in the order of their ranks; of an adopted machine no more is known than that
        return sorted(mates, key=lambda other: self.ranks[other.record.host])

    def leaves_with(self, node: Node) -> list[Node]:
        """The live nodes that go when this one goes, this one among them, by how its provider can shrink."""
        shrink = self.shrink[node.record.provider]
        if shrink is Shrink.ANY:
            return [node]
        mates = self.order_mates(node)
        return mates[mates.index(node) :] if shrink is Shrink.TAIL else mates

    def stays_with(self, node: Node) -> list[Node]:
        """The live nodes that cannot be given back before this one, itself among them."""
        shrink = self.shrink[node.record.provider]
        if shrink is Shrink.ANY:
            return [node]
        mates = self.order_mates(node)
        return mates[: mates.index(node) + 1] if shrink is Shrink.TAIL else mates

    def online(self, host: Host) -> bool:
        return self.hosts[host].online

    def usable(self, host: Host) -> bool:
        """Up, not drained, and not on its way out."""
        view, node = self.hosts[host], self.nodes.get(host)
        return view.online and view.drained is None and (node is None or node.record.state is NodeState.JOINED)

    def join_s(self, record: NodeRecord) -> float:
        """How long a node took to join, or is expected to take."""
        if record.joined_at is not None:
            return record.joined_at - record.planned_at
        order = self.orders.get(record.request_id)
        return GUESS_JOIN_S if order is None else self.book.join_s(order.offer)

    def end_of(self, job_id: JobId, now: float) -> float:
        """When a running job is reckoned to have ended; see :meth:`fluxburst.forecast.Running.end_at`."""
        job, assume_s = self.jobs.get(job_id), self.config.policy.assume_duration
        if job is None or job.allocated_at is None:
            return now + assume_s
        demand = job.candidate.demand
        return Running((), job.allocated_at, demand.duration_s if demand else 0.0).end_at(now, assume_s)

    def market(self, now: float) -> MarketView:
        """All providers' offers at this moment, for the planner."""
        return self.book.at(now)

    def cool(self, key: Key, pool: str, reason: str, now: float, *, wait_s: float = 0.0) -> None:
        """Leave alone what an order or a node of this pool failed with; see :meth:`Breakers.fail`."""
        breaker = self.breakers.fail(key, pool, reason, now, wait_s=wait_s)
        self.store.log(
            now,
            f"pool/{pool}" if key[0] in (Scope.POOL, BOOT) else "/".join(key),
            "cooldown",
            scope=key[0],
            reason=reason,
            failures=breaker.failures,
            seconds=breaker.until_at - now,
        )
        self.save_breakers()

    def plan_by(self, at: float) -> None:
        """Have a plan made by then."""
        self.plan_again_at = at if self.plan_again_at is None else min(at, self.plan_again_at)

    def warm(self, pool: str) -> None:
        """A node of the pool serves: its failures are forgotten."""
        if self.breakers.serves(pool):
            self.save_breakers()

    def save_breakers(self) -> None:
        self.store.set_setting("breakers", self.breakers.state())

    def save_joins(self) -> None:
        self.store.set_setting("join_times", self.joins.state())

    def left_alone(self, now: float) -> dict[str, Closed]:
        """The pools in which nothing can be ordered: they, their provider, or each of their offers is left alone."""
        found: dict[str, Closed] = {}
        offers: dict[str, list[Closed | None]] = {pool: [] for pool in self.config.pool}
        for _, quote in self.book.latest(now):
            offers[quote.offer.pool].append(self.breakers.closed(quote.offer, now))
        for pool, table in self.config.pool.items():
            each = [why for why in offers[pool] if why is not None]
            whole = self.breakers.closed_pool(pool, table.provider, now)
            if whole is not None:
                found[pool] = whole
            elif each and len(each) == len(offers[pool]):
                found[pool] = min(each, key=lambda why: now if why.until_at is None else why.until_at)
        return found

    def order_failed(self, request_id: RequestId, reason: str) -> None:
        """Remember for the jobs of an order on what it failed."""
        order = self.orders[request_id]
        for job_id in order.job_ids:
            if job_id in self.jobs:
                self.jobs[job_id].failed_offers[f"{describe(order.offer)} ({order.pool})"] = reason

    def order_taken(self, request_id: RequestId) -> None:
        """An order was accepted: on what its jobs' earlier ones failed is past."""
        for job_id in self.orders[request_id].job_ids:
            if job_id in self.jobs:
                self.jobs[job_id].failed_offers.clear()

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


def _check_fit(config: BurstConfig, store: Records, facts: InstanceFacts) -> None:
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
    """One step in the making: what was recorded, what shall be done, and when to look again.

    With ``dry_run`` nothing is done but what only asks.
    """

    def __init__(self, world: World, now: float, in_flight: dict[EffectKey, bool], *, dry_run: bool = False) -> None:
        self._dry_run = dry_run
        self.world = world
        self.now = now
        self._effects: list[Effect] = []
        self._drains: dict[str, list[Host]] = {}
        self._undrains: list[Host] = []
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
        if not all(map(self._free, keys(effect))):
            return False
        self._effects.append(effect)
        return True

    def drain(self, host: Host, reason: str) -> None:
        """As :meth:`do`, in one call for all hosts of one reason."""
        if self._free(drain_key(host)):
            self._drains.setdefault(reason, []).append(host)

    def undrain(self, host: Host) -> None:
        """As :meth:`do`, in one call for all hosts."""
        if self._free(drain_key(host)):
            self._undrains.append(host)

    @property
    def effects(self) -> tuple[Effect, ...]:
        """All that shall be let go."""
        together: list[Effect] = [Drain(tuple(hosts), reason) for reason, hosts in self._drains.items()]
        if self._undrains:
            together.append(Undrain(tuple(self._undrains)))
        return (*self._effects, *together)

    def _free(self, its_key: EffectKey) -> bool:
        """Take a key for an effect, unless one is under way or has to wait after a failure."""
        if self._dry_run and its_key[0] not in QUESTIONS:
            return False
        if its_key in self._in_flight:
            self._in_flight[its_key] = True
            return False
        retry = self.world.retries.get(its_key)
        if retry is not None and not self.at(retry[1]):
            return False
        self._in_flight[its_key] = False
        return True

    def launching(self, request_id: RequestId) -> bool:
        """Whether the call that buys an order is under way."""
        return (Launch, request_id) in self._in_flight

    def count(self, kind: type) -> int:
        """How many effects of one kind are under way."""
        return sum(its_key[0] is kind for its_key in self._in_flight)

    def create(self, record: NodeRecord, account: Account = NOBODY, until_at: float | None = None) -> None:
        """Record a new node (version 0), which ``account`` pays for until then."""
        record = record.next()
        node = self.world.nodes[record.host] = Node(record)
        self.world.reserve(record, account, until_at)
        self._record(node, None)

    def change(
        self,
        node: Node,
        state: NodeState,
        reason: str,
        *,
        node_id: NodeId | None = None,
        joined_at: float | None = None,
    ) -> None:
        """Move a node to another state.

        Raises:
            IllegalTransition: the table in :mod:`fluxburst.states` does not have it.
        """
        old = node.record.state
        check_transition(node.record.host, old, state)
        node.record = node.record.next(state, reason, self.now, node_id=node_id, joined_at=joined_at)
        node.idle_votes, node.last_vote_at = 0, None
        if state is NodeState.GONE:
            del self.world.nodes[node.record.host]
            self.world.settle(self.now, node.record)
        self._record(node, old)

    def note(self, node: Node, *, node_id: NodeId | None = None, stop_sent_at: float | None = None) -> None:
        """Keep something about a node without changing its state."""
        node.record = node.record.next(node_id=node_id, stop_sent_at=stop_sent_at)
        self.world.store.save_node(node.record)
        self.world.enters(node, node.record.state)

    def _record(self, node: Node, old: NodeState | None) -> None:
        record = node.record
        self.world.store.save_node(record)
        self.world.enters(node, old)
        self.world.store.log(
            self.now,
            f"node/{record.host}",
            str(record.state),
            reason=record.reason,
            pool=record.pool,
            request_id=record.request_id,
        )
        self.changes.append(Change(record, old))
        # one that is only further on its way is expected as before
        if old not in COMING or record.state is not NodeState.BOOTING:
            self.world.plan_due = True
