"""A small site and its burst.toml, and a real Flux that boots what is rendered from them."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxburst import bootkit, config, hostlist
from fluxburst.config import BurstConfig
from fluxburst.flux import bindings
from fluxburst.flux.private import PrivateInstance, Scheduler, free_port, scheduler_config
from fluxburst.flux.render import PLUGIN, Rendered, render

BURST_TOML = """
cluster = "corona"
mode = "{mode}"
[lead]
connect = "tcp://127.0.0.1:{port}"
[pool.c2]
provider = "local"
hosts = "c2-[0-3]"
cores = 2
[pool.gpu]
provider = "local"
hosts = "gpu-[0-1]"
cores = 4
gpus = 2
properties = ["a100"]
"""


def burst(mode: str = "queue", port: int = 30093, extra: str = "") -> BurstConfig:
    return config.parse(BURST_TOML.format(mode=mode, port=port) + extra)


def site(port: int = 8050, curve_cert: str = "/etc/flux/system/curve.cert", **tables: Any) -> dict[str, Any]:
    """One node with two cores, without queues."""
    return {
        "bootstrap": {
            "curve_cert": curve_cert,
            "hosts": [{"host": "lead0", "bind": f"tcp://127.0.0.1:{port}", "connect": f"tcp://127.0.0.1:{port}"}],
        },
        "resource": {"noverify": True, "config": [{"hosts": "lead0", "cores": "0-1"}]},
    } | tables


class Lead(PrivateInstance):
    """A real lead that boots a rendered configuration, and the burst.toml that it was rendered from."""

    def __init__(self, directory: Path, burst_config: BurstConfig, rendered: Rendered) -> None:
        super().__init__(directory, rendered.lead_toml())
        self.burst_config = burst_config
        self.rendered = rendered

    def submit(self, *arguments: str) -> str:
        return self.run("submit", *arguments).strip()

    def system(self, job_id: str) -> dict[str, Any]:
        """The job's ``attributes.system``, updates applied."""
        jobspec = json.loads(self.run("job", "info", job_id, "jobspec"))
        system: dict[str, Any] = jobspec["attributes"]["system"]
        return system

    def handle(self) -> Any:
        return bindings.load(self.flux).Flux(self.uri)

    def start_queues(self) -> None:
        for queue in sorted(self.rendered.lead["queues"].keys() - {self.burst_config.staging_queue}):
            self.run("queue", "start", queue)

    def wait_for(self, hosts: set[str], event: str = "online", timeout_s: float = 30.0) -> None:
        """Until the resource journal has said this of all these hosts."""
        handle = self.handle()
        from flux.idset import IDset
        from flux.resource import ResourceJournalConsumer

        names = hostlist.expand(handle.attr_get("hostlist"))
        waiting, deadline = set(hosts), time.monotonic() + timeout_s
        journal = ResourceJournalConsumer(handle).start()
        while waiting:
            entry = journal.poll(max(deadline - time.monotonic(), 0.1))
            if entry.name == event:
                waiting -= {names[rank] for rank in IDset(entry.context["idset"])}

    def boot_script(self, hosts: list[str], lead_timeout_s: float = bootkit.LEAD_TIMEOUT_S) -> Path:
        """The script that boots these hosts by the rendered follower file."""
        folder = self.directory / "follower.d"
        folder.mkdir(exist_ok=True)
        (folder / "system.toml").write_text(self.rendered.follower_toml())
        script = self.directory / "boot.sh"
        work = str(self.directory / "work")
        script.write_text(
            bootkit.boot_script(
                str(self.flux), str(folder), hosts, "FLUX_TASK_RANK", work, lead_timeout_s=lead_timeout_s
            )
        )
        return script

    @contextlib.contextmanager
    def follower(self, host: str, lead_timeout_s: float = bootkit.LEAD_TIMEOUT_S) -> Iterator[subprocess.Popen[bytes]]:
        """A follower that the boot script runs without any launcher."""
        script = self.boot_script([host], lead_timeout_s)
        process = subprocess.Popen(["sh", script], env={"FLUX_TASK_RANK": "0", "PATH": "/usr/bin:/bin"})
        try:
            self.wait_for({host})
            yield process
        finally:
            process.terminate()
            process.wait(20)


LeadFactory = Callable[..., Lead]


@pytest.fixture
def lead() -> Iterator[LeadFactory]:
    """Makes real leads: ``with lead("sched-simple", mode="queue", ...) as running:``."""
    root = Path(tempfile.mkdtemp(prefix="fb-"))
    certificate = root / "curve.cert"

    def make(
        scheduler: Scheduler = "sched-simple",
        mode: str = "queue",
        tweak: Callable[[dict[str, Any]], object] = lambda _: None,
        **tables: Any,
    ) -> Lead:
        """``tables`` join the site's configuration; ``tweak`` changes the lead's after rendering."""
        port = free_port()
        burst_config = burst(mode, port)
        rendered = render(
            burst_config, site(port, str(certificate), **scheduler_config(scheduler), **tables), frobnicator=PLUGIN
        )
        tweak(rendered.lead)
        instance = Lead(root / str(len(list(root.iterdir()))), burst_config, rendered)
        instance.directory.mkdir()
        if not certificate.exists():
            subprocess.run([instance.flux, "keygen", certificate], check=True, capture_output=True)
        return instance

    yield make
    shutil.rmtree(root)
