"""Example fluxburst provider: machines that exist already, and a command that runs a broker on each, such as ssh.

A node is a process of this machine that holds a lock (flock(2)) for as long as it lives. The kernel lets go of the lock
with the last process of it, so the listing is right after any crash, and no process id is trusted on its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict

from fluxburst.errors import InvalidOrder, ProviderUnavailable
from fluxburst.provider import (
    Demand, Finding, Host, NodeId, NodePhase, NodeReport, Offer, Order, Provider, ProviderContext, ProviderFactory,
    Refusal, RequestId, Severity, Shrink, hookimpl, options,
)  # fmt: skip


class Options(BaseModel):
    """The keys of ``[provider.NAME]``. In ``command``, ``{host}`` and ``{config}`` are replaced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: tuple[str, ...] = (
        "flux", "broker", "-c", "{config}", "-Shostname={host}", "-Sbroker.boot-method=config",
    )  # fmt: skip
    longest_job_s: float | None = None


class StaticProvider:
    shrink = Shrink.ANY

    def __init__(self, context: ProviderContext) -> None:
        self._context = context
        self._options = options(Options, context.options, f"provider.{context.name}")
        self._children: list[subprocess.Popen[bytes]] = []
        self._one_at_a_time = threading.Lock()

    def check(self) -> Sequence[Finding]:
        program = self._options.command[0]
        if shutil.which(program) is None:
            return [Finding("command", Severity.ERROR, f"{program}: not found", "install it, or name its path")]
        return [Finding("command", Severity.OK, " ".join(self._options.command))]

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        longest, pools = self._options.longest_job_s, self._context.pools.values()
        if longest is not None and not 0 < demand.duration_s <= longest:
            return [Refusal(pool.name, self._context.name, f"runs jobs of {longest:g} s at most") for pool in pools]
        return [
            Offer(pool.name, self._context.name, "static", pool.cores, pool.gpus, pool.usd_per_node_hour, join_s=5.0)
            for pool in pools
        ]

    def launch(self, order: Order, /) -> None:
        with self._one_at_a_time:
            for host in order.hosts:
                self._start(order, host)

    def _start(self, order: Order, host: Host) -> None:
        tag = self._context.state_dir / f"{order.request_id}.{host}.json"
        config = tag.with_suffix(".toml")
        config.write_text(order.boot.config_toml, encoding="utf-8")
        words = [word.replace("{host}", host).replace("{config}", str(config)) for word in self._options.command]
        with tag.open("ab") as lock, tag.with_suffix(".log").open("ab") as log:
            if not _locked(lock):
                return  # it runs: this order was launched before
            command: dict[str, object] = {"request_id": order.request_id, "host": host, "pool": order.pool}
            try:
                child = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    pass_fds=[lock.fileno()], env={k: v for k, v in os.environ.items() if not k.startswith("FLUX_")},
                )  # fmt: skip
            except OSError as error:
                tag.unlink()
                raise InvalidOrder(f"{words[0]}: {error.strerror}; see `flux burst check`") from error
            self._children.append(child)
            lock.truncate(0)
            lock.write(json.dumps(command | {"group": child.pid}).encode())
