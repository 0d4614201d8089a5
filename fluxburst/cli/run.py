"""``flux burst run``: the service, with reconnection."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click
import stamina
import structlog

from fluxburst import config as configuration
from fluxburst import log as logging
from fluxburst import service
from fluxburst.cli.common import config_option
from fluxburst.errors import Disconnected, InstanceError
from fluxburst.flux.instance import RealInstance
from fluxburst.flux.loop import FluxLoop
from fluxburst.provider.discovery import Plugins
from fluxburst.provider.manager import Providers
from fluxburst.store import Store

RECONNECT_MOST_S = 30.0


@click.command()
@config_option
@click.option("--uri", default=None, help="The instance to serve; by default the enclosing one (FLUX_URI).")
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]), default="auto", show_default=True)
@click.option("--verbose", is_flag=True, help="Debug lines, too.")
def run(config_path: Path, uri: str | None, log_format: str, verbose: bool) -> None:
    """Run the service on the lead broker, until SIGTERM. Nodes stay when it stops."""
    logging.setup(json=None if log_format == "auto" else log_format == "json", verbose=verbose)
    config = configuration.load(config_path)
    plugins = Plugins()
    loop = FluxLoop()
    # the first connection fails at once where it is wrong; only one that was good is worth waiting for
    instance = RealInstance.open(uri, loop=loop)
    providers = Providers(config, plugins)
    store = Store(config.state_path(), service.echo)
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        loop.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    log = structlog.get_logger("fluxburst")
    try:
        while True:
            try:
                service.run(service.Service(config, instance, loop, providers, plugins, store), loop)
                break
            except Disconnected as error:
                log.warning("disconnected", error=str(error))
            for attempt in stamina.retry_context(
                on=InstanceError, attempts=None, timeout=None, wait_initial=0.2, wait_max=RECONNECT_MOST_S
            ):
                with attempt:
                    if stopping.is_set():
                        return
                    instance = RealInstance.open(uri, loop=loop)
            log.info("reconnected")
    finally:
        providers.close()
        store.close()
        log.info("stopped; nodes stay as they are")
