"""What the service says about itself: the answers to its RPCs, as JSON objects."""

from __future__ import annotations

import dataclasses
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeGuard

from fluxburst import __version__, durations, hostlist, plan
from fluxburst.budget import GROUPS, Window, totals
from fluxburst.consider import Consideration, Obstacle, OfferAnswer, Place, PoolAnswer, consider, words
from fluxburst.controller.planning import View, wanted_warm
from fluxburst.controller.tell import story
from fluxburst.controller.world import Hold, Job, Node, World
from fluxburst.errors import RequestError
from fluxburst.flux.protocol import Caller
from fluxburst.jobid import f58
from fluxburst.model import Demand, Host, JobId, NodeRecord
from fluxburst.moment import Purchase
from fluxburst.offers import GUESS_JOIN_S
from fluxburst.provider.discovery import Plugins
from fluxburst.select import user_name
from fluxburst.states import COMING, NodeState

EXAMPLES = 3
"""So many jobs stand for a group of jobs that were decided alike."""
LAST_AT = 4102444800.0
"""No date is asked for from 2100 on."""


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
            "plan": self.plan,
            "providers": self.providers,
            "offers": self.offers,
            "budget": self.budget,
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
        warm, left_alone = wanted_warm(world), world.left_alone(now)
        pools = []
        for name, table in world.config.pool.items():
            mine = [node for node in world.nodes.values() if node.record.pool == name]
            closed = left_alone.get(name)
            pools.append(
                {
                    "pool": name,
                    "provider": table.provider,
                    "queue": world.config.queue_of(name),
                    "declared": len(world.declared[name]),
                    "states": dict(Counter(str(node.record.state) for node in mine)),
                    "busy": sum(bool(world.usage.get(host)) for host in world.declared[name]),
                    "warm": warm.get(name, 0),
                    "warm_unmet": world.plan.unmet.get(name, ""),
                    "cooldown": closed.error if closed else "",
                    "cooldown_s": closed.until_at - now if closed and closed.until_at else 0.0,
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
            "budget": [line for line in self._lines(caller, now) if line["cap"]],
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
        join_s = world.book.quote(order.offer, now).join_s if order else GUESS_JOIN_S
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
        """What became of one job and why: ``{"id": ID}``; without an id, of the whole queue.

        ``considered`` is a :class:`fluxburst.consider.Consideration` of a job that asks, made now; null for all others.
        """
        if "id" not in payload:
            return self._explain_all(caller, now)
        job_id = payload["id"]
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
        verdict = considered = None
        if job is not None and job.allocated_at is None:
            moment, without = View().moment(self._world, now)
            # the verdict may stand on answers that nothing would be bought on any more
            moment = dataclasses.replace(moment, market=self._world.book.at(now, old=True))
            verdict = without.get(job.id, job.verdict)
            if job.id in moment.requests:
                considered = consider(moment, moment.requests[job.id])
                self._world.asks |= considered.asks
        return {
            "now": now,
            "id": job_id,
            "f58": f58(job_id),
            "active": job is not None,
            "job": self._job(job, now) if job else None,
            "verdict": plan.describe(verdict, now) if verdict else "",
            "fix": (considered.fix if considered else "") or (verdict.fix if verdict else ""),
            "pools": [list(reason) for reason in verdict.pool_reasons] if verdict else [],
            "considered": _told(considered) if considered else None,
            "history": [{"at": entry.at, "kind": entry.kind, **entry.data} for entry in history],
        }

    def _explain_all(self, caller: Caller, now: float) -> dict[str, Any]:
        """The caller's jobs, or all for the owner, by what was decided on them and why; the most first."""
        _, without = View().moment(self._world, now)
        groups: dict[tuple[str, str, str], tuple[str, list[str]]] = {}
        for _, job in sorted(self._world.jobs.items()):
            if caller.owner or job.userid == caller.userid:
                told, verdict = self._job(job, now), without.get(job.id, job.verdict)
                reason, fix = told["reason"] or (verdict.reason if verdict else ""), verdict.fix if verdict else ""
                _, names = groups.setdefault((told["state"], told["pool"], reason), (fix, []))
                names.append(told["f58"])
        rows = [
            {
                "state": state,
                "pool": pool,
                "reason": reason,
                "fix": fix,
                "count": len(names),
                "examples": names[:EXAMPLES],
            }
            for (state, pool, reason), (fix, names) in groups.items()
        ]
        return {"total": sum(row["count"] for row in rows), "groups": sorted(rows, key=lambda row: -row["count"])}

    def plan(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        """What would be bought now, as if buying were not paused, by a planner that knows only what is booked.

        ``usd_per_hour`` and ``reserved_usd`` are null where a price is not known. ``asks`` are the questions without
        whose answers ``undecided`` jobs get no verdict: the providers are asked now. Of the jobs that nodes are for,
        guests see their own.
        """
        world = self._world
        moment, without = View(heed_pause=False).moment(world, now)
        made = plan.Packer().plan(moment)
        world.asks |= made.asks
        verdicts = Counter(str(verdict.kind) for verdict in (*made.verdicts.values(), *without.values()))
        purchases = [self._purchase(purchase, caller, now) for purchase in made.purchases]
        return {
            "paused": world.paused,
            "purchases": purchases,
            "nodes": sum(len(purchase.hosts) for purchase in made.purchases),
            "usd_per_hour": _sum(purchase["usd_per_hour"] for purchase in purchases),
            "reserved_usd": _sum(purchase["reserved_usd"] for purchase in purchases),
            "verdicts": dict(verdicts),
            "undecided": len(made.undecided),
            "asks": [{"provider": provider, **_asked(demand)} for provider, demand in sorted(made.asks, key=repr)],
            "unmet": dict(made.unmet),
        }

    def _purchase(self, purchase: Purchase, caller: Caller, now: float) -> dict[str, Any]:
        offer, world = purchase.offer, self._world
        price, count = offer.usd_per_node_hour, len(purchase.hosts)
        cost = world.ledger.cost_usd
        return {
            "pool": offer.pool,
            "provider": offer.provider,
            "instance_type": offer.instance_type,
            "zone": offer.zone,
            "region": offer.region,
            "spot": offer.spot,
            "hosts": hostlist.fold(purchase.hosts),
            "nodes": count,
            "jobs": [
                f58(job_id) for job_id in purchase.job_ids if caller.owner or world.jobs[job_id].userid == caller.userid
            ],
            "usd_per_node_hour": price,
            "usd_per_hour": None if price is None else price * count,
            "reserved_usd": _sum(cost(offer.pool, price, now, until_at) for until_at in purchase.until_at),
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
        """All providers' latest offers as one list in order of preference, and what they said no to, the newest first.

        ``health`` is "open", or why the offer is left alone, for ``closed_s`` (None: until an order that tries it out
        has its answer). ``samples`` is on how many nodes ``join_s`` (the median) and ``join_p90_s`` were measured.
        """
        book = self._world.book
        offers = [
            {
                **{key: value for key, value in dataclasses.asdict(quote.offer).items() if key != "join_s"},
                "join_s": quote.join_s,
                "join_p90_s": quote.join_p90_s,
                "samples": quote.samples,
                "health": quote.closed or "open",
                "closed_s": None if quote.closed_until_at is None else quote.closed_until_at - now,
                "age_s": now - at,
            }
            for at, quote in book.latest(now)
        ]
        refusals = [
            {
                "provider": no.provider,
                "pool": no.pool,
                **_asked(demand),
                "reason": no.reason,
                "retry_at": no.retry_at,
                "age_s": now - at,
            }
            for at, demand, no in book.refusals()
        ]
        return {"offers": offers, "refusals": refusals}

    def budget(self, payload: Mapping[str, Any], caller: Caller, now: float) -> dict[str, Any]:
        """Every cap, and ``{"by": GROUP, "since_at": TIME}``: the costs since then (by default: of this month).

        Guests see what is everyone's, and of accounts their own.
        """
        by, since_at = payload.get("by", "pool"), payload.get("since_at")
        if by not in GROUPS:
            raise RequestError(f"by: {by!r} is none of {', '.join(GROUPS)}")
        if since_at is None:
            since_at = Window.at("month", now).from_at
        elif not _is_time(since_at):
            raise RequestError(f"since_at: {since_at!r} is no time in seconds since 1970")
        ledger, store = self._world.ledger, self._world.store
        past = [segment for segment in store.segments(since_at) if segment.ended_at is not None]
        segments = [
            segment
            for segment in (*past, *ledger.live(now))
            if caller.owner or segment.account.user == user_name(caller.userid)
        ]
        return {
            "caps": self._lines(caller, now),
            "by": by,
            "since_at": since_at,
            "totals": [dataclasses.asdict(total) for total in totals(segments, by, since_at, now)],
        }

    def _lines(self, caller: Caller, now: float) -> list[dict[str, Any]]:
        """The ledger's report, as far as it is the caller's business."""
        own = {("user", user_name(caller.userid))}
        return [
            dataclasses.asdict(line) | {"window": line.window.kind, "until_at": line.window.until_at}
            for line in self._world.ledger.report(now)
            if caller.owner or line.scope in ("all", "pool", "provider") or (line.scope, line.name) in own
        ]

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
            world.dirty.add(host)
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


def _is_time(value: object) -> TypeGuard[float]:
    """A time that a date can be made of."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LAST_AT


def _asked(demand: Demand) -> dict[str, Any]:
    return {
        "nodes": demand.nodes,
        "slots": demand.slots,
        "cores_per_slot": demand.cores_per_slot,
        "gpus_per_slot": demand.gpus_per_slot,
    }


def _sum(parts: Iterable[float | None]) -> float | None:
    """The sum; None where a part is not known."""
    known = list(parts)
    return None if None in known else sum(filter(None, known))


def _told(considered: Consideration) -> dict[str, Any]:
    """A consideration as JSON: an offer's own fields beside its answer, and each obstacle in words, too."""

    def place(found: Place | None) -> dict[str, Any] | None:
        return None if found is None else dataclasses.asdict(found) | {"hosts": hostlist.fold(found.hosts)}

    def obstacle(no: Obstacle | None) -> dict[str, Any] | None:
        return None if no is None else dataclasses.asdict(no) | {"words": words(no, considered.at)}

    def offer(answer: OfferAnswer) -> dict[str, Any]:
        return dataclasses.asdict(answer.quote.offer) | {
            "join_s": answer.quote.join_s,
            "samples": answer.quote.samples,
            "nodes_left": answer.left,
            "place": place(answer.place),
            "obstacle": obstacle(answer.obstacle),
        }

    def pool(answer: PoolAnswer) -> dict[str, Any]:
        return {
            "pool": answer.pool,
            "provider": answer.provider,
            "there": place(answer.there),
            "offers": [offer(one) for one in answer.offers],
            "obstacle": obstacle(answer.obstacle),
        }

    return {
        "decided": considered.decided,
        "home": None if considered.home is None else dataclasses.asdict(considered.home),
        "place": place(considered.place),
        "pools": [pool(answer) for answer in considered.pools],
    }


def _record(record: NodeRecord) -> dict[str, Any]:
    return dataclasses.asdict(record) | {"state": str(record.state)}


def state_of(job: Job) -> str:
    """One word for a job: running, new, or its verdict's kind."""
    if job.allocated_at is not None:
        return "running"
    return str(job.verdict.kind) if job.verdict is not None else "new"
