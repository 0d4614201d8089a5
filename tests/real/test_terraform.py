"""A real lead is joined by followers that a real terraform has started."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from fluxburst.flux.private import find_flux
from fluxburst.testing import PrivateSite
from tests.real import steps
from tests.real.steps import eventually

pytestmark = [pytest.mark.flux, pytest.mark.terraform]

BURST_TOML = """
[pool.tf]
provider = "terraform"
hosts = "tf-[0-3]"
cores = 2
usd_per_node_hour = 0.5
idle_timeout = "500ms"
[pool.tf.options]
module = "{module}"
flux = "{flux}"
directory = "{directory}/nodes"
[provider.terraform]
"""
PROCESS = Path(__file__).parents[2] / "terraform" / "process"


def test_followers_of_the_process_module_join_run_a_job_and_leave_an_empty_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    (directory / "terraformrc").touch()
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(directory / "terraformrc"))
    toml = BURST_TOML.format(module=PROCESS, flux=find_flux(), directory=directory)
    try:
        with PrivateSite(directory, toml) as site:
            steps.serve(site)
            try:
                job = site.submit("--setattr", "burstable=true", "-N3", "sleep", "1")
                steps.await_event(site, job, "start")
                orders = site.config.state_path() / "providers" / "terraform" / "orders"
                (order,) = orders.iterdir()
                state = json.loads((order / "terraform.tfstate").read_text())
                assert len(state["resources"][0]["instances"]) == 3
                secret = (directory / "curve.cert").read_text().split("secret-key = ")[1].split('"')[1].encode()
                files = [path for path in orders.rglob("*") if path.is_file()]
                assert not [path for path in files if secret in path.read_bytes()]
                assert steps.await_event(site, job, "finish")["context"]["status"] == 0
                assert set(steps.hosts_of(site, job)) == {"tf-0", "tf-1", "tf-2"}
                eventually(lambda: steps.nothing_left(site) and not list(orders.iterdir()))
                assert {(node["host"], node["reason"]) for node in steps.records(site, 0.0)} == {
                    (f"tf-{index}", "idle") for index in range(3)
                }
            finally:
                print(site.log_path.read_text()[-9000:])  # shown where the test failed
    finally:
        shutil.rmtree(directory, ignore_errors=True)
