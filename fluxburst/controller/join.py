"""Nodes that come up, that fail to, and that are lost."""

from __future__ import annotations

from fluxburst.controller.effects import Undrain
from fluxburst.controller.world import OUR_DRAIN, Node, Tick, World
from fluxburst.states import COMING, NodeState, Why


def stage(world: World, tick: Tick) -> None:
    if not world.caught_up:
        return
    for node in list(world.nodes.values()):
        state, host = node.record.state, node.record.host
        if state in COMING:
            if world.online(host):
                _up(world, tick, node)
            elif tick.at(node.record.planned_at + world.config.pool[node.record.pool].join_timeout):
                fail(world, tick, node, Why.JOIN_TIMEOUT, "its broker never came up")
        elif state is NodeState.JOINED and not world.online(host):
            tick.change(node, NodeState.RELEASING, f"{Why.LOST}: its broker went away unasked")
        elif state is NodeState.DRAINING and not world.online(host):
            # the reason stays the one for which it was drained
            tick.change(node, NodeState.STOPPED, node.record.reason, stopped_at=tick.now)
            tick.change(node, NodeState.RELEASING, node.record.reason)
        elif state is NodeState.STOPPED:
            tick.change(node, NodeState.RELEASING, node.record.reason)


def _up(world: World, tick: Tick, node: Node) -> None:
    host = node.record.host
    drained = world.hosts[host].drained
    if drained is not None and not drained.startswith(OUR_DRAIN):
        # Flux drains a follower that lacks declared resources before it shows it online (resource module, verify)
        fail(world, tick, node, Why.BOOT_FAILED, f"Flux drained it: {drained}")
        return
    tick.change(node, NodeState.JOINED, "its broker is up", joined_at=tick.now)
    world.warm(node.record.pool)
    if drained is not None:
        tick.do(Undrain(host))


def fail(world: World, tick: Tick, node: Node, why: Why, detail: str) -> None:
    """A node that was bought and will not serve: give it back, and let its pool cool down."""
    tick.change(node, NodeState.RELEASING, f"{why}: {detail}")
    pool = node.record.pool
    cooling = world.cooldowns.get(pool)
    # one order that fails as a whole is one failure, not one for each of its nodes
    if cooling is None or cooling.until_at <= tick.now:
        world.cool([pool], f"{why}: {detail}", tick.now)
