"""A private Flux instance on this machine that can burst, and the service that makes it burst."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from fluxburst import config as configuration
from fluxburst import jobid
from fluxburst.errors import BindingsMissing, FluxburstError
from fluxburst.flux import client, private, render
from fluxburst.model import JobId

_STOP_S = 20.0


class PrivateSite(AbstractContextManager["PrivateSite"]):
    """A lead with its home nodes, ghosts for the pools of a burst.toml, and ``flux burst run`` as a child process.

    ``burst_toml`` is a burst.toml without ``cluster``, ``state_dir`` and ``[lead]``, which are filled in. Everything
    lives in ``directory``, which should have a short path (Unix sockets are made there) and is left to the caller to
    remove. ``with`` starts the instance and ends whatever was started; :meth:`start_service` starts the service.
    ``strays`` tells whether the installed providers are asked, at the end, to release what a test left behind.
    """

    def __init__(
        self,
        directory: Path,
        burst_toml: str,
        *,
        scheduler: private.Scheduler = "fluxion-easy",
        home_cores: int = 2,
        extra: Mapping[str, Any] | None = None,
        strays: bool = True,
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        endpoint = f"tcp://127.0.0.1:{private.free_port()}"
        self.directory = directory
        self._strays = strays
        self.config_path = directory / "burst.toml"
        self.config_path.write_text(
            f'cluster = "private"\nstate_dir = "{directory / "state"}"\n{burst_toml}\n[lead]\nconnect = "{endpoint}"\n',
            encoding="utf-8",
        )
        self.config = configuration.load(self.config_path)
        certificate = directory / "curve.cert"
        site: dict[str, Any] = {
            "bootstrap": {
                "curve_cert": str(certificate),
                "hosts": [{"host": "lead0", "bind": endpoint, "connect": endpoint}],
            },
            # one machine plays all hosts
            "resource": {"noverify": True, "config": [{"hosts": "lead0", "cores": render.first_ids(home_cores)}]},
            **(extra or {}),
        }
        lead = render.render(self.config, site, frobnicator=render.PLUGIN).lead
        self.instance = private.PrivateInstance(directory / "flux", lead, scheduler=scheduler)
        if not certificate.exists():
            subprocess.run([self.instance.flux, "keygen", certificate], check=True, timeout=60)
        self._service: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.instance.start()
        try:
            if self.config.mode == "queue":
                self.instance.run("queue", "start", "--all", "--quiet")
        except BaseException:
            self.instance.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop_service()
        finally:
            if self._strays:
                self._release_all()
            self.instance.close()

    @property
    def log_path(self) -> Path:
        return self.directory / "service.log"

    def start_service(
        self, command: Sequence[str] = (sys.executable, "-m", "fluxburst", "run")
    ) -> subprocess.Popen[bytes]:
        """Start ``flux burst run``; it is ready when :meth:`call` answers ``ready``."""
        with self.log_path.open("ab") as log:
            self._service = subprocess.Popen(
                [*command, "--config", str(self.config_path), "--log-format", "json"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
            )
        return self._service

    def stop_service(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send the service a signal and wait for its end; nothing happens when none runs."""
        service, self._service = self._service, None
        if service is None:
            return
        service.send_signal(how)
        try:
            service.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()

    def environment(self) -> dict[str, str]:
        """What a command needs to reach this instance."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}
        path = f"{self.instance.flux.parent}{os.pathsep}{ours.get('PATH', '')}"
        return ours | {"FLUX_URI": self.instance.uri, "PATH": path, "FLUXBURST_CONFIG": str(self.config_path)}

    def call(self, method: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask the service.

        Raises:
            FluxburstError: it does not run, or refuses.
        """
        return dict(client.call(method, payload or {}, self.instance.uri))

    def ready(self) -> bool:
        """Whether the service runs and has caught up."""
        try:
            return bool(self.call("status")["ready"])
        except BindingsMissing:
            raise
        except FluxburstError:
            return False

    def submit(self, *arguments: str) -> JobId:
        """What ``flux submit ARGUMENTS`` returns."""
        return jobid.parse(self.instance.run("submit", *arguments).strip())

    def _release_all(self) -> None:
        """End followers that a test has left, through their own provider."""
        from fluxburst.provider.discovery import Plugins
        from fluxburst.provider.manager import Providers

        providers = Providers(self.config, Plugins())
        try:
            for name in providers.names:
                nodes = providers.list_nodes(name).result()
                if nodes:
                    providers.release(name, [node.node_id for node in nodes]).result()
        finally:
            providers.close()
