"""How jobs sit on a pool's nodes, what providers answer for them, and why a pool cannot serve them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fluxburst.model import Demand, Host, Refusal
from fluxburst.moment import Cap, PoolState, Quote
from fluxburst.rooms import PoolRooms, Room, Take

ASKING = "its providers are being asked for offers"
TRIED_AGAIN = "nothing; it is tried again then"


@dataclass(slots=True)
class No:
    """Why a pool cannot serve a shape. ``lasting`` means that time alone will not change it.

    ``scarce`` is the number of nodes that other jobs have and that this one lacks; ``everywhere`` that nodes of other
    pools are in its way, too; ``money`` that others spent what it lacks. ``cap`` is what forbids it; ``needed`` is what
    the job would take of it, or of the ``left`` nodes. These change from moment to moment, so no verdict names them.
    ``hosts`` means that too few of the declared hosts are free, whatever else; ``stock`` that its provider has too few
    nodes, and is asked again.
    """

    reason: str
    lasting: bool
    until_at: float | None = None
    fix: str = ""
    scarce: int = 0
    everywhere: bool = False
    money: bool = False
    cap: Cap | None = None
    needed: float = 0.0
    left: float | None = None
    hosts: bool = False
    stock: bool = False


def closed_pool(state: PoolState) -> No:
    """Why nothing may be bought in a pool that is closed."""
    return No(state.closed, lasting=False, until_at=state.closed_until_at, fix=state.closed_fix or TRIED_AGAIN)


@dataclass(frozen=True, slots=True)
class Fit:
    """How a demand sits on a pool's nodes: ``count`` nodes hold ``take`` each.

    ``sharing`` jobs of one node can share one. ``slots`` is set for a job that only counts slots and takes more than
    one node: then ``take`` is one slot, ``count`` what it takes of empty nodes, and ``sharing`` the slots on each.
    ``hosts`` are those that its own constraint admits, None for all. ``spread`` is how a job that only counts slots and
    takes one empty node sits on what is left of several.
    """

    take: Take
    count: int
    sharing: int
    slots: int
    hosts: frozenset[Host] | None
    spread: Fit | None = None

    def partial(self, rooms: Iterable[Room]) -> tuple[list[tuple[Room, Take]], int]:
        """As much of one job as these rooms hold, in their order, and how many nodes are missing then."""
        chosen: list[tuple[Room, Take]] = []
        if not self.slots:
            for room in rooms:
                if len(chosen) == self.count:
                    break
                if room.fits(self.take):
                    chosen.append((room, self.take))
            return chosen, self.count - len(chosen)
        missing = self.slots
        for room in rooms:
            if not missing:
                break
            held = min(missing, slots_on(self.take, room))
            if held:
                chosen.append((room, self.slots_take(held)))
                missing -= held
        return chosen, -(-missing // self.sharing)

    def slots_take(self, slots: int) -> Take:
        if self.take.whole:
            return self.take
        return self.take._replace(cores=slots * self.take.cores, gpus=slots * self.take.gpus)


def slots_on(take: Take, room: Room) -> int:
    if take.whole and not room.whole:
        return 0
    by_cores = room.cores // take.cores
    return min(by_cores, room.gpus // take.gpus) if take.gpus else by_cores


def fit_of(pool: PoolRooms, demand: Demand) -> Fit | No:
    """How the demand sits on the pool's nodes, or what makes them unfit for it at any time."""
    state, per_node = pool.state, demand.slots_per_node() or 1
    slots = demand.slots_on(state.cores, state.gpus)
    if slots < per_node:
        need, have = f"{per_node * demand.cores_per_slot} cores", f"{state.cores} cores"
        if demand.gpus_per_slot:
            need += f" and {per_node * demand.gpus_per_slot} GPUs"
            have += f" and {state.gpus} GPUs"
        return No(
            f"needs {need} on a node, the pool's nodes have {have}",
            lasting=True,
            fix=f"ask for no more than {have} a node, or a pool of larger nodes",
        )
    hosts = pool.hosts(demand)
    declared = len(state.declared) if hosts is None else len(hosts)
    if not declared:
        return No(
            f"no host satisfies the job's constraint {demand.constraint}",
            lasting=True,
            fix="drop --requires, or name a property of the pool",
        )
    count, most = demand.nodes or -(-demand.slots // slots), pool.most(hosts)
    if declared >= count > most:
        return No(
            f"needs {count} nodes, an order of this pool has {most} at the most",
            lasting=True,
            fix=f"ask for {most} nodes or fewer, or declare a larger block in [pool.{state.name}] hosts",
        )
    if count > declared:
        return No(
            f"needs {count} nodes, the pool declares {declared}",
            lasting=True,
            fix=f"ask for {declared} nodes or fewer, or declare more hosts in [pool.{state.name}] hosts",
        )
    if count > 1 and not demand.nodes:
        take = Take(demand.cores_per_slot, demand.gpus_per_slot, demand.exclusive)
        return Fit(take, count, slots, demand.slots, hosts)
    together = per_node if demand.nodes else demand.slots
    take = Take(together * demand.cores_per_slot, together * demand.gpus_per_slot, demand.exclusive)
    sharing = 1 if demand.exclusive else slots // together
    spread = None
    if not demand.nodes and demand.slots > 1 and not demand.exclusive:
        slot = Take(demand.cores_per_slot, demand.gpus_per_slot, whole=False)
        spread = Fit(slot, demand.slots, slots, demand.slots, hosts)
    return Fit(take, count, sharing, 0, hosts, spread)


class Answers:
    """A provider's answers, told apart by pool."""

    def __init__(self, answers: Sequence[Quote | Refusal]) -> None:
        self.answers = answers
        self._quotes: dict[str, list[Quote]] = {}
        self._nos: dict[str, No] = {}
        self._of: dict[tuple[str, bool | None], tuple[list[Quote], No | None]] = {}
        for answer in answers:
            if isinstance(answer, Quote):
                self._quotes.setdefault(answer.offer.pool, []).append(answer)
            else:
                self._nos[answer.pool] = No(
                    answer.reason,
                    lasting=answer.retry_at is None,
                    until_at=answer.retry_at,
                    fix="the provider says so; see `flux burst check`" if answer.retry_at is None else TRIED_AGAIN,
                )

    def of(self, state: PoolState, spot: bool | None) -> tuple[list[Quote], No | None]:
        """A pool's quotes of nodes that are spot or not (None: of either), and its no, where there is one."""
        found = self._of.get((state.name, spot))
        if found is None:
            found = self._of[state.name, spot] = self._chosen(state, spot)
        return found

    def _chosen(self, state: PoolState, spot: bool | None) -> tuple[list[Quote], No | None]:
        quotes, no = self._quotes.get(state.name, []), self._nos.get(state.name)
        if no is None and not quotes:
            no = No(f"provider {state.provider} offers nothing for it", lasting=True, fix="see `flux burst check`")
        if spot is not None and quotes:
            quotes = [quote for quote in quotes if quote.offer.spot is spot]
            if not quotes:
                kind = "spot" if spot else "on-demand"
                fix = f"drop burst.spot, or add a pool of {kind} nodes"
                no = No(f"it offers no {kind} nodes", lasting=True, fix=fix)
        return quotes, no


def is_asking(nos: Mapping[str, No]) -> bool:
    return any(no.reason == ASKING for no in nos.values())


def over_cap(cap: Cap | None, wanted: int, allowed: int, usd_per_node: float | None) -> No:
    """A cap leaves too little."""
    assert cap is not None, "a draft that allows less than is wanted names its cap"
    if cap.unit == "price":
        return No(
            f"has no known price, and {cap.name} is set",
            lasting=True,
            fix="a price in [[price]] or [pool.NAME], or [limits] assume_usd_per_node_hour",
        )
    if cap.unit == "nodes":
        if wanted > cap.limit:
            return No(
                f"needs {wanted} nodes, {cap.name} = {cap.limit:g}",
                lasting=True,
                fix=f"{cap.name} = {wanted} or more, or fewer nodes",
                cap=cap,
                needed=wanted,
            )
        return No(
            f"{cap.name} = {cap.limit:g} leaves too few nodes",
            lasting=False,
            fix=f"wait for other jobs to end, or raise {cap.name}",
            scarce=wanted - allowed,
            everywhere=not cap.name.startswith("[pool."),
            cap=cap,
            needed=wanted,
        )
    needs = wanted * (usd_per_node or 0.0)
    if needs > cap.limit:
        return No(
            f"would reserve ${needs:.2f}, more than {cap.name} = {cap.limit:g}",
            lasting=True,
            fix=f"{cap.name} = {rounded_up(needs):.2f} or more, fewer nodes, or a shorter time limit",
            cap=cap,
            needed=needs,
        )
    return No(
        f"{cap.name} = {cap.limit:g} leaves too little",
        lasting=False,
        until_at=cap.until_at,
        fix=f"wait until it is renewed, or raise {cap.name}",
        money=True,
        cap=cap,
        needed=needs,
    )


def rounded_up(usd: float) -> float:
    """Rounded up to the cent."""
    return math.ceil(usd * 100 - 1e-9) / 100
