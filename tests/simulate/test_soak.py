"""Two days of the month in bench/soak.py: whatever happens, nothing leaks, is overspent or is forgotten."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator

import pytest

from bench.soak import BURST_TOML, soak
from fluxburst.model import Demand
from fluxburst_mock.scheduler import Domain, Node


@pytest.mark.parametrize("seed", range(3))
def test_nothing_leaks_is_overspent_or_is_forgotten_whatever_happens(seed: int) -> None:
    found = soak(days=2.0, jobs=3000, seed=seed)
    assert not found.wrong
    assert found.summary.burst_jobs > 100
    assert found.summary.usd is not None
    assert found.summary.usd > 1
    assert {"failed_boot", "slow_boot", "lost_answer", "spot_loss", "stock_out", "unanswered"} <= {
        *found.outcome.survived
    }


@pytest.mark.parametrize("seed", range(2))
def test_caps_hold_whatever_nodes_flux_chooses(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A busy day on which the caps bind, and a scheduler that takes any nodes that fit."""
    dice, in_turn = random.Random(seed), Domain.candidates

    def at_random(self: Domain, demand: Demand, avoid: Collection[int] = ()) -> Iterator[tuple[Node, int]]:
        found = list(in_turn(self, demand, avoid))
        dice.shuffle(found)
        return iter(found)

    monkeypatch.setattr(Domain, "candidates", at_random)
    found = soak(days=1.0, jobs=3000, seed=seed, burst_toml=BURST_TOML.replace("usd_per_day = 75", "usd_per_day = 15"))
    assert not found.wrong
    assert 0.9 < found.caps["[limits] usd_per_day"] <= 1
