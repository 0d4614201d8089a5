"""How fast the service reacts, on a private real Flux: two measurements, each against its floor in the same run.

1. From ``flux submit`` returning to the provider's ``launch`` being called, beyond the batching window.
2. From submit to the job's start event with the process launcher, against a follower started by hand for the same job.

Usage: python bench/react.py [--submits 200] [--rounds 10] [--scheduler fluxion-easy]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxburst.flux import bindings, private
from fluxburst.model import Host
from fluxburst.provider import (
    Demand,
    Finding,
    NodeId,
    NodePhase,
    NodeReport,
    Offer,
    Order,
    ProviderContext,
    Refusal,
    Shrink,
    hookimpl,
)
from fluxburst.testing import PrivateSite

RECORDER_POOL = """
[limits]
nodes = 4096
[pool.burst]
provider = "recorder"
hosts = "burst-[0-{last}]"
cores = 4
idle_timeout = "1h"
join_timeout = "1h"
"""
PROCESS_POOL = """
[pool.burst]
provider = "local"
hosts = "burst-[0-3]"
cores = 4
idle_timeout = "200ms"
[provider.local]
launcher = "process"
"""
BIGGER_THAN_HOME = ("--setattr=burstable=true", "-n1", "-c4")


class Recorder:
    """A provider that writes down when it was called, and whose nodes never come up."""

    shrink = Shrink.ANY

    def __init__(self, context: ProviderContext) -> None:
        self._context = context
        self._nodes: list[NodeReport] = []

    def check(self) -> Sequence[Finding]:
        return []

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        del demand
        return [Offer(name, self._context.name, "none", pool.cores) for name, pool in self._context.pools.items()]

    def launch(self, order: Order, /) -> None:
        print(time.time(), flush=True)
        self._nodes += [
            NodeReport(NodeId(host), order.pool, order.request_id, host, NodePhase.STARTING) for host in order.hosts
        ]

    def list_nodes(self) -> Sequence[NodeReport]:
        return tuple(self._nodes)

    def release(self, node_ids: Collection[NodeId], /) -> None:
        self._nodes = [node for node in self._nodes if node.node_id not in node_ids]

    def close(self) -> None:
        pass


class RecorderPlugin:
    @hookimpl
    def fluxburst_providers(self) -> Mapping[str, Callable[[ProviderContext], Recorder]]:
        return {"recorder": Recorder}


def serve(config_path: Path, uri: str) -> None:
    """The service of the first measurement, in a process of its own, printing a line for each launch."""
    from fluxburst import config as configuration
    from fluxburst import log, service
    from fluxburst.flux.instance import RealInstance
    from fluxburst.provider.discovery import Plugins
    from fluxburst.provider.manager import Providers
    from fluxburst.store import Store

    log.setup(json=True)
    config = configuration.load(config_path)
    plugins = Plugins([RecorderPlugin()])
    instance = RealInstance.open(uri)
    store = Store(config.state_path())
    running = service.Service(config, instance, instance.loop, Providers(config, plugins), plugins, store)
    service.run(running, instance.loop)


def submit(handle: Any, arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, float]:
    """Submit what ``flux submit ARGUMENTS hostname`` would; the id and when it was known."""
    from flux.job import submit as submit_jobspec

    dry = subprocess.run(
        ["flux", "submit", "--dry-run", *arguments, "hostname"],
        env=dict(environment), check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    job_id = int(submit_jobspec(handle, dry))
    return job_id, time.time()


def wait_ready(site: PrivateSite) -> None:
    while not site.ready():
        time.sleep(0.05)


def launches(directory: Path, scheduler: private.Scheduler, count: int) -> list[float]:
    """Seconds from submit returning to launch being called, one job after the other."""
    flux = bindings.load()
    waits: list[float] = []
    with PrivateSite(directory, RECORDER_POOL.format(last=count - 1), scheduler=scheduler, strays=False) as site:
        child = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(site.config_path), site.instance.uri],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=site.environment(),
        )  # fmt: skip
        try:
            assert child.stdout is not None
            wait_ready(site)
            handle = flux.Flux(site.instance.uri)
            for _ in range(count):
                _, returned_at = submit(handle, BIGGER_THAN_HOME, site.environment())
                waits.append(float(child.stdout.readline()) - returned_at)
        finally:
            child.terminate()
            child.wait()
    return waits


def starts(directory: Path, scheduler: private.Scheduler, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to the start event: (by hand, by the service), in alternation on one instance."""
    from flux.job import event_wait

    flux = bindings.load()
    by_hand: list[float] = []
    by_service: list[float] = []
    with PrivateSite(directory, PROCESS_POOL, scheduler=scheduler) as site:
        handle = flux.Flux(site.instance.uri)
        for _ in range(rounds):
            job_id, _ = submit(handle, [*BIGGER_THAN_HOME, "--queue=burst"], site.environment())
            begun_at = time.time()
            site.instance.start_followers([Host("burst-0")])
            by_hand.append(event_wait(handle, job_id, "start").timestamp - begun_at)
            event_wait(handle, job_id, "clean")
            site.instance.stop_followers([Host("burst-0")])

            site.start_service()
            wait_ready(site)
            job_id, returned_at = submit(handle, BIGGER_THAN_HOME, site.environment())
            by_service.append(event_wait(handle, job_id, "start").timestamp - returned_at)
            while site.call("nodes")["nodes"] or "fluxburst" in site.instance.run("resource", "drain"):
                time.sleep(0.05)
            site.stop_service()
    return by_hand, by_service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submits", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--scheduler", default="fluxion-easy", choices=["sched-simple", "fluxion-easy", "fluxion-fcfs"])
    parser.add_argument("--serve", nargs=2, metavar=("CONFIG", "URI"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    bindings.load(private.find_flux())
    if options.serve:
        serve(Path(options.serve[0]), options.serve[1])
        return
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    try:
        window_s = 0.1
        waits = launches(directory / "a", options.scheduler, options.submits)
        beyond = sorted(wait - window_s for wait in waits)
        print(f"submit to launch, {len(beyond)} submits, beyond the {window_s * 1000:.0f} ms batching window:")
        print(
            f"  median {statistics.median(beyond) * 1000:.1f} ms, p90 {beyond[int(0.9 * len(beyond))] * 1000:.1f} ms, "
            f"max {beyond[-1] * 1000:.1f} ms"
        )
        by_hand, by_service = starts(directory / "b", options.scheduler, options.rounds)
        floor, ours = statistics.median(by_hand), statistics.median(by_service)
        print(f"submit to start, process launcher, {options.rounds} rounds in alternation, medians:")
        print(
            f"  by hand (floor) {floor:.3f} s, fluxburst {ours:.3f} s: {ours - floor:+.3f} s, ratio {ours / floor:.2f}"
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
