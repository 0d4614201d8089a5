"""A cloud in which things go wrong at given rates, drawn from a seed."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fluxburst.errors import NoCapacity, ProviderUnavailable
from fluxburst.flux.protocol import Loop
from fluxburst.model import Host, Order, RequestId
from fluxburst_mock.cloud import MockCloud
from fluxburst_mock.instance import MockInstance

DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Faults:
    """How often something goes wrong; shares are between 0 and 1.

    ``stock_out``: of orders, refused for want of capacity. ``lost_answer``: of orders, carried out but not answered.
    ``slow_boot``: of nodes, taking ``slow_factor`` times as long to join. ``failed_boot``: of nodes, never coming up.
    ``spot_loss``: of spot nodes, lost in an hour. ``outages``: in a day, of all providers at once, each ``outage_s``
    long: no call is answered, and nodes run on.
    """

    stock_out: float = 0.0
    lost_answer: float = 0.0
    slow_boot: float = 0.0
    slow_factor: float = 5.0
    failed_boot: float = 0.0
    spot_loss: float = 0.0
    outages: float = 0.0
    outage_s: float = 900.0


class FaultyCloud(MockCloud):
    """Draws for every order in its turn. ``happened`` counts the faults, ``orders`` are those that were carried out."""

    def __init__(self, loop: Loop, instance: MockInstance, faults: Faults, seed: int) -> None:
        super().__init__(loop, instance, keep_calls=False)
        self._rates = faults
        self._random = random.Random(seed)  # noqa: S311 - nothing secret is drawn
        self.orders: dict[RequestId, Order] = {}
        self.happened: Counter[str] = Counter()
        # of its own, so that an order's faults do not depend on how often the provider was called
        self._outages = random.Random(f"{seed} outages")  # noqa: S311 - nothing secret is drawn
        self._outage_at = self._next_outage_at(0.0)

    @contextmanager
    def call(self, method: str, *args: object) -> Iterator[None]:
        """See the mock's.

        Raises:
            ProviderUnavailable: there is an outage.
        """
        while self.now() >= self._outage_at + self._rates.outage_s:
            self._outage_at = self._next_outage_at(self._outage_at + self._rates.outage_s)
        if self.now() >= self._outage_at:
            self.happened["unanswered"] += 1
            raise ProviderUnavailable("the provider does not answer")
        with super().call(method, *args):
            yield

    def _next_outage_at(self, now: float) -> float:
        return now + DAY_S * self._outages.expovariate(self._rates.outages) if self._rates.outages else math.inf

    def launch(self, order: Order, boot_s: float, stock: str = "") -> None:
        """See the mock's.

        Raises:
            NoCapacity: a stock-out was drawn, or the pool's stock is at its end.
            ProviderUnavailable: a lost answer was drawn.
        """
        if order.request_id in self.orders:
            return
        if self._drawn("stock_out", self._rates.stock_out):
            raise NoCapacity(f"pool {order.pool}: out of stock just now")
        for host in order.hosts:
            self.die_in_boot.discard(host)
            if self._drawn("failed_boot", self._rates.failed_boot):
                self.die_in_boot.add(host)
            slow = self._drawn("slow_boot", self._rates.slow_boot)
            self.boot_s[host] = boot_s * (self._rates.slow_factor if slow else 1.0)
        super().launch(order, boot_s, stock)
        self.orders[order.request_id] = order
        if order.offer.spot and self._rates.spot_loss:
            for host in order.hosts:
                self._doom(order.request_id, host)
        if self._drawn("lost_answer", self._rates.lost_answer):
            raise ProviderUnavailable("the answer was lost on its way")

    def _drawn(self, name: str, rate: float) -> bool:
        if not rate or self._random.random() >= rate:
            return False
        self.happened[name] += 1
        return True

    def _doom(self, request_id: RequestId, host: Host) -> None:
        """Losses come at a constant rate, whatever a node's age."""

        def lose() -> None:
            if any(machine.host == host and machine.request_id == request_id for machine in self.living()):
                self.happened["spot_loss"] += 1
                self.interrupt(host, "interrupted by the cloud")

        assert self.loop is not None
        after_s = 3600 * self._random.expovariate(self._rates.spot_loss)
        self.loop.call_soon_threadsafe(self.loop.call_later, after_s, lose)
