"""Send a job again that was lost with its node, where the site wants that."""

from __future__ import annotations

import dataclasses

from fluxburst import jobspec
from fluxburst.controller.effects import Resubmit
from fluxburst.controller.world import Job, Resubmission, Tick, World


def stage(world: World, tick: Tick) -> None:
    if not world.caught_up or world.config.policy.on_node_loss != "resubmit":
        return
    for job_id, job in sorted(world.lost.items()):
        if job.lost_host is not None and _wanted(world, tick, job):
            world.resubmissions[job_id] = Resubmission(job.lost_host, jobspec.attempt(job.spec) + 1, job.urgency)
            world.save_resubmissions()
            world.untold.add(job_id)
    world.lost.clear()
    if not world.resubmissions:
        return
    sent = {of: job.id for job in world.jobs.values() if (of := jobspec.resubmit_of(job.spec)) is not None}
    for job_id, entry in list(world.resubmissions.items()):
        if job_id in sent:
            # the submission went out before a crash, its answer did not come back
            world.resubmitted(tick.now, job_id, sent[job_id])
        else:
            tick.do(Resubmit(job_id, **dataclasses.asdict(entry)))


def promised(world: World, job: Job) -> bool:
    """Whether a job will be submitted again should one of its nodes be lost."""
    policy = world.config.policy
    return (
        policy.on_node_loss == "resubmit"
        and job.userid == world.facts.owner_uid
        and jobspec.attempt(job.spec) < policy.max_resubmits
    )


def _wanted(world: World, tick: Tick, job: Job) -> bool:
    if job.id in world.resubmissions:
        return False
    history = world.store.history(f"job/{job.id}")
    if any(entry.kind == "resubmitted" for entry in history):
        return False  # before a restart, in which the journal told of the loss once more
    if job.userid != world.facts.owner_uid:
        # what the service submits runs as the instance's owner, which another user's job must not
        world.store.log(tick.now, f"job/{job.id}", "not resubmitted", reason="it belongs to another user")
        return False
    if jobspec.attempt(job.spec) >= world.config.policy.max_resubmits:
        world.store.log(tick.now, f"job/{job.id}", "not resubmitted", reason="[policy] max_resubmits is reached")
        return False
    return True
