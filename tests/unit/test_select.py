from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxburst import config, select
from fluxburst.config import BurstConfig
from fluxburst.errors import OptionError
from fluxburst.model import Demand, JobId
from fluxburst.select import BurstOptions, Candidate

UID = os.getuid()
QUEUES = {"batch": {"requires": ["home"]}, "c2": {"requires": ["c2"]}, "gpu": {"requires": ["gpu"]}, "debug": {}}


def site(extra: str = "", mode: str = "queue") -> BurstConfig:
    return config.parse(
        f"""
        cluster = "corona"
        mode = "{mode}"
        {extra}
        [lead]
        connect = "tcp://203.0.113.7:30093"
        [pool.c2]
        provider = "gke"
        hosts = "c2-[0-7]"
        cores = 4
        [pool.gpu]
        provider = "eks"
        hosts = "gpu-[0-1]"
        cores = 8
        gpus = 2
        """
    )


def job(nodes: int = 1, slots: int = 0, **system: Any) -> dict[str, Any]:
    cores = [{"type": "core", "count": 1}]
    top: dict[str, Any] = {"type": "slot", "count": slots or 1, "with": cores, "label": "task"}
    if not slots:
        top = {"type": "node", "count": nodes, "with": [top]}
    return {"version": 1, "resources": [top], "attributes": {"system": system}}


def undecided(job: Mapping[str, Any]) -> None:
    del job


def judge(
    spec: Mapping[str, Any],
    where: BurstConfig | None = None,
    choose: Callable[[Mapping[str, Any]], bool | str | None] = undecided,
    userid: int = UID,
) -> Candidate:
    return select.candidate(JobId(7), userid, spec, where or site(), QUEUES, choose)


@pytest.mark.parametrize("value", [True, 1, 1.0, {}, {"pool": "c2"}])
def test_true_one_and_a_table_mark_a_job_as_burstable(value: object) -> None:
    assert select.is_burstable(job(burstable=value))


@pytest.mark.parametrize("value", [False, 0, 2, -1, None, "", "false", "true", "1", []])
def test_nothing_else_does(value: object) -> None:
    assert not select.is_burstable(job(burstable=value))


@pytest.mark.parametrize("spec", [{}, {"attributes": None}, {"attributes": {}}, {"attributes": {"system": {}}}, job()])
def test_a_job_without_the_mark_is_not_burstable(spec: dict[str, Any]) -> None:
    assert not select.is_burstable(spec)


@pytest.mark.parametrize(
    ("burst", "options"),
    [
        (None, BurstOptions()),
        ({}, BurstOptions()),
        ({"pool": "c2"}, BurstOptions(pool="c2")),
        ({"provider": "gke"}, BurstOptions(provider="gke")),
        ({"wait": "5m"}, BurstOptions(wait_s=300.0)),
        ({"wait": 90}, BurstOptions(wait_s=90.0)),
        ({"max_usd": 3}, BurstOptions(max_usd=3.0)),
        ({"max_usd": 0}, BurstOptions(max_usd=0.0)),
        ({"spot": True}, BurstOptions(spot=True)),
        ({"spot": 0}, BurstOptions(spot=False)),
        (
            {"pool": "c2", "provider": "gke", "wait": ".5h", "max_usd": 0.25, "spot": False},
            BurstOptions("c2", "gke", 1800.0, 0.25, False),
        ),
    ],
)
def test_every_option_is_read(burst: object, options: BurstOptions) -> None:
    assert select.options(job(burstable=True, burst=burst)) == options


def test_options_stand_below_burstable_as_well_and_those_below_burst_win() -> None:
    spec = job(burstable={"pool": "c2", "spot": True}, burst={"pool": "gpu"})
    assert select.options(spec) == BurstOptions(pool="gpu", spot=True)


