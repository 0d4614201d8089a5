"""Scale-down: idle votes, drain, look again, stop the broker."""

from __future__ import annotations

from fluxburst.controller.effects import CheckAllocated, Drain, StopBrokers, Undrain
from fluxburst.controller.launch import wanted_warm
from fluxburst.controller.world import OUR_DRAIN, Node, Tick, World
from fluxburst.model import Host, Shrink
from fluxburst.states import COMING, NodeState, Why

IDLE_VOTES = 3
"""A node leaves after so many looks in a row, spread over its pool's idle_timeout, found it idle and not booked."""


def stage(world: World, tick: Tick) -> None:
    if not world.caught_up:
        return
    booked = world.plan.booked()
    for node in world.nodes.values():
        _vote(world, tick, node, booked)
    _let_go(world, tick)
    _draining(world, tick, booked)


def _vote(world: World, tick: Tick, node: Node, booked: frozenset[Host]) -> None:
    record, pool = node.record, world.config.pool[node.record.pool]
    counted = record.state is NodeState.JOINED or record.state in COMING - {NodeState.PLANNED}
    young = record.joined_at is not None and not tick.at(record.joined_at + pool.min_lifetime)
    if not counted or young or world.usage.get(record.host) or record.host in booked:
        node.idle_votes, node.last_vote_at = 0, None
        return
    interval_s = pool.idle_timeout / IDLE_VOTES
    if node.last_vote_at is None:
        node.last_vote_at = tick.now
    while node.idle_votes < IDLE_VOTES and tick.at(node.last_vote_at + interval_s):
        node.idle_votes += 1
        node.last_vote_at += interval_s


def _let_go(world: World, tick: Tick) -> None:
    spare = {pool: -wanted for pool, wanted in wanted_warm(world).items()}
    staying = [
        node for node in world.nodes.values() if node.record.state is NodeState.JOINED or node.record.state in COMING
    ]
    for node in staying:
        spare[node.record.pool] = spare.get(node.record.pool, 0) + 1
    # the longest idle first, so that the votes of a pool that stays warm do not flap between its nodes
    for node in sorted(staying, key=lambda node: (-node.idle_votes, node.record.host)):
        voted_out = node.idle_votes >= IDLE_VOTES and spare[node.record.pool] > 0
        if not (node.asked or voted_out) or not _may_leave(world, node):
            continue
        spare[node.record.pool] -= 1
        if node.record.state is NodeState.JOINED:
            why = Why.ASKED if node.asked else Why.IDLE
            tick.change(node, NodeState.DRAINING, f"{why}")
        elif node.record.state is not NodeState.PLANNED:
            tick.change(node, NodeState.RELEASING, f"{Why.ASKED if node.asked else Why.NOT_NEEDED}")


def _may_leave(world: World, node: Node) -> bool:
    """Obey how the provider can shrink: any node, only an order's tail, or only an order as a whole."""
    shrink = world.shrink[node.record.provider]
    if shrink is Shrink.ANY:
        return True
    mates = world.order_mates(node)
    if shrink is Shrink.TAIL:
        mates = mates[mates.index(node) :]
    return all(
        mate.asked
        or mate.idle_votes >= IDLE_VOTES
        or mate.record.state in (NodeState.DRAINING, NodeState.STOPPED, NodeState.RELEASING)
        for mate in mates
    )


def _draining(world: World, tick: Tick, booked: frozenset[Host]) -> None:
    ready: list[Host] = []
    look = False
    for node in world.nodes.values():
        if node.record.state is not NodeState.DRAINING:
            continue
        host, view = node.record.host, world.hosts[node.record.host]
        if host in booked and node.stop_sent_at is None and not node.asked:
            node.checked_at = None
            tick.change(node, NodeState.JOINED, "needed again")
            tick.do(Undrain(host))
        elif view.drained is None:
            node.checked_at = None
            tick.do(Drain(host, f"{OUR_DRAIN}{node.record.reason}"))
        elif world.usage.get(host):
            node.checked_at = None  # its job ends first
        elif node.stop_sent_at is not None:
            if tick.at(node.stop_sent_at + world.config.pool[node.record.pool].stop_timeout):
                tick.change(node, NodeState.RELEASING, f"{Why.STOP_TIMEOUT}: its broker did not leave")
        elif node.checked_at is not None:
            ready.append(host)
        elif tick.at(node.check_again_at):
            look = True
    if look:
        tick.do(CheckAllocated())
    if ready and tick.do(StopBrokers(tuple(ready))):
        for host in ready:
            world.nodes[host].stop_sent_at = tick.now
