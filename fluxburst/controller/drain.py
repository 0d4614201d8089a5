"""Scale-down: idle votes, drain, look again, stop the broker."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fluxburst.controller.effects import CheckAllocated, StopBrokers
from fluxburst.controller.planning import wanted_warm
from fluxburst.controller.world import STAYING_IN_TURN, Node, Tick, World, drain_reason
from fluxburst.model import Host
from fluxburst.states import NodeState, Why

IDLE_VOTES = 3
"""A node leaves after so many looks in a row, spread over its time of idling, found it idle and not booked."""


def stage(world: World, tick: Tick) -> None:
    if not world.caught_up:
        return
    booked, staying = world.plan.booked, world.in_state(*STAYING_IN_TURN)
    _vote(world, tick, booked)
    _let_go(world, tick, staying)
    _draining(world, tick, booked)


def _vote(world: World, tick: Tick, booked: Collection[Host]) -> None:
    """Look at every node that stays for now, nobody uses and no verdict counts on."""
    # as sets, since most nodes are busy most of the time; in which order the idle ones are looked at is no matter
    idle, overdue = world.hosts_in(*STAYING_IN_TURN).difference(world.usage, booked), _overdue(world, tick)
    for host in world.voted.difference(idle, overdue):
        if host in world.nodes:
            _take_back_votes(world.nodes[host])
    world.voted = idle | overdue
    for node in map(world.nodes.__getitem__, idle - overdue):
        record, pool = node.record, world.config.pool[node.record.pool]
        if record.joined_at is not None and not tick.at(record.joined_at + pool.min_lifetime):
            _take_back_votes(node)
            continue
        interval_s = pool.idle_s(world.join_s(record)) / IDLE_VOTES
        if node.last_vote_at is None:
            node.last_vote_at = tick.now
        while node.idle_votes < IDLE_VOTES and tick.at(node.last_vote_at + interval_s):
            node.idle_votes += 1
            node.last_vote_at += interval_s
    for host in overdue:
        world.nodes[host].idle_votes = IDLE_VOTES  # whoever counts on it has not reserved it


def _overdue(world: World, tick: Tick) -> set[Host]:
    """The hosts that nobody uses and that are reserved for no longer, see :meth:`World.overdue_at`."""
    if not world.ledger.capped:
        return set()
    unused = world.hosts_in(NodeState.JOINED).difference(world.usage)
    return {host for host in unused if tick.at(world.overdue_at(host))}


def _take_back_votes(node: Node) -> None:
    node.idle_votes, node.last_vote_at = 0, None


def _let_go(world: World, tick: Tick, staying: Sequence[Node]) -> None:
    """Drain what was voted out or asked back, as far as its provider can part with it and its pool stays warm."""
    going = [node for node in staying if node.asked or node.idle_votes >= IDLE_VOTES]
    if not going:
        return
    spare = {pool: -wanted for pool, wanted in wanted_warm(world).items()}
    for node in staying:
        spare[node.record.pool] = spare.get(node.record.pool, 0) + (not node.asked)
    # the longest idle first, so that a warm pool does not flap between its nodes; then from an order's tail
    for node in sorted(going, key=lambda node: (-node.idle_votes, -world.ranks[node.record.host])):
        together = [mate for mate in world.leaves_with(node) if mate.record.state in STAYING_IN_TURN]
        if not all(mate.asked or mate.idle_votes >= IDLE_VOTES for mate in together):
            continue
        if any(mate.record.state is NodeState.PLANNED for mate in together):
            continue  # the provider's answer decides first whether there is anything to give back
        unasked = sum(not mate.asked for mate in together)
        if unasked and spare[node.record.pool] < unasked:
            continue
        spare[node.record.pool] -= unasked
        for mate in together:
            if mate.record.state is NodeState.JOINED:
                tick.change(mate, NodeState.DRAINING, str(Why.ASKED if mate.asked else Why.IDLE))
            else:
                tick.change(mate, NodeState.RELEASING, str(Why.ASKED if mate.asked else Why.NOT_NEEDED))


def _draining(world: World, tick: Tick, booked: Collection[Host]) -> None:
    ready: list[Host] = []
    look: list[Host] = []
    for node in world.in_state(NodeState.DRAINING):
        host, view = node.record.host, world.hosts[node.record.host]
        overdue = tick.at(world.overdue_at(host))
        if host in booked and node.record.stop_sent_at is None and not node.asked and not overdue:
            node.checked_at = None
            tick.change(node, NodeState.JOINED, "needed again")
        elif view.drained is None:
            node.checked_at = None
            tick.drain(host, drain_reason(node.record.reason))
        elif world.usage.get(host):
            node.checked_at = None  # its job ends first
        elif node.record.stop_sent_at is not None:
            if tick.at(node.record.stop_sent_at + world.config.pool[node.record.pool].stop_timeout):
                tick.change(node, NodeState.RELEASING, f"{Why.STOP_TIMEOUT}: its broker did not leave")
        elif node.checked_at is not None:
            ready.append(host)
        elif tick.at(node.check_again_at):
            look.append(host)
    if look:
        tick.do(CheckAllocated(tuple(look)))
    if ready and tick.do(StopBrokers(tuple(ready))):
        for host in ready:
            tick.note(world.nodes[host], stop_sent_at=tick.now)
