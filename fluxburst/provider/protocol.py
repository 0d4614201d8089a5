"""The interface between fluxburst and a provider of nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fluxburst.errors import ConfigError
from fluxburst.model import Demand, Finding, Host, NodeId, NodeReport, Offer, Order, PoolSpec, Refusal, Shrink

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """What a provider is built from.

    ``name`` is the table's name in burst.toml, ``options`` the rest of ``[provider.NAME]``. ``state_dir`` is a
    directory of the provider's own, mode 0700, that outlives the service.
    """

    name: str
    cluster: str
    options: Mapping[str, Any]
    pools: Mapping[str, PoolSpec]
    state_dir: Path


class Provider(Protocol):
    """Blocking, thread-safe, eventually consistent. Every call may raise a :class:`~fluxburst.errors.ProviderError`.

    Every call ends some time: give the calls of your cloud's library a time limit. Any other exception than a
    ProviderError counts as :class:`~fluxburst.errors.ProviderUnavailable`: outcome unknown.

    A provider that cannot name each machine may have an attribute ``in_blocks`` that is true. Then its pools' hosts are
    in blocks called ``NAME-0``, ``NAME-1`` and so on, from any number on (its factory asks :func:`blocks` whether they
    are), and an order is the beginning of one block of which no other order has a host.

    A provider may have a method ``probe(connect: str) -> Sequence[Finding]``, for ``flux burst check --probe``: it lets
    a machine of each pool's kind dial the lead at that address, and leaves nothing behind.
    """

    shrink: Shrink
    """How nodes can be given back: any node, the tail of an order only, or a whole order at once."""

    def check(self) -> Sequence[Finding]:
        """Credentials, quota, image, reachability. Changes nothing, buys nothing."""

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        """What could be started for this demand, on the provider's own terms: one answer or more for each pool.

        ``demand.duration_s`` is rounded up to a power of two minutes.
        """

    def launch(self, order: Order, /) -> None:
        """Start the order's hosts; returns when the provider accepted it. The same ``request_id`` twice buys once."""

    def list_nodes(self) -> Sequence[NodeReport]:
        """Every machine of this provider tagged with this cluster. Raises rather than return a part of them."""

    def release(self, node_ids: Collection[NodeId], /) -> None:
        """Give machines back. Unknown ids are fine; it is repeated until they are no longer listed."""

    def close(self) -> None:
        """Let go of connections and threads. Nodes stay."""


ProviderFactory = Callable[[ProviderContext], Provider]
"""Builds a provider; raises :class:`~fluxburst.errors.ConfigError` when its tables are wrong. Talks to no one yet."""


def blocks(context: ProviderContext) -> dict[str, tuple[tuple[Host, ...], ...]]:
    """The blocks of hosts of each pool, for a provider whose orders take one (see :class:`Provider`).

    Raises:
        ConfigError: a pool's hosts are in none.
    """
    # Imported here: every plugin imports this module, and `flux burst --help` every plugin.
    from fluxburst import hostlist

    found = {}
    for name, pool in context.pools.items():
        try:
            found[name] = hostlist.blocks(pool.hosts)
        except ValueError as error:
            raise ConfigError(f"[pool.{name}] hosts: {error}") from None
    return found


_Model = TypeVar("_Model", bound="BaseModel")


def options(model: type[_Model], table: Mapping[str, Any], where: str) -> _Model:
    """Read a table of burst.toml into a pydantic model; errors name ``where`` and the key.

    Raises:
        ConfigError: with one line for each wrong key.
    """
    # Imported here: every plugin imports this module, and `flux burst --help` every plugin.
    from pydantic import ValidationError

    from fluxburst.config import explain

    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        raise ConfigError(explain(error, where)) from None
