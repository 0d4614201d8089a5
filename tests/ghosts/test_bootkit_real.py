"""The boot script with a real broker, with a lead and without."""

from __future__ import annotations

import subprocess

import pytest

from fluxburst import bootkit

from .conftest import LeadFactory

pytestmark = pytest.mark.flux


def test_a_follower_without_a_lead_gives_up_in_time(lead: LeadFactory) -> None:
    script = lead().boot_script(["gpu-1"], lead_timeout_s=1.0)  # whose lead nobody starts
    process = subprocess.run(
        ["sh", script], env={"FLUX_TASK_RANK": "0", "PATH": "/usr/bin:/bin"}, timeout=30, check=False
    )
    assert process.returncode == bootkit.NO_LEAD


def test_a_follower_that_has_joined_stays_longer_than_it_would_have_looked_for_its_lead(lead: LeadFactory) -> None:
    with lead() as running, running.follower("gpu-1", lead_timeout_s=3.0) as follower:
        with pytest.raises(subprocess.TimeoutExpired):
            follower.wait(4.0)
        assert running.run("exec", "-r6", "flux", "getattr", "hostname").strip() == "gpu-1"
