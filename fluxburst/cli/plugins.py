"""Commands that plugins add."""

from __future__ import annotations

import click

from fluxburst.provider.discovery import Plugins


def commands() -> dict[str, click.Command]:
    """The commands of all installed plugins, by name. A plugin that fails is told on standard error, and left out."""
    found: dict[str, click.Command] = {}
    manager = Plugins().manager
    for name, plugin in manager.list_name_plugin():
        others = [other for other in manager.get_plugins() if other is not plugin]
        group = click.Group()
        try:
            manager.subset_hook_caller("fluxburst_commands", others)(group=group)
        except Exception as error:  # noqa: BLE001 - an outsider's code may raise anything; help must still come
            click.echo(f"flux burst: plugin {name} adds no command: {type(error).__name__}: {error}", err=True)
            continue
        found |= group.commands
    return found
