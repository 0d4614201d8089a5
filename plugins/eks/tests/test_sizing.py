from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fluxburst_eks.sizing import Shrinking, shrinking


def test_what_no_pod_needs_is_given_back_by_name() -> None:
    assert shrinking(3, ["a", "b", "c"], {"a", "c"}, 0) == Shrinking(give_back=("b",))


def test_what_has_not_come_is_no_longer_wanted_and_costs_none_that_has() -> None:
    assert shrinking(3, ["a", "b"], {"a", "b"}, 0) == Shrinking(protect=("a", "b"), size=2)


def test_all_go_at_once() -> None:
    assert shrinking(9, ["a", "b"], set(), 0) == Shrinking(size=0)
    assert shrinking(0, ["a", "b"], set(), 0) == Shrinking()
    # one that is protected stays although the group is to have none
    assert shrinking(0, ["a", "b"], set(), 0, protected={"b"}) == Shrinking(size=0)


def test_while_a_pod_waits_any_empty_machine_may_be_its_own() -> None:
    assert shrinking(3, ["a", "b", "c"], {"a"}, 1) == Shrinking()


MACHINES = st.integers(0, 8).map(lambda count: [f"i-{number}" for number in range(count)])


@st.composite
def moments(draw: st.DrawFn) -> tuple[int, list[str], frozenset[str], int, frozenset[str]]:
    alive = draw(MACHINES)
    unlisted = draw(st.sets(st.sampled_from(["i-new", "i-newer"])))
    some = st.sets(st.sampled_from(alive)) if alive else st.just(set())
    held = frozenset(draw(some) | unlisted)
    desired = len(alive) + len(unlisted) + draw(st.integers(0, 5))
    return desired, alive, held, draw(st.integers(0, 5)), frozenset(draw(some))


@given(moments())
def test_no_machine_with_a_pod_goes_and_none_is_kept_for_nobody(
    moment: tuple[int, list[str], frozenset[str], int, frozenset[str]],
) -> None:
    desired, alive, held, waiting, protected = moment
    todo = shrinking(desired, alive, held, waiting, protected)
    assert not held & set(todo.give_back)
    size = desired - len(todo.give_back) if todo.size is None else todo.size
    assert size <= desired
    # room for every pod
    assert size >= min(desired, len(held) + waiting)
    there = (set(alive) | held) - set(todo.give_back)
    if todo.size is not None and held:
        # a choice among the others at most
        assert set(todo.protect) == held
        assert size >= len(set(alive) - set(todo.give_back))
    if not held and not waiting:
        assert size == 0
        assert todo.size == 0 or not protected & set(alive)
    elif not waiting:
        assert size == len(held) == len(there)
