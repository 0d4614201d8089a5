"""Plan for all ripe jobs at once, and record what is to be bought."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache

from fluxburst.budget import accounted
from fluxburst.controller import effects as fx
from fluxburst.controller.home import forecast, residents
from fluxburst.controller.launch import record_order
from fluxburst.controller.world import Job, Tick, World, our_drain
from fluxburst.model import Demand, Host, JobId, NodeRecord, Verdict, VerdictKind
from fluxburst.moment import FleetNode, Home, Moment, Plan, Planner, PoolState, Request, Rules, Shape
from fluxburst.offers import ANSWER_KEPT_S, ANSWER_RENEWED_S, ANSWER_TTL_S
from fluxburst.states import COMING, NodeState

FREE, NOT_FREE = True, False

SERVED = (VerdictKind.COMING, VerdictKind.BURST)


class PlanStage:
    """The stage. With ``dry_run`` what would be bought is logged, and nothing is recorded or bought."""

    def __init__(self, planner: Planner, *, dry_run: bool = False) -> None:
        self._planner = planner
        self._dry_run = dry_run
        self._view = View()
        self._told: frozenset[object] = frozenset()
        self._watched: Plan | None = None
        self._watch_at: float | None = None
        self._refused: set[JobId] = set()

    def __call__(self, world: World, tick: Tick) -> None:
        if not world.caught_up:
            return
        _close_window(world, tick)
        if tick.at(world.plan_again_at):
            world.plan_due = True
        for pool in world.config.pool.values():
            standing = _standing_demand(pool.cores, pool.gpus)
            if not world.book.has(pool.provider, standing):
                tick.do(fx.Ask(pool.provider, standing))
        _ask(tick, world.asks)
        world.asks = set()
        self._watch(world, tick)
        if world.plan_due:
            world.plan_due = False
            if self._concerns_nobody(world):
                if tick.at(world.plan_again_at):
                    world.plan_again_at = None
            else:
                self._plan(world, tick)

    def _concerns_nobody(self, world: World) -> bool:
        """Whether every job that asks has its hosts, and nothing about these or the jobs has changed."""
        return (
            not any(job_id in world.jobs or job_id in self._view.requests for job_id in world.unplanned)
            and len(self._view.requests) == len(world.placed)
            and world.plan.again_at is None
            and not world.plan.undecided
            and not self._view.untils
            and not wanted_warm(world)
            and not any(host in world.plan.booked for host in world.dirty)
        )

    def _plan(self, world: World, tick: Tick) -> None:
        moment, without = self._view.moment(world, tick.now)
        world.unplanned, world.dirty = set(), set()
        if not self._view.changed and not tick.at(world.plan_again_at) and not world.plan_anew:
            return
        world.plan_anew = False
        plan = world.plan = self._planner.plan(moment)
        _ask(tick, plan.asks)
        if self._dry_run:
            self._tell_dry(world, tick, plan)
        else:
            for purchase in plan.purchases:
                record_order(world, tick, purchase)
            for extension in plan.extensions:
                world.extend(tick.now, extension)
        for job_id, told in without.items():
            self._decided(world, tick, world.jobs[job_id], told)
        for job_id in sorted(plan.changed):
            job, verdict = world.jobs.get(job_id), plan.verdicts.get(job_id)
            if job is None or verdict is None:
                continue
            if job_id in plan.undecided:
                # a question of milliseconds; until the answer comes the latest verdict stands
                job.verdict = job.verdict or verdict
            else:
                self._decided(world, tick, job, verdict)
        self._look_again(world, tick, plan)
        # buying changed the records, but the plan that bought them already knows
        world.plan_due = False

    def _decided(self, world: World, tick: Tick, job: Job, verdict: Verdict) -> None:
        if verdict.kind is VerdictKind.REFUSED:
            self._refused.add(job.id)
        else:
            self._refused.discard(job.id)
        if verdict.kind is VerdictKind.WAIT and not verdict.hosts:
            world.hopeful.add(job.id)
        else:
            world.hopeful.discard(job.id)
        if verdict.kind in SERVED and verdict.hosts:
            world.place(job.id, verdict.hosts)
        else:
            world.unplace(job.id)
            job.ready_at = None
        if _same(verdict, job.verdict):
            job.verdict = replace(verdict, hosts=job.verdict.hosts) if job.verdict else verdict
            return
        _tell_log(world, tick, job, verdict)
        job.verdict = verdict
        world.untold.add(job.id)

    def _tell_dry(self, world: World, tick: Tick, plan: Plan) -> None:
        """Log each purchase once, as long as it is wanted."""
        told = frozenset((purchase.offer, purchase.hosts) for purchase in plan.purchases)
        for purchase in plan.purchases:
            if (purchase.offer, purchase.hosts) not in self._told:
                world.store.log(
                    tick.now,
                    f"pool/{purchase.offer.pool}",
                    "would buy",
                    hosts=purchase.hosts,
                    jobs=purchase.job_ids,
                    instance_type=purchase.offer.instance_type,
                    usd_per_node_hour=purchase.offer.usd_per_node_hour,
                )
        # a provider that is asked again does not make it new
        self._told = told | self._told if plan.undecided else told

    def _watch(self, world: World, tick: Tick) -> None:
        """Ask again what somebody waits for another answer to: only one that says something new makes a plan."""
        if world.plan is not self._watched:
            self._watched, self._watch_at = world.plan, 0.0 if world.plan.watches else None
        if not tick.at(self._watch_at):
            return
        times: list[float] = []
        for provider, demand in sorted(world.plan.watches, key=repr):
            answered_at = world.book.answered_at(provider, demand)
            if answered_at is not None and answered_at + ANSWER_RENEWED_S <= tick.now:
                tick.do(fx.Ask(provider, demand))
                answered_at = tick.now
            times.append(tick.now if answered_at is None else answered_at)
        self._watch_at = min(times) + ANSWER_RENEWED_S
        tick.at(self._watch_at)

    def _look_again(self, world: World, tick: Tick, plan: Plan) -> None:
        untils = [] if plan.again_at is None else [plan.again_at]
        untils += self._view.untils
        self._refused &= world.jobs.keys()
        if self._refused:
            oldest_at = world.book.oldest_at()
            untils.append((tick.now if oldest_at is None else oldest_at) + ANSWER_KEPT_S)
        if plan.unmet:
            next_at = world.breakers.next_at(tick.now)
            untils.append(min(tick.now + ANSWER_TTL_S, tick.now + ANSWER_TTL_S if next_at is None else next_at))
        # a provider may name a time that is past; once a second is enough for it
        world.plan_again_at = max(min(untils), tick.now + 1.0) if untils else None
        tick.at(world.plan_again_at)


class View:
    """The world as planners see it, renewed only where it changed.

    Without ``heed_pause`` it is as if buying were not paused.
    """

    def __init__(self, *, heed_pause: bool = True) -> None:
        self._heed_pause = heed_pause
        self.requests: dict[JobId, Request] = {}
        self._shapes: dict[Shape, Shape] = {}
        self._stuck: set[JobId] = set()
        self._hosts: dict[str, dict[Host, FleetNode | bool]] = {}
        self._nodes: dict[Host, tuple[object, FleetNode]] = {}
        """Each host as it was seen last, and by what one sees that it is still so."""
        self._late_at: dict[str, float] = {}
        """When the first of a pool's nodes outlives what is reckoned with."""
        self._pools: dict[str, PoolState] = {}
        self._changed_pools: set[str] = set()
        self._more = False
        """Whether a pool has more than before for those who wait, or less for those who do not."""
        self._new = True
        self._seen: object = None
        self.changed = True
        """Whether the latest moment differs from the one before in anything by which a plan may differ, beside the time
        and home: what nobody had booked and is there no longer serves nobody sooner."""
        self.untils: list[float] = []

    def moment(self, world: World, now: float) -> tuple[Moment, Mapping[JobId, Verdict]]:
        """What to plan from, and the verdicts of the changed jobs that the plan need not look at.

        The world stays as it is: what was unplanned and dirty in it is so until its stage says otherwise.
        """
        changed: Collection[JobId] = world.jobs.keys() if self._new else world.unplanned | self._stuck
        without: dict[JobId, Verdict] = {}
        self._stuck.clear()
        for job_id in changed:
            job = world.jobs.get(job_id)
            verdict = None if job is None else _without_plan(world, job, now)
            if job is None or verdict is not None:
                self.requests.pop(job_id, None)
            else:
                self.requests[job_id] = self._request(world, job)
            if job is not None and verdict is not None:
                without[job_id] = verdict
                if job.stuck_until_at > now:
                    self._stuck.add(job_id)
        self.untils = [world.jobs[job_id].stuck_until_at for job_id in self._stuck]
        changed_jobs = None if self._new else frozenset(changed)
        holds = wanted_warm(world)
        self._more = self._new
        pools = {name: self._pool(world, name, world.dirty, now) for name in world.config.pool}
        self._changed_pools.update(name for name, state in pools.items() if state is not self._pools.get(name))
        changed_pools = frozenset(self._changed_pools)
        self._pools = pools
        seen = (world.book.version, world.joins.version, holds)
        self.changed = self._more or bool(changed) or seen != self._seen or bool(holds and changed_pools)
        if self.changed:
            self._changed_pools.clear()
        self._new, self._seen = False, seen
        policy, limits = world.config.policy, world.config.limits
        return (
            Moment(
                now=now,
                requests=self.requests,
                pools=pools,
                market=world.market(now),
                draft=world.ledger.draft(now, world.live),
                rules=Rules(
                    min_wait_s=policy.min_wait,
                    max_usd_per_hour_saved=policy.max_usd_per_hour_saved,
                    assume_duration_s=policy.assume_duration,
                    usd_per_job=limits.usd_per_job,
                    assume_usd_per_node_hour=limits.assume_usd_per_node_hour,
                    capped=world.ledger.capped,
                ),
                home=_LazyHome(world, now),
                residents=residents(world),
                holds=holds,
                changed_jobs=changed_jobs,
                changed_pools=changed_pools,
            ),
            without,
        )

    def _request(self, world: World, job: Job) -> Request:
        candidate = job.candidate
        if candidate.demand is None:
            raise AssertionError("a candidate without a demand has a refusal")
        here = world.pool_queues.get(job.queue)
        shape = Shape(
            demand=candidate.demand,
            pools=candidate.pools if here is None else (here,),
            max_usd=candidate.options.max_usd,
            account=accounted(world.config, world.account(job)),
        )
        homeless = here is not None or (bool(job.queue) and job.queue == world.config.staging_queue)
        return Request(
            job_id=job.id,
            shape=self._shapes.setdefault(shape, shape),
            # the scheduler's own order: priority, then age, which the job id tells (RFC 19)
            order=(-job.priority, job.id),
            queue=job.queue,
            home_at=float("inf") if homeless else job.home_at,
            not_before_at=job.submitted_at + candidate.options.wait_s if candidate.options.wait_s else 0.0,
            booked=(job.verdict.pool, job.verdict.hosts) if job.verdict and job.verdict.kind in SERVED else ("", ()),
        )

    def _pool(self, world: World, name: str, dirty: Collection[Host], now: float) -> PoolState:
        known, hosts = self._pools.get(name), self._hosts.setdefault(name, {})
        if known is None:
            dirty = world.declared[name]
        else:
            # what outlives its reckoning is reckoned anew
            late = now >= self._late_at[name]
            late_hosts = [host for host, node in hosts.items() if late and 0 < _end_at(node) <= now]
            dirty = [host for host in (*dirty, *late_hosts) if host in world.declared[name]]
        renewed = ((host, self._host(world, name, host, now), hosts.get(host)) for host in dirty)
        changed = [(host, node) for host, node, before in renewed if node is not before and node != before]
        closed, until_at, fix = _closed(world, name, now, heed_pause=self._heed_pause)
        failing = world.breakers.failing(name, now)
        as_open = known is not None and (known.closed, known.closed_until_at, known.failing) == (
            closed,
            until_at,
            failing,
        )
        if not as_open or any(host in world.plan.booked or not _is_less(node, hosts[host]) for host, node in changed):
            self._more = True
        hosts.update(changed)
        if known is not None and not changed:
            if as_open:
                return known
            return replace(known, closed=closed, closed_until_at=until_at, closed_fix=fix, failing=failing)
        fleet = tuple(node for node in hosts.values() if isinstance(node, FleetNode))
        self._late_at[name] = min((node.end_at for node in fleet if node.end_at > 0), default=float("inf"))
        table = world.config.pool[name]
        return PoolState(
            name=name,
            provider=table.provider,
            cores=table.cores,
            gpus=table.gpus,
            properties=world.properties[name],
            declared=world.declared[name],
            fleet=fleet,
            free=tuple(host for host, node in hosts.items() if node is FREE),
            blocks=world.blocks[name],
            failing=failing,
            closed=closed,
            closed_until_at=until_at,
            closed_fix=fix,
            boot_s=table.join_timeout,
            tail_s=table.idle_most_s() + table.stop_timeout + table.release_timeout,
            idle_s=table.idle_most_s(),
            least_s=table.min_lifetime,
            billing_increment_s=table.billing_increment,
            billing_minimum_s=table.billing_minimum,
            shrink=world.shrink[table.provider],
        )

    def _host(self, world: World, pool: str, host: Host, now: float) -> FleetNode | bool:
        """A host that is up, or on its way; else whether it may be ordered."""
        node, view = world.nodes.get(host), world.hosts[host]
        foreign_drain = view.drained is not None and not our_drain(view.drained)
        if node is None and not view.online:
            return not world.usage.get(host) and not foreign_drain
        if node is not None and node.asked:
            return NOT_FREE  # it serves nobody new
        record = None if node is None else node.record
        up = world.usable(host)
        serves = up or (
            record is not None
            and (
                record.state in COMING
                or (record.state is NodeState.JOINED and our_drain(view.drained))
                # it can stay as it has not been told to stop: undraining is faster than buying
                or (record.state is NodeState.DRAINING and record.stop_sent_at is None and not foreign_drain)
            )
        )
        if not serves:
            return NOT_FREE
        shares, coming = world.usage.get(host), record is not None and record.state in COMING
        signature = (None if record is None else record.request_id, up, coming, shares and tuple(shares))
        known = self._nodes.get(host)
        if known is not None and known[0] == signature and not 0 < known[1].end_at <= now:
            paid_until_at = world.ledger.paid_until(host)
            if known[1].paid_until_at == paid_until_at:
                return known[1]
        found = self._node(world, pool, host, record, up=up, now=now)
        self._nodes[host] = (signature, found)
        return found

    @staticmethod
    def _node(world: World, pool: str, host: Host, record: NodeRecord | None, *, up: bool, now: float) -> FleetNode:
        shares, table = world.usage.get(host) or {}, world.config.pool[pool]
        at, latest_at, order = 0.0, 0.0, None if record is None else world.orders.get(record.request_id)
        if not up and record is not None and record.state in COMING:
            at = record.planned_at + world.join_s(record)
            latest_at = record.planned_at + table.join_timeout
        return FleetNode(
            host,
            cores=table.cores - sum([share.cores for share in shares.values()]),
            gpus=table.gpus - sum([share.gpus for share in shares.values()]),
            whole=not shares,
            up=up,
            at=at,
            latest_at=latest_at,
            end_at=max([world.end_of(job_id, now) for job_id in shares], default=0.0),
            paid_until_at=world.ledger.paid_until(host),
            usd_per_node_hour=None if record is None else record.usd_per_node_hour,
            spot=order is not None and order.offer.spot,
            request_id=None if record is None else record.request_id,
        )


