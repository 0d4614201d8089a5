"""The commands that show: status, nodes, jobs, explain, plan, providers, offers, budget."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console, RenderableType

from fluxburst import jobid
from fluxburst.cli import tables
from fluxburst.cli.common import call, json_option, print_json

ANSWERS_S = 10.0
"""`plan` waits so long for providers that were asked because of it."""
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
@click.argument("job", required=False)
@json_option
def explain(job: str | None, as_json: bool) -> None:
    """Tell why a job, or each in the queue, runs, waits or was refused.

    Of one job: its story, what home, each pool and each offer answer to it, which number decided, and what would have
    to change. JOB is its id in any form. Without it, the whole queue is
    told, grouped by verdict and reason.
    """
    if job is None:
        _show(call("explain"), as_json, tables.explain_all)
    else:
        _show(call("explain", {"id": jobid.parse(job)}), as_json, tables.explain)


@click.command()
@json_option
def plan(as_json: bool) -> None:
    """Show what would be bought now, without buying.

    Nodes that are ordered already are left out; `nodes` lists them. While buying is paused, it is what would be bought
    after `resume`.
    """
    answer, until_s = call("plan"), time.monotonic() + ANSWERS_S
    while answer["asks"] and time.monotonic() < until_s:
        time.sleep(0.2)
        answer = call("plan")
    _show(answer, as_json, tables.plan)


@click.command()
@json_option
def providers(as_json: bool) -> None:
    """List providers, plugins, and plugins that failed to load."""
    _show(call("providers"), as_json, tables.providers)


@click.command()
@json_option
def offers(as_json: bool) -> None:
    """List all providers' offers, and what they refused."""
    _show(call("offers"), as_json, tables.offers)


_GROUPS = ("day", "month", "user", "bank", "project", "pool", "provider")


@click.command()
@click.option("--by", type=click.Choice(_GROUPS), default="pool", show_default=True, help="What to tell apart.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m"]),
    metavar="DATE",
    help="From this day of UTC on, such as 2026-11-22 or 2026-11; by default from the first of this month.",
)
@json_option
def budget(by: str, since: datetime | None, as_json: bool) -> None:
    """Show what was spent, what is reserved, and the caps."""
    payload = {"by": by} | ({} if since is None else {"since_at": since.replace(tzinfo=UTC).timestamp()})
    _show(call("budget", payload), as_json, tables.budget)
