"""The providers of a burst.toml, built from plugins."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import BaseModel, Field, model_validator

from fluxburst import config
from fluxburst.config import BurstConfig
from fluxburst.errors import ConfigError, NoCapacity
from fluxburst.model import (
    BootMaterial,
    Demand,
    Finding,
    Host,
    NodeId,
    NodePhase,
    NodeReport,
    Offer,
    Order,
    Refusal,
    RequestId,
    Severity,
    Shrink,
)
from fluxburst.provider import ProviderContext, ProviderFactory, hookimpl, options
from fluxburst.provider.discovery import Plugins
from fluxburst.provider.manager import Providers


class Recorder:
    """A provider that remembers who called it, and in which thread."""

    shrink = Shrink.TAIL

    def __init__(self, context: ProviderContext) -> None:
        self.context = context
        self.launched: list[Order] = []
        self.threads: set[int] = set()
        self.closed = False

    def check(self) -> Sequence[Finding]:
        return [Finding(self.context.name, Severity.OK, "fine")]

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        self.threads.add(threading.get_ident())
        return [Offer(pool, self.context.name, "large", demand.cores_per_slot) for pool in self.context.pools]

    def launch(self, order: Order, /) -> None:
        if order.offer.zone == "full":
            raise NoCapacity("zone full")
        self.launched.append(order)

    def list_nodes(self) -> Sequence[NodeReport]:
        return [
            NodeReport(NodeId(host), order.pool, order.request_id, host, NodePhase.RUNNING)
            for order in self.launched
            for host in order.hosts
        ]

    def release(self, node_ids: Collection[NodeId], /) -> None:
        self.launched = [order for order in self.launched if not {*map(NodeId, order.hosts)} & {*node_ids}]

    def close(self) -> None:
        self.closed = True


class Plugin:
    def __init__(self) -> None:
        self.built: dict[str, Recorder] = {}

    @hookimpl
    def fluxburst_providers(self) -> Mapping[str, ProviderFactory]:
        return {"acme": self.make, "zed": self.make}

    def make(self, context: ProviderContext) -> Recorder:
        if "wrong" in context.options:
            raise ConfigError(f"[provider.{context.name}] wrong: unknown key")
        self.built[context.name] = Recorder(context)
        return self.built[context.name]


@pytest.fixture
def plugin() -> Plugin:
    return Plugin()


def site(tmp_path: Path, providers: str = "", provider: str = "acme") -> BurstConfig:
    return config.parse(
        f"""
        cluster = "corona"
        state_dir = "{tmp_path}"
        [lead]
        connect = "tcp://203.0.113.7:30093"
        [pool.c2]
        provider = "{provider}"
        hosts = "c2-[0-1]"
        cores = 4
        [pool.c2.options]
        zone = "b"
        [pool.d4]
        provider = "zed"
        hosts = "d4-0"
        cores = 8
        {providers}
        """
    )


@pytest.fixture
def providers(tmp_path: Path, plugin: Plugin) -> Iterator[Providers]:
    with closing(Providers(site(tmp_path), Plugins([plugin]))) as built:
        yield built


def test_a_provider_gets_its_name_its_options_and_its_own_pools(tmp_path: Path, plugin: Plugin) -> None:
    where = site(tmp_path, '[provider.west]\nplugin = "acme"\nregion = "us-west1"\n', provider="west")
    with closing(Providers(where, Plugins([plugin]))) as providers:
        assert providers.names == ("west", "zed")
        assert providers.kinds == {"west": "acme", "zed": "zed"}
    context = plugin.built["west"].context
    assert (context.name, context.cluster) == ("west", "corona")
    assert context.options == {"region": "us-west1"}, "without the key that chose the plugin"
    assert context.pools == where.specs("west")
    assert context.pools["c2"].options == {"zone": "b"}
    assert plugin.built["zed"].context.options == {}
    assert list(plugin.built["zed"].context.pools) == ["d4"]


def test_each_provider_has_a_directory_of_its_own_that_nobody_else_reads(tmp_path: Path, plugin: Plugin) -> None:
    with closing(Providers(site(tmp_path), Plugins([plugin]))) as providers:
        providers.prepare()
        directories = {name: provider.context.state_dir for name, provider in plugin.built.items()}
    assert directories == {name: tmp_path / "providers" / name for name in ("acme", "zed")}
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in directories.values())


def test_two_tables_of_one_plugin_are_two_providers(tmp_path: Path, plugin: Plugin) -> None:
    tables = '[provider.west]\nplugin = "acme"\n[provider.east]\nplugin = "acme"\n'
    with closing(Providers(site(tmp_path, tables, provider="west"), Plugins([plugin]))) as providers:
        assert providers.kinds == {"east": "acme", "west": "acme", "zed": "zed"}
    assert plugin.built["east"].context.pools == {}


def test_an_unknown_kind_is_told_with_what_there_is_and_what_was_skipped(tmp_path: Path, plugin: Plugin) -> None:
    class Broken:
        @hookimpl
        def fluxburst_providers(self) -> Mapping[str, ProviderFactory]:
            raise RuntimeError("no licence")

    with pytest.raises(ConfigError) as raised:
        Providers(site(tmp_path, provider="nosuch"), Plugins([plugin, Broken()]))
    message = str(raised.value)
    assert message.startswith("[provider.nosuch] plugin: no installed plugin brings 'nosuch' (there is acme,")
    assert "install its distribution, such as fluxburst-nosuch" in message
    assert message.endswith("Skipped because they failed: Broken: RuntimeError: no licence")


@pytest.mark.parametrize("value", ["3", "[]", "true"])
def test_a_plugin_is_named_by_a_text(tmp_path: Path, plugin: Plugin, value: str) -> None:
    with pytest.raises(ConfigError, match=r"^\[provider\.acme\] plugin: .* is no name"):
        Providers(site(tmp_path, f"[provider.acme]\nplugin = {value}\n"), Plugins([plugin]))


def test_a_providers_own_complaint_comes_through(tmp_path: Path, plugin: Plugin) -> None:
    with pytest.raises(ConfigError, match=r"^\[provider\.acme\] wrong: unknown key$"):
        Providers(site(tmp_path, "[provider.acme]\nwrong = 1\n"), Plugins([plugin]))


ORDER = Order(
    RequestId("b-one"),
    "corona",
    "c2",
    (Host("c2-0"),),
    Offer("c2", "acme", "large", 4),
    BootMaterial("", "/etc/flux/curve.cert"),
    1.0,
)


def test_calls_run_outside_of_the_callers_thread_and_reach_their_provider(providers: Providers, plugin: Plugin) -> None:
    (offer,) = providers.offers("acme", Demand(1, 1, 2)).result(10)
    assert (offer.pool, offer.provider) == ("c2", "acme")
    assert threading.get_ident() not in plugin.built["acme"].threads
    providers.launch("acme", ORDER).result(10)
    assert plugin.built["acme"].launched == [ORDER]
    (listed,) = providers.list_nodes("acme").result(10)
    assert (listed.host, listed.request_id) == ("c2-0", "b-one")
    assert not providers.list_nodes("zed").result(10)
    providers.release("acme", [listed.node_id]).result(10)
    assert not providers.list_nodes("acme").result(10)


def test_a_providers_error_comes_out_of_the_future(providers: Providers) -> None:
    full = Order(
        RequestId("b-two"),
        "corona",
        "c2",
        (),
        Offer("c2", "acme", "large", 4, zone="full"),
        ORDER.boot,
        ORDER.created_at,
    )
    future = providers.launch("acme", full)
    with pytest.raises(NoCapacity, match="zone full"):
        future.result(10)


def test_all_providers_are_checked_and_say_how_they_shrink(providers: Providers) -> None:
    assert {name: finding.message for name, (finding,) in providers.check().items()} == {"acme": "fine", "zed": "fine"}
    assert providers.shrink == {"acme": Shrink.TAIL, "zed": Shrink.TAIL}


def test_a_provider_probes_in_its_own_way_or_says_that_it_cannot(
    providers: Providers, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(connect: str) -> Sequence[Finding]:
        return [Finding("pool c2", Severity.OK, f"reached {connect}")]

    monkeypatch.setattr(plugin.built["acme"], "probe", probe, raising=False)
    found = {name: (finding.severity, finding.message) for name, (finding,) in providers.probe("tcp://a:1").items()}
    assert found == {
        "acme": (Severity.OK, "reached tcp://a:1"),
        "zed": (Severity.WARNING, "this provider cannot let a machine of its own dial the lead"),
    }


def test_closing_closes_every_provider(tmp_path: Path, plugin: Plugin) -> None:
    Providers(site(tmp_path), Plugins([plugin])).close()
    assert [provider.closed for provider in plugin.built.values()] == [True, True]


class Options(BaseModel, extra="forbid"):
    region: str
    size: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Options:
        if self.region == "nowhere":
            raise ValueError("there is no such place")
        return self


def test_a_plugins_table_is_read_into_its_model() -> None:
    assert options(Options, {"region": "us-west1"}, "provider.acme") == Options(region="us-west1")


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        ({}, ["[provider.acme] region: is required"]),
        (
            {"region": "a", "size": 0, "colour": "red"},
            [
                "[provider.acme] size: Input should be greater than or equal to 1",
                "[provider.acme] colour: unknown key; remove it or mend its spelling",
            ],
        ),
        ({"region": "nowhere"}, ["[provider.acme]: there is no such place"]),
    ],
)
def test_each_mistake_in_a_plugins_table_is_one_line_with_its_key(table: dict[str, object], lines: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        options(Options, table, "provider.acme")
    assert str(raised.value).splitlines() == lines
