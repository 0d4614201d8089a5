"""What keeps caps whole after the purchase: Flux chooses the nodes, jobs start late, nodes leave together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import pytest

from fluxburst.model import Account, Demand, Host, JobId
from fluxburst.states import NodeState
from fluxburst_mock.scheduler import Domain, Node
from tests.controller.conftest import MakeRig
from tests.rig import POOL, Rig

LIMITS = '\n[limits]\nusd_per_day = 1000\nuser."*" = { usd_per_day = 500 }\n'
LEAVES_S = 60.0 + 60.0
"""stop_timeout and release_timeout, by default."""
ALICE, BOB = 4000000001, 4000000002


@pytest.fixture
def prefer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let Flux prefer some hosts to all others."""
    in_turn = Domain.candidates

    def set_order(*hosts: str) -> None:
        def candidates(self: Domain, demand: Demand, avoid: Collection[int] = ()) -> Iterator[tuple[Node, int]]:
            found = list(in_turn(self, demand, avoid))
            return iter(sorted(found, key=lambda one: hosts.index(one[0].host) if one[0].host in hosts else len(hosts)))

        monkeypatch.setattr(Domain, "candidates", candidates)

    return set_order


def site(make_rig: MakeRig, pools: str) -> Rig:
    """A rig whose home is busy for long."""
    rig = make_rig(pools)
    rig.submit(nodes=1, run_s=1e6, duration_s=1e6, burstable=False)
    rig.run_for(1.0)
    return rig


def committed(rig: Rig) -> float:
    (line,) = [line for line in rig.ask("budget")["caps"] if (line["scope"], line["window"]) == ("all", "day")]
    return float(line["spent_usd"] + line["reserved_usd"])


def paid_until(rig: Rig, host: str) -> float:
    return rig.service.world.ledger.paid_until(Host(host))


def booked(rig: Rig, job: JobId) -> str:
    (host,) = rig.service.world.placed[job]
    return host


def test_jobs_on_each_others_whole_nodes_exchange_what_is_reserved(
    make_rig: MakeRig, prefer: Callable[..., None]
) -> None:
    rig = site(make_rig, POOL + LIMITS)
    long = rig.submit(nodes=1, duration_s=7200.0, run_s=7000.0, userid=ALICE)
    short = rig.submit(nodes=1, duration_s=600.0, run_s=500.0, userid=BOB)
    rig.run_until(lambda: len(rig.states()) == 2)
    before, hosts = committed(rig), {long: booked(rig, long), short: booked(rig, short)}
    prefer(hosts[short], hosts[long])
    rig.run_until(lambda: all(rig.flux.state(job).name == "RUN" for job in (long, short)))
    rig.run_for(1.0)
    assert rig.hosts(long) == (hosts[short],)
    assert rig.hosts(short) == (hosts[long],)
    assert committed(rig) == pytest.approx(before)
    for job, duration_s in ((long, 7200.0), (short, 600.0)):
        assert paid_until(rig, rig.hosts(job)[0]) >= rig.loop.wall() + duration_s + LEAVES_S - 1.1
    assert paid_until(rig, rig.hosts(short)[0]) < rig.loop.wall() + 7200.0, "it need not stay for so long any more"


def test_what_only_fluxs_choice_costs_is_on_nobodys_account_where_the_users_cap_has_no_room(
    make_rig: MakeRig, prefer: Callable[..., None]
) -> None:
    """Alice's jobs share a node for two hours; one of them lands on Bob's, which was to go much sooner."""
    rig = site(make_rig, POOL + "\n[limits]\nusd_per_day = 1000\nuser.4000000001 = { usd_per_day = 1.25 }\n")
    alices = [rig.submit(cores=1, duration_s=7200.0, run_s=7000.0, userid=ALICE) for _ in range(2)]
    bobs = rig.submit(cores=2, duration_s=300.0, run_s=20.0, userid=BOB)
    rig.run_until(lambda: len(rig.states()) == 2)
    assert booked(rig, alices[0]) == booked(rig, alices[1]) != booked(rig, bobs)
    kept = rig.service.world.plan.kept["burst"]
    assert kept == pytest.approx(0.5 * (7200 - 300) / 3600, rel=0.05), "one of them may have to keep Bob's node"
    prefer()  # Flux takes the nodes with the most free cores
    rig.run_until(lambda: rig.flux.state(alices[1]).name == "RUN")
    rig.run_for(1.0)
    hosts = {rig.hosts(job)[0] for job in alices}
    assert len(hosts) == 2
    for host in hosts:
        assert paid_until(rig, host) >= rig.loop.wall() + 7200.0 + LEAVES_S - 1.1
    nobodys = [one for one in rig.service.world.ledger.live(rig.loop.wall()) if one.account == Account()]
    longer_s = sum(one.until_at - one.from_at for one in nobodys)
    assert 0 < longer_s * 0.5 / 3600 <= kept, "Alice's cap leaves no room for a second node"


