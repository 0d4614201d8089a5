"""The path of a burst, in virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

import fluxburst_mock.instance
from fluxburst.errors import InvalidOrder, NoCapacity, ProviderUnavailable, RequestError
from fluxburst.flux.protocol import Caller
from fluxburst.jobid import f58
from fluxburst.model import Demand, Host, NodeRecord, Offer, VerdictKind
from fluxburst.provider import hookimpl
from fluxburst.states import NodeState
from tests.controller.conftest import MakeRig
from tests.rig import POOL, Rig

SCHEDULERS = pytest.mark.parametrize("scheduler", ["fifo", "easy"])


@SCHEDULERS
def test_a_job_larger_than_home_is_staged_served_by_new_nodes_and_these_are_given_back(
    make_rig: MakeRig, scheduler: str
) -> None:
    rig = make_rig(scheduler=scheduler)
    job = rig.submit(nodes=2)
    rig.run_until(lambda: rig.ended(job))
    assert rig.hosts(job) == (Host("burst-0"), Host("burst-1"))
    rig.run_until(rig.all_gone)
    assert rig.bought() == ["burst-0", "burst-1"]
    assert rig.flux.online() == {"lead0"}


def test_the_memo_tells_pool_state_and_reason(rig: Rig) -> None:
    job = rig.submit(nodes=2)
    rig.run_for(5)
    assert rig.memo(job) == {"pool": "burst", "state": "coming", "reason": "nodes on their way serve it"}
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.run_for(1)
    assert rig.memo(job)["state"] == "running"


def test_a_job_that_starts_at_home_buys_nothing(rig: Rig) -> None:
    job = rig.submit()
    rig.run_until(lambda: rig.ended(job))
    rig.run_for(100)
    assert rig.hosts(job) == (Host("lead0"),)
    assert rig.calls("launch") == []


def test_a_job_that_home_frees_a_place_for_in_time_starts_there_and_its_nodes_are_given_back(rig: Rig) -> None:
    first = rig.submit(slots=2, run_s=20)
    rig.run_for(1)
    second = rig.submit(run_s=5)
    rig.run_until(lambda: rig.ended(first, second))
    assert rig.hosts(second) == (Host("lead0"),)
    assert len(rig.calls("launch")) == 1
    rig.run_until(rig.all_gone)


def test_ordinary_jobs_never_run_on_burst_nodes(rig: Rig) -> None:
    burst = rig.submit(nodes=2, run_s=1)
    rig.run_until(lambda: rig.ended(burst))
    jobs = [rig.submit(burstable=False, run_s=5) for _ in range(10)]
    rig.run_until(lambda: rig.ended(*jobs))
    assert {rig.hosts(job) for job in jobs} == {(Host("lead0"),)}


def test_open_mode_keeps_ordinary_jobs_home_and_lets_burstable_ones_run_where_nodes_are_up(make_rig: MakeRig) -> None:
    rig = make_rig(mode="open")
    burst = rig.submit(nodes=3, run_s=30)
    rig.run_until(lambda: rig.flux.state(burst).name == "RUN")
    jobs = [rig.submit(burstable=False, run_s=5) for _ in range(4)]
    rig.run_until(lambda: rig.ended(burst, *jobs))
    assert {rig.hosts(job) for job in jobs} == {(Host("lead0"),)}
    rig.run_until(rig.all_gone)


def test_a_gang_never_straddles_home_and_pool(rig: Rig) -> None:
    jobs = [rig.submit(nodes=2, run_s=5) for _ in range(6)]
    rig.run_until(lambda: rig.ended(*jobs))
    for job in jobs:
        assert all(host.startswith("burst-") for host in rig.hosts(job))


def test_small_jobs_share_nodes_and_one_order(rig: Rig) -> None:
    rig.submit(slots=2, burstable=False, run_s=300)
    rig.run_for(1)
    jobs = [rig.submit(run_s=50) for _ in range(4)]
    rig.run_until(lambda: rig.ended(*jobs))
    assert rig.bought() == ["burst-0", "burst-1"]
    assert len(rig.calls("launch")) == 1


def test_jobs_within_one_batching_window_are_planned_at_once(rig: Rig) -> None:
    for _ in range(3):
        rig.submit(cores=3, run_s=5, burstable=True)
        rig.run_for(0.05)
    rig.submit(nodes=4, run_s=5)
    rig.run_for(0.09)
    assert rig.calls("launch") == []


def test_held_jobs_and_jobs_with_unmet_dependencies_do_not_burst(rig: Rig) -> None:
    first = rig.submit(slots=2, run_s=100, burstable=False)
    held = rig.submit(nodes=2, urgency=0)
    waiting = rig.submit(nodes=2, dependencies=[{"scheme": "afterany", "value": str(first)}])
    rig.run_for(60)
    assert rig.calls("launch") == []
    assert "held" in rig.ask("explain", id=held)["verdict"]
    assert "dependencies" in rig.ask("explain", id=waiting)["verdict"]
    rig.flux.set_urgency(held, 16)
    rig.run_until(lambda: rig.ended(held, waiting))


def test_a_job_waits_out_its_own_burst_wait(rig: Rig) -> None:
    job = rig.submit(nodes=2, burst={"wait": "10m"})
    rig.run_for(599)
    assert rig.calls("launch") == []
    assert "burst.wait" in rig.ask("explain", id=job)["verdict"]
    rig.run_until(lambda: rig.ended(job))


def test_each_impossible_job_is_explained_and_disturbs_no_other(rig: Rig) -> None:
    reasons = {
        rig.submit(nodes=9): "needs 9 nodes, the pool declares 4",
        rig.submit(nodes=2, burst={"max_usd": "a lot"}): "burst.max_usd='a lot'",
        rig.submit(nodes=2, burst={"pool": "nosuch"}): "burst.pool=nosuch",
        rig.submit(nodes=2, burst={"colour": "red"}): "burst.colour",
        rig.submit(nodes=2, constraints={"properties": ["nosuch"]}): "constraints",
    }
    good = rig.submit(nodes=2)
    rig.run_until(lambda: rig.ended(good))
    rig.run_for(3600)
    for job, reason in reasons.items():
        answer = rig.ask("explain", id=job)
        assert answer["verdict"].startswith("refused"), answer
        assert reason in str(answer), answer
        assert [entry["kind"] for entry in answer["history"]].count("refused") == 1
        assert rig.memo(job)["state"] == "refused"
    assert len(rig.calls("launch")) == 1


def test_nothing_happens_in_the_steady_state(rig: Rig) -> None:
    rig.run_for(10)
    calls = len(rig.cloud.calls)
    rig.run_for(86400)
    assert len(rig.cloud.calls) == calls


def test_a_lost_gang_sends_the_job_back_and_is_bought_again(rig: Rig) -> None:
    # the pool's queue is kept busy, so that the gang has been moved but not started when a node goes
    first = rig.submit(nodes=4, run_s=500)
    rig.run_until(lambda: rig.flux.state(first).name == "RUN")
    second = rig.submit(nodes=4, run_s=5)
    rig.run_for(10)
    assert rig.service.world.jobs[second].verdict.kind is VerdictKind.WAIT
    rig.cloud.interrupt(Host("burst-3"))
    rig.run_until(lambda: rig.ended(first, second))
    assert rig.hosts(second) == tuple(Host(f"burst-{i}") for i in range(4))


def test_a_moved_job_goes_back_to_where_it_was_when_its_nodes_vanish(rig: Rig) -> None:
    rig.run_for(1)
    rig.flux.set_queue("burst", started=False)
    job = rig.submit(nodes=2, run_s=5)
    rig.run_until(lambda: rig.queue(job) == "burst")
    rig.cloud.interrupt(Host("burst-0"))
    rig.run_until(lambda: rig.queue(job) == "staging")
    rig.flux.set_queue("burst", started=True)
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(rig.all_gone)


def test_a_lost_node_ends_as_lost_and_its_host_name_is_used_again(rig: Rig) -> None:
    job = rig.submit(nodes=2, run_s=1000)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.cloud.interrupt(Host("burst-0"))
    rig.run_until(lambda: "burst-0" not in rig.service.world.nodes)
    rig.run_until(lambda: rig.ended(job))
    gone = [node for node in rig.ask("nodes", all=True)["nodes"] if node["state"] == "gone"]
    assert [(node["host"], node["reason"].split(":")[0]) for node in gone] == [("burst-0", "lost")]
    again = rig.submit(nodes=2)
    rig.run_until(lambda: rig.ended(again))
    assert rig.bought().count(Host("burst-0")) == 2


def test_a_lost_job_is_left_alone_by_default_and_resubmitted_where_the_site_wants_it(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + '[policy]\non_node_loss = "resubmit"\n')
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.run_for(1)
    assert rig.memo(job)["reason"].endswith("submitted again if one is lost")
    rig.cloud.interrupt(Host("burst-1"))
    told = rig.store.history
    rig.run_until(lambda: any(entry.kind == "resubmitted" for entry in told(f"job/{job}")))
    again = told(f"job/{job}")[-1].data["new"]
    rig.run_until(lambda: rig.ended(job, again))
    assert rig.memo(job)["state"] == "lost"
    assert rig.memo(job)["reason"] == "burst-1 was lost; it is submitted again"
    assert rig.memo(again)["resubmit_of"] == f58(job)
    assert rig.flux.jobspec(again)["attributes"]["user"]["fluxburst"] == {"resubmit_of": job, "attempt": 1}
    rig.run_until(rig.all_gone)


def test_a_host_that_a_lost_job_still_holds_is_not_bought_again_before_it_is_free(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tasks that trap SIGTERM keep their job, and its whole allocation, until they end
    monkeypatch.setattr(fluxburst_mock.instance, "END_S", 60.0)
    rig = make_rig(POOL + '[policy]\non_node_loss = "resubmit"\n')
    job = rig.submit(nodes=2, run_s=1000)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.cloud.interrupt(Host("burst-1"))
    rig.run_until(lambda: len(rig.calls("launch")) == 2)
    rig.run_for(20)
    assert rig.bought() == ["burst-0", "burst-1", "burst-2", "burst-3"]


def test_a_node_that_never_boots_times_out_and_the_job_is_served_by_another(make_rig: MakeRig) -> None:
    rig = make_rig(POOL.replace("idle_timeout", 'join_timeout = "5m"\nidle_timeout'))
    rig.cloud.never_boot.add(Host("burst-0"))
    job = rig.submit(nodes=2)
    rig.run_for(299)
    assert rig.states()["burst-0"] is NodeState.BOOTING
    rig.run_for(10)
    rig.cloud.never_boot.clear()
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(rig.all_gone)


def test_a_node_that_dies_in_its_boot_is_noticed_long_before_the_timeout(rig: Rig) -> None:
    rig.cloud.die_in_boot.update(map(Host, ("burst-0", "burst-1")))
    job = rig.submit(nodes=2)
    rig.run_for(60)
    assert "left alone after a failure: boot failed: died in its boot" in str(rig.ask("explain", id=job))
    rig.cloud.die_in_boot.clear()
    rig.run_until(lambda: rig.ended(job), 300)


def test_a_node_whose_boot_fails_beside_others_that_came_up_is_replaced_at_once(rig: Rig) -> None:
    rig.cloud.die_in_boot.add(Host("burst-0"))
    rig.cloud.boot_s[Host("burst-0")] = 35.0
    job = rig.submit(nodes=2)
    rig.run_until(lambda: rig.ended(job), 120)
    assert rig.bought() == ["burst-0", "burst-1", "burst-2"]


def test_a_pool_that_keeps_failing_is_tried_ever_more_rarely(rig: Rig) -> None:
    for _ in range(20):
        rig.cloud.fail("launch", NoCapacity("sold out"))
    job = rig.submit(nodes=2)
    rig.run_for(3600)
    assert 6 <= len(rig.calls("launch")) <= 9
    assert "sold out" in rig.ask("explain", id=job)["verdict"]
    rig.run_until(lambda: rig.ended(job), 86400)


def test_an_order_that_can_never_be_had_is_not_repeated_within_the_hour(rig: Rig) -> None:
    rig.cloud.fail("launch", InvalidOrder("no such image"))
    rig.submit(nodes=2)
    rig.run_for(3500)
    assert len(rig.calls("launch")) == 1


def test_a_lost_answer_to_launch_buys_once(rig: Rig) -> None:
    rig.cloud.fail("launch", ProviderUnavailable("timed out"), after=True)
    job = rig.submit(nodes=2)
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(rig.all_gone)
    assert rig.bought() == ["burst-0", "burst-1"]


def test_a_launch_that_never_arrived_is_repeated_with_the_same_request_id(rig: Rig) -> None:
    rig.cloud.fail("launch", ProviderUnavailable("connection reset"))
    job = rig.submit(nodes=2)
    rig.run_until(lambda: rig.ended(job))
    ids = {call.args[0].request_id for call in rig.calls("launch")}
    assert len(rig.calls("launch")) == 2
    assert len(ids) == 1


def test_nothing_is_bought_before_the_providers_listing_is_known(make_rig: MakeRig) -> None:
    rig = make_rig()
    for _ in range(5):
        rig.cloud.fail("list_nodes", ProviderUnavailable("down"))
    job = rig.submit(nodes=2)
    rig.run_for(10)
    assert rig.calls("launch") == []
    assert "not known yet" in rig.ask("explain", id=job)["verdict"]
    rig.run_until(lambda: rig.ended(job))


def test_a_release_is_repeated_until_the_machine_is_no_longer_listed(rig: Rig) -> None:
    rig.cloud.release_tries = 4
    job = rig.submit(nodes=1, cores=2, slots=1, run_s=1)
    big = rig.submit(nodes=2, run_s=1)
    rig.run_until(lambda: rig.ended(job, big))
    rig.run_until(rig.all_gone)
    assert all(machine.releases >= 4 for machine in rig.cloud.machines.values())


def test_requested_nodes_are_kept_for_their_time_and_no_longer(rig: Rig) -> None:
    assert "2 nodes for 10m" in rig.ask("request", pool="burst", nodes=2, for_s=600)["message"]
    rig.run_for(300)
    assert list(rig.states().values()) == [NodeState.JOINED] * 2
    rig.run_for(320)
    rig.run_until(rig.all_gone, 120)


def test_releasing_one_of_several_held_nodes_lets_only_that_one_go(rig: Rig) -> None:
    rig.ask("request", pool="burst", nodes=2)
    rig.run_for(300)
    rig.ask("release", hosts="burst-0")
    rig.run_for(300)
    assert rig.states() == {"burst-1": NodeState.JOINED}
    assert rig.bought() == ["burst-0", "burst-1"]


def test_a_hold_can_be_ended_before_any_node_lives(rig: Rig) -> None:
    rig.ask("pause")
    assert rig.ask("request", pool="burst", nodes=2)["message"].endswith("buying is paused")
    assert "no longer held" in rig.ask("request", pool="burst", nodes=0)["message"]
    rig.ask("resume")
    rig.run_for(300)
    assert rig.bought() == []


def test_a_held_pool_is_bought_for_as_soon_as_its_cooldown_ends(rig: Rig) -> None:
    rig.cloud.fail("launch", NoCapacity("sold out"))
    rig.ask("request", pool="burst", nodes=1)
    rig.run_for(32)
    assert len(rig.calls("launch")) == 2


def test_a_failed_job_is_told_with_flux_own_words(rig: Rig) -> None:
    job = rig.submit(run_s=100)
    rig.run_for(1)
    rig.flux.cancel(job)
    rig.run_for(10)
    ended = rig.store.history(f"job/{job}")[-1]
    assert (ended.kind, ended.data["failure"].split(":")[0]) == ("ended", "cancel")


def test_a_warm_pool_is_kept_warm(make_rig: MakeRig) -> None:
    rig = make_rig(POOL.replace("idle_timeout", "keep_warm = 1\nidle_timeout"))
    rig.run_for(3600)
    assert list(rig.states().values()) == [NodeState.JOINED]
    rig.cloud.interrupt(Host("burst-0"))
    rig.run_for(3600)
    assert list(rig.states().values()) == [NodeState.JOINED]


def test_released_hosts_finish_their_jobs_first(rig: Rig) -> None:
    job = rig.submit(nodes=2, run_s=200)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.ask("release", hosts="burst-[0-1]")
    rig.run_for(100)
    assert rig.states() == {"burst-0": NodeState.DRAINING, "burst-1": NodeState.DRAINING}
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(rig.all_gone, 30)


def test_a_draining_node_that_is_needed_again_stays(rig: Rig) -> None:
    first = rig.submit(nodes=2, run_s=1)
    rig.run_until(lambda: rig.ended(first))
    rig.run_until(lambda: NodeState.DRAINING in rig.states().values())
    second = rig.submit(nodes=2, run_s=1)
    rig.run_until(lambda: rig.ended(second))
    rig.run_until(rig.all_gone)


def test_paused_buys_nothing_and_says_so(rig: Rig) -> None:
    rig.ask("pause")
    job = rig.submit(nodes=2)
    rig.run_for(100)
    assert rig.calls("launch") == []
    assert "paused" in rig.memo(job)["reason"]
    rig.ask("resume")
    rig.run_until(lambda: rig.ended(job))


def test_only_the_owner_changes_anything_and_guests_see_their_own_jobs(rig: Rig) -> None:
    guest = Caller(4711, owner=False)
    job = rig.submit(nodes=2)
    rig.run_for(1)
    for method in ("request", "release", "pause", "resume"):
        with pytest.raises(RequestError, match="owner"):
            rig.service.handle(method, {}, guest)
    assert rig.service.handle("jobs", {}, guest)["jobs"] == []
    with pytest.raises(RequestError, match="not an active job of yours"):
        rig.service.handle("explain", {"id": job}, guest)


@pytest.mark.parametrize(
    ("method", "payload"),
    [
        ("jobs", {"limit": "many"}),
        ("jobs", {"limit": -1}),
        ("explain", {"id": "ƒx"}),
        ("explain", {"id": -5}),
        ("status", []),
        ("nosuch", {}),
    ],
)
def test_a_guests_malformed_request_is_refused_and_harms_nobody(rig: Rig, method: str, payload: Any) -> None:
    with pytest.raises(RequestError):
        rig.service.handle(method, payload, Caller(4711, owner=False))
    assert rig.ask("status")["ready"] in (True, False)


def test_a_machine_that_no_record_knows_is_adopted_or_released(make_rig: MakeRig) -> None:
    rig = make_rig()
    job = rig.submit(nodes=2, run_s=500)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.crash()
    for path in rig.config.state_path().glob("state.sqlite*"):
        path.unlink()
    rig.start()
    rig.run_for(60)
    assert list(rig.states().values()) == [NodeState.JOINED] * 2
    rig.run_until(lambda: rig.ended(job))
    rig.run_until(rig.all_gone)


class Clumsy:
    """A plugin that fails in every hook."""

    @hookimpl
    def fluxburst_choose_job(self, job: Mapping[str, Any]) -> None:
        raise KeyError("choose")

    @hookimpl
    def fluxburst_order_offers(self, demand: Demand, offers: Sequence[Offer]) -> None:
        raise KeyError("order")

    @hookimpl
    def fluxburst_node_changed(self, node: NodeRecord, old: NodeState | None) -> None:
        raise KeyError("changed")


class Choosy:
    """A plugin that refuses jobs of one bank, orders dear offers first, and watches nodes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    @hookimpl
    def fluxburst_choose_job(self, job: Mapping[str, Any]) -> str | None:
        return "bank lost has no money" if job["bank"] == "lost" else None

    @hookimpl
    def fluxburst_order_offers(self, demand: Demand, offers: Sequence[Offer]) -> Sequence[Offer]:
        return sorted(offers, key=lambda offer: -(offer.usd_per_node_hour or 0))

    @hookimpl
    def fluxburst_node_changed(self, node: NodeRecord, old: NodeState | None) -> None:
        self.seen.append((node.host, str(node.state)))


