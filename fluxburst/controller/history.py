"""Forget, once a day, what is older than ``keep_history``."""

from __future__ import annotations

from fluxburst.controller.world import Tick, World

FORGET_EVERY_S = 86400.0


def stage(world: World, tick: Tick) -> None:
    # without a timer of its own: while nothing happens, nothing is added either
    if tick.now >= world.forget_at:
        world.forget_at = tick.now + FORGET_EVERY_S
        world.store.forget(tick.now - world.config.keep_history)
