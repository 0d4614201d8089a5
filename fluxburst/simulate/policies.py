"""Ways to decide, to compare with: each a planner of its own, and what it sets in burst.toml.

Each does what its own documentation says, with the benefit of the doubt where that is silent. None of them looks at how
long home would let a job wait: what home cannot start at once, they burst. All run on the same service, so they too
give back what fails, never exceed a cap, and keep what they promised a job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fluxburst.config import BurstConfig
from fluxburst.model import Account, Demand, Host, JobId, Refusal, Verdict, VerdictKind
from fluxburst.moment import Extension, Moment, Plan, Planner, PoolState, Purchase, Quote, Request
from fluxburst.offers import Stock, asked_as, stock_of


@dataclass(frozen=True, slots=True)
class Policy:
    """``about`` is one line for people. ``adapt`` changes burst.toml.

    ``planner`` makes the one that decides; None is the service's own.
    """

    name: str
    about: str
    adapt: Callable[[BurstConfig], BurstConfig]
    planner: Callable[[], Planner] | None


@dataclass(slots=True)
class _Room:
    """What is left of one node while a plan is made."""

    host: Host
    cores: int
    gpus: int
    whole: bool
    up: bool
    paid_until_at: float
    usd_per_hour: float | None

    def slots(self, demand: Demand) -> int:
        return 0 if demand.exclusive and not self.whole else demand.slots_on(self.cores, self.gpus)

    def take(self, demand: Demand, slots: int) -> None:
        self.whole = False
        self.cores = 0 if demand.exclusive else self.cores - slots * demand.cores_per_slot
        self.gpus = 0 if demand.exclusive else self.gpus - slots * demand.gpus_per_slot


class Desk:
    """One plan in the making: what is left of every pool, what was decided, and the ways to decide for one job."""

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.rooms = {
            name: {
                node.host: _Room(
                    node.host, node.cores, node.gpus, node.whole, node.up, node.paid_until_at, node.usd_per_node_hour
                )
                for node in pool.fleet
            }
            for name, pool in moment.pools.items()
        }
        self.free = {name: list(pool.free) for name, pool in moment.pools.items()}
        self.verdicts: dict[JobId, Verdict] = {}
        ordered = sorted(moment.requests.values(), key=lambda request: request.order)
        self._waiting = {request.job_id: request for request in ordered}
        self.kept: set[Host] = set()
        """Hosts to keep although no job of this plan counts on them."""
        self.again_at: float | None = None
        self._asks: set[tuple[str, Demand]] = set()
        self._undecided: set[JobId] = set()
        self._extensions: dict[tuple[Host, Account], Extension] = {}
        self._purchases: list[Purchase] = []
        self._sold: dict[Stock, int] = {}

    def plan(self, before: Mapping[JobId, Verdict]) -> Plan:
        """What was decided; ``before`` are the verdicts of the plan before."""
        unmet = {pool: why for pool, nodes in self.moment.holds.items() if (why := self._hold(pool, nodes))}
        booked = self.kept | {host for verdict in self.verdicts.values() for host in verdict.hosts}
        return Plan(
            verdicts=self.verdicts,
            changed=frozenset(job for job, verdict in self.verdicts.items() if verdict != before.get(job)),
            purchases=tuple(self._purchases),
            extensions=tuple(self._extensions.values()),
            asks=frozenset(self._asks),
            undecided=frozenset(self._undecided),
            booked=booked,
            again_at=self.again_at,
            unmet=unmet,
        )

    # Ways to decide

    def waiting(self) -> list[Request]:
        """The jobs without a verdict so far, in the scheduler's order."""
        return list(self._waiting.values())

    def keep(self, before: Mapping[JobId, Verdict]) -> None:
        """Leave every job what the plan before promised it, where that is still there."""
        for request in self.waiting():
            name, hosts = booking(request, before)
            if name in request.shape.pools and all(host in self.rooms[name] for host in hosts):
                self.serve(request, name, [self.rooms[name][host] for host in hosts])

    def wait(self, request: Request, reason: str, until_at: float | None = None, hosts: Sequence[Host] = ()) -> None:
        self.decide(request, Verdict(VerdictKind.WAIT, reason, hosts=tuple(hosts), until_at=until_at))
        if until_at is not None and until_at > self.moment.now:
            self.again_at = until_at if self.again_at is None else min(self.again_at, until_at)

    def decide(self, request: Request, verdict: Verdict) -> None:
        self.verdicts[request.job_id] = verdict
        del self._waiting[request.job_id]

    def serve(self, request: Request, pool: str, rooms: Iterable[_Room]) -> bool:
        """Place a job on these rooms, in their order, if they hold all of it."""
        demand = request.shape.demand
        chosen, missing = partial(demand, rooms)
        if not chosen or missing or not self.lengthen(request, pool, [room for room, _ in chosen]):
            return False
        for room, slots in chosen:
            room.take(demand, slots)
        hosts = tuple(room.host for room, _ in chosen)
        up = all(room.up for room, _ in chosen)
        reason = "its nodes are up" if up else "nodes on their way serve it"
        self.decide(request, Verdict(VerdictKind.COMING, reason, pool=pool, hosts=hosts))
        return True

    def serve_anywhere(self, request: Request, *, whole: bool = False) -> bool:
        """Place a job on what is there, pool by pool; with ``whole``, on nodes that nobody else has a part of."""
        return any(
            self.serve(request, pool, [room for room in self.rooms[pool].values() if room.whole or not whole])
            for pool in request.shape.pools
        )

    def quotes(self, request: Request, *, idle: bool = False) -> list[tuple[str, Quote, int]]:
        """Pool, quote and number of nodes for every way to buy a job's nodes now, the preferred first.

        These are all its nodes; with ``idle``, those that the pool's idle ones leave open. Where there is no way, the
        job gets the verdict that says why.
        """
        moment, demand = self.moment, request.shape.demand
        if request.not_before_at > moment.now:
            self.wait(request, "burst.wait has not passed yet", request.not_before_at)
            return []
        asked, asking = asked_as(demand), False
        found: list[tuple[str, Quote, int]] = []
        nos: dict[str, str] = {}
        lasting = True
        untils: list[float] = []
        for provider in dict.fromkeys(moment.pools[name].provider for name in request.shape.pools):
            answers = moment.market.quotes(provider, asked)
            if answers is None:
                self._asks.add((provider, asked))
                asking = True
                continue
            for answer in answers:
                pool = answer.pool if isinstance(answer, Refusal) else answer.offer.pool
                if pool not in request.shape.pools:
                    continue
                nodes = nodes_for(moment.pools[pool], demand)
                if nodes and idle:
                    nodes = max(1, nodes - len(self.idle(pool, demand)))
                no, passing, until_at = self._no(request, pool, answer, nodes)
                if isinstance(answer, Quote) and not no:
                    found.append((pool, answer, nodes))
                else:
                    nos.setdefault(pool, no)
                    lasting = lasting and not passing
                    untils.extend([until_at] if until_at is not None else [])
        if not found:
            reason = "; ".join(f"{pool}: {no}" for pool, no in nos.items()) or "its providers are being asked"
            if asking:
                self._undecided.add(request.job_id)
            if lasting and not asking:
                self.decide(request, Verdict(VerdictKind.REFUSED, reason, pool_reasons=tuple(nos.items())))
            else:
                self.wait(request, reason, min(untils, default=None))
        return found

    def idle(self, pool: str, demand: Demand) -> list[_Room]:
        """The nodes, up or coming, that nobody has a part of and that a job could use."""
        return [room for room in self.rooms[pool].values() if room.whole and room.slots(demand)]

    def buy(
        self, pool: str, quote: Quote, count: int, requests: Sequence[Request], *, lives_s: float | None = None
    ) -> list[_Room]:
        """Order nodes for these jobs, on the first one's account; they are for the caller to hand out.

        ``lives_s`` is how long they are reserved for beside boot and tail, by default the longest of the jobs.
        """
        state, now = self.moment.pools[pool], self.moment.now
        account = requests[0].shape.account
        longest_s = max(self.duration_s(request) for request in requests) if lives_s is None else lives_s
        until_at = now + state.boot_s + longest_s + state.tail_s
        price = quote.offer.usd_per_node_hour
        self.moment.draft.take(account, pool, count, self._reserved(pool, price, longest_s))
        stock = stock_of(quote.offer)
        self._sold[stock] = self._sold.get(stock, 0) + count
        hosts, self.free[pool] = self.free[pool][:count], self.free[pool][count:]
        jobs = tuple(request.job_id for request in requests)
        self._purchases.append(Purchase(quote.offer, tuple(hosts), jobs, account, (until_at,) * count))
        bought = [_Room(host, state.cores, state.gpus, True, False, until_at, price) for host in hosts]
        self.rooms[pool].update((room.host, room) for room in bought)
        return bought

    def hand_out(self, request: Request, pool: str, quote: Quote, rooms: Sequence[_Room], count: int) -> None:
        """Give a job these rooms, ``count`` of which were bought for it."""
        demand = request.shape.demand
        chosen, _ = partial(demand, rooms)
        for room, slots in chosen:
            room.take(demand, slots)
        price = quote.offer.usd_per_node_hour
        self.decide(
            request,
            Verdict(
                VerdictKind.BURST if count else VerdictKind.COMING,
                f"buying {count} of {quote.offer.instance_type}" if count else "nodes on their way serve it",
                pool=pool,
                hosts=tuple(room.host for room, _ in chosen),
                usd_per_hour=None if price is None or not count else price * count,
            ),
        )

    def most(self, pool: str, quote: Quote, account: Account, longest_s: float) -> int:
        """How many nodes may be bought on a quote."""
        allowed, _ = self.moment.draft.allowed(
            account, pool, self._reserved(pool, quote.offer.usd_per_node_hour, longest_s)
        )
        left, most = quote.offer.nodes_left, min(len(self.free[pool]), allowed)
        return most if left is None else min(most, left - self._sold.get(stock_of(quote.offer), 0))

    def duration_s(self, request: Request) -> float:
        return request.shape.demand.duration_s or self.moment.rules.assume_duration_s

    # Inside

    def _no(self, request: Request, pool: str, answer: Quote | Refusal, nodes: int) -> tuple[str, bool, float | None]:
        """Why a job cannot be bought for on this answer (empty: it can), whether that passes, and when."""
        state = self.moment.pools[pool]
        if isinstance(answer, Refusal):
            return answer.reason, answer.retry_at is not None, answer.retry_at
        if not nodes:
            return "its nodes are too small or too few", False, None
        if request.shape.demand.spot not in (None, answer.offer.spot):
            return "is spot or not, as the job does not want it", False, None
        limit = min(
            (usd for usd in (request.shape.max_usd, self.moment.rules.usd_per_job) if usd is not None), default=None
        )
        price = answer.offer.usd_per_node_hour
        if limit is not None and (price is None or price * nodes * self.duration_s(request) / 3600 > limit):
            return "costs more than the job may", False, None
        if state.closed:
            return state.closed, True, state.closed_until_at
        if answer.closed:
            return answer.closed, True, answer.closed_until_at
        if self.most(pool, answer, request.shape.account, self.duration_s(request)) < nodes:
            return "too few nodes are left, or may be bought", True, self.moment.now + 30.0
        return "", True, None

    def _reserved(self, pool: str, price: float | None, longest_s: float) -> float | None:
        state = self.moment.pools[pool]
        return None if price is None else price * (state.boot_s + longest_s + state.tail_s) / 3600

    def lengthen(self, request: Request, pool: str, rooms: Sequence[_Room]) -> bool:
        """Reserve nodes that are there for as long as the job needs them, unless a cap forbids it."""
        state, now, account = self.moment.pools[pool], self.moment.now, request.shape.account
        mark, longer = self.moment.draft.mark(), []
        for room in rooms:
            boot_s = 0.0 if room.up else state.boot_s
            until_at = now + boot_s + self.duration_s(request) + state.tail_s
            if until_at <= room.paid_until_at:
                continue
            more_h = (until_at - max(room.paid_until_at, now)) / 3600
            usd = None if room.usd_per_hour is None else room.usd_per_hour * more_h
            if self.moment.draft.extend(account, pool, usd) is not None:
                self.moment.draft.rollback(mark)
                return False
            longer.append((room, until_at))
        for room, until_at in longer:
            room.paid_until_at = until_at
            self._extensions[room.host, account] = Extension(room.host, account, until_at)
        return True

    def _hold(self, pool: str, nodes: int) -> str:
        """Keep a pool warm; the reason where that fails."""
        state = self.moment.pools[pool]
        missing = nodes - len(self.rooms[pool])
        if missing <= 0:
            return ""
        demand = Demand(missing, missing, state.cores, state.gpus, exclusive=True)
        answers = self.moment.market.quotes(state.provider, demand)
        if answers is None:
            self._asks.add((state.provider, demand))
            return "asking the provider"
        for answer in answers:
            if isinstance(answer, Quote) and answer.offer.pool == pool and not (state.closed or answer.closed):
                lives_s = self.moment.rules.assume_duration_s
                if self.most(pool, answer, Account(), lives_s) >= missing:
                    hosts, self.free[pool] = self.free[pool][:missing], self.free[pool][missing:]
                    until_at = self.moment.now + state.boot_s + lives_s + state.tail_s
                    price = self._reserved(pool, answer.offer.usd_per_node_hour, lives_s)
                    self.moment.draft.take(Account(), pool, missing, price)
                    self._purchases.append(Purchase(answer.offer, tuple(hosts), until_at=(until_at,) * missing))
                    return ""
        return "too few nodes are left, or may be bought"


