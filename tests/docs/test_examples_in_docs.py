"""The files that the docs show are ones that fluxburst takes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fluxburst import config as configuration
from fluxburst.flux.render import render
from fluxburst.provider.discovery import Plugins
from fluxburst.provider.manager import Providers

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/administrators.md")


def listings(page: str, having: str) -> list[str]:
    """The TOML listings of a page that have a line which begins so."""
    found = re.findall(
        r"^( *)```toml\n(.*?)^\1```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return [text for _, text in found if re.search(rf"^ *{re.escape(having)}", text, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES)
def test_the_burst_toml_of_each_page_is_taken_with_its_provider(page: str, tmp_path: Path) -> None:
    (text,) = listings(page, "cluster =")
    config = configuration.parse(f'state_dir = "{tmp_path}"\n{text}')
    providers = Providers(config, Plugins())
    assert providers.names == ("local",)
    providers.close()


@pytest.mark.parametrize("page", PAGES)
def test_the_site_of_the_administrators_renders_with_it(page: str) -> None:
    (burst,) = listings(page, "cluster =")
    (site,) = listings("docs/administrators.md", "[bootstrap]")
    lead = render(configuration.parse(burst), tomllib.loads(site), frobnicator=Path("/etc/flux/burst.py")).lead
    assert set(lead["queues"]) == {"batch", "spare", "staging"}
    assert lead["resource"]["verify"]["hostname"] == "ignore"


def test_every_part_of_a_burst_toml_in_the_administrators_page_is_taken_with_the_smallest() -> None:
    page = "docs/administrators.md"
    (smallest,) = listings(page, "cluster =")
    parts = {text for key in ("[policy]", "[[price]]", "[limits.", "[pool.c2]") for text in listings(page, key)}
    assert len(parts) == 4
    for text in parts:
        configuration.parse(f"{smallest}\n{text}")
