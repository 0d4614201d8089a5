"""``flux burst run``: the service, with reconnection."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click
import stamina
import structlog

from fluxburst import config as configuration
from fluxburst import log as logs
from fluxburst import service
from fluxburst.cli.common import config_option
from fluxburst.errors import Disconnected, InstanceError
from fluxburst.flux.instance import RealInstance
from fluxburst.flux.loop import FluxLoop
from fluxburst.provider.discovery import Plugins
from fluxburst.provider.manager import Providers
from fluxburst.store import MemoryStore, Records, Store

RECONNECT_LEAST_S = 0.2
RECONNECT_MOST_S = 30.0


@click.command()
@config_option
@click.option("--uri", default=None, help="The instance to serve; by default the enclosing one (FLUX_URI).")
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]), default="auto", show_default=True)
@click.option("--verbose", is_flag=True, help="Debug lines, too.")
@click.option("--dry-run", is_flag=True, help="Only log what would be bought, and each job's verdict.")
def run(config_path: Path, uri: str | None, log_format: str, verbose: bool, dry_run: bool) -> None:
    """Run the service on the lead broker, until SIGTERM. Nodes stay when it stops.

    With --dry-run nothing is bought or changed, and nothing is kept: it begins with an empty ledger, answers no other
    command, and may run beside the service.
    """
    logs.setup(json=None if log_format == "auto" else log_format == "json", verbose=verbose)
    plugins = Plugins()
    config = plugins.find_lead(configuration.load(config_path))
    loop = FluxLoop()
    instance: RealInstance | None = RealInstance.open(uri, loop=loop)
    store: Records = MemoryStore(service.echo) if dry_run else Store(config.state_path(), service.echo)
    providers = Providers(config, plugins)
    log = structlog.get_logger("fluxburst")
    connected = was_up = False

    def stop(*_: object) -> None:
        if not connected:
            sys.exit(0)  # out of the pause before the next attempt
        loop.stop()

    def worth_waiting(error: Exception) -> bool:
        # the first connection fails at once where it is wrong; only one that was good is worth any patience
        return isinstance(error, Disconnected) or (was_up and isinstance(error, InstanceError))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        while True:  # each turn begins with short pauses again
            for attempt in stamina.retry_context(
                on=worth_waiting, attempts=None, timeout=None, wait_initial=RECONNECT_LEAST_S, wait_max=RECONNECT_MOST_S
            ):
                with attempt:
                    instance = instance or RealInstance.open(uri, loop=loop)
                    running = service.Service(config, instance, loop, providers, plugins, store, dry_run=dry_run)
                    try:
                        connected = True
                        service.run(running, loop)
                    except Disconnected as error:
                        log.warning("disconnected", error=str(error))
                        was_up = was_up or running.world.caught_up
                        # a broker that starts or ends takes connections while its modules are not there
                        if not running.world.caught_up:
                            raise
                    else:
                        return
                    finally:
                        connected, instance = False, None
    finally:
        providers.close()
        store.close()
        log.info("stopped; nodes stay as they are")
