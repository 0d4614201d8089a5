"""Commands that plugins add."""

from __future__ import annotations

import click

from fluxburst.provider.discovery import hook_callers


def commands() -> dict[str, click.Command]:
    """The commands of all installed plugins, by name."""
    group = click.Group()
    hook_callers().fluxburst_commands(group=group)
    return dict(group.commands)
