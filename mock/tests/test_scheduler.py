"""The two schedulers, without an instance around them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxburst.model import Demand, Host, HostShare, JobId
from fluxburst_mock.scheduler import Allocated, Denied, Easy, Fifo, Node, Request, Scheduler

PROPERTIES = {"properties": ["gpu"]}


def nodes(*sizes: int, gpus: int = 0, up: bool = True) -> list[Node]:
    return [Node(rank, Host(f"n{rank}"), cores, gpus, frozenset(), online=up) for rank, cores in enumerate(sizes)]


def request(
    job_id: int,
    *,
    nodes: int = 0,
    slots: int = 1,
    cores: int = 1,
    gpus: int = 0,
    duration_s: float = 0.0,
    priority: int = 16,
    queue: str = "",
    exclusive: bool = False,
    constraint: str = "",
) -> Request:
    shape = Demand(nodes, slots, cores, gpus, exclusive or nodes > 0, constraint=constraint)
    return Request(JobId(job_id), priority, queue, shape, duration_s)


def started(scheduler: Scheduler, now: float = 0.0) -> list[int]:
    outcomes = list(scheduler.schedule(now))
    assert not any(isinstance(outcome, Denied) for outcome in outcomes)
    return [outcome.job_id for outcome in outcomes if isinstance(outcome, Allocated)]


def shares(scheduler: Scheduler, *requests: Request) -> list[tuple[HostShare, ...]]:
    for each in requests:
        scheduler.add(each)
    return [outcome.shares for outcome in scheduler.schedule(0.0) if isinstance(outcome, Allocated)]


BOTH = pytest.mark.parametrize("kind", [Fifo, Easy])


@BOTH
def test_nodes_with_the_most_free_cores_come_first(kind: type[Fifo | Easy]) -> None:
    got = shares(kind(nodes(2, 8, 4)), request(1, cores=2), request(2, cores=5), request(3, cores=4))
    assert got == [(HostShare(Host("n1"), 2),), (HostShare(Host("n1"), 5),), (HostShare(Host("n2"), 4),)]


@BOTH
def test_an_exclusive_job_takes_only_nodes_that_are_all_free(kind: type[Fifo | Easy]) -> None:
    scheduler = kind(nodes(4, 4))
    shares(scheduler, request(1))
    scheduler.add(request(2, nodes=2, slots=2))
    assert started(scheduler) == []
    scheduler.free(JobId(1))
    assert list(scheduler.schedule(0.0)) == [Allocated(JobId(2), (HostShare(Host("n0"), 4), HostShare(Host("n1"), 4)))]


@BOTH
def test_gpus_are_counted_with_cores(kind: type[Fifo | Easy]) -> None:
    scheduler = kind(nodes(8, gpus=2))
    got = shares(scheduler, request(1, slots=2, gpus=1), request(2, gpus=1))
    assert got == [(HostShare(Host("n0"), 2, 2),)]


@BOTH
def test_a_job_runs_only_where_its_constraint_allows(kind: type[Fifo | Easy]) -> None:
    plain, special = nodes(2, 2)
    special.properties = frozenset({"gpu"})
    scheduler = kind([plain, special])
    wanted = json.dumps(PROPERTIES)
    assert shares(scheduler, request(1, cores=2, constraint=wanted)) == [(HostShare(special.host, 2),)]
    scheduler.add(request(2, cores=2, constraint=wanted))
    assert started(scheduler) == []


@BOTH
def test_a_removed_job_never_starts_and_one_that_is_added_again_starts_once(kind: type[Fifo | Easy]) -> None:
    scheduler = kind(nodes(4))
    scheduler.add(request(1))
    scheduler.remove(JobId(1))
    assert started(scheduler) == []
    scheduler.add(request(1))
    scheduler.remove(JobId(1))
    scheduler.add(request(1))
    assert started(scheduler) == [1]


@BOTH
def test_what_a_node_that_went_down_held_is_free_when_it_comes_back(kind: type[Fifo | Easy]) -> None:
    (node,) = one = nodes(2)
    scheduler = kind(one)
    shares(scheduler, request(1, cores=2))
    node.online = False
    scheduler.nodes_changed(one)
    scheduler.free(JobId(1))
    scheduler.add(request(2, cores=2))
    assert started(scheduler) == []
    node.online = True
    scheduler.nodes_changed(one)
    assert started(scheduler) == [2]


@BOTH
def test_priority_goes_before_age(kind: type[Fifo | Easy]) -> None:
    scheduler = kind(nodes(4))
    for each in (request(1), request(2, priority=20), request(3, priority=20)):
        scheduler.add(each)
    assert started(scheduler) == [2, 3, 1]


def test_fifo_lets_nobody_pass_its_head_whatever_the_queue() -> None:
    scheduler = Fifo(nodes(2, 2))
    shares(scheduler, request(1, cores=2))
    scheduler.add(request(2, nodes=2, slots=2, queue="a"))
    scheduler.add(request(3, queue="b"))
    assert started(scheduler) == []


def test_fifo_denies_the_impossible_only_when_it_is_the_head() -> None:
    scheduler = Fifo(nodes(2, up=False))
    scheduler.add(request(1))
    scheduler.add(request(2, nodes=2, slots=2))
    assert list(scheduler.schedule(0.0)) == []
    scheduler.remove(JobId(1))
    assert list(scheduler.schedule(0.0)) == [
        Denied(JobId(2), "unsatisfiable request: need 2 exclusive node(s), only 1 eligible")
    ]


@pytest.mark.parametrize(
    ("wanted", "note"),
    [
        ({"slots": 9}, "need 9 slot(s) of 1 core(s), only 8 such slot(s) available (total cores: 8)"),
        ({"gpus": 3}, "need 1 slot(s) with 3 GPU(s) each, only 0 available (total GPUs: 4)"),
        ({"nodes": 1, "cores": 5}, "need 1 exclusive node(s), only 0 eligible"),
    ],
)
def test_fifo_denies_in_the_words_of_sched_simple(wanted: dict[str, int], note: str) -> None:
    scheduler = Fifo(nodes(4, 4, gpus=2))
    scheduler.add(request(1, **wanted))  # type: ignore[arg-type]
    assert list(scheduler.schedule(0.0)) == [Denied(JobId(1), f"unsatisfiable request: {note}")]


def easy_with_a_blocked_head(running_s: float = 100.0) -> Easy:
    """Two nodes of two cores; job 1 holds one of them, job 2 wants both."""
    scheduler = Easy(nodes(2, 2))
    shares(scheduler, request(1, cores=2, duration_s=running_s))
    scheduler.add(request(2, nodes=2, slots=2, duration_s=10.0))
    return scheduler


def test_easy_lets_a_job_pass_that_ends_before_the_head_can_start() -> None:
    scheduler = easy_with_a_blocked_head()
    scheduler.add(request(3, cores=2, duration_s=100.0))
    assert started(scheduler) == [3]


def test_easy_holds_a_job_back_that_would_delay_the_head() -> None:
    scheduler = easy_with_a_blocked_head()
    scheduler.add(request(3, cores=2, duration_s=100.5))
    scheduler.add(request(4, cores=2))
    assert started(scheduler) == []
    scheduler.free(JobId(1))
    assert started(scheduler, now=60.0) == [2]


def test_easy_lets_a_long_job_pass_where_the_head_is_not_going_to_run() -> None:
    scheduler = Easy(nodes(2, 2, 8))
    shares(scheduler, request(1, slots=2, cores=4, duration_s=50.0), request(2, cores=2, duration_s=100.0))
    scheduler.add(request(3, cores=8, duration_s=10.0))
    scheduler.add(request(4, cores=2))
    assert started(scheduler) == [4]


def test_easy_reserves_nothing_for_a_job_that_only_more_nodes_can_help() -> None:
    scheduler = easy_with_a_blocked_head()
    scheduler.remove(JobId(2))
    scheduler.add(request(2, nodes=3, slots=3, duration_s=10.0))
    scheduler.add(request(3, cores=2))
    assert started(scheduler) == [3]


def test_easy_serves_each_queue_by_itself() -> None:
    scheduler = easy_with_a_blocked_head()
    scheduler.add(request(3, cores=2, queue="other"))
    assert started(scheduler) == [3]


def test_easy_looks_no_deeper_than_its_depth() -> None:
    scheduler = Easy(nodes(2), queue_depth=2)
    for each in (request(1, nodes=2, slots=2), request(2, nodes=3, slots=3), request(3)):
        scheduler.add(each)
    assert started(scheduler) == []
    scheduler.remove(JobId(1))
    assert started(scheduler) == [3]


def test_easy_denies_slots_and_leaves_nodes_waiting_when_there_are_too_few() -> None:
    scheduler = Easy(nodes(2, 2))
    scheduler.add(request(1, slots=5))
    scheduler.add(request(2, nodes=3, slots=3))
    assert list(scheduler.schedule(0.0)) == [Denied(JobId(1), 'alloc denied due to type="unsatisfiable"')]


SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.0, 5.0, 50.0]))


@given(shapes=st.lists(SHAPES, min_size=1, max_size=25), kind=st.sampled_from([Fifo, Easy]), data=st.data())
def test_no_node_ever_gives_more_than_it_has_and_everything_comes_back(
    shapes: Sequence[tuple[int, int, int, float]], kind: type[Fifo | Easy], data: st.DataObject
) -> None:
    all_nodes = nodes(4, 4, 2)
    scheduler: Scheduler = kind(all_nodes)
    numbers = itertools.count(1)
    running: dict[JobId, tuple[HostShare, ...]] = {}
    for now, (count, slots, cores, duration_s) in enumerate(shapes):
        scheduler.add(
            request(next(numbers), nodes=count, slots=max(count, 1) * slots, cores=cores, duration_s=duration_s)
        )
        for outcome in scheduler.schedule(float(now)):
            if isinstance(outcome, Allocated):
                assert outcome.job_id not in running
                running[outcome.job_id] = outcome.shares
        for node in all_nodes:
            held = sum(share.cores for held in running.values() for share in held if share.host == node.host)
            assert node.free == (node.cores - held, 0)
            assert 0 <= held <= node.cores
        done = data.draw(st.sampled_from([None, *sorted(running)]))
        if done is not None:
            del running[done]
            scheduler.free(done)
    for job_id in running:
        scheduler.free(job_id)
    assert all(node.free == (node.cores, node.gpus) for node in all_nodes)
