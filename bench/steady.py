"""A long queue on a private real Flux: catching up, memory, and what the service costs while nothing happens.

Submits many burstable jobs for which a cap leaves no room, starts the service, and prints events per second from its
first event to having caught up, its resident memory, and the CPU seconds that it uses in a quiet minute.

Usage: python bench/steady.py [--jobs 10000] [--quiet-s 60] [--scheduler fluxion-easy]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from fluxburst.flux import bindings, private
from fluxburst.testing import PrivateSite

POOL = """
[limits]
nodes = 0
[pool.burst]
provider = "local"
hosts = "burst-[0-63]"
cores = 4
[provider.local]
launcher = "process"
"""
BIGGER_THAN_HOME = ("--setattr=burstable=true", "-n1", "-c4")
TICKS = os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def switches(pid: int) -> int:
    """Voluntary context switches: how often the process woke up and went to sleep again."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("voluntary")))


def caught_up_line(log_path: Path) -> dict[str, Any]:
    for line in log_path.read_text(encoding="utf-8").splitlines():
        if line.startswith("{") and json.loads(line).get("event") == "caught up":
            found: dict[str, Any] = json.loads(line)
            return found
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--quiet-s", type=float, default=60.0)
    parser.add_argument("--scheduler", default="fluxion-easy", choices=["sched-simple", "fluxion-easy", "fluxion-fcfs"])
    options = parser.parse_args()
    bindings.load(private.find_flux())
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    try:
        with PrivateSite(directory, POOL, scheduler=options.scheduler) as site:
            begun = time.monotonic()
            subprocess.run(
                ["flux", "submit", "--quiet", f"--cc=1-{options.jobs}", *BIGGER_THAN_HOME, "hostname"],
                env=site.environment(), check=True, timeout=600,
            )  # fmt: skip
            print(f"submitted {options.jobs} jobs in {time.monotonic() - begun:.1f} s")
            service = site.start_service()
            wait_for(site.ready, 120)
            line = caught_up_line(site.log_path)
            rate = line["events"] / line["seconds"]
            print(f"caught up: {line['events']} events in {line['seconds']:.2f} s, {rate:.0f} events/s")
            wait_for(lambda: quiet(service.pid), 600)
            before_s, before = cpu_s(service.pid), switches(service.pid)
            time.sleep(options.quiet_s)
            used_s, woken = cpu_s(service.pid) - before_s, switches(service.pid) - before
            print(f"resident memory with {options.jobs} pending jobs: {resident_mb(service.pid):.0f} MB")
            print(f"quiet for {options.quiet_s:.0f} s: {used_s:.2f} s of CPU, {woken} wake-ups")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def wait_for(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(0.2)


def quiet(pid: int) -> bool:
    """Whether the process used no CPU for a second: it has told all jobs their memo."""
    before_s = cpu_s(pid)
    time.sleep(1)
    return cpu_s(pid) == before_s


if __name__ == "__main__":
    main()