@pytest.mark.parametrize(
    ("burst", "message"),
    [
        ({"pool": 3}, "burst.pool=3: must be a pool's name"),
        ({"pool": ""}, "burst.pool='': must be a pool's name"),
        ({"provider": True}, "burst.provider=True: must be a provider's name"),
        ({"wait": "soon"}, "burst.wait='soon': must be a duration"),
        ({"wait": -1}, "burst.wait=-1: must be a duration"),
        ({"wait": True}, "burst.wait=True: must be a duration"),
        ({"wait": [1]}, "burst.wait=[1]: must be a duration"),
        ({"wait": {"h": 1}}, "burst.wait={'h': 1}: must be a duration"),
        ({"max_usd": "a lot"}, "burst.max_usd='a lot': must be a number of US dollars"),
        ({"max_usd": "3"}, "burst.max_usd='3': must be a number of US dollars"),
        ({"max_usd": -1}, "burst.max_usd=-1: must be a number"),
        ({"max_usd": True}, "burst.max_usd=True: must be a number"),
        ({"max_usd": float("nan")}, "burst.max_usd=nan: must be a number"),
        ({"max_usd": float("inf")}, "burst.max_usd=inf: must be a number"),
        ({"spot": "yes"}, "burst.spot='yes': must be true or false"),
        ({"spot": 2}, "burst.spot=2: must be true or false"),
        ({"spot": None}, "burst.spot=None: must be true or false"),
        ({"foo": 1}, "burst.foo: unknown option; burst.pool, burst.provider, burst.wait, burst.max_usd, burst.spot"),
        (5, "burst=5: is no option itself"),
        (False, "burst=False: is no option itself"),
        ("c2", "burst='c2': is no option itself"),
    ],
)
def test_a_malformed_option_is_refused_by_its_key(burst: object, message: str) -> None:
    spec = job(burstable=True, burst=burst)
    with pytest.raises(OptionError) as raised:
        select.options(spec)
    assert str(raised.value).startswith(message)
    assert judge(spec).refusal == str(raised.value)


def test_an_option_below_burstable_is_named_as_it_was_written() -> None:
    with pytest.raises(OptionError, match=r"^burstable\.foo: unknown option"):
        select.options(job(burstable={"foo": 1}))


def test_a_plain_job_may_go_to_every_pool_in_the_files_order() -> None:
    candidate = judge(job(2, queue="batch"))
    assert candidate == Candidate(JobId(7), UID, Demand(2, 2, 1), BurstOptions(), ("c2", "gpu"))


@pytest.mark.parametrize(
    ("burst", "queue", "pools"),
    [
        ({"pool": "gpu"}, "batch", ("gpu",)),
        ({"provider": "gke"}, "batch", ("c2",)),
        ({"pool": "c2", "provider": "gke"}, "batch", ("c2",)),
        ({}, "gpu", ("gpu",)),
        ({"pool": "gpu"}, "gpu", ("gpu",)),
        ({}, "staging", ("c2", "gpu")),
    ],
)
def test_options_and_a_pools_own_queue_narrow_the_pools(burst: object, queue: str, pools: tuple[str, ...]) -> None:
    assert judge(job(burst=burst, queue=queue)).pools == pools


@pytest.mark.parametrize(
    ("burst", "queue", "message"),
    [
        ({"pool": "nosuch"}, "batch", "burst.pool=nosuch: no such pool; there is c2, gpu"),
        ({"provider": "nosuch"}, "batch", "burst.provider=nosuch: no pool has it; there is eks, gke"),
        ({"pool": "c2", "provider": "eks"}, "batch", "burst.pool, burst.provider and the job's queue together"),
        ({"pool": "c2"}, "gpu", "burst.pool, burst.provider and the job's queue together"),
    ],
)
def test_options_that_leave_no_pool_are_refused(burst: object, queue: str, message: str) -> None:
    candidate = judge(job(burst=burst, queue=queue))
    assert candidate.refusal.startswith(message)
    assert (candidate.demand, candidate.pools) == (None, ())


BIG = {"properties": ["big"]}


@pytest.mark.parametrize("queue", ["batch", "debug", "staging", ""])
def test_in_queue_mode_a_job_with_constraints_of_its_own_cannot_be_moved(queue: str) -> None:
    candidate = judge(job(queue=queue, constraints=BIG))
    assert candidate.refusal.startswith("constraints: Flux moves no job that has constraints of its own")
    assert "-q (c2, gpu)" in candidate.refusal


def test_what_its_queue_added_is_not_its_own() -> None:
    candidate = judge(job(queue="batch", constraints={"properties": ["home"]}))
    assert candidate.demand == Demand(1, 1, 1)


def test_from_the_pools_own_queue_it_bursts_with_its_constraints() -> None:
    constraint = {"and": [{"properties": ["c2"]}, BIG]}
    candidate = judge(job(queue="c2", constraints=constraint))
    assert candidate.demand is not None
    assert json.loads(candidate.demand.constraint) == constraint


