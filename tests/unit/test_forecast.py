"""When jobs would start at home: against a slow and simple reckoning, and against the mock's schedulers."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxburst.forecast import HomeForecast, HomeNode, Running
from fluxburst.model import Demand, Host, HostShare, JobId
from fluxburst_mock.scheduler import Allocated, Easy, Fifo, Node, Request

NOW = 1_000_000.0
HOUR = 3600.0
QUEUES = {"batch": frozenset({"home"}), "gpu": frozenset({"home", "gpu"})}


def nodes(
    count: int, cores: int = 4, gpus: int = 0, properties: frozenset[str] = frozenset({"home"})
) -> list[HomeNode]:
    return [HomeNode(Host(f"n{rank}"), rank, cores, gpus, properties) for rank in range(count)]


def make(home: Sequence[HomeNode], *running: Running, depth: int = 256) -> HomeForecast:
    return HomeForecast(NOW, home, running, QUEUES, assume_duration_s=HOUR, depth=depth)


def whole(count: int, duration_s: float = HOUR, cores: int = 1) -> Demand:
    return Demand(nodes=count, slots=count, cores_per_slot=cores, exclusive=True, duration_s=duration_s)


def slots(count: int, duration_s: float = HOUR, cores: int = 1) -> Demand:
    return Demand(nodes=0, slots=count, cores_per_slot=cores, duration_s=duration_s)


def on(*hosts: int, cores: int = 4, started_ago_s: float = 0.0, duration_s: float = HOUR) -> Running:
    shares = tuple(HostShare(Host(f"n{rank}"), cores) for rank in hosts)
    return Running(shares, NOW - started_ago_s, duration_s)


def placed(forecast: HomeForecast, demand: Demand, queue: str = "batch") -> float:
    """Seconds from now until the job starts, which takes its place."""
    at = forecast.start_at(queue, demand)
    forecast.take(queue, demand, at)
    return at - NOW


# What is promised in words


def test_a_job_starts_now_where_there_is_room_and_at_the_end_of_those_that_run_where_there_is_none() -> None:
    forecast = make(nodes(2), on(0, duration_s=600.0))
    assert placed(forecast, whole(1)) == 0
    assert placed(forecast, whole(1)) == 600
    assert placed(forecast, whole(2)) == 600 + HOUR


def test_a_short_job_goes_before_a_gang_that_it_does_not_delay_and_a_long_one_does_not() -> None:
    forecast = make(nodes(2), on(0, duration_s=600.0))
    assert placed(forecast, whole(2)) == 600
    assert placed(forecast, whole(1, duration_s=601.0)) == 600 + HOUR
    assert placed(forecast, whole(1, duration_s=600.0)) == 0


def test_a_job_that_home_can_never_run_never_starts_and_takes_nothing() -> None:
    forecast = make(nodes(2))
    for queue, demand in (("batch", whole(3)), ("batch", slots(1, cores=5)), ("staging", whole(1)), ("gpu", whole(1))):
        assert placed(forecast, demand, queue) == math.inf
    assert placed(forecast, whole(2)) == 0


def test_a_gpu_is_as_scarce_as_a_core() -> None:
    home = [*nodes(2), HomeNode(Host("g0"), 2, 4, 2, frozenset({"home", "gpu"}))]
    forecast = make(home)
    one = Demand(nodes=0, slots=1, cores_per_slot=1, gpus_per_slot=1, duration_s=HOUR)
    assert [placed(forecast, one) for _ in range(3)] == [0, 0, HOUR]
    assert placed(forecast, slots(10)) == 0
    assert placed(forecast, slots(1), "gpu") == HOUR


def test_a_node_serves_all_queues_and_constraints_that_admit_it() -> None:
    home = [*nodes(1), HomeNode(Host("g0"), 1, 4, 0, frozenset({"home", "gpu"}))]
    forecast = make(home)
    assert placed(forecast, replace(whole(1), constraint='{"hostlist":["g0"]}')) == 0
    assert placed(forecast, whole(1), "gpu") == HOUR
    assert placed(forecast, whole(1)) == 0
    assert placed(forecast, replace(whole(1), constraint='{"hostlist":["g[1-9]"]}')) == math.inf


@pytest.mark.parametrize(
    ("running", "ends_in_s"),
    [
        pytest.param(on(0, duration_s=600.0, started_ago_s=100.0), 500.0, id="its time limit"),
        pytest.param(on(0, duration_s=0.0, started_ago_s=600.0), HOUR - 600, id="no limit: the assumed duration"),
        pytest.param(on(0, duration_s=0.0, started_ago_s=2 * HOUR), 2 * HOUR, id="outlived that: as long again"),
        pytest.param(on(0, duration_s=600.0, started_ago_s=630.0), 30.0, id="past its limit: as long as it overstayed"),
    ],
)
def test_the_end_of_a_running_job_is_reckoned(running: Running, ends_in_s: float) -> None:
    assert placed(make(nodes(1), running), whole(1)) == ends_in_s


def test_a_waiting_job_without_a_time_limit_is_reckoned_to_run_as_long_as_assumed() -> None:
    forecast = make(nodes(1))
    assert placed(forecast, whole(1, duration_s=0.0)) == 0
    assert placed(forecast, whole(1)) == HOUR


def test_what_runs_on_hosts_that_are_down_does_not_count() -> None:
    assert placed(make(nodes(1), on(7)), whole(1)) == 0


def test_a_job_whose_start_the_scheduler_has_named_takes_its_place_there_or_after() -> None:
    forecast = make(nodes(1))
    forecast.take("batch", whole(1), NOW + 600)
    assert placed(forecast, whole(1, duration_s=600.0)) == 0
    assert placed(forecast, whole(1, duration_s=601.0)) == 600 + HOUR
    forecast.take("batch", whole(1, duration_s=10.0), NOW)
    assert placed(forecast, whole(1)) == 600 + HOUR + 601 + 10


def test_overlapping_allocations_are_not_less_than_nothing() -> None:
    assert placed(make(nodes(1), on(0, duration_s=60.0), on(0, duration_s=90.0)), whole(1)) == 90


def test_large_homes_are_counted_in_larger_units() -> None:
    forecast = make(nodes(1000, cores=128), on(0, cores=1))
    assert placed(forecast, whole(999)) == 0
    assert placed(forecast, whole(1)) == HOUR
    forecast = make(nodes(1000, cores=128))
    assert placed(forecast, slots(1000 * 128)) == 0
    assert placed(forecast, slots(1)) == HOUR


# The fluid


def test_beyond_the_depth_a_job_starts_when_the_work_before_it_could_be_done() -> None:
    forecast = make(nodes(4), depth=8)
    starts = [placed(forecast, whole(1)) for _ in range(40)]
    exact = [HOUR * (place // 4) for place in range(40)]
    assert starts[:8] == exact[:8]
    assert all(abs(start - wanted) <= HOUR for start, wanted in zip(starts, exact, strict=True))
    assert starts == sorted(starts)


def test_beyond_the_depth_a_queue_waits_for_the_work_of_the_others_on_its_nodes() -> None:
    home = [*nodes(2), *(HomeNode(Host(f"g{rank}"), rank, 4, 0, frozenset({"home", "gpu"})) for rank in (2, 3))]
    forecast = make(home, depth=0)
    for _ in range(40):
        forecast.take("batch", whole(1), NOW)
    assert forecast.start_at("gpu", whole(1)) - NOW == pytest.approx(10 * HOUR)
    for _ in range(10):
        forecast.take("gpu", whole(1), NOW)
    assert forecast.start_at("gpu", whole(1)) - NOW == pytest.approx(15 * HOUR)
    assert forecast.start_at("batch", whole(1)) - NOW == pytest.approx(12.5 * HOUR)


# Against a slow and simple reckoning


@dataclass
class Slow:
    """Conservative backfilling over a table of who holds what of each node from when to when."""

    home: Sequence[HomeNode]
    held: dict[int, list[tuple[float, float, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.held = {node.rank: [] for node in self.home}

    def free(self, rank: int, from_at: float, end_at: float) -> int:
        moments = [from_at, *(start for start, _, _ in self.held[rank] if from_at < start < end_at)]
        used = max(sum(c for start, end, c in self.held[rank] if start <= at < end) for at in moments)
        return self.home[rank].cores - used

    def place(self, demand: Demand) -> float:
        wanted = demand.nodes or demand.slots
        ends = {end for held in self.held.values() for _, end, _ in held if end > NOW}
        for at in sorted({NOW, *ends}):
            end_at = at + demand.duration_s
            free = {node.rank: self.free(node.rank, at, end_at) for node in self.home}
            if demand.exclusive:
                places = {rank: int(cores == self.home[rank].cores) for rank, cores in free.items()}
            elif demand.nodes:
                places = {
                    rank: int(cores >= demand.slots_per_node() * demand.cores_per_slot) for rank, cores in free.items()
                }
            else:
                places = {rank: cores // demand.cores_per_slot for rank, cores in free.items()}
            if sum(places.values()) < wanted:
                continue
            for rank in sorted(free, key=lambda rank: (-free[rank], -rank)):
                taken = min(places[rank], wanted)
                if taken:
                    share = (
                        demand.slots_per_node() * demand.cores_per_slot
                        if demand.nodes
                        else taken * demand.cores_per_slot
                    )
                    self.held[rank].append((at, end_at, self.home[rank].cores if demand.exclusive else share))
                    wanted -= taken
            return at - NOW
        return math.inf


DURATIONS = st.integers(1, 20).map(float)
DEMANDS = st.one_of(
    st.builds(whole, st.integers(1, 4), DURATIONS),
    st.builds(slots, st.integers(1, 9), DURATIONS, st.integers(1, 3)),
    st.builds(
        lambda count, each, cores, duration_s: Demand(count, count * each, cores, duration_s=duration_s),
        st.integers(1, 3),
        st.integers(1, 2),
        st.integers(1, 2),
        DURATIONS,
    ),
)
HOMES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(
    lambda each: [HomeNode(Host(f"n{rank}"), rank, cores, 0, frozenset({"home"})) for rank, cores in enumerate(each)]
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[HomeNode], list[Running], list[Demand]]:
    home = draw(HOMES)
    running = []
    for node in home:
        left = node.cores
        for cores, duration_s in draw(st.lists(st.tuples(st.integers(1, 4), DURATIONS), max_size=3)):
            if cores <= left:
                left -= cores
                running.append(on(node.rank, cores=cores, duration_s=duration_s))
    return home, running, draw(st.lists(DEMANDS, max_size=12))


@given(cases())
def test_starts_are_those_of_a_slow_and_simple_reckoning(
    case: tuple[list[HomeNode], list[Running], list[Demand]],
) -> None:
    home, running, demands = case
    slow, forecast = Slow(home), make(home, *running)
    for job in running:
        for share in job.shares:
            slow.held[int(share.host[1:])].append((job.started_at, job.started_at + job.duration_s, share.cores))
    assert [placed(forecast, demand) for demand in demands] == [slow.place(demand) for demand in demands]


@given(cases(), st.integers(0, 12))
def test_taking_more_never_lets_another_job_start_earlier(
    case: tuple[list[HomeNode], list[Running], list[Demand]], depth: int
) -> None:
    home, running, demands = case
    forecast, probes = make(home, *running, depth=depth), demands[-3:]
    before = [0.0] * len(probes)
    for demand in demands:
        starts = [forecast.start_at("batch", probe) for probe in probes]
        assert all(then <= now for then, now in zip(before, starts, strict=True))
        before = starts
        forecast.take("batch", demand, forecast.start_at("batch", demand))


@given(cases())
def test_exactly_what_jobs_need_is_taken_and_never_more_than_there_is(
    case: tuple[list[HomeNode], list[Running], list[Demand]],
) -> None:
    home, running, demands = case
    shared = [demand for demand in demands if not demand.exclusive]  # a whole node has as many cores as it has
    forecast, cores = make(home, *running), sum(node.cores for node in home)
    wanted = sum((job.end_at(NOW, HOUR) - NOW) * job.shares[0].cores for job in running)
    for demand in shared:
        if placed(forecast, demand) < math.inf:
            places = demand.slots_per_node() * demand.nodes or demand.slots
            wanted += places * demand.cores_per_slot * demand.duration_s
    profile = forecast.profile()
    assert all(0 <= free <= cores for _, free, _ in profile)
    assert profile[-1][1] == cores
    assert sum((cores - free) * (end - at) for (at, free, _), (end, _, _) in itertools.pairwise(profile)) == wanted


@given(cases())
def test_the_profile_never_holds_more_than_home(case: tuple[list[HomeNode], list[Running], list[Demand]]) -> None:
    home, running, demands = case
    forecast, cores = make(home, *running), sum(node.cores for node in home)
    for demand in demands:
        placed(forecast, demand)
    profile = forecast.profile()
    assert all(0 <= free <= cores for _, free, _ in profile)
    assert profile[-1][1] == cores
    assert [at for at, _, _ in profile] == sorted({at for at, _, _ in profile})


# Against the mock's schedulers, which the contract suite holds to the real ones


def scheduled(scheduler: Easy | Fifo, demands: Sequence[Demand]) -> list[float]:
    """When these jobs really start, all submitted now, each running for its whole duration; seconds from now."""
    for number, demand in enumerate(demands):
        scheduler.add(Request(JobId(number), 16, "batch", replace(demand, duration_s=0.0), demand.duration_s))
    starts, ends = [math.inf] * len(demands), [(NOW, JobId(-1))]
    while ends:
        now = ends[0][0]
        while ends and ends[0][0] == now:
            ended = heapq.heappop(ends)[1]
            if ended >= 0:
                scheduler.free(ended)
        for outcome in scheduler.schedule(now):
            if isinstance(outcome, Allocated):
                starts[outcome.job_id] = now - NOW
                heapq.heappush(ends, (now + demands[outcome.job_id].duration_s, outcome.job_id))
    return starts


def mocked(home: Sequence[HomeNode]) -> list[Node]:
    return [Node(node.rank, node.host, node.cores, node.gpus, node.properties, online=True) for node in home]


@pytest.mark.parametrize("kind", [Easy, Fifo])
@given(st.integers(1, 4), st.integers(1, 2), st.lists(DURATIONS, max_size=20))
def test_jobs_of_one_size_start_exactly_when_the_schedulers_start_them(
    kind: type[Easy | Fifo], size: int, gang: int, durations: list[float]
) -> None:
    home = nodes(size * gang)
    demands = [whole(gang, duration_s) for duration_s in durations]
    forecast = make(home)
    assert [placed(forecast, demand) for demand in demands] == scheduled(kind(mocked(home)), demands)


@given(st.lists(st.tuples(st.integers(1, 4), DURATIONS), max_size=2))
def test_the_first_two_jobs_start_exactly_when_easy_starts_them(jobs: list[tuple[int, float]]) -> None:
    demands = [whole(count, duration_s) for count, duration_s in jobs]
    forecast = make(nodes(4))
    assert [placed(forecast, demand) for demand in demands] == scheduled(Easy(mocked(nodes(4))), demands)


def queue(seed: int, jobs: int) -> list[Demand]:
    """A queue such as traces have: many small jobs and a few large ones, durations over three orders of magnitude."""
    draw = random.Random(seed)
    return [
        replace(whole(min(32, 2 ** int(draw.expovariate(0.6)))), duration_s=round(math.exp(draw.uniform(3.0, 10.0))))
        for _ in range(jobs)
    ]


@pytest.mark.parametrize(("jobs", "most"), [(200, 0.45), (1000, 0.2)])
def test_a_mixed_queue_is_forecast_closely(jobs: int, most: float) -> None:
    """The mean error of a start, relative to the mean wait, under EASY with exact durations, is ``most`` this.

    With the short queue it is what EASY differs from conservative backfilling, with the long one that of the fluid.
    """
    errors, biases = [], []
    for seed in range(5):
        demands, home = queue(seed, jobs), nodes(64)
        forecast = make(home)
        said, real = [placed(forecast, demand) for demand in demands], scheduled(Easy(mocked(home)), demands)
        wait = fmean(real)
        errors.append(fmean(abs(one - other) for one, other in zip(said, real, strict=True)) / wait)
        biases.append(fmean(said) / wait - 1)
    figures = f"{jobs} jobs: error {fmean(errors):.1%} of the mean wait, bias {fmean(biases):+.1%}"
    print(figures)
    assert fmean(errors) < most, figures
    assert abs(fmean(biases)) < 0.15, figures