def test_nothing_is_bought_that_leaves_no_room_for_fluxs_choice(make_rig: MakeRig) -> None:
    """A small job of two hours beside a node that goes soon: it may keep that one, too."""
    rig = site(make_rig, POOL + "\n[limits]\nusd_per_day = 2.2\n")
    first = rig.submit(nodes=1, duration_s=1200.0, run_s=1100.0)
    rig.run_until(lambda: rig.flux.state(first).name == "RUN")
    small = rig.submit(cores=1, duration_s=7200.0, run_s=60.0)
    rig.run_until(lambda: rig.kinds(small)[-1:] == ["wait"])
    verdict = rig.service.world.jobs[small].verdict
    assert verdict is not None
    assert "[limits] usd_per_day = 2.2 leaves too little, as Flux may start it beside others' jobs" in verdict.reason
    assert "raise [limits] usd_per_day" in verdict.fix
    assert len(rig.states()) == 1
    rig.run_until(lambda: rig.flux.state(first).name == "INACTIVE")
    rig.run_until(lambda: rig.ended(small))


def test_nodes_that_leave_together_are_reserved_together(make_rig: MakeRig) -> None:
    rig = site(make_rig, POOL + '[provider.mock]\nshrink = "order"\n' + LIMITS)
    gang = rig.submit(nodes=2, duration_s=100.0, run_s=90.0)
    rig.run_until(lambda: rig.ended(gang))
    assert sorted(rig.states()) == ["burst-0", "burst-1"]
    later = rig.submit(nodes=1, duration_s=3000.0, run_s=2900.0)
    rig.run_until(lambda: rig.flux.state(later).name == "RUN")
    leaves_at = rig.loop.wall() + 3000.0 + LEAVES_S
    assert all(paid_until(rig, host) >= leaves_at - 1.0 for host in ("burst-0", "burst-1"))
    rig.run_until(lambda: rig.ended(later))
    assert len(rig.cloud.living()) == 2, "neither could go alone"


@pytest.mark.parametrize(("capped", "idles_s"), [(True, 110.0), (False, 300.0)])
def test_an_idle_node_goes_before_its_reservation_ends_where_there_is_a_cap(
    make_rig: MakeRig, capped: bool, idles_s: float
) -> None:
    """What a late start took of the reservation it cannot idle away, unless there is more money."""
    reserved_s = 600.0 + 1000.0 + 300.0 + LEAVES_S
    pools = POOL.replace('"60s"', '"300s"').replace("boot_s = 30.0", "boot_s = 590.0")
    # just what the purchase reserves
    cap = f"\n[limits]\nusd_per_day = {0.5 * reserved_s / 3600 + 0.001:.4f}\n" if capped else ""
    rig = site(make_rig, pools + cap)
    job = rig.submit(nodes=1, duration_s=1000.0, run_s=1000.0)
    rig.run_until(lambda: bool(rig.states()))
    rig.flux.set_queue("burst", started=False)
    rig.run_until(lambda: rig.queue(job) == "burst")
    rig.run_for(200.0)
    rig.flux.set_queue("burst", started=True)
    rig.run_until(lambda: rig.ended(job))
    ended_at = rig.loop.wall()
    rig.run_until(lambda: rig.states()["burst-0"] is not NodeState.JOINED)
    assert rig.loop.wall() - ended_at == pytest.approx(idles_s, abs=2.0)
    rig.run_until(rig.all_gone)


def test_under_a_cap_a_job_for_which_nothing_is_reserved_goes_home_from_the_pools_queue(make_rig: MakeRig) -> None:
    rig = site(make_rig, POOL + "\n[limits]\nusd_per_day = 1.0\n")
    running = rig.submit(nodes=1, duration_s=1200.0, run_s=1100.0)
    rig.run_until(lambda: rig.flux.state(running).name == "RUN")
    waiting = rig.submit(nodes=1, duration_s=1200.0, run_s=10.0)
    rig.run_until(lambda: len(rig.states()) == 2)
    lost = booked(rig, waiting)
    rig.flux.set_queue("burst", started=False)
    rig.run_until(lambda: rig.queue(waiting) == "burst")
    rig.cloud.interrupt(Host(lost))
    rig.run_until(lambda: rig.queue(waiting) == "batch")
    assert not rig.service.world.placed.get(waiting)


