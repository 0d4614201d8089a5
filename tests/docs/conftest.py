"""Installs the example plugin as its users would, for this test session only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"


@pytest.fixture(scope="session")
def built_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for ``sys.path`` that holds the installed distribution ``fluxburst-static``."""
    target = tmp_path_factory.mktemp("plugin")
    subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--no-index",
            ),
            *("--no-build-isolation", "--target", str(target), str(PLUGIN)),
        ],
        check=True,
        timeout=100,
    )
    return target


@pytest.fixture
def installed_plugin(built_plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process and those that it starts find the plugin."""
    monkeypatch.syspath_prepend(str(built_plugin))
    monkeypatch.setenv("PYTHONPATH", str(built_plugin))
