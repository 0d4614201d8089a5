"""The hooks that a plugin may implement. Built-in plugins use these same hooks.

A plugin is a module (or object) named by an entry point in the group ``fluxburst``; its functions are marked with
:data:`hookimpl`. Importing it must import no cloud SDK.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from fluxburst.model import Demand, NodeRecord, Offer
    from fluxburst.provider.protocol import ProviderFactory
    from fluxburst.states import NodeState

hookspec = pluggy.HookspecMarker("fluxburst")
hookimpl = pluggy.HookimplMarker("fluxburst")


@hookspec
def fluxburst_providers() -> Mapping[str, ProviderFactory]:  # type: ignore[empty-body]
    """The kinds of provider that this plugin brings, by the name used as ``plugin`` (or table name) in burst.toml."""


@hookspec(firstresult=True)
def fluxburst_choose_job(job: Mapping[str, Any]) -> bool | str | None:
    """May this job burst? ``job`` has id, userid, queue, bank, project, options and jobspec.

    True allows it, a string refuses it with that reason, None leaves it to the next plugin and to burst.toml.
    """


@hookspec(firstresult=True)
def fluxburst_order_offers(demand: Demand, offers: Sequence[Offer]) -> Sequence[Offer] | None:
    """The offers in order of preference; those left out are not used. None leaves the order as it is."""


@hookspec(firstresult=True)
def fluxburst_expose_lead(way: str, options: Mapping[str, Any]) -> str | None:
    """Make the lead reachable for followers, and tell the address that they dial, such as ``tcp://203.0.113.7:30093``.

    ``way`` is ``[lead] expose`` and ``options`` is ``[lead.options]``. None leaves it to the next plugin, as this one
    does not know that way. Called at each start, and by ``flux burst check`` and ``config render``: doing it again
    changes nothing.

    Raises:
        ConfigError: an option is wrong.
        ProviderError: it cannot be done.
    """


@hookspec
def fluxburst_node_changed(node: NodeRecord, old: NodeState | None) -> None:
    """A node's record changed its state, and the change is committed. Must return at once."""


@hookspec
def fluxburst_commands(group: click.Group) -> None:
    """Add commands below ``flux burst``."""
