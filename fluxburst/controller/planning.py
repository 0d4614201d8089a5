"""Plan for all ripe jobs at once, and record what is to be bought."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from fluxburst.controller import effects as fx
from fluxburst.controller.launch import record_order
from fluxburst.controller.world import Job, Tick, World, our_drain
from fluxburst.model import Demand, Host, JobId, Offer, Refusal, Verdict, VerdictKind
from fluxburst.plan import ANSWER_TTL_S, Answers, FleetNode, PoolState, Request, by_price, make_plan
from fluxburst.states import COMING, NodeState

ANSWER_KEPT_S = 3600.0
"""How long an answer is kept to be shown, and a refusal for good is believed."""

OrderOffers = Callable[[Demand, Sequence[Offer]], Sequence[Offer] | None]


class PlanStage:
    """The stage, with the plugins' ``fluxburst_order_offers``."""

    def __init__(self, order_offers: OrderOffers) -> None:
        self._order_offers = order_offers

    def __call__(self, world: World, tick: Tick) -> None:
        if not world.caught_up:
            return
        _close_window(world, tick)
        if tick.at(world.plan_again_at):
            world.plan_due = True
        for name, pool in world.config.pool.items():
            if (pool.provider, _standing_demand(world, name)) not in world.answers:
                tick.do(fx.Ask(pool.provider, _standing_demand(world, name)))
        if world.plan_due:
            self._plan(world, tick)

    def _plan(self, world: World, tick: Tick) -> None:
        world.plan_due = False
        pools = {name: _pool_state(world, name, tick.now) for name in world.config.pool}
        waiting: dict[JobId, Verdict] = {}
        asking: list[Job] = []
        for job in world.jobs.values():
            verdict = _without_plan(world, job, tick.now)
            if verdict is None:
                asking.append(job)
            else:
                waiting[job.id] = verdict
        # the scheduler's own order: priority, then age, which the job id tells (RFC 19)
        asking.sort(key=lambda job: (-job.priority, job.id))
        limit = world.config.limits.nodes
        plan = make_plan(
            [_request(world, job) for job in asking],
            pools,
            _fresh_answers(world, tick.now),
            now=tick.now,
            nodes_left=None if limit is None else max(0, limit - len(world.nodes)),
            holds=wanted_warm(world),
            order_offers=self._preferred,
        )
        world.plan = plan
        for provider, demand in sorted(plan.asks, key=lambda ask: (ask[0], repr(ask[1]))):
            tick.do(fx.Ask(provider, demand))
        for purchase in plan.purchases:
            record_order(world, tick, purchase)
        world.placed = tuple(job.id for job in asking if plan.verdicts[job.id].hosts)
        verdicts = waiting | dict(plan.verdicts)
        for job in world.jobs.values():
            verdict = verdicts[job.id]
            if not verdict.hosts:
                job.ready_at = None
            if job.id in plan.undecided:
                # a question of milliseconds; until the answer comes the latest verdict stands
                job.verdict = job.verdict or verdict
            elif not _same(verdict, job.verdict):
                _tell_log(world, tick, job, verdict)
                job.verdict = verdict
                world.untold.add(job.id)
        untils = [verdict.until_at for verdict in verdicts.values() if verdict.until_at is not None]
        if any(verdict.kind is VerdictKind.REFUSED for verdict in plan.verdicts.values()):
            untils.append(min((at for at, _ in world.answers.values()), default=tick.now) + ANSWER_KEPT_S)
        if plan.holds:
            cooling = [value.until_at for value in world.cooldowns.values() if value.until_at > tick.now]
            untils.append(min([*cooling, tick.now + ANSWER_TTL_S]))
        # a provider may name a time that is past; once a second is enough for it
        world.plan_again_at = max(min(untils), tick.now + 1.0) if untils else None
        tick.at(world.plan_again_at)
        # buying changed the records, but the plan that bought them already knows
        world.plan_due = False

    def _preferred(self, demand: Demand, offers: Sequence[Offer]) -> Sequence[Offer]:
        ordered = by_price(demand, offers)
        chosen = self._order_offers(demand, ordered)
        return ordered if chosen is None else chosen


def _close_window(world: World, tick: Tick) -> None:
    if world.window is None:
        return
    first_at, last_at = world.window
    batching = world.config.batching
    if tick.at(min(last_at + batching.idle, first_at + batching.max)):
        world.window = None
        world.plan_due = True
        for job in world.jobs.values():
            if job.pending:
                job.ripe = True


def _without_plan(world: World, job: Job, now: float) -> Verdict | None:
    """The verdict of a job that the plan need not look at."""
    if job.allocated_at is not None:
        pool = next((world.pool_of[share.host] for share in job.allocation if share.host in world.pool_of), "")
        return Verdict(VerdictKind.COMING if pool else VerdictKind.HOME, "it started", pool=pool)
    if job.candidate.refusal:
        return Verdict(VerdictKind.REFUSED, job.candidate.refusal)
    if job.exception:
        return Verdict(VerdictKind.HOME, f"it failed: {job.exception}")
    if job.stuck_until_at > now:
        return Verdict(VerdictKind.WAIT, job.stuck, until_at=job.stuck_until_at)
    if job.depends:
        return Verdict(VerdictKind.WAIT, "it has unmet dependencies")
    if job.priority <= 0:
        return Verdict(VerdictKind.WAIT, "it is held (urgency 0)" if job.urgency == 0 else "its priority is 0")
    if not job.ripe:
        return Verdict(VerdictKind.HOME, "it may start at home at once")
    return None