def _end_at(node: FleetNode | bool) -> float:
    return node.end_at if isinstance(node, FleetNode) else 0.0


def _is_less(now: FleetNode | bool, before: FleetNode | bool) -> bool:
    """Whether a host can only do less than before: it may not be ordered any more, or is on its way out."""
    if isinstance(now, FleetNode):
        return isinstance(before, FleetNode) and not now.up and replace(now, up=before.up) == before
    return now is NOT_FREE


class _LazyHome:
    """The forecast of home, made when the first job asks for it."""

    def __init__(self, world: World, now: float) -> None:
        self._world = world
        self._now = now
        self._home: Home | None = None

    def start_at(self, queue: str, demand: Demand) -> float:
        return self._get().start_at(queue, demand)

    def take(self, queue: str, demand: Demand, start_at: float) -> None:
        self._get().take(queue, demand, start_at)

    def _get(self) -> Home:
        if self._home is None:
            self._home = forecast(self._world, self._now)
        return self._home


def _ask(tick: Tick, asks: Collection[tuple[str, Demand]]) -> None:
    for provider, demand in sorted(asks, key=repr):
        tick.do(fx.Ask(provider, demand))


def _close_window(world: World, tick: Tick) -> None:
    if world.window is None:
        return
    first_at, last_at = world.window
    batching = world.config.batching
    if tick.at(min(last_at + batching.idle, first_at + batching.max)):
        world.window = None
        for job_id in world.unripe:
            job = world.jobs.get(job_id)
            if job is not None and job.pending:
                job.ripe = True
                world.unplanned.add(job_id)
                world.plan_due = True
        world.unripe.clear()


