"""The frobnicator plugin on real jobspecs; only Flux's bindings are needed, no broker."""

from __future__ import annotations

import ast
import copy
import importlib.util
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxburst.flux import bindings
from fluxburst.flux.private import find_flux
from fluxburst.flux.render import PLUGIN, render

from .conftest import burst, site

pytestmark = pytest.mark.flux
HOME = {"hosts": "n[1-4]", "cores": "0-7", "gpus": "0-1"}


def plugin_module() -> ModuleType:
    bindings.load(find_flux())
    spec = importlib.util.spec_from_file_location("frobnicator", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rendered(mode: str) -> dict[str, Any]:
    """lead0 with 2 cores and n1 to n4 with 8 cores and 2 GPUs; queue ``fast`` has only n1 and n2."""
    own = site(queues={"batch": {}, "fast": {"requires": ["ssd"]}})
    own["bootstrap"]["hosts"].append({"host": "n[1-4]"})
    own["resource"]["config"] += [HOME, {"hosts": "n[1-2]", "properties": ["ssd"]}]
    return render(burst(mode), own, frobnicator=PLUGIN).lead


def make(config: dict[str, Any]) -> Any:
    plugin = plugin_module().Frobnicator(parser=None)
    plugin.configure(None, config)
    return plugin


@pytest.fixture(scope="module")
def queue_mode() -> Any:
    return make(rendered("queue"))


@pytest.fixture(scope="module")
def open_mode() -> Any:
    return make(rendered("open"))


def frob(plugin: Any, jobspec: dict[str, Any]) -> dict[str, Any]:
    """The jobspec after the plugin, as Flux's ingest calls it."""
    from flux.job import Jobspec

    spec = Jobspec(**copy.deepcopy(jobspec))
    plugin.frob(spec, 1000, 16, 0)
    result: dict[str, Any] = spec.jobspec
    return result


def slots(count: Any, cores: Any = 1, gpus: Any = 0, nodes: Any = 0) -> list[dict[str, Any]]:
    inner = [{"type": "core", "count": cores}] + ([{"type": "gpu", "count": gpus}] if gpus else [])
    slot = {"type": "slot", "count": count, "label": "task", "with": inner}
    return [{"type": "node", "count": nodes, "with": [slot]}] if nodes else [slot]


def job(resources: list[dict[str, Any]], version: int = 1, **system: Any) -> dict[str, Any]:
    task = {"command": ["true"], "slot": "task", "count": {"per_slot": 1}}
    return {
        "resources": resources,
        "tasks": [task],
        "attributes": {"system": {"duration": 0, "queue": "batch"} | system},
        "version": version,
    }


def queue_of(jobspec: dict[str, Any]) -> str:
    queue: str = jobspec["attributes"]["system"]["queue"]
    return queue


@pytest.mark.parametrize(
    ("resources", "queue", "fits"),
    [
        (slots(34), "batch", True),
        (slots(35), "batch", False),
        (slots(4, cores=8), "batch", True),
        (slots(5, cores=8), "batch", False),
        (slots(5, cores=5), "batch", False),
        (slots(8, gpus=1), "batch", True),
        (slots(9, gpus=1), "batch", False),
        (slots(1, cores=9), "batch", False),
        (slots(1, nodes=5), "batch", True),
        (slots(1, nodes=6), "batch", False),
        (slots(8, nodes=4), "batch", True),
        (slots(9, nodes=1), "batch", False),
        (slots(3, nodes=5), "batch", False),
        (slots(1, gpus=3, nodes=1), "batch", False),
        (slots(16), "fast", True),
        (slots(17), "fast", False),
        (slots(1, nodes=3), "fast", False),
        (slots({"min": 34, "max": 99, "operator": "+", "operand": 1}), "batch", True),
        (slots({"min": 35, "max": 99, "operator": "+", "operand": 1}), "batch", False),
        (slots(1, nodes="2-9"), "fast", True),
        (slots(1, nodes="3-9:2:*"), "fast", False),
        (slots(1, nodes="3+"), "fast", False),
        (slots(1, nodes="2,4"), "fast", True),
    ],
)
def test_a_burstable_job_that_its_queue_s_nodes_could_never_run_goes_to_staging(
    queue_mode: Any, resources: list[dict[str, Any]], queue: str, fits: bool
) -> None:
    routed = frob(queue_mode, job(resources, queue=queue, burstable=True))
    assert queue_of(routed) == (queue if fits else "staging")
    ordinary = job(resources, queue=queue)
    assert frob(queue_mode, ordinary) == ordinary


@pytest.mark.parametrize("yes", [True, 1, {}, {"pool": "c2"}])
def test_true_one_and_a_table_are_burstable(queue_mode: Any, yes: Any) -> None:
    assert queue_of(frob(queue_mode, job(slots(99), burstable=yes))) == "staging"
    named = job(slots(1), burstable=yes, queue="c2")
    assert frob(queue_mode, named) == named


@pytest.mark.parametrize("no", [False, 0, None, "", []])
def test_nothing_else_is_burstable(queue_mode: Any, no: Any) -> None:
    assert queue_of(frob(queue_mode, job(slots(99), burstable=no))) == "batch"
    for queue in ("c2", "gpu", "staging"):
        with pytest.raises(ValueError, match=rf"queue '{queue}' .* --setattr=burstable.*\(batch, fast\)"):
            frob(queue_mode, job(slots(1), burstable=no, queue=queue))


@pytest.mark.parametrize("mode", ["queue", "open"])
@pytest.mark.parametrize(
    ("system", "said"),
    [
        ({"burstable": "True"}, r"^burstable=True: write --setattr=burstable=true, or leave it out$"),
        ({"burstable": "yes", "burst": {"pool": "c2"}}, r"^burstable=yes: write --setattr=burstable=true"),
        ({"burstable": "false"}, r"^burstable=false: .* leave it out$"),
        ({"burstable": 2}, r"^burstable=2: "),
        ({"burstable": [1]}, r"^burstable=\[1\]: "),
        ({"burst": {"pool": "c2"}}, r"^burst\.pool has no effect without --setattr=burstable=true: add it, or"),
        ({"burst": {"spot": True}, "burstable": None}, r"^burst\.spot has no effect without"),
        ({"burst": 3}, r"^burst has no effect without"),
    ],
)
def test_a_near_miss_is_refused_with_what_to_write(
    request: pytest.FixtureRequest, mode: str, system: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        frob(request.getfixturevalue(f"{mode}_mode"), job(slots(1), **system))


@pytest.mark.parametrize("system", [{"burstable": False, "burst": {"pool": "c2"}}, {"burst": {}}, {"burst": None}])
def test_options_of_a_job_that_says_it_is_not_burstable_do_no_harm(queue_mode: Any, system: dict[str, Any]) -> None:
    ordinary = job(slots(99), **system)
    assert frob(queue_mode, ordinary) == ordinary


@pytest.mark.parametrize(
    "jobspec",
    [
        job(slots(99), burstable=True, constraints={"properties": ["ssd"]}),
        job(slots(99), burstable=True, queue="unknown"),
        job(slots(99), burstable=True, version=9999),
        job([{"type": "rack", "count": 9, "with": slots(1)}], burstable=True),
        job([*slots(99), *slots(99)], burstable=True),
    ],
)
def test_what_could_not_be_moved_later_or_is_no_version_1_jobspec_is_left_alone(
    queue_mode: Any, jobspec: dict[str, Any]
) -> None:
    assert frob(queue_mode, jobspec) == jobspec


AWAY = {"properties": ["^c2", "^gpu"]}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, AWAY),
        ({}, AWAY),
        ({"properties": ["ssd"]}, {"and": [{"properties": ["ssd"]}, AWAY]}),
        ({"or": [{"ranks": ["1"]}]}, {"and": [{"or": [{"ranks": ["1"]}]}, AWAY]}),
        ({"properties": ["^c2", "^gpu", "ssd"]}, {"properties": ["^c2", "^gpu", "ssd"]}),
    ],
)
def test_in_open_mode_an_ordinary_job_is_kept_off_every_pool(open_mode: Any, own: Any, expected: Any) -> None:
    system = {} if own is None else {"constraints": own}
    result = frob(open_mode, job(slots(1), **system))
    assert result["attributes"]["system"]["constraints"] == expected
    burstable = job(slots(1), burstable=1, **system)
    assert frob(open_mode, burstable) == burstable


