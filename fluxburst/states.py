"""A node's life: its states and the legal changes between them.

::

    PLANNED -> ORDERED -> BOOTING -> JOINED -> DRAINING -> STOPPED -> RELEASING -> GONE

Any failure, timeout or loss leads to RELEASING with its reason. PLANNED is committed together with the
intent to buy, so a record in PLANNED may stand for a machine that exists: only a listing lets it go.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType

from fluxburst.errors import IllegalTransition


class NodeState(StrEnum):
    PLANNED = "planned"
    """The intent is committed; the provider has not answered yet."""
    ORDERED = "ordered"
    """The provider accepted the order."""
    BOOTING = "booting"
    """The provider lists the machine; its broker is not up yet."""
    JOINED = "joined"
    """The broker is up. Idle or busy is read from Flux, never stored."""
    DRAINING = "draining"
    """Drained in Flux; waits until nothing runs on it, then its broker is stopped."""
    STOPPED = "stopped"
    """The broker has left on our request."""
    RELEASING = "releasing"
    """Being given back; stays here until the provider no longer lists it."""
    GONE = "gone"
    """The provider no longer lists it. The host name is free again."""


class Why(StrEnum):
    """Stable words for why a node left its path; free text may follow them in a record's reason."""

    LAUNCH_FAILED = "launch failed"
    JOIN_TIMEOUT = "join timed out"
    BOOT_FAILED = "boot failed"
    LOST = "lost"
    IDLE = "idle"
    ASKED = "asked"
    NOT_NEEDED = "no longer needed"
    STOP_TIMEOUT = "stop timed out"


S = NodeState

TRANSITIONS: MappingProxyType[NodeState, frozenset[NodeState]] = MappingProxyType(
    {
        S.PLANNED: frozenset({S.ORDERED, S.BOOTING, S.JOINED, S.RELEASING}),
        S.ORDERED: frozenset({S.BOOTING, S.JOINED, S.RELEASING}),
        S.BOOTING: frozenset({S.JOINED, S.RELEASING}),
        # back to JOINED from DRAINING: the node is needed again before its broker was told to stop
        S.JOINED: frozenset({S.DRAINING, S.RELEASING}),
        S.DRAINING: frozenset({S.JOINED, S.STOPPED, S.RELEASING}),
        S.STOPPED: frozenset({S.RELEASING}),
        S.RELEASING: frozenset({S.GONE}),
        S.GONE: frozenset(),
    }
)
"""The only legal changes. Everything else raises :class:`~fluxburst.errors.IllegalTransition`."""

COMING: frozenset[NodeState] = frozenset({S.PLANNED, S.ORDERED, S.BOOTING})
"""States on the way up: the plan counts on these nodes before it buys others."""


def check_transition(host: str, old: NodeState, new: NodeState) -> None:
    """Raise :class:`IllegalTransition` unless ``old`` to ``new`` is in :data:`TRANSITIONS`."""
    if new not in TRANSITIONS[old]:
        allowed = ", ".join(sorted(TRANSITIONS[old])) or "nothing, it is final"
        raise IllegalTransition(f"{host}: {old} -> {new} is not a legal change; from {old} it may become: {allowed}")