def test_in_open_mode_constraints_stay_with_the_job() -> None:
    candidate = judge(job(constraints=BIG), site(mode="open"))
    assert candidate.demand is not None
    assert json.loads(candidate.demand.constraint) == BIG
    assert candidate.pools == ("c2", "gpu")


@pytest.mark.parametrize(
    "constraints", [{"nor": []}, {"properties": "home"}, [1], "home", {"hostlist": ["c2-[0-999999999]"]}]
)
@pytest.mark.parametrize("mode", ["queue", "open"])
def test_malformed_constraints_are_refused(constraints: object, mode: str) -> None:
    assert judge(job(constraints=constraints), site(mode=mode)).refusal.startswith("constraints")


def test_a_jobspec_that_cannot_be_read_is_a_refusal_and_no_exception() -> None:
    assert judge(job() | {"version": 2}).refusal.startswith("jobspec version 2")


def test_a_plugins_yes_overrules_the_sites_table() -> None:
    rules = site("select = { users = [0], queues = ['debug'], max_nodes_per_job = 1 }")
    assert judge(job(2, queue="batch"), rules, userid=12345).refusal
    assert judge(job(2, queue="batch"), rules, lambda job: True, userid=12345).demand == Demand(2, 2, 1)


def test_a_plugins_word_is_the_reason_of_its_refusal() -> None:
    assert judge(job(), choose=lambda job: "bank is empty").refusal == "bank is empty"
    assert "refused the job without a reason" in judge(job(), choose=lambda job: False).refusal


def test_a_plugin_sees_the_job_and_its_options() -> None:
    seen: list[Mapping[str, Any]] = []
    spec = job(queue="batch", bank="lc", project="sno", burst={"pool": "c2"})
    judge(spec, choose=seen.append)
    assert seen == [
        {
            "id": 7,
            "userid": UID,
            "queue": "batch",
            "bank": "lc",
            "project": "sno",
            "options": BurstOptions(pool="c2"),
            "jobspec": spec,
        }
    ]


def test_users_are_admitted_by_number_or_by_name() -> None:
    name = pwd.getpwuid(UID).pw_name
    assert judge(job(), site(f"select = {{ users = [{UID}] }}")).refusal == ""
    assert judge(job(), site(f"select = {{ users = ['{name}'] }}")).refusal == ""
    refusal = judge(job(), site("select = { users = [4294967000, 'nosuch'] }")).refusal
    assert refusal == f"user {name} may not burst; ask for an entry in [select] users"
    assert "user 4294967001 may" in judge(job(), site("select = { users = [4294967000] }"), userid=4294967001).refusal


@pytest.mark.parametrize(("queue", "admitted"), [("debug", True), ("staging", True), ("c2", True), ("batch", False)])
def test_queues_are_admitted_by_name_and_those_of_bursting_always(queue: str, admitted: bool) -> None:
    refusal = judge(job(queue=queue), site("select = { queues = ['debug'] }")).refusal
    assert refusal == ("" if admitted else "jobs of queue 'batch' may not burst; [select] queues admits debug")


def test_no_job_may_take_more_nodes_than_the_site_allows() -> None:
    rules = site("select = { max_nodes_per_job = 2 }")
    assert judge(job(2), rules).pools == ("c2", "gpu")
    assert judge(job(3), rules).refusal == "3 nodes are more than [select] max_nodes_per_job = 2"


def test_a_job_that_counts_slots_is_held_to_that_limit_by_each_pools_nodes() -> None:
    rules = site("select = { max_nodes_per_job = 2 }")
    assert judge(job(slots=8), rules).pools == ("c2", "gpu")
    assert judge(job(slots=9), rules).pools == ("gpu",)
    assert judge(job(slots=17), rules).refusal == "3 nodes are more than [select] max_nodes_per_job = 2"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.sampled_from(["", "c2", "5m", "batch"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["pool", "wait", "spot", "and", "properties", "hostlist"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.sampled_from(["burstable", "burst", "queue", "constraints", "duration", "bank"]), JSON, max_size=4
    ),
    st.sampled_from(["queue", "open"]),
)
def test_no_users_mistake_ever_raises(system: dict[str, Any], mode: str) -> None:
    candidate = judge(job(**system), site(mode=mode))
    assert (candidate.demand is None) == bool(candidate.refusal)
    assert bool(candidate.pools) == (candidate.demand is not None)
    assert "\n" not in candidate.refusal
