"""Record the world first: events from Flux and the outcomes of effects. Decides nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fluxburst import hostlist, jobspec
from fluxburst.controller import effects as fx
from fluxburst.controller.home import estimate
from fluxburst.controller.tell import untold
from fluxburst.controller.world import Hold, Job, Listing, Tick, World, our_drain
from fluxburst.errors import (
    FluxburstError,
    InvalidOrder,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
)
from fluxburst.flux.protocol import CaughtUp, JobEvent, ResourceEvent
from fluxburst.model import Host, JobId, Refusal
from fluxburst.offers import scope_key
from fluxburst.select import candidate, is_burstable
from fluxburst.states import COMING, NodeState, Why

ANSWERS_S = 0.1
"""So long the answers of providers that came first may wait for the others."""
RETRY_FIRST_S = 1.0
RETRY_MOST_S = 60.0
RESUBMIT_TRIES = 10
CHECK_FIRST_S = 1.0
CHECK_MOST_S = 30.0

Choose = Callable[[Mapping[str, Any]], bool | str | None]


UNEVENTFUL = ("submit", "depend", "start", "finish")
"""Job events after which no stage has anything to do; a job that becomes eligible opens the batching window."""
MOVED = frozenset({"attributes.system.queue", "attributes.system.constraints"})
"""What is updated of a job that goes to another queue."""
OF_FRESH = ("priority", "alloc", "free", "clean")
"""Job events that only planning may have to do with, while the job has no verdict."""


def apply(world: World, tick: Tick, event: JobEvent | ResourceEvent | CaughtUp | fx.Done, choose: Choose) -> None:
    """Record one event, and whether a stage may have something to do because of it."""
    match event:
        case JobEvent():
            _job_event(world, tick, event, choose)
        case ResourceEvent():
            _resource_event(world, event)
        case CaughtUp():
            world.caught_up = True
            world.forget_homes_of_ended()
            world.stale = world.plan_due = True
        case fx.Done():
            _done(world, tick, event)
            if event.error is not None or not _expected(world, event.effect):
                world.stale = True


def _expected(world: World, effect: fx.Effect) -> bool:
    """Whether an effect's success is no news to any stage: Flux's own event tells it, or it was but asked for."""
    match effect:
        case fx.Drain() | fx.Undrain() | fx.StopBrokers():
            return True
        case fx.Memo():
            return not world.untold
        case fx.ListNodes():
            return not world.in_state(NodeState.RELEASING)
        case fx.Ask():
            return True  # the next plan has been arranged for
    return False


def _job_event(world: World, tick: Tick, event: JobEvent, choose: Choose) -> None:
    if event.name == "submit":
        _submitted(world, event, choose)
        _at_home(world, event)
        return
    _at_home(world, event)
    if event.name == "alloc":
        hosts = tuple(share.host for share in event.allocation if share.host in world.pool_of)
        if hosts:
            world.hosts_of_job[event.job_id] = hosts
            for share in event.allocation:
                if share.host in world.pool_of:
                    world.usage.setdefault(share.host, {})[event.job_id] = share
                    world.dirty.add(share.host)
                    _used(world, share.host)
            world.stale = True
            world.plan_due = world.plan_due or event.job_id not in world.jobs
    elif event.name in ("free", "clean"):
        for host in world.hosts_of_job.pop(event.job_id, ()):
            world.dirty.add(host)
            shares = world.usage[host]
            del shares[event.job_id]
            if not shares:
                del world.usage[host]
            world.stale = world.plan_due = True
    job = world.jobs.get(event.job_id)
    if job is not None:
        _burstable_job_event(world, tick, job, event)


def _at_home(world: World, event: JobEvent) -> None:
    job = world.jobs.get(event.job_id)
    world.home.job_event(event, None if job is None else job.candidate.demand)
    if job is None and event.name == "priority" and world.hopeful:
        world.plan_due = world.plan_anew = True  # it may stand before them at home


def _used(world: World, host: Host) -> None:
    node = world.nodes.get(host)
    if node is not None and not node.used:
        node.used = True
        if world.caught_up:  # what the journal tells of the past has warmed the pool then
            world.warm(node.record.pool)


def _submitted(world: World, event: JobEvent, choose: Choose) -> None:
    spec = event.jobspec or {}
    if not is_burstable(spec):
        return
    userid = int(event.context.get("userid", -1))
    queue = jobspec.system(spec).get("queue", "")
    home_queue = world.home_queues.get(str(event.job_id), queue)
    slim = {name: spec[name] for name in ("version", "resources", "attributes") if name in spec}
    asked = slim
    if home_queue != queue:
        # a job that we moved before a restart: judge what was submitted, which had no constraint of its own
        asked = jobspec.with_system(slim, queue=home_queue, constraints=None)
    world.jobs[event.job_id] = Job(
        id=event.job_id,
        userid=userid,
        submitted_at=event.at,
        urgency=int(event.context.get("urgency", 16)),
        spec=slim,
        candidate=_judge(world, event.job_id, userid, asked, choose),
        home_queue=home_queue,
        queue=queue,
    )
    if queue in world.pool_queues:
        world.lent.add(event.job_id)


def _judge(world: World, job_id: JobId, userid: int, spec: Mapping[str, Any], choose: Choose) -> Any:
    queues = world.facts.config.get("queues", {})
    return candidate(job_id, userid, spec, world.config, queues, choose)


def _burstable_job_event(world: World, tick: Tick, job: Job, event: JobEvent) -> None:
    if event.name == "annotations":
        home_at = estimate(event.context)
        if home_at != job.home_at:
            later = home_at is not None and (job.home_at is None or home_at > job.home_at)
            job.home_at = home_at
            world.unplanned.add(job.id)
            # what waits for home does so all the more if that serves it sooner; and what is served does not wait
            world.plan_due = world.plan_due or (later and job.ripe and job.id not in world.placed)
        return
    was_pending = job.pending
    if event.name == "memo":
        _noted(world, job, event.context)
        return
    if event.name not in UNEVENTFUL:
        world.untold.add(job.id)
        world.unplanned.add(job.id)
        if event.name not in OF_FRESH or job.verdict is not None or job.id in world.lent:
            world.stale = True
    match event.name:
        case "depend":
            job.depends = False
        case "priority":
            job.priority = int(event.context["priority"])
            job.home_at = None  # the scheduler tells it anew
        case "urgency":
            job.urgency = int(event.context["urgency"])
        case "alloc":
            job.home_at = None
            job.allocation = event.allocation
            job.allocated_at = event.at
            world.pays(tick.now, job)
            hosts = hostlist.fold(share.host for share in event.allocation)
            _tell_once(world, job, event, "started", hosts=hosts, waited_s=round(event.at - job.submitted_at, 3))
        case "exception" if int(event.context.get("severity", 1)) == 0:
            kind, note = str(event.context.get("type", "")), str(event.context.get("note", ""))
            job.exception = f"{kind}: {note}" if note else kind or "unknown"
            on = world.hosts_of_job.get(job.id, ())
            for host in on:
                if f"node failure on {host} (" in note:  # bulkexec.c of Flux's job-exec
                    world.lose(job, host)
            if on and kind == "exec" and job.lost_host is None:
                # a broker that leaves in good order fails its jobs with another note, before it goes offline
                world.suspect(job, tick.now)
        case "jobspec-update":
            _updated(world, job, event.context)
        case "invalidate":
            # refused at submit after all; nothing follows
            _forget(world, job)
        case "clean":
            _tell_once(world, job, event, "ended", failure=job.exception)
            _forget(world, job)
    ours = event.name == "jobspec-update" and "attributes.system.queue" in event.context
    if event.name == "urgency" or (event.name == "jobspec-update" and not ours):
        job.stuck_until_at = 0.0  # its owner changed something about it
    if job.pending != was_pending or event.name in ("priority", "clean", "invalidate", "jobspec-update"):
        world.plan_due = world.plan_due or _concerns_others(world, job, event)
    if job.pending and not was_pending and not job.ripe:
        # a job that home can start at once does so within the batching window and never reaches the plan
        world.unripe.add(job.id)
        first = world.window[0] if world.window else tick.now
        world.window = (first, tick.now)


def _concerns_others(world: World, job: Job, event: JobEvent) -> bool:
    """Whether a plan may come to something else by what has happened to a job.

    Not within its batching window; not when it starts or ends at home and nothing was booked for it; and not when it
    takes what was booked for it, or goes where that is.
    """
    if event.name == "jobspec-update" and not MOVED.issuperset(event.context):
        return True
    verdict = job.verdict
    if job.allocated_at is not None:
        if any(world.plan.kept.values()):
            return True  # what was kept back for it is free again
        booked = verdict is not None and {*verdict.hosts}
        return bool(booked) and booked != {share.host for share in job.allocation}
    if not job.pending:
        return True
    if verdict is None or job.id not in world.placed:
        return job.ripe
    return event.name != "priority" and world.pool_queues.get(job.queue) != verdict.pool


def _noted(world: World, job: Job, memo: Mapping[str, Any]) -> None:
    """Take in the job's memo; what somebody else has put into our part of it is told anew."""
    burst = memo.get("burst")
    if isinstance(burst, Mapping):
        job.memo = {**job.memo, **burst}
        if untold(world, job):
            world.untold.add(job.id)
            world.stale = True


