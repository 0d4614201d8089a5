"""Brokers that join, leave and die; drain; what is allocated."""

from __future__ import annotations

from fluxburst.flux.protocol import CaughtUp, ResourceEvent
from tests.contract.harness import GHOSTS, HOME, Harness
from tests.contract.steps import (
    context,
    event,
    hosts,
    job,
    resource_event,
    resource_events,
    run,
    running,
    stays_pending,
    up,
    wait,
)

B0, B1, B2, B3 = GHOSTS


def test_the_past_tells_that_the_lead_is_online_and_no_ghost(any_mode: Harness) -> None:
    past = any_mode.events[: any_mode.events.index(next(e for e in any_mode.events if isinstance(e, CaughtUp)))]
    told = [e for e in past if isinstance(e, ResourceEvent)]
    assert [(e.name, e.hosts) for e in told] == [("online", (HOME,))]


def test_facts_name_the_hosts_in_rank_order_and_the_queues(any_mode: Harness) -> None:
    facts = any_mode.instance.facts
    assert facts.hosts == (HOME, *GHOSTS)
    assert set(facts.queues) == set(facts.config.get("queues", {}))
    assert facts.config["resource"]["config"][1]["properties"] == ["burst"]
    assert facts.version.startswith("0.88")


def test_a_follower_comes_online(queues: Harness) -> None:
    up(queues)
    start = len(queues.events)
    queues.join([B2])
    assert resource_event(queues, "online", B2, start).hosts == (B2,)


def test_a_follower_that_is_told_to_leave_goes_offline_and_no_other(queues: Harness) -> None:
    up(queues, B0, B1)
    start = len(queues.events)
    queues.leave([B0])
    resource_event(queues, "offline", B0, start)
    assert [(e.name, e.hosts) for e in resource_events(queues, start)] == [("offline", (B0,))]


def test_stop_brokers_makes_them_leave(queues: Harness) -> None:
    up(queues, B0, B1)
    start = len(queues.events)
    wait(queues, queues.instance.stop_brokers([B0, B1]))
    resource_event(queues, "offline", B0, start)
    resource_event(queues, "offline", B1, start)
    assert {e.name for e in resource_events(queues, start)} == {"offline"}


def test_stopping_a_broker_that_is_gone_is_fine(queues: Harness) -> None:
    up(queues)
    start = len(queues.events)
    wait(queues, queues.instance.stop_brokers([B3]))
    assert resource_events(queues, start) == []


def test_a_job_on_a_killed_node_fails_with_the_nodes_name_and_the_node_can_come_back(queues: Harness) -> None:
    up(queues, B0)
    start = len(queues.events)
    job_id = queues.submit(job("sleep", "60", nodes=1, queue="burst"))
    running(queues, job_id)
    queues.kill([B0])
    resource_event(queues, "offline", B0, start)
    exception = context(queues, job_id, "exception")
    assert (exception["type"], exception["severity"]) == ("exec", 0)
    assert exception["note"] == "node failure on burst-0 (rank 1)"
    assert run(queues, job_id)[-4:] == ["exception", "finish", "free", "clean"]
    up(queues, B0)
    assert hosts(queues, queues.submit(job(nodes=1, queue="burst"))) == [B0]


def test_one_lost_node_fails_the_whole_job(queues: Harness) -> None:
    up(queues, B0, B1)
    start = len(queues.events)
    job_id = queues.submit(job("sleep", "60", nodes=2, queue="burst"))
    running(queues, job_id)
    queues.kill([B1])
    assert context(queues, job_id, "exception")["note"] == "node failure on burst-1 (rank 2)"
    run(queues, job_id)
    assert wait(queues, queues.instance.allocated()) == frozenset()
    resource_event(queues, "offline", B1, start)


def test_a_job_fails_when_its_node_leaves_in_good_order(queues: Harness) -> None:
    up(queues, B0)
    start = len(queues.events)
    job_id = queues.submit(job("sleep", "60", nodes=1, queue="burst"))
    running(queues, job_id)
    wait(queues, queues.instance.stop_brokers([B0]))
    exception = context(queues, job_id, "exception")
    assert (exception["type"], exception["severity"]) == ("exec", 0)
    run(queues, job_id)
    resource_event(queues, "offline", B0, start)


