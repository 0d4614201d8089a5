"""Running the site's own commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from fluxburst.errors import InvalidOrder, ProviderUnavailable
from fluxburst.model import Finding, Severity

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SLURM_CONF")
"""All that followers and commands get of the service's environment: neither its secrets nor its Flux instance."""

TIMEOUT_S = 60.0


def environment(**more: str) -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT if name in os.environ} | more


def find(executable: str) -> str:
    """The absolute path of an executable.

    Raises:
        InvalidOrder: there is none.
    """
    path = shutil.which(executable)
    if path is None:
        raise InvalidOrder(f"{executable}: no such executable on PATH {os.environ.get('PATH', '')!r}; name its path")
    return os.path.abspath(path)  # noqa: PTH100  resolve() would follow links that the nodes may lack


class CommandFailed(Exception):
    """``str(error)`` is what the command said, in one line."""


def run(command: Sequence[str], env: Mapping[str, str]) -> str:
    """What a command prints.

    Raises:
        CommandFailed: it ended with an error.
        ProviderUnavailable: it is not there, or gave no answer in time.
    """
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise ProviderUnavailable(f"{command[0]}: no such command; install it on this machine") from None
    except subprocess.TimeoutExpired:
        raise ProviderUnavailable(f"{command[0]} gave no answer within {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise CommandFailed(f"{command[0]}: {said}"[:500])
    return done.stdout


def check_flux(executable: str) -> Finding:
    """Is this a Flux of which a broker can be started?"""
    fix = "set flux = PATH in the provider's table"
    try:
        path = find(executable)
        version = " ".join(run([path, "--version"], environment()).split())
    except (InvalidOrder, CommandFailed, ProviderUnavailable) as error:
        return Finding("flux", Severity.ERROR, str(error), fix)
    return Finding("flux", Severity.OK, f"{path}: {version}")
