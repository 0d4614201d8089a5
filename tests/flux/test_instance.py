from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fluxburst.errors import Disconnected, InstanceError, RequestError
from fluxburst.flux import bindings, client
from fluxburst.flux.instance import RealInstance
from fluxburst.flux.private import PrivateInstance, private_config
from fluxburst.flux.protocol import Caller, CaughtUp, ConnectionLost, InstanceEvent, JobEvent, ResourceEvent
from fluxburst.model import Host, JobId
from tests.contract.harness import GHOSTS, HOME
from tests.contract.real import RealHarness
from tests.contract.steps import event, job, wait

T = TypeVar("T")

pytestmark = pytest.mark.flux


def follow(harness: RealHarness) -> tuple[RealInstance, list[InstanceEvent]]:
    """A second connection on the same loop, and what it delivers from its past up to CaughtUp."""
    instance = RealInstance.open(harness.private.uri, loop=harness.loop)
    events: list[InstanceEvent] = []
    instance.subscribe(events.append)
    harness.run_until(lambda: any(isinstance(event, CaughtUp) for event in events))
    return instance, events


def lost(events: list[InstanceEvent]) -> list[ConnectionLost]:
    return [event for event in events if isinstance(event, ConnectionLost)]


def submit_many(harness: RealHarness, count: int) -> list[JobId]:
    futures = [harness.instance.submit(job(queue="staging", burstable=True)) for _ in range(count)]
    harness.run_until(lambda: all(future.done() for future in futures), 60)
    return [future.result() for future in futures]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# The past and the present


def test_facts_name_all_declared_hosts_in_rank_order(harness: RealHarness) -> None:
    facts = harness.instance.facts
    assert facts.hosts == (HOME, *GHOSTS)
    assert facts.owner_uid == os.getuid()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", facts.version)
    assert set(facts.queues) == {"batch", "burst", "staging"}
    assert facts.config["resource"]["noverify"] is True


def test_all_of_two_thousand_jobs_come_in_order_before_caught_up_and_are_not_kept(harness: RealHarness) -> None:
    job_ids = submit_many(harness, 2000)
    instance = RealInstance.open(harness.private.uri, loop=harness.loop)
    past: dict[JobId, list[str]] = {}
    jobspecs = caught_up = after = 0

    def sink(event: InstanceEvent) -> None:
        nonlocal jobspecs, caught_up, after
        if isinstance(event, CaughtUp):
            caught_up += 1
        elif caught_up:
            after += 1
        elif isinstance(event, JobEvent):
            past.setdefault(event.job_id, []).append(event.name)
            jobspecs += event.jobspec is not None and event.jobspec["attributes"]["system"]["burstable"] is True

    start = time.monotonic()
    instance.subscribe(sink)
    harness.run_until(lambda: caught_up > 0)
    took = time.monotonic() - start
    instance.close()

    assert past == {job_id: ["submit", "depend", "priority"] for job_id in job_ids}
    assert jobspecs == 2000
    assert (caught_up, after) == (1, 0)
    assert took < 6000 / 5000  # 5,000 events a second, and far more when the machine has nothing else to do


def test_catching_up_keeps_no_event_in_memory(harness: RealHarness) -> None:
    submit_many(harness, 1000)
    instance = RealInstance.open(harness.private.uri, loop=harness.loop)
    caught_up: list[InstanceEvent] = []
    gc.collect()
    before = len(gc.get_objects())
    instance.subscribe(lambda event: caught_up.append(event) if isinstance(event, CaughtUp) else None)
    harness.run_until(lambda: bool(caught_up))
    gc.collect()
    assert len(gc.get_objects()) - before < 200  # a thousand jobspecs are tens of thousands of objects
    instance.close()


def test_a_running_job_of_the_past_comes_with_its_allocation(harness: RealHarness) -> None:
    job_id = harness.submit(job("sleep", "60", slots=2))
    event(harness, job_id, "start")
    instance, events = follow(harness)
    past = {event.name: event for event in events if isinstance(event, JobEvent) and event.job_id == job_id}
    assert [(share.host, share.cores, share.gpus) for share in past["alloc"].allocation] == [(HOME, 2, 0)]
    assert {name for name, event in past.items() if event.jobspec is not None} == {"submit"}
    instance.close()


def test_a_moved_job_of_the_past_comes_with_its_updates_applied_and_told(harness: RealHarness) -> None:
    job_id = harness.submit(job(queue="staging"))
    event(harness, job_id, "priority")
    wait(harness, harness.instance.move(job_id, "burst"))
    instance, events = follow(harness)
    past = {event.name: event for event in events if isinstance(event, JobEvent)}
    assert past["submit"].jobspec is not None
    assert past["submit"].jobspec["attributes"]["system"]["queue"] == "burst"
    assert past["jobspec-update"].context["attributes.system.queue"] == "burst"
    instance.close()


