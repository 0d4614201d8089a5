"""The demo: jobs that home cannot hold burst to nodes that are bought, used and given back while you watch.

With a Flux on PATH or under /usr/local/flux it is real: a private instance, whose followers are processes of this
machine. Without one the same service runs on the mock. Everything is cleaned up at the end, and after Ctrl-C.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fluxburst import durations, hostlist
from fluxburst.cli import tables
from fluxburst.errors import FluxburstError
from fluxburst.jobid import f58
from fluxburst.model import JobId

POOLS = """
[pool.burst]
provider = "{provider}"
hosts = "burst-[0-3]"
cores = 2
idle_timeout = "3s"
[pool.burst.options]
"""
LIMIT_S = 55.0
REFRESH_S = 0.2

console = Console(highlight=False)


@dataclass(frozen=True)
class Submission:
    """One job of the demo: what is typed after ``flux submit``, and the same as numbers for the mock."""

    label: str
    nodes: int = 0
    slots: int = 1
    burstable: bool = True
    run_s: float = 2.0

    def arguments(self) -> list[str]:
        mark = ["--setattr", "burstable=true"] if self.burstable else []
        size = [f"-N{self.nodes}"] if self.nodes else [f"-n{self.slots}"]
        return [*mark, *size, "sleep", f"{self.run_s:g}"]

    def jobspec(self) -> dict[str, Any]:
        """What ``flux submit`` makes of the arguments (RFC 25)."""
        slot = {"type": "slot", "count": self.slots, "label": "task", "with": [{"type": "core", "count": 1}]}
        node = {"type": "node", "count": self.nodes, "exclusive": True, "with": [slot]}
        return {
            "version": 1,
            "resources": [node if self.nodes else slot],
            "tasks": [{"command": ["sleep", f"{self.run_s:g}"], "slot": "task", "count": {"per_slot": 1}}],
            "attributes": {"system": {"duration": 0} | ({"burstable": True} if self.burstable else {})},
        }


IMPOSSIBLE = Submission("impossible", nodes=9)
SUBMISSIONS = (
    Submission("ordinary", slots=2, burstable=False, run_s=9),
    Submission("two nodes", nodes=2, run_s=3),
    *(Submission(f"one core, {number}", run_s=3) for number in range(1, 5)),
    IMPOSSIBLE,
)


@dataclass(frozen=True)
class Outcome:
    """Where a job ran and how long it waited; neither is known of a job that never started."""

    hosts: str = ""
    waited_s: float | None = None


class Theatre(Protocol):
    """An instance with its service, real or mock."""

    @property
    def title(self) -> str: ...
    def submit(self, submission: Submission) -> JobId: ...
    def cancel(self, job: JobId) -> None: ...
    def ended(self, job: JobId) -> bool: ...
    def outcome(self, job: JobId) -> Outcome: ...
    def call(self, method: str, payload: Mapping[str, Any] | None = None) -> Mapping[str, Any]: ...
    def wait(self, seconds: float) -> None:
        """Let the world go on for so long."""


class RealTheatre:
    def __init__(self, directory: Path) -> None:
        from fluxburst.flux import bindings, private
        from fluxburst.testing import PrivateSite

        flux = private.find_flux()
        bindings.load(flux)
        fluxion = flux is not None and list(flux.parent.parent.glob("lib*/**/sched-fluxion-qmanager.so"))
        scheduler: private.Scheduler = "fluxion-easy" if fluxion else "sched-simple"
        pools = POOLS.format(provider="local") + '[provider.local]\nlauncher = "process"\n'
        self._site = PrivateSite(directory, pools, scheduler=scheduler)
        self._version = ""
        self._scheduler = scheduler

    @property
    def title(self) -> str:
        return f"a real Flux {self._version} with {self._scheduler}; followers are processes of this machine"

    @contextmanager
    def open(self) -> Iterator[RealTheatre]:
        with self._site:
            self._version = self._site.instance.run("getattr", "version").strip()
            service = self._site.start_service()
            while not self._site.ready():
                if service.poll() is not None:
                    raise FluxburstError(f"the service ended: {self._site.log_path.read_text(encoding='utf-8')}")
                self.wait(0.05)
            yield self

    def submit(self, submission: Submission) -> JobId:
        return self._site.submit(*submission.arguments())

    def cancel(self, job: JobId) -> None:
        self._site.instance.run("cancel", str(int(job)))

    def ended(self, job: JobId) -> bool:
        return bool(self._job(job)["state"] == "INACTIVE")

    def outcome(self, job: JobId) -> Outcome:
        found = self._job(job)
        if not found.get("t_run"):
            return Outcome()
        return Outcome(found["nodelist"], found["t_run"] - found["t_submit"])

    def call(self, method: str, payload: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        return self._site.call(method, payload)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _job(self, job: JobId) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._site.instance.run("jobs", "--json", str(int(job))))
        return found


class MockTheatre:
    title: str = "the mock Flux (no real one was found); boots take 3 s"

    def __init__(self, directory: Path) -> None:
        from fluxburst import config
        from fluxburst.flux.protocol import Caller, JobEvent
        from fluxburst.flux.render import PLUGIN, render
        from fluxburst.provider.discovery import Plugins
        from fluxburst.provider.manager import Providers
        from fluxburst.service import Service
        from fluxburst.store import Store
        from fluxburst_mock.cloud import MockCloud
        from fluxburst_mock.ingest import frobnicator
        from fluxburst_mock.instance import MockInstance
        from fluxburst_mock.plugin import MockPlugin

        endpoint = "tcp://127.0.0.1:8050"
        burst = config.parse(
            f'cluster = "demo"\nstate_dir = "{directory}"\n[lead]\nconnect = "{endpoint}"\n'
            + POOLS.format(provider="mock")
            + "boot_s = 3.0\nusd_per_node_hour = 0.1\n"
        )
        site = {
            "bootstrap": {
                "curve_cert": "none: the mock has no network",
                "hosts": [{"host": "lead0", "bind": endpoint, "connect": endpoint}],
            },
            "resource": {"config": [{"hosts": "lead0", "cores": "0-1"}]},
        }
        lead = render(burst, site, frobnicator=PLUGIN).lead
        self._loop = asyncio.new_event_loop()
        self._flux = MockInstance(self._loop, lead, scheduler="easy", started=("batch",), frobnicate=frobnicator(lead))
        plugins = Plugins([MockPlugin(MockCloud(self._loop, self._flux))])
        self._providers = Providers(burst, plugins)
        self._store = Store(burst.state_path())
        self._service = Service(burst, self._flux.connect(), self._loop, self._providers, plugins, self._store)
        self._owner = Caller(self._flux.facts.owner_uid, owner=True)
        self._times: dict[tuple[JobId, str], float] = {}

        def note(event: object) -> None:
            if isinstance(event, JobEvent):
                self._times[event.job_id, event.name] = event.at

        self._audience = self._flux.connect()
        self._audience.subscribe(note)

    @contextmanager
    def open(self) -> Iterator[MockTheatre]:
        self._service.start()
        try:
            while not self.call("status")["ready"]:
                self.wait(0.01)
            yield self
        finally:
            self._service.close()
            self._audience.close()
            self._providers.close()
            self._store.close()
            self._loop.close()

    def submit(self, submission: Submission) -> JobId:
        return self._flux.submit(submission.jobspec())

    def cancel(self, job: JobId) -> None:
        self._flux.cancel(job)

    def ended(self, job: JobId) -> bool:
        return (job, "clean") in self._times

    def outcome(self, job: JobId) -> Outcome:
        hosts = hostlist.fold(share.host for share in self._flux.allocation(job))
        if not hosts:
            return Outcome()
        return Outcome(hosts, self._times[job, "start"] - self._times[job, "submit"])

    def call(self, method: str, payload: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        return self._service.handle(method, payload or {}, self._owner)

    def wait(self, seconds: float) -> None:
        self._loop.call_later(seconds, self._loop.stop)
        self._loop.run_forever()


def play(theatre: Theatre) -> None:
    """Submit, watch until all jobs have ended and every node is gone, and tell what happened."""
    console.print(f"This is {theatre.title}.")
    console.print("Home is one node with two cores; the pool declares four ghosts, burst-[0-3], of two cores each.\n")
    jobs: dict[Submission, JobId] = {}
    for submission in SUBMISSIONS:
        jobs[submission] = theatre.submit(submission)
        console.print(f"$ flux submit {shlex.join(submission.arguments())}\n{f58(jobs[submission])}", style="dim")
    possible = [job for submission, job in jobs.items() if submission is not IMPOSSIBLE]
    refused = jobs[IMPOSSIBLE]
    watch(theatre, lambda: all(theatre.ended(job) for job in possible))
    why = theatre.call("explain", {"id": refused})
    theatre.cancel(refused)
    watch(theatre, lambda: theatre.ended(refused) and not theatre.call("nodes")["nodes"])
    console.print("\nAll jobs have ended, and every node that was bought is gone again.\n")
    console.print(jobs_table(theatre, jobs))
    console.print(nodes_table(theatre.call("nodes", {"all": True})["nodes"]))
    console.print(f"Why {f58(refused)} was refused (flux burst explain {f58(refused)}):")
    console.print(f"  {why['verdict']}")


def watch(theatre: Theatre, done: Callable[[], bool]) -> None:
    """Show the live table until it is done; on anything but a terminal, each state once."""
    deadline = time.monotonic() + LIMIT_S
    shown: object = None
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not done():
            if time.monotonic() > deadline:
                raise FluxburstError(f"the demo did not end within {LIMIT_S:g} s")
            nodes, jobs = theatre.call("nodes"), theatre.call("jobs")
            picture = tables.live(theatre.call("status"), nodes, jobs)
            if console.is_terminal:
                live.update(picture, refresh=True)
            else:
                now = (
                    [(job["f58"], job["state"]) for job in jobs["jobs"]],
                    [(node["host"], node["state"]) for node in nodes["nodes"]],
                )
                if now != shown:
                    shown = now
                    console.print(picture, "")
            theatre.wait(REFRESH_S)


def jobs_table(theatre: Theatre, jobs: Mapping[Submission, JobId]) -> Table:
    table = Table(title="Jobs", title_justify="left", box=None, pad_edge=False)
    for column in ("JOB", "WHAT", "RAN ON", "WAITED"):
        table.add_column(column)
    for submission, job in jobs.items():
        outcome = theatre.outcome(job)
        waited = "" if outcome.waited_s is None else durations.show(outcome.waited_s)
        table.add_row(f58(job), submission.label, outcome.hosts or "nowhere", waited)
    return table


def nodes_table(nodes: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="\nNodes", title_justify="left", box=None, pad_edge=False)
    for column in ("HOST", "ORDERED", "JOINED AFTER", "GONE AFTER", "WHY IT WENT"):
        table.add_column(column)
    for node in nodes:
        joined = "never" if node["joined_at"] is None else durations.show(node["joined_at"] - node["planned_at"])
        ordered = datetime.fromtimestamp(node["planned_at"], UTC).strftime("%H:%M:%S")
        gone = durations.show(node["changed_at"] - node["planned_at"])
        table.add_row(node["host"], ordered, joined, gone, node["reason"])
    return table


def main() -> int:
    import structlog

    from fluxburst.flux.private import find_flux

    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    with (directory / "demo.log").open("w", encoding="utf-8") as log_file:
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.WriteLoggerFactory(log_file)
        )
        try:
            console.print(f"Its files are in {directory} until it ends.")
            chosen = RealTheatre if find_flux() is not None else MockTheatre
            with chosen(directory / "state").open() as theatre:
                play(theatre)
        except KeyboardInterrupt:
            console.print("\nStopped; cleaned up.")
            return 130
        except FluxburstError as error:
            console.print(f"demo: {error}", style="red")
            return 1
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
