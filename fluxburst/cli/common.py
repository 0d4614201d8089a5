"""What several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

DEFAULT_CONFIG = Path("/etc/flux/burst.toml")

_F = TypeVar("_F", bound=Callable[..., Any])


def config_option(command: _F) -> _F:
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="FLUXBURST_CONFIG",
        default=DEFAULT_CONFIG,
        show_default=True,
        show_envvar=True,
        help="The site's burst.toml.",
    )(command)


def json_option(command: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON.")(command)


def call(method: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Ask the service of the enclosing Flux instance (FLUX_URI)."""
    from fluxburst.flux import client

    return dict(client.call(method, payload or {}))


def print_json(value: Mapping[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """A click callback: a Flux Standard Duration in seconds."""
    from fluxburst import durations

    try:
        return None if value is None else durations.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
