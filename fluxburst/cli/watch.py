"""``flux burst watch``."""

from __future__ import annotations

import time

import click
from rich.console import Console, Group
from rich.live import Live

from fluxburst.cli import tables
from fluxburst.cli.common import call

HEADINGS = 8
"""Lines of the picture that are neither a pool, a node nor a job."""


@click.command()
@click.option("--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(min=1), default=None, help="Stop after so many looks.")
def watch(interval: float, count: int | None) -> None:
    """Follow the status live, with progress bars for nodes that boot. Ends with Ctrl-C."""
    looks, console = 0, Console()
    try:
        with Live(_look(console.height), console=console, auto_refresh=False) as live:
            while True:
                looks += 1
                if looks == count:
                    return
                time.sleep(interval)
                live.update(_look(console.height), refresh=True)
    except KeyboardInterrupt:
        return


def _look(height: int) -> Group:
    """What fits on a screen: the jobs get the lines that pools and nodes leave."""
    status, nodes = call("status"), call("nodes")
    room = height - len(status["pools"]) - len(nodes["nodes"]) - HEADINGS
    return tables.live(status, nodes, call("jobs", {"limit": max(room, 3)}))
