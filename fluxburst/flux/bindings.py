"""Finds and imports Flux's Python bindings, which belong to the Flux that is installed and not to this package."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fluxburst.errors import BindingsMissing, InstanceError

OLDEST = (0, 82, 0)
"""The oldest flux-core that is supported."""

_PROBE_TIMEOUT_S = 10.0

_NEEDED = {"_cffi_backend": "cffi", "yaml": "pyyaml", "ply": "ply"}
"""What the bindings of a Flux installation import from elsewhere: module to distribution."""


@cache
def load(flux: Path | None = None) -> ModuleType:
    """Import the package ``flux``, from where Python finds it or else from the installed Flux itself.

    ``flux`` is that Flux's command; by default the one on PATH.

    Raises:
        BindingsMissing: it cannot be imported, or is older than :data:`OLDEST`; says how to mend it.
    """
    command = flux or _on_path()
    try:
        package = importlib.import_module("flux")
    except ImportError as error:
        package = _load_from(command, error)
    version = _version()
    if version < OLDEST:
        raise BindingsMissing(
            f"the Flux Python bindings are {_dotted(version)}, but fluxburst needs {_dotted(OLDEST)} or newer; "
            "upgrade flux-core"
        )
    return package


def connect(uri: str | None = None) -> Any:
    """An open ``flux.Flux`` handle to the instance at ``uri``, or to the enclosing one.

    Raises:
        BindingsMissing: see :func:`load`.
        InstanceError: no broker answers there.
    """
    flux = load()
    try:
        return flux.Flux(uri) if uri else flux.Flux()
    except OSError as error:
        where = uri or os.environ.get("FLUX_URI") or "the enclosing Flux instance"
        raise InstanceError(
            f"{where}: {error.strerror}; run this inside the instance, on its lead broker or under `flux proxy`"
        ) from error


def _load_from(command: Path | None, first: ImportError) -> ModuleType:
    """Import from the directories that ``flux env`` puts on PYTHONPATH, as ``flux python`` would."""
    if command is None:
        raise BindingsMissing(
            f"cannot import the Flux Python bindings ({first}) and there is no flux command on PATH; "
            "add Flux's bin directory to PATH, or run this as: flux burst"
        )
    answer = _ask(command, "env", "printenv", "PYTHONPATH")
    # A wheel that was found but cannot find its libflux-core would otherwise come first again.
    for name in [name for name in sys.modules if name.partition(".")[0] in {"flux", "_flux"}]:
        del sys.modules[name]
    sys.path[:0] = directories = [path for path in answer.strip().split(":") if path and path not in sys.path]
    try:
        return importlib.import_module("flux")
    except ImportError as error:
        for path in directories:
            sys.path.remove(path)
        if error.name in _NEEDED:
            raise BindingsMissing(
                f"cannot import the Flux Python bindings: {error}; they need: pip install {' '.join(_NEEDED.values())}"
            ) from error
        found = re.search(r"libflux-core:\s*([0-9.]+)", _ask(command, "version"))
        raise BindingsMissing(
            f"cannot import the Flux Python bindings: {error}; run this as: flux burst, or: "
            f"pip install 'fluxburst[flux]' flux-python=={found[1] if found else 'VERSION'}"
        ) from error


def _ask(command: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [command, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PROBE_TIMEOUT_S,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BindingsMissing(f"cannot run {command}: {error}; put a working flux on PATH") from error
    return done.stdout


def _on_path() -> Path | None:
    found = shutil.which("flux")
    return Path(found) if found else None


def _version() -> tuple[int, ...]:
    """MAJOR.MINOR.PATCH of the libflux-core that the bindings are linked with."""
    inner = importlib.import_module("flux.core.inner")
    number = int(inner.lib.flux_core_version(inner.ffi.NULL, inner.ffi.NULL, inner.ffi.NULL))
    return number >> 16, number >> 8 & 0xFF, number & 0xFF


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
