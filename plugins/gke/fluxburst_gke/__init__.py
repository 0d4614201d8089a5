"""fluxburst provider: followers as pods of Google Kubernetes Engine, on node pools that are sized from zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fluxburst.provider import Provider, ProviderContext, ProviderFactory, hookimpl

if TYPE_CHECKING:
    import click

__all__ = ["fluxburst_commands", "fluxburst_providers", "make"]


def make(context: ProviderContext) -> Provider:
    """The provider of one ``[provider.NAME]`` table.

    Raises:
        ConfigError: the table, or a pool's ``options``, is wrong.
    """
    # Imported here so that loading the plugin stays cheap.
    from fluxburst_gke.provider import build

    return build(context)


@hookimpl
def fluxburst_providers() -> Mapping[str, ProviderFactory]:
    return {"gke": make}


@hookimpl
def fluxburst_commands(group: click.Group) -> None:
    from fluxburst_gke.commands import clean_up

    group.add_command(clean_up)
