"""Hours of a site's life at random, in virtual time: whatever happens, what must never happen does not.

Each seed is one site: a random burst.toml, and then jobs, users, administrators, the cloud, the network and the
service itself misbehaving at random. Then calm: everything that was broken is mended, every job ends, everything goes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Literal

import pytest

from fluxburst.errors import (
    AuthDenied,
    InstanceError,
    InvalidOrder,
    NoCapacity,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
)
from fluxburst.flux.protocol import InstanceEvent, JobEvent
from fluxburst.model import Host, JobId
from fluxburst.states import NodeState
from fluxburst_mock.loop import VirtualLoop
from tests.controller.conftest import MakeRig

SEEDS = (*range(9), 13, 21, 37)
CHAOS_S = 3600.0
PAUSE_S = 15.0
"""The mean time between two things that happen."""
HOLD_MOST_S = 900.0
ALL_END_S = 6 * 3600.0
ALL_GONE_S = 1800.0
STEPS_A_HAPPENING = 4.0
"""Steps of the controller for each event of Flux and each call of a provider; timers of its own included."""

ERRORS: tuple[Callable[[], ProviderError], ...] = (
    lambda: NoCapacity("sold out"),
    lambda: QuotaExceeded("the quota is used up"),
    lambda: AuthDenied("expired"),
    lambda: InvalidOrder("no such image"),
    lambda: RateLimited("slow down", retry_after_s=20.0),
    lambda: RateLimited("slow down"),
    lambda: ProviderUnavailable("timed out"),
)


class Late(Executor):
    """A worker whose calls take a while to arrive, and their answers a while to come back."""

    def __init__(self, loop: VirtualLoop, draw: Callable[[], float]) -> None:
        self._loop = loop
        self._draw = draw

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def carry_out() -> None:
            try:
                result = fn(*args, **kwargs)
            except ProviderError as error:
                self._loop.call_later(self._draw(), future.set_exception, error)
            else:
                self._loop.call_later(self._draw(), future.set_result, result)

        self._loop.call_later(self._draw(), carry_out)
        return future


class Site:
    """One rig with everything random about it, and a witness of what Flux tells."""

    def __init__(self, make_rig: MakeRig, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.open = dice.random() < 0.3
        self.limit = dice.choice([None, None, 4, 6])
        self.most = {"cpu": dice.choice([None, 3, 4]), "spot": dice.choice([None, 2])}
        self.declared = {"cpu": 6, "spot": 3}
        self.cores = {"cpu": 2, "spot": 4}
        # under sched-simple, a job that is submitted straight to a pool's queue blocks all others until it is served
        scheduler: Literal["fifo", "easy"] = "easy" if self.open else dice.choice(["fifo", "easy"])
        self.fifo = scheduler == "fifo"
        self.rig = make_rig(self._burst_toml(), mode="open" if self.open else "queue", scheduler=scheduler)
        self.rig.cloud.release_tries = dice.choice([1, 1, 3])
        self.lateness_s = 0.0
        self.flux_fails = 0.0
        self.cloud_fails = 0.0
        self.struck: dict[Host, float] = {}
        self.ordinary: set[JobId] = set()
        self.mine: list[JobId] = []
        self.impossible: set[JobId] = set()
        self.active: set[JobId] = set()
        self.wrong: list[str] = []
        self.happenings = self.steps = 0
        self.diary: list[str] = []
        self.witness = self.rig.flux.connect()
        self.witness.subscribe(self._see)
        self._around_service()

    def _burst_toml(self) -> str:
        dice = self.dice
        text = f"[limits]\nnodes = {self.limit}\n" if self.limit else ""
        text += '[policy]\ncooldown = "10s"\ncooldown_max = "5m"\nreconcile_interval = "2m"\n'
        text += f'on_node_loss = "{dice.choice(["leave", "resubmit"])}"\nmax_resubmits = 2\n'
        for provider in ("one", "two"):
            text += f'[provider.{provider}]\nplugin = "mock"\nshrink = "{dice.choice(["any", "tail", "order"])}"\n'
            text += f"in_blocks = {dice.choice(['false', 'false', 'true'])}\n"
        for pool, provider in (("cpu", "one"), ("spot", dice.choice(["one", "two"]))):
            text += (
                f'[pool.{pool}]\nprovider = "{provider}"\nhosts = "{pool}-[0-{self.declared[pool] - 1}]"\n'
                f"cores = {self.cores[pool]}\n"
                f'idle_timeout = "{dice.choice([15, 60, 120])}s"\nmin_lifetime = "{dice.choice([0, 90])}s"\n'
                f'join_timeout = "{dice.choice([90, 240])}s"\nstop_timeout = "{dice.choice([5, 30])}s"\n'
            )
            if self.most[pool]:
                text += f"max_nodes = {self.most[pool]}\n"
            text += f"[pool.{pool}.options]\nboot_s = {dice.choice([3, 30, 70])}.0\nusd_per_node_hour = 0.5\n"
        return text

    def most_nodes(self) -> int:
        """The largest gang that this site can ever serve."""
        most = max(self.most[pool] or self.declared[pool] for pool in self.declared)
        return min(most, self.limit or most)

    # The service and its connections

    def _around_service(self) -> None:
        service, connection, dice = self.rig.service, self.rig.connection, self.dice
        step = service._step

        def counted() -> None:
            self.steps += 1
            step()

        service._step = counted  # type: ignore[method-assign]
        service._providers._executor = Late(self.rig.loop, lambda: 0.01 + dice.random() * self.lateness_s)
        for name in ("move", "memo", "drain", "undrain", "allocated", "stop_brokers", "set_queue", "submit"):
            setattr(connection, name, self._flaky(getattr(connection, name)))

    def _flaky(self, request: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
        """Fails now and then, before or after Flux has done what was asked."""

        def ask(*args: Any, **kwargs: Any) -> Future[Any]:
            if self.dice.random() >= self.flux_fails:
                return request(*args, **kwargs)
            if self.dice.random() < 0.5:
                request(*args, **kwargs)
            unanswered: Future[Any] = Future()
            self.rig.loop.call_later(0.002, unanswered.set_exception, InstanceError("no answer"))
            return unanswered

        return ask

    def restart(self, away_s: float) -> None:
        self.rig.crash()
        self.rig.run_for(away_s)
        self.rig.start()
        self._around_service()

    # The witness

    def _see(self, event: InstanceEvent) -> None:
        self.happenings += 1
        if not isinstance(event, JobEvent):
            return
        if event.name == "submit":
            self.active.add(event.job_id)
        elif event.name in ("clean", "invalidate"):
            self.active.discard(event.job_id)
        elif event.name == "alloc" and event.job_id in self.ordinary:
            if away := [share.host for share in event.allocation if share.host != "lead0"]:
                self.wrong.append(f"ordinary job {event.job_id} on {away}")
        elif event.name == "exception" and event.context["type"] not in ("cancel", "timeout"):
            if event.job_id in self.impossible:
                return
            hosts = {share.host for share in self.rig.flux.allocation(event.job_id)}
            if not any(event.at - self.struck.get(host, float("-inf")) < 60 for host in hosts):
                self.wrong.append(f"job {event.job_id} on {sorted(hosts)} failed at {self.at()}: {event.context}")

    def at(self) -> float:
        return round(self.rig.loop.time(), 3)

    def look(self) -> None:
        """What must hold at every moment."""
        living = self.rig.cloud.living()
        hosts = Counter(machine.host for machine in living)
        pools = Counter(machine.pool for machine in living)
        assert max(hosts.values(), default=0) <= 1, (self.at(), hosts)
        assert self.limit is None or len(living) <= self.limit, (self.at(), hosts)
        for pool, most in self.most.items():
            assert most is None or pools[pool] <= most, (self.at(), hosts)
        assert not self.wrong, self.wrong

    # What happens

    def happen(self) -> None:
        dice = self.dice
        what = dice.choice(WHAT)
        self.diary.append(f"{self.at()} {what.__name__}")
        what(self)

    def burstable_job(self) -> None:
        dice, nodes = self.dice, self.dice.choice([0, 0, 1, 2, 2, 3, 4])
        queue: dict[str, Any] = {} if self.fifo or self.open or dice.random() < 0.9 else {"queue": "cpu"}
        most = self.most["cpu"] or self.declared["cpu"]
        most = min(most, self.limit or most) if queue else self.most_nodes()
        where: dict[str, Any] = {"nodes": min(nodes, most)} if nodes else {"slots": dice.randint(1, most)}
        if dice.random() < 0.2:
            queue["burst"] = {"wait": f"{dice.randint(1, 300)}s"}
        self.mine.append(
            self.rig.submit(
                **where,
                cores=dice.choice([1, 1, 2]),
                run_s=dice.choice([0.5, 5.0, 60.0, 400.0]),
                duration_s=dice.choice([0.0, 0.0, 30.0, 600.0]),
                urgency=dice.choice([16, 16, 16, 20, 0]),
                userid=dice.choice([None, 4711]),
                **queue,
            )
        )

    def many_jobs(self) -> None:
        for _ in range(self.dice.randint(2, 8)):
            self.burstable_job()

    def ordinary_job(self) -> None:
        run_s = self.dice.choice([1.0, 30.0, 200.0])
        job = self.rig.submit(slots=self.dice.choice([1, 2]), burstable=False, run_s=run_s)
        self.ordinary.add(job)
        self.mine.append(job)

    def impossible_job(self) -> None:
        self.impossible.add(self.rig.submit(nodes=99))

    def cancel(self) -> None:
        self._try(lambda: self.rig.flux.cancel(self.dice.choice(self.mine)))

    def urgency(self) -> None:
        self._try(lambda: self.rig.flux.set_urgency(self.dice.choice(self.mine), self.dice.choice([0, 8, 16, 31])))

    def _try(self, call: Callable[[], object]) -> None:
        if self.mine:
            try:
                call()
            except InstanceError:
                self.diary.append("  which Flux refused, as the job is past that")

    def queue(self) -> None:
        if not self.open:
            name = self.dice.choice(["batch", "cpu", "spot", "staging"])
            self.rig.flux.set_queue(name, started=self.dice.random() < 0.5)

    def queue_disabled(self) -> None:
        if not self.open:
            self.rig.flux.disable_queue("spot", "maintenance")

    def admin_drains(self) -> None:
        self.rig.flux.drain([self._host()], "looks odd")

    def admin_undrains(self) -> None:
        self.rig.flux.undrain([self._host()])

    def hold(self) -> None:
        self.rig.ask("request", pool="cpu", nodes=self.dice.randint(1, 3), for_s=self.dice.uniform(10, HOLD_MOST_S))

    def release(self) -> None:
        if states := self.rig.states():
            self.rig.ask("release", hosts=self.dice.choice(sorted(states)))

    def pause(self) -> None:
        self.rig.ask(self.dice.choice(["pause", "resume", "resume"]))

    def provider_fails(self) -> None:
        for _ in range(self.dice.choice([1, 1, 3])):
            method = self.dice.choice(["offers", "launch", "launch", "list_nodes", "release"])
            self.rig.cloud.fail(method, self.dice.choice(ERRORS)(), after=self.dice.random() < 0.5)

    def machines_differ(self) -> None:
        cloud = self.rig.cloud
        self.dice.choice([cloud.never_boot, cloud.die_in_boot]).add(self._host())
        cloud.boot_s[self._host()] = self.dice.uniform(0, 300)

    def machines_are_well(self) -> None:
        self.rig.cloud.never_boot.clear()
        self.rig.cloud.die_in_boot.clear()
        self.rig.cloud.boot_s.clear()

    def machine_ends(self) -> None:
        if living := self.rig.cloud.living():
            machine = self.dice.choice(living)
            self.struck[machine.host] = self.rig.loop.wall()
            if self.dice.random() < 0.3 and machine.host in self.rig.flux.online():
                # in good order, as a spot machine that was warned
                self.rig.flux.leave([machine.host])
                self.rig.run_for(self.dice.choice([0.05, 1.0, 10.0]))
            self.rig.cloud.interrupt(machine.host)

    def weather(self) -> None:
        dice, cloud = self.dice, self.rig.cloud
        self.lateness_s = dice.choice([0.0, 0.1, 5.0])
        self.flux_fails = dice.choice([0.0, 0.0, 0.1, 0.5])
        cloud.listing_lag_s = dice.choice([0.0, 2.0, 10.0])
        cloud.stock = dice.choice([{}, {}, {"cpu": 2}, {"cpu": 1, "spot": 1}])

    def service_dies(self) -> None:
        self.restart(self.dice.choice([0.0, 0.5, 20.0, 400.0]))

    def service_dies_often(self) -> None:
        for _ in range(self.dice.randint(2, 5)):
            self.restart(0.0)
            self.rig.run_for(self.dice.choice([0.0015, 0.01, 0.05, 1.0]))

    def _host(self) -> Host:
        pool = self.dice.choice(list(self.declared))
        return Host(f"{pool}-{self.dice.randrange(self.declared[pool])}")

    def mend(self) -> None:
        """What a site's people would do in the end: everything that was broken is whole again."""
        rig = self.rig
        self.machines_are_well()
        self.lateness_s = self.flux_fails = 0.0
        rig.cloud._faults.clear()
        rig.cloud.stock = {}
        if not self.open:
            for queue in ("batch", "cpu", "spot"):
                rig.flux.set_queue(queue, started=True)
            rig.flux.set_queue("staging", started=False)
            rig.flux.enable_queue("spot")
        ours = {host for host, view in rig.service.world.hosts.items() if (view.drained or "").startswith("fluxburst")}
        rig.flux.undrain([host for host in rig.service.world.hosts if host not in ours])
        rig.ask("resume")
        for job in self.impossible & self.active:
            rig.flux.cancel(job)
        for job in self.mine:
            if job in self.active and rig.flux.state(job).name not in ("RUN", "CLEANUP"):
                rig.flux.set_urgency(job, 16)


