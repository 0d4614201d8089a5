"""The commands that show: status, nodes, jobs, explain, providers, offers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Console, RenderableType

from fluxburst import jobid
from fluxburst.cli import tables
from fluxburst.cli.common import call, json_option, print_json

_PIPE_WIDTH = 400
"""Piped tables are for grep and awk: they are not folded at a terminal's width."""


def _show(answer: Mapping[str, Any], as_json: bool, table: Callable[[Mapping[str, Any]], RenderableType]) -> None:
    if as_json:
        print_json(answer)
    else:
        Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table(answer))


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show pools, nodes and jobs at a glance."""
    _show(call("status"), as_json, tables.status)


@click.command()
@click.option("--all", "everything", is_flag=True, help="Those that are gone, too.")
@json_option
def nodes(everything: bool, as_json: bool) -> None:
    """List the nodes that were bought."""
    _show(call("nodes", {"all": everything}), as_json, tables.nodes)


@click.command()
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="The most to show.")
@json_option
def jobs(limit: int, as_json: bool) -> None:
    """List the burstable jobs and what becomes of them."""
    _show(call("jobs", {"limit": limit}), as_json, tables.jobs)


@click.command()
@click.argument("job")
@json_option
def explain(job: str, as_json: bool) -> None:
    """Tell a job's story: why it runs, waits or was refused. JOB is its id in any form."""
    _show(call("explain", {"id": jobid.parse(job)}), as_json, tables.explain)


@click.command()
@json_option
def providers(as_json: bool) -> None:
    """List providers, plugins, and plugins that failed to load."""
    _show(call("providers"), as_json, tables.providers)


@click.command()
@json_option
def offers(as_json: bool) -> None:
    """List the latest offers and refusals."""
    _show(call("offers"), as_json, tables.offers)
