"""Nodes that come up, that fail to, and that are lost."""

from __future__ import annotations

from fluxburst.controller.world import Node, Tick, World, drain_reason, our_drain
from fluxburst.offers import boot_key
from fluxburst.states import COMING, NodeState, Why


def stage(world: World, tick: Tick) -> None:
    if not world.caught_up:
        return
    for host in list(world.unsettled):
        node = world.nodes.get(host)
        if node is None or _settle(world, tick, node):
            del world.unsettled[host]
    if any(change.node.state is NodeState.JOINED for change in tick.changes):
        world.save_joins()
    for host in sorted(world.drained_by_us):
        if host not in world.nodes and not world.online(host):
            # a ghost should look like any other
            tick.undrain(host)


def _settle(world: World, tick: Tick, node: Node) -> bool:
    """Bring a record into line with what Flux shows of its host; whether there is nothing to wait for any more."""
    state, host = node.record.state, node.record.host
    view = world.hosts[host]
    if state in COMING:
        if view.online:
            _up(world, tick, node)
        elif tick.at(node.record.planned_at + world.config.pool[node.record.pool].join_timeout):
            fail(world, tick, node, Why.JOIN_TIMEOUT, "its broker never came up")
    elif state is NodeState.JOINED and not view.online:
        _lost(world, tick, node)
    elif state is NodeState.DRAINING and not view.online:
        # the reason stays the one for which it was drained
        tick.change(node, NodeState.STOPPED, node.record.reason)
        tick.change(node, NodeState.RELEASING, node.record.reason)
    elif state is NodeState.STOPPED:
        tick.change(node, NodeState.RELEASING, node.record.reason)
    # by what is, not by what changed: either call may have failed before
    if node.record.state is NodeState.JOINED and our_drain(view.drained):
        tick.undrain(host)
        return False
    if node.record.state is NodeState.RELEASING and view.drained is None:
        # should it come up after all, no job must start on a machine that is about to go
        tick.drain(host, drain_reason(node.record.reason))
        return False
    return node.record.state not in COMING


def _up(world: World, tick: Tick, node: Node) -> None:
    drained = world.hosts[node.record.host].drained
    if drained is not None and not our_drain(drained):
        # Flux drains a follower that lacks declared resources before it shows it online (resource module, verify)
        fail(world, tick, node, Why.BOOT_FAILED, f"Flux drained it: {drained}")
    else:
        tick.change(node, NodeState.JOINED, "its broker is up", joined_at=tick.now)
        order = world.orders.get(node.record.request_id)
        if order is not None and not node.inherited:
            world.joins.add(order.offer, tick.now - node.record.planned_at)


def _lost(world: World, tick: Tick, node: Node) -> None:
    for job in world.suspected(tick.now):
        if any(share.host == node.record.host for share in job.allocation):
            world.lose(job, node.record.host)
    detail = "its broker went away unasked"
    if node.used:
        tick.change(node, NodeState.RELEASING, f"{Why.LOST}: {detail}")
    else:
        # one that comes up and goes before it was of any use is no better than one that fails in its boot
        fail(world, tick, node, Why.LOST, detail)


def fail(world: World, tick: Tick, node: Node, why: Why, detail: str) -> None:
    """A node that was bought and will not serve: give it back, and let its pool cool down.

    One whose boot fails beside others of its order that came up says nothing about the pool: it is replaced at once.
    """
    coming = node.record.state in COMING
    alone = not (coming and any(mate.record.state is NodeState.JOINED for mate in world.order_mates(node)))
    tick.change(node, NodeState.RELEASING, f"{why}: {detail}")
    if alone:
        world.cool(boot_key(node.record.pool), node.record.pool, f"{why}: {detail}", tick.now)
