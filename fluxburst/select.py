"""Which pending jobs may burst, and what each of them asks for."""

from __future__ import annotations

import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fluxburst import durations, jobspec
from fluxburst.config import BurstConfig, Pool
from fluxburst.errors import FluxburstError, JobspecError, OptionError
from fluxburst.model import Demand, JobId


@dataclass(frozen=True, slots=True)
class BurstOptions:
    """A job's ``burst.*`` options. ``wait_s`` counts from submission; None in ``spot`` leaves it to the pool."""

    pool: str = ""
    provider: str = ""
    wait_s: float = 0.0
    max_usd: float | None = None
    spot: bool | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that asked to burst: what it needs, or why it is refused. Made once, at submit.

    ``pools`` are the pools that the job's own options admit, in burst.toml's order.
    """

    job_id: JobId
    userid: int
    demand: Demand | None
    options: BurstOptions
    pools: tuple[str, ...] = ()
    refusal: str = ""


def is_burstable(spec: Mapping[str, Any]) -> bool:
    """Whether ``attributes.system.burstable`` is true, 1 or a table. Its mere presence is not enough."""
    value = jobspec.system(spec).get("burstable")
    return value is True or isinstance(value, Mapping) or (isinstance(value, int | float) and value == 1)


def options(spec: Mapping[str, Any]) -> BurstOptions:
    """The options below ``burst`` (and below ``burstable``, where that is a table).

    Raises:
        OptionError: an option is unknown or malformed; the message names the key.
    """
    found: dict[str, Any] = {}
    for table in ("burstable", "burst"):
        value = jobspec.system(spec).get(table)
        if isinstance(value, Mapping):
            found |= {key: (f"{table}.{key}", item) for key, item in value.items()}
        elif table == "burst" and value is not None:
            raise OptionError(f"burst={value!r}: is no option itself; write burst.KEY=VALUE with {_KEYS}")
    read: dict[str, Any] = {}
    for key, (name, value) in found.items():
        if key not in _READERS:
            raise OptionError(f"{name}: unknown option; {_KEYS} are known")
        field, reader = _READERS[key]
        try:
            read[field] = reader(value)
        except (ValueError, TypeError):
            raise OptionError(f"{name}={value!r}: {_FORMS[key]}") from None
    return BurstOptions(**read)


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _usd(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise TypeError
    return float(value)


def _bool(value: object) -> bool:
    if not isinstance(value, bool) and value not in (0, 1):
        raise TypeError
    return bool(value)


_READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "pool": ("pool", _name),
    "provider": ("provider", _name),
    "wait": ("wait_s", durations.parse),
    "max_usd": ("max_usd", _usd),
    "spot": ("spot", _bool),
}
_FORMS = {
    "pool": "must be a pool's name",
    "provider": "must be a provider's name",
    "wait": "must be a duration such as 90s, 5m or 1.5h",
    "max_usd": "must be a number of US dollars, 0 or more",
    "spot": "must be true or false",
}
_KEYS = ", ".join(f"burst.{key}" for key in _READERS)


def candidate(
    job_id: JobId,
    userid: int,
    spec: Mapping[str, Any],
    config: BurstConfig,
    queues: Mapping[str, Any],
    choose: Callable[[Mapping[str, Any]], bool | str | None],
) -> Candidate:
    """Judge one burstable job by what does not change while it waits. Never raises for a job's own mistakes.

    ``queues`` is the instance's ``[queues]`` table; ``choose`` asks the plugins (``fluxburst_choose_job``).
    """
    wanted = BurstOptions()
    try:
        wanted = options(spec)
        demand = jobspec.demand(spec, constraint=_own_constraint(spec, config, queues), spot=wanted.spot)
        pools = _pools(wanted, spec, config)
        pools = _admit(job_id, userid, spec, wanted, demand, pools, config, choose)
    except FluxburstError as error:
        return Candidate(job_id, userid, None, wanted, refusal=str(error))
    return Candidate(job_id, userid, demand, wanted, pools)


def _own_constraint(
    spec: Mapping[str, Any], config: BurstConfig, queues: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The constraints that are the job's own, beside its queue's.

    Flux replaces all constraints when a job changes its queue, and refuses the change when the job has any of its own
    (job-manager's update-queue plugin); such a job can only burst from the pool's own queue.
    """
    constraint, queue = jobspec.system(spec).get("constraints"), jobspec.queue(spec)
    jobspec.canonical(constraint)
    if config.mode == "open" or not constraint or queue in config.pool_queues():
        return constraint
    requires = (queues.get(queue) or {}).get("requires")
    if requires and constraint == {"properties": list(requires)}:
        return None
    names = ", ".join(sorted(config.pool_queues()))
    raise JobspecError(
        "constraints: Flux moves no job that has constraints of its own to another queue; "
        f"submit it without --requires, or straight to a pool's queue with -q ({names})"
    )