WHAT = (
    *[Site.burstable_job] * 12,
    *[Site.many_jobs] * 3,
    *[Site.ordinary_job] * 4,
    Site.impossible_job,
    *[Site.cancel] * 3,
    *[Site.urgency] * 3,
    *[Site.queue] * 2,
    Site.queue_disabled,
    Site.admin_drains,
    *[Site.admin_undrains] * 2,
    *[Site.hold] * 2,
    *[Site.release] * 2,
    *[Site.pause] * 2,
    *[Site.provider_fails] * 5,
    *[Site.machines_differ] * 2,
    *[Site.machines_are_well] * 2,
    *[Site.machine_ends] * 3,
    *[Site.weather] * 3,
    *[Site.service_dies] * 2,
    Site.service_dies_often,
)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_nothing_is_bought_twice_or_forgotten_and_every_job_ends(make_rig: MakeRig, seed: int) -> None:
    site = Site(make_rig, seed)
    rig, dice = site.rig, site.dice
    while rig.loop.time() < CHAOS_S:
        site.happen()
        site.look()
        rig.run_for(dice.expovariate(1 / PAUSE_S))
        site.look()
    site.mend()
    rig.run_until(lambda: not site.active, ALL_END_S)
    rig.run_for(HOLD_MOST_S)
    rig.run_until(rig.all_gone, ALL_GONE_S)
    site.look()
    assert site.steps <= STEPS_A_HAPPENING * (site.happenings + len(rig.cloud.calls)), (site.steps, site.happenings)
    assert all(machine.gone_at < float("inf") for machine in rig.cloud.machines.values())
    assert {node.state for node in rig.store.node_history()} <= {NodeState.GONE}
    rig.run_for(600)
    calls, steps = len(rig.cloud.calls), site.steps
    rig.run_for(86400)
    assert (len(rig.cloud.calls), site.steps) == (calls, steps), "something goes on although nothing lives"
