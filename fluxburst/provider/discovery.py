"""Finding and loading plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pluggy

from fluxburst.errors import ConfigError
from fluxburst.provider import hookspecs

if TYPE_CHECKING:
    from fluxburst.config import BurstConfig
    from fluxburst.model import Demand, NodeRecord, Offer
    from fluxburst.provider.protocol import ProviderFactory
    from fluxburst.states import NodeState

ENTRY_POINTS = "fluxburst"


@dataclass(frozen=True, slots=True)
class PluginReport:
    """One installed plugin: its entry point, its distribution, and why it was skipped, if it was."""

    name: str
    distribution: str
    error: str = ""
    kinds: tuple[str, ...] = ()


class Plugins:
    """All installed plugins. One that fails to import, or to register, is reported and skipped; the others load."""

    def __init__(self, extra: Sequence[object] = ()) -> None:
        self.manager = pluggy.PluginManager("fluxburst")
        self.manager.add_hookspecs(hookspecs)
        self.reports: list[PluginReport] = []
        self.factories: dict[str, ProviderFactory] = {}
        for plugin in extra:
            self._register(plugin, getattr(plugin, "__name__", type(plugin).__name__), "given by the caller")
        for point in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
            distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
            try:
                plugin = point.load()
            except Exception as error:  # noqa: BLE001 - an outsider's module may raise anything; it is reported
                self.reports.append(PluginReport(point.name, distribution, f"{type(error).__name__}: {error}"))
                continue
            self._register(plugin, point.name, distribution)

    def _register(self, plugin: object, name: str, distribution: str) -> None:
        try:
            self.manager.register(plugin, name)
            self.manager.check_pending()
            mine = self.manager.subset_hook_caller(
                "fluxburst_providers", [other for other in self.manager.get_plugins() if other is not plugin]
            )
            kinds: dict[str, ProviderFactory] = {}
            for found in mine():
                kinds |= found
        except Exception as error:  # noqa: BLE001 - as above
            if self.manager.is_registered(plugin):
                self.manager.unregister(plugin)
            self.reports.append(PluginReport(name, distribution, f"{type(error).__name__}: {error}"))
            return
        # the caller's own plugins come first and win over installed ones of the same kind
        self.factories = kinds | self.factories
        self.reports.append(PluginReport(name, distribution, kinds=tuple(sorted(kinds))))

    def find_lead(self, config: BurstConfig) -> BurstConfig:
        """The configuration with the address that followers dial, where a plugin has to find that out.

        Raises:
            ConfigError: no plugin knows this way to expose a lead, or its options are wrong.
            ProviderError: it cannot be exposed now.
        """
        lead = config.lead
        if not lead.expose:
            return config
        address: str | None = self.manager.hook.fluxburst_expose_lead(way=lead.expose, options=lead.options)
        if address is None:
            raise ConfigError(
                f"[lead] expose: no installed plugin knows {lead.expose!r}; 'nodeport' comes with fluxburst-kubernetes"
            )
        found = type(lead)(connect=address, curve_cert=lead.curve_cert)
        return config.model_copy(update={"lead": found})

    def choose_job(self, job: Mapping[str, Any]) -> bool | str | None:
        """The answer of the first plugin that has one; a plugin that fails has none."""
        answer: bool | str | None = self._ask("fluxburst_choose_job", job=job)
        return answer

    def order_offers(self, demand: Demand, offers: Sequence[Offer]) -> Sequence[Offer] | None:
        """The order of the first plugin that has one; a plugin that fails has none."""
        ordered: Sequence[Offer] | None = self._ask("fluxburst_order_offers", demand=demand, offers=offers)
        return ordered

    def node_changed(self, node: NodeRecord, old: NodeState | None) -> None:
        """Tell all plugins."""
        self._ask("fluxburst_node_changed", node=node, old=old)

    def _ask(self, hook: str, **arguments: Any) -> Any:
        try:
            caller = getattr(self.manager.hook, hook)
            return caller(**arguments) if caller.get_hookimpls() else None
        except Exception:  # noqa: BLE001 - an outsider's mistake must not end the service: it would meet it again
            import structlog

            structlog.get_logger("fluxburst").exception("a plugin failed in a hook", hook=hook)
            return None