def test_two_connections_of_one_loop_learn_of_the_loss_each(harness: RealHarness) -> None:
    other, events = follow(harness)
    harness.private.kill_lead()
    harness.run_until(lambda: bool(lost(harness.events)) and bool(lost(events)))
    assert isinstance(other.allocated().exception(), Disconnected)


def test_events_arrive_within_milliseconds(harness: RealHarness) -> None:
    delays: list[float] = []

    def sink(event: InstanceEvent) -> None:
        if isinstance(event, JobEvent) and event.name == "submit":
            delays.append(time.time() - event.at)

    instance, _ = follow(harness)
    instance.close()
    instance = RealInstance.open(harness.private.uri, loop=harness.loop)
    instance.subscribe(sink)
    for _ in range(20):
        harness.submit(job(queue="staging"))
    harness.run_until(lambda: len(delays) == 20)
    assert statistics.median(delays) < 0.05
    instance.close()


def test_host_states_of_the_past_and_of_now_are_told(harness: RealHarness) -> None:
    wait(harness, harness.instance.drain([GHOSTS[0], GHOSTS[2]], "by hand"))
    wait(harness, harness.instance.drain([GHOSTS[2]], "by another hand"))
    wait(harness, harness.instance.drain([GHOSTS[1]], "for a while"))
    wait(harness, harness.instance.undrain([GHOSTS[1]]))
    instance, events = follow(harness)
    assert [(event.name, event.hosts, event.reason) for event in events if isinstance(event, ResourceEvent)] == [
        ("online", (HOME,), ""),
        ("drain", (GHOSTS[0], GHOSTS[2]), "by hand"),
        ("drain", (GHOSTS[2],), "by another hand"),
        ("drain", (GHOSTS[1],), "for a while"),
        ("undrain", (GHOSTS[1],), ""),
    ]
    instance.close()


def test_a_drain_from_before_the_last_restart_is_told_though_the_log_has_forgotten_it(short_path: Path) -> None:
    config = private_config({"burst": (",".join(GHOSTS), 2)}, mode="open")
    config["resource"]["history"] = "0"  # 90 days in some releases of Flux
    with PrivateInstance(short_path, config, scheduler="sched-simple") as private:
        private.run("resource", "drain", GHOSTS[1], "disk", "is", "slow")
    with PrivateInstance(short_path, config, scheduler="sched-simple"):
        pass  # which drops from the log what the checkpoint holds
    with PrivateInstance(short_path, config, scheduler="sched-simple") as private:
        instance = RealInstance.open(private.uri)
        events: list[InstanceEvent] = []

        def sink(event: InstanceEvent) -> None:
            events.append(event)
            if isinstance(event, CaughtUp):
                instance.loop.stop()

        instance.subscribe(sink)
        instance.loop.call_later(20, instance.loop.stop)
        instance.loop.run_forever()
        instance.close()
    assert isinstance(events[-1], CaughtUp)
    drains = [event for event in events if isinstance(event, ResourceEvent) and event.name == "drain"]
    assert [(event.hosts, event.reason) for event in drains] == [((GHOSTS[1],), "disk is slow")]


# Calls


def test_what_the_broker_refuses_is_told_in_its_own_words(harness: RealHarness) -> None:
    job_id = harness.submit(job(queue="staging"))
    instance = harness.instance
    refusals: list[tuple[Future[Any], str]] = [
        (instance.move(job_id, "nowhere"), f"cannot move job {job_id} to queue nowhere: .*nowhere"),
        (instance.move(JobId(1), "batch"), "cannot move job 1 to queue batch: unknown job"),
        (instance.memo(JobId(1), {"burst": 1}), "cannot set the memo of job 1: unknown job"),
        (instance.set_queue("nowhere", started=True), "cannot start queue nowhere: 'nowhere' is not a valid queue"),
        (instance.drain([Host("nobody")], "r"), "cannot drain nobody: .*nobody"),
        (instance.submit({"version": 1}), "cannot submit a job: .*resources"),
        (instance.stop_brokers([Host("nobody")]), "cannot stop the broker of nobody: this instance has no such host"),
    ]
    for future, words in refusals:
        with pytest.raises(InstanceError, match=words) as caught:
            wait(harness, future)
        assert "\n" not in str(caught.value)


def test_stopping_brokers_that_are_gone_already_is_fine(harness: RealHarness) -> None:
    wait(harness, harness.instance.stop_brokers(GHOSTS))


def test_a_second_subscriber_is_refused(harness: RealHarness) -> None:
    with pytest.raises(InstanceError, match="has a subscriber already"):
        harness.instance.subscribe(lambda _event: None)


