"""The whole service on the mock: a mock Flux, a mock cloud, virtual time, and a store that survives crashes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from fluxburst import config as configuration
from fluxburst.config import BurstConfig
from fluxburst.errors import InstanceError
from fluxburst.flux.protocol import Caller
from fluxburst.flux.render import render
from fluxburst.model import Host, JobId, NodeRecord, RequestId
from fluxburst.provider.discovery import Plugins
from fluxburst.provider.manager import Providers
from fluxburst.service import Service
from fluxburst.states import NodeState
from fluxburst.store import Store
from fluxburst_mock.cloud import MockCloud
from fluxburst_mock.ingest import frobnicator
from fluxburst_mock.instance import MockConnection, MockInstance
from fluxburst_mock.loop import InlineExecutor, VirtualLoop
from fluxburst_mock.plugin import MockPlugin

HEAD = """
cluster = "rig"
mode = "{mode}"
state_dir = "{state}"
[lead]
connect = "tcp://127.0.0.1:8050"
"""
POOL = """
[pool.burst]
provider = "mock"
hosts = "burst-[0-3]"
cores = 2
idle_timeout = "60s"
[pool.burst.options]
boot_s = 30.0
usd_per_node_hour = 0.5
"""
SITE = {
    "bootstrap": {
        "curve_cert": "/etc/flux/curve.cert",
        "hosts": [{"host": "lead0", "bind": "tcp://127.0.0.1:8050", "connect": "tcp://127.0.0.1:8050"}],
    },
    "resource": {"config": [{"hosts": "lead0", "cores": "0-1"}]},
}


class Rig:
    """``pools`` is the part of burst.toml below the head: pools, policy and the rest."""

    def __init__(
        self,
        tmp_path: Path,
        pools: str = POOL,
        *,
        mode: Literal["queue", "open"] = "queue",
        scheduler: Literal["fifo", "easy"] = "easy",
        home: str = "lead0",
        plugins: tuple[object, ...] = (),
    ) -> None:
        self._head = HEAD.format(mode=mode, state=tmp_path / "state")
        self.config = self.parse(pools)
        self.loop = VirtualLoop()
        site = SITE | {"resource": {"config": [{"hosts": home, "cores": "0-1"}]}}
        lead = render(self.config, site, frobnicator=Path("/burst-frobnicator.py")).lead
        self.flux = MockInstance(
            self.loop,
            lead,
            scheduler=scheduler,
            started=("batch",),
            wall=self.loop.wall,
            frobnicate=frobnicator(lead),
        )
        self.cloud = MockCloud(self.loop, self.flux)
        self.plugins = Plugins([MockPlugin(self.cloud), *plugins])
        self._ids = itertools.count()
        self.service: Service
        self.store: Store
        self.connection: MockConnection
        self.start()

    def parse(self, pools: str) -> BurstConfig:
        """A burst.toml with this rig's head."""
        return configuration.parse(self._head + pools)

    def later(self, seconds: float, call: Callable[[], Any]) -> Future[Any]:
        """A future that is completed so much later, with what ``call`` returns then, be it a future itself."""
        future: Future[Any] = Future()

        def complete() -> None:
            result = call()
            if isinstance(result, Future):
                result.add_done_callback(lambda inner: future.set_result(inner.result()))
            else:
                future.set_result(result)

        self.loop.call_later(seconds, complete)
        return future

    def failing(self, why: str) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(InstanceError(why))
        return future

    def kinds(self, job: JobId) -> list[str]:
        """What the service's log tells of a job, by kind."""
        return [entry.kind for entry in self.store.history(f"job/{job}")]

    def start(self) -> None:
        """Start the service, for the first time or after a crash."""
        self.connection = self.flux.connect()
        self.store = Store(self.config.state_path())
        providers = Providers(self.config, self.plugins, InlineExecutor(self.loop, 0.01))
        self.service = Service(
            self.config,
            self.connection,
            self.loop,
            providers,
            self.plugins,
            self.store,
            clock=self.loop.wall,
            new_id=lambda: RequestId(f"b-{next(self._ids):012d}"),
        )
        self.service.start()

    def crash(self) -> None:
        """The service is gone in the middle of whatever it did; what was not committed is lost."""
        self.service.close()
        self.store.close()

    def restart(self) -> None:
        self.crash()
        self.start()

    def submit(
        self,
        *,
        nodes: int = 0,
        slots: int = 1,
        cores: int = 1,
        run_s: float = 10.0,
        duration_s: float = 0.0,
        burstable: object = True,
        urgency: int = 16,
        userid: int | None = None,
        **system: Any,
    ) -> JobId:
        """Submit what `flux submit` would make; ``slots`` are for each node where nodes are asked for."""
        slot = {"type": "slot", "count": slots, "label": "task", "with": [{"type": "core", "count": cores}]}
        spec = {
            "version": 1,
            "resources": [{"type": "node", "count": nodes, "exclusive": True, "with": [slot]}] if nodes else [slot],
            "tasks": [{"command": ["sleep", str(run_s)], "slot": "task", "count": {"per_slot": 1}}],
            "attributes": {"system": {"duration": duration_s, "burstable": burstable, **system}},
        }
        return self.flux.submit(spec, urgency=urgency, userid=userid)

    def run_until(self, condition: Callable[[], bool], timeout_s: float = 3600.0) -> None:
        self.loop.run_until(condition, timeout_s)

    def run_for(self, seconds: float) -> None:
        self.loop.run_for(seconds)

    def ended(self, *jobs: JobId) -> bool:
        return all(self.flux.state(job).name == "INACTIVE" for job in jobs)

    def hosts(self, job: JobId) -> tuple[Host, ...]:
        """Where a job ran or runs."""
        return tuple(share.host for share in self.flux.allocation(job))

    def queue(self, job: JobId) -> str:
        """The queue of an active job, as the service knows it; empty while it knows none."""
        known = self.service.world.jobs.get(job)
        return known.queue if known else ""

    def node(self, host: str) -> NodeRecord:
        return self.service.world.nodes[Host(host)].record

    def states(self) -> dict[str, NodeState]:
        return {host: node.record.state for host, node in sorted(self.service.world.nodes.items())}

    def all_gone(self) -> bool:
        return not self.service.world.nodes and not self.cloud.living()

    def calls(self, method: str) -> list[Any]:
        return [call for call in self.cloud.calls if call.method == method]

    def bought(self) -> list[Host]:
        """The hosts of every machine there ever was, in the order in which they were ordered."""
        return [machine.host for machine in self.cloud.machines.values()]

    def ask(self, method: str, **payload: Any) -> Mapping[str, Any]:
        return self.service.handle(method, payload, Caller(self.flux.facts.owner_uid, owner=True))

    def memo(self, job: JobId) -> Mapping[str, Any]:
        memo: Mapping[str, Any] = self.flux.memo(job).get("burst", {})
        return memo
