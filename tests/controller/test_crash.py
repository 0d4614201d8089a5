"""The service is killed at every point of a burst where anything is at stake, and started again.

A cut point is: after each stage that decided something (before its commit), around each commit that has something to
write, and around each effect. What was not committed is lost, as with kill -9; the mock Flux and the mock cloud go on.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fluxburst.controller.world import Tick, World
from fluxburst.model import JobId
from tests.rig import POOL, Rig


class Killed(BaseException):
    """The end of the process; no `except Exception` stops it."""


class Knife:
    """Counts the cut points of a rig's services, and cuts at one of them, once."""

    def __init__(self, rig: Rig, cut_at: int | None) -> None:
        self.rig = rig
        self.cut_at = cut_at
        self.seen = 0
        self.names: list[str] = []
        self.arm()

    def arm(self) -> None:
        """Wrap what the present service runs."""
        service = self.rig.service
        controller = service.controller
        controller.stages = tuple(self._stage(stage) for stage in controller.stages)
        self._around(self.rig.store, "commit", lambda: self.rig.store._db.in_transaction)
        self._around(service, "_perform", lambda: True)

    def _stage(self, stage: Callable[[World, Tick], None]) -> Callable[[World, Tick], None]:
        name = getattr(stage, "__module__", "") or type(stage).__module__

        def run(world: World, tick: Tick) -> None:
            before = (len(tick.effects), len(tick.changes))
            stage(world, tick)
            if (len(tick.effects), len(tick.changes)) != before:
                self.point(f"after {name}")

        return run

    def _around(self, owner: object, name: str, matters: Callable[[], bool]) -> None:
        inner = getattr(owner, name)

        def run(*args: Any) -> Any:
            if not matters():
                return inner(*args)
            what = f"{name} {type(args[0]).__name__}" if args else name
            self.point(f"before {what}")
            result = inner(*args)
            self.point(f"after {what}")
            return result

        setattr(owner, name, run)

    def point(self, name: str) -> None:
        self.seen += 1
        self.names.append(name)
        if self.seen == self.cut_at:
            raise Killed


def submit_all(rig: Rig) -> list[JobId]:
    """An ordinary job that fills home, a gang that home cannot hold, and small jobs that find home full."""
    return [
        rig.submit(slots=2, run_s=400, burstable=False),
        rig.submit(nodes=2, run_s=20),
        *(rig.submit(run_s=30) for _ in range(3)),
    ]


def live_through(directory: Path, cut_at: int | None) -> tuple[Rig, Knife]:
    """One whole burst, cut at most once; ends when all jobs have ended and every node is gone."""
    directory.mkdir()
    rig = Rig(directory, POOL)
    knife = Knife(rig, cut_at)
    jobs: list[JobId] = []

    def go() -> None:
        if not jobs:
            jobs.extend(submit_all(rig))
        rig.run_until(lambda: rig.ended(*jobs))
        rig.run_until(rig.all_gone)

    try:
        go()
    except Killed:
        rig.restart()
        go()
    assert rig.ended(*jobs)
    assert all(rig.hosts(job) for job in jobs)
    return rig, knife


def lives_of(rig: Rig) -> dict[str, list[tuple[float, float]]]:
    spans: dict[str, list[tuple[float, float]]] = {}
    for machine in rig.cloud.machines.values():
        spans.setdefault(machine.host, []).append((machine.ordered_at, machine.gone_at))
    return spans


def test_a_service_killed_at_any_point_neither_buys_twice_nor_forgets(tmp_path: Path) -> None:
    whole, knife = live_through(tmp_path / "whole", None)
    bought = len(whole.bought())
    whole.crash()
    points = knife.names
    # the path is really there: every stage and every kind of effect occurs
    kinds = Counter(points)
    for name in ("garbage", "join", "planning", "launch", "handover", "drain", "release", "tell"):
        assert kinds[f"after fluxburst.controller.{name}"], name
    for name in ("Launch", "ListNodes", "Release", "Ask", "Move", "Memo", "Drain", "CheckAllocated", "StopBrokers"):
        assert kinds[f"after _perform {name}"], name
    for cut_at, name in zip(itertools.count(1), points, strict=False):
        rig, cut = live_through(tmp_path / str(cut_at), cut_at)
        assert cut.seen == cut_at, f"cut {cut_at} ({name}) was not reached"
        for host, spans in lives_of(rig).items():
            for (_, ended_at), (began_at, _) in itertools.pairwise(sorted(spans)):
                assert ended_at <= began_at, f"cut {cut_at} ({name}): {host} was bought twice"
        assert len(rig.bought()) == bought, f"cut {cut_at} ({name}): bought {rig.bought()}"
        assert rig.flux.online() == {"lead0"}, f"cut {cut_at} ({name})"
        ledger = {(one.request_id, one.host): one.ended_at for one in rig.store.segments(0.0)}
        assert None not in ledger.values(), f"cut {cut_at} ({name}): something is still reserved"
        machines = {(machine.request_id, machine.host) for machine in rig.cloud.machines.values()}
        assert machines <= ledger.keys(), f"cut {cut_at} ({name}): nobody pays for {machines - ledger.keys()}"
        rig.crash()


@pytest.mark.parametrize("seconds", [0.05, 5.0, 31.0, 45.0, 90.0])
def test_a_service_that_is_away_for_a_while_finds_what_happened_meanwhile(tmp_path: Path, seconds: float) -> None:
    rig = Rig(tmp_path, POOL)
    jobs = submit_all(rig)
    rig.run_for(seconds)
    rig.crash()
    rig.run_for(100)
    rig.start()
    rig.run_until(lambda: rig.ended(*jobs))
    rig.run_until(rig.all_gone)
    assert all(rig.hosts(job) for job in jobs)
    rig.crash()


def test_a_moved_job_is_known_as_such_after_a_restart(tmp_path: Path) -> None:
    rig = Rig(tmp_path, POOL)
    rig.run_for(1)
    rig.flux.set_queue("burst", started=False)
    job = rig.submit(nodes=2)
    rig.run_until(lambda: rig.queue(job) == "burst")
    rig.crash()
    rig.flux.set_queue("burst", started=False)
    rig.start()
    rig.run_until(lambda: bool(rig.queue(job)))
    known = rig.service.world.jobs[job]
    assert (known.home_queue, known.candidate.refusal) == ("staging", "")
    rig.crash()


def test_a_node_that_left_while_the_service_was_away_is_gone_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, POOL.replace("boot_s = 30.0", "boot_s = 0.1"))
    job = rig.submit(nodes=2, run_s=0.1)
    rig.run_until(lambda: all(node.record.stop_sent_at for node in rig.service.world.nodes.values()) and rig.ended(job))
    rig.crash()
    rig.run_for(5)
    for machine in rig.cloud.living():
        machine.gone_at = rig.cloud.now()  # it ends with its broker, as a process does
    rig.start()
    rig.run_until(rig.all_gone, 5)
    rig.crash()
