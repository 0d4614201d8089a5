"""fluxburst provider: followers as pods of any Kubernetes cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fluxburst.provider import Provider, ProviderContext, ProviderFactory, hookimpl

if TYPE_CHECKING:
    import click

__all__ = ["fluxburst_commands", "fluxburst_expose_lead", "fluxburst_providers", "make"]


def make(context: ProviderContext) -> Provider:
    """The provider of one ``[provider.NAME]`` table.

    Raises:
        ConfigError: the table, or a pool's ``options``, is wrong.
    """
    # Imported here so that loading the plugin stays cheap.
    from fluxburst_kubernetes.provider import build

    return build(context)


@hookimpl
def fluxburst_providers() -> Mapping[str, ProviderFactory]:
    return {"kubernetes": make}


@hookimpl
def fluxburst_expose_lead(way: str, options: Mapping[str, Any]) -> str | None:
    if way != "nodeport":
        return None
    from fluxburst.provider.protocol import options as read
    from fluxburst_kubernetes.expose import NodePort, expose

    return expose(read(NodePort, options, "lead.options"), "[lead] expose").connect


@hookimpl
def fluxburst_commands(group: click.Group) -> None:
    from fluxburst_kubernetes.commands import command, install_operator

    group.add_command(command)
    group.add_command(install_operator)
