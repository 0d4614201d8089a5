"""What a forecast of home costs: to build it, and to ask for 10,000 waiting jobs and let each have its place.

Running jobs hold one node or a part of one, with ends spread over ten hours; waiting ones are of 50 shapes, half gangs
of up to a quarter of home, half slots, each with a duration of its own. Processor time, best of several rounds.

Usage: python bench/forecast.py [--jobs 10000] [--running 1000] [--rounds 3] [--seed 1]
"""

from __future__ import annotations

import argparse
import random
import time

from fluxburst.forecast import HomeForecast, HomeNode, Running
from fluxburst.model import Demand, Host, HostShare

NOW = 1_000_000.0
HOMES = ((16, 64), (128, 1), (100, 32), (1000, 64), (10_000, 128))
"""Nodes, and cores of each."""


def running(draw: random.Random, nodes: int, cores: int, count: int) -> list[Running]:
    """Jobs that fill as much of home as they can."""
    each = max(1, min(cores, nodes * cores // count))
    places = [rank for rank in range(nodes) for _ in range(cores // each)][:count]
    return [
        Running((HostShare(Host(f"n{rank}"), each),), NOW - draw.uniform(0, 3600), draw.uniform(3600, 39600))
        for rank in places
    ]


def waiting(draw: random.Random, nodes: int, cores: int, count: int) -> list[Demand]:
    shapes = [
        Demand(size := draw.randint(1, max(1, nodes // 4)), size * cores, 1, exclusive=True)
        if draw.random() < 0.5
        else Demand(0, draw.randint(1, max(1, nodes * cores // 4)), draw.choice([1, 1, min(2, cores), min(4, cores)]))
        for _ in range(50)
    ]
    return [
        Demand(
            shape.nodes,
            shape.slots,
            shape.cores_per_slot,
            exclusive=shape.exclusive,
            duration_s=draw.uniform(60, 36000),
        )
        for shape in draw.choices(shapes, k=count)
    ]


def measure(nodes: int, cores: int, args: argparse.Namespace) -> tuple[float, float, int]:
    """Seconds to build, seconds for all calls, jobs that got a start."""
    draw = random.Random(args.seed)
    home = [HomeNode(Host(f"n{rank}"), rank, cores, 0, frozenset({"home"})) for rank in range(nodes)]
    busy, line = running(draw, nodes, cores, args.running), waiting(draw, nodes, cores, args.jobs)
    began = time.process_time()
    forecast = HomeForecast(NOW, home, busy, {"batch": frozenset({"home"})}, assume_duration_s=3600.0)
    built = time.process_time()
    starts = []
    for demand in line:
        starts.append(at := forecast.start_at("batch", demand))
        forecast.take("batch", demand, at)
    ended = time.process_time()
    return built - began, ended - built, sum(at < float("inf") for at in starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--running", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"{'nodes':>6} {'cores':>6} {'build ms':>9} {'calls ms':>9} {'us a job':>9}")
    for nodes, cores in HOMES:
        rounds = [measure(nodes, cores, args) for _ in range(args.rounds)]
        assert all(started == args.jobs for _, _, started in rounds)
        build_s, calls_s = (min(times) for times in list(zip(*rounds, strict=True))[:2])
        print(f"{nodes:>6} {cores:>6} {build_s * 1e3:>9.2f} {calls_s * 1e3:>9.1f} {calls_s / args.jobs * 1e6:>9.1f}")


if __name__ == "__main__":
    main()
