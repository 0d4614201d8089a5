"""Pools whose orders take one block of hosts each, from its first host on."""

from __future__ import annotations

import pytest

from fluxburst.errors import ConfigError, NoCapacity
from tests.controller.conftest import MakeRig
from tests.rig import Rig

POOL = """
[pool.burst]
provider = "mock"
hosts = "burst-0-[0-3],burst-1-[0-3],burst-2-[0-1]"
cores = 2
idle_timeout = "60s"
[pool.burst.options]
boot_s = 30.0
usd_per_node_hour = 0.5
[provider.mock]
in_blocks = true
shrink = "tail"
"""


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig(POOL)


def ordered(rig: Rig) -> list[str]:
    """The hosts of each order."""
    orders: dict[str, list[str]] = {}
    for machine in rig.cloud.machines.values():
        orders.setdefault(machine.request_id, []).append(machine.host)
    return [",".join(hosts) for hosts in orders.values()]


def test_each_gang_has_a_block_of_its_own_the_smallest_that_it_fits_in(rig: Rig) -> None:
    jobs = [rig.submit(nodes=nodes, run_s=50) for nodes in (2, 3, 3)]
    rig.run_until(lambda: all(map(rig.ended, jobs)))
    assert sorted(ordered(rig)) == [
        "burst-0-0,burst-0-1,burst-0-2",
        "burst-1-0,burst-1-1,burst-1-2",
        "burst-2-0,burst-2-1",
    ]
    rig.run_until(rig.all_gone)


def test_gangs_that_are_alike_have_a_block_each_too(rig: Rig) -> None:
    jobs = [rig.submit(nodes=2, run_s=50) for _ in range(3)]
    rig.run_until(lambda: all(map(rig.ended, jobs)))
    assert sorted(ordered(rig)) == ["burst-0-0,burst-0-1", "burst-1-0,burst-1-1", "burst-2-0,burst-2-1"]
    assert len(rig.calls("launch")) == 3, "none was refused"


def test_jobs_of_one_node_share_a_block_and_those_beyond_it_the_next(rig: Rig) -> None:
    at_home = 1
    jobs = [rig.submit(slots=2, nodes=1, run_s=50) for _ in range(4 + 2 + at_home)]
    rig.run_until(lambda: all(map(rig.ended, jobs)))
    assert sorted(ordered(rig)) == ["burst-0-0,burst-0-1,burst-0-2,burst-0-3", "burst-2-0,burst-2-1"]
    rig.run_until(rig.all_gone)


def test_after_a_failure_each_node_is_a_block_of_its_own(rig: Rig) -> None:
    rig.cloud.fail("launch", NoCapacity("sold out"))
    at_home = 1
    jobs = [rig.submit(slots=2, nodes=1, run_s=50) for _ in range(3 + at_home)]
    rig.run_until(lambda: all(map(rig.ended, jobs)))
    assert sorted(ordered(rig)) == ["burst-0-0", "burst-1-0", "burst-2-0"]


def test_who_finds_no_block_waits_for_what_comes_free_and_buys_the_rest_as_another_block(rig: Rig) -> None:
    first = [rig.submit(nodes=3, run_s=run_s) for run_s in (50, 400)]
    rig.run_until(lambda: all(rig.flux.state(job).name == "RUN" for job in first))
    waiting = rig.submit(nodes=4, run_s=50)
    rig.run_for(10)
    why = rig.ask("explain", id=waiting)["verdict"]
    assert "no large enough block of its 10 hosts is free" in why
    rig.run_until(lambda: rig.ended(waiting))
    assert ordered(rig)[2:] == ["burst-2-0"]
    assert set(rig.hosts(waiting)) == {*rig.hosts(first[0]), "burst-2-0"}


def test_a_block_of_which_a_node_is_left_is_not_ordered_from(rig: Rig) -> None:
    long = rig.submit(nodes=3, run_s=4000)
    rig.run_until(lambda: rig.flux.state(long).name == "RUN")
    job = rig.submit(nodes=3, run_s=50)
    rig.run_until(lambda: rig.ended(job))
    assert ordered(rig) == ["burst-0-0,burst-0-1,burst-0-2", "burst-1-0,burst-1-1,burst-1-2"]


def test_a_job_larger_than_any_block_is_told_so(rig: Rig) -> None:
    job = rig.submit(nodes=5)
    rig.run_for(10)
    assert "needs 5 nodes, an order of this pool has 4 at the most" in rig.ask("explain", id=job)["verdict"]
    assert rig.calls("launch") == []


def test_warm_nodes_are_bought_block_by_block(rig: Rig) -> None:
    rig.ask("request", pool="burst", nodes=7, duration="1h")
    rig.run_until(lambda: len(rig.states()) == 7)
    rig.run_for(60)
    assert sorted(ordered(rig))[0] == "burst-0-0,burst-0-1,burst-0-2,burst-0-3"
    assert sum(len(hosts.split(",")) for hosts in ordered(rig)) == 7


def test_hosts_in_no_block_are_an_error_that_names_the_pool(make_rig: MakeRig) -> None:
    with pytest.raises(ConfigError, match=r"\[pool.burst\] hosts: burst-0-2: burst-0-1 is missing before it"):
        make_rig(POOL.replace("burst-0-[0-3]", "burst-0-[0,2-3]"))
