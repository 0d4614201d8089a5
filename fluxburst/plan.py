"""The planner: what is asked for, what there is, what may be spent: in; a verdict for every job, and purchases: out.

Pure: no clock, no I/O. docs/decisions/0006-deciding.md tells the order in which it decides, and why.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from fluxburst import durations
from fluxburst.fit import ASKING, No, fit_of
from fluxburst.model import JobId, Verdict, VerdictKind
from fluxburst.moment import (
    Moment,
    Plan,
    Request,
    Resident,
)
from fluxburst.pack import pack
from fluxburst.rooms import PoolRooms
from fluxburst.work import Blocked, Facts, Kin, Outcome, Place, Work, served_by

AT_HOME = "home is expected to start it soon enough"
PATIENCE_S = 60.0
"""So long after home was first expected to start a job it is believed; it may be held up by what no forecast knows."""

DOUBTS_S = 30.0
"""Those that home has kept waiting for longer are looked for so often."""

KNOWN = 100_000
"""So many shapes are remembered, those of ended jobs among them, before all are forgotten."""

_INF = float("inf")


@dataclass(slots=True)
class Aside:
    """Jobs that fail alike, and the shortest of them, where it is known."""

    jobs: dict[JobId, Request] = field(default_factory=dict)
    shortest: Request | None = None


class Packer:
    """Our planner. It keeps what it placed, so that a plan costs what changed since the one before.

    Jobs with the same :class:`~fluxburst.moment.Shape` are placed together. What has hosts keeps them while they can be
    had; everything else is decided anew in each plan.
    """

    def __init__(self) -> None:
        self._pools: dict[str, PoolRooms] = {}
        self._placed: dict[JobId, Place] = {}
        self._waiting: dict[JobId, Request] = {}
        self._aside: dict[Kin, Aside] = {}
        """The jobs that caps in dollars forbid whatever the others get, by what fails alike."""
        self._kin: dict[JobId, Kin] = {}
        """Those that each of these is among."""
        self._promised: dict[JobId, float] = {}
        """When home was first expected to start a job that waits for that."""
        self._bought: set[JobId] = set()
        """The jobs whose verdict says that nodes are bought for them: from the next plan on these are coming."""
        self._kept: set[JobId] = set()
        """The jobs that hold rooms although they wait: decided anew in each plan."""
        self._verdicts: dict[JobId, Verdict] = {}
        self._facts: dict[int, Facts] = {}
        """What is known of shapes; it rests on what pools declare and on the rules, which do not change."""
        self._blocked: dict[Kin, Blocked] = {}

    def plan(self, moment: Moment) -> Plan:
        """See :class:`fluxburst.moment.Planner`."""
        told = Told(self._verdicts)
        if len(self._facts) > KNOWN:
            self._facts.clear()
            self._blocked.clear()
        self._begin(moment, told)
        work = Work(moment, self._pools, self._facts, self._blocked)
        self._set_aside(moment, work, told)
        askers = self._stay_home(moment, work, told)
        outcome = pack(work, askers)
        unmet = {pool: no for pool, wanted in moment.holds.items() if (no := work.hold(pool, wanted))}
        undecided = self._note(outcome, told)
        return Plan(
            verdicts=self._verdicts,
            changed=told.changed,
            purchases=tuple(work.purchases()),
            extensions=tuple(work.extensions()),
            asks=frozenset(work.asks),
            watches=work.watches,
            undecided=frozenset(undecided),
            booked=frozenset(host for pool in self._pools.values() for host in pool.booked(moment.now, self._kept)),
            again_at=min((at for at in work.untils if at > moment.now), default=None),
            unmet=unmet,
            kept=work.kept,
        )

    def _note(self, outcome: Outcome, told: Told) -> set[JobId]:
        """Keep what was decided; the jobs of which nothing was, as their providers have not answered yet."""
        undecided: set[JobId] = set()
        placed: list[Sequence[JobId]] = []
        for jobs, verdict, place in outcome.decided:
            told.tell(jobs, verdict)
            if place is not None:
                placed.append(jobs)
                for job in jobs:
                    self._placed[job] = place
                if verdict.kind is VerdictKind.BURST:
                    self._bought.update(jobs)
                elif verdict.kind is VerdictKind.WAIT:
                    self._kept.update(jobs)
            if verdict.reason == ASKING:
                undecided.update(jobs)
        if sum(map(len, placed)) == len(self._waiting):
            self._waiting.clear()
        else:
            for jobs in placed:
                for job in jobs:
                    del self._waiting[job]
        return undecided

    # What changed

    def _begin(self, moment: Moment, told: Told) -> None:
        """Take in what changed, and let every job keep what it was given."""
        self._take_in(moment, told)
        fresh = [request for request in self._waiting.values() if request.booked[1]]
        for request in sorted(fresh, key=lambda request: request.order):
            self._keep(moment, request, told)

    def _take_in(self, moment: Moment, told: Told) -> None:
        changed = moment.changed_jobs
        if changed is None:
            changed = self._verdicts.keys() | moment.requests.keys() if self._verdicts else moment.requests.keys()
        if not self._verdicts and len(changed) == len(moment.requests):
            self._waiting.update(moment.requests)
        else:
            for job in changed:
                self._change(job, moment.requests.get(job))
        for job in self._kept:
            self._unplace(job, moment)
        self._kept.clear()
        touched = set(self._bought)
        self._bought.clear()
        for name, state in moment.pools.items():
            pool = self._pools.get(name)
            if pool is None:
                self._pools[name] = PoolRooms(state)
                continue
            lost, moved = pool.update(state)
            for job in lost:
                self._unplace(job, moment)
            pool.postpone(moment.now)
            touched |= moved
        for job in sorted(touched & self._placed.keys()):
            self._move(job, moment.now)
            rooms = self._placed[job][1]
            told.tell((job,), served_by(rooms[0][0], [room for _, room in rooms], moment.now))

    def _move(self, job: JobId, now: float) -> None:
        """A node of a job comes up sooner or later than was expected."""
        rooms = self._placed[job][1]
        start_at = max([now, *(room.node.at for _, room in rooms if room.node is not None)])
        for name, room in rooms:
            take = room.jobs[job]
            self._pools[name].rebook(room, job, take.over(start_at, start_at + take.end_at - take.start_at))

    def _change(self, job: JobId, request: Request | None) -> None:
        placed = self._placed.get(job)
        if request is None:
            self._waiting.pop(job, None)
            self._take_back(job)
            self._verdicts.pop(job, None)
            self._promised.pop(job, None)
            self._kept.discard(job)
            self._bought.discard(job)
            self._release(job)
        elif placed is None:
            self._take_back(job)
            self._waiting[job] = request
        elif placed[0].demand != request.shape.demand or placed[1][0][0] not in request.shape.pools:
            self._release(job)
            self._waiting[job] = request

    def _release(self, job: JobId) -> None:
        placed = self._placed.pop(job, None)
        if placed is not None:
            for pool, room in placed[1]:
                self._pools[pool].unbook(room, (job,))

    def _unplace(self, job: JobId, moment: Moment) -> None:
        """A job that has to be placed anew."""
        self._release(job)
        request = moment.requests.get(job)
        if request is not None:
            self._waiting[job] = dataclasses.replace(request, booked=("", ())) if request.booked[1] else request

    def _keep(self, moment: Moment, request: Request, told: Told) -> None:
        """Give a job that this planner does not know what an earlier plan booked for it, where that is still there."""
        name, hosts = request.booked
        pool = self._pools.get(name)
        if pool is None or name not in request.shape.pools or not all(host in pool.rooms for host in hosts):
            return
        fit = pool.fit(request.shape.demand, fit_of)
        if isinstance(fit, No):
            return
        if len(hosts) > 1 and fit.spread is not None:
            fit = fit.spread
        rooms = [pool.rooms[host] for host in hosts]
        chosen, missing = fit.partial(rooms)
        if missing or len(chosen) != len(rooms):
            return
        start_at = max([moment.now, *(room.at for room in rooms)])
        end_at = start_at + (request.shape.demand.duration_s or moment.rules.assume_duration_s)
        for room, take in chosen:
            pool.book(room, (request.job_id,), take.over(start_at, end_at))
        self._placed[request.job_id] = (request.shape, tuple((name, room) for room in rooms))
        del self._waiting[request.job_id]
        told.tell((request.job_id,), served_by(name, rooms, moment.now))

    # What cannot be paid for

    def _set_aside(self, moment: Moment, work: Work, told: Told) -> None:
        """Part those from the others that cannot be paid for even before anybody else gets anything.

        Who is set aside costs nothing in later plans, as long as the shortest that is alike cannot be paid for either.
        """
        if not moment.rules.capped:
            return

        def duration_s(request: Request) -> float:
            return work.facts(request.shape).duration_s

        for kin, aside in list(self._aside.items()):
            shortest = aside.shortest or min(aside.jobs.values(), key=duration_s)
            aside.shortest = shortest
            before = self._verdicts[shortest.job_id]
            verdict = work.forbidden(shortest.shape, before)
            if verdict is None or (verdict is not before and verdict != before):
                self._waiting.update(aside.jobs)
                for job in aside.jobs:
                    del self._kin[job]
                del self._aside[kin]
        verdicts: dict[int, Verdict | None] = {}
        hopeful = set[Kin]()
        for request in sorted(self._waiting.values(), key=duration_s):
            kin = work.facts(request.shape).alike
            if request.not_before_at > moment.now or kin in hopeful:
                continue
            if id(request.shape) not in verdicts:
                verdicts[id(request.shape)] = work.forbidden(request.shape)
            forbidden = verdicts[id(request.shape)]
            if forbidden is None:
                hopeful.add(kin)
                continue
            found = self._aside.setdefault(kin, Aside())
            found.jobs[request.job_id] = request
            if found.shortest is not None and duration_s(request) < duration_s(found.shortest):
                found.shortest = request
            self._kin[request.job_id] = kin
            del self._waiting[request.job_id]
            told.tell((request.job_id,), forbidden)

    def _take_back(self, job: JobId) -> bool:
        """Whether a job was set aside; it is not any more."""
        kin = self._kin.pop(job, None)
        if kin is None:
            return False
        aside = self._aside[kin]
        request = aside.jobs.pop(job)
        if aside.shortest is request:
            aside.shortest = None
        if not aside.jobs:
            del self._aside[kin]
        return True

    # Burst or wait

    def _stay_home(self, moment: Moment, work: Work, told: Told) -> list[Request]:
        """Let every job that home serves well enough stay there; the others, in the scheduler's order."""
        waiting = sorted(self._waiting.values(), key=_order)
        home = moment.home
        if home is None:
            return waiting
        choosers = [request.order for request in waiting if work.estimate(request.shape)[0] < _INF]
        if not choosers:
            return waiting
        askers: list[Request] = []
        # those that were set aside wait at home, too, and have their place there
        forbidden = sorted((one for aside in self._aside.values() for one in aside.jobs.values()), key=_order)
        line: Iterator[Request | Resident] = heapq.merge(waiting, moment.residents, forbidden, key=_order)
        for one in line:
            if one.order > choosers[-1]:
                break  # nobody after these has a choice
            demand = one.demand if isinstance(one, Resident) else one.shape.demand
            # a forecast of the scheduler that is past was not kept: nobody knows better than ours then
            told_at = one.home_at if one.home_at is not None and one.home_at > moment.now else None
            start_at = home.start_at(one.queue, demand) if told_at is None else told_at
            if isinstance(one, Resident) or one.job_id in self._kin:
                home.take(one.queue, demand, start_at)
                continue
            serves = start_at < _INF and self._home_serves(work, one, start_at)
            if serves:
                told.tell((one.job_id,), Verdict(VerdictKind.WAIT, AT_HOME, until_at=start_at, fix=_HOME_FIX))
            else:
                askers.append(one)
            if serves or work.estimate(one.shape)[0] == _INF:
                home.take(one.queue, demand, start_at)
        return [*askers, *(request for request in waiting if request.order > choosers[-1])]

    def _home_serves(self, work: Work, request: Request, start_at: float) -> bool:
        """Whether a job can wait for its place at home; no longer when home did not keep its word."""
        promised_at = self._promised.get(request.job_id)
        if promised_at is not None and work.now > promised_at + PATIENCE_S:
            return False
        burst_at, usd = work.estimate(request.shape)
        if burst_at == _INF or work.worth(start_at, burst_at, usd):
            return False
        if promised_at is None:
            promised_at = self._promised[request.job_id] = start_at
        doubted_at = max(start_at, promised_at + PATIENCE_S)
        work.untils.add(math.ceil(doubted_at / DOUBTS_S) * DOUBTS_S)  # many are looked at together
        return True


