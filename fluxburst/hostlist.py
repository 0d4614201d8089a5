"""Host lists (RFC 29) and id sets (RFC 22).

They are expanded here, and only folded by ClusterShell: its NodeSet sorts what it reads, while the order of a host list
gives Flux its ranks, and it knows operators (``!``, ``&``, ``@``, ``/``) that mean nothing to Flux.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from ClusterShell.RangeSet import RangeSet

from fluxburst.model import Host

LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""RFC 1035 label, digits allowed in front (RFC 1123): what Flux and the clouds both take as a host name."""

MOST = 1 << 20
"""No list may have more members: they come from users too, and ``c[0-999999999]`` is soon written."""

_PART = re.compile(r"(?P<head>[^\s,\[\]]*)(?:\[(?P<ids>[^\[\]]+)\](?P<tail>[^\s,\[\]]*))?")
_DIGITS = "0123456789"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_SPAN = re.compile(r"(?P<first>[0-9]{1,18})(?:-(?P<last>[0-9]{1,18}))?")


def expand(text: str) -> tuple[Host, ...]:
    """All hosts of a host list in its own order: ``c[0-2]`` gives c0, c1, c2; ``c[08-10]`` gives c08, c09, c10.

    Raises:
        ValueError: the text is no host list, is empty, names a host twice, or more than :data:`MOST`.
    """
    hosts: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{text!r} is no host list; write such as 'c2-[0-63]'")
        if match["ids"] is None:
            hosts += [match["head"]] if match["head"] else []
        else:
            hosts += [f"{match['head']}{member}{match['tail']}" for member in _members(match["ids"], text, "host list")]
    if not hosts:
        raise ValueError(f"{text!r} names no host; write such as 'c2-[0-63]'")
    if len(set(hosts)) != len(hosts):
        raise ValueError(f"{text!r} names a host twice")
    return tuple(Host(host) for host in hosts)


def blocks(hosts: Iterable[Host]) -> tuple[tuple[Host, ...], ...]:
    """Hosts that are called ``NAME-0``, ``NAME-1`` and so on, by their NAME: ``c2-0-[0-1],c2-1-[0-1]`` are two blocks.

    A block may begin with any number.

    Raises:
        ValueError: a name is not of this form, or one is missing before it.
    """
    found: dict[str, list[Host]] = {}
    for host in hosts:
        name, _, index = host.rpartition("-")
        block = found.setdefault(name, [])
        wrong = "" if name and _NUMBER.fullmatch(index) else "it has no block's name and number"
        if block and not wrong:
            expected = f"{name}-{int(block[-1].rpartition('-')[2]) + 1}"
            wrong = "" if host == expected else f"{expected} is missing before it"
        if wrong:
            raise ValueError(f"{host}: {wrong}; declare hosts in blocks such as 'c2-0-[0-15],c2-1-[0-15]'")
        block.append(host)
    return tuple(map(tuple, found.values()))


def fold(hosts: Iterable[str]) -> str:
    """The short form for people: c0, c1, c2 give ``c[0-2]``. Sorted; an empty set gives an empty string."""
    names = list(hosts)
    if not names:
        return ""
    # NodeSet takes its time over each name, and a gang's names differ in their last number only
    head = names[0].rstrip(_DIGITS)
    tails = {name[len(head) :] for name in names if name.startswith(head)}
    if len(tails) == len(names) and all(map(_NUMBER.fullmatch, tails)):
        numbers = RangeSet()
        numbers.update(tails)
        return f"{head}{numbers}" if len(tails) == 1 else f"{head}[{numbers}]"
    return str(NodeSet.fromlist(names, resolver=RESOLVER_NOGROUP))


def ids(text: str) -> frozenset[int]:
    """The members of an id set such as ``0-3,7`` or ``[0-3,7]``.

    Raises:
        ValueError: the text is no id set, or has more than :data:`MOST` members.
    """
    spans = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    return frozenset(int(member) for member in _members(spans, text, "id set")) if spans else frozenset()


def _members(spans: str, text: str, kind: str) -> list[str]:
    """The numbers of ``0-3,7`` in their order, each as wide as the first of its span."""
    members: list[str] = []
    for span in spans.split(","):
        match = _SPAN.fullmatch(span)
        first = int(match["first"]) if match else 0
        last = int(match["last"] or first) if match else -1
        if match is None or last < first:
            raise ValueError(f"{text!r} is no {kind}: {span!r} is neither a number nor a range such as 0-3")
        if len(members) + last - first >= MOST:
            raise ValueError(f"{text!r} is too long: a {kind} has {MOST} members at the most")
        members += [f"{number:0{len(match['first'])}d}" for number in range(first, last + 1)]
    return members
