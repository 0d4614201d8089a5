"""What the service says about itself: the answers to its RPCs, as JSON objects."""

from __future__ import annotations

import dataclasses
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeGuard

from fluxburst import __version__, durations, hostlist, plan
from fluxburst.controller.planning import wanted_warm
from fluxburst.controller.tell import story
from fluxburst.controller.world import Hold, Job, Node, World
from fluxburst.errors import RequestError
from fluxburst.flux.protocol import Caller
from fluxburst.jobid import f58
from fluxburst.model import Host, JobId, NodeRecord, Offer
from fluxburst.provider.discovery import Plugins
from fluxburst.states import COMING, NodeState

GUESS_JOIN_S = 60.0
"""What the progress of a boot is measured against where the provider has no guess of its own."""


class ProviderNames(Protocol):
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def kinds(self) -> Mapping[str, str]: ...


class Reports:
    """Answers RPCs out of the world. What changes anything is for the instance's owner alone."""

    def __init__(self, world: World, plugins: Plugins, providers: ProviderNames) -> None:
        self._world = world
        self._plugins = plugins
        self._providers = providers
        self._for_all: Mapping[str, Callable[[Mapping[str, Any], Caller, float], dict[str, Any]]] = {
            "status": self.status,
            "nodes": self.nodes,
            "jobs": self.jobs,
            "explain": self.explain,
            "providers": self.providers,
            "offers": self.offers,
        }
        self._for_owner: Mapping[str, Callable[[Mapping[str, Any], Caller, float], dict[str, Any]]] = {
            "request": self.request,
            "release": self.release,
            "pause": self.pause,
            "resume": self.resume,
        }

    def answer(self, method: str, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        """Answer ``burst.METHOD``.

        Raises:
            RequestError: no such method, not allowed, or what it names does not exist.
        """
        if not isinstance(payload, Mapping):
            raise RequestError(f"burst.{method}: the payload must be a JSON object")
        if method in self._for_owner:
            if not caller.owner:
                raise RequestError(f"burst.{method} is for the owner of this Flux instance only")
            response = self._for_owner[method](payload, caller, now)
            self._world.plan_due = True
            self._world.store.commit()
            return response
        if method not in self._for_all:
            known = ", ".join([*self._for_all, *self._for_owner])
            raise RequestError(f"there is no burst.{method}; there is {known}")
        return self._for_all[method](payload, caller, now)

    def status(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        world = self._world
        warm = wanted_warm(world)
        pools = []
        for name, table in world.config.pool.items():
            mine = [node for node in world.nodes.values() if node.record.pool == name]
            cooling = world.cooldowns.get(name)
            pools.append(
                {
                    "pool": name,
                    "provider": table.provider,
                    "queue": world.config.queue_of(name),
                    "declared": len(world.declared[name]),
                    "states": dict(Counter(str(node.record.state) for node in mine)),
                    "busy": sum(bool(world.usage.get(host)) for host in world.declared[name]),
                    "warm": warm.get(name, 0),
                    "warm_unmet": world.plan.holds.get(name, ""),
                    "cooldown": cooling.reason if cooling and cooling.until_at > now else "",
                    "cooldown_s": max(0.0, cooling.until_at - now) if cooling else 0.0,
                }
            )
        return {
            "version": __version__,
            "cluster": world.config.cluster,
            "mode": world.config.mode,
            "ready": world.caught_up,
            "paused": world.paused,
            "jobs": dict(Counter(state_of(job) for job in world.jobs.values())),
            "nodes": len(world.nodes),
            "nodes_limit": world.config.limits.nodes,
            "pools": pools,
        }

    def nodes(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        world = self._world
        live = [self._node(node, now) for _, node in sorted(world.nodes.items())]
        if not payload.get("all"):
            return {"nodes": live}
        gone = [_record(record) for record in world.store.node_history() if record.state is NodeState.GONE]
        return {"nodes": [*gone, *live]}

    def _node(self, node: Node, now: float) -> dict[str, Any]:
        world, record = self._world, node.record
        order = world.orders.get(record.request_id)
        join_s = (order.offer.join_s if order else None) or GUESS_JOIN_S
        view = world.hosts[record.host]
        return _record(record) | {
            "age_s": now - record.planned_at,
            "join_s": join_s if record.state in COMING else None,
            "online": view.online,
            "drained": view.drained,
            "jobs": [f58(job_id) for job_id in world.usage.get(record.host, {})],
            "idle_votes": node.idle_votes,
        }

    def jobs(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        limit = payload.get("limit", 1000)
        if not _is_int(limit) or limit < 1:
            raise RequestError(f"limit: {limit!r} is not a whole number of 1 or more")
        mine = [job for job in self._world.jobs.values() if caller.owner or job.userid == caller.userid]
        mine.sort(key=lambda job: job.id)
        return {"jobs": [self._job(job, now) for job in mine[:limit]], "total": len(mine)}

    def _job(self, job: Job, now: float) -> dict[str, Any]:
        demand, verdict = job.candidate.demand, job.verdict
        told = story(self._world, job)
        return {
            "id": job.id,
            "f58": f58(job.id),
            "userid": job.userid,
            "queue": job.queue,
            "home_queue": job.home_queue,
            "nodes": demand.nodes if demand else None,
            "slots": demand.slots if demand else None,
            "cores_per_slot": demand.cores_per_slot if demand else None,
            "gpus_per_slot": demand.gpus_per_slot if demand else None,
            "state": state_of(job),
            "pool": told.get("pool") or "",
            "reason": told.get("reason") or (verdict.reason if verdict else ""),
            "hosts": hostlist.fold([share.host for share in job.allocation] or (verdict.hosts if verdict else ())),
            "submitted_at": job.submitted_at,
            "waited_s": (job.allocated_at or now) - job.submitted_at,
        }

    def explain(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        job_id = payload.get("id")
        if not _is_int(job_id) or job_id < 0:
            raise RequestError(f"id: {job_id!r} is no job id")
        job = self._world.jobs.get(JobId(job_id))
        history = self._world.store.history(f"job/{job_id}")
        if not caller.owner and (job is None or job.userid != caller.userid):
            raise RequestError(f"{f58(job_id)} is not an active job of yours")
        if job is None and not history:
            raise RequestError(
                f"{f58(job_id)} is not known here: it was not submitted with --setattr burstable=true, "
                "it started and ended without ever waiting, or there is no such job"
            )
        verdict = job.verdict if job and job.allocated_at is None else None
        return {
            "id": job_id,
            "f58": f58(job_id),
            "active": job is not None,
            "job": self._job(job, now) if job else None,
            "verdict": plan.describe(verdict, now) if verdict else "",
            "pools": [list(reason) for reason in verdict.pool_reasons] if verdict else [],
            "history": [{"at": entry.at, "kind": entry.kind, **entry.data} for entry in history],
        }

    def providers(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        world = self._world
        loaded = []
        for name in self._providers.names:
            kind = self._providers.kinds[name]
            source = next((report for report in self._plugins.reports if kind in report.kinds), None)
            listing = world.listings.get(name)
            loaded.append(
                {
                    "provider": name,
                    "kind": kind,
                    "distribution": source.distribution if source else "",
                    "pools": [pool for pool, table in world.config.pool.items() if table.provider == name],
                    "shrink": str(world.shrink[name]),
                    "listed_s": None if listing is None else now - listing.at,
                    "machines": None if listing is None else len(listing.nodes),
                }
            )
        return {
            "providers": loaded,
            "plugins": [
                {"name": report.name, "distribution": report.distribution, "kinds": list(report.kinds)}
                for report in self._plugins.reports
                if not report.error
            ],
            "skipped": [
                {"name": report.name, "distribution": report.distribution, "error": report.error}
                for report in self._plugins.reports
                if report.error
            ],
        }

    def offers(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        """The latest answers to every demand: offers and refusals, with their age."""
        rows = []
        for (provider, demand), (at, answers) in self._world.answers.items():
            for answer in answers:
                row: dict[str, Any] = {
                    "provider": provider,
                    "pool": answer.pool,
                    "age_s": now - at,
                    "nodes": demand.nodes,
                    "slots": demand.slots,
                    "cores_per_slot": demand.cores_per_slot,
                    "gpus_per_slot": demand.gpus_per_slot,
                }
                if isinstance(answer, Offer):
                    row |= {
                        "instance_type": answer.instance_type,
                        "usd_per_node_hour": answer.usd_per_node_hour,
                        "spot": answer.spot,
                        "zone": answer.zone,
                        "join_s": answer.join_s,
                        "nodes_left": answer.nodes_left,
                        "refusal": "",
                    }
                else:
                    row |= {"refusal": answer.reason, "retry_at": answer.retry_at}
                rows.append(row)
        return {"offers": rows}

    def request(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        """Hold nodes in a pool: ``{"pool", "nodes", "for_s"}``; null is until released, 0 nodes end all holds."""
        world, pool, nodes = self._world, payload.get("pool"), payload.get("nodes")
        for_s = payload.get("for_s")
        if pool not in world.config.pool:
            raise RequestError(f"pool {pool!r}: no such pool; there is {', '.join(world.config.pool)}")
        if not _is_int(nodes) or not 0 <= nodes <= len(world.declared[pool]):
            raise RequestError(f"{nodes!r} nodes: pool {pool} declares {len(world.declared[pool])}; ask for 0 or more")
        if for_s is not None and not (isinstance(for_s, int | float) and 0 < for_s < float("inf")):
            raise RequestError(f"{for_s!r} seconds: the time to hold nodes must be above 0")
        if nodes == 0:
            return self._drop_holds(pool, now)
        hold = Hold(uuid.uuid4().hex[:8], pool, nodes, None if for_s is None else now + for_s)
        world.holds[hold.id] = hold
        world.save_holds()
        until = "until they are released" if for_s is None else f"for {durations.show(for_s)}"
        world.store.log(now, f"pool/{pool}", "hold", nodes=nodes, id=hold.id, until=until)
        message = f"pool {pool} is kept at {nodes} nodes {until}"
        if wanted_warm(world)[pool] > nodes:
            message += f"; an earlier request or keep_warm keeps it at {wanted_warm(world)[pool]}"
        if world.paused:
            message += "; buying is paused"
        return {"id": hold.id, "message": message}

    def _drop_holds(self, pool: str, now: float) -> dict[str, Any]:
        world = self._world
        for hold in [hold for hold in world.holds.values() if hold.pool == pool]:
            del world.holds[hold.id]
            world.store.log(now, f"pool/{pool}", "hold ended", nodes=hold.nodes, id=hold.id)
        world.save_holds()
        warm = world.config.pool[pool].keep_warm
        return {"id": "", "message": f"pool {pool} is no longer held" + (f"; keep_warm = {warm} stays" if warm else "")}

    def release(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        """Give hosts back: ``{"hosts": HOSTLIST}``. Running jobs end first; holds shrink by as many nodes."""
        world = self._world
        try:
            hosts = hostlist.expand(str(payload.get("hosts", "")))
        except ValueError as error:
            raise RequestError(str(error)) from None
        unknown = [host for host in hosts if host not in world.nodes]
        if unknown:
            raise RequestError(f"{hostlist.fold(unknown)}: no such node is live; see `flux burst nodes`")
        # where a provider gives back only an order's tail, or all of it, the others have to go, too
        hosts = tuple(sorted({mate.record.host for host in hosts for mate in world.leaves_with(world.nodes[host])}))
        for host in hosts:
            world.nodes[host].asked = True
            world.store.log(now, f"node/{host}", "release asked")
        world.save_asked()
        self._shrink_holds(hosts)
        return {"message": f"{hostlist.fold(hosts)}: drained, and given back once nothing runs there"}

    def _shrink_holds(self, hosts: tuple[Host, ...]) -> None:
        world = self._world
        for pool, count in Counter(world.nodes[host].record.pool for host in hosts).items():
            left = sum(node.record.pool == pool and not node.asked for node in world.nodes.values())
            for hold in [hold for hold in world.holds.values() if hold.pool == pool and hold.nodes > left]:
                del world.holds[hold.id]
                if left and hold.nodes > count:
                    world.holds[hold.id] = Hold(hold.id, pool, left, hold.until_at)
        world.save_holds()

    def pause(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        return self._set_paused(paused=True, now=now)

    def resume(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        return self._set_paused(paused=False, now=now)

    def _set_paused(self, *, paused: bool, now: float) -> dict[str, Any]:
        world = self._world
        world.paused = paused
        world.store.set_setting("paused", paused)
        world.store.log(now, "service", "paused" if paused else "resumed")
        if paused:
            return {"message": "nothing is bought until `flux burst resume`; nodes that are up go on serving"}
        return {"message": "buying goes on"}


def _is_int(value: object) -> TypeGuard[int]:
    """A whole number of JSON; Python counts its true and false as numbers, too."""
    return isinstance(value, int) and not isinstance(value, bool)


def _record(record: NodeRecord) -> dict[str, Any]:
    return dataclasses.asdict(record) | {"state": str(record.state)}


def state_of(job: Job) -> str:
    """One word for a job: running, new, or its verdict's kind."""
    if job.allocated_at is not None:
        return "running"
    return str(job.verdict.kind) if job.verdict is not None else "new"
