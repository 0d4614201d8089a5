"""``run --dry-run``: what would be bought is told, and nobody else notices that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fluxburst.model import Host, NodeRecord
from fluxburst.provider import hookimpl
from fluxburst.provider.discovery import Plugins
from fluxburst.provider.manager import Providers
from fluxburst.service import Service
from fluxburst.states import NodeState
from fluxburst.store import MemoryStore
from fluxburst_mock.instance import MockConnection
from fluxburst_mock.loop import InlineExecutor
from fluxburst_mock.plugin import MockPlugin
from tests.rig import Rig


class Deaf(MockConnection):
    """A connection on which nothing may be asked for but the events."""

    def _call(self, action: Any) -> Any:
        raise AssertionError("a dry run asked Flux for something")

    def serve(self, handler: Any) -> None:
        raise AssertionError("a dry run took the service's name")


class Hook:
    """A plugin that hears of every change of a node."""

    def __init__(self) -> None:
        self.heard: list[Host] = []

    @hookimpl
    def fluxburst_node_changed(self, node: NodeRecord, old: NodeState | None) -> None:
        self.heard.append(node.host)


@contextmanager
def dry_run(rig: Rig, *plugins: object) -> Iterator[MemoryStore]:
    """A dry run on the rig's instance and cloud; its log is in the store."""
    connection, store = Deaf(rig.flux), MemoryStore()
    rig.flux._connections.append(connection)
    loaded = Plugins([MockPlugin(rig.cloud), *plugins])
    providers = Providers(rig.config, loaded, InlineExecutor(rig.loop, 0.01))
    service = Service(rig.config, connection, rig.loop, providers, loaded, store, clock=rig.loop.wall, dry_run=True)
    service.start()
    try:
        yield store
    finally:
        service.close()
        providers.close()


def methods(rig: Rig, since: int = 0) -> set[str]:
    return {call.method for call in rig.cloud.calls[since:]} - {"close"}


def test_a_dry_run_tells_once_what_would_be_bought_and_every_verdict(rig: Rig) -> None:
    rig.crash()
    before = len(rig.cloud.calls)
    with dry_run(rig) as store:
        job, never = rig.submit(nodes=2, duration_s=600.0), rig.submit(nodes=9)
        rig.run_for(2 * 3600)
        (line,) = store.history("pool/burst")
        assert (line.kind, line.data["hosts"], line.data["jobs"]) == ("would buy", ["burst-0", "burst-1"], [job])
        assert (line.data["instance_type"], line.data["usd_per_node_hour"]) == ("mock", 0.5)
        assert [(entry.kind, entry.data["reason"]) for entry in store.history(f"job/{job}")] == [
            ("burst", "buying 2 of mock at $0.5 an hour each")
        ]
        assert [entry.kind for entry in store.history(f"job/{never}")] == ["refused"]
        assert store.live_nodes() == []
        rig.submit(nodes=1, slots=3, cores=1)
        rig.submit(nodes=1, slots=2, cores=1, duration_s=30.0, queue="burst")
        rig.run_for(60)
        assert [entry.data["hosts"] for entry in store.history("pool/burst")] == [["burst-0", "burst-1"], ["burst-2"]]
    assert methods(rig, before) == {"offers", "list_nodes"}
    rig.start()


def test_a_dry_run_gives_nothing_back_and_moves_nothing_that_it_finds(rig: Rig) -> None:
    """Idle nodes, waiting jobs whose nodes are up, lost jobs, an orphan: a service would act on each of them."""
    waits = rig.submit(nodes=4, run_s=30.0)
    rig.run_until(lambda: list(rig.states().values()) == [NodeState.JOINED] * 4)
    rig.crash()
    before, hook, memo = len(rig.cloud.calls), Hook(), rig.flux.memo(waits)
    with dry_run(rig, hook) as store:
        rig.run_for(5)
        assert [node.state for node in store.live_nodes()] == [NodeState.JOINED] * 4, "it knows what is there"
        rig.submit(nodes=4, run_s=5.0)
        rig.cloud.interrupt(Host("burst-3"))
        rig.run_for(3600)
        assert len(rig.cloud.living()) == 3
    assert methods(rig, before) <= {"offers", "list_nodes"}
    assert hook.heard == []
    assert rig.flux.memo(waits) == memo
    rig.start()


def test_a_service_does_not_notice_a_dry_run_beside_it(tmp_path: Path) -> None:
    """Both see the same jobs come and go; the log of the service is what it is without the other one."""

    def story(directory: Path, *, beside: bool) -> list[Any]:
        directory.mkdir()
        rig = Rig(directory)
        with dry_run(rig) if beside else nobody():
            jobs = [rig.submit(nodes=2, run_s=40.0), rig.submit(nodes=1, slots=2, run_s=20.0)]
            rig.run_for(10)
            jobs.append(rig.submit(nodes=4, run_s=10.0))
            rig.run_until(lambda: rig.ended(*jobs))
            rig.run_until(rig.all_gone)
            rig.run_for(600)
        told = [entry for job in jobs for entry in rig.store.history(f"job/{job}")]
        told += [entry for number in range(4) for entry in rig.store.history(f"node/burst-{number}")]
        changing = [(call.method, call.at) for call in rig.cloud.calls if call.method in ("launch", "release")]
        rig.crash()
        return [told, changing]

    @contextmanager
    def nobody() -> Iterator[None]:
        yield

    alone = story(tmp_path / "alone", beside=False)
    assert {"started", "moved"} <= {entry.kind for entry in alone[0]}
    assert story(tmp_path / "beside", beside=True) == alone
