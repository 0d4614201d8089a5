"""Give nodes back until the provider no longer lists them."""

from __future__ import annotations

from fluxburst.controller.effects import ListNodes, Release
from fluxburst.controller.world import Node, Tick, World
from fluxburst.model import NodeId
from fluxburst.states import NodeState

LISTING_LAG_S = 30.0
"""How long after a launch a machine may still be missing from a listing (clouds list eventually)."""
REPEAT_FIRST_S = 0.5
REPEAT_MOST_S = 30.0


def stage(world: World, tick: Tick) -> None:
    if not world.caught_up:
        return  # who runs where is not known yet
    leaving: dict[str, list[Node]] = {}
    for node in world.in_state(NodeState.RELEASING):
        leaving.setdefault(node.record.provider, []).append(node)
    for provider, nodes in leaving.items():
        _release(world, tick, provider, nodes)


def _release(world: World, tick: Tick, provider: str, leaving: list[Node]) -> None:
    listing = world.listings.get(provider)
    ids: list[NodeId] = []
    for node in leaving:
        proves_at = _proves_at(node)
        fresh = listing is not None and listing.begun_at >= proves_at
        listed = listing.node_ids.get((node.record.request_id, node.record.host)) if listing is not None else None
        if node.record.node_id is None and listed is not None:
            tick.note(node, node_id=listed)
        if fresh and listed is None:
            # an order that is still under way may yet become a machine
            if not tick.launching(node.record.request_id):
                tick.change(node, NodeState.GONE, node.record.reason)
                # one more look when all must be listed that was ever launched, although nothing lives any more
                world.look_after_at[provider] = tick.now + LISTING_LAG_S
        elif node.record.node_id is not None and _may_go(world, node) and _due(tick, node, listed is not None, fresh):
            ids.append(node.record.node_id)
        elif not fresh and tick.at(proves_at):
            tick.do(ListNodes(provider))
    if ids:
        tick.do(Release(provider, tuple(ids)))


def _proves_at(node: Node) -> float:
    """From when on a listing without the node proves that there is no machine."""
    if node.released_at is not None:
        return node.released_at
    record = node.record
    if record.node_id is None:
        # no listing has shown it yet: it may lag behind the launch, or behind a broker that came up
        return max(record.changed_at, (record.joined_at or record.changed_at) + LISTING_LAG_S)
    return record.changed_at


def _due(tick: Tick, node: Node, listed: bool, fresh: bool) -> bool:
    """Release at once; again, with growing pauses, while a newer listing still has it."""
    if node.released_at is None:
        return True
    pause_s = min(REPEAT_FIRST_S * 2 ** min(node.releases, 16), REPEAT_MOST_S)
    return listed and fresh and tick.at(node.released_at + pause_s)


def _may_go(world: World, node: Node) -> bool:
    """Whether everything that goes with the node can go, too, and no job runs there."""
    return all(
        mate.record.state is NodeState.RELEASING
        and not (world.online(mate.record.host) and world.usage.get(mate.record.host))
        for mate in world.leaves_with(node)
    )