def test_a_short_job_is_paid_for_although_a_longer_one_like_it_cannot_be(make_rig: MakeRig) -> None:
    rig = site(make_rig, POOL + "\n[limits]\nusd_per_day = 1.0\n")
    first = rig.submit(nodes=1, duration_s=5000.0, run_s=4000.0)
    rig.run_until(lambda: len(rig.states()) == 1)
    long, short = (rig.submit(nodes=1, duration_s=duration_s, run_s=10.0) for duration_s in (4000.0, 60.0))
    rig.run_until(lambda: rig.ended(short))
    assert not rig.ended(first)
    verdict = rig.service.world.jobs[long].verdict
    assert verdict is not None
    assert "leaves too little" in verdict.reason


def test_what_no_cap_has_room_for_is_left_alone_until_there_is_room(make_rig: MakeRig) -> None:
    """Its providers are not asked about it again and again, and nothing is told twice."""
    rig = site(make_rig, POOL + '\n[limits]\nusd_per_day = 100\nuser."*" = { usd_per_day = 0.9 }\n')
    waiting = [rig.submit(nodes=1, duration_s=5000.0, run_s=100.0, userid=ALICE) for _ in range(4)]
    rig.run_until(lambda: len(rig.states()) == 1)
    rig.run_for(1.0)
    asked = len(rig.calls("offers"))
    others = [rig.submit(nodes=1, duration_s=100.0, run_s=50.0, userid=BOB) for _ in range(2)]
    rig.run_until(lambda: rig.ended(*others))
    told = [rig.kinds(job) for job in waiting[1:]]
    assert told == [["wait"]] * 3
    assert len(rig.calls("offers")) - asked <= 2, "of Bob's jobs, and not of Alice's"
    rig.run_until(lambda: rig.ended(*waiting), timeout_s=3 * 86400.0)


def test_a_job_that_was_set_aside_can_be_cancelled_and_changed(make_rig: MakeRig) -> None:
    rig = site(make_rig, POOL + '\n[limits]\nuser."*" = { usd_per_day = 0.9 }\n')
    _, second, third = (rig.submit(nodes=1, duration_s=5000.0, run_s=4500.0, userid=ALICE) for _ in range(3))
    rig.run_until(lambda: len(rig.states()) == 1)
    rig.run_for(1.0)
    rig.flux.cancel(second)
    rig.run_for(1.0)
    assert third in rig.service.world.plan.verdicts
    assert second not in rig.service.world.plan.verdicts
    rig.flux.set_urgency(third, 0)
    rig.run_for(1.0)
    held = rig.service.world.jobs[third].verdict
    assert held is not None
    assert "held" in held.reason
    rig.flux.set_urgency(third, 16)
    rig.run_for(1.0)
    again = rig.service.world.jobs[third].verdict
    assert again is not None
    assert "leaves too little" in again.reason


def test_a_warm_node_beyond_its_reservation_is_not_drained_under_the_job_that_it_runs(make_rig: MakeRig) -> None:
    """It was overdue while it idled, and had to stay; what it does since is no idling."""
    rig = site(make_rig, POOL.replace("cores = 2", "cores = 2\nkeep_warm = 1") + LIMITS)
    rig.run_until(lambda: "burst-0" in rig.states())
    rig.run_until(lambda: paid_until(rig, "burst-0") - LEAVES_S < rig.loop.wall(), timeout_s=4 * 3600.0)
    rig.run_for(600.0)
    job = rig.submit(nodes=1, duration_s=3000.0, run_s=2900.0)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    other = rig.submit(nodes=1, duration_s=600.0, run_s=500.0)
    rig.run_until(lambda: rig.flux.state(other).name == "RUN")
    rig.run_for(60.0)
    assert {rig.states()[host] for host in (*rig.hosts(job), *rig.hosts(other))} == {NodeState.JOINED}


def test_what_was_kept_back_is_free_again_as_soon_as_the_jobs_have_started(make_rig: MakeRig) -> None:
    rig = site(make_rig, POOL + "\n[limits]\nusd_per_day = 1.5\n")
    long = rig.submit(cores=1, duration_s=7200.0, run_s=7000.0)
    rig.run_until(lambda: len(rig.states()) == 1)
    short = rig.submit(nodes=1, duration_s=300.0, run_s=20.0)
    rig.run_for(10.0)
    verdict = rig.service.world.jobs[short].verdict
    assert verdict is not None
    assert "as Flux may start it beside others' jobs" in verdict.reason
    rig.run_until(lambda: rig.flux.state(long).name == "RUN")
    rig.run_for(5.0)
    assert len(rig.states()) == 2
