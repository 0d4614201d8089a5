"""The loop: a tuple of stages over one world."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fluxburst.controller import drain, garbage, handover, history, join, launch, money, release, resubmit, sync, tell
from fluxburst.controller.effects import Done, Effect, Key, ListNodes, keys
from fluxburst.controller.planning import PlanStage
from fluxburst.controller.world import Change, Tick, World
from fluxburst.flux.protocol import CaughtUp, JobEvent, ResourceEvent
from fluxburst.model import Demand, Offer
from fluxburst.moment import Planner

Event = JobEvent | ResourceEvent | CaughtUp | Done
Stage = Callable[[World, Tick], None]


class Hooks(Protocol):
    """What the plugins are asked by the controller."""

    def choose_job(self, job: Mapping[str, Any]) -> bool | str | None: ...
    def order_offers(self, demand: Demand, offers: Sequence[Offer]) -> Sequence[Offer] | None: ...


def stages(planner: Planner, *, dry_run: bool) -> tuple[Stage, ...]:
    """What is done with the world in each step, in this order."""
    if dry_run:
        # what comes and goes is followed, and nothing is made of it: no order, no move, no memo
        watching = (sync.expire_holds, garbage.stage, join.stage, PlanStage(planner, dry_run=True))
        return (*watching, drain.stage, release.stage, history.stage)
    return (
        sync.expire_holds,
        garbage.stage,
        join.stage,
        PlanStage(planner),
        launch.stage,
        handover.stage,
        drain.stage,
        release.stage,
        resubmit.stage,
        money.stage,
        tell.stage,
        history.stage,
    )


@dataclass(frozen=True, slots=True)
class Step:
    """What came out of one step: effects to let go now (their records are committed), and when the next one is due."""

    effects: tuple[Effect, ...]
    changes: tuple[Change, ...]
    next_at: float | None


class Controller:
    """One thread; owns the world. ``post`` what happened, ``step``, let the effects go, ``post`` their outcomes.

    With ``dry_run`` all effects are questions (:data:`fluxburst.controller.effects.QUESTIONS`).
    """

    def __init__(self, world: World, hooks: Hooks, planner: Planner, *, dry_run: bool = False) -> None:
        self.world = world
        self._dry_run = dry_run
        self.stages = stages(planner, dry_run=dry_run)
        self._choose = hooks.choose_job
        self._inbox: deque[Event] = deque()
        self._in_flight: dict[Key, bool] = {}
        """The keys of the effects under way, and whether a stage has wanted the same since."""
        self._due: list[float | None] = [0.0] * len(self.stages)
        """For each stage, when time alone gives it something to do."""
        self._compares = self.stages.index(garbage.stage)
        self._plans = next(index for index, stage in enumerate(self.stages) if isinstance(stage, PlanStage))

    def post(self, event: Event) -> None:
        self._inbox.append(event)

    def step(self, now: float) -> Step:
        """Take in what was posted, run the stages that may have something to do, commit.

        A stage is left out while the world is as it was when the stage ran last and no time has come that it named.

        Args:
            now: POSIX seconds; never less than in the step before.
        """
        world = self.world
        tick = Tick(world, now, self._in_flight, dry_run=self._dry_run)
        while self._inbox:
            event = self._inbox.popleft()
            if isinstance(event, Done):
                for its_key in keys(event.effect):
                    if self._in_flight.pop(its_key):
                        world.stale = True
                if isinstance(event.effect, ListNodes):
                    self._due[self._compares] = now
            sync.apply(world, tick, event, self._choose)
        launch.settle_probes(world)
        plan_at = now if world.plan_due or world.window else world.plan_again_at
        if plan_at is not None:
            planned_at = self._due[self._plans]
            self._due[self._plans] = plan_at if planned_at is None else min(plan_at, planned_at)
        due_at = min(filter(None, self._due), default=None)
        if world.stale or (due_at is not None and due_at <= now):
            due_at = self._run(world, tick)
        world.store.commit()
        # a change made by a late stage may let an early one go on: look again at once
        return Step(tick.effects, tuple(tick.changes), now if world.plan_due and world.caught_up else due_at)

    def _run(self, world: World, tick: Tick) -> float | None:
        """Run the stages that may have something to do; when time alone gives one something to do again."""
        now = tick.now
        stale, world.stale = world.stale, False
        for index, stage in enumerate(self.stages):
            due_at = self._due[index]
            if stale or (due_at is not None and due_at <= now):
                plan, plan_due, tick.look_again_at = world.plan, world.plan_due, None
                stage(world, tick)
                self._due[index] = tick.look_again_at
                stale = stale or world.stale or world.plan_due > plan_due or world.plan is not plan
        return min(filter(None, self._due), default=None)