def test_one_job_s_constraints_do_not_reach_the_next_job(open_mode: Any) -> None:
    frob(open_mode, job(slots(1)))["attributes"]["system"]["constraints"]["properties"].append("ssd")
    assert frob(open_mode, job(slots(1)))["attributes"]["system"]["constraints"] == AWAY


counts = st.one_of(
    st.integers(1, 50),
    st.integers(1, 50).map(lambda low: f"{low}-{low + 9}"),
    st.integers(1, 50).map(lambda low: {"min": low, "max": low + 9, "operator": "+", "operand": 1}),
)
constraints = st.recursive(
    st.fixed_dictionaries({"properties": st.lists(st.sampled_from(["ssd", "^c2", "^gpu", "home"]))}),
    lambda inner: st.fixed_dictionaries({"and": st.lists(inner, max_size=3)}),
    max_leaves=4,
)
jobs = st.builds(
    lambda resources, system: job(resources, **system),
    st.builds(slots, counts, st.integers(1, 9), st.integers(0, 3), st.one_of(st.just(0), counts)),
    st.fixed_dictionaries(
        {"queue": st.sampled_from(["batch", "fast"])},
        optional={"burstable": st.sampled_from([True, False, 1, 0, {}]), "constraints": constraints},
    ),
)


@given(jobspec=jobs)
def test_running_twice_is_the_same_as_once(queue_mode: Any, open_mode: Any, jobspec: dict[str, Any]) -> None:
    for plugin in (queue_mode, open_mode):
        once = frob(plugin, jobspec)
        assert frob(plugin, once) == once


@pytest.mark.parametrize(
    ("mode", "key", "value", "said"),
    [
        ("queue", "mode", "both", r"\[burst\] mode: is 'both'"),
        ("open", "pools", None, r"\[burst\] pools: 'pools' is missing"),
        ("open", "pools", ["c2"], r"\[burst\] pools"),
        ("queue", "staging", None, r"\[burst\] staging: 'staging' is missing"),
        ("queue", "capacity", [{"count": 1}], r"\[burst\] capacity: 'cores' is missing"),
        ("queue", "staging", "elsewhere", r"\[queues\]: lacks elsewhere"),
    ],
)
def test_a_malformed_burst_table_is_refused_when_it_is_configured(mode: str, key: str, value: Any, said: str) -> None:
    config = rendered(mode)
    config["burst"][key] = value
    if value is None:
        del config["burst"][key]
    with pytest.raises(ValueError, match=said):
        make(config)


def test_the_file_reads_as_python_3_6() -> None:
    """The oldest Python that flux-core builds with."""
    ast.parse(PLUGIN.read_text(), feature_version=(3, 6))
