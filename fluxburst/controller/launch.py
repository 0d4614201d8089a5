"""Make purchases orders, and let every order go that its provider has not answered."""

from __future__ import annotations

from itertools import zip_longest

from fluxburst.controller.effects import Launch
from fluxburst.controller.world import Tick, World
from fluxburst.model import NodeRecord, Order, OrderRecord, RequestId
from fluxburst.moment import Purchase
from fluxburst.states import NodeState, Why


def record_order(world: World, tick: Tick, purchase: Purchase) -> None:
    """Give a purchase its request id, and each of its hosts a record; :func:`stage` lets it go after the commit."""
    offer = purchase.offer
    order = OrderRecord(world.new_id(), offer.pool, purchase.hosts, offer, tick.now, purchase.job_ids)
    world.store.add_order(order)
    world.orders[order.request_id] = order
    world.book.sell(offer, len(order.hosts))
    failed = {name: why for job_id in order.job_ids for name, why in world.jobs[job_id].failed_offers.items()}
    world.store.log(
        tick.now,
        f"order/{order.request_id}",
        "planned",
        pool=order.pool,
        hosts=order.hosts,
        jobs=order.job_ids,
        instance_type=offer.instance_type,
        usd_per_node_hour=offer.usd_per_node_hour,
        **({"failed_before": [f"{name}: {why}" for name, why in failed.items()]} if failed else {}),
    )
    count = len(order.job_ids)
    reason = f"for {count} job{'s' if count > 1 else ''}" if count else "to keep the pool warm"
    account = world.payer(purchase.account, order.job_ids)
    for host, until_at in zip_longest(order.hosts, purchase.until_at):
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
            ),
            account,
            until_at,
        )


def stage(world: World, tick: Tick) -> None:
    """Let every order go that the provider has not answered: new ones, and with the same id those of before a crash."""
    planned = {node.record.request_id for node in world.in_state(NodeState.PLANNED)}
    world.held &= planned
    begun = {request_id for request_id in planned if _begun(world, tick, request_id)}
    # what failed before is tried out with the smallest order
    for request_id in sorted(planned, key=lambda one: (one not in begun, len(world.orders[one].hosts), one)):
        order = world.orders[request_id]
        provider = order.offer.provider
        if provider not in world.listings:
            continue
        if request_id not in begun and not _admitted(world, tick, order):
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


def settle_probes(world: World) -> None:
    """See what has become of the orders that try out what failed before."""
    for request_id in world.breakers.probes():
        states = {node.record.state for node in world.of_order.get(RequestId(request_id), {}).values()}
        if NodeState.PLANNED not in states:
            world.breakers.settle(request_id, taken=bool(states - {NodeState.RELEASING}))
            world.save_breakers()
            world.stale = world.plan_due = True


def _begun(world: World, tick: Tick, request_id: RequestId) -> bool:
    """Whether the call that buys an order is under way, or was and had no clear answer."""
    return tick.launching(request_id) or (Launch, request_id) in world.retries


def _admitted(world: World, tick: Tick, order: OrderRecord) -> bool:
    """Whether an order may go now. While another one tries its offer out it waits, and shares that one's fate."""
    closed = world.breakers.closed(order.offer, tick.now, order.request_id)
    if closed is None:
        if world.breakers.probe(order.offer, order.request_id, tick.now):
            world.save_breakers()
    elif closed.until_at is None:
        world.held.add(order.request_id)
        return False
    elif order.request_id in world.held:
        for node in list(world.of_order[order.request_id].values()):
            if node.record.state is NodeState.PLANNED:
                tick.change(node, NodeState.RELEASING, f"{Why.LAUNCH_FAILED}: {closed.reason}")
        world.order_failed(order.request_id, closed.reason)
        return False
    # else it was made before a restart, and a machine may stand behind it: only its provider knows
    world.held.discard(order.request_id)
    return True
