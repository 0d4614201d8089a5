"""``flux burst record``."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import BinaryIO

import click

from fluxburst.cli.common import seconds
from fluxburst.errors import ConfigError, Disconnected


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--for", "for_s", callback=seconds, default=None, help="Stop after so long, such as 7d.")
@click.option("--hash-users", is_flag=True, help="Write names that stand for users, and that nobody can turn back.")
@click.option("--uri", default=None, help="The instance to follow; by default the enclosing one (FLUX_URI).")
def record(file: Path, for_s: float | None, hash_users: bool, uri: str | None) -> None:
    """Write down the queue, for `simulate`.

    FILE gets one line of JSON for each job as it ends: when it was submitted, its shape and time limit, how long it
    ran, its queue, user, bank and project; never what it did. It runs until it is interrupted, or for the time given.
    """
    from fluxburst.flux.instance import RealInstance
    from fluxburst.flux.loop import FluxLoop
    from fluxburst.flux.protocol import ConnectionLost, InstanceEvent
    from fluxburst.simulate.record import Recorder, hashed

    loop = FluxLoop()
    instance = RealInstance.open(uri, loop=loop)
    lost: list[str] = []
    try:
        with _new(file) as out:
            recorder = Recorder(out, hashed() if hash_users else str)

            def take(event: InstanceEvent) -> None:
                if isinstance(event, ConnectionLost):
                    lost.append(event.reason)
                    loop.stop()
                recorder.take(event)

            recorder.begin()
            instance.subscribe(take)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: loop.stop())
            if for_s is not None:
                loop.call_later(for_s, loop.stop)
            loop.run_forever()
            recorder.finish(time.time())
    finally:
        instance.close()
    unread = f"; {recorder.unread} left out whose shape is not understood" if recorder.unread else ""
    click.echo(f"{recorder.written} jobs in {file}{unread}")
    if lost:
        raise Disconnected(f"lost the connection to Flux: {lost[0]}; what is in {file} is good up to there")


def _new(file: Path) -> BinaryIO:
    try:
        return file.open("xb", buffering=0)
    except FileExistsError:
        raise ConfigError(f"{file}: is there already; choose another name") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}; choose another place") from None