_order = attrgetter("order")

_HOME_FIX = "nothing; to burst earlier, an administrator can lower [policy] min_wait or raise max_usd_per_hour_saved"


class Told:
    """Writes verdicts down, and which of them say something new. Times alone are nothing new."""

    def __init__(self, verdicts: dict[JobId, Verdict]) -> None:
        self._verdicts = verdicts
        self._all_new = not verdicts
        self._changed: set[JobId] = set()

    @property
    def changed(self) -> set[JobId]:
        return set(self._verdicts) if self._all_new else self._changed

    def tell(self, jobs: Collection[JobId], verdict: Verdict) -> None:
        verdicts = self._verdicts
        if not self._all_new:
            for job in jobs:
                old = verdicts.get(job)
                if old is None or (old is not verdict and old != verdict):
                    self._changed.add(job)
        for job in jobs:
            verdicts[job] = verdict


def describe(verdict: Verdict, now: float) -> str:
    """The verdict in one line for people."""
    text = f"{verdict.kind}: {verdict.reason}"
    if verdict.pool:
        text += f" (pool {verdict.pool})"
    if verdict.usd_per_hour is not None:
        text += f", ${verdict.usd_per_hour:g} an hour in all"
    if verdict.until_at is not None and verdict.until_at > now:
        text += f", for another {durations.show(verdict.until_at - now)}"
    return text
