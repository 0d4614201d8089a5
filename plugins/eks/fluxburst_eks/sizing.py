"""How large a node group should be, and which of its machines can go. Pure.

Lowering a group's size lets the auto scaling group choose who goes. So single machines are given back by name, and the
size is only ever lowered by what has not come yet, or to nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shrinking:
    """What to do, in this order.

    ``give_back`` are machines to be ended, each of which makes the group smaller by one. ``size`` is what the group is
    set to then, if to anything; ``protect`` are the machines that this must not cost. At a size of 0 nothing may be
    left, what is protected from scaling included.
    """

    give_back: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    size: int | None = None


def shrinking(
    desired: int, alive: Sequence[str], held: Collection[str], waiting: int, protected: Collection[str] = ()
) -> Shrinking:
    """How a group gets rid of what nobody needs.

    Args:
        desired: The group's size as it is set, which its machines follow.
        alive: Its machines that are not about to end.
        held: The machines that have a pod and are not about to end; the group may not list the newest of them yet.
        waiting: How many pods wait for a machine. Any that has none may be theirs in a moment: while one waits, no
            machine is given back.
        protected: The machines that the auto scaling group does not end of itself.
    """
    wanted = len(held) + waiting
    if not wanted and (desired or set(alive) & set(protected)):
        return Shrinking(size=0)
    if desired <= wanted:
        return Shrinking()
    give_back: tuple[str, ...] = ()
    if not waiting:
        give_back = tuple(machine for machine in alive if machine not in held)
    left = desired - len(give_back)
    size = max(wanted, len(alive) - len(give_back))
    if size >= left:
        return Shrinking(give_back)
    return Shrinking(give_back, tuple(sorted(held)), size)
