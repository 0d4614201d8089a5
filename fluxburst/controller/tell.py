"""Tell each job's story in its memo, and send lost jobs again where the site wants that."""

from __future__ import annotations

from typing import Any

from fluxburst import jobspec
from fluxburst.controller.effects import Memo, Resubmit
from fluxburst.controller.world import Job, Tick, World
from fluxburst.model import JobId, VerdictKind

MEMOS_AT_ONCE = 64
"""Memos under way at one time: the rest follow as these are answered, so that 10,000 jobs do not flood the broker."""


def stage(world: World, tick: Tick) -> None:
    if not world.caught_up:
        return
    if world.config.policy.on_node_loss == "resubmit":
        _resubmit(world, tick)
    room = MEMOS_AT_ONCE - tick.count(Memo)
    for job_id in list(world.untold):
        if room <= 0:
            break
        world.untold.discard(job_id)
        job = world.jobs.get(job_id)
        if job is None:
            continue
        changed = {key: value for key, value in story(world, job).items() if job.memo.get(key) != value}
        if changed:
            if tick.do(Memo(job.id, changed)):
                room -= 1
            else:
                world.untold.add(job_id)


def story(world: World, job: Job) -> dict[str, Any]:
    """``burst`` in the job's memo: pool, state and reason; None clears a key."""
    if job.lost_host:
        # told at the exception: a job that lost its node ends some 15 ms later, and an ended job takes no memo
        again = "; it is submitted again" if str(job.id) in world.resubmits else ""
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
        told = {
            "pool": pools[0],
            "state": "running",
            "reason": f"it started on nodes of {', '.join(pools)}",
        }
    elif job.verdict is None or (job.verdict.kind is VerdictKind.HOME and not job.memo):
        return {}
    else:
        told = {"pool": job.verdict.pool or None, "state": str(job.verdict.kind), "reason": job.verdict.reason}
    for old, entry in world.resubmits.items():
        if entry["new"] == job.id:
            told["resubmit_of"] = old
        elif old == str(job.id) and entry["new"] is not None:
            told["resubmitted_as"] = str(entry["new"])
    return told


def _resubmit(world: World, tick: Tick) -> None:
    for job in world.jobs.values():
        if not job.lost_host or str(job.id) in world.resubmits:
            continue
        attempt = 1 + max((entry["attempt"] for entry in world.resubmits.values() if entry["new"] == job.id), default=0)
        if attempt > world.config.policy.max_resubmits:
            continue
        world.resubmits[str(job.id)] = {
            "host": job.lost_host, "attempt": attempt, "urgency": job.urgency, "new": None,
        }  # fmt: skip
        world.store.set_setting("resubmits", world.resubmits)
    marked = {of: job.id for job in world.jobs.values() if (of := resubmit_of(job)) is not None}
    for old, entry in world.resubmits.items():
        if entry["new"] is None:
            if old in marked:
                # the submission went out before a crash, its answer did not come back
                entry["new"] = marked[old]
                world.store.set_setting("resubmits", world.resubmits)
            else:
                tick.do(Resubmit(JobId(int(old)), entry["urgency"]))


def resubmit_of(job: Job) -> str | None:
    """The id of the job that this one is sent again for, from its own jobspec."""
    user = (job.spec.get("attributes") or {}).get("user") or {}
    mark = user.get(jobspec.MARK) if isinstance(user, dict) else None
    return str(mark["resubmit_of"]) if isinstance(mark, dict) and "resubmit_of" in mark else None
