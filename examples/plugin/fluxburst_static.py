"""Example fluxburst provider: hosts that exist already, and a command that runs a broker on each, such as ssh.

A node is a process of this machine that holds a lock (flock(2)) for as long as it lives. The kernel lets go of the lock
with the last process of it, so the listing is right after any crash, and no process id is trusted on its own.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE, Popen

from pydantic import BaseModel, ConfigDict

from fluxburst import provider as api
from fluxburst.errors import InvalidOrder


class Options(BaseModel):
    """The keys of ``[provider.NAME]``. In ``command``, ``{host}`` and ``{config}`` are replaced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str = "flux broker -c {config} -Shostname={host} -Sbroker.boot-method=config"
    longest_job_s: float | None = None


class StaticProvider:
    shrink = api.Shrink.ANY

    def __init__(self, context: api.ProviderContext) -> None:
        self._context = context
        self._options = api.options(Options, context.options, f"provider.{context.name}")
        self._children: list[Popen[bytes]] = []
        self._one_at_a_time = threading.Lock()

    def check(self) -> Sequence[api.Finding]:
        try:
            return [api.Finding("command", api.Severity.OK, " ".join(self._words()))]
        except InvalidOrder as error:
            return [api.Finding("command", api.Severity.ERROR, str(error), "install it, or name its path")]

    def offers(self, demand: api.Demand) -> Sequence[api.Offer | api.Refusal]:
        longest, pools = self._options.longest_job_s, self._context.pools.values()
        if longest is not None and demand.duration_s > longest:
            return [api.Refusal(pool.name, self._context.name, f"runs jobs of {longest:g} s at most") for pool in pools]
        name = self._context.name
        return [api.Offer(p.name, name, "static", p.cores, p.gpus, p.usd_per_node_hour, join_s=5.0) for p in pools]

    def launch(self, order: api.Order, /) -> None:
        for host in order.hosts:
            with self._one_at_a_time:
                self._start(order, host)

    def _start(self, order: api.Order, host: api.Host) -> None:
        home = self._context.state_dir / f"{order.request_id}.{host}"
        home.mkdir(exist_ok=True)
        with (home / "lock").open("wb") as lock, (home / "log").open("ab") as log:
            if not _take(fd := lock.fileno()) or (home / "pid").exists():
                return  # this order was launched before
            (home / "flux.toml").write_text(order.boot.config_toml, encoding="utf-8")
            (home / "tags").write_text(f"{order.request_id} {order.pool} {host}", encoding="utf-8")
            words = [w.replace("{host}", host).replace("{config}", str(home / "flux.toml")) for w in self._words()]
            env = {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}
            # the command begins once its process id is on disk; if we die before that, `read` fails and it never does
            gated = ["sh", "-c", 'read -r go && exec "$@" </dev/null', "sh", *words]
            child = Popen(gated, stdin=PIPE, stdout=log, stderr=log, start_new_session=True, pass_fds=[fd], env=env)
            (home / "pid").write_text(str(child.pid), encoding="utf-8")
            assert child.stdin
            with child.stdin as gate:
                gate.write(b"go\n")
            self._children.append(child)

    def _words(self) -> list[str]:
        words = shlex.split(self._options.command)
        if not words or shutil.which(words[0]) is None:
            raise InvalidOrder(f"[provider.{self._context.name}] command: {self._options.command!r} is not to be found")
        return words

    def list_nodes(self) -> Sequence[api.NodeReport]:
        with self._one_at_a_time:
            self._children = [child for child in self._children if child.poll() is None]
            return [self._report(pid.parent) for pid in sorted(self._context.state_dir.glob("*/pid"))]

    def _report(self, home: Path) -> api.NodeReport:
        request_id, pool, host = (home / "tags").read_text(encoding="utf-8").split()
        phase, detail = api.NodePhase.RUNNING, ""
        if not _runs(home):
            said = (home / "log").read_text(encoding="utf-8", errors="replace").splitlines()
            phase, detail = api.NodePhase.FAILED, said[-1] if said else "its command has ended"
        return api.NodeReport(api.NodeId(home.name), pool, api.RequestId(request_id), api.Host(host), phase, detail)

    def release(self, node_ids: Collection[api.NodeId], /) -> None:
        with self._one_at_a_time:
            known = {path.name: path for path in self._context.state_dir.iterdir()}
            for home in (known[node_id] for node_id in node_ids if node_id in known):
                if _runs(home):  # so the process group is still this node's own
                    os.killpg(int((home / "pid").read_text()), signal.SIGTERM)
                else:
                    shutil.rmtree(home)

    def close(self) -> None: ...


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _runs(home: Path) -> bool:
    with (home / "lock").open("rb") as lock:
        return not _take(lock.fileno())


@api.hookimpl
def fluxburst_providers() -> Mapping[str, api.ProviderFactory]:
    return {"static": StaticProvider}
