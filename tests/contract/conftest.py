"""One instance for each way to have one, shared by all tests that ask for it, and cleaned up after each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from fluxburst.flux.private import Scheduler
from tests.contract import steps
from tests.contract.harness import Harness
from tests.contract.mocked import MockHarness
from tests.contract.real import RealHarness

Mode = Literal["queue", "open"]
Open = Callable[[str, Mode], Harness]

MOCKS: dict[str, Literal["fifo", "easy"]] = {"fifo": "fifo", "easy": "easy"}
REALS: dict[str, Scheduler] = {name: name for name in get_args(Scheduler)}


def backends(mode: Mode, *schedulers: str) -> list[Any]:
    return [
        pytest.param((scheduler, mode), id=f"{scheduler}-{mode}", marks=pytest.mark.flux if scheduler in REALS else ())
        for scheduler in schedulers
    ]


QUEUE_MODE = backends("queue", *MOCKS, "sched-simple", "fluxion-easy")


@pytest.fixture(scope="session")
def open_harness() -> Iterator[Open]:
    """Starts each instance once, and ends them all after the last test."""
    with ExitStack() as stack:
        opened: dict[tuple[str, Mode], Harness] = {}

        def open_one(scheduler: str, mode: Mode) -> Harness:
            if (scheduler, mode) not in opened:
                harness = opened[scheduler, mode] = _start(scheduler, mode, stack)
                stack.callback(harness.close)
            return opened[scheduler, mode]

        yield open_one


def _start(scheduler: str, mode: Mode, stack: ExitStack) -> Harness:
    if scheduler in MOCKS:
        return MockHarness(scheduler=MOCKS[scheduler], mode=mode)
    # Flux makes Unix sockets there, whose paths must be short.
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    return RealHarness(scheduler=REALS[scheduler], mode=mode, directory=directory)


def _clean(harness: Harness) -> Iterator[Harness]:
    yield harness
    steps.clean_up(harness)


@pytest.fixture(params=QUEUE_MODE + backends("open", *MOCKS))
def any_mode(request: pytest.FixtureRequest, open_harness: Open) -> Iterator[Harness]:
    """For what does not depend on queues. The real ones have some, to keep the suite short."""
    yield from _clean(open_harness(*request.param))


@pytest.fixture(params=backends("open", *MOCKS, "fluxion-easy"))
def open_mode(request: pytest.FixtureRequest, open_harness: Open) -> Iterator[Harness]:
    """No named queues: jobs run wherever nodes are up."""
    yield from _clean(open_harness(*request.param))


@pytest.fixture(params=QUEUE_MODE)
def queues(request: pytest.FixtureRequest, open_harness: Open) -> Iterator[Harness]:
    yield from _clean(open_harness(*request.param))


@pytest.fixture(params=QUEUE_MODE + backends("queue", "fluxion-fcfs"))
def any_policy(request: pytest.FixtureRequest, open_harness: Open) -> Iterator[Harness]:
    """Named queues, under Fluxion's default policy too."""
    yield from _clean(open_harness(*request.param))


@pytest.fixture(params=backends("queue", "easy", "fluxion-easy"))
def easy(request: pytest.FixtureRequest, open_harness: Open) -> Iterator[Harness]:
    """EASY backfilling."""
    yield from _clean(open_harness(*request.param))


@pytest.fixture(params=backends("queue", "sched-simple"))
def simple(request: pytest.FixtureRequest, open_harness: Open) -> Iterator[Harness]:
    """flux-core's own scheduler; the mock's does not forecast."""
    yield from _clean(open_harness(*request.param))


@pytest.fixture(params=backends("queue", "fluxion-fcfs"))
def fcfs(request: pytest.FixtureRequest, open_harness: Open) -> Iterator[Harness]:
    yield from _clean(open_harness(*request.param))