def booking(request: Request, before: Mapping[JobId, Verdict]) -> tuple[str, tuple[Host, ...]]:
    """The pool and hosts that a job was promised, by the plan before or, for a planner made anew, by its request."""
    verdict = before.get(request.job_id)
    if verdict is None:
        return request.booked
    return (verdict.pool, verdict.hosts) if verdict.kind in (VerdictKind.COMING, VerdictKind.BURST) else ("", ())


def nodes_for(pool: PoolState, demand: Demand) -> int:
    """How many empty nodes of a pool a job takes; 0 if the pool can never have it."""
    slots = demand.slots_on(pool.cores, pool.gpus)
    if slots < max(demand.slots_per_node(), 1):
        return 0
    nodes = demand.nodes or -(-demand.slots // slots)
    return nodes if nodes <= len(pool.declared) else 0


def partial(demand: Demand, rooms: Iterable[_Room]) -> tuple[list[tuple[_Room, int]], int]:
    """As much of the demand as these rooms hold, first fit; and the slots, or nodes, that are missing."""
    per_node = demand.slots_per_node()
    missing = demand.nodes or demand.slots
    chosen: list[tuple[_Room, int]] = []
    for room in rooms:
        if not missing:
            break
        slots = room.slots(demand)
        taken = (per_node if slots >= per_node else 0) if per_node else min(slots, missing)
        if taken:
            chosen.append((room, taken))
            missing -= 1 if per_node else taken
    return chosen, missing


class OneBurstAJob:
    """Every job gets nodes of its own, bought when it cannot start at home and given back at its end.

    What many a site scripts around a cloud's command line. Flux's scheduler may start a job on what was bought for
    another; then the two change nodes, and nothing is bought twice.
    """

    def __init__(self) -> None:
        self._verdicts: Mapping[JobId, Verdict] = {}

    def plan(self, moment: Moment) -> Plan:
        """See :class:`fluxburst.moment.Planner`."""
        desk = Desk(moment)
        desk.keep(self._verdicts)
        for request in desk.waiting():
            if booking(request, self._verdicts)[1] and desk.serve_anywhere(request, whole=True):
                continue
            _buy_own(desk, request)
        plan = desk.plan(self._verdicts)
        self._verdicts = plan.verdicts
        return plan


def _buy_own(desk: Desk, request: Request) -> None:
    """Buy all nodes of a job where they are preferred."""
    for pool, quote, count in desk.quotes(request)[:1]:
        desk.hand_out(request, pool, quote, desk.buy(pool, quote, count, [request]), count)


class PowerSave:
    """Slurm with its powered-down cloud nodes, after Slurm's Power Saving Guide and slurm.conf(5).

    The scheduler allocates nodes to a pending job when it gets to it, powered-down ones included, which are then
    resumed: idle nodes first, then new ones, job by job in the order of the queue. That a busy node ends soon is not
    looked at, and no job's nodes are chosen with the next job in mind. ``power_save_interval`` is 10 s by default;
    ``SuspendTime`` has no default that suspends, 300 s is common. ``ResumeRate`` (300 a minute) is left out in its
    favour.
    """

    def __init__(self) -> None:
        self._verdicts: Mapping[JobId, Verdict] = {}

    def plan(self, moment: Moment) -> Plan:
        """See :class:`fluxburst.moment.Planner`."""
        desk = Desk(moment)
        desk.keep(self._verdicts)
        for request in desk.waiting():
            if not desk.serve_anywhere(request):
                self._resume(desk, request)
        plan = desk.plan(self._verdicts)
        self._verdicts = plan.verdicts
        return plan

    @staticmethod
    def _resume(desk: Desk, request: Request) -> None:
        """What idle nodes the pool has, and new ones for the rest."""
        demand = request.shape.demand
        for pool, quote, new in desk.quotes(request, idle=True)[:1]:
            idle = desk.idle(pool, demand)[: nodes_for(desk.moment.pools[pool], demand) - new]
            if desk.lengthen(request, pool, idle):
                desk.hand_out(request, pool, quote, [*idle, *desk.buy(pool, quote, new, [request])], new)
            else:
                desk.wait(request, f"{pool}: a cap forbids to keep its idle nodes for longer", desk.moment.now + 60.0)


SCAN_S = 10.0
"""Cluster Autoscaler's --scan-interval."""


class LeastWaste:
    """Kubernetes' Cluster Autoscaler with the expander ``least-waste``, after its FAQ.

    Pods go to free nodes at any time. Every 10 s it takes the pending ones that fit neither free nor upcoming nodes,
    simulates for each node group how many nodes would take them, first fit decreasing, and enlarges the group with the
    least idle CPU after that; the others are for the next scan. A node goes after 10 minutes without need
    (``--scale-down-unneeded-time``). A job is had whole or not at all, as with a ProvisioningRequest.
    """

    def __init__(self) -> None:
        self._verdicts: Mapping[JobId, Verdict] = {}
        self._seen: dict[JobId, int] = {}

    def plan(self, moment: Moment) -> Plan:
        """See :class:`fluxburst.moment.Planner`."""
        desk = Desk(moment)
        scan = int(moment.now // SCAN_S)
        self._seen = {job: self._seen.get(job, scan) for job in moment.requests}
        desk.keep(self._verdicts)
        for request in desk.waiting():
            desk.serve_anywhere(request)
        pending = []
        for request in desk.waiting():
            if self._seen[request.job_id] >= scan:
                desk.wait(request, "for the next scan", (scan + 1) * SCAN_S)
            else:
                pending.append(request)
        self._scale_up(desk, pending)
        for request in desk.waiting():
            self._seen[request.job_id] = scan
            desk.wait(request, "another node group is enlarged first", (scan + 1) * SCAN_S)
        plan = desk.plan(self._verdicts)
        self._verdicts = plan.verdicts
        return plan

    @staticmethod
    def _scale_up(desk: Desk, pending: Sequence[Request]) -> None:
        groups: dict[tuple[str, int], tuple[str, Quote, list[Request]]] = {}
        for request in sorted(pending, key=lambda request: (-_cores(request), request.order)):
            for pool, quote, _ in desk.quotes(request):
                groups.setdefault((pool, id(quote)), (pool, quote, []))[2].append(request)
        best: tuple[float, str, Quote, list[list[Request]]] | None = None
        for pool, quote, requests in groups.values():
            bins = _packed(desk, pool, quote, requests)
            nodes = sum(count for count, _ in bins)
            if not nodes:
                continue
            cores = nodes * desk.moment.pools[pool].cores
            used = sum(
                count * desk.moment.pools[pool].cores
                if members[0].shape.demand.exclusive
                else sum(_cores(request) for request in members)
                for count, members in bins
            )
            waste = (cores - used) / cores
            if best is None or waste < best[0]:
                best = (waste, pool, quote, [members for _, members in bins])
        if best is None:
            return
        _, pool, quote, orders = best
        for members in orders:
            count = nodes_for(desk.moment.pools[pool], members[0].shape.demand)
            longest_s = max(desk.duration_s(request) for request in members)
            if desk.most(pool, quote, members[0].shape.account, longest_s) < count:
                continue  # a cap, after what was bought just now
            rooms = desk.buy(pool, quote, count, members)
            for turn, request in enumerate(members):
                desk.hand_out(request, pool, quote, rooms, count if turn == 0 else 0)


def _cores(request: Request) -> int:
    return request.shape.demand.slots * request.shape.demand.cores_per_slot


def _packed(desk: Desk, pool: str, quote: Quote, requests: Iterable[Request]) -> list[tuple[int, list[Request]]]:
    """First fit decreasing on new nodes, as many as may be bought: each bin a number of nodes and the jobs on them."""
    state = desk.moment.pools[pool]
    bins: list[tuple[list[_Room], list[Request]]] = []
    left: int | None = None
    for request in requests:
        demand = request.shape.demand
        single = nodes_for(state, demand) == 1
        for rooms, members in bins:
            chosen, missing = partial(demand, rooms) if single and len(rooms) == 1 else ([], 1)
            if chosen and not missing and members[0].shape.account == request.shape.account:
                for room, slots in chosen:
                    room.take(demand, slots)
                members.append(request)
                break
        else:
            count = nodes_for(state, demand)
            most = desk.most(pool, quote, request.shape.account, desk.duration_s(request))
            left = most if left is None else min(left, most)
            if count > left:
                continue
            left -= count
            rooms = [_Room(Host(""), state.cores, state.gpus, True, False, 0.0, None) for _ in range(count)]
            for room, slots in partial(demand, rooms)[0]:
                room.take(demand, slots)
            bins.append((rooms, [request]))
    return [(len(rooms), members) for rooms, members in bins]


@dataclass(slots=True)
class _Cluster:
    """A predecessor's cluster: its hosts, and the jobs for which it was made."""

    pool: str
    hosts: frozenset[Host]
    jobs: set[JobId]


class Predecessor:
    """The project `flux-burst` (github.com/converged-computing/flux-burst), after its README and its client.

    Each cycle takes all marked jobs that wait and makes one cluster for them, of the largest one's size ("I'm just
    taking the max size of the job"), which nobody else is reckoned to use; what is there already is not looked at.
    Its jobs run there as it has room. ``run_unburst`` is called by hand, once all its jobs are done. In its favour:
    that hand is at work day and night and looks every hour, so that a node stays half an hour idle on the mean; and as
    its nodes are ordinary nodes of the instance, Flux starts its waiting jobs on another cluster's idle nodes, too.
    """

    def __init__(self) -> None:
        self._verdicts: Mapping[JobId, Verdict] = {}
        self._clusters: list[_Cluster] = []

    def plan(self, moment: Moment) -> Plan:
        """See :class:`fluxburst.moment.Planner`."""
        desk = Desk(moment)
        self._forget(moment)
        desk.keep(self._verdicts)
        for cluster in self._clusters:
            self._run(desk, cluster)
        assigned = {job for cluster in self._clusters for job in cluster.jobs}
        self._cycle(desk, [request for request in desk.waiting() if request.job_id not in assigned])
        for request in desk.waiting():
            if request.job_id in assigned:
                self._wait(desk, request)
        plan = desk.plan(self._verdicts)
        self._verdicts = plan.verdicts
        return plan

    def _forget(self, moment: Moment) -> None:
        """Drop the jobs that ask no more or lost too many nodes, and the clusters that are gone."""
        for cluster in self._clusters:
            fleet = {node.host for node in moment.pools[cluster.pool].fleet}
            cluster.hosts &= fleet
            cluster.jobs = {
                job
                for job in cluster.jobs & moment.requests.keys()
                if nodes_for(moment.pools[cluster.pool], moment.requests[job].shape.demand) <= len(cluster.hosts)
            }
        self._clusters = [cluster for cluster in self._clusters if cluster.hosts and cluster.jobs]

    @staticmethod
    def _run(desk: Desk, cluster: _Cluster) -> None:
        """Give its jobs what room it has, else what others leave idle; it stays while any of them waits."""
        desk.kept |= cluster.hosts
        rooms = desk.rooms[cluster.pool]
        own = [room for host, room in rooms.items() if host in cluster.hosts]
        others = [room for host, room in rooms.items() if host not in cluster.hosts and room.up]
        for request in desk.waiting():
            if request.job_id in cluster.jobs and cluster.pool in request.shape.pools:
                desk.serve(request, cluster.pool, [*own, *others])

    def _cycle(self, desk: Desk, requests: Sequence[Request]) -> None:
        """Make one cluster for all new jobs, of the largest one's size."""
        choices: dict[str, tuple[Quote, list[tuple[int, Request]]]] = {}
        for request in requests:
            for pool, quote, count in desk.quotes(request)[:1]:
                choices.setdefault(pool, (quote, []))[1].append((count, request))
        for pool, (quote, members) in choices.items():
            jobs = [request for _, request in members]
            count = max(count for count, _ in members)
            lives_s = sum(desk.duration_s(request) for request in jobs)  # one after the other at the worst
            if desk.most(pool, quote, jobs[0].shape.account, lives_s) < count:
                lives_s = max(desk.duration_s(request) for request in jobs)
            if desk.most(pool, quote, jobs[0].shape.account, lives_s) < count:
                for request in jobs:
                    desk.wait(request, "too few nodes are left, or may be bought", desk.moment.now + 30.0)
                continue
            rooms = desk.buy(pool, quote, count, jobs, lives_s=lives_s)
            cluster = _Cluster(pool, frozenset(room.host for room in rooms), {request.job_id for request in jobs})
            self._clusters.append(cluster)
            first = max(members, key=lambda member: member[0])[1]
            desk.hand_out(first, pool, quote, rooms, count)
            for request in jobs:
                if request is not first and not desk.serve(request, pool, rooms):
                    self._wait(desk, request)

    @staticmethod
    def _wait(desk: Desk, request: Request) -> None:
        desk.wait(request, "for its turn on its cluster")


UNBURST_S = 1800.0


def _adapted(idle_s: float, tick_s: float | None = None) -> Callable[[BurstConfig], BurstConfig]:
    """What a policy sets: how long a node may be idle, and how often it looks."""

    def adapt(config: BurstConfig) -> BurstConfig:
        pools = {name: pool.model_copy(update={"idle_timeout": idle_s}) for name, pool in config.pool.items()}
        batching = config.batching
        if tick_s is not None:
            batching = batching.model_copy(update={"idle": tick_s, "max": tick_s})
        return config.model_copy(update={"pool": pools, "batching": batching})

    return adapt


HOME = Policy("home", "home alone, without bursting", lambda config: config, None)
POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("ours", "what `flux burst run` does", lambda config: config, None),
        Policy(
            "predecessor",
            "flux-burst: one cluster of the largest job's size a cycle, given back by hand half an hour after its jobs",
            _adapted(UNBURST_S),
            Predecessor,
        ),
        Policy("one-burst-a-job", "nodes of its own for every job, given back at its end", _adapted(1.0), OneBurstAJob),
        Policy(
            "power-save",
            "Slurm's cloud nodes: idle ones, then new ones, job by job every 10 s; suspended after 300 s",
            _adapted(300.0, 10.0),
            PowerSave,
        ),
        Policy(
            "least-waste",
            "Cluster Autoscaler: every 10 s the node group with the least idle CPU; nodes go after 10 min unneeded",
            _adapted(600.0),
            LeastWaste,
        ),
    )
}
