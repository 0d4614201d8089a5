"""The Flux reactor as fluxburst's event loop.

The loop owns a reactor and every broker handle that is attached to it shares that reactor, so the loop, its timers and
its wake-ups outlive a broker connection.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

from fluxburst.errors import InstanceError
from fluxburst.flux import bindings

T = TypeVar("T")


class FluxTimer:
    """A pending :meth:`FluxLoop.call_later`; cancelling one that has fired is fine."""

    __slots__ = ("_watcher",)

    def __init__(self, watcher: Any) -> None:
        self._watcher = watcher

    def cancel(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.destroy()
            # The watcher and its C handle hold each other; cut here, a fired timer needs no garbage collector.
            watcher.wargs = watcher.callback = None


class LoopFuture(Future[T]):
    """A future that is completed on the loop's thread. It cannot be cancelled, and lets no exception get lost.

    A plain one logs what its callbacks raise and goes on; this one hands it to :meth:`FluxLoop.run_forever`.
    """

    def __init__(self, loop: FluxLoop) -> None:
        super().__init__()
        self._loop = loop
        self.set_running_or_notify_cancel()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        super().add_done_callback(self._loop.guard(fn))


class FluxLoop:
    """:class:`fluxburst.flux.protocol.Loop` on a Flux reactor.

    The first exception that a callback raises stops the loop and comes out of :meth:`run_forever`. Python's signal
    handlers run promptly while the loop runs in the main thread; an interrupt raises KeyboardInterrupt from there.
    """

    def __init__(self) -> None:
        flux = bindings.load()
        # A handle on Flux's "loop" connector, which talks to no broker: it carries the reactor and the watchers.
        self._anchor: Any = flux.Flux("loop://")
        self._reactor: Any = self._anchor.get_reactor()
        self._in_reactor = False
        self._stopping = False
        self._failure: BaseException | None = None
        self._disconnects: dict[Any, Callable[[], object]] = {}
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._wake_watcher: Any = self._anchor.fd_watcher_create(
            self._wake_r.fileno(), self._on_wake, events=self._anchor.lib.FLUX_POLLIN
        )
        self._wake_watcher.start()

    def time(self) -> float:
        return time.monotonic()

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> FluxTimer:
        def fire(*_: object) -> None:
            timer.cancel()
            self._run(callback, *args)

        # libev counts from its cached time, which is as old as the running callback.
        self._anchor.reactor_now_update(self._reactor)
        timer = FluxTimer(self._anchor.timer_watcher_create(max(delay, 0.0), fire).start())
        return timer

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        self._ready.append((callback, args))
        self._wake()

    def run_forever(self) -> None:
        """Run until :meth:`stop`.

        Raises:
            BaseException: whatever a callback raised first.
            InstanceError: the reactor failed for a reason of its own.
        """
        with _Signals(self):
            while not self._stopping and self._failure is None:
                self._run_reactor()
        self._stopping = False
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """Make :meth:`run_forever` return after the running callback; called before it, that returns at once."""
        self._stopping = True
        self._anchor.reactor_stop(self._reactor)

    def close(self) -> None:
        """Free the reactor. Handles are released before, by those who attached them."""
        self._wake_watcher.destroy()
        _close(self._anchor)
        self._wake_r.close()
        self._wake_w.close()

    def attach(self, handle: Any, on_disconnect: Callable[[], object]) -> None:
        """Make a new broker handle use this reactor; ``on_disconnect`` is called once, when its broker is gone."""
        handle.flux_set_reactor(self._reactor)
        self._disconnects[handle] = on_disconnect

    def release(self, handle: Any) -> None:
        """Close an attached handle, after its own callbacks if the reactor runs. Nothing of it may be used again."""
        self._disconnects.pop(handle, None)
        if self._in_reactor:
            self.call_soon_threadsafe(_close, handle)
        else:
            _close(handle)

    def guard(self, callback: Callable[..., object]) -> Callable[..., None]:
        """``callback`` for a Flux watcher or future, with its exceptions handed to :meth:`run_forever`.

        The bindings keep only the last exception, and only those derived from Exception.
        """

        def guarded(*args: Any) -> None:
            self._run(callback, *args)

        return guarded

    def fail(self, failure: BaseException) -> None:
        """Stop, and raise ``failure`` from :meth:`run_forever`, unless an earlier one is on its way."""
        if self._failure is None:
            self._failure = failure
        self._anchor.reactor_stop(self._reactor)

    def _run(self, callback: Callable[..., object], *args: Any) -> None:
        try:
            callback(*args)
        except BaseException as failure:  # noqa: BLE001 - raised again, by run_forever
            self.fail(failure)

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # so many wake-ups are under way then that one more changes nothing
            self._wake_w.send(b"\0")

    def _on_wake(self, *_: object) -> None:
        with suppress(BlockingIOError):
            self._wake_r.recv(65536)
        for _turn in range(len(self._ready)):  # those that they add come after the reactor's other work
            callback, args = self._ready.popleft()
            self._run(callback, *args)

    def _run_reactor(self) -> None:
        # in_reactor() tells the bindings' futures that they need not set up SIGINT on each get().
        with self._anchor.in_reactor():
            self._in_reactor = True
            status = self._anchor.lib.flux_reactor_run(self._reactor, 0)
            self._in_reactor = False
        self._anchor.raise_if_exception()
        if status >= 0 or self._stopping or self._failure is not None:
            return
        # A handle's dispatcher stops the reactor, with an error and no other word, when it can no longer receive.
        lost = [handle for handle in self._disconnects if handle.flux_pollevents() & handle.lib.FLUX_POLLERR]
        if not lost:
            raise InstanceError("the Flux reactor stopped with an error, though every broker connection is up")
        for handle in lost:
            on_disconnect = self._disconnects.pop(handle, None)
            if on_disconnect is not None:  # the first one told may have closed others
                self._run(on_disconnect)


def _close(handle: Any) -> None:
    """Close a Flux handle now, however many references Python has to it."""
    with handle:
        pass


class _Signals:
    """While a loop runs in the main thread: lets Python's signal handlers run at once, and an interrupt stop the loop.

    Python runs its handlers between byte codes, and there are none while the reactor waits; so a signal wakes it. The
    default handler of SIGINT would raise inside of whatever callback runs, where the bindings cannot pass it on.
    """

    def __init__(self, loop: FluxLoop) -> None:
        self._loop = loop
        self._active = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._active:
            self._fd = signal.set_wakeup_fd(self._loop._wake_w.fileno(), warn_on_full_buffer=False)
            self._default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if self._default:
                signal.signal(signal.SIGINT, self._interrupt)

    def __exit__(self, *_: object) -> None:
        if self._active:
            signal.set_wakeup_fd(self._fd)
            if self._default:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        self._loop.fail(KeyboardInterrupt())
