from __future__ import annotations

import itertools

import pytest

from fluxburst.errors import IllegalTransition
from fluxburst.states import COMING, TRANSITIONS, NodeState, check_transition

LEGAL = {
    ("planned", "ordered"), ("planned", "booting"), ("planned", "joined"), ("planned", "releasing"),
    ("ordered", "booting"), ("ordered", "joined"), ("ordered", "releasing"),
    ("booting", "joined"), ("booting", "releasing"),
    ("joined", "draining"), ("joined", "releasing"),
    ("draining", "joined"), ("draining", "stopped"), ("draining", "releasing"),
    ("stopped", "releasing"),
    ("releasing", "gone"),
}  # fmt: skip
"""Written down a second time, so that a change of the table is a change of two places."""

LIVE = frozenset(NodeState) - {NodeState.GONE}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(NodeState, NodeState)))
def test_a_change_is_legal_or_raises_with_both_states_and_the_way_out(old: NodeState, new: NodeState) -> None:
    if (old, new) in LEGAL:
        check_transition("c2-0", old, new)
        return
    with pytest.raises(IllegalTransition) as raised:
        check_transition("c2-0", old, new)
    message = str(raised.value)
    assert message.startswith(f"c2-0: {old} -> {new} ")
    assert all(allowed in message for allowed in TRANSITIONS[old])


def test_gone_is_final() -> None:
    with pytest.raises(IllegalTransition, match="nothing, it is final"):
        check_transition("c2-0", NodeState.GONE, NodeState.PLANNED)


@pytest.mark.parametrize("state", sorted(LIVE))
def test_every_live_state_can_reach_gone_through_releasing_alone(state: NodeState) -> None:
    """Whatever happens to a machine, it can be given back in one change."""
    assert state is NodeState.RELEASING or NodeState.RELEASING in TRANSITIONS[state]
    assert [old for old in NodeState if NodeState.GONE in TRANSITIONS[old]] == [NodeState.RELEASING]


@pytest.mark.parametrize("state", sorted(LIVE))
def test_no_state_stands_still_or_leads_back_to_the_intent_to_buy(state: NodeState) -> None:
    assert state not in TRANSITIONS[state]
    assert NodeState.PLANNED not in TRANSITIONS[state]


def test_what_is_coming_is_live_and_can_join() -> None:
    assert COMING < LIVE
    assert {state for state in LIVE if NodeState.JOINED in TRANSITIONS[state]} == COMING | {NodeState.DRAINING}
