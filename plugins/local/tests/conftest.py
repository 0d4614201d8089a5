from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_support import STAND_IN, Machine, lead_config, release_all, supervisors

from fluxburst.flux.private import PrivateInstance, find_flux


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_flux() is None:
        skip = pytest.mark.skip(reason="no flux command on PATH or under /usr/local/flux")
        for item in items:
            if item.get_closest_marker("flux"):
                item.add_marker(skip)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path, tmp_path / "state")
    (tmp_path / "flux").write_text(STAND_IN)
    (tmp_path / "flux").chmod(0o755)
    machine.broker_does("exec sleep 600")
    yield machine
    release_all(machine.provider())
    for provider in machine.providers:
        provider.close()
    for pid in supervisors(machine.state_dir):
        os.kill(pid, signal.SIGTERM)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="fb-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def lead(short_dir: Path) -> Iterator[PrivateInstance]:
    """A lead broker with four ghosts."""
    with PrivateInstance(short_dir / "lead", lead_config(), scheduler="sched-simple") as instance:
        yield instance


@pytest.fixture
def flux() -> str:
    path = find_flux()
    assert path is not None  # else the test is skipped
    return str(path)