def test_a_plugin_that_fails_in_its_hooks_harms_nobody(make_rig: MakeRig) -> None:
    rig = make_rig(plugins=(Clumsy(),))
    job = rig.submit(nodes=2)
    rig.run_until(lambda: rig.ended(job))


def test_plugins_choose_jobs_order_offers_and_hear_of_nodes(make_rig: MakeRig) -> None:
    choosy = Choosy()
    dear = POOL.replace("[pool.burst", "[pool.dear").replace("burst-", "dear-").replace("0.5", "5.0")
    rig = make_rig(POOL + dear, plugins=(choosy,))
    refused = rig.submit(nodes=2, bank="lost")
    job = rig.submit(nodes=2)
    rig.run_until(lambda: rig.ended(job))
    assert rig.hosts(job) == (Host("dear-0"), Host("dear-1"))
    assert "no money" in rig.ask("explain", id=refused)["verdict"]
    assert choosy.seen[:2] == [("dear-0", "planned"), ("dear-1", "planned")]


def test_without_plugins_the_cheaper_offer_is_taken_and_burst_pool_overrides_it(make_rig: MakeRig) -> None:
    dear = POOL.replace("[pool.burst", "[pool.adear").replace("burst-", "adear-").replace("0.5", "5.0")
    rig = make_rig(dear + POOL)
    cheap, chosen = rig.submit(nodes=2), rig.submit(nodes=2, burst={"pool": "adear"})
    rig.run_until(lambda: rig.ended(cheap, chosen))
    assert rig.hosts(cheap)[0].startswith("burst-")
    assert rig.hosts(chosen)[0].startswith("adear-")


