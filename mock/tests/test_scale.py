"""Ten thousand jobs in virtual time: all of them end, and the work for each does not grow with their number."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import pytest

from fluxburst.flux.protocol import InstanceEvent, JobEvent
from fluxburst_mock.instance import MockInstance
from fluxburst_mock.loop import VirtualLoop, VirtualTimer
from fluxburst_mock.scheduler import Domain

JOBS = 10_000
CONFIG = {
    "bootstrap": {"hosts": [{"host": "lead0"}, {"host": "n[1-63]"}]},
    "resource": {"config": [{"hosts": "lead0,n[1-63]", "cores": "0-3"}]},
}


class CountingLoop(VirtualLoop):
    callbacks = 0

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> VirtualTimer:
        self.callbacks += 1
        return super().call_later(delay, callback, *args)


def jobspec(chance: random.Random) -> dict[str, Any]:
    duration = chance.uniform(60, 7200)
    slot: dict[str, Any] = {
        "type": "slot",
        "count": 1,
        "label": "task",
        "with": [{"type": "core", "count": chance.randint(1, 4)}],
    }
    nodes = chance.choice([0, 0, 0, 1, 2, 8])
    return {
        "version": 1,
        "resources": [{"type": "node", "count": nodes, "exclusive": True, "with": [slot]}] if nodes else [slot],
        "tasks": [{"command": ["sleep", str(duration * 0.6)], "slot": "task", "count": {"per_slot": 1}}],
        "attributes": {"system": {"duration": duration}},
    }


@pytest.mark.parametrize("scheduler", ["fifo", "easy"])
def test_ten_thousand_jobs_end_with_bounded_work_for_each(
    scheduler: Literal["fifo", "easy"], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, chance, told, choices = CountingLoop(), random.Random(7), Counter[str](), Counter[str]()
    flux = MockInstance(loop, CONFIG, scheduler=scheduler, wall=loop.wall)
    choose = Domain.choose

    def counted(*args: Any) -> Any:
        choices["made"] += 1
        return choose(*args)

    def tell(event: InstanceEvent) -> None:
        if isinstance(event, JobEvent) and event.name != "annotations":  # no part of a job's life
            told[event.name] += 1

    monkeypatch.setattr(Domain, "choose", counted)
    flux.connect().subscribe(tell)
    flux.join(flux.facts.hosts[1:])
    for _ in range(JOBS):
        loop.call_later(chance.uniform(0, 3600), flux.submit, jobspec(chance))
    loop.run_forever()
    lives = ("submit", "depend", "priority", "alloc", "start", "finish", "free", "clean")
    assert told == dict.fromkeys(lives, JOBS)
    assert flux.allocated() == frozenset()
    assert loop.callbacks < 10 * JOBS
    assert choices["made"] < (3 if scheduler == "fifo" else 60) * JOBS
