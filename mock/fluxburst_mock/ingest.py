"""The shipped frobnicator plugin at the mock's ingest, as Flux's own ingest would run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fluxburst.flux.frobnicator import Frobnicator


class _Jobspec:
    """The part of ``flux.job.Jobspec`` that the plugin uses, around a jobspec as a table."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.version = spec["version"]
        self.resources = spec["resources"]
        self.attributes: dict[str, Any] = spec["attributes"]

    def setattr(self, path: str, value: object) -> None:
        table, key = path.split(".")
        self.attributes.setdefault(table, {})[key] = value


def frobnicator(lead: Mapping[str, Any]) -> Callable[[dict[str, Any]], None]:
    """For :class:`~fluxburst_mock.instance.MockInstance`: amends a jobspec as ``[burst]`` in the lead's config tells.

    Raises:
        ValueError: ``[burst]`` is absent or malformed.
    """
    plugin = Frobnicator()  # type: ignore[no-untyped-call]
    plugin.configure(None, lead)  # type: ignore[no-untyped-call]

    def amend(spec: dict[str, Any]) -> None:
        plugin.frob(_Jobspec(spec), 0, 16, 0)  # type: ignore[no-untyped-call]

    return amend
