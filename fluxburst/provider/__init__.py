"""What a plugin author needs: the :class:`Provider` protocol, the hooks, and the types that go through them.

>>> from fluxburst.provider import Provider, ProviderContext, hookimpl
"""

from fluxburst.model import (
    BootMaterial,
    Demand,
    Finding,
    Host,
    NodeId,
    NodePhase,
    NodeReport,
    Offer,
    Order,
    PoolSpec,
    Refusal,
    RequestId,
    Secret,
    Severity,
    Shrink,
)
from fluxburst.provider.hookspecs import hookimpl
from fluxburst.provider.protocol import Provider, ProviderContext, ProviderFactory, blocks, options

__all__ = [
    "BootMaterial",
    "Demand",
    "Finding",
    "Host",
    "NodeId",
    "NodePhase",
    "NodeReport",
    "Offer",
    "Order",
    "PoolSpec",
    "Provider",
    "ProviderContext",
    "ProviderFactory",
    "Refusal",
    "RequestId",
    "Secret",
    "Severity",
    "Shrink",
    "blocks",
    "hookimpl",
    "options",
]
