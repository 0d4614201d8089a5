"""Host lists (RFC 29) and id sets (RFC 22), by ClusterShell's NodeSet and RangeSet."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetParseError
from ClusterShell.RangeSet import RangeSet, RangeSetParseError

from fluxburst.model import Host

LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""RFC 1035 label, digits allowed in front (RFC 1123): what Flux and the clouds both take as a host name."""


def expand(text: str) -> tuple[Host, ...]:
    """All hosts of a host list in its own order: ``c[0-2]`` gives c0, c1, c2.

    Raises:
        ValueError: the text is no host list, is empty, or names a host twice.
    """
    hosts: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text):
        try:
            hosts += list(NodeSet(part.strip(), resolver=RESOLVER_NOGROUP))
        except NodeSetParseError as error:
            raise ValueError(f"{text!r} is no host list: {error}") from None
    if not hosts:
        raise ValueError(f"{text!r} names no host; write such as 'c2-[0-63]'")
    if len(set(hosts)) != len(hosts):
        raise ValueError(f"{text!r} names a host twice")
    return tuple(Host(host) for host in hosts)


def fold(hosts: Iterable[str]) -> str:
    """The short form for people: c0, c1, c2 give ``c[0-2]``. Sorted; an empty set gives an empty string."""
    return str(NodeSet.fromlist(list(hosts), resolver=RESOLVER_NOGROUP))


def ids(text: str) -> frozenset[int]:
    """The members of an id set such as ``0-3,7``.

    Raises:
        ValueError: the text is no id set.
    """
    try:
        return frozenset(int(member) for member in RangeSet(text))
    except RangeSetParseError as error:
        raise ValueError(f"{text!r} is no id set: {error}") from None