def _forget(world: World, job: Job) -> None:
    del world.jobs[job.id]
    world.untold.discard(job.id)
    world.unplace(job.id)
    world.hopeful.discard(job.id)
    world.unplanned.add(job.id)
    world.lent.discard(job.id)
    world.forget_home(job.id)


def _tell_once(world: World, job: Job, event: JobEvent, kind: str, **data: Any) -> None:
    """A line in the job's log, unless it stands there from before a restart: the journal's past tells it again."""
    if world.caught_up or all(entry.kind != kind for entry in world.store.history(f"job/{job.id}")):
        world.store.log(event.at, f"job/{job.id}", kind, **data)


def _updated(world: World, job: Job, updates: Mapping[str, Any]) -> None:
    ours = {world.config.staging_queue, *world.pool_queues}
    prefix = "attributes.system."
    changed = {path.removeprefix(prefix): value for path, value in updates.items() if path.startswith(prefix)}
    job.spec = jobspec.with_system(job.spec, **changed)
    job.home_at = None  # as for a new priority
    queue = jobspec.system(job.spec).get("queue", "")
    if queue != job.queue:
        _enters(world, job, queue)
        if queue not in ours:
            job.home_queue = queue
            world.forget_home(job.id)
    demand = job.candidate.demand
    if demand is not None and "attributes.system.duration" in updates:
        duration_s = float(updates["attributes.system.duration"])
        job.candidate = dataclasses.replace(job.candidate, demand=dataclasses.replace(demand, duration_s=duration_s))


