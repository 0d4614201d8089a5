"""fluxburst provider: followers on whatever a Terraform module makes."""

from __future__ import annotations

from collections.abc import Mapping

from fluxburst.provider import Provider, ProviderContext, ProviderFactory, hookimpl

__all__ = ["fluxburst_providers", "make"]


def make(context: ProviderContext) -> Provider:
    """The provider of one ``[provider.NAME]`` table.

    Raises:
        ConfigError: the table, or a pool's ``options``, is wrong.
    """
    # Imported here so that loading the plugin stays cheap.
    from fluxburst_terraform.provider import build

    return build(context)


@hookimpl
def fluxburst_providers() -> Mapping[str, ProviderFactory]:
    return {"terraform": make}