def test_drain_tells_its_reason(queues: Harness) -> None:
    start = len(queues.events)
    wait(queues, queues.instance.drain([B0, B1], "idle for 5m"))
    drained = resource_event(queues, "drain", B0, start)
    assert (drained.hosts, drained.reason) == ((B0, B1), "idle for 5m")


def test_a_drained_host_gets_the_new_reason(queues: Harness) -> None:
    start = len(queues.events)
    for reason in ("first", "second"):
        wait(queues, queues.instance.drain([B0], reason))
    queues.run_until(lambda: len(resource_events(queues, start)) == 2)
    assert [(e.name, e.reason) for e in resource_events(queues, start)] == [("drain", "first"), ("drain", "second")]


def test_drain_keeps_a_running_job_and_lets_no_other_start(queues: Harness) -> None:
    up(queues, B0)
    running = queues.submit(job("sleep", "0.5", queue="burst"))
    event(queues, running, "start")
    wait(queues, queues.instance.drain([B0], "enough"))
    waiting = queues.submit(job(queue="burst"))
    assert "exception" not in run(queues, running)
    stays_pending(queues, waiting)
    start = len(queues.events)
    wait(queues, queues.instance.undrain([B0]))
    assert resource_event(queues, "undrain", B0, start).reason == ""
    assert hosts(queues, waiting) == [B0]


def test_a_drained_host_is_still_drained_when_it_comes_back(queues: Harness) -> None:
    up(queues, B0)
    wait(queues, queues.instance.drain([B0], "gone"))
    up(queues)
    up(queues, B0)
    waiting = queues.submit(job(queue="burst"))
    stays_pending(queues, waiting)
    wait(queues, queues.instance.undrain([B0]))
    assert hosts(queues, waiting) == [B0]


def test_a_ghost_can_be_drained_and_undrained(queues: Harness) -> None:
    up(queues)
    start = len(queues.events)
    wait(queues, queues.instance.drain([B3], "not yet"))
    wait(queues, queues.instance.undrain([B3]))
    resource_event(queues, "undrain", B3, start)
    assert [e.name for e in resource_events(queues, start)] == ["drain", "undrain"]


def test_undrain_tells_only_of_hosts_that_were_drained(queues: Harness) -> None:
    wait(queues, queues.instance.drain([B1], "for a while"))
    start = len(queues.events)
    wait(queues, queues.instance.undrain([B0, B1]))
    wait(queues, queues.instance.undrain([B0, B1]))
    wait(queues, queues.instance.drain([B2], "afterwards"))
    resource_event(queues, "drain", B2, start)
    assert [(e.name, e.hosts) for e in resource_events(queues, start)] == [("undrain", (B1,)), ("drain", (B2,))]


def test_allocated_names_the_hosts_that_run_something(queues: Harness) -> None:
    up(queues, B0, B1)
    assert wait(queues, queues.instance.allocated()) == frozenset()
    at_home = queues.submit(job("sleep", "60"))
    away = queues.submit(job("sleep", "60", nodes=1, queue="burst"))
    event(queues, at_home, "alloc")
    (host,) = hosts(queues, away)
    assert wait(queues, queues.instance.allocated()) == {HOME, host}
    queues.cancel(away)
    run(queues, away)
    assert wait(queues, queues.instance.allocated()) == {HOME}


def test_a_drained_host_is_allocated_as_long_as_its_job_runs(queues: Harness) -> None:
    up(queues, B0)
    job_id = queues.submit(job("sleep", "60", queue="burst"))
    event(queues, job_id, "start")
    wait(queues, queues.instance.drain([B0], "enough"))
    assert wait(queues, queues.instance.allocated()) == {B0}


def test_without_queues_a_job_may_run_on_any_node_that_is_up(open_mode: Harness) -> None:
    up(open_mode, B0)
    assert set(hosts(open_mode, open_mode.submit(job(nodes=2)))) == {HOME, B0}


def test_without_queues_a_job_waits_for_ghosts(open_mode: Harness) -> None:
    up(open_mode)
    both = open_mode.submit(job(nodes=2))
    stays_pending(open_mode, both)
    up(open_mode, B0)
    assert set(hosts(open_mode, both)) == {HOME, B0}
