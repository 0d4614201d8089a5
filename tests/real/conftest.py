"""Private sites with a running service: each is started once, and is cleaned up after each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, get_args

import pytest

from fluxburst.flux.private import Scheduler
from fluxburst.testing import PrivateSite
from tests.real import steps

Mode = Literal["queue", "open"]
OpenSite = Callable[[Scheduler, Mode], PrivateSite]

BURST_TOML = """
mode = "{mode}"
[policy]
on_node_loss = "resubmit"
cooldown = "1s"
[pool.burst]
provider = "local"
hosts = "burst-[0-3]"
cores = 2
idle_timeout = "500ms"
[provider.local]
launcher = "process"
"""


@pytest.fixture(scope="session")
def open_site() -> Iterator[OpenSite]:
    """Starts each site once, and ends them all after the last test."""
    with ExitStack() as stack:
        opened: dict[tuple[Scheduler, Mode], PrivateSite] = {}

        def open_one(scheduler: Scheduler, mode: Mode) -> PrivateSite:
            if (scheduler, mode) not in opened:
                # Flux makes Unix sockets there, whose paths must be short
                directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                site = PrivateSite(directory, BURST_TOML.format(mode=mode), scheduler=scheduler)
                opened[scheduler, mode] = stack.enter_context(site)
            return opened[scheduler, mode]

        yield open_one


def _serving(site: PrivateSite) -> Iterator[PrivateSite]:
    if not site.ready():
        steps.serve(site)
    yield site
    try:
        steps.clean_up(site)
    finally:
        print(site.log_path.read_text()[-9000:])  # shown where the test failed, or its end


@pytest.fixture
def site(open_site: OpenSite) -> Iterator[PrivateSite]:
    """Queue mode under Fluxion's easy policy, which is recommended."""
    yield from _serving(open_site("fluxion-easy", "queue"))


@pytest.fixture(params=get_args(Scheduler))
def any_site(request: pytest.FixtureRequest, open_site: OpenSite) -> Iterator[PrivateSite]:
    """Queue mode under every scheduler."""
    yield from _serving(open_site(request.param, "queue"))


@pytest.fixture(params=get_args(Mode))
def any_mode(request: pytest.FixtureRequest, open_site: OpenSite) -> Iterator[PrivateSite]:
    yield from _serving(open_site("fluxion-easy", request.param))


@pytest.fixture
def plain_directory() -> Iterator[Path]:
    """An empty directory with a short path."""
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
