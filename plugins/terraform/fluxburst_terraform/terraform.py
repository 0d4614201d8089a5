"""The terraform executable, by python-terraform, with what has to be worked around in one place.

python-terraform 0.10.1 with Terraform 1.11 (both seen): ``destroy()`` passes ``-force``, which is gone; ``apply()``
asks on a terminal that nobody sits at; ``plan()`` takes status 2, which means changes, for an error; ``output()``
swallows why there is none; any misspelt method becomes a command of terraform's; each command reads the state's file by
itself, and fails where a killed one has left it empty. So ``cmd`` alone is called, without a state that it could read,
and diagnostics are taken from the machine-readable UI.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fluxburst.errors import FluxburstError

NO_STATE = "none.tfstate"
"""A file that is not there, for python-terraform to read."""
CHANGES = 2
"""What ``plan -detailed-exitcode`` ends with where something would be changed."""


class TerraformFailed(FluxburstError):
    """A command did not do what it should: its own diagnostics, in one line.

    ``killed``: a signal ended it, and what it had done may be in no state.
    """

    def __init__(self, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


class Terraform:
    """One directory with a root module. One command at a time.

    Args:
        directory: The root module's.
        executable: A path, or a name on PATH.
        lock_timeout_s: How long a command waits for the state's lock.
    """

    def __init__(self, directory: Path, executable: str = "terraform", lock_timeout_s: float = 0.0) -> None:
        import python_terraform

        # it logs what terraform says, as a warning, to a logger without a handler of ours
        logging.getLogger("python_terraform").setLevel(logging.CRITICAL)
        self._flag = python_terraform.IsFlagged
        self._runner = python_terraform.Terraform(
            working_dir=str(directory), terraform_bin_path=executable, state=NO_STATE
        )
        self._lock_timeout = f"{lock_timeout_s:g}s"

    def init(self) -> None:
        """Raises :class:`TerraformFailed`, as all do."""
        self._run("init", input=False)

    def validate(self) -> None:
        status, told, _ = self._cmd("validate", json=self._flag)
        if status:
            raise TerraformFailed(_words(json.loads(told)["diagnostics"]))

    def plan(self) -> bool:
        """Whether anything would be changed."""
        flags = {"input": False, "detailed_exitcode": self._flag, "lock_timeout": self._lock_timeout}
        return self._run("plan", fine=(0, CHANGES), **flags) == CHANGES

    def apply(self) -> None:
        self._run("apply", input=False, auto_approve=self._flag, lock_timeout=self._lock_timeout)

    def destroy(self) -> None:
        self._run("destroy", input=False, auto_approve=self._flag, lock_timeout=self._lock_timeout)

    def outputs(self) -> dict[str, Any]:
        """The root module's, by name, as the state has them."""
        status, told, trouble = self._cmd("output", json=self._flag)
        if status:
            raise TerraformFailed(" ".join(trouble.split()))
        return {name: found["value"] for name, found in json.loads(told).items()}

    def version(self) -> str:
        status, told, trouble = self._cmd("version", json=self._flag)
        if status:
            raise TerraformFailed(" ".join(trouble.split()))
        return str(json.loads(told)["terraform_version"])

    def _run(self, command: str, fine: tuple[int, ...] = (0,), **flags: Any) -> int:
        status, told, trouble = self._cmd(command, json=self._flag, **flags)
        if status not in fine:
            words = _words(line["diagnostic"] for line in _lines(told) if line.get("type") == "diagnostic")
            told_so = words or " ".join(trouble.split()) or f"terraform {command} ended with {status}"
            raise TerraformFailed(told_so, killed=status < 0)
        return status

    def _cmd(self, command: str, **flags: Any) -> tuple[int, str, str]:
        try:
            status, told, trouble = self._runner.cmd(command, **flags)
        except OSError as error:
            raise TerraformFailed(f"terraform cannot be run: {error}") from None
        return int(status), str(told), str(trouble)


def _lines(told: str) -> Iterator[dict[str, Any]]:
    """The machine-readable UI: a JSON object a line. Provisioners and plugins may write between them."""
    for line in told.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _words(diagnostics: Any) -> str:
    errors = [one for one in diagnostics if one["severity"] == "error"]
    return "; ".join(" ".join(f"{one['summary']}: {one.get('detail', '')}".split()).rstrip(": ") for one in errors)
