"""One instance for each way to have one, shared by all tests that ask for it, and cleaned up after each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest

from fluxburst.flux.private import Scheduler
from tests.contract import steps
from tests.contract.harness import Harness
from tests.contract.mocked import MockHarness
from tests.contract.real import RealHarness

Mode = Literal["queue", "open"]
Open = Callable[[str, Mode], Harness]

MOCKS = ("fifo", "easy")
REALS: tuple[Scheduler, ...] = ("sched-simple", "fluxion-easy", "fluxion-fcfs")


def backends(mode: Mode, *schedulers: str) -> list[Any]:
    return [
        pytest.param((scheduler, mode), id=f"{scheduler}-{mode}", marks=pytest.mark.flux if scheduler in REALS else ())
        for scheduler in schedulers
    ]


QUEUE_MODE = backends("queue", *MOCKS, "sched-simple", "fluxion-easy")
OPEN_MODE = backends("open", *MOCKS, "fluxion-easy")
FCFS = backends("queue", "fluxion-fcfs")


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
    if scheduler == "fifo" or scheduler == "easy":
        return MockHarness(scheduler=scheduler, mode=mode)
    # Flux makes Unix sockets there, whose paths must be short.
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    real: Scheduler = next(name for name in REALS if name == scheduler)
    return RealHarness(scheduler=real, mode=mode, directory=directory)


def _clean(harness: Harness) -> Iterator[Harness]:
    yield harness
    steps.clean_up(harness)


@pytest.fixture(params=QUEUE_MODE + OPEN_MODE)
def any_mode(request: pytest.FixtureRequest, open_harness: Open) -> Iterator[Harness]:
    """Named queues or none; the job's home is where it runs by default."""
    yield from _clean(open_harness(*request.param))


@pytest.fixture(params=QUEUE_MODE)
def queues(request: pytest.FixtureRequest, open_harness: Open) -> Iterator[Harness]:
    yield from _clean(open_harness(*request.param))


@pytest.fixture(params=QUEUE_MODE + FCFS)
def any_policy(request: pytest.FixtureRequest, open_harness: Open) -> Iterator[Harness]:
    """Named queues, under Fluxion's default policy too."""
    yield from _clean(open_harness(*request.param))
