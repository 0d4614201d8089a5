"""What the pools of one provider can take on."""

from __future__ import annotations

from collections.abc import Sequence

from fluxburst.model import Demand, Offer, Refusal
from fluxburst.provider import PoolSpec, ProviderContext


def offers(
    context: ProviderContext,
    demand: Demand,
    *,
    instance_type: str,
    usd_per_node_hour: float | None = None,
    join_s: float | None = None,
) -> Sequence[Offer | Refusal]:
    """One answer for each pool. The price holds for pools that state none."""
    answers: list[Offer | Refusal] = []
    for pool in context.pools.values():
        if reason := misfit(pool, demand):
            answers.append(Refusal(pool.name, context.name, reason))
            continue
        price = pool.usd_per_node_hour
        answers.append(
            Offer(
                pool=pool.name,
                provider=context.name,
                instance_type=instance_type,
                cores=pool.cores,
                gpus=pool.gpus,
                usd_per_node_hour=usd_per_node_hour if price is None else price,
                join_s=join_s,
            )
        )
    return answers


def misfit(pool: PoolSpec, demand: Demand) -> str:
    """Why the demand never fits the pool's nodes, or nothing when it does."""
    slots = demand.slots_per_node() or 1
    for unit, there, each in (
        ("cores", pool.cores, demand.cores_per_slot),
        ("GPUs", pool.gpus, demand.gpus_per_slot),
    ):
        if slots * each > there:
            return f"needs {slots * each} {unit} on one node; the pool's nodes have {there}"
    nodes = demand.nodes
    if not nodes:
        fit = pool.cores // demand.cores_per_slot
        if demand.gpus_per_slot:
            fit = min(fit, pool.gpus // demand.gpus_per_slot)
        nodes = -(-demand.slots // fit)
    if nodes > len(pool.hosts):
        return f"needs {nodes} nodes; the pool has {len(pool.hosts)}"
    return ""
