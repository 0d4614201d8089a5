"""Finds the real Flux and a real Kubernetes, or says why their tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import structlog

from fluxburst.flux import bindings
from fluxburst.flux.private import find_flux
from tests.kube.control_plane import find_assets

FLUX = find_flux()


def pytest_configure() -> None:
    if FLUX is not None:
        bindings.load(FLUX)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if FLUX is None:
        missing["flux"] = "no flux command on PATH or under /usr/local/flux"
    if find_assets() is None:
        missing["kube"] = "no Kubernetes control plane under KUBEBUILDER_ASSETS or in the cache: make kube-assets"
    if shutil.which("terraform") is None:
        missing["terraform"] = "no terraform command on PATH"
    for mark, reason in missing.items():
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def log_as_new() -> Iterator[None]:
    """A test that runs a command leaves its log set up for the output of that test, which ends with it."""
    yield
    structlog.reset_defaults()
