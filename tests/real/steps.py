"""What the tests of the whole path do and look at, with the commands that a user and an administrator have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fluxburst import hostlist
from fluxburst.flux import private
from fluxburst.model import Host, JobId
from fluxburst.testing import PrivateSite

T = TypeVar("T")

PATIENCE_S = 40.0
"""How long anything may take on a machine that others use too."""
LOOK_AGAIN_S = 0.05

BURSTABLE = "--setattr=burstable=true"


def eventually(probe: Callable[[], T], timeout_s: float = PATIENCE_S) -> T:
    """The first answer of ``probe`` that is true; for what sends no event to wait for."""
    deadline = time.monotonic() + timeout_s
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(LOOK_AGAIN_S)
    return answer


def serve(site: PrivateSite) -> subprocess.Popen[bytes]:
    """Start the service, and return when it has caught up."""
    service = site.start_service()

    def ready() -> bool:
        assert service.poll() is None, f"the service ended: {site.log_path.read_text()[-2000:]}"
        return site.ready()

    eventually(ready)
    return service


def serve_anew(site: PrivateSite) -> subprocess.Popen[bytes]:
    """A new process of the service, whether one runs or not."""
    site.stop_service()
    return serve(site)


def last_log_line(site: PrivateSite) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(site.log_path.read_text().splitlines()[-1])
    return line


def await_event(site: PrivateSite, job: JobId | str, name: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
    """A job's event of that name (RFC 21), as soon as it has happened."""
    entry = site.instance.run("job", "wait-event", "--timeout", str(timeout_s), "--format=json", str(job), name)
    event: dict[str, Any] = json.loads(entry)
    return event


def await_output(site: PrivateSite, job: JobId, lines: int) -> None:
    """Wait until a job's tasks have written so many times: "data" in the eventlog "output" (RFC 24)."""
    path = ("--path=output", "--waitcreate", f"--count={lines}")
    site.instance.run("job", "wait-event", "--timeout", str(PATIENCE_S), *path, str(job), "data")


def hosts_of(site: PrivateSite, job: JobId | str) -> tuple[Host, ...]:
    """Where a job runs or ran."""
    return hostlist.expand(site.instance.run("jobs", "--no-header", "--format={nodelist}", str(job)).strip())


def submitted_again(site: PrivateSite, job: JobId) -> list[JobId]:
    """The jobs that the service made in this one's place."""
    history = site.call("explain", {"id": job})["history"]
    return [entry["new"] for entry in history if entry["kind"] == "resubmitted"]


def memo(site: PrivateSite, job: JobId | str) -> dict[str, Any]:
    """What `flux jobs` shows of the service's story, for ended jobs too."""
    text = site.instance.run("jobs", "--no-header", "--format={user.burst}", str(job)).strip()
    story: dict[str, Any] = json.loads(text) if text else {}
    return story


def records(site: PrivateSite, since: float) -> list[dict[str, Any]]:
    """The records of all nodes bought since then (POSIX seconds), given back or not."""
    return [node for node in site.call("nodes", {"all": True})["nodes"] if node["planned_at"] >= since]


def orders_taken(site: PrivateSite) -> set[str]:
    """The request ids for which the process launcher ever started brokers, by its own journal."""
    journal = site.config.state_path() / "providers" / "local" / "supervisor.json"
    return set(json.loads(journal.read_text())["orders"]) if journal.exists() else set()


def brokers(site: PrivateSite) -> dict[str, int]:
    """The follower brokers of this site that are processes now, with their pids."""
    found: dict[str, int] = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        ours = any(argument.startswith(f"--config-path={site.config.state_path()}/") for argument in arguments)
        names = [argument.removeprefix("-Shostname=") for argument in arguments if argument.startswith("-Shostname=")]
        if ours and names:
            found[names[0]] = int(path.parent.name)
    return found


def lose_power(broker: int) -> None:
    """End a broker and all that runs below it at once, as when its machine loses its power."""
    private.kill_session(broker)


def drained(site: PrivateSite) -> tuple[Host, ...]:
    lines = site.instance.run("resource", "drain", "--no-header", "--format={nodelist}").split()
    return tuple(host for line in lines for host in hostlist.expand(line))


def nothing_left(site: PrivateSite) -> bool:
    """Nobody pays for anything, no broker is left, and no host looks other than a ghost."""
    return not site.call("nodes")["nodes"] and not brokers(site) and not drained(site)


def await_nodes_up(site: PrivateSite, count: int) -> None:
    """Wait until so many nodes are bought, and all of them are up."""

    def up() -> bool:
        nodes = site.call("nodes")["nodes"]
        return len(nodes) == count and all(node["state"] == "joined" for node in nodes)

    eventually(up)


def clean_up(site: PrivateSite) -> None:
    """End all jobs and give all nodes back, whatever a test has left."""
    if not site.ready():
        serve(site)
    site.call("resume")
    site.instance.run("cancel", "--all", "--quiet")
    live = [node["host"] for node in site.call("nodes")["nodes"] if node["state"] not in ("releasing", "gone")]
    if live:
        site.call("release", {"hosts": ",".join(live)})
    eventually(lambda: nothing_left(site))


def flux_burst(site: PrivateSite, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `flux burst ARGUMENTS` as an administrator types it; ``more`` are further environment variables."""
    environment = site.environment() | more
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        ["flux", "burst", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
