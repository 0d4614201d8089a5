"""What a plan costs: 10,000 and 1,000,000 pending jobs, a cycle in which ten of them changed, and Ray's beside it.

Jobs of 500 shapes (most are small and share nodes, some are gangs) over 400 offers in 10 pools: the first plan, and one
after its orders were placed in which five jobs have gone and five are new. Only ``Packer.plan`` is timed, best and
median of several rounds with a planner made anew for each. Every job has to have a place, and the places are counted up
a second time, by other means, outside of the timing. The garbage collector is off while the clock runs, as timeit does
it; a second column has it on, as in a service.

Ray's scheduler (``ray.autoscaler.v2``) gets the same demands, when bench/requirements.txt is installed. It knows no
durations, prices or offers, its gangs may be spread over node types and share nodes, so its question is the easier one.
It grows with the square of the jobs, so smaller sizes come first, and ``--limit-s`` ends what takes longer.

Usage: python bench/plan.py [--jobs 10000 1000000] [--rounds 5] [--ray 1000 2000 10000] [--limit-s 300] [--seed 3]
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fluxburst.model import Account, Demand, Host, JobId, Offer, Refusal, VerdictKind
from fluxburst.moment import Cap, FleetNode, Moment, Plan, PoolState, Quote, Request, Shape
from fluxburst.plan import Packer

NOW = 1_800_000_000.0
JOIN_S = 120.0
CORES = (8, 16, 16, 32, 32, 48, 64, 64, 96, 128)
PROVIDERS = ("alpha", "beta", "gamma", "delta")
TYPES = ("standard", "highcpu", "compute", "amd", "arm")
ZONES = ("a", "b", "c", "d")
SHAPES = 500
CHANGED = 5


class Listed:
    """A market that has every provider's offers at hand, the cheapest first."""

    def __init__(self, quotes: Mapping[str, Sequence[Quote | Refusal]]) -> None:
        self._quotes = quotes

    def quotes(self, provider: str, demand: Demand, *, old: bool = False) -> Sequence[Quote | Refusal]:
        return self._quotes[provider]


class Unlimited:
    """A draft without caps."""

    def allowed(self, account: Account, pool: str, usd_per_node: float | None) -> tuple[int, Cap | None]:
        return 1_000_000_000, None

    def take(self, account: Account, pool: str, nodes: int, usd_per_node: float | None) -> None:
        pass

    def extend(self, account: Account, pool: str, usd: float | None) -> Cap | None:
        return None

    def left_usd(self, account: Account, pool: str) -> float:
        return float("inf")

    def capped(self, pool: str) -> bool:
        return False

    def keep(self, pool: str, usd: float) -> None:
        pass

    def mark(self) -> int:
        return 0

    def rollback(self, mark: int) -> None:
        pass


@dataclass(frozen=True)
class Case:
    requests: dict[JobId, Request]
    pools: dict[str, PoolState]
    market: Listed
    newcomers: list[Request]
    """Jobs of the same shapes that are submitted later."""

    def moment(self) -> Moment:
        return Moment(NOW, self.requests, self.pools, self.market, Unlimited())


def small_job(rng: random.Random, pools: Sequence[str]) -> Shape:
    cores = rng.choice((1, 1, 1, 2, 2, 3, 4, 4, 6, 8))
    on_one_node = rng.random() < 0.5
    demand = Demand(
        nodes=int(on_one_node), slots=cores if on_one_node else 1, cores_per_slot=1 if on_one_node else cores,
        duration_s=60.0 * rng.randint(5, 24 * 60), spot=False if rng.random() < 0.2 else None,
    )  # fmt: skip
    return Shape(demand, tuple(pools) if rng.random() < 0.7 else tuple(sorted(rng.sample(pools, 6))))


def gang(rng: random.Random, pools: Sequence[str]) -> Shape:
    nodes = rng.choice((2, 2, 4, 4, 8, 16))
    demand = Demand(
        nodes, slots=nodes, cores_per_slot=rng.choice((8, 12, 16, 32)), exclusive=rng.random() < 0.5,
        duration_s=60.0 * rng.randint(10, 24 * 60), spot=False if rng.random() < 0.5 else None,
    )  # fmt: skip
    return Shape(demand, tuple(pools))


def whole_node(rng: random.Random, pools: Sequence[str]) -> Shape:
    cores = rng.choice(sorted(set(CORES)))
    return Shape(Demand(1, 1, cores, exclusive=True, duration_s=60.0 * rng.randint(10, 24 * 60)), tuple(pools))


