"""What the schedulers say about a waiting job's start: ``sched.t_estimate`` of RFC 27, in ``annotations`` events."""

from __future__ import annotations

import pytest

from fluxburst.model import JobId
from tests.contract.harness import Harness
from tests.contract.steps import event, forecasts, job, names, never, stays_pending, wait
from tests.contract.test_connections import Second

BEHIND = 3


def line_up(harness: Harness, limit_s: float = 40.0) -> tuple[float, list[JobId]]:
    """One job that fills home, and others behind it that need all of it too: when the first must end, and their ids."""
    first = harness.submit(job("sleep", "60", slots=2, duration=limit_s))
    started_at = event(harness, first, "alloc").at
    line = [harness.submit(job("sleep", "60", slots=2, duration=limit_s)) for _ in range(BEHIND)]
    for job_id in line:
        stays_pending(harness, job_id)
    return started_at + limit_s, line


def test_easy_says_when_the_first_job_in_line_starts_and_nothing_of_the_others(easy: Harness) -> None:
    end_at, (head, *others) = line_up(easy)
    easy.run_until(lambda: bool(forecasts(easy, head)))
    (at,) = forecasts(easy, head)
    assert at is not None
    assert at == int(at)
    assert end_at - 2 < at <= end_at
    assert [forecasts(easy, other) for other in others] == [[]] * len(others)


def test_easy_says_it_of_the_next_job_when_the_first_is_gone(easy: Harness) -> None:
    end_at, (head, following, _) = line_up(easy)
    easy.cancel(head)
    easy.run_until(lambda: bool(forecasts(easy, following)))
    (at,) = forecasts(easy, following)
    assert at is not None
    assert end_at - 2 < at <= end_at


def test_a_job_that_is_passed_in_line_is_told_so(easy: Harness) -> None:
    _, (head, *_) = line_up(easy)
    easy.run_until(lambda: bool(forecasts(easy, head)))
    urgent = easy.submit(job("sleep", "60", slots=2, duration=40.0), urgency=20)
    easy.run_until(lambda: bool(forecasts(easy, urgent)))
    easy.run_until(lambda: forecasts(easy, head)[-1] is None)


def test_a_forecast_is_taken_back_before_the_job_starts(easy: Harness) -> None:
    first = easy.submit(job("sleep", "0.5", slots=2, duration=40.0))
    event(easy, first, "alloc")
    head = easy.submit(job("sleep", "0.1", slots=2, duration=40.0))
    event(easy, head, "clean")
    *_, before, after = forecasts(easy, head)
    assert before is not None
    assert after is None
    order = [event.name for event in easy.job_events(head)]
    assert order.index("alloc") > max(index for index, name in enumerate(order) if name == "annotations")


def test_a_new_subscriber_is_not_told_of_earlier_forecasts(easy: Harness) -> None:
    _, (head, *_) = line_up(easy)
    easy.run_until(lambda: bool(forecasts(easy, head)))
    late = Second(easy)
    past = [event.name for event in late.job_events(head)]
    late.instance.close()
    assert "priority" in past
    assert "annotations" not in past


def test_a_forecast_is_not_taken_back_from_a_job_with_a_memo_that_moves(easy: Harness) -> None:
    """Why the controller does not believe a forecast from before a move."""
    _, (head, *_) = line_up(easy)
    easy.run_until(lambda: bool(forecasts(easy, head)))
    wait(easy, easy.instance.memo(head, {"burst": {"note": "x"}}))
    said = forecasts(easy, head)
    wait(easy, easy.instance.move(head, "staging"))
    easy.run_until(lambda: "jobspec-update" in names(easy, head))
    never(easy, lambda: forecasts(easy, head) != said)


def test_sched_simple_says_when_each_job_in_line_starts(simple: Harness) -> None:
    end_at, line = line_up(simple)
    for place, job_id in enumerate(line):
        simple.run_until(lambda job_id=job_id: bool(forecasts(simple, job_id)))  # type: ignore[misc]
        at = forecasts(simple, job_id)[-1]
        assert at == pytest.approx(end_at + 40.0 * place, abs=1.0)


def test_fcfs_says_nothing(fcfs: Harness) -> None:
    _, line = line_up(fcfs)
    assert all(at is None for job_id in line for at in forecasts(fcfs, job_id))
