"""Wires the rooms: one Flux instance, the providers, the store and the controller, on one loop."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import structlog

from fluxburst import __version__, bootkit, jobspec
from fluxburst.config import BurstConfig
from fluxburst.controller import Controller, Done, Effect, World
from fluxburst.controller import effects as fx
from fluxburst.controller.report import Reports
from fluxburst.errors import Disconnected, FluxburstError
from fluxburst.flux.protocol import Caller, CaughtUp, ConnectionLost, Instance, InstanceEvent, JobEvent, Loop, Timer
from fluxburst.jobid import f58
from fluxburst.model import JobId, RequestId, Secret
from fluxburst.moment import Planner
from fluxburst.plan import Packer
from fluxburst.provider.discovery import Plugins
from fluxburst.provider.manager import Providers
from fluxburst.store import LogEntry, Records

log = structlog.get_logger("fluxburst")


def new_request_id() -> RequestId:
    """A fresh request id: ``b-`` and 60 random bits in lower-case base 32."""
    return RequestId("b-" + base64.b32encode(os.urandom(10)).decode().lower()[:12])


def echo(entry: LogEntry) -> None:
    """Every line of the store's log is a line of the service's log, with job ids as users see them."""
    kind, _, name = entry.subject.partition("/")
    told = {key: value for key, value in entry.data.items() if value not in ("", (), None)}
    told |= {key: f58(told[key]) for key in ("new", "of") if key in told}
    if "jobs" in told:
        told["jobs"] = [f58(job_id) for job_id in told["jobs"]]
    log.info(entry.kind, subject=f"job/{f58(int(name))}" if kind == "job" else entry.subject, **told)


class Service:
    """One connection's life. Building it reads the store; :meth:`start` subscribes; the loop does the rest.

    ``clock`` gives POSIX seconds, and is read once. With ``dry_run`` the log tells what would be bought, and nothing is
    changed: providers are asked for offers and machines, Flux and plugins hear nothing, no RPC is answered. So it may
    run beside another service, with a store of its own.
    """

    def __init__(
        self,
        config: BurstConfig,
        instance: Instance,
        loop: Loop,
        providers: Providers,
        plugins: Plugins,
        store: Records,
        *,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], RequestId] = new_request_id,
        planner: Planner | None = None,
        dry_run: bool = False,
    ) -> None:
        self._instance = instance
        self._loop = loop
        self._providers = providers
        self._plugins = plugins
        self._config = config
        providers.prepare()
        boot = bootkit.boot_material(instance.facts.config, config, certificate(instance.facts.config))
        # time goes on from the latest record, by the loop's own clock: a wall clock that is set back stops nothing
        now = max([clock(), *(node.changed_at for node in store.live_nodes())])
        world = World(
            config,
            store,
            instance.facts,
            lambda: boot,
            new_id,
            providers.shrink,
            providers.in_blocks,
            plugins.order_offers,
            now=now,
        )
        self.controller = Controller(world, plugins, planner or Packer(), dry_run=dry_run)
        self.reports = Reports(world, plugins, providers)
        self.lost: ConnectionLost | None = None
        self._timer: Timer | None = None
        self._timer_at: float | None = None
        self._step_due = False
        self._closed = False
        self._epoch = now - loop.time()
        self._past: tuple[int, float] | None = (0, time.monotonic())
        self._dry_run = dry_run

    @property
    def world(self) -> World:
        return self.controller.world

    def start(self) -> None:
        """Register the RPCs and begin to follow the journals."""
        log.info(
            "started",
            version=__version__,
            cluster=self._config.cluster,
            mode=self._config.mode,
            **({"dry_run": True} if self._dry_run else {}),
        )
        if not self._dry_run:
            self._instance.serve(self.handle)
        self._instance.subscribe(self._take)
        self.wake()

    def close(self) -> None:
        """Stop listening; nodes stay. Calls under way end in the workers; the next start finds their outcome."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._instance.close()

    def wake(self) -> None:
        """Have a step soon; however often it is asked for, once."""
        if not self._step_due:
            self._step_due = True
            self._loop.call_soon_threadsafe(self._step)

    def handle(self, method: str, payload: Mapping[str, Any], caller: Caller) -> Mapping[str, Any]:
        """Answer one RPC ``burst.METHOD``."""
        response = self.reports.answer(method, payload, caller, self._now())
        self.world.stale = True
        self.wake()
        return response

    def _take(self, event: InstanceEvent) -> None:
        if isinstance(event, ConnectionLost):
            self.lost = event
            self._loop.stop()
            return
        if self._past is not None:
            self._past = self._count_past(self._past, event)
        self.controller.post(event)
        if not isinstance(event, JobEvent) or event.name not in ("start", "finish"):  # these can wait for the next
            self.wake()

    def _count_past(self, past: tuple[int, float], event: InstanceEvent) -> tuple[int, float] | None:
        """How many events the journals' past had and how long it took, for the log; None when it is over."""
        count, begun_s = past
        if isinstance(event, CaughtUp):
            log.info("caught up", events=count, seconds=round(time.monotonic() - begun_s, 3))
            return None
        return count + 1, begun_s

    def _now(self) -> float:
        return self._epoch + self._loop.time()

    def _step(self) -> None:
        self._step_due = False
        if self._closed:
            return
        now = self._now()
        step = self.controller.step(now)
        for effect in step.effects:
            self._let_go(effect, now)
        for change in step.changes if not self._dry_run else ():
            self._plugins.node_changed(change.node, change.old)
        self._wake_at(step.next_at)

    def _wake_at(self, at: float | None) -> None:
        """Have the next step by then; None needs none."""
        if self._timer is not None:
            if at == self._timer_at:
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            delay_s = at - self._now()
            if delay_s <= 0:
                self.wake()
            else:
                self._timer, self._timer_at = self._loop.call_later(delay_s, self._alarm), at

    def _alarm(self) -> None:
        self._timer = None
        self.wake()

    def _let_go(self, effect: Effect, begun_at: float) -> None:
        def done(future: Future[Any]) -> None:
            if not future.cancelled():
                self._loop.call_soon_threadsafe(self._done, effect, begun_at, future)

        self._perform(effect).add_done_callback(done)

    def _done(self, effect: Effect, begun_at: float, future: Future[Any]) -> None:
        if self._closed:
            return
        error = future.exception()
        if error is not None and not isinstance(error, FluxburstError):
            log.error("a call failed in a way that it should not", effect=type(effect).__name__, exc_info=error)
        result = None if error is not None else future.result()
        self.controller.post(Done(effect, begun_at, self._now(), result, error))
        self.wake()

    def _perform(self, effect: Effect) -> Future[Any]:
        instance, providers = self._instance, self._providers
        match effect:
            case fx.Launch(provider, order):
                return providers.launch(provider, order)
            case fx.Release(provider, node_ids):
                return providers.release(provider, node_ids)
            case fx.ListNodes(provider):
                return providers.list_nodes(provider)
            case fx.Ask(provider, demand):
                return providers.offers(provider, demand)
            case fx.Move(job_id, queue):
                return instance.move(job_id, queue)
            case fx.Memo(job_id, burst):
                return instance.memo(job_id, {"burst": dict(burst)})
            case fx.Drain(hosts, reason):
                return instance.drain(hosts, reason)
            case fx.Undrain(hosts):
                return instance.undrain(hosts)
            case fx.CheckAllocated():
                return instance.allocated()
            case fx.StopBrokers(hosts):
                return instance.stop_brokers(hosts)
            case fx.SetQueue(queue, started):
                return instance.set_queue(queue, started=started)
            case fx.Resubmit():
                return self._resubmit(effect)

    def _resubmit(self, effect: fx.Resubmit) -> Future[JobId]:
        """Fetch the whole jobspec, mark the copy, submit it; the outcome is the new job's id."""
        outcome: Future[JobId] = Future()

        def pass_on(future: Future[JobId]) -> None:
            error = future.exception()
            if error is None:
                outcome.set_result(future.result())
            else:
                outcome.set_exception(error)

        def submit(future: Future[Mapping[str, Any]]) -> None:
            error = future.exception()
            if error is not None:
                outcome.set_exception(error)
                return
            copy = jobspec.mark_resubmission(future.result(), effect.job_id, effect.attempt)
            self._instance.submit(copy, urgency=effect.urgency).add_done_callback(pass_on)

        self._instance.jobspec(effect.job_id).add_done_callback(submit)
        return outcome


def certificate(live: Mapping[str, Any]) -> Secret | None:
    """The bytes of the lead's own certificate, where this process may read it; only some providers need them."""
    path = live.get("bootstrap", {}).get("curve_cert", "")
    try:
        return Secret(Path(path).read_bytes()) if path else None
    except OSError:
        return None  # who needs it says so when it launches, and in its check


def run(service: Service, loop: Loop) -> None:
    """Run one connection until the loop is stopped.

    Raises:
        Disconnected: the connection was lost; a new one should be opened.
    """
    service.start()
    try:
        loop.run_forever()
    finally:
        service.close()
    if service.lost is not None:
        raise Disconnected(f"lost the connection to Flux: {service.lost.reason}")
