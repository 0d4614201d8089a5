"""Finds the real Flux, or says why its tests are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from fluxburst.flux import bindings
from fluxburst.flux.private import find_flux

FLUX = find_flux()


def pytest_configure() -> None:
    if FLUX is not None:
        bindings.load(FLUX)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if FLUX is not None:
        return
    skip = pytest.mark.skip(reason="no flux command on PATH or under /usr/local/flux")
    for item in items:
        if item.get_closest_marker("flux"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def log_as_new() -> Iterator[None]:
    """A test that runs a command leaves its log set up for the output of that test, which ends with it."""
    yield
    structlog.reset_defaults()
