"""Each burst.toml among the examples is one, down to the tables of its providers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxburst import config as configuration
from fluxburst.provider import ProviderContext
from fluxburst.provider.discovery import Plugins

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/burst.toml")), ids=lambda path: path.parent.name)
def test_it_is_taken_whole(path: Path, tmp_path: Path) -> None:
    config = configuration.load(path)
    assert config.provider
    factories = Plugins().factories
    for name, table in config.provider.items():
        options = dict(table)
        make = factories[options.pop("plugin", name)]
        make(ProviderContext(name, config.cluster, options, config.specs(name), tmp_path)).close()
