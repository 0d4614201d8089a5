"""The supervisor of this machine's follower brokers: the one process that starts, watches, stops and remembers them.

It runs by path, ``python -I -S supervisor.py STATE_DIR``, with the standard library alone, so it starts in 0.1 s. It
returns to its starter once it listens, and goes on in a session of its own: brokers outlive the service that ordered
them. It ends when nobody is connected and no broker is left, and its journal outlives it.

Requests come over ``STATE_DIR/supervisor.sock``, one JSON object a line, each answered by one line:

``{"op": "launch", "request_id", "pool", "hosts", "flux", "config", "retries", "grace_s"}``
    starts a broker for each host. A ``request_id`` that was seen before starts nothing.
``{"op": "list"}``
    gives ``{"nodes": [{"node_id", "pool", "request_id", "host", "phase", "detail"}]}``.
``{"op": "release", "node_ids"}``
    SIGTERM, and SIGKILL after ``grace_s``. A failed node is forgotten.

An answer ``{"error": NAME, "message": TEXT}`` means that nothing was done; NAME is a class in ``fluxburst.errors``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SOCKET = "supervisor.sock"
JOURNAL = "supervisor.json"

LINGER_S = 2.0
"""How long the supervisor stays with nothing to do: time for its starter to connect."""
ADOPTED_POLL_S = 0.5
"""How often brokers that an earlier supervisor started are looked at: their end sends no SIGCHLD here."""
RETRY_DELAY_S = 1.0
REMEMBER_S = 86400.0
"""How long the request id of an order without nodes is remembered, so that a late retry of it starts nothing."""

# The broker begins only after its pid is in the journal; if the supervisor dies before that, `read` meets the end of
# the pipe and the child ends. So a living broker is never unknown.
GATE = 'read -r go && exec "$@" </dev/null'


class Refused(Exception):
    """The request changes nothing. ``name`` is the class of ``fluxburst.errors`` that the caller should raise."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass
class Order:
    """One order, by which its nodes can be started again. ``emptied_at`` is when its last node was forgotten."""

    pool: str
    flux: str
    retries: int
    grace_s: float
    emptied_at: float | None = None


@dataclass
class Node:
    """One host's broker. ``started_ticks`` tells its process from a later one of the same pid (proc(5), starttime)."""

    request_id: str
    host: str
    retries_left: int
    pid: int | None = None
    started_ticks: int = 0
    run_dir: str = ""
    asked: bool = False
    failed: bool = False
    detail: str = ""

    @property
    def node_id(self) -> str:
        return f"{self.request_id}.{self.host}"

    @property
    def alive(self) -> bool:
        """It has a process, or will have one again."""
        return not self.failed

    def phase(self) -> str:
        if self.failed:
            return "failed"
        if self.asked:
            return "stopping"
        return "starting" if self.pid is None else "running"


@dataclass
class Journal:
    """What a later supervisor must know. A change is on disk before it is answered, and before a broker begins."""

    path: Path
    orders: dict[str, Order] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Journal:
        journal = cls(path)
        if path.exists():
            data = json.loads(path.read_text())
            journal.orders = {request_id: Order(**order) for request_id, order in data["orders"].items()}
            nodes = [Node(**node) for node in data["nodes"]]
            if data["boot_id"] != boot_id():
                for node in nodes:
                    node.pid = None
            journal.nodes = {node.node_id: node for node in nodes}
        return journal

    def save(self) -> None:
        now = time.time()
        occupied = {node.request_id for node in self.nodes.values()}
        for request_id, order in list(self.orders.items()):
            if request_id in occupied:
                order.emptied_at = None
            elif order.emptied_at is None:
                order.emptied_at = now
            elif order.emptied_at + REMEMBER_S < now:
                del self.orders[request_id]
        data = {
            "boot_id": boot_id(),
            "orders": {request_id: asdict(order) for request_id, order in self.orders.items()},
            "nodes": [asdict(node) for node in self.nodes.values()],
        }
        replace(self.path, json.dumps(data))