def _without_plan(world: World, job: Job, now: float) -> Verdict | None:
    """The verdict of a job that the plan need not look at."""
    if job.allocated_at is not None:
        pool = next((world.pool_of[share.host] for share in job.allocation if share.host in world.pool_of), "")
        return Verdict(VerdictKind.COMING if pool else VerdictKind.HOME, "it started", pool=pool)
    if job.candidate.refusal:
        return Verdict(VerdictKind.REFUSED, job.candidate.refusal, fix="mend what the reason says, and submit it again")
    if job.exception:
        return Verdict(VerdictKind.HOME, f"it failed: {job.exception}")
    if job.stuck_until_at > now:
        fix = "what keeps the scheduler from it: see `flux queue status`; it is tried again then"
        return Verdict(VerdictKind.WAIT, job.stuck, until_at=job.stuck_until_at, fix=fix)
    if job.depends:
        fix = "nothing; what it depends on has to come first, see `flux job info JOB eventlog`"
        return Verdict(VerdictKind.WAIT, "it has unmet dependencies", fix=fix)
    if job.priority <= 0:
        if job.urgency == 0:
            return Verdict(VerdictKind.WAIT, "it is held (urgency 0)", fix="flux job urgency JOB default")
        return Verdict(VerdictKind.WAIT, "its priority is 0", fix="a priority above 0; the site's plugins set it")
    if not job.ripe:
        return Verdict(VerdictKind.HOME, "it may start at home at once")
    return None