@dataclass(frozen=True)
class Mix:
    """What the jobs of a queue are: kinds of shapes, each with its share of the jobs and of the shapes."""

    name: str
    kinds: tuple[tuple[Callable[[random.Random, Sequence[str]], Shape], float, float], ...]


QUEUE = Mix("5% gangs", ((small_job, 0.95, 0.8), (gang, 0.05, 0.2)))
LONG_QUEUE = Mix("0.5% gangs", ((small_job, 0.995, 0.8), (gang, 0.005, 0.2)))
SMALL = Mix("small", ((small_job, 1.0, 1.0),))
WHOLE = Mix("whole nodes", ((whole_node, 1.0, 1.0),))


def make_case(jobs: int, hosts: int, mix: Mix, seed: int) -> Case:
    """Every shape has a job where there are enough jobs; they come mixed, as in a queue.

    ``hosts`` is how many each pool declares: enough for every job to have a place.
    """
    rng = random.Random(seed)
    names = [f"pool{index}" for index in range(len(CORES))]
    pools, quotes = {}, dict[str, list[Quote]]()
    for index, (name, cores) in enumerate(zip(names, CORES, strict=True)):
        provider = PROVIDERS[index % len(PROVIDERS)]
        declared = {Host(f"{name}-{number}"): 1 + index * hosts + number for number in range(hosts)}
        pools[name] = PoolState(
            name, provider, cores, 0, frozenset({name}), declared, free=tuple(declared), boot_s=600.0, tail_s=300.0
        )
        quotes.setdefault(provider, []).extend(offers(rng, name, provider, cores, hosts))
    for listed in quotes.values():
        listed.sort(key=lambda quote: quote.offer.usd_per_node_hour or 0.0)

    by_kind = [distinct(kind, round(SHAPES * part), rng, names) for kind, _, part in mix.kinds]
    weights = [share for _, share, _ in mix.kinds]
    shapes = [shape for kind in by_kind for shape in kind]
    rng.shuffle(shapes)
    del shapes[jobs:]
    shapes += [rng.choice(kind) for kind in rng.choices(by_kind, weights, k=jobs + CHANGED - len(shapes))]
    requests = [
        Request(JobId(number), shape, (-16, number), queue="batch") for number, shape in enumerate(shapes, start=1)
    ]
    by_id = {request.job_id: request for request in requests[:jobs]}
    return Case(by_id, pools, Listed(quotes), requests[jobs:])


def distinct(
    kind: Callable[[random.Random, Sequence[str]], Shape], count: int, rng: random.Random, pools: Sequence[str]
) -> list[Shape]:
    found: dict[Shape, None] = {}
    while len(found) < count:
        found[kind(rng, pools)] = None
    return list(found)


