"""Compare each provider's listing with the records, both ways."""

from __future__ import annotations

from fluxburst.controller.effects import ListNodes, Release
from fluxburst.controller.join import fail
from fluxburst.controller.world import COMING_IN_TURN, Listing, Node, Tick, World
from fluxburst.model import NodePhase, NodeRecord, NodeReport
from fluxburst.states import COMING, NodeState, Why

POLL_LEAST_S = 1.0
POLL_MOST_S = 15.0
ORPHAN_PAUSE_S = 10.0


def stage(world: World, tick: Tick) -> None:
    for provider in world.shrink:
        listing = world.listings.get(provider)
        if listing is None:
            tick.do(ListNodes(provider))
            continue
        if listing.begun_at > world.compared_at.get(provider, float("-inf")):
            world.compared_at[provider] = listing.begun_at
            if listing.begun_at >= world.look_after_at.get(provider, float("inf")):
                del world.look_after_at[provider]
            _compare(world, tick, provider, listing)
        if tick.at(_next_listing_at(world, provider, listing)):
            tick.do(ListNodes(provider))


def _next_listing_at(world: World, provider: str, listing: Listing) -> float | None:
    """None while nothing lives: in the steady state nothing is polled."""
    times = []
    coming = [node.record.planned_at for node in world.in_state(*COMING_IN_TURN) if node.record.provider == provider]
    for node in world.unseen.values():
        if node.record.provider == provider and node.record.state in (NodeState.JOINED, NodeState.DRAINING):
            coming.append(node.record.planned_at)
    if coming:
        # early failures show early; a boot that takes minutes is asked after less often
        times.append(listing.at + min(max((listing.at - min(coming)) / 2, POLL_LEAST_S), POLL_MOST_S))
    if any(node.record.provider == provider for node in world.nodes.values()):
        times.append(listing.at + world.config.policy.reconcile_interval)
    if provider in world.look_after_at:
        times.append(world.look_after_at[provider])
    if provider in world.orphans_seen_at:
        times.append(world.orphans_seen_at[provider] + ORPHAN_PAUSE_S)
    return min(times, default=None)


def _compare(world: World, tick: Tick, provider: str, listing: Listing) -> None:
    orphans: list[NodeReport] = []
    for report in listing.nodes:
        node = world.nodes.get(report.host)
        if node is not None and node.report is report:
            continue  # the same object as in the listing before
        if node is not None and node.record.request_id == report.request_id:
            _seen(world, tick, node, report)
            node.report = report
        elif not _adopt(world, tick, provider, report):
            orphans.append(report)
    for node in world.in_state(NodeState.BOOTING):
        record = node.record
        if (
            record.provider == provider
            and record.changed_at < listing.begun_at
            and (record.request_id, record.host) not in listing.node_ids
        ):
            tick.change(node, NodeState.RELEASING, f"{Why.LOST}: {provider} no longer lists it")
    world.orphans_seen_at.pop(provider, None)
    if orphans:
        world.orphans_seen_at[provider] = tick.now
        for report in orphans:
            world.store.log(
                tick.now, f"node/{report.host}", "orphan", node_id=report.node_id, request_id=report.request_id
            )
        tick.do(Release(provider, tuple(report.node_id for report in orphans)))


def _seen(world: World, tick: Tick, node: Node, report: NodeReport) -> None:
    record = node.record
    if report.phase in (NodePhase.FAILED, NodePhase.STOPPING) and record.state in COMING:
        # nobody has asked it to go yet, so one that goes was ended by others, or by itself
        if record.node_id is None:
            tick.note(node, node_id=report.node_id)
        fail(world, tick, node, Why.BOOT_FAILED, report.detail or f"the provider lists it as {report.phase}")
    elif record.state in (NodeState.PLANNED, NodeState.ORDERED):
        tick.change(node, NodeState.BOOTING, f"{record.provider} runs it", node_id=report.node_id)
    elif record.node_id is None:
        tick.note(node, node_id=report.node_id)


def _adopt(world: World, tick: Tick, provider: str, report: NodeReport) -> bool:
    """Take over a machine that carries our tags and that no record knows: the store was lost, the machine was not.

    One of an order that this store made is not taken over: its record is gone, so it should be too.
    """
    pool = world.pool_of.get(report.host)
    known = world.store.order(report.request_id) is not None or world.store.had_node(report.request_id, report.host)
    if known or pool is None or pool != report.pool or report.host in world.nodes:
        return False
    if world.config.pool[pool].provider != provider:
        return False
    tick.create(
        NodeRecord(
            host=report.host,
            pool=pool,
            provider=provider,
            request_id=report.request_id,
            state=NodeState.BOOTING,
            reason="adopted: the provider lists it and no record knew it",
            changed_at=tick.now,
            planned_at=tick.now,
            node_id=report.node_id,
            usd_per_node_hour=world.config.pool[pool].usd_per_node_hour,
        )
    )
    return True
