"""Queue mode: move a pending job to its pool's queue once its whole gang is up, and back if the gang vanishes."""

from __future__ import annotations

from fluxburst.controller.effects import Move, SetQueue
from fluxburst.controller.world import Job, Tick, World
from fluxburst.model import VerdictKind


def stage(world: World, tick: Tick) -> None:
    if not world.caught_up or world.config.mode == "open":
        return
    _own_queues(world, tick)
    for job_id in sorted({*world.placed, *world.lent}):
        job = world.jobs.get(job_id)
        if job is None or not job.pending or job.stuck:
            continue
        if job.queue in world.pool_queues:
            _back(world, tick, job)
        elif job.verdict is not None and job.verdict.kind in (VerdictKind.COMING, VerdictKind.BURST):
            queue = world.config.queue_of(job.verdict.pool)
            up = all(world.usable(host) for host in job.verdict.hosts)
            if up and world.queue_states.get(queue) and tick.do(Move(job.id, queue)):
                world.lend(job)


def _back(world: World, tick: Tick, job: Job) -> None:
    if job.home_queue in world.pool_queues:
        return  # it was submitted there, and waits there
    pool = world.pool_queues[job.queue]
    demand = job.candidate.demand
    usable = sum(world.usable(host) for host in world.declared[pool])
    if demand is not None and usable < max(demand.nodes, 1):
        tick.do(Move(job.id, job.home_queue))


def _own_queues(world: World, tick: Tick) -> None:
    """The pools' queues run and the staging queue never does, whatever `flux queue start -a` did before."""
    for queue in world.pool_queues:
        if not world.queue_states.get(queue):
            tick.do(SetQueue(queue, started=True))
    if world.queue_states.get(world.config.staging_queue) is not False:
        tick.do(SetQueue(world.config.staging_queue, started=False))
