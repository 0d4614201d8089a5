"""A price list beside burst.toml: a TOML file of ``[[price]]`` tables, which apply after burst.toml's own."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import ValidationError

from fluxburst.config import Price, Table, explain
from fluxburst.errors import ConfigError


class _Prices(Table):
    price: tuple[Price, ...]


def load(path: Path) -> tuple[Price, ...]:
    """Read a price list.

    Raises:
        ConfigError: it cannot be read or is wrong; names the file and the key.
    """
    try:
        return _Prices.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).price
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; name another with --prices") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in explain(error).splitlines())) from None