def test_a_job_whose_node_left_in_good_order_but_unasked_is_resubmitted_too(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + '[policy]\non_node_loss = "resubmit"\n')
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.flux.leave([Host("burst-1")])
    rig.run_until(lambda: "resubmitted" in rig.kinds(job))
    again = rig.store.history(f"job/{job}")[-1].data["new"]
    rig.run_until(lambda: rig.ended(again))


def test_a_job_that_fails_by_itself_is_not_taken_for_lost(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + '[policy]\non_node_loss = "resubmit"\n')
    job = rig.submit(nodes=2, run_s=100)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.flux.cancel(job)
    rig.run_until(rig.all_gone)
    assert "resubmitted" not in rig.kinds(job)


def test_another_users_lost_job_is_not_resubmitted_as_the_owner(make_rig: MakeRig) -> None:
    rig = make_rig(POOL + '[policy]\non_node_loss = "resubmit"\n')
    job = rig.submit(nodes=2, run_s=100, userid=4711)
    rig.run_until(lambda: rig.flux.state(job).name == "RUN")
    rig.cloud.interrupt(Host("burst-1"))
    rig.run_until(rig.all_gone)
    entry = next(entry for entry in rig.store.history(f"job/{job}") if entry.kind == "not resubmitted")
    assert "another user" in entry.data["reason"]