def _pools(wanted: BurstOptions, spec: Mapping[str, Any], config: BurstConfig) -> tuple[str, ...]:
    if wanted.pool and wanted.pool not in config.pool:
        raise OptionError(f"burst.pool={wanted.pool}: no such pool; there is {', '.join(config.pool)}")
    providers = {pool.provider for pool in config.pool.values()}
    if wanted.provider and wanted.provider not in providers:
        raise OptionError(f"burst.provider={wanted.provider}: no pool has it; there is {', '.join(sorted(providers))}")
    submitted_to = config.pool_queues().get(jobspec.queue(spec))
    pools = tuple(
        name
        for name, pool in config.pool.items()
        if wanted.pool in ("", name) and wanted.provider in ("", pool.provider) and submitted_to in (None, name)
    )
    if not pools:
        raise OptionError("burst.pool, burst.provider and the job's queue together leave no pool; drop one of them")
    return pools


def _admit(
    job_id: JobId,
    userid: int,
    spec: Mapping[str, Any],
    wanted: BurstOptions,
    demand: Demand,
    pools: tuple[str, ...],
    config: BurstConfig,
    choose: Callable[[Mapping[str, Any]], bool | str | None],
) -> tuple[str, ...]:
    """The pools that the site admits the job to."""
    system, queue = jobspec.system(spec), jobspec.queue(spec)
    answer = choose(
        {
            "id": job_id,
            "userid": userid,
            "queue": queue,
            "bank": system.get("bank", ""),
            "project": system.get("project", ""),
            "options": wanted,
            "jobspec": spec,
        }
    )
    if isinstance(answer, str):
        raise OptionError(answer)
    if answer is False:
        raise OptionError("a plugin of this site refused the job without a reason")
    if answer is True:
        return pools
    rules = config.select
    if rules.users and userid not in rules.users and user_name(userid) not in rules.users:
        raise OptionError(f"user {user_name(userid)} may not burst; ask for an entry in [select] users")
    if rules.queues and queue not in rules.queues and queue not in (config.staging_queue, *config.pool_queues()):
        raise OptionError(f"jobs of queue {queue!r} may not burst; [select] queues admits {', '.join(rules.queues)}")
    if rules.max_nodes_per_job is None:
        return pools
    least = {name: _least_nodes(demand, config.pool[name]) for name in pools}
    if min(least.values()) > rules.max_nodes_per_job:
        raise OptionError(
            f"{min(least.values())} nodes are more than [select] max_nodes_per_job = {rules.max_nodes_per_job}"
        )
    return tuple(name for name in pools if least[name] <= rules.max_nodes_per_job)


def _least_nodes(demand: Demand, pool: Pool) -> int:
    """How many nodes of a pool the demand takes; a job that counts only slots may spread over many."""
    return demand.nodes or -(-demand.slots // (demand.slots_on(pool.cores, pool.gpus) or 1))


def user_name(userid: int) -> str:
    """A user's name; the number, where this machine knows none."""
    try:
        return pwd.getpwuid(userid).pw_name
    except KeyError:
        return str(userid)
