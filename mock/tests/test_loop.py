"""Virtual time."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from fluxburst_mock.loop import EPOCH, InlineExecutor, VirtualLoop, VirtualTimer


def test_time_jumps_from_timer_to_timer() -> None:
    loop, seen = VirtualLoop(), list[float]()
    for delay in (86400.0, 1.5, 3.0):
        loop.call_later(delay, lambda: seen.append(loop.time()))
    loop.run_forever()
    assert seen == [1.5, 3.0, 86400.0]
    assert loop.wall() == EPOCH + 86400.0


def test_callbacks_due_at_the_same_time_run_in_the_order_of_their_calls() -> None:
    loop, seen = VirtualLoop(), list[str]()
    loop.call_later(1.0, seen.append, "first")
    loop.call_later(0.5, loop.call_later, 0.5, seen.append, "third")
    loop.call_later(1.0, seen.append, "second")
    loop.run_forever()
    assert seen == ["first", "second", "third"]


def test_a_cancelled_timer_does_not_run_and_takes_no_time() -> None:
    loop = VirtualLoop()
    loop.call_later(5.0, pytest.fail, "it ran").cancel()
    loop.run_forever()
    assert loop.time() == 0.0


def test_a_callback_may_cancel_another_that_is_due_now() -> None:
    loop, timers = VirtualLoop(), list[VirtualTimer]()

    def cancel() -> None:
        timers[0].cancel()

    loop.call_soon_threadsafe(cancel)
    timers.append(loop.call_soon_threadsafe(pytest.fail, "it ran"))
    loop.run_forever()


def test_stop_leaves_what_is_later_for_the_next_run() -> None:
    loop, seen = VirtualLoop(), list[int]()
    loop.call_later(1.0, loop.stop)
    loop.call_later(2.0, seen.append, 2)
    loop.run_forever()
    assert seen == []
    loop.run_forever()
    assert seen == [2]


def test_run_for_lets_time_pass_even_when_nothing_happens() -> None:
    loop, seen = VirtualLoop(), list[int]()
    loop.call_later(10.0, seen.append, 10)
    loop.call_later(10.1, seen.append, 11)
    loop.run_for(10.0)
    assert (seen, loop.time()) == ([10], 10.0)


def test_run_until_stops_as_soon_as_the_condition_holds() -> None:
    loop, seen = VirtualLoop(), list[int]()
    for second in range(1, 5):
        loop.call_later(second, seen.append, second)
    loop.run_until(lambda: len(seen) == 2)
    assert loop.time() == 2.0


def test_run_until_says_when_time_is_up() -> None:
    loop = VirtualLoop()
    loop.call_later(10.0, lambda: None)
    with pytest.raises(TimeoutError, match=r"after 5\.0 s"):
        loop.run_until(lambda: False, 5.0)


def test_run_until_says_when_nothing_is_left_to_happen() -> None:
    with pytest.raises(TimeoutError, match="nothing is left"):
        VirtualLoop().run_until(lambda: False)


def test_an_error_in_a_callback_reaches_who_runs_the_loop() -> None:
    loop, seen = VirtualLoop(), list[int]()
    loop.call_later(1.0, lambda: 1 / 0)
    loop.call_later(2.0, seen.append, 2)
    with pytest.raises(ZeroDivisionError):
        loop.run_forever()
    loop.run_forever()
    assert seen == [2]


def test_an_inline_executor_is_done_when_submit_returns() -> None:
    executor = InlineExecutor()
    assert executor.submit(pow, 2, 10).result(timeout=0) == 1024
    assert isinstance(executor.submit(lambda: 1 / 0).exception(timeout=0), ZeroDivisionError)


def test_an_inline_executor_with_latency_works_at_once_and_answers_later() -> None:
    loop, seen = VirtualLoop(), list[str]()
    future: Future[None] = InlineExecutor(loop, latency_s=2.0).submit(seen.append, "done")
    assert seen == ["done"]
    assert not future.done()
    loop.run_until(future.done)
    assert loop.time() == 2.0
