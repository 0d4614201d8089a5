"""RFC 31 constraints, against an oracle of a few lines and against Flux's own librlist."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxburst.errors import JobspecError
from fluxburst.jobspec import canonical, matches

Constraint = dict[str, Any]

NODES = [("c0", 0, {"a"}), ("c1", 1, {"a", "b"}), ("c2", 2, set()), ("d3", 3, {"b", "c"})]

LEAVES: st.SearchStrategy[Constraint] = st.one_of(
    st.lists(st.sampled_from(["a", "b", "c", "^a", "^b", "nosuch"]), max_size=3).map(lambda v: {"properties": v}),
    st.lists(st.sampled_from(["c0", "c[1-2]", "d3", "c[0,2],d3"]), max_size=2).map(lambda v: {"hostlist": v}),
    st.lists(st.sampled_from(["0", "1-2", "3"]), max_size=2, unique=True).map(lambda v: {"ranks": v}),
)


def grown(leaves: st.SearchStrategy[Constraint], *, least: int, most_not: int) -> st.SearchStrategy[Constraint]:
    """Constraints whose operators have ``least`` operands or more, and ``not`` has ``most_not`` at the most."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, min_size=least, max_size=3).map(lambda parts: {"and": parts}),
            st.lists(inner, min_size=least, max_size=3).map(lambda parts: {"or": parts}),
            st.lists(inner, min_size=least, max_size=most_not).map(lambda parts: {"not": parts}),
        ),
        max_leaves=8,
    )


CONSTRAINTS = grown(LEAVES | st.just({}), least=0, most_not=3)
COMMON = grown(LEAVES, least=1, most_not=1)
"""What Fluxion, librlist and Flux's Python bindings read alike; they differ about empty operands."""


def chosen(constraint: Constraint) -> set[str]:
    return {
        host for host, rank, names in NODES if matches(constraint, host=host, rank=rank, properties=frozenset(names))
    }


def oracle(constraint: Constraint) -> set[str]:
    """The same by sets of hosts, one operator a line."""
    everyone = {host for host, _, _ in NODES}
    if not constraint:
        return everyone
    ((operator, operands),) = constraint.items()
    having = {name: {host for host, _, names in NODES if name in names} for name in ("a", "b", "c", "nosuch")}
    listed = {"c[1-2]": {"c1", "c2"}, "c[0,2],d3": {"c0", "c2", "d3"}, "0": {"c0"}, "1-2": {"c1", "c2"}}
    listed |= {"3": {"d3"}} | {host: {host} for host in everyone}
    match operator:
        case "properties":
            parts = [everyone - having[name[1:]] if name[0] == "^" else having[name] for name in operands]
            return everyone.intersection(*parts)
        case "hostlist" | "ranks":
            return set[str]().union(*(listed[text] for text in operands))
        case "or":
            return set[str]().union(*map(oracle, operands))
        case "and":
            return everyone.intersection(*map(oracle, operands))
    return everyone - everyone.intersection(*map(oracle, operands))


@given(CONSTRAINTS)
def test_a_constraint_chooses_the_nodes_that_the_rfc_says(constraint: Constraint) -> None:
    assert chosen(constraint) == oracle(constraint)


@pytest.mark.flux
@settings(max_examples=200)
@given(COMMON)
def test_a_constraint_chooses_the_nodes_that_flux_itself_chooses(constraint: Constraint) -> None:
    from flux.resource import ResourceSet

    by_property: dict[str, str] = {}
    for _, rank, names in NODES:
        for name in names:
            by_property[name] = f"{by_property[name]},{rank}" if name in by_property else str(rank)
    resources = ResourceSet(
        {
            "version": 1,
            "execution": {
                "R_lite": [{"rank": "0-3", "children": {"core": "0"}}],
                "starttime": 0,
                "expiration": 0,
                "nodelist": ["c[0-2],d3"],
                "properties": by_property,
            },
        }
    )
    assert set(resources.copy_constraint(constraint).nodelist) == chosen(constraint)


@given(st.lists(CONSTRAINTS, min_size=1, max_size=3))
def test_de_morgan(parts: list[Constraint]) -> None:
    negated = [{"not": [part]} for part in parts]
    assert chosen({"not": [{"and": parts}]}) == chosen({"or": negated})
    assert chosen({"not": [{"or": parts}]}) == chosen({"and": negated})
    assert chosen({"not": parts}) == chosen({"not": [{"and": parts}]})


@given(CONSTRAINTS)
def test_the_canonical_text_is_the_constraint_itself_and_ignores_the_order_of_keys(constraint: Constraint) -> None:
    text = canonical(constraint)
    assert (json.loads(text) if text else {}) == constraint
    assert canonical(json.loads(json.dumps(constraint))) == text


@given(CONSTRAINTS, CONSTRAINTS)
def test_canonical_texts_are_equal_exactly_for_equal_constraints(one: Constraint, other: Constraint) -> None:
    assert (canonical(one) == canonical(other)) == (one == other)


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_constraint_is_an_empty_text(nothing: Constraint | None) -> None:
    assert canonical(nothing) == ""


def nested(depth: int) -> Constraint:
    constraint: Constraint = {"properties": ["a"]}
    for _ in range(depth):
        constraint = {"not": [constraint]}
    return constraint


@pytest.mark.parametrize(
    ("constraint", "place"),
    [
        ({"nor": []}, "constraints: operator 'nor'"),
        ({"properties": "a"}, "constraints.properties: operands must be a list"),
        ({"properties": [1]}, "constraints.properties: operands must be strings"),
        ({"and": {"properties": ["a"]}}, "constraints.and: operands must be a list"),
        ({"and": ["a"]}, "constraints: 'a' is not an object"),
        ({"and": [], "or": []}, "constraints: {"),
        ({"hostlist": ["c["]}, "constraints.hostlist: 'c['"),
        ({"ranks": ["x"]}, "constraints.ranks: 'x'"),
        ({"hostlist": ["c[0-999999999]"]}, "constraints.hostlist: 'c[0-999999999]' is too long"),
        ({"ranks": ["0-999999999"]}, "constraints.ranks: '0-999999999' is too long"),
        ({"or": [{}, {"nor": []}]}, "constraints: operator 'nor'"),
        ({"and": [{"properties": ["nosuch"]}, {"ranks": [None]}]}, "constraints.ranks: operands must be strings"),
        (nested(500), "constraints: operators nest deeper than"),
        ([{"properties": ["a"]}], "constraints: [{"),
    ],
)
def test_a_malformed_constraint_is_refused_with_its_place_wherever_it_hides(constraint: Any, place: str) -> None:
    with pytest.raises(JobspecError) as raised:
        canonical(constraint)
    assert str(raised.value).startswith(place)


def test_a_hosts_name_is_none_of_its_properties() -> None:
    assert chosen({"properties": ["c1"]}) == set()
    assert chosen({"properties": ["^c1"]}) == {"c0", "c1", "c2", "d3"}


def test_deep_nesting_that_a_person_might_write_is_fine() -> None:
    assert chosen(nested(20)) == {"c0", "c1"}
