"""The loop: a tuple of stages over one world."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fluxburst.controller import drain, garbage, handover, join, launch, release, resubmit, sync, tell
from fluxburst.controller.effects import Done, Effect, key
from fluxburst.controller.planning import PlanStage
from fluxburst.controller.world import Change, Tick, World
from fluxburst.flux.protocol import CaughtUp, JobEvent, ResourceEvent
from fluxburst.model import Demand, Offer

Event = JobEvent | ResourceEvent | CaughtUp | Done
Stage = Callable[[World, Tick], None]


class Hooks(Protocol):
    """What the plugins are asked by the controller."""

    def choose_job(self, job: Mapping[str, Any]) -> bool | str | None: ...
    def order_offers(self, demand: Demand, offers: Sequence[Offer]) -> Sequence[Offer] | None: ...


def stages(hooks: Hooks) -> tuple[Stage, ...]:
    """What is done with the world in each step, in this order."""
    return (
        garbage.stage,
        join.stage,
        PlanStage(hooks.order_offers),
        launch.stage,
        handover.stage,
        drain.stage,
        release.stage,
        resubmit.stage,
        tell.stage,
    )


@dataclass(frozen=True, slots=True)
class Step:
    """What came out of one step: effects to let go now (their records are committed), and when the next one is due."""

    effects: tuple[Effect, ...]
    changes: tuple[Change, ...]
    next_at: float | None


class Controller:
    """One thread; owns the world. ``post`` what happened, ``step``, let the effects go, ``post`` their outcomes."""

    def __init__(self, world: World, hooks: Hooks) -> None:
        self.world = world
        self.stages = stages(hooks)
        self._choose = hooks.choose_job
        self._inbox: deque[Event] = deque()
        self._in_flight: set[tuple[object, ...]] = set()

    def post(self, event: Event) -> None:
        self._inbox.append(event)

    def step(self, now: float) -> Step:
        """Take in what was posted, run every stage, commit.

        Args:
            now: POSIX seconds; never less than in the step before.
        """
        tick = Tick(self.world, now, self._in_flight)
        while self._inbox:
            event = self._inbox.popleft()
            if isinstance(event, Done):
                self._in_flight.discard(key(event.effect))
            sync.apply(self.world, tick, event, self._choose)
        sync.expire_holds(self.world, tick)
        for stage in self.stages:
            stage(self.world, tick)
        self.world.store.commit()
        # a change made by a late stage may let an early one go on: look again at once
        next_at = now if self.world.plan_due and self.world.caught_up else tick.look_again_at
        return Step(tuple(tick.effects), tuple(tick.changes), next_at)