def _enters(world: World, job: Job, queue: str) -> None:
    world.unplanned.add(job.id)
    job.queue = queue
    if queue in world.pool_queues:
        world.lent.add(job.id)
    else:
        world.lent.discard(job.id)


def _resource_event(world: World, event: ResourceEvent) -> None:
    world.home.resource_event(event)
    if event.name in ("offline", "drain") and world.hopeful:
        world.plan_anew = True  # there may be less of home
    for host in event.hosts:
        view = world.hosts.get(host)
        if view is None:
            continue
        world.dirty.add(host)
        match event.name:
            case "online":
                view.online = True
            case "offline":
                view.online = False
            case "drain" | "undrain":
                view.drained = event.reason if event.name == "drain" else None
                if our_drain(view.drained):
                    world.drained_by_us.add(host)
                else:
                    world.drained_by_us.discard(host)
        world.unsettled[host] = None
        world.stale = world.plan_due = True


def _done(world: World, tick: Tick, done: fx.Done) -> None:
    for its_key in fx.keys(done.effect):
        if done.error is None:
            world.retries.pop(its_key, None)
        else:
            count = world.retries[its_key][0] + 1 if its_key in world.retries else 1
            world.retries[its_key] = (count, done.at + min(RETRY_FIRST_S * 2 ** min(count - 1, 16), RETRY_MOST_S))
    match done.effect:
        case fx.Launch():
            _launched(world, tick, done.effect, done)
        case fx.ListNodes(provider):
            if done.error is None:
                if provider not in world.listings:
                    world.stale = world.plan_due = True
                world.listings[provider] = Listing(done.begun_at, done.at, tuple(done.result))
        case fx.Ask(provider, demand):
            _answered(world, tick, provider, demand, done)
        case fx.Move(job_id, queue):
            _moved(world, tick, job_id, queue, done)
        case fx.Memo(job_id, burst):
            job = world.jobs.get(job_id)
            if job is not None and done.error is None:
                job.memo = {**job.memo, **burst}
        case fx.CheckAllocated(hosts):
            if done.error is None:
                _checked(world, hosts, done)
        case fx.Release(provider, node_ids):
            if done.error is None:
                for node in world.nodes.values():
                    if node.record.provider == provider and node.record.node_id in node_ids:
                        node.released_at, node.releases = done.at, node.releases + 1
            else:
                world.store.log(tick.now, f"provider/{provider}", "release failed", error=describe(done.error))
        case fx.StopBrokers():
            # an error is ordinary, as the command's connection ends with the broker; stop_timeout is the judge
            world.retries.pop((fx.StopBrokers,), None)
        case fx.SetQueue(queue, started):
            if done.error is None:
                world.queue_states[queue] = started
        case fx.Resubmit(job_id):
            if done.error is None:
                world.resubmitted(tick.now, job_id, done.result)
            elif world.retries[fx.Resubmit, job_id][0] >= RESUBMIT_TRIES:
                world.give_up_resubmission(tick.now, job_id, describe(done.error))