def _request(world: World, job: Job) -> Request:
    candidate = job.candidate
    if candidate.demand is None:
        raise AssertionError("a candidate without a demand has a refusal")
    here = world.pool_queues.get(job.queue)
    return Request(
        job_id=job.id,
        demand=candidate.demand,
        pools=candidate.pools if here is None else (here,),
        max_usd=candidate.options.max_usd,
        not_before_at=job.submitted_at + candidate.options.wait_s if candidate.options.wait_s else 0.0,
        booked=("", ()) if job.verdict is None else (job.verdict.pool, job.verdict.hosts),
    )


def _pool_state(world: World, name: str, now: float) -> PoolState:
    table = world.config.pool[name]
    fleet: list[FleetNode] = []
    leaving: list[FleetNode] = []
    free: list[Host] = []
    for host in world.declared[name]:
        node, view = world.nodes.get(host), world.hosts[host]
        foreign_drain = view.drained is not None and not our_drain(view.drained)
        shares = world.usage.get(host) or {}
        room = FleetNode(
            host,
            cores=table.cores - sum(share.cores for share in shares.values()),
            gpus=table.gpus - sum(share.gpus for share in shares.values()),
            whole=not shares,
            up=world.usable(host),
        )
        if node is not None and node.asked:
            continue  # it serves nobody new
        if room.up or (node is not None and node.record.state in COMING):
            fleet.append(room)
        elif node is not None and node.record.state is NodeState.JOINED and our_drain(view.drained):
            fleet.append(room)  # it is being undrained
        elif node is not None and node.record.state is NodeState.DRAINING:
            # it can stay if it has not been told to stop: undraining is faster than buying
            if node.record.stop_sent_at is None and not foreign_drain:
                leaving.append(room)
        elif node is None and not view.online and not foreign_drain and not shares:
            free.append(host)
    mine = {host for host, node in world.nodes.items() if node.record.pool == name}
    closed, until_at = _closed(world, name, now)
    return PoolState(
        name=name,
        provider=table.provider,
        cores=table.cores,
        gpus=table.gpus,
        properties=frozenset({world.config.property_of(name), *table.properties}),
        declared=world.declared[name],
        fleet=(*fleet, *leaving),
        free=tuple(free),
        max_nodes=table.max_nodes,
        unusable=len(mine - {room.host for room in (*fleet, *leaving)}),
        failing=name in world.cooldowns,
        closed=closed,
        closed_until_at=until_at,
    )


def _closed(world: World, pool: str, now: float) -> tuple[str, float | None]:
    if world.paused:
        return "buying is paused; an administrator resumes it with `flux burst resume`", None
    provider = world.config.pool[pool].provider
    if provider not in world.listings:
        # unknown is not absent: nothing is bought before it is known what is there
        return f"what provider {provider} already runs is not known yet", None
    cooling = world.cooldowns.get(pool)
    if cooling is not None and cooling.until_at > now:
        return f"left alone after a failure: {cooling.reason}", cooling.until_at
    return "", None


def wanted_warm(world: World) -> dict[str, int]:
    """How many nodes each pool should have whether jobs need them or not."""
    wanted = {name: pool.keep_warm for name, pool in world.config.pool.items() if pool.keep_warm}
    for hold in world.holds.values():
        wanted[hold.pool] = max(wanted.get(hold.pool, 0), hold.nodes)
    return wanted


def _standing_demand(world: World, pool: str) -> Demand:
    """One whole node of a pool: what is asked for when the service starts, so that there is something to show."""
    table = world.config.pool[pool]
    return Demand(nodes=1, slots=1, cores_per_slot=table.cores, gpus_per_slot=table.gpus, exclusive=True)


def _fresh_answers(world: World, now: float) -> Answers:
    """The answers that may still be used. A refusal that names no time to ask again stays for long."""
    for key in [key for key, (at, _) in world.answers.items() if at + ANSWER_KEPT_S <= now]:
        del world.answers[key]

    def fresh(at: float, answers: Sequence[Offer | Refusal]) -> bool:
        if now < at + 1.0:
            return True  # a provider may name a time that is past
        if any(isinstance(no, Refusal) and no.retry_at is not None and no.retry_at <= now for no in answers):
            return False
        return now < at + ANSWER_TTL_S or all(isinstance(no, Refusal) and no.retry_at is None for no in answers)

    return {key: answers for key, (at, answers) in world.answers.items() if fresh(at, answers)}


def _same(one: Verdict, other: Verdict | None) -> bool:
    """Whether nothing worth telling has changed; the sequence of its hosts is not."""
    if other is None or set(one.hosts) != set(other.hosts):
        return False
    return dataclasses.replace(one, hosts=()) == dataclasses.replace(other, hosts=())


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
