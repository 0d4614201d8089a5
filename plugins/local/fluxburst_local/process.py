"""The launcher ``process``: followers are processes of this machine, under a supervisor that outlives the service."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fluxburst import errors
from fluxburst.errors import ProviderUnavailable
from fluxburst.model import (
    Demand,
    Finding,
    Host,
    NodeId,
    NodePhase,
    NodeReport,
    Offer,
    Order,
    Refusal,
    RequestId,
    Severity,
    Shrink,
)
from fluxburst.provider import ProviderContext
from fluxburst_local import pools, supervisor
from fluxburst_local.commands import check_flux, environment, find
from fluxburst_local.options import ProcessOptions

JOIN_S = 0.7
"""From launch to a broker that is up, as measured on one machine."""
ANSWER_S = 30.0
SOCKET_PATH_MAX = 107
"""Characters of a Unix socket's path (unix(7))."""
TRIES = 3
"""A supervisor that dies may close its connections before it stops to listen, so two tries can meet the same one."""


class ProcessProvider:
    """Node ids are ``REQUEST_ID.HOST``. A broker that ends with status 0 is no longer listed: it costs nothing."""

    shrink = Shrink.ANY

    def __init__(self, context: ProviderContext, options: ProcessOptions) -> None:
        self._context = context
        self._options = options
        self._supervisor = Connection(context.state_dir)

    def check(self) -> Sequence[Finding]:
        return [check_flux(self._options.flux), self._check_run_dir()]

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        self._supervisor.open()  # so that the launch which may follow need not wait for its start
        return pools.offers(self._context, demand, instance_type="process", usd_per_node_hour=0.0, join_s=JOIN_S)

    def launch(self, order: Order, /) -> None:
        self._supervisor.ask(
            {
                "op": "launch",
                "request_id": order.request_id,
                "pool": order.pool,
                "hosts": order.hosts,
                "flux": find(self._options.flux),
                "config": order.boot.config_toml,
                "retries": self._options.retries,
                "grace_s": self._options.grace,
            }
        )

    def list_nodes(self) -> Sequence[NodeReport]:
        return [
            NodeReport(
                node_id=NodeId(node["node_id"]),
                pool=node["pool"],
                request_id=RequestId(node["request_id"]),
                host=Host(node["host"]),
                phase=NodePhase(node["phase"]),
                detail=node["detail"],
            )
            for node in self._supervisor.ask({"op": "list"})["nodes"]
        ]

    def release(self, node_ids: Collection[NodeId], /) -> None:
        self._supervisor.ask({"op": "release", "node_ids": list(node_ids)})

    def close(self) -> None:
        self._supervisor.close()

    def _check_run_dir(self) -> Finding:
        base = tempfile.gettempdir()
        if len(f"{base}/fb-12345678/local") > SOCKET_PATH_MAX:
            return Finding(
                "run directory",
                Severity.ERROR,
                f"{base} is too long for the brokers' Unix sockets",
                "set TMPDIR to a shorter path in the service's environment",
            )
        return Finding("run directory", Severity.OK, f"brokers have their sockets below {base}")


class Connection:
    """To the supervisor of one state directory, started when it is not there. Thread-safe.

    While it is open the supervisor stays, so a launch finds it ready.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Raises :class:`ProviderUnavailable` when no supervisor can be started."""
        self.ask({"op": "list"})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request, and again if the supervisor goes away before it answers: all of them may be repeated.

        Raises:
            ProviderError: of the class that the supervisor names; ProviderUnavailable when it gives no answer.
        """
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            try:
                reply = next(filter(None, (self._exchange(line) for _ in range(TRIES))), b"")
            except (OSError, subprocess.TimeoutExpired) as error:
                self._drop()
                raise ProviderUnavailable(f"{self._state_dir}: the supervisor gives no answer: {error}") from None
        if not reply:
            raise ProviderUnavailable(
                f"{self._state_dir}: the supervisor ended {TRIES} times during a request; see its log"
            )
        answer: dict[str, Any] = json.loads(reply)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return answer

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _exchange(self, line: bytes) -> bytes:
        """The reply, or nothing when the supervisor has gone."""
        if self._socket is None:
            self._socket = self._connect()
        try:
            self._socket.sendall(line)
            with self._socket.makefile("rb") as stream:
                reply = stream.readline()
        except (BrokenPipeError, ConnectionResetError):
            reply = b""
        if not reply.endswith(b"\n"):
            self._drop()
            return b""
        return reply

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (ready := self._dial()) is not None:
            return ready
        with (self._state_dir / "supervisor.lock").open("w") as lock:
            # Of several providers that find no supervisor, the first one starts it and the others find it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (ready := self._dial()) is not None:
                return ready
            self._start()
            if (ready := self._dial()) is not None:
                return ready
        raise ProviderUnavailable(f"{self._state_dir}: the supervisor ended as soon as it was started; see its log")

    def _dial(self) -> socket.socket | None:
        """A connection, or None when no supervisor listens."""
        directory = os.open(self._state_dir, os.O_PATH | os.O_DIRECTORY)
        dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        dialled.settimeout(ANSWER_S)
        try:
            # By way of the descriptor the path is short, however deep the state directory lies.
            dialled.connect(f"/proc/self/fd/{directory}/{supervisor.SOCKET}")
        except OSError as error:
            dialled.close()
            if isinstance(error, FileNotFoundError | ConnectionRefusedError):
                return None
            raise
        finally:
            os.close(directory)
        return dialled

    def _start(self) -> None:
        log = self._state_dir / "supervisor.log"
        with log.open("ab") as stream:
            done = subprocess.run(
                [sys.executable, "-I", "-S", supervisor.__file__, str(self._state_dir)],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                timeout=ANSWER_S,
                check=False,
            )
        if done.returncode:
            raise ProviderUnavailable(f"{log}: the supervisor did not start: {supervisor.last_line(log)}")
