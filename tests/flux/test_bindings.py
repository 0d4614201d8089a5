from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fluxburst.flux.private import find_flux

LOAD = """
import sys
from pathlib import Path
from fluxburst.errors import BindingsMissing
from fluxburst.flux import bindings
try:
    print(bindings.load(Path(sys.argv[1]) if sys.argv[1:] else None).__file__)
except BindingsMissing as error:
    print(error)
"""


def load(path: Path, *arguments: str, pythonpath: Path | None = None) -> str:
    """What a fresh process prints that loads the bindings with nothing but ``path`` on PATH."""
    environment = {"PATH": str(path)}
    if pythonpath is not None:
        environment["PYTHONPATH"] = str(pythonpath)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout


def fake_flux(directory: Path, pythonpath: str) -> Path:
    """A flux command that puts this on PYTHONPATH and is of version 0.99.1."""
    command = directory / "flux"
    command.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = env ]; then echo "{pythonpath}"; fi\n'
        'if [ "$1" = version ]; then echo "libflux-core:\t\t0.99.1"; fi\n'
    )
    command.chmod(0o755)
    return command


def broken_package(directory: Path) -> Path:
    """A package ``flux`` like the wheel's where libflux-core is not to be found."""
    package = directory / "broken" / "flux"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libflux-core.so.2: cannot open shared object file')")
    return package.parent


def test_without_flux_the_message_says_to_put_it_on_path(tmp_path: Path) -> None:
    message = load(tmp_path)
    assert message.count("\n") == 1
    assert "No module named 'flux'" in message
    assert "add Flux's bin directory to PATH, or run this as: flux burst" in message


def test_bindings_that_cannot_be_loaded_are_told_with_their_error_and_the_version_to_install(tmp_path: Path) -> None:
    fake_flux(tmp_path, str(tmp_path / "nothing"))
    message = load(tmp_path, pythonpath=broken_package(tmp_path))
    assert message.count("\n") == 1
    assert "libflux-core.so.2: cannot open shared object file" in message
    assert "pip install 'fluxburst[flux]' flux-python==0.99.1" in message


def test_a_flux_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    message = load(tmp_path, str(tmp_path / "flux"))
    assert message.count("\n") == 1
    assert f"cannot run {tmp_path / 'flux'}" in message


@pytest.mark.parametrize(("version", "supported"), [((0, 81, 9), False), ((0, 82, 0), True), ((1, 0, 0), True)])
def test_bindings_older_than_0_82_are_refused(tmp_path: Path, version: tuple[int, ...], supported: bool) -> None:
    major, minor, patch = version
    package = tmp_path / "flux"
    (package / "core").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "core" / "__init__.py").touch()
    (package / "core" / "inner.py").write_text(
        "class ffi:\n    NULL = None\n"
        f"class lib:\n    flux_core_version = staticmethod(lambda *_: {major << 16 | minor << 8 | patch})\n"
    )
    message = load(tmp_path, pythonpath=tmp_path)
    if supported:
        assert message == f"{package / '__init__.py'}\n"
    else:
        assert message == (
            f"the Flux Python bindings are {major}.{minor}.{patch}, but fluxburst needs 0.82.0 or newer; "
            "upgrade flux-core\n"
        )


@pytest.mark.flux
def test_the_bindings_of_the_installed_flux_are_found_behind_a_broken_package(tmp_path: Path) -> None:
    flux = find_flux()
    assert flux is not None
    found = load(Path("/usr/bin"), str(flux), pythonpath=broken_package(tmp_path))
    assert found.endswith("/flux/__init__.py\n")
    assert not found.startswith(str(tmp_path))
