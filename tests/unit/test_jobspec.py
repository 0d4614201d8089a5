from __future__ import annotations

import copy
import json
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxburst import jobspec
from fluxburst.errors import JobspecError
from fluxburst.flux.private import find_flux
from fluxburst.model import Demand


def core(count: Any = 1) -> dict[str, Any]:
    return {"type": "core", "count": count}


def gpu(count: Any = 1) -> dict[str, Any]:
    return {"type": "gpu", "count": count}


def slot(count: Any, *children: Any) -> dict[str, Any]:
    return {"type": "slot", "count": count, "with": list(children) or [core()], "label": "task"}


def node(count: Any, child: Any, *, exclusive: bool = False) -> dict[str, Any]:
    return {"type": "node", "count": count, "with": [child]} | ({"exclusive": True} if exclusive else {})


def spec(*resources: Any, version: Any = 1, **system: Any) -> dict[str, Any]:
    return {"version": version, "resources": list(resources), "attributes": {"system": {"duration": 0} | system}}


FORMS = [
    ("submit -N2", node(2, slot(1), exclusive=True), {}, Demand(2, 2, 1, exclusive=True)),
    ("submit -N2 -n4", node(2, slot(2)), {}, Demand(2, 4, 1)),
    ("submit -N3 -n8", node(3, slot(3)), {}, Demand(3, 9, 1)),
    ("submit -n4", slot(4), {}, Demand(0, 4, 1)),
    ("submit -c2 -g1", slot(1, core(2), gpu(1)), {}, Demand(0, 1, 2, 1)),
    ("submit -N2 --exclusive", node(2, slot(1), exclusive=True), {}, Demand(2, 2, 1, exclusive=True)),
    ("submit -N2 -n4 --exclusive", node(2, slot(2), exclusive=True), {}, Demand(2, 4, 1, exclusive=True)),
    ("submit --requires=big", slot(1), {"constraints": {"properties": ["big"]}}, Demand(0, 1, 1)),
    (
        "submit --requires=host:c[1-2]|-big",
        slot(1),
        {"constraints": {"or": [{"hostlist": ["c[1-2]"]}, {"not": [{"properties": ["big"]}]}]}},
        Demand(0, 1, 1),
    ),
    ("submit -t 5m", slot(1), {"duration": 300.0}, Demand(0, 1, 1, duration_s=300.0)),
    ("submit -q batch", slot(1), {"queue": "batch"}, Demand(0, 1, 1)),
    ("run -N2 --cores=8", node(2, slot(1, core(4))), {}, Demand(2, 2, 4)),
    ("run -N2 --gpus-per-node=1", node(2, slot(1, core(), gpu(1)), exclusive=True), {}, Demand(2, 2, 1, 1, True)),
    ("batch --wrap -n4 -c2", slot(4, core(2)), {}, Demand(0, 4, 2)),
]
"""What a person writes, the resources and system attributes that Flux makes of it, and what that needs."""


@pytest.mark.parametrize(("command", "resources", "system", "demand"), FORMS, ids=[form[0] for form in FORMS])
def test_every_form_of_a_v1_jobspec_is_understood(
    command: str, resources: dict[str, Any], system: dict[str, Any], demand: Demand
) -> None:
    assert jobspec.demand(spec(resources, **system)) == demand


@pytest.mark.flux
@pytest.mark.parametrize(("command", "resources", "system", "demand"), FORMS, ids=[form[0] for form in FORMS])
def test_the_forms_are_those_that_flux_makes(
    command: str, resources: dict[str, Any], system: dict[str, Any], demand: Demand
) -> None:
    verb, *arguments = command.split()
    made = json.loads(
        subprocess.run(
            [str(find_flux()), verb, "--dry-run", *arguments, "true"], check=True, capture_output=True, timeout=30
        ).stdout
    )
    assert made["version"] == 1
    assert made["resources"] == [resources]
    attributes = {key: made["attributes"]["system"].get(key) for key in ("duration", "queue", "constraints")}
    assert attributes == {"duration": 0, "queue": None, "constraints": None} | system


@pytest.mark.parametrize(
    ("count", "least"),
    [
        (3, 3),
        ({"min": 2}, 2),
        ({"min": 2, "max": 8, "operator": "*", "operand": 2}, 2),
        ("2", 2),
        ("2-8", 2),
        ("[2-8]", 2),
        ("2+", 2),
        ("2+:3", 2),
        ("2-8:2", 2),
        ("2-8:2:*", 2),
        ("3,5", 3),
        ("[3,5-7]", 3),
    ],
)
def test_the_least_value_of_a_count_counts(count: object, least: int) -> None:
    assert jobspec.least(count, "here") == least
    assert jobspec.demand(spec(node(count, slot(1)))).nodes == least


@given(st.integers(1, 100), st.integers(0, 100), st.booleans())
def test_a_range_counts_from_its_start_in_both_its_forms(start: int, more: int, brackets: bool) -> None:
    text = f"{start}-{start + more}"
    assert jobspec.least(f"[{text}]" if brackets else text, "here") == start
    assert jobspec.least({"min": start, "max": start + more}, "here") == start


@pytest.mark.parametrize(
    "count",
    [
        *[0, -1, True, None, 1.5, [], "", "x", "0", "0+", "4-2", "[2", "2]", "2-4:1:x", "1,", "2-999999999,5", {}],
        *[{"max": 3}, {"min": 0}, {"min": 3, "max": 2}, {"min": "1"}, {"min": True}, {"min": 1, "max": "2"}],
    ],
)
def test_a_malformed_count_is_refused_with_its_place(count: object) -> None:
    with pytest.raises(JobspecError, match=r"^resources\.node: count "):
        jobspec.demand(spec(node(count, slot(1))))
    with pytest.raises(JobspecError, match=r"^resources\.slot\.gpu: count "):
        jobspec.demand(spec(slot(1, core(), gpu(count))))