class Supervisor:
    """Of one state directory. ``umask`` is for the brokers, whose jobs inherit it."""

    def __init__(self, state_dir: Path, journal: Journal, umask: int) -> None:
        self._state_dir = state_dir
        self._journal = journal
        self._umask = umask
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._connections = 0
        self._done = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self, listener: socket.socket) -> None:
        """Serve until nobody is connected and no broker is left."""
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        server = await asyncio.start_unix_server(self._serve, sock=listener, limit=2**26)
        async with server:
            self._adopt()
            self._settle()
            await self._done.wait()

    # -- requests ----------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            while line := await reader.readline():
                try:
                    answer = self._answer(json.loads(line))
                except Refused as refusal:
                    answer = {"error": refusal.name, "message": str(refusal)}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # the caller went away; it asks again on a new connection
        finally:
            writer.close()
            self._connections -= 1
            self._settle()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.pop("op"):
            case "launch":
                self._launch(**request)
            case "list":
                return {"nodes": self._list()}
            case "release":
                self._release(**request)
            case other:
                raise Refused("InvalidOrder", f"the supervisor knows no request {other!r}; is it of another version?")
        return {}

    def _launch(
        self, request_id: str, pool: str, hosts: list[str], flux: str, config: str, retries: int, grace_s: float
    ) -> None:
        if request_id in self._journal.orders:
            return
        for node in self._journal.nodes.values():
            if node.host in hosts and node.alive:
                raise Refused("InvalidOrder", f"{node.host} still runs for order {node.request_id}; release it first")
        directory = self._order_dir(request_id)
        directory.mkdir(parents=True, exist_ok=True)
        replace(directory / "broker.toml", config)
        self._journal.orders[request_id] = Order(pool, flux, retries, grace_s)
        nodes = [Node(request_id, host, retries) for host in hosts]
        try:
            self._start(nodes)
        except OSError as error:
            del self._journal.orders[request_id]
            for node in nodes:
                self._journal.nodes.pop(node.node_id, None)
            shutil.rmtree(directory, ignore_errors=True)
            raise Refused("NoCapacity", f"this machine cannot start another process: {error}") from None

    def _list(self) -> list[dict[str, str]]:
        self._check_adopted()
        return [
            {
                "node_id": node.node_id,
                "pool": self._journal.orders[node.request_id].pool,
                "request_id": node.request_id,
                "host": node.host,
                "phase": node.phase(),
                "detail": node.detail,
            }
            for node in self._journal.nodes.values()
        ]

    def _release(self, node_ids: list[str]) -> None:
        nodes = [node for node_id in node_ids if (node := self._journal.nodes.get(node_id)) and not node.asked]
        for node in nodes:
            node.asked = True
            if node.pid is None:
                self._forget(node)
            else:
                self._stop(node)
        self._journal.save()

    # -- processes ---------------------------------------------------------------------------------------------------

    def _start(self, nodes: list[Node]) -> None:
        """Start these nodes' brokers, all or none.

        Raises:
            OSError: a process could not be started, or the journal not be written; no process is left.
        """
        children: list[subprocess.Popen[bytes]] = []
        try:
            for node in nodes:
                child = self._spawn(node)
                children.append(child)
                node.pid, node.started_ticks = child.pid, started_ticks(child.pid) or 0
                self._journal.nodes[node.node_id] = node
                self._children[node.node_id] = child
            self._journal.save()
        except OSError:
            for child in children:
                child.communicate()  # closes the gate, so the child ends
            for node in nodes:
                self._children.pop(node.node_id, None)
                node.pid = None
                shutil.rmtree(node.run_dir, ignore_errors=True)
            raise
        for child in children:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it was killed at the gate; SIGCHLD tells
                child.stdin.write(b"go\n")
                child.stdin.close()

    def _spawn(self, node: Node) -> subprocess.Popen[bytes]:
        order, directory = self._journal.orders[node.request_id], self._order_dir(node.request_id)
        home = directory / node.host
        home.mkdir(exist_ok=True)
        # Unix socket paths end at 107 characters, so a run directory cannot lie in a state directory of any depth.
        node.run_dir = tempfile.mkdtemp(prefix="fb-")
        command = [
            order.flux,
            "broker",
            f"--config-path={directory / 'broker.toml'}",
            f"-Shostname={node.host}",
            "-Sbroker.boot-method=config",
            f"-Srundir={node.run_dir}",
            f"-Sstatedir={home}",
            f"-Slocal-uri=local://{node.run_dir}/local",
        ]
        with self._log(node).open("ab") as log:
            return subprocess.Popen(
                ["/bin/sh", "-c", GATE, "gate", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=home,
                start_new_session=True,
                umask=self._umask,
            )

    def _adopt(self) -> None:
        """Take over what an earlier supervisor left: watch its living brokers, finish its stops, fail its dead."""
        self._check_adopted()
        for node in list(self._journal.nodes.values()):
            if node.pid is None and node.alive:
                # It waited to be tried again. How often it has failed since nobody watched is unknown: do not try.
                self._ended(node, None)
            elif node.asked:
                self._stop(node)
        self._poll_adopted()

    def _poll_adopted(self) -> None:
        self._check_adopted()
        if any(node.pid and node.node_id not in self._children for node in self._journal.nodes.values()):
            self._loop.call_later(ADOPTED_POLL_S, self._poll_adopted)

    def _check_adopted(self) -> None:
        for node in list(self._journal.nodes.values()):
            if node.pid and node.node_id not in self._children and not self._still_runs(node.pid, node):
                self._ended(node, None)

    def _reap(self) -> None:
        for node_id, child in list(self._children.items()):
            if (status := child.poll()) is not None:
                del self._children[node_id]
                self._ended(self._journal.nodes[node_id], status)

    def _ended(self, node: Node, status: int | None) -> None:
        """The broker has left. ``status`` is as in :attr:`subprocess.Popen.returncode`, None when it is not known."""
        node.pid = None
        node.detail = f"{describe(status)}: {last_line(self._log(node))}"
        shutil.rmtree(node.run_dir, ignore_errors=True)
        if node.asked or status == 0:
            self._forget(node)
        elif status is not None and node.retries_left > 0:
            node.retries_left -= 1
            self._loop.call_later(RETRY_DELAY_S, self._try_again, node)
        else:
            node.failed = True
        self._settle()
        self._journal.save()

    def _try_again(self, node: Node) -> None:
        if node.asked:
            return
        try:
            self._start([node])
        except OSError as error:
            node.failed, node.detail = True, f"this machine cannot start another process: {error}"
            self._journal.save()
            self._settle()

    def _stop(self, node: Node) -> None:
        self._signal(node, signal.SIGTERM)
        self._loop.call_later(self._journal.orders[node.request_id].grace_s, self._signal, node, signal.SIGKILL)

    def _signal(self, node: Node, number: signal.Signals) -> None:
        # A child that is not reaped yet keeps its pid; another process may have an adopted broker's.
        if node.pid is not None and (node.node_id in self._children or self._still_runs(node.pid, node)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, number)

    @staticmethod
    def _still_runs(pid: int, node: Node) -> bool:
        return started_ticks(pid) == node.started_ticks

    def _forget(self, node: Node) -> None:
        del self._journal.nodes[node.node_id]
        directory = self._order_dir(node.request_id)
        last = all(other.request_id != node.request_id for other in self._journal.nodes.values())
        shutil.rmtree(directory if last else directory / node.host, ignore_errors=True)

    def _settle(self) -> None:
        """Look, a little later, whether there is anything left to do."""
        if not self._connections:
            self._loop.call_later(LINGER_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if not self._connections and not any(node.alive for node in self._journal.nodes.values()):
            self._done.set()

    def _order_dir(self, request_id: str) -> Path:
        return self._state_dir / "orders" / request_id

    def _log(self, node: Node) -> Path:
        return self._order_dir(node.request_id) / node.host / "broker.log"


def boot_id() -> str:
    """Differs after each start of the machine (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def started_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks after the machine; None when it has ended or is a zombie (proc(5))."""
    try:
        # The command's name, in parentheses, may hold anything; field 3, the state, follows the last of them.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def describe(status: int | None) -> str:
    if status is None:
        return "ended while its supervisor was away, exit status unknown"
    return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"


def last_line(log: Path) -> str:
    """The last line of a log that says anything, 300 characters at most."""
    try:
        with log.open("rb") as stream:
            stream.seek(-min(4096, log.stat().st_size), os.SEEK_END)
            lines = stream.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        lines = []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "its log is empty")


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all, also across a power cut; its mode is 0600."""
    new = path.with_name(path.name + ".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:  # noqa: PTH123
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)


def main() -> None:
    state_dir = Path(sys.argv[1]).resolve()
    umask = os.umask(0o077)
    journal = Journal.load(state_dir / JOURNAL)
    # By a relative name the socket may lie deeper than the 107 characters of a socket address.
    os.chdir(state_dir)
    Path(SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(SOCKET)
    listener.listen()
    if os.fork():
        os._exit(0)  # tells the starter that it may connect
    os.setsid()

    async def supervise() -> None:
        await Supervisor(state_dir, journal, umask).run(listener)

    asyncio.run(supervise())


if __name__ == "__main__":
    main()
