"""The commands that change something: request, release, pause, resume. For the instance's owner."""

from __future__ import annotations

import click

from fluxburst import durations
from fluxburst.cli.common import call


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return durations.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("pool")
@click.option(
    "-N", "--nodes", type=click.IntRange(min=0), required=True, help="How many nodes the pool shall have; 0 to end it."
)
@click.option("--for", "for_s", type=_Duration(), default=None, help="For how long; until they are released otherwise.")
def request(pool: str, nodes: int, for_s: float | None) -> None:
    """Have nodes of POOL ready before jobs need them."""
    click.echo(call("request", {"pool": pool, "nodes": nodes, "for_s": for_s})["message"])


@click.command()
@click.argument("hosts")
def release(hosts: str) -> None:
    """Give HOSTS (such as c2-[0-3]) back once nothing runs on them."""
    click.echo(call("release", {"hosts": hosts})["message"])


@click.command()
def pause() -> None:
    """Buy nothing until resumed; nodes that are up go on serving."""
    click.echo(call("pause")["message"])


@click.command()
def resume() -> None:
    """Buy again."""
    click.echo(call("resume")["message"])
