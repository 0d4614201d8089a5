"""What the mock instance offers beside what the contract suite holds it to."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from fluxburst.errors import Disconnected, InstanceError, RequestError
from fluxburst.flux.protocol import Caller, CaughtUp, ConnectionLost, InstanceEvent, JobEvent, ResourceEvent
from fluxburst.model import Host, JobId
from fluxburst_mock.instance import MockInstance, State
from fluxburst_mock.loop import VirtualLoop

CONFIG = {
    "bootstrap": {"hosts": [{"host": "lead0"}, {"host": "b[0-1]"}]},
    "resource": {
        "config": [
            {"hosts": "lead0", "cores": "0-1", "properties": ["home"]},
            {"hosts": "b[0-1]", "cores": "0-3", "gpus": "0", "properties": ["burst"]},
        ]
    },
    "queues": {"batch": {"requires": ["home"]}, "burst": {"requires": ["burst"]}, "staging": {}},
    "policy": {"jobspec": {"defaults": {"system": {"queue": "batch"}}}},
}
B0, B1 = Host("b0"), Host("b1")


class World:
    """An instance with one subscriber."""

    def __init__(self, **options: Any) -> None:
        self.loop = VirtualLoop()
        self.flux = MockInstance(
            self.loop, CONFIG, **{"started": ("batch", "burst"), "wall": self.loop.wall, **options}
        )
        self.connection = self.flux.connect()
        self.events: list[InstanceEvent] = []
        self.connection.subscribe(self.events.append)
        self.loop.run_forever()

    def names(self, job_id: JobId) -> list[str]:
        return [event.name for event in self.events if isinstance(event, JobEvent) and event.job_id == job_id]


@pytest.fixture
def world() -> World:
    return World()


def job(*command: str, **system: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "resources": [{"type": "slot", "count": 1, "label": "task", "with": [{"type": "core", "count": 1}]}],
        "tasks": [{"command": list(command or ("true",)), "slot": "task", "count": {"per_slot": 1}}],
        "attributes": {"system": {"duration": 0.0, **system}},
    }


def test_named_queues_are_stopped_at_first() -> None:
    world = World(started=())
    job_id = world.flux.submit(job())
    world.loop.run_forever()
    assert world.flux.state(job_id) is State.SCHED


def test_a_job_runs_as_long_as_its_sleep_in_no_real_time(world: World) -> None:
    job_id = world.flux.submit(job("sleep", "2d"))
    world.loop.run_until(lambda: world.flux.state(job_id) is State.INACTIVE)
    assert 2 * 86400 < world.loop.time() < 2 * 86400 + 1


def test_guests_jobs_carry_their_user_id(world: World) -> None:
    world.flux.submit(job(), userid=5000)
    assert [event.context["userid"] for event in world.events if isinstance(event, JobEvent)] == [5000]


def test_a_frobnicator_runs_between_defaults_and_constraints() -> None:
    def route(spec: dict[str, Any]) -> None:
        system = spec["attributes"]["system"]
        assert system["queue"] == "batch"
        assert "constraints" not in system
        if system.get("burstable"):
            system["queue"] = "burst"

    world = World(frobnicate=route)
    submitted = job(burstable=True)
    job_id = world.flux.submit(submitted)
    (spec,) = (event.jobspec for event in world.events if isinstance(event, JobEvent))
    assert spec is not None
    assert spec["attributes"]["system"]["constraints"] == {"properties": ["burst"]}
    assert submitted == job(burstable=True), "what the user holds is not changed"
    assert world.flux.jobspec(job_id) == submitted


def test_a_frobnicator_can_refuse_a_job() -> None:
    def refuse(spec: dict[str, Any]) -> None:
        raise ValueError("not today")

    world = World(frobnicate=refuse)
    with pytest.raises(InstanceError, match="not today"):
        world.flux.submit(job())


def test_a_malformed_jobspec_is_refused(world: World) -> None:
    with pytest.raises(InstanceError, match="version"):
        world.flux.submit({**job(), "version": 9})


def test_a_disabled_queue_takes_no_job_and_no_move(world: World) -> None:
    staged = world.flux.submit(job(queue="staging"))
    world.flux.disable_queue("burst", "maintenance")
    with pytest.raises(InstanceError, match="job submission to burst is disabled: maintenance"):
        world.flux.submit(job(queue="burst"))
    with pytest.raises(InstanceError, match="queue burst is currently disabled"):
        world.flux.move(staged, "burst")
    world.flux.enable_queue("burst")
    world.flux.move(staged, "burst")


def test_an_unknown_dependency_scheme_is_refused(world: World) -> None:
    with pytest.raises(InstanceError, match='scheme "weekday" not supported'):
        world.flux.submit(job(dependencies=[{"scheme": "weekday", "value": "monday"}]))


def test_memos_merge_and_nulls_clear(world: World) -> None:
    job_id = world.flux.submit(job())
    world.flux.set_memo(job_id, {"burst": {"state": "wait", "pool": "c2"}, "note": "mine"})
    world.flux.set_memo(job_id, {"burst": {"state": "coming", "pool": None}})
    world.flux.set_memo(job_id, {"note": None})
    world.loop.run_forever()
    assert world.flux.memo(job_id) == {"burst": {"state": "coming"}}


def test_urgency_is_refused_out_of_range_and_once_a_job_runs(world: World) -> None:
    job_id = world.flux.submit(job("sleep", "60"))
    with pytest.raises(InstanceError, match="out of range"):
        world.flux.set_urgency(job_id, 32)
    world.loop.run_until(lambda: world.flux.state(job_id) is State.RUN)
    with pytest.raises(InstanceError, match="once resources are allocated"):
        world.flux.set_urgency(job_id, 5)


def test_a_job_cancelled_before_it_starts_finishes_without_a_start(world: World) -> None:
    job_id = world.flux.submit(job())
    world.loop.run_until(lambda: "alloc" in world.names(job_id))
    world.flux.cancel(job_id)
    world.loop.run_forever()
    assert world.names(job_id)[3:] == ["alloc", "exception", "finish", "free", "clean"]
    assert world.flux.allocated() == frozenset()


def test_a_dead_node_is_handed_out_until_it_is_offline(world: World) -> None:
    world.flux.join([B0])
    first = world.flux.submit(job("sleep", "60", queue="burst"))
    world.loop.run_until(lambda: "start" in world.names(first))
    world.flux.kill([B0])
    world.loop.run_until(lambda: "clean" in world.names(first))
    assert B0 in world.flux.online()
    unlucky = world.flux.submit(job(queue="burst"))
    world.loop.run_until(lambda: B0 not in world.flux.online())
    later = world.flux.submit(job(queue="burst"))
    world.loop.run_forever()
    assert world.names(unlucky)[3:] == ["alloc", "exception", "finish", "free", "clean"]
    assert world.flux.state(later) is State.SCHED


def test_a_job_cancelled_while_it_ends_still_ends_once(world: World) -> None:
    job_id = world.flux.submit(job())
    world.loop.run_until(lambda: "finish" in world.names(job_id))
    world.flux.cancel(job_id)
    world.loop.run_forever()
    assert world.names(job_id)[-4:] == ["finish", "exception", "free", "clean"]


def test_a_host_that_rejoins_before_its_death_was_noticed_fails_its_jobs_first(world: World) -> None:
    world.flux.join([B0])
    job_id = world.flux.submit(job("sleep", "60", queue="burst"))
    world.loop.run_until(lambda: "start" in world.names(job_id))
    mark = len(world.events)
    world.flux.kill([B0])
    world.flux.join([B0])
    assert [getattr(event, "name", "") for event in world.events[mark:]] == ["exception", "offline", "online"]
    world.loop.run_forever()
    assert world.flux.online() == {"lead0", B0}
    assert world.names(job_id)[-1] == "clean"


def test_the_lead_does_not_leave(world: World) -> None:
    with pytest.raises(ValueError, match="lead"):
        world.flux.leave([Host("lead0")])


def test_an_undeclared_host_is_refused(world: World) -> None:
    with pytest.raises(InstanceError, match="b7 is not a host"):
        world.flux.join([Host("b7")])


def test_gpus_are_allocated(world: World) -> None:
    world.flux.join([B0])
    spec = job(queue="burst")
    spec["resources"][0]["with"].append({"type": "gpu", "count": 1})
    first, second = world.flux.submit(spec), world.flux.submit(spec)
    world.loop.run_until(lambda: "alloc" in world.names(second))
    (share,) = next(e.allocation for e in world.events if isinstance(e, JobEvent) and e.allocation)
    assert (share.host, share.cores, share.gpus) == (B0, 1, 1)
    assert "free" in world.names(first), "there is one GPU: the second waits for the first"


def test_a_request_is_carried_out_though_its_connection_has_gone(world: World) -> None:
    job_id = world.flux.submit(job(queue="staging"))
    future = world.connection.memo(job_id, {"burst": "late"})
    world.connection.close()
    world.loop.run_forever()
    assert isinstance(future.exception(), Disconnected)
    assert world.flux.memo(job_id) == {"burst": "late"}


def test_a_lost_connection_says_so_once_and_the_instance_goes_on(world: World) -> None:
    unanswered = world.connection.allocated()
    world.flux.disconnect("the broker restarts")
    job_id = world.flux.submit(job())
    world.loop.run_forever()
    assert world.events[-1] == ConnectionLost(world.events[-1].at, "the broker restarts")
    assert sum(isinstance(event, ConnectionLost) for event in world.events) == 1
    assert isinstance(unanswered.exception(), Disconnected)
    with pytest.raises(Disconnected):
        world.connection.subscribe(world.events.append)
    assert world.flux.state(job_id) is State.INACTIVE


def test_a_connection_lost_before_its_past_was_told_tells_nothing() -> None:
    world = World()
    connection, events = world.flux.connect(), list[InstanceEvent]()
    connection.subscribe(events.append)
    connection.close()
    world.loop.run_forever()
    assert events == []


def test_a_connection_has_one_subscriber(world: World) -> None:
    with pytest.raises(InstanceError, match="subscriber already"):
        world.connection.subscribe(world.events.append)


def test_a_new_connection_hears_of_hosts_and_jobs_before_the_mark(world: World) -> None:
    world.flux.join([B0])
    world.flux.submit(job(queue="staging"))
    world.loop.run_forever()
    events: list[InstanceEvent] = []
    world.flux.connect().subscribe(events.append)
    world.loop.run_forever()
    assert [type(event) for event in events[:3]] == [ResourceEvent, ResourceEvent, JobEvent]
    assert isinstance(events[-1], CaughtUp)


def test_the_service_answers_who_asks_and_only_while_it_is_there(world: World) -> None:
    asked: list[tuple[str, Caller]] = []

    def handler(method: str, payload: Any, caller: Caller) -> dict[str, Any]:
        asked.append((method, caller))
        if method != "status":
            raise RequestError(f"no method {method}")
        return {"echo": payload}

    world.connection.serve(handler)
    guest = Caller(5000, owner=False)
    assert world.flux.call("status", {"job": 1}) == {"echo": {"job": 1}}
    assert world.flux.call("status", {}, guest) == {"echo": {}}
    assert asked == [("status", Caller(world.flux.facts.owner_uid, owner=True)), ("status", guest)]
    with pytest.raises(RequestError, match="no method"):
        world.flux.call("nonsense", {})
    with pytest.raises(InstanceError, match="File exists"):
        world.flux.connect().serve(handler)
    world.connection.close()
    with pytest.raises(InstanceError, match=r"No service matching burst\.status"):
        world.flux.call("status", {})


def test_an_asyncio_loop_runs_it_in_real_time() -> None:
    loop = asyncio.new_event_loop()
    try:
        flux, seen = MockInstance(loop, CONFIG, started=["batch"]), list[str]()

        def tell(event: InstanceEvent) -> None:
            if isinstance(event, JobEvent):
                assert abs(event.at - time.time()) < 60
                seen.append(event.name)
            if seen[-1:] == ["clean"]:
                loop.stop()

        connection = flux.connect()
        connection.subscribe(tell)
        submitted = connection.submit(job())
        loop.call_later(10.0, loop.stop)
        loop.run_forever()
    finally:
        loop.close()
    assert seen == ["submit", "depend", "priority", "alloc", "start", "finish", "free", "clean"]
    assert flux.state(submitted.result(timeout=0)) is State.INACTIVE


def run_story() -> list[InstanceEvent]:
    world = World(scheduler="easy")
    for number in range(50):
        world.loop.call_later(number * 0.7, world.flux.submit, job("sleep", str(number % 7), queue="burst"))
    world.loop.call_later(3.0, world.flux.join, [B0, B1])
    world.loop.call_later(9.0, world.flux.kill, [B1])
    world.loop.call_later(12.0, world.flux.join, [B1])
    world.loop.run_forever()
    return world.events


def test_the_same_story_is_told_the_same_way_twice() -> None:
    first = run_story()
    assert first == run_story()
    assert sum(getattr(event, "name", "") == "clean" for event in first) == 50
