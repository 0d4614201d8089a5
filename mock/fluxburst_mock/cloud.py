"""A cloud in memory: machines that take time to boot, run out, fail, lie about and vanish, as told.

:class:`MockCloud` is the cloud itself and what happens in it; :class:`MockProvider` is how fluxburst sees it. Faults
are plain attributes of the cloud and one method, :meth:`MockCloud.fail`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile

from pydantic import BaseModel, ConfigDict, Field

from fluxburst import hostlist
from fluxburst.errors import InvalidOrder, NoCapacity, ProviderError
from fluxburst.flux.protocol import Loop
from fluxburst.provider import (
    Demand,
    Finding,
    Host,
    NodeId,
    NodePhase,
    NodeReport,
    Offer,
    Order,
    PoolSpec,
    ProviderContext,
    Refusal,
    RequestId,
    Severity,
    Shrink,
    blocks,
    options,
)
from fluxburst_mock.instance import MockInstance


class ProviderOptions(BaseModel):
    """``[provider.NAME]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shrink: Shrink = Shrink.ANY
    in_blocks: bool = False
    """Whether an order takes one block of its pool's hosts, see :class:`fluxburst.provider.Provider`."""


class OfferOptions(BaseModel):
    """One offer of a pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    boot_s: float = Field(default=30.0, ge=0)
    usd_per_node_hour: float | None = Field(default=None, ge=0)
    """The price, if ``[pool.NAME] usd_per_node_hour`` gives none."""
    spot: bool = False
    instance_type: str = "mock"
    zone: str = "zone-a"
    region: str = "region"
    stock: int | None = Field(default=None, ge=0)
    """How many machines there are; no limit if absent."""


class PoolOptions(OfferOptions):
    """``[pool.NAME.options]``."""

    offers: tuple[OfferOptions, ...] = ()
    """Several offers for one pool; what one does not say is as the pool says. Without them, the pool is one offer."""

    def each(self, pool: str) -> dict[str, OfferOptions]:
        """The offers by what their stock goes by: the pool's name where there is one, else :func:`stock_of`."""
        if not self.offers:
            return {pool: self}
        common = self.model_dump(exclude={"offers"})
        merged = [OfferOptions(**common | offer.model_dump(exclude_unset=True)) for offer in self.offers]
        return {stock_of(pool, offer.instance_type, offer.zone, offer.spot): offer for offer in merged}


def stock_of(pool: str, instance_type: str, zone: str, spot: bool) -> str:
    """What the stock of one of several offers of a pool goes by."""
    return "/".join([pool, instance_type, zone, *(["spot"] if spot else [])])


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a provider's method, whatever came of it."""

    method: str
    args: tuple[object, ...]
    at: float
    """The cloud's time."""


@dataclass(slots=True)
class Machine:
    node_id: NodeId
    pool: str
    request_id: RequestId
    host: Host
    stock: str
    """Where it was taken from, and goes back to."""
    ordered_at: float
    up_at: float
    """When its broker joins; infinite if it never does."""
    failed_at: float = math.inf
    failure: str = ""
    gone_at: float = math.inf
    """When it was given back."""
    releases: int = 0
    """How often it was asked to go."""
    reported: NodeReport | None = None
    """The latest report, which stands until the phase changes."""

    def lives(self, at: float) -> bool:
        """Whether it runs, or may come to run, and so costs money."""
        return self.ordered_at <= at < min(self.failed_at, self.gone_at)

    def report(self, at: float) -> NodeReport:
        if self.failed_at <= at:
            phase = NodePhase.FAILED
        elif self.releases:
            phase = NodePhase.STOPPING
        else:
            phase = NodePhase.STARTING if at < self.up_at else NodePhase.RUNNING
        if self.reported is None or self.reported.phase is not phase:
            detail = self.failure if phase is NodePhase.FAILED else ""
            self.reported = NodeReport(self.node_id, self.pool, self.request_id, self.host, phase, detail)
        return self.reported


@dataclass(frozen=True, slots=True)
class Fault:
    error: ProviderError
    after: bool


