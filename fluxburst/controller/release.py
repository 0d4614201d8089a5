"""Give nodes back until the provider no longer lists them."""

from __future__ import annotations

from fluxburst.controller.effects import ListNodes, Release, Undrain
from fluxburst.controller.world import OUR_DRAIN, Listing, Node, Tick, World
from fluxburst.model import NodeId, Shrink
from fluxburst.states import NodeState

LISTING_LAG_S = 30.0
"""How long after an unanswered launch a machine may still be missing from a listing (clouds list eventually)."""
REPEAT_FIRST_S = 0.5
REPEAT_MOST_S = 30.0


def stage(world: World, tick: Tick) -> None:
    for provider in {node.record.provider for node in world.nodes.values()}:
        leaving = [
            node
            for node in world.nodes.values()
            if node.record.provider == provider and node.record.state is NodeState.RELEASING
        ]
        if leaving:
            _release(world, tick, provider, leaving)


def _release(world: World, tick: Tick, provider: str, leaving: list[Node]) -> None:
    listing = world.listings.get(provider)
    found = _by_identity(listing)
    ids: list[NodeId] = []
    for node in leaving:
        since_at = node.record.changed_at if node.released_at is None else node.released_at
        fresh = listing is not None and listing.begun_at >= since_at
        listed = found.get((node.record.request_id, node.record.host))
        if node.record.node_id is None and listed is not None:
            tick.note(node, node_id=listed)
        if fresh and listed is None:
            if _launch_unclear(world, node) and not tick.at(node.record.changed_at + LISTING_LAG_S):
                continue
            tick.change(node, NodeState.GONE, node.record.reason)
            if (world.hosts[node.record.host].drained or "").startswith(OUR_DRAIN):
                # a ghost should look like any other; where this is lost, the next join undrains it
                tick.do(Undrain(node.record.host))
        elif node.record.node_id is not None and _may_go(world, node) and _due(tick, node, listed is not None, fresh):
            ids.append(node.record.node_id)
        elif not fresh:
            tick.do(ListNodes(provider))
    if ids:
        tick.do(Release(provider, tuple(ids)))


def _due(tick: Tick, node: Node, listed: bool, fresh: bool) -> bool:
    """Release at once; again, with growing pauses, while a newer listing still has it."""
    if node.released_at is None:
        return True
    pause_s = min(REPEAT_FIRST_S * 2**node.releases, REPEAT_MOST_S)
    return listed and fresh and tick.at(node.released_at + pause_s)


def _launch_unclear(world: World, node: Node) -> bool:
    """Nobody knows whether the machine exists: the launch was never answered, it was never listed, it never joined."""
    record = node.record
    return record.node_id is None and record.joined_at is None and record.request_id in world.unclear


def _may_go(world: World, node: Node) -> bool:
    shrink = world.shrink[node.record.provider]
    if shrink is Shrink.ANY:
        return True
    mates = world.order_mates(node)
    if shrink is Shrink.TAIL:
        mates = mates[mates.index(node) :]
    return all(mate.record.state is NodeState.RELEASING for mate in mates)


def _by_identity(listing: Listing | None) -> dict[tuple[str, str], NodeId]:
    return {} if listing is None else {(node.request_id, node.host): node.node_id for node in listing.nodes}