@pytest.mark.parametrize(
    ("broken", "place"),
    [
        (spec(slot(1), version=2), "jobspec version 2"),
        (spec(slot(1), version=None), "jobspec version None"),
        (spec(), "resources: exactly one"),
        (spec(slot(1), slot(1)), "resources: exactly one"),
        (spec("slot"), "resources: exactly one"),
        ({"version": 1, "resources": None}, "resources: exactly one"),
        ({"version": 1, "resources": {"type": "slot"}}, "resources: exactly one"),
        (spec(core()), "resources: type 'core'"),
        (spec({"count": 1}), "resources: type None"),
        (spec(node(1, core())), "resources.node: exactly one slot"),
        (spec({"type": "node", "count": 1}), "resources.node: exactly one slot"),
        (spec({"type": "node", "count": 1, "with": 5}), "resources.node.with"),
        (spec(node(1, "slot")), "resources.node.with"),
        (spec(slot(1, "core")), "resources.slot.with"),
        (spec({"type": "slot", "count": 1, "with": {"type": "core"}}), "resources.slot.with"),
        (spec({"type": "slot", "count": 1, "with": "core"}), "resources.slot.with"),
        (spec({"type": "slot", "count": 1}), "resources.slot: a slot needs at least one core"),
        (spec(slot(1, gpu())), "resources.slot: a slot needs at least one core"),
        (spec(slot(1, core(), {"type": "memory", "count": 1})), "resources.slot: type 'memory'"),
        (spec(slot(1, core() | {"with": [gpu()]})), "resources.slot.core: nested"),
        (spec(slot(1), duration="5m"), "attributes.system.duration"),
        (spec(slot(1), duration=-1), "attributes.system.duration"),
        (spec(slot(1), duration=True), "attributes.system.duration"),
        (spec(slot(1)) | {"attributes": []}, None),
        (spec(slot(1)) | {"attributes": [1]}, "attributes: not a table"),
        (spec(slot(1)) | {"attributes": {"system": "x"}}, "attributes.system: not a table"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_place(broken: dict[str, Any], place: str | None) -> None:
    if place is None:  # an empty value is as good as none
        assert jobspec.demand(broken) == Demand(0, 1, 1)
        return
    with pytest.raises(JobspecError) as raised:
        jobspec.demand(broken)
    assert str(raised.value).startswith(place)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
PATHS: list[tuple[str | int, ...]] = [
    ("version",), ("resources",), ("resources", 0), ("resources", 0, "type"), ("resources", 0, "count"),
    ("resources", 0, "with"), ("resources", 0, "with", 0), ("resources", 0, "with", 0, "type"),
    ("resources", 0, "with", 0, "with"), ("resources", 0, "with", 0, "with", 0), ("attributes",),
    ("attributes", "system"), ("attributes", "system", "duration"), ("attributes", "system", "queue"),
]  # fmt: skip


@given(st.sampled_from(PATHS), JSON)
def test_whatever_stands_in_a_jobspec_it_is_read_or_refused_in_one_line(
    path: tuple[str | int, ...], value: Any
) -> None:
    broken: Any = spec(node(2, slot(1, core(), gpu())), queue="batch")
    inner = broken
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    try:
        demand = jobspec.demand(broken)
        jobspec.queue(broken)
    except JobspecError as error:
        told = str(error)
    else:
        told = repr(demand)
        assert demand.slots >= 1
        assert demand.cores_per_slot >= 1
    assert told
    assert "\n" not in told


def test_a_queue_is_a_name() -> None:
    assert jobspec.queue(spec(slot(1), queue="batch")) == "batch"
    assert jobspec.queue(spec(slot(1))) == ""
    with pytest.raises(JobspecError, match=r"attributes\.system\.queue: \['a'\]"):
        jobspec.queue(spec(slot(1), queue=["a"]))


def test_the_constraint_and_the_spot_wish_become_part_of_the_demand() -> None:
    demand = jobspec.demand(spec(slot(1)), constraint={"properties": ["big"]}, spot=True)
    assert (json.loads(demand.constraint), demand.spot) == ({"properties": ["big"]}, True)


def test_a_resubmission_names_its_predecessor_and_changes_nothing_else() -> None:
    original = spec(slot(1)) | {"tasks": [{"command": ["true"]}]}
    original["attributes"]["user"] = {"mine": 1}
    before = copy.deepcopy(original)
    marked = jobspec.mark_resubmission(original, 17, 2)
    assert original == before
    assert marked["attributes"]["user"] == {"mine": 1, "fluxburst": {"resubmit_of": 17, "attempt": 2}}
    assert (jobspec.resubmit_of(marked), jobspec.attempt(marked)) == (17, 2)
    assert (jobspec.resubmit_of(original), jobspec.attempt(original)) == (None, 0)
    assert {**marked, "attributes": None} == {**original, "attributes": None}
    assert marked["attributes"]["system"] == original["attributes"]["system"]


@pytest.mark.parametrize("attributes", [None, {}, {"user": None}, {"user": "text"}])
def test_a_resubmission_is_marked_where_there_were_no_attributes_of_the_user(attributes: object) -> None:
    marked = jobspec.mark_resubmission({"attributes": attributes}, 17, 1)
    assert marked["attributes"]["user"] == {"fluxburst": {"resubmit_of": 17, "attempt": 1}}
