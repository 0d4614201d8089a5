from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fluxburst import config
from fluxburst.config import BurstConfig, Lead
from fluxburst.errors import ConfigError
from fluxburst.model import Demand, Offer
from fluxburst.provider import Provider, ProviderContext, ProviderFactory, hookimpl
from fluxburst.provider.discovery import PluginReport, Plugins

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a throw-away distribution with one module, ``install(name, source, version="1.0")``."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, source: str, version: str = "1.0") -> None:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[fluxburst]\n{name} = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def source(*kinds: str) -> str:
    return f"""
from fluxburst.provider import hookimpl

def make(context):
    raise NotImplementedError(__name__)

@hookimpl
def fluxburst_providers():
    return {{kind: make for kind in {kinds!r}}}
"""


def report(plugins: Plugins, name: str) -> PluginReport:
    (found,) = [report for report in plugins.reports if report.name == name]
    return found


def test_an_installed_distribution_is_found_and_named_with_its_kinds(install: Install) -> None:
    install("acme-burst", source("zed", "acme"), "2.1")
    plugins = Plugins()
    assert report(plugins, "acme-burst") == PluginReport("acme-burst", "acme-burst 2.1", kinds=("acme", "zed"))
    with pytest.raises(NotImplementedError, match="acme_burst"):
        plugins.factories["acme"](None)  # type: ignore[arg-type]


BROKEN = {
    "aaa-raises": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "aaa-imports": ("import no_such_cloud_sdk", "ModuleNotFoundError: No module named 'no_such_cloud_sdk'"),
    "aaa-syntax": ("def", "SyntaxError: "),
    "aaa-fails": (
        "from fluxburst.provider import hookimpl\n@hookimpl\ndef fluxburst_providers():\n    return {}['acme']\n",
        "KeyError: 'acme'",
    ),
    "aaa-nothing": (
        "from fluxburst.provider import hookimpl\n@hookimpl\ndef fluxburst_providers():\n    return [3]\n",
        "TypeError: ",
    ),
    "aaa-unknown": (
        "from fluxburst.provider import hookimpl\n@hookimpl\ndef fluxburst_nodes_changed():\n    pass\n",
        "PluginValidationError: ",
    ),
    "aaa-argument": (
        "from fluxburst.provider import hookimpl\n@hookimpl\ndef fluxburst_choose_job(jobs):\n    pass\n",
        "PluginValidationError: ",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_plugin_that_fails_is_reported_with_its_cause_and_the_others_load(install: Install, name: str) -> None:
    text, cause = BROKEN[name]
    install(name, text)
    install("zzz-good", source("good"))
    plugins = Plugins()
    assert report(plugins, name).error.startswith(cause)
    assert report(plugins, name).distribution == f"{name} 1.0"
    assert report(plugins, name).kinds == ()
    assert report(plugins, "zzz-good") == PluginReport("zzz-good", "zzz-good 1.0", kinds=("good",))
    assert "good" in plugins.factories
    assert not plugins.manager.has_plugin(name)
    assert plugins.choose_job({}) is None, "the hooks of the others still work"


class Given:
    """A plugin that the caller brings itself."""

    @hookimpl
    def fluxburst_providers(self) -> Mapping[str, ProviderFactory]:
        return {"shared": self.make}

    @staticmethod
    def make(context: ProviderContext) -> Provider:
        raise NotImplementedError

    @hookimpl
    def fluxburst_choose_job(self, job: Mapping[str, Any]) -> bool | str | None:
        answers: dict[str, bool | str] = {"root": "root may not burst", "ada": True}
        return answers.get(job["user"])

    @hookimpl
    def fluxburst_order_offers(self, demand: Demand, offers: Sequence[Offer]) -> Sequence[Offer] | None:
        return list(reversed(offers)) if demand.nodes else None


def test_the_callers_own_plugins_are_reported_and_win_over_installed_ones(install: Install) -> None:
    install("acme-burst", source("shared", "acme"))
    given = Given()
    plugins = Plugins([given])
    assert plugins.reports[0] == PluginReport("Given", "given by the caller", kinds=("shared",))
    assert plugins.factories["shared"] == given.make
    assert "acme" in plugins.factories


def test_hooks_answer_and_leave_what_they_do_not_mind() -> None:
    plugins = Plugins([Given()])
    assert plugins.choose_job({"user": "root"}) == "root may not burst"
    assert plugins.choose_job({"user": "ada"}) is True
    assert plugins.choose_job({"user": "bob"}) is None
    offers = [Offer("c2", "gke", "large", 4), Offer("d4", "gke", "huge", 8)]
    assert plugins.order_offers(Demand(1, 1, 1), offers) == offers[::-1]
    assert plugins.order_offers(Demand(0, 1, 1), offers) is None


def test_the_first_plugin_with_an_opinion_decides() -> None:
    class Strict:
        @hookimpl(tryfirst=True)
        def fluxburst_choose_job(self, job: Mapping[str, Any]) -> bool | str | None:
            return "not on Mondays" if job["user"] == "ada" else None

    plugins = Plugins([Given(), Strict()])
    assert plugins.choose_job({"user": "ada"}) == "not on Mondays"
    assert plugins.choose_job({"user": "root"}) == "root may not burst"


class Exposing:
    """A plugin that knows one way to expose a lead."""

    @hookimpl
    def fluxburst_expose_lead(self, way: str, options: Mapping[str, Any]) -> str | None:
        return f"tcp://{options['host']}:1" if way == "tunnel" else None


def exposed(way: str) -> BurstConfig:
    return burst(f'expose = "{way}"\noptions = {{ host = "a" }}\ncurve_cert = "/c"')


def burst(lead: str) -> BurstConfig:
    return config.parse(f'cluster = "x"\n[lead]\n{lead}\n[pool.a]\nprovider = "p"\nhosts = "a"\ncores = 1')


def test_a_plugin_finds_the_lead_s_address_where_burst_toml_asks_for_it() -> None:
    plugins = Plugins([Exposing()])
    assert plugins.find_lead(exposed("tunnel")).lead == Lead(connect="tcp://a:1", curve_cert=Path("/c"))
    given = burst('connect = "tcp://b:1"')
    assert plugins.find_lead(given) is given


def test_a_way_that_no_plugin_knows_is_an_error_that_names_one() -> None:
    with pytest.raises(
        ConfigError, match=r"\[lead\] expose: no installed plugin knows 'bridge'; 'nodeport' comes with"
    ):
        Plugins([Exposing()]).find_lead(exposed("bridge"))
