"""The commands that show: status, nodes, jobs, explain, providers, offers."""

from __future__ import annotations

import click
from rich.console import Console

from fluxburst import jobid
from fluxburst.cli import tables
from fluxburst.cli.common import call, json_option, print_json

_console = Console(highlight=False)


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show pools, nodes and jobs at a glance."""
    answer = call("status")
    if as_json:
        print_json(answer)
    else:
        _console.print(tables.status(answer))


@click.command()
@click.option("--all", "everything", is_flag=True, help="Those that are gone, too.")
@json_option
def nodes(everything: bool, as_json: bool) -> None:
    """List the nodes that were bought."""
    answer = call("nodes", {"all": everything})
    if as_json:
        print_json(answer)
    else:
        _console.print(tables.nodes(answer))


@click.command()
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="The most to show.")
@json_option
def jobs(limit: int, as_json: bool) -> None:
    """List the burstable jobs and what becomes of them."""
    answer = call("jobs", {"limit": limit})
    if as_json:
        print_json(answer)
    else:
        _console.print(tables.jobs(answer))


@click.command()
@click.argument("job")
@json_option
def explain(job: str, as_json: bool) -> None:
    """Tell a job's story: why it runs, waits or was refused. JOB is its id in any form."""
    answer = call("explain", {"id": jobid.parse(job)})
    if as_json:
        print_json(answer)
    else:
        _console.print(tables.explain(answer))


@click.command()
@json_option
def providers(as_json: bool) -> None:
    """List providers, plugins, and plugins that failed to load."""
    answer = call("providers")
    if as_json:
        print_json(answer)
    else:
        _console.print(tables.providers(answer))


@click.command()
@json_option
def offers(as_json: bool) -> None:
    """List the latest offers and refusals."""
    answer = call("offers")
    if as_json:
        print_json(answer)
    else:
        _console.print(tables.offers(answer))
