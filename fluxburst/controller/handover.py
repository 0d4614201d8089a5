"""Queue mode: move a pending job to its pool's queue once its whole gang is up, and back if the gang vanishes."""

from __future__ import annotations

from fluxburst import durations
from fluxburst.controller.effects import Move, SetQueue
from fluxburst.controller.world import Job, Tick, World
from fluxburst.model import JobId, VerdictKind

IN_VAIN_LEAST_S = 60.0
"""However short a pool's idle_timeout is, the scheduler has this long to start a job on nodes that are up."""


def stage(world: World, tick: Tick) -> None:
    if not world.caught_up:
        return
    for job_id in sorted(world.placed):
        _in_vain(world, tick, job_id)
    if world.config.mode == "open":
        return
    _own_queues(world, tick)
    for job_id in sorted({*world.placed, *world.lent}):
        job = world.jobs.get(job_id)
        if job is None or not job.pending:
            continue
        if job.queue in world.pool_queues:
            _back(world, tick, job)
        elif job.verdict is not None and job.verdict.kind in (VerdictKind.COMING, VerdictKind.BURST):
            queue = world.config.queue_of(job.verdict.pool)
            up = all(world.usable(host) for host in job.verdict.hosts)
            if up and world.queue_states.get(queue) and tick.do(Move(job.id, queue)):
                world.lend(job)


def _in_vain(world: World, tick: Tick, job_id: JobId) -> None:
    """Stop paying for a job that does not start although its nodes are up: a queue is stopped, a policy holds it."""
    job = world.jobs.get(job_id)
    if job is None or job.verdict is None:
        return
    if not job.pending or not job.verdict.hosts or not all(world.usable(host) for host in job.verdict.hosts):
        job.ready_at = None
        return
    if job.ready_at is None:
        job.ready_at = tick.now
    patience_s = max(world.config.pool[job.verdict.pool].idle_most_s(), IN_VAIN_LEAST_S)
    if tick.at(job.ready_at + patience_s):
        policy = world.config.policy
        pause_s = min(policy.cooldown * 2 ** min(job.stuck_times, 16), policy.cooldown_max)
        refused = world.store.latest(f"job/{job.id}", "not moved")
        why = f"Flux refused to move it: {refused.data['error']}" if refused else "see `flux queue status`"
        job.stuck = f"its nodes were up for {durations.show(patience_s)} and it did not start; {why}"
        job.stuck_until_at, job.stuck_times, job.ready_at = tick.now + pause_s, job.stuck_times + 1, None
        world.unplanned.add(job.id)
        world.plan_due = True


def _back(world: World, tick: Tick, job: Job) -> None:
    if job.home_queue in world.pool_queues:
        return  # it was submitted there, and waits there
    pool = world.pool_queues[job.queue]
    demand = job.candidate.demand
    usable = sum(world.usable(host) for host in world.declared[pool])
    # under a cap it must not start where nothing is reserved for it
    unpaid = world.ledger.capped and job.verdict is not None and job.id not in world.placed
    if demand is not None and (usable < max(demand.nodes, 1) or job.stuck_until_at > tick.now or unpaid):
        tick.do(Move(job.id, job.home_queue))


def _own_queues(world: World, tick: Tick) -> None:
    """The pools' queues run and the staging queue never does, whatever `flux queue start -a` did before."""
    for queue in world.pool_queues:
        if not world.queue_states.get(queue):
            tick.do(SetQueue(queue, started=True))
    if world.queue_states.get(world.config.staging_queue) is not False:
        tick.do(SetQueue(world.config.staging_queue, started=False))
