from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from fluxburst.flux.loop import FluxLoop

pytestmark = pytest.mark.flux


@pytest.fixture
def loop() -> Iterator[FluxLoop]:
    loop = FluxLoop()
    yield loop
    loop.close()


def test_timers_fire_in_order_and_not_early(loop: FluxLoop) -> None:
    start = loop.time()
    fired: list[tuple[str, float]] = []
    for name, delay in (("late", 0.06), ("early", 0.02), ("now", 0.0)):
        loop.call_later(delay, lambda name: fired.append((name, loop.time() - start)), name)
    loop.call_later(0.08, loop.stop)
    loop.run_forever()
    assert [name for name, _ in fired] == ["now", "early", "late"]
    assert fired[1][1] >= 0.02
    assert fired[2][1] >= 0.06


def test_a_delay_counts_from_the_call_and_not_from_the_last_wait(loop: FluxLoop) -> None:
    took: list[float] = []

    def busy() -> None:
        until = loop.time() + 0.1
        while loop.time() < until:
            pass
        called = loop.time()
        loop.call_later(0.05, lambda: took.append(loop.time() - called))

    loop.call_later(0, busy)
    loop.call_later(0.3, loop.stop)
    loop.run_forever()
    assert took[0] >= 0.05


def test_a_cancelled_timer_does_not_fire(loop: FluxLoop) -> None:
    fired: list[str] = []
    timer = loop.call_later(0.01, fired.append, "cancelled")
    timer.cancel()
    timer.cancel()
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert fired == []


def test_cancelling_a_timer_that_has_fired_is_fine(loop: FluxLoop) -> None:
    timer = loop.call_later(0, loop.stop)
    loop.run_forever()
    timer.cancel()


def test_timers_of_the_past_leave_nothing_behind(loop: FluxLoop) -> None:
    left = 5000

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_later(100, step).cancel()
            loop.call_later(0, step)
        else:
            loop.stop()

    loop.call_later(0, step)
    gc.collect()
    gc.disable()  # freed when they fire, not when the collector comes
    try:
        before = len(gc.get_objects())
        loop.run_forever()
        grown = len(gc.get_objects()) - before
    finally:
        gc.enable()
    assert left == 0
    assert grown < 100


def test_calls_from_other_threads_all_run_in_order_in_the_loop_s_thread(loop: FluxLoop) -> None:
    seen: list[int] = []
    threads: set[int] = set()

    def note(number: int) -> None:
        seen.append(number)
        threads.add(threading.get_ident())

    def work() -> None:
        for number in range(20_000):  # more than the wake-up socket can hold
            loop.call_soon_threadsafe(note, number)
        loop.call_soon_threadsafe(loop.stop)

    worker = threading.Thread(target=work)
    worker.start()
    loop.run_forever()
    worker.join()
    assert seen == list(range(20_000))
    assert threads == {threading.get_ident()}


def test_a_call_made_by_a_call_runs_too_and_starves_no_timer(loop: FluxLoop) -> None:
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        loop.call_soon_threadsafe(again)

    loop.call_soon_threadsafe(again)
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert count > 1


@pytest.mark.parametrize("how", ["timer", "thread"])
def test_the_first_exception_of_a_callback_comes_out_of_run_forever(loop: FluxLoop, how: str) -> None:
    def fail(text: str) -> None:
        raise LookupError(text)

    if how == "timer":
        loop.call_later(0, fail, "first")
    else:
        loop.call_soon_threadsafe(fail, "first")
        loop.call_soon_threadsafe(fail, "second")
    with pytest.raises(LookupError, match="first"):
        loop.run_forever()


def test_the_loop_runs_on_after_a_failure(loop: FluxLoop) -> None:
    loop.call_later(0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.run_forever()
    loop.call_later(0, loop.stop)
    loop.run_forever()


def test_a_system_exit_in_a_callback_is_no_exception_to_that(loop: FluxLoop) -> None:
    def leave() -> None:
        raise SystemExit(3)

    loop.call_later(0, leave)
    with pytest.raises(SystemExit):
        loop.run_forever()


def test_stop_before_run_forever_makes_it_return(loop: FluxLoop) -> None:
    fired: list[str] = []
    loop.call_later(0, fired.append, "later")
    loop.stop()
    loop.run_forever()
    assert fired == []
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert fired == ["later"]


def test_an_interrupt_ends_the_waiting_loop(loop: FluxLoop) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_handler_runs_while_the_loop_waits(loop: FluxLoop) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    try:
        start = loop.time()
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        guard = loop.call_later(10, loop.stop)
        loop.run_forever()
        guard.cancel()
        assert loop.time() - start < 5
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_runs_in_a_thread_other_than_the_main_one() -> None:
    fired: list[str] = []

    def work() -> None:
        loop = FluxLoop()
        loop.call_later(0, fired.append, "fired")
        loop.call_later(0.01, loop.stop)
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert fired == ["fired"]
