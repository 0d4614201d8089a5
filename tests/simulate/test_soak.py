"""Two days of the month in bench/soak.py: whatever happens, nothing leaks, is overspent or is forgotten."""

from __future__ import annotations

import pytest

from bench.soak import soak


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
