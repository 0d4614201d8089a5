"""Virtual time: a loop that jumps from timer to timer, and an executor that runs in the caller's thread.

With both, a whole run is one thread and deterministic: the same calls give the same events in the same order.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from fluxburst.flux.protocol import Loop

P = ParamSpec("P")
T = TypeVar("T")

EPOCH = 1_767_225_600.0
"""2026-01-01 00:00 UTC as POSIX seconds: where a virtual wall clock starts."""


class VirtualTimer:
    """A callback that waits in a :class:`VirtualLoop`."""

    __slots__ = ("_args", "_callback")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback: Callable[..., object] | None = callback
        self._args = args

    def cancel(self) -> None:
        self._callback, self._args = None, ()

    @property
    def cancelled(self) -> bool:
        return self._callback is None

    def fire(self) -> None:
        if self._callback is not None:
            self._callback(*self._args)


class VirtualLoop:
    """:class:`fluxburst.flux.protocol.Loop` in virtual time, which starts at 0.

    Callbacks that are due at the same time run in the order in which they were scheduled. An exception in a callback
    leaves the method that runs the loop; the loop can be run again. For one thread only, despite the name of
    :meth:`call_soon_threadsafe`, which is part of the protocol.
    """

    def __init__(self, epoch: float = EPOCH) -> None:
        self._epoch = epoch
        self._now = 0.0
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._order = itertools.count()
        self._stopped = False

    def time(self) -> float:
        return self._now

    def wall(self) -> float:
        """POSIX seconds: the epoch plus the loop's time."""
        return self._epoch + self._now

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> VirtualTimer:
        timer = VirtualTimer(callback, args)
        heapq.heappush(self._timers, (self._now + max(delay, 0.0), next(self._order), timer))
        return timer

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> VirtualTimer:
        return self.call_later(0.0, callback, *args)

    def stop(self) -> None:
        """Leave :meth:`run_forever` after the present callback."""
        self._stopped = True

    def run_forever(self) -> None:
        """Run until :meth:`stop`, or until nothing is left that could ever happen."""
        self._stopped = False
        while not self._stopped and self._step():
            pass

    def run_for(self, seconds: float) -> None:
        """Run everything that is due within so many seconds, and let that time pass."""
        end = self._now + seconds
        while self._step(end):
            pass
        self._now = end

    def run_until(self, condition: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Run until the condition holds; it is tried before each callback.

        Raises:
            TimeoutError: it does not hold after ``timeout_s``, or nothing is left that could make it hold.
        """
        end = None if timeout_s is None else self._now + timeout_s
        while not condition():
            if not self._step(end):
                raise TimeoutError(
                    f"not so after {timeout_s} s"
                    if self._timers
                    else f"never so: nothing is left to happen at {self._now:.3f} s"
                )

    def _step(self, end: float | None = None) -> bool:
        """Run the next callback, unless it is due after ``end``; False when there is none."""
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        if not self._timers or (end is not None and self._timers[0][0] > end):
            return False
        self._now, _, timer = heapq.heappop(self._timers)
        timer.fire()
        return True


class InlineExecutor(Executor):
    """Runs each call at once, in the caller's thread.

    With a ``loop`` the call's future is completed only ``latency_s`` later: the work is done, the answer on its way.
    """

    def __init__(self, loop: Loop | None = None, latency_s: float = 0.0) -> None:
        self._loop = loop
        self.latency_s = latency_s

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        try:
            result = fn(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - handed over to whoever asks the future, as every executor does
            self._answer(future.set_exception, error)
        else:
            self._answer(future.set_result, result)
        return future

    def _answer(self, complete: Callable[..., object], value: object) -> None:
        if self._loop is None:
            complete(value)
        else:
            self._loop.call_later(self.latency_s, complete, value)