def _closed(world: World, pool: str, now: float, *, heed_pause: bool) -> tuple[str, float | None, str]:
    """Why nothing may be bought in a pool, until when, and what would open it."""
    if world.paused and heed_pause:
        resume = "an administrator resumes it with `flux burst resume`"
        return f"buying is paused; {resume}", None, resume
    provider = world.config.pool[pool].provider
    if provider not in world.listings:
        # unknown is not absent: nothing is bought before it is known what is there
        fix = "nothing, if it answers soon; see `flux burst providers` and `flux burst check`"
        return f"what provider {provider} already runs is not known yet", None, fix
    closed = world.breakers.closed_pool(pool, provider, now)
    if closed is not None:
        return closed.reason, closed.until_at, ""
    return "", None, ""


def wanted_warm(world: World) -> dict[str, int]:
    """How many nodes each pool should have whether jobs need them or not."""
    wanted = {name: pool.keep_warm for name, pool in world.config.pool.items() if pool.keep_warm}
    for hold in world.holds.values():
        wanted[hold.pool] = max(wanted.get(hold.pool, 0), hold.nodes)
    return wanted


@lru_cache(maxsize=256)
def _standing_demand(cores: int, gpus: int) -> Demand:
    """One whole node of a pool: what is asked for when the service starts, so that there is something to show."""
    return Demand(nodes=1, slots=1, cores_per_slot=cores, gpus_per_slot=gpus, exclusive=True)


def _same(one: Verdict, other: Verdict | None) -> bool:
    """Whether nothing worth telling has changed; the sequence of its hosts is not."""
    return (
        other is not None and replace(one, hosts=()) == replace(other, hosts=()) and set(one.hosts) == set(other.hosts)
    )


def _tell_log(world: World, tick: Tick, job: Job, verdict: Verdict) -> None:
    if job.allocated_at is not None or (job.verdict is None and verdict.kind is VerdictKind.HOME):
        return  # told as "started", or the ordinary beginning of every job
    world.store.log(
        tick.now,
        f"job/{job.id}",
        str(verdict.kind),
        reason=verdict.reason,
        pool=verdict.pool,
        hosts=verdict.hosts,
        pools=verdict.pool_reasons,
    )
