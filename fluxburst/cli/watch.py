"""``flux burst watch``."""

from __future__ import annotations

import time

import click
from rich.console import Group
from rich.live import Live

from fluxburst.cli import tables
from fluxburst.cli.common import call


@click.command()
@click.option("--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(min=1), default=None, help="Stop after so many looks.")
def watch(interval: float, count: int | None) -> None:
    """Follow the status live, with progress bars for nodes that boot. Ends with Ctrl-C."""
    looks = 0
    try:
        with Live(_look(), auto_refresh=False) as live:
            while True:
                looks += 1
                if looks == count:
                    return
                time.sleep(interval)
                live.update(_look(), refresh=True)
    except KeyboardInterrupt:
        return


def _look() -> Group:
    return tables.live(call("status"), call("nodes"), call("jobs", {"limit": 30}))