@dataclass
class MockCloud:
    """All machines of all providers, by their node ids, and what shall go wrong with them.

    ``loop`` is where machines' brokers join and die in ``instance``; without both, machines just run, by the clock of
    this process. Calls may come from any thread.
    """

    loop: Loop | None = None
    instance: MockInstance | None = None
    stock: dict[str, int] = field(default_factory=dict)
    """Machines that are left, by pool, or by :func:`stock_of` where it has several offers; none named is no limit."""
    never_boot: set[Host] = field(default_factory=set)
    """Hosts whose machines start and stay in their boot for ever."""
    die_in_boot: set[Host] = field(default_factory=set)
    """Hosts whose machines fail at the moment when they should have joined."""
    boot_s: dict[Host, float] = field(default_factory=dict)
    """Hosts that take another time to boot than their pool says."""
    listing_lag_s: float = 0.0
    """A listing tells what was true so long ago."""
    release_tries: int = 1
    """How often a machine must be released before it goes."""
    calls: list[Call] = field(default_factory=list)
    keep_calls: bool = True
    """Whether ``calls`` is kept at all; a long simulation makes millions."""
    machines: dict[NodeId, Machine] = field(default_factory=dict)
    """Every machine there ever was."""

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._orders: set[RequestId] = set()
        self._there: dict[NodeId, Machine] = {}
        self._gone: list[Machine] = []
        """The machines that were given back, in the order in which they went."""
        self._faults: dict[str, deque[Fault]] = {}

    # What happens in the cloud

    def fail(self, method: str, error: ProviderError, *, after: bool = False) -> None:
        """Let the next call of this provider method raise ``error``, once; ``after`` it has done its work.

        Faults of one method queue up. An error after the work is a lost answer: the order exists, and nobody was told.
        """
        with self._lock:
            self._faults.setdefault(method, deque()).append(Fault(error, after))

    def interrupt(self, host: Host, why: str = "interrupted") -> None:
        """A machine ends by itself, as a spot instance does; it stays listed until it is released."""
        with self._lock:
            ended = [machine for machine in self.living() if machine.host == host]
            self._kill_brokers(ended)
            for machine in ended:
                machine.failed_at, machine.failure = self.now(), why

    def living(self) -> list[Machine]:
        """The machines that cost money now."""
        now = self.now()
        with self._lock:
            return [machine for machine in self._there.values() if machine.lives(now)]

    def now(self) -> float:
        return self.loop.time() if self.loop is not None else time.monotonic()

    # What a provider asks for

    @contextmanager
    def call(self, method: str, *args: object) -> Iterator[None]:
        """Around each call of a provider: takes it down, and raises the fault that waits for it, before or after."""
        with self._lock:
            if self.keep_calls:
                self.calls.append(Call(method, args, self.now()))
            waiting = self._faults.get(method)
            fault = waiting.popleft() if waiting else None
        if fault is not None and not fault.after:
            raise fault.error
        yield
        if fault is not None:
            raise fault.error

    def left(self, stock: str) -> int | None:
        with self._lock:
            return self.stock.get(stock)

    def launch(self, order: Order, boot_s: float, stock: str = "") -> None:
        """Start an order's machines, all or none; an order that exists already is left as it is.

        They are taken from ``stock``, by default the pool's.

        Raises:
            NoCapacity: there are not so many.
        """
        with self._lock:
            if order.request_id in self._orders:
                return
            stock = stock or order.pool
            left = self.stock.get(stock)
            if left is not None:
                if left < len(order.hosts):
                    raise NoCapacity(f"pool {stock}: {len(order.hosts)} machines wanted, {left} left")
                self.stock[stock] = left - len(order.hosts)
            self._orders.add(order.request_id)
            coming: dict[float, list[Machine]] = {}
            for host in order.hosts:
                takes_s = self.boot_s.get(host, boot_s)
                machine = self._boot(order, host, takes_s, stock)
                if not (host in self.die_in_boot or host in self.never_boot):
                    coming.setdefault(takes_s, []).append(machine)
            if self.loop is not None:
                for takes_s, machines in coming.items():
                    self.loop.call_soon_threadsafe(self.loop.call_later, takes_s, self._join, machines)

    def list(self, pools: Collection[str]) -> list[NodeReport]:
        """The machines of these pools as they were ``listing_lag_s`` ago."""
        at = self.now() - self.listing_lag_s
        with self._lock:
            just_gone = takewhile(lambda machine: at < machine.gone_at, reversed(self._gone))
            return [
                machine.report(at)
                for machine in (*self._there.values(), *just_gone)
                if machine.pool in pools and machine.ordered_at <= at
            ]

    def release(self, node_ids: Collection[NodeId]) -> None:
        """Give machines back; unknown ids are fine."""
        now = self.now()
        with self._lock:
            gone: list[Machine] = []
            for machine in (self.machines[node_id] for node_id in node_ids if node_id in self.machines):
                machine.releases += 1
                if machine.releases == self.release_tries:
                    gone.append(machine)
            self._kill_brokers(gone)
            for machine in gone:
                machine.gone_at = now
                self._gone.append(self._there.pop(machine.node_id))
                if machine.stock in self.stock:
                    self.stock[machine.stock] += 1

    def _boot(self, order: Order, host: Host, boot_s: float, stock: str) -> Machine:
        now = self.now()
        machine = Machine(
            node_id=NodeId(f"{order.request_id}-{host}"),
            pool=order.pool,
            request_id=order.request_id,
            host=host,
            stock=stock,
            ordered_at=now,
            up_at=math.inf if host in self.never_boot else now + boot_s,
        )
        self.machines[machine.node_id] = self._there[machine.node_id] = machine
        if host in self.die_in_boot:
            machine.failed_at, machine.failure = now + boot_s, "died in its boot"
        return machine

    def _join(self, machines: Sequence[Machine]) -> None:
        now = self.now()
        up = [machine for machine in machines if machine.lives(now)]
        for machine in up:
            machine.up_at = now
        if self.instance is not None and up:
            self.instance.join([machine.host for machine in up])

    def _kill_brokers(self, machines: Sequence[Machine]) -> None:
        """End the brokers of machines that are about to end, if they have come up."""
        now = self.now()
        up = [machine.host for machine in machines if machine.up_at <= now < machine.failed_at]
        if self.loop is not None and self.instance is not None and up:
            self.loop.call_soon_threadsafe(self.instance.kill, up)