def offers(rng: random.Random, pool: str, provider: str, cores: int, hosts: int) -> Iterator[Quote]:
    """40 of one pool: five types in four zones, on demand and spot; of two in five only some nodes are left."""
    for instance_type in TYPES:
        for zone in ZONES:
            for spot in (False, True):
                offer = Offer(
                    pool, provider, instance_type, cores, spot=spot, zone=zone, region="r", join_s=JOIN_S,
                    usd_per_node_hour=round(cores * rng.uniform(0.03, 0.06) * (0.3 if spot else 1.0), 4),
                    nodes_left=rng.randint(1, hosts // 4) if rng.random() < 0.4 else None,
                )  # fmt: skip
                yield Quote(offer, JOIN_S, 1.5 * JOIN_S, samples=20)


def check(moment: Moment, plan: Plan) -> int:
    """That every job has its place, and no host, gang or offer is overdrawn; how many nodes are bought."""
    assert plan.verdicts.keys() == moment.requests.keys()
    assert not plan.asks
    assert not plan.undecided
    pool_of = {host: pool for pool in moment.pools.values() for host in pool.declared}
    here = {node.host: node for pool in moment.pools.values() for node in pool.fleet}
    offer_of: dict[Host, Offer] = {}
    for purchase in plan.purchases:
        for host in purchase.hosts:
            assert host not in offer_of, f"{host} is bought twice"
            assert host not in here, f"{host} is there and bought"
            assert pool_of[host].name == purchase.offer.pool
            offer_of[host] = purchase.offer
    for offer, count in Counter(offer_of.values()).items():
        assert offer.nodes_left is None or count <= offer.nodes_left, f"{count} of {offer}"

    used: Counter[Host] = Counter()
    jobs_on: Counter[Host] = Counter()
    alone: set[Host] = set()
    for job_id, request in moment.requests.items():
        verdict, demand = plan.verdicts[job_id], request.shape.demand
        assert verdict.kind in (VerdictKind.BURST, VerdictKind.COMING), f"job {job_id}: {verdict}"
        assert verdict.pool in request.shape.pools
        assert len(set(verdict.hosts)) == len(verdict.hosts) == max(demand.nodes, 1), f"job {job_id}: {verdict}"
        for host in verdict.hosts:
            assert pool_of[host].name == verdict.pool
            node = here[host] if host in here else offer_of[host]
            assert demand.spot in (None, node.spot), f"job {job_id}: {node}"
            used[host] += (demand.slots_per_node() or demand.slots) * demand.cores_per_slot
            jobs_on[host] += 1
            if demand.exclusive:
                alone.add(host)
    for host, cores in used.items():
        assert cores <= (here[host].cores if host in here else pool_of[host].cores), f"{host} is overbooked"
    assert all(jobs_on[host] == 1 for host in alone), "an exclusive node is shared"
    assert used.keys() >= offer_of.keys(), "a node is bought for nobody"
    return len(offer_of)


def after_orders(case: Case, plan: Plan) -> Moment:
    """The moment after: what was bought is on its way, and every job is booked where its verdict says."""
    bought: dict[str, dict[Host, FleetNode]] = {name: {} for name in case.pools}
    for purchase in plan.purchases:
        offer = purchase.offer
        for host, until_at in zip(purchase.hosts, purchase.until_at, strict=True):
            bought[offer.pool][host] = FleetNode(
                host, offer.cores, offer.gpus, whole=True, up=False, at=NOW + JOIN_S, paid_until_at=until_at,
                usd_per_node_hour=offer.usd_per_node_hour, spot=offer.spot,
            )  # fmt: skip
    pools = {
        name: dataclasses.replace(
            pool,
            free=tuple(host for host in pool.free if host not in bought[name]),
            fleet=tuple(bought[name].values()),
        )
        for name, pool in case.pools.items()
    }
    requests = {
        job_id: dataclasses.replace(request, booked=(plan.verdicts[job_id].pool, plan.verdicts[job_id].hosts))
        for job_id, request in case.requests.items()
    }
    changed_pools = [name for name in pools if bought[name]]
    return Moment(
        NOW, requests, pools, case.market, Unlimited(), changed_jobs=plan.changed, changed_pools=changed_pools
    )


def after_changes(case: Case, before: Moment) -> Moment:
    """The moment after that: the five oldest jobs are gone, five are new."""
    gone = list(before.requests)[:CHANGED]
    requests = dict(before.requests)
    for job_id in gone:
        del requests[job_id]
    requests.update({request.job_id: request for request in case.newcomers})
    changed = [*gone, *(request.job_id for request in case.newcomers)]
    return dataclasses.replace(before, requests=requests, changed_jobs=changed, changed_pools=())


@contextmanager
def collector(on: bool) -> Iterator[None]:
    """The garbage collector on or off, with nothing left over from before."""
    gc.collect()
    if not on:
        gc.disable()
    try:
        yield
    finally:
        gc.enable()


def timed(work: Callable[[], Plan]) -> tuple[float, Plan]:
    begun = time.perf_counter()
    plan = work()
    return time.perf_counter() - begun, plan


def measure(case: Case, rounds: int, gc_on: bool) -> tuple[list[float], list[float], int]:
    """Seconds of the first plan and of the one in which ten jobs changed, by round; and the nodes bought."""
    firsts, seconds = [], []
    nodes = 0
    for number in range(rounds):
        packer = Packer()
        with collector(gc_on):
            first_s, first = timed(lambda: packer.plan(case.moment()))  # noqa: B023 - called at once
        verify = number == 0  # at once, as the planner goes on with its verdicts
        nodes = check(case.moment(), first) if verify else nodes
        ordered = after_orders(case, first)
        settled = packer.plan(ordered)
        assert not verify or check(ordered, settled) == 0, "what has been bought is enough"
        changed = after_changes(case, ordered)
        with collector(gc_on):
            second_s, second = timed(lambda: packer.plan(changed))  # noqa: B023 - called at once
        if verify:
            check(changed, second)
        firsts.append(first_s)
        seconds.append(second_s)
    return firsts, seconds, nodes


def report(jobs: int, rounds: int, seed: int) -> None:
    case = (
        make_case(jobs, jobs // 50, LONG_QUEUE, seed)
        if jobs > 100_000
        else make_case(jobs, hosts_for(jobs), QUEUE, seed)
    )
    shapes = len({request.shape for request in case.requests.values()})
    firsts, seconds, nodes = measure(case, rounds, gc_on=False)
    firsts_on, seconds_on, _ = measure(case, max(1, rounds // 2), gc_on=True)
    ratio = statistics.median(seconds) / statistics.median(firsts)
    print(
        f"{jobs:,} jobs of {shapes} shapes, 400 offers in {len(case.pools)} pools: {nodes:,} nodes bought, all placed"
    )
    print("  seconds             best    median   median, collector on")
    for name, off, on in (("all jobs new", firsts, firsts_on), ("ten jobs changed", seconds, seconds_on)):
        print(f"  {name:18} {min(off):7.4f}  {statistics.median(off):7.4f}  {statistics.median(on):7.4f}")
    print(f"  ten jobs changed / all new: {ratio:.4f}")


def hosts_for(jobs: int) -> int:
    return max(500, jobs // 5)


class RaySide:
    """Ray's scheduler on the same demands. Made only where ray is installed."""

    def __init__(self) -> None:
        from ray.autoscaler.v2 import scheduler
        from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
        from ray.autoscaler.v2.utils import ResourceRequestUtil
        from ray.core.generated import autoscaler_pb2

        self._scheduler = scheduler
        self._node_type = NodeTypeConfig
        self._requests = ResourceRequestUtil
        self._messages = autoscaler_pb2

    def request(self, case: Case) -> Any:
        """Pools are node types; a gang is a placement group with STRICT_SPREAD, each bundle on a node of its own."""
        types = {
            name: self._node_type(
                name=name, min_worker_nodes=0, max_worker_nodes=len(pool.free), resources={"CPU": float(pool.cores)}
            )
            for name, pool in case.pools.items()
        }
        single: Counter[int] = Counter()
        gangs = []
        spread = self._requests.PlacementConstraintType.ANTI_AFFINITY
        for job_id, request in case.requests.items():
            demand = request.shape.demand
            cores = (demand.slots_per_node() or demand.slots) * demand.cores_per_slot
            if demand.nodes > 1:
                label = (spread, f"_PG_{job_id}", "")
                bundle = self._requests.make({"CPU": float(cores)}, [label])
                gangs.append(self._messages.GangResourceRequest(requests=[bundle] * demand.nodes))
            else:
                single[cores] += 1
        return self._scheduler.SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            resource_requests=[
                self._messages.ResourceRequestByCount(request=self._requests.make({"CPU": float(cores)}), count=count)
                for cores, count in single.items()
            ],
            gang_resource_requests=gangs,
        )

    def schedule(self, request: Any, limit_s: float) -> tuple[float, int, int] | None:
        """Seconds, nodes launched, and demands without a place; None where it was not done within the limit."""

        def stop(signum: int, frame: object) -> None:
            del signum, frame
            raise TimeoutError

        previous = signal.signal(signal.SIGALRM, stop)
        gc.collect()
        begun = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            reply = self._scheduler.ResourceDemandScheduler().schedule(request)
            took_s = time.perf_counter() - begun
        except TimeoutError:
            return None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        left_out = len(reply.infeasible_resource_requests) + len(reply.infeasible_gang_resource_requests)
        return took_s, sum(launch.count for launch in reply.to_launch), left_out


def compare(sizes: Sequence[int], limit_s: float, seed: int) -> None:
    try:
        ray = RaySide()
    except ImportError:
        print("ray is not installed (pip install -r bench/requirements.txt): no comparison with its scheduler")
        return
    print("beside Ray's ResourceDemandScheduler, collector on for both; median of three of ours, one of Ray's")
    print(f"  {'jobs':>7} {'':11} {'ours, s':>9} {'nodes':>7} {'Ray, s':>11} {'nodes':>7} {'ratio':>9}   Ray left out")
    for mix in (SMALL, WHOLE, QUEUE):
        for jobs in sizes:
            case = make_case(jobs, hosts_for(jobs), mix, seed)
            firsts, _, nodes = measure(case, 3, gc_on=True)
            ours_s = statistics.median(firsts)
            line = f"  {jobs:7,} {mix.name:11} {ours_s:9.4f} {nodes:7,}"
            found = ray.schedule(ray.request(case), limit_s)
            if found is None:
                print(f"{line}   > {limit_s:7.1f} {'':7}   > {limit_s / ours_s:5.0f}   not known", flush=True)
            else:
                took_s, launched, left_out = found
                print(f"{line} {took_s:11.2f} {launched:7,} {took_s / ours_s:9.0f}   {left_out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", type=int, nargs="*", default=[1_000, 2_000, 10_000], metavar="JOBS")
    parser.add_argument("--limit-s", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    for jobs in options.jobs:
        report(jobs, options.rounds, options.seed)
    if options.ray:
        compare(options.ray, options.limit_s, options.seed)


if __name__ == "__main__":
    main()
