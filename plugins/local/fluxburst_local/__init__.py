"""fluxburst provider for nodes without a cloud: local processes, jobs of another Flux instance, Slurm allocations."""

from __future__ import annotations

from collections.abc import Mapping

from fluxburst.provider import Provider, ProviderContext, ProviderFactory, hookimpl

__all__ = ["fluxburst_providers", "make"]


def make(context: ProviderContext) -> Provider:
    """The provider of one ``[provider.NAME]`` table, by its key ``launcher``.

    Raises:
        ConfigError: the table, or a pool's ``options``, is wrong.
    """
    # Imported here so that loading the plugin stays cheap.
    from fluxburst_local.launchers import build

    return build(context)


@hookimpl
def fluxburst_providers() -> Mapping[str, ProviderFactory]:
    return {"local": make}
