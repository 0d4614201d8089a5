"""``flux burst``: the command line. Each command's module is imported when it is called, so that help is fast."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from fluxburst import __version__
from fluxburst.errors import FluxburstError

_COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("fluxburst.cli.run", "Run the service on the lead broker."),
    "status": ("fluxburst.cli.show", "Show pools, nodes and jobs at a glance."),
    "nodes": ("fluxburst.cli.show", "List the nodes that were bought."),
    "jobs": ("fluxburst.cli.show", "List the burstable jobs and what becomes of them."),
    "explain": ("fluxburst.cli.show", "Tell why a job, or each in the queue, runs, waits or was refused."),
    "plan": ("fluxburst.cli.show", "Show what would be bought now, without buying."),
    "providers": ("fluxburst.cli.show", "List providers, plugins, and plugins that failed to load."),
    "offers": ("fluxburst.cli.show", "List all providers' offers, and what they refused."),
    "budget": ("fluxburst.cli.show", "Show what was spent, what is reserved, and the caps."),
    "watch": ("fluxburst.cli.watch", "Follow the status live."),
    "simulate": ("fluxburst.cli.simulate", "Try burst.toml on a past queue, in virtual time."),
    "record": ("fluxburst.cli.record", "Write down the queue, for `simulate`."),
    "request": ("fluxburst.cli.admin", "Have nodes ready before jobs need them."),
    "release": ("fluxburst.cli.admin", "Give nodes back."),
    "pause": ("fluxburst.cli.admin", "Buy nothing until resumed."),
    "resume": ("fluxburst.cli.admin", "Buy again."),
    "config": ("fluxburst.cli.site", "Make the Flux configuration of lead and followers."),
    "check": ("fluxburst.cli.site", "Tell what is fit for bursting and what is not, with the fix."),
}


class _Lazy(click.Group):
    """Built-in commands by name; those of plugins are looked for only where a built-in does not match."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *self._from_plugins(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module = importlib.import_module(_COMMANDS[cmd_name][0])
            command: click.Command = getattr(module, cmd_name)
            return command
        return self._from_plugins(ctx).get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in _COMMANDS.items()]
        rows += [(name, command.get_short_help_str()) for name, command in self._from_plugins(ctx).items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    @staticmethod
    def _from_plugins(ctx: click.Context) -> dict[str, click.Command]:
        found = ctx.meta.get(__name__)
        if found is None:
            from fluxburst.cli.plugins import commands

            found = ctx.meta[__name__] = commands()
        result: dict[str, click.Command] = found
        return result


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A job may burst when it is submitted with: flux submit --setattr burstable=true",
)
@click.version_option(__version__, prog_name="flux burst")
def cli() -> None:
    """Let this Flux instance burst: buy nodes for waiting jobs that allow it, and give them back."""


def main(argv: list[str] | None = None) -> Any:
    """The console script ``flux-burst``, which ``flux burst`` runs. An error is one line on standard error, exit 1."""
    try:
        return cli.main(argv, prog_name="flux burst")
    except FluxburstError as error:
        for line in str(error).splitlines():
            click.echo(f"flux burst: {line}", err=True)
        sys.exit(1)
