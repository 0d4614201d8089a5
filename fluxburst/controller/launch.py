"""Make purchases orders, and let every order go that its provider has not answered."""

from __future__ import annotations

from fluxburst.controller.effects import Launch
from fluxburst.controller.world import Tick, World
from fluxburst.model import NodeRecord, Order, OrderRecord
from fluxburst.plan import Purchase
from fluxburst.states import NodeState


def record_order(world: World, tick: Tick, purchase: Purchase) -> None:
    """Give a purchase its request id, and each of its hosts a record; :func:`stage` lets it go after the commit."""
    offer = purchase.offer
    order = OrderRecord(world.new_id(), offer.pool, purchase.hosts, offer, tick.now, purchase.job_ids)
    world.store.add_order(order)
    world.orders[order.request_id] = order
    world.store.log(
        tick.now,
        f"order/{order.request_id}",
        "planned",
        pool=order.pool,
        hosts=order.hosts,
        jobs=order.job_ids,
        instance_type=offer.instance_type,
        usd_per_node_hour=offer.usd_per_node_hour,
    )
    count = len(order.job_ids)
    reason = f"for {count} job{'s' if count > 1 else ''}" if count else "to keep the pool warm"
    for host in order.hosts:
        tick.create(
            NodeRecord(
                host=host,
                pool=order.pool,
                provider=offer.provider,
                request_id=order.request_id,
                state=NodeState.PLANNED,
                reason=reason,
                changed_at=tick.now,
                planned_at=tick.now,
                usd_per_node_hour=offer.usd_per_node_hour,
            )
        )


def stage(world: World, tick: Tick) -> None:
    """Let every order go that the provider has not answered: new ones, and with the same id those of before a crash."""
    planned = {node.record.request_id for node in world.nodes.values() if node.record.state is NodeState.PLANNED}
    for request_id in sorted(planned):
        order = world.orders[request_id]
        provider = order.offer.provider
        if provider not in world.listings:
            continue
        tick.do(
            Launch(
                provider,
                Order(
                    request_id=request_id,
                    cluster=world.config.cluster,
                    pool=order.pool,
                    hosts=order.hosts,
                    offer=order.offer,
                    boot=world.boot(),
                    created_at=order.created_at,
                ),
            )
        )
