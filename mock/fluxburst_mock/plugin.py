"""Brings the kind of provider ``mock``: a cloud in memory for trying out burst.toml and for tests.

From burst.toml each provider gets a cloud of its own, which no Flux instance knows: its machines boot and never join.
Who wants a cloud that does, registers a :class:`MockPlugin` around it with the plugin manager instead.
"""

from __future__ import annotations

from collections.abc import Mapping

from fluxburst.provider import Provider, ProviderContext, ProviderFactory, hookimpl
from fluxburst_mock.cloud import MockCloud, MockProvider


class MockPlugin:
    """The same kind of provider, all on one given cloud."""

    def __init__(self, cloud: MockCloud) -> None:
        self._cloud = cloud

    @hookimpl
    def fluxburst_providers(self) -> Mapping[str, ProviderFactory]:
        return {"mock": self._make}

    def _make(self, context: ProviderContext) -> Provider:
        return MockProvider(context, self._cloud)


@hookimpl
def fluxburst_providers() -> Mapping[str, ProviderFactory]:
    return {"mock": _make}


def _make(context: ProviderContext) -> Provider:
    return MockProvider(context, MockCloud())
