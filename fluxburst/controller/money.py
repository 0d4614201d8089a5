"""Tell in the log, once, when most of a cap is committed, and when all of it is."""

from __future__ import annotations

from fluxburst.controller.world import Tick, World

_TOLD = "budget_told"


def stage(world: World, tick: Tick) -> None:
    ledger = world.ledger
    if ledger.version == world.budget_seen:
        return
    world.budget_seen = ledger.version
    reached = {" ".join(scope): level for scope, level in ledger.levels().items()}
    told: dict[str, list[float]] = world.store.setting(_TOLD, {})
    if not any(level > told.get(key, [0.0])[0] for key, level in reached.items()):
        return
    for line in ledger.report(tick.now):
        key = " ".join((line.window.name, line.scope, line.name))
        if line.level > told.get(key, [0.0])[0]:
            told[key] = [line.level, line.window.until_at]
            world.store.log(
                tick.now,
                "service",
                "budget",
                cap=line.cap,
                name=line.name,
                window=line.window.name,
                limit_usd=line.limit_usd,
                spent_usd=line.spent_usd,
                reserved_usd=line.reserved_usd,
                reason=f"{line.level:.0%} is committed"
                if line.level < 1
                else "all is committed: nothing new is bought",
            )
    world.store.set_setting(_TOLD, {key: value for key, value in told.items() if value[1] > tick.now})
