"""Tell each job's story in its memo."""

from __future__ import annotations

from typing import Any

from fluxburst import jobspec
from fluxburst.controller import resubmit
from fluxburst.controller.effects import Memo
from fluxburst.controller.world import Job, Tick, World
from fluxburst.jobid import f58
from fluxburst.model import VerdictKind

MEMOS_AT_ONCE = 64
"""Memos under way at one time: the rest follow as these are answered, so that 10,000 jobs do not flood the broker."""


def stage(world: World, tick: Tick) -> None:
    if not world.caught_up:
        return
    room = MEMOS_AT_ONCE - tick.count(Memo)
    for job_id in list(world.untold):
        if room <= 0:
            break
        world.untold.discard(job_id)
        job = world.jobs.get(job_id)
        if job is None:
            continue
        changed = untold(world, job)
        if changed:
            if tick.do(Memo(job.id, changed)):
                room -= 1
            else:
                world.untold.add(job_id)


def untold(world: World, job: Job) -> dict[str, Any]:
    """What of its story the job's memo does not say."""
    return {key: value for key, value in story(world, job).items() if job.memo.get(key) != value}


def story(world: World, job: Job) -> dict[str, Any]:
    """``burst`` in the job's memo: pool, state and reason; None clears a key."""
    if job.lost_host:
        # told at the exception: a job that lost its node ends some 15 ms later, and an ended job takes no memo
        sent = job.id in world.resubmissions or job.resubmitted_as is not None
        again = "; it is submitted again" if sent else ""
        told: dict[str, Any] = {
            "pool": world.pool_of[job.lost_host],
            "state": "lost",
            "reason": f"{job.lost_host} was lost{again}",
        }
    elif job.allocated_at is not None:
        pools = sorted({world.pool_of[share.host] for share in job.allocation if share.host in world.pool_of})
        if not pools:
            # a job that never left home keeps an untouched memo
            return {"state": "home", "pool": None, "reason": "it started at home"} if job.memo else {}
        # said beforehand, as the loss itself may leave no time for a memo
        promise = "; submitted again if one is lost" if resubmit.promised(world, job) else ""
        told = {
            "pool": pools[0],
            "state": "running",
            "reason": f"it started on nodes of {', '.join(pools)}{promise}",
        }
    elif job.verdict is None or (job.verdict.kind is VerdictKind.HOME and not job.memo):
        return {}
    else:
        told = {"pool": job.verdict.pool or None, "state": str(job.verdict.kind), "reason": job.verdict.reason}
    former = jobspec.resubmit_of(job.spec)
    if former is not None:
        told["resubmit_of"] = f58(former)
    if job.resubmitted_as is not None:
        told["resubmitted_as"] = f58(job.resubmitted_as)
    return told