def _launched(world: World, tick: Tick, effect: fx.Launch, done: fx.Done) -> None:
    order = effect.order
    nodes = [
        node for host in order.hosts if (node := world.nodes.get(host)) and node.record.request_id == order.request_id
    ]
    error = done.error
    if error is None:
        for node in nodes:
            if node.record.state is NodeState.PLANNED:
                tick.change(node, NodeState.ORDERED, f"{effect.provider} accepted the order")
        if nodes:
            world.order_taken(order.request_id)
        return
    subject = f"order/{order.request_id}"
    if isinstance(error, ProviderUnavailable) or not isinstance(error, ProviderError):
        # outcome unknown: the records stay, the same request id is tried again, and the listing decides
        world.store.log(tick.now, subject, "launch unclear", error=describe(error), hosts=order.hosts)
        return
    world.retries.pop((fx.Launch, order.request_id), None)
    world.store.log(tick.now, subject, "launch failed", error=describe(error), hosts=order.hosts)
    for node in nodes:
        if node.record.state in COMING:
            tick.change(node, NodeState.RELEASING, f"{Why.LAUNCH_FAILED}: {describe(error)}")
    if nodes:
        world.order_failed(order.request_id, describe(error))
    wait_s = world.config.policy.cooldown_max if isinstance(error, InvalidOrder) else 0.0
    if isinstance(error, RateLimited):
        wait_s = error.retry_after_s or 0.0
    world.cool(scope_key(order.offer, error.scope), order.pool, describe(error), tick.now, wait_s=wait_s)
    world.book.forget(effect.provider)


def _answered(world: World, tick: Tick, provider: str, demand: Any, done: fx.Done) -> None:
    if done.error is None:
        answers = tuple(done.result)
    else:
        again_at = world.retries[fx.Ask, provider, demand][1]
        answers = tuple(
            Refusal(pool, provider, f"could not be asked: {describe(done.error)}", again_at)
            for pool, table in world.config.pool.items()
            if table.provider == provider
        )
    if not world.book.put(provider, demand, done.at, answers) and not world.plan.undecided:
        return
    if tick.count(fx.Ask):
        # the other answers are a moment away: one plan for all of them, but nobody waits long for a slow provider
        world.plan_by(tick.now + ANSWERS_S)
    else:
        world.plan_due = True


def _moved(world: World, tick: Tick, job_id: JobId, queue: str, done: fx.Done) -> None:
    job = world.jobs.get(job_id)
    if done.error is None:
        world.store.log(tick.now, f"job/{job_id}", "moved", queue=queue)
        if job is not None:
            # the journal's jobspec-update says the same, now or a moment later
            _enters(world, job, queue)
    else:
        # it may have started at home meanwhile; otherwise it is tried again, with the pauses of world.retries
        world.store.log(tick.now, f"job/{job_id}", "not moved", queue=queue, error=describe(done.error))


def _checked(world: World, hosts: Collection[Host], done: fx.Done) -> None:
    allocated: frozenset[Host] = done.result
    for host in hosts:
        node = world.nodes.get(host)
        if node is None or node.record.state is not NodeState.DRAINING:
            continue
        if host in allocated:
            # housekeeping may hold it long after the journal's `free`
            node.check_again_at = done.at + min(CHECK_FIRST_S * 2 ** min(node.checks, 16), CHECK_MOST_S)
            node.checks += 1
        else:
            node.checked_at, node.checks = done.begun_at, 0


def describe(error: BaseException) -> str:
    """An error in one line; the type is told where the message was not written for people."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FluxburstError) and text else f"{type(error).__name__}: {text}"


def expire_holds(world: World, tick: Tick) -> None:
    """Drop the holds whose time is over."""
    over: list[Hold] = [hold for hold in world.holds.values() if tick.at(hold.until_at)]
    for hold in over:
        del world.holds[hold.id]
        world.store.log(tick.now, f"pool/{hold.pool}", "hold ended", nodes=hold.nodes, id=hold.id)
        world.plan_due = True
    if over:
        world.save_holds()