def test_opening_where_no_broker_listens_says_so(short_path: Path) -> None:
    with pytest.raises(InstanceError, match=f"local://{short_path}/none.*"):
        RealInstance.open(f"local://{short_path}/none")


def test_an_exception_of_a_future_s_callback_comes_out_of_run_forever(harness: RealHarness) -> None:
    harness.instance.allocated().add_done_callback(lambda _future: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        harness.loop.run_forever()


# The end of a connection


def test_a_killed_broker_ends_the_stream_and_fails_what_is_open(harness: RealHarness) -> None:
    instance = harness.instance
    wait(harness, instance.set_queue("batch", started=True))
    pending: list[Future[Any]] = []
    harness.private.kill_lead()
    pending += [instance.allocated(), instance.submit(job())]
    harness.run_until(lambda: bool(lost(harness.events)))
    harness.run_until(lambda: all(future.done() for future in pending))
    assert len(lost(harness.events)) == 1
    assert isinstance(harness.events[-1], ConnectionLost)
    for future in [*pending, instance.allocated()]:
        assert isinstance(future.exception(), Disconnected)
    with pytest.raises(Disconnected):
        instance.subscribe(harness.events.append)


def test_a_loop_lives_on_with_a_new_connection_after_the_old_one_was_lost(harness: RealHarness) -> None:
    timers: list[str] = []
    harness.loop.call_later(0.5, timers.append, "kept")
    harness.private.kill_lead()
    harness.run_until(lambda: bool(lost(harness.events)))
    harness.private.close()
    harness.private.start()
    instance, events = follow(harness)
    harness.run_until(lambda: timers == ["kept"])
    assert not lost(events)
    assert wait(harness, instance.allocated()) == frozenset()
    instance.close()


def test_an_instance_that_shuts_down_ends_the_stream(harness: RealHarness) -> None:
    closing = threading.Thread(target=harness.private.close)
    closing.start()
    harness.run_until(lambda: bool(lost(harness.events)))
    closing.join()
    assert isinstance(harness.events[-1], ConnectionLost)


@pytest.mark.parametrize(
    ("modules", "topic"),
    [(["job-manager"], "job-manager.events-journal"), (["sched-simple", "resource"], "resource.journal")],
)
def test_an_unloaded_module_ends_the_stream_and_the_connection_can_subscribe_again(
    harness: RealHarness, modules: list[str], topic: str
) -> None:
    job_id = harness.submit(job(queue="staging"))
    event(harness, job_id, "priority")
    for module in modules:
        harness.private.run("module", "remove", "--force", module)
    harness.run_until(lambda: bool(lost(harness.events)))
    assert [event.reason for event in lost(harness.events)] == [f"{topic}: ended because its module was unloaded"]
    for module in reversed(modules):
        harness.private.run("module", "load", module)
    harness.events.clear()
    harness.instance.subscribe(harness.events.append)
    harness.run_until(lambda: any(isinstance(event, CaughtUp) for event in harness.events))
    # A job manager that restarts gives waiting jobs their priority anew.
    assert [event.name for event in harness.job_events(job_id)][:3] == ["submit", "depend", "priority"]
    harness.submit(job(queue="staging"))
    harness.run_until(lambda: isinstance(harness.events[-1], JobEvent) and harness.events[-1].name == "priority")
    assert len([event for event in harness.events if isinstance(event, JobEvent) and event.name == "submit"]) == 2


def test_closing_delivers_nothing_more_and_leaves_no_descriptor_open(harness: RealHarness) -> None:
    submit_many(harness, 20)

    def round_trip() -> None:
        instance = RealInstance.open(harness.private.uri, loop=harness.loop)
        events: list[InstanceEvent] = []
        instance.subscribe(events.append)
        future = instance.allocated()
        instance.close()
        assert isinstance(future.exception(), Disconnected)
        wait(harness, harness.instance.allocated())
        assert events == []

    round_trip()
    gc.collect()  # of what other tests have left
    before = open_descriptors()
    for _ in range(10):
        round_trip()
    assert open_descriptors() == before


def test_an_instance_may_be_closed_from_its_own_events(harness: RealHarness) -> None:
    instance = RealInstance.open(harness.private.uri, loop=harness.loop)
    events: list[InstanceEvent] = []

    def sink(event: InstanceEvent) -> None:
        events.append(event)
        instance.close()

    instance.subscribe(sink)
    harness.run_until(lambda: bool(events))
    wait(harness, harness.instance.allocated())
    assert len(events) == 1


def test_an_exception_of_the_subscriber_comes_out_of_run_forever(harness: RealHarness) -> None:
    def sink(_event: InstanceEvent) -> None:
        raise LookupError("no such thing")

    instance = RealInstance.open(harness.private.uri, loop=harness.loop)
    instance.subscribe(sink)
    with pytest.raises(LookupError, match="no such thing"):
        harness.loop.run_forever()
    instance.close()


# The service


def in_thread(harness: RealHarness, work: Callable[[], T]) -> T:
    """Do blocking work as another process would, while the loop serves; its result or its error."""
    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(work)
        harness.run_until(done.done)
        return done.result()


def test_the_service_answers_its_caller(harness: RealHarness) -> None:
    seen: list[tuple[str, Mapping[str, Any], Caller]] = []

    def handler(method: str, payload: Mapping[str, Any], caller: Caller) -> Mapping[str, Any]:
        seen.append((method, payload, caller))
        return {"echo": payload["text"]}

    harness.instance.serve(handler)
    answer = in_thread(harness, lambda: client.call("status", {"text": "grüße"}, harness.private.uri))
    assert answer == {"echo": "grüße"}
    assert seen == [("status", {"text": "grüße"}, Caller(userid=os.getuid(), owner=True))]


def test_guests_reach_the_service_and_are_known_as_such(harness: RealHarness) -> None:
    seen: list[Caller] = []

    def handler(_method: str, _payload: Mapping[str, Any], caller: Caller) -> Mapping[str, Any]:
        seen.append(caller)
        return {}

    def as_guest() -> None:
        flux = bindings.load()
        handle: Any = flux.Flux(harness.private.uri)
        for option, value in (("flux::testing_userid", 4242), ("flux::testing_rolemask", handle.lib.FLUX_ROLE_USER)):
            cell = handle.ffi.new("uint32_t *", value)
            handle.flux_opt_set(option, handle.ffi.cast("void *", cell), ctypes.sizeof(ctypes.c_uint32))
        handle.rpc("burst.status", {}).get()

    harness.instance.serve(handler)
    in_thread(harness, as_guest)
    assert seen == [Caller(userid=4242, owner=False)]


def test_a_refusal_reaches_the_caller_in_its_own_words(harness: RealHarness) -> None:
    def handler(method: str, _payload: Mapping[str, Any], _caller: Caller) -> Mapping[str, Any]:
        raise RequestError(f"no such method: {method}")

    harness.instance.serve(handler)
    with pytest.raises(RequestError, match=r"^no such method: fly$"):
        in_thread(harness, lambda: client.call("fly", {}, harness.private.uri))


def test_a_failure_of_the_service_is_answered_and_comes_out_of_run_forever(harness: RealHarness) -> None:
    def handler(_method: str, _payload: Mapping[str, Any], _caller: Caller) -> Mapping[str, Any]:
        raise LookupError("a bug")

    harness.instance.serve(handler)
    with ThreadPoolExecutor(1) as executor:
        answer = executor.submit(client.call, "status", {}, harness.private.uri)
        with pytest.raises(LookupError, match="a bug"):
            harness.run_until(lambda: False)
        assert str(answer.exception()) == "burst.status: the burst service failed; its log tells why"


def test_a_client_that_goes_away_does_not_reach_the_handler(harness: RealHarness) -> None:
    seen: list[str] = []

    def handler(method: str, _payload: Mapping[str, Any], _caller: Caller) -> Mapping[str, Any]:
        seen.append(method)
        return {}

    harness.instance.serve(handler)
    for _ in range(3):
        in_thread(harness, lambda: client.call("status", {}, harness.private.uri))
        gc.collect()  # closes the client's handle, of which the broker tells the service
    assert seen == ["status"] * 3


def test_only_one_service_at_a_time_runs_on_an_instance(harness: RealHarness) -> None:
    harness.instance.serve(lambda *_: {})
    other = RealInstance.open(harness.private.uri, loop=harness.loop)
    with pytest.raises(InstanceError, match="another fluxburst service already runs on this instance"):
        other.serve(lambda *_: {})
    harness.instance.close()
    other.serve(lambda *_: {})
    other.close()


def test_without_a_service_the_client_says_how_to_start_it(harness: RealHarness) -> None:
    with pytest.raises(RequestError, match="does not run on this instance; start it with: flux burst run"):
        client.call("status", {}, harness.private.uri)


def test_a_failing_call_leaves_interrupts_as_they_were(harness: RealHarness) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(RequestError):
            client.call("status", {}, harness.private.uri)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_service_that_does_not_answer_is_given_up(harness: RealHarness) -> None:
    harness.instance.serve(lambda *_: {})  # and nobody runs its loop
    with pytest.raises(InstanceError, match=r"did not answer within 0\.2 s"):
        client.call("status", {}, harness.private.uri, timeout=0.2)