def test_the_pools_queues_are_started_and_staging_is_stopped_again(rig: Rig) -> None:
    rig.flux.set_queue("staging", started=True)
    rig.restart()
    job = rig.submit(nodes=2)
    rig.run_until(lambda: rig.ended(job))


@pytest.mark.parametrize(("boot_s", "idles_s"), [(2.0, 10.0), (90.0, 90.0), (500.0, 300.0)])
def test_a_node_idles_as_long_as_it_took_to_join_unless_told_otherwise(
    make_rig: MakeRig, boot_s: float, idles_s: float
) -> None:
    rig = make_rig(POOL.replace('idle_timeout = "60s"\n', "").replace("boot_s = 30.0", f"boot_s = {boot_s}"))
    job = rig.submit(nodes=2, run_s=20.0)
    rig.run_until(lambda: rig.ended(job))
    ended_at = rig.loop.wall()
    rig.run_until(rig.all_gone)
    assert rig.loop.wall() - ended_at == pytest.approx(idles_s, abs=2.0)


def test_a_gang_that_waits_for_others_to_end_keeps_no_node_idle_meanwhile(rig: Rig) -> None:
    rig.submit(nodes=1, run_s=1e6, duration_s=1e6, burstable=False)
    rig.run_for(1.0)
    long = rig.submit(nodes=2, run_s=7200.0, duration_s=7200.0)
    short = rig.submit(nodes=2, run_s=60.0, duration_s=60.0)
    gang = rig.submit(nodes=4, run_s=60.0, duration_s=60.0)
    rig.run_until(lambda: rig.ended(short))
    verdict = rig.service.world.jobs[gang].verdict
    assert verdict is not None
    assert verdict.kind is VerdictKind.WAIT
    rig.run_for(120.0)
    assert len(rig.states()) == 2, "the idle ones are bought again in time"
    rig.run_until(lambda: rig.ended(gang), timeout_s=4 * 3600.0)
    assert rig.ended(long)


def test_a_gang_that_waits_for_a_boot_keeps_what_it_has(make_rig: MakeRig) -> None:
    """Also where a node boots for longer than it may idle."""
    rig = make_rig(POOL.replace('idle_timeout = "60s"', 'idle_timeout = "5s"'))
    rig.submit(nodes=1, run_s=1e6, duration_s=1e6, burstable=False)
    rig.run_for(1.0)
    first = rig.submit(nodes=2, run_s=20.0, duration_s=30.0)
    rig.run_until(lambda: rig.ended(first))
    gang = rig.submit(nodes=3, run_s=20.0, duration_s=30.0)
    rig.run_until(lambda: rig.ended(gang))
    assert rig.bought() == ["burst-0", "burst-1", "burst-2"]
