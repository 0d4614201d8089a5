"""Building providers, and running their blocking calls in workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fluxburst.config import BurstConfig, private_directory
from fluxburst.errors import ConfigError, ProviderUnavailable
from fluxburst.model import Demand, Finding, NodeId, NodeReport, Offer, Order, Refusal, RequestId, Severity, Shrink
from fluxburst.provider.discovery import Plugins
from fluxburst.provider.protocol import Provider, ProviderContext

_T = TypeVar("_T")


class Providers:
    """The providers of one burst.toml. Calls run in ``executor`` and return futures; none is made by building it.

    Raises:
        ConfigError: a pool names a provider that no plugin brings, or a provider's own tables are wrong.
    """

    def __init__(self, config: BurstConfig, plugins: Plugins, executor: Executor | None = None) -> None:
        self._executor = executor or ThreadPoolExecutor(max_workers=16, thread_name_prefix="provider")
        self._providers: dict[str, Provider] = {}
        self._launches: dict[RequestId, Future[None]] = {}
        self._state_dirs: list[Path] = []
        self.kinds: dict[str, str] = {}
        for name in sorted({pool.provider for pool in config.pool.values()} | set(config.provider)):
            options = dict(config.provider.get(name, {}))
            kind = options.pop("plugin", name)
            if not isinstance(kind, str):
                raise ConfigError(f"[provider.{name}] plugin: {kind!r} is no name; write such as plugin = {name!r}")
            if kind not in plugins.factories:
                broken = [f"{report.name}: {report.error}" for report in plugins.reports if report.error]
                known = ", ".join(sorted(plugins.factories)) or "none"
                raise ConfigError(
                    f"[provider.{name}] plugin: no installed plugin brings {kind!r} (there is {known}); "
                    f"install its distribution, such as fluxburst-{kind}"
                    + (f". Skipped because they failed: {'; '.join(broken)}" if broken else "")
                )
            state_dir = config.state_path() / "providers" / name
            context = ProviderContext(name, config.cluster, options, config.specs(name), state_dir)
            self._state_dirs.append(state_dir)
            self._providers[name] = plugins.factories[kind](context)
            self.kinds[name] = kind

    def prepare(self) -> None:
        """Make the providers' state directories.

        Raises:
            ConfigError: one cannot be made.
        """
        for state_dir in self._state_dirs:
            private_directory(state_dir)

    @property
    def shrink(self) -> Mapping[str, Shrink]:
        """How each provider can give nodes back."""
        return {name: provider.shrink for name, provider in self._providers.items()}

    @property
    def in_blocks(self) -> frozenset[str]:
        """The providers an order of which takes a block of hosts."""
        return frozenset(name for name, provider in self._providers.items() if getattr(provider, "in_blocks", False))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._providers)

    def offers(self, provider: str, demand: Demand) -> Future[Sequence[Offer | Refusal]]:
        return self._executor.submit(self._offers, provider, demand)

    def launch(self, provider: str, order: Order) -> Future[None]:
        """Launch an order; while that is under way, asking again gives the same future, be it of a new service."""
        under_way = self._launches.get(order.request_id)
        if under_way is None or under_way.done():
            under_way = self._executor.submit(self._providers[provider].launch, order)
            self._launches[order.request_id] = under_way
            under_way.add_done_callback(lambda _: self._launches.pop(order.request_id, None))
        return under_way

    def list_nodes(self, provider: str) -> Future[Sequence[NodeReport]]:
        return self._executor.submit(self._list_nodes, provider)

    def release(self, provider: str, node_ids: Sequence[NodeId]) -> Future[None]:
        return self._executor.submit(self._providers[provider].release, node_ids)

    def _offers(self, provider: str, demand: Demand) -> Sequence[Offer | Refusal]:
        return _all_of(self._providers[provider].offers(demand), (Offer, Refusal), f"{provider}: offers()")

    def _list_nodes(self, provider: str) -> Sequence[NodeReport]:
        return _all_of(self._providers[provider].list_nodes(), (NodeReport,), f"{provider}: list_nodes()")

    def check(self) -> Mapping[str, Sequence[Finding]]:
        """Every provider's own findings; blocks."""
        return {name: provider.check() for name, provider in self._providers.items()}

    def probe(self, connect: str) -> Mapping[str, Sequence[Finding]]:
        """What each provider's machines find where they dial the lead; blocks."""
        found: dict[str, Sequence[Finding]] = {}
        for name, provider in self._providers.items():
            probe = getattr(provider, "probe", None)
            no = Finding("probe", Severity.WARNING, "this provider cannot let a machine of its own dial the lead")
            found[name] = [no] if probe is None else probe(connect)
        return found

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        for provider in self._providers.values():
            provider.close()


def _all_of(answer: Sequence[_T], kinds: tuple[type, ...], what: str) -> Sequence[_T]:
    """The answer, if it is what the protocol asks for: a mistake of a plugin must not reach the controller.

    Raises:
        ProviderUnavailable: it is something else.
    """
    if not isinstance(answer, Sequence) or not all(issubclass(kind, kinds) for kind in set(map(type, answer))):
        raise ProviderUnavailable(f"{what} returned {answer!r:.100}, not a sequence of {kinds[0].__name__}")
    return tuple(answer)
