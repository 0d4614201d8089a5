"""A private Flux instance on this machine, whose ghosts become local brokers: for demos, tests and benches."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w

from fluxburst import hostlist
from fluxburst.errors import InstanceError
from fluxburst.flux.render import first_ids
from fluxburst.model import Host

Scheduler = Literal["sched-simple", "fluxion-easy", "fluxion-fcfs"]

_USUAL_FLUX = Path("/usr/local/flux/bin/flux")
_SOCKET_PATH_MAX = 107
"""``sun_path`` of unix(7), without its closing NUL."""

_START_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 60.0
_GRACE_S = 15.0
_TELL_AGAIN_S = 1.0


def find_flux() -> Path | None:
    """The flux command on PATH, or else under /usr/local/flux."""
    found = shutil.which("flux") or shutil.which(_USUAL_FLUX)
    return Path(found) if found else None


def scheduler_config(scheduler: Scheduler) -> dict[str, Any]:
    """The Flux configuration that chooses a scheduler: flux-modprobe(1), flux-config-sched-fluxion-qmanager(5)."""
    if scheduler == "sched-simple":
        return {"modules": {"alternatives": {"sched": "sched-simple"}}}
    return {
        "modules": {"alternatives": {"sched": "sched-fluxion-qmanager"}},
        "sched-fluxion-qmanager": {"queue-policy": scheduler.removeprefix("fluxion-")},
    }


def private_config(
    pools: Mapping[str, tuple[str, int]], *, mode: Literal["queue", "open"], home: tuple[str, int] = ("lead0", 2)
) -> dict[str, Any]:
    """The Flux side of a small cluster that can burst: resources, hosts and, in queue mode, queues.

    ``pools`` maps a pool's name, which is also its property and its queue, to its host list and cores per node;
    ``home`` is the same for the nodes that are always there, whose queue is ``batch``.
    """
    shapes = {"home": home, **pools}
    config: dict[str, Any] = {
        "bootstrap": {"hosts": [{"host": host} for hosts, _ in shapes.values() for host in hostlist.expand(hosts)]},
        "resource": {
            "noverify": True,  # one machine plays them all
            "config": [
                {"hosts": hosts, "cores": first_ids(cores), "properties": [name]}
                for name, (hosts, cores) in shapes.items()
            ],
        },
    }
    if mode == "queue":
        config["queues"] = {"batch": {"requires": ["home"]}, "staging": {}} | {
            name: {"requires": [name]} for name in pools
        }
        config["policy"] = {"jobspec": {"defaults": {"system": {"queue": "batch"}}}}
    return config


class PrivateInstance(AbstractContextManager["PrivateInstance"]):
    """A real Flux instance of one lead broker; followers join it when they are started.

    ``config`` is the lead's Flux configuration as a table or as TOML. What only this machine can know is filled in
    where it is missing: a loopback port and the certificate in ``[bootstrap]``; and the scheduler's tables when
    ``scheduler`` is given. Everything lives in ``directory``, whose path must be short because Unix sockets are made
    there; the state in it survives, so a second instance on the same directory is a restart. The lead ends with this
    process, however that ends, and its followers with it. ``with`` starts and closes it.
    """

    def __init__(
        self,
        directory: Path,
        config: str | Mapping[str, Any],
        *,
        scheduler: Scheduler | None = None,
        hostname: str = "lead0",
        flux: Path | None = None,
    ) -> None:
        found = flux or find_flux()
        if found is None:
            raise InstanceError("no flux command found; install Flux, or add its bin directory to PATH")
        self.flux = found
        self.directory = directory
        self.config_path = directory / "flux.toml"
        self._hostname = hostname
        self._config = tomllib.loads(config) if isinstance(config, str) else dict(config)
        if scheduler is not None:
            chosen = scheduler_config(scheduler)
            self._config |= chosen | {"modules": self._config.get("modules", {}) | chosen["modules"]}
        self._lead: subprocess.Popen[str] | None = None
        self._followers: dict[Host, subprocess.Popen[bytes]] = {}

    @property
    def uri(self) -> str:
        return f"local://{self.directory / self._hostname / 'local'}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the lead, and return when it is up.

        Raises:
            InstanceError: it did not come up; with the end of its log.
        """
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def follower_command(self, host: Host) -> list[str]:
        """The argument list that runs this host's follower in the foreground. It exits 0 after a SIGTERM."""
        home = self.directory / host
        for directory in (home, home / "run", home / "state"):
            directory.mkdir(mode=0o700, exist_ok=True)
        if len(os.fsencode(home / "local")) > _SOCKET_PATH_MAX:
            raise InstanceError(f"{home}: too long a path for a Unix socket; choose a shorter directory")
        return [
            str(self.flux),
            "broker",
            f"--config-path={self.config_path}",
            f"-Shostname={host}",
            f"-Srundir={home / 'run'}",
            f"-Sstatedir={home / 'state'}",
            f"-Slocal-uri=local://{home / 'local'}",
        ]

    def start_followers(self, hosts: Iterable[Host]) -> None:
        """Start these hosts' brokers; they come online some time later. A former one is ended first."""
        hosts = tuple(hosts)
        _end([self._followers[host] for host in hosts if host in self._followers], subprocess.Popen.terminate)
        for host in hosts:
            with (self.directory / f"{host}.log").open("ab") as log:
                self._followers[host] = subprocess.Popen(
                    self.follower_command(host),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment(),
                    start_new_session=True,
                )

    def stop_followers(self, hosts: Iterable[Host]) -> None:
        """SIGTERM to these hosts' brokers, which leave in good order some time later."""
        for host in hosts:
            self._followers[host].terminate()

    def kill_followers(self, hosts: Iterable[Host]) -> None:
        """End these hosts' brokers and all that runs there at once, as when machines lose their power."""
        for host in hosts:
            kill_session(self._followers[host].pid)

    def kill_lead(self) -> None:
        """End the lead at once, as when its machine loses its power."""
        assert self._lead is not None  # it was started
        kill_session(self._lead.pid)

    def run(self, *arguments: str) -> str:
        """What ``flux ARGUMENTS`` prints when it is run in this instance.

        Raises:
            InstanceError: it failed; with its error output.
        """
        done = subprocess.run(
            [self.flux, *arguments],
            env=_environment() | {"FLUX_URI": self.uri},
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise InstanceError(f"flux {' '.join(arguments)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
        return done.stdout

    def close(self) -> None:
        """End every process that was started here: followers first, then the lead. What lingers is killed."""
        _end(self._followers.values(), subprocess.Popen.terminate)
        self._followers.clear()
        lead, self._lead = self._lead, None
        if lead is not None:
            assert lead.stdin is not None  # both are pipes
            assert lead.stdout is not None
            end_of_input = lead.stdin.close
            _end([lead], lambda _lead: end_of_input())
            lead.stdout.close()

    def _start(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_config()
        command = [
            *self.follower_command(Host(self._hostname)),
            "-Sbroker.quorum=1",
            "-Sbroker.quorum-warn=none",
            # The initial program says when the instance is up, and ends it when our end of its input is gone.
            "echo up; exec cat",
        ]
        log_path = self.directory / f"{self._hostname}.log"
        with log_path.open("ab") as log:
            self._lead = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(),
                start_new_session=True,
            )
        assert self._lead.stdout is not None  # it is a pipe
        with selectors.DefaultSelector() as selector:
            selector.register(self._lead.stdout, selectors.EVENT_READ)
            ready = selector.select(_START_TIMEOUT_S)
        if not ready or self._lead.stdout.readline() != "up\n":
            last = log_path.read_text(errors="replace").strip().splitlines()[-3:]
            raise InstanceError(f"the private Flux instance did not start; {log_path} ends with: {' | '.join(last)}")

    def _write_config(self) -> None:
        bootstrap = self._config["bootstrap"] = dict(self._config.get("bootstrap", {}))
        if "curve_cert" not in bootstrap:
            certificate = self.directory / "curve.cert"
            if not certificate.exists():
                subprocess.run([self.flux, "keygen", certificate], check=True, timeout=_COMMAND_TIMEOUT_S)
            bootstrap["curve_cert"] = str(certificate)
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        bootstrap["hosts"] = [
            {"bind": endpoint, "connect": endpoint} | entry if entry["host"] == self._hostname else entry
            for entry in bootstrap.get("hosts", [{"host": self._hostname}])
        ]
        self.config_path.write_text(tomli_w.dumps(self._config))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    """Ours without what an enclosing Flux instance has put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}


def _end(processes: Iterable[subprocess.Popen[Any]], tell: Callable[[subprocess.Popen[Any]], object]) -> None:
    """Tell processes to end, again and again because a broker that loads its first modules ignores signals, and wait.

    What has not ended within the grace time is killed.
    """
    processes = list(processes)
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        tell(process)
    for process in processes:
        while process.poll() is None:
            left = deadline - time.monotonic()
            try:
                process.wait(min(max(left, 0.0), _TELL_AGAIN_S))
            except subprocess.TimeoutExpired:
                if left > 0:
                    tell(process)
                else:
                    process.kill()
        kill_session(process.pid)


def kill_session(leader: int) -> None:
    """SIGKILL to a whole session: a killed broker leaves its jobs' tasks behind, in process groups of their own.

    The leader goes first, or it would live to report the end of the others.
    """
    # until all have really ended: one that is only marked to die may still be in the middle of a fork
    while members := _members(leader):
        for pid in sorted(members, key=lambda pid: pid != leader):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _members(session: int) -> set[int]:
    """The processes of a session that have not ended, by /proc/PID/stat of proc(5)."""
    members = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _parent, _group, its_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                members.add(int(path.parent.name))
    return members
