from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxburst.flux.private import PrivateInstance
from tests.contract.real import RealHarness


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty directory whose path leaves room for Flux's Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def harness(short_path: Path) -> Iterator[RealHarness]:
    """Queue mode under sched-simple, which starts the fastest."""
    harness = RealHarness(scheduler="sched-simple", mode="queue", directory=short_path)
    yield harness
    harness.close()


@pytest.fixture
def private(harness: RealHarness) -> PrivateInstance:
    return harness.private
