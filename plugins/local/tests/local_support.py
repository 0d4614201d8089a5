"""What the tests of all launchers share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxburst.flux.private import PrivateInstance, private_config
from fluxburst.model import BootMaterial, Host, Offer, Order, RequestId
from fluxburst.provider import PoolSpec, Provider, ProviderContext
from fluxburst_local import make
from fluxburst_local.process import ProcessProvider

HOSTS = tuple(Host(f"burst-{index}") for index in range(4))


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what happens in another process, of which no event comes here."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def context(state_dir: Path, **options: Any) -> ProviderContext:
    pool = PoolSpec(name="p", hosts=HOSTS, cores=2)
    return ProviderContext(name="local", cluster="c", options=options, pools={"p": pool}, state_dir=state_dir)


def order(number: int, *hosts: str, config: str = "", cores: int = 2) -> Order:
    return Order(
        request_id=RequestId(f"b-{number:012}"),
        cluster="c",
        pool="p",
        hosts=tuple(Host(host) for host in hosts),
        offer=Offer(pool="p", provider="local", instance_type="local", cores=cores),
        boot=BootMaterial(config_toml=config, curve_cert_path="/etc/flux/curve.cert"),
        created_at=0.0,
    )


def phases(provider: Provider) -> dict[str, str]:
    return {report.host: report.phase.value for report in provider.list_nodes()}


def release_all(provider: Provider) -> None:
    def gone() -> bool:
        nodes = provider.list_nodes()
        if nodes:
            provider.release([node.node_id for node in nodes])
        return not nodes

    until(gone, timeout_s=30)


def supervisors(state_dir: Path) -> list[int]:
    """The processes that supervise this state directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fsencode(state_dir) in command and any(word.endswith(b"supervisor.py") for word in command):
            found.append(int(path.parent.name))
    return found


@dataclass
class Machine:
    """This machine with a stand-in for ``flux``, and a state directory whose processes are all ended afterwards."""

    root: Path
    state_dir: Path
    providers: list[ProcessProvider] = field(default_factory=list)

    def broker_does(self, script: str, host: str = "default") -> None:
        """What ``flux broker`` does from now on, as a shell script."""
        (self.root / host).write_text(script)

    def provider(self, **options: Any) -> ProcessProvider:
        provider = make(context(self.state_dir, **{"flux": str(self.root / "flux"), "grace": "5s", **options}))
        assert isinstance(provider, ProcessProvider)
        self.providers.append(provider)
        return provider

    def starts(self, host: str) -> list[str]:
        """The command line of each start of this host's broker, with its pid in front."""
        log = self.root / f"{host}.starts"
        return log.read_text().splitlines() if log.exists() else []

    def pid(self, host: str) -> int:
        until(lambda: bool(self.starts(host)))
        return int(self.starts(host)[-1].split()[0])

    def kill_supervisor(self) -> None:
        (pid,) = supervisors(self.state_dir)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not supervisors(self.state_dir))


STAND_IN = """\
#!/bin/sh
here=$(dirname "$0")
for arg; do case $arg in -Shostname=*) host=${arg#-Shostname=};; esac; done
echo "$$ $*" >>"$here/$host.starts"
if [ -e "$here/$host" ]; then . "$here/$host"; else . "$here/default"; fi
"""


def lead_config() -> dict[str, Any]:
    """A lead with the ghosts :data:`HOSTS`."""
    return private_config({"burst": ("burst-[0-3]", 2)}, mode="open")


def up(lead: PrivateInstance) -> set[str]:
    """The followers whose brokers are up."""
    nodes = lead.run("resource", "list", "--states=free,allocated", "--no-header", "--format={nodelist}")
    return set(lead.run("hostlist", "--expand", "--delimiter= ", *nodes.split()).split()) - {"lead0"}