class MockProvider:
    """:class:`fluxburst.provider.Provider` on a :class:`MockCloud`."""

    def __init__(self, context: ProviderContext, cloud: MockCloud) -> None:
        where = f"provider.{context.name}"
        chosen = options(ProviderOptions, context.options, where)
        self.shrink, self.in_blocks = chosen.shrink, chosen.in_blocks
        self._name = context.name
        self._pools = context.pools
        self._offers = {
            name: options(PoolOptions, pool.options, f"pool.{name}.options").each(name)
            for name, pool in context.pools.items()
        }
        self._blocks = blocks(context) if self.in_blocks else {}
        self._cloud = cloud
        for offers in self._offers.values():
            for stock, offer in offers.items():
                if offer.stock is not None:
                    cloud.stock.setdefault(stock, offer.stock)

    def check(self) -> Sequence[Finding]:
        with self._cloud.call("check"):
            return [Finding(f"provider {self._name}", Severity.OK, "a mock cloud, free of charge")]

    def offers(self, demand: Demand) -> Sequence[Offer | Refusal]:
        with self._cloud.call("offers", demand):
            return [
                self._offer(pool, demand, stock, offer)
                for name, pool in self._pools.items()
                for stock, offer in self._offers[name].items()
            ]

    def launch(self, order: Order, /) -> None:
        with self._cloud.call("launch", order):
            if order.pool not in self._pools:
                raise InvalidOrder(f"provider {self._name} has no pool {order.pool}")
            offers, want = self._offers[order.pool], order.offer
            stock = stock_of(order.pool, want.instance_type, want.zone, want.spot)
            stock = stock if stock in offers else order.pool
            if stock not in offers:
                raise InvalidOrder(f"pool {order.pool} has no offer {want.instance_type} in {want.zone}")
            if self.in_blocks:
                self._require_block(order)
            self._cloud.launch(order, offers[stock].boot_s, stock)

    def _require_block(self, order: Order) -> None:
        """An order's hosts are the first of one block, of which no other order has a machine."""
        block = next(block for block in self._blocks[order.pool] if order.hosts[0] in block)
        if order.hosts != block[: len(order.hosts)]:
            raise InvalidOrder(f"pool {order.pool}: {hostlist.fold(order.hosts)} is not the beginning of one block")
        others = {one.host for one in self._cloud.list([order.pool]) if one.request_id != order.request_id}
        if taken := others.intersection(block):
            raise NoCapacity(f"pool {order.pool}: another order has {hostlist.fold(sorted(taken))} of the block")

    def list_nodes(self) -> Sequence[NodeReport]:
        with self._cloud.call("list_nodes"):
            return self._cloud.list(self._pools.keys())

    def release(self, node_ids: Collection[NodeId], /) -> None:
        with self._cloud.call("release", tuple(node_ids)):
            self._cloud.release(node_ids)

    def close(self) -> None:
        with self._cloud.call("close"):
            pass

    def _offer(self, pool: PoolSpec, demand: Demand, stock: str, of: OfferOptions) -> Offer | Refusal:
        needed = (("core", pool.cores, demand.cores_per_slot), ("GPU", pool.gpus, demand.gpus_per_slot))
        for what, has, wants in needed:
            if wants > has:
                return Refusal(pool.name, self._name, f"a slot needs {wants} {what}(s), its nodes have {has}")
        if demand.spot is not None and demand.spot != of.spot:
            return Refusal(pool.name, self._name, f"its nodes are {'spot' if of.spot else 'not spot'}")
        left = self._cloud.left(stock)
        price = pool.usd_per_node_hour if pool.usd_per_node_hour is not None else of.usd_per_node_hour
        return Offer(
            pool=pool.name,
            provider=self._name,
            instance_type=of.instance_type,
            cores=pool.cores,
            gpus=pool.gpus,
            usd_per_node_hour=price,
            spot=of.spot,
            zone=of.zone,
            region=of.region,
            join_s=of.boot_s,
            nodes_left=left,
        )
