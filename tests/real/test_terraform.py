"""A real lead is joined by followers that a real terraform has started."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
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
SOLD_OUT = """
variable "cluster" {}
variable "order" {}
variable "hosts" {}
variable "boot_script" {}
variable "expires_at" {}
resource "terraform_data" "node" {
  for_each = toset(var.hosts)
  lifecycle {
    postcondition {
      condition     = each.key == "gone-0"
      error_message = "sold out of ${each.key}"
    }
  }
}
output "nodes" { value = { for host, node in terraform_data.node : host => {} } }
"""
"""One of an order's nodes can be had, and no more."""
CHEAPER = """
[pool.gone]
provider = "terraform"
hosts = "gone-[0-3]"
cores = 2
usd_per_node_hour = 0.1
[pool.gone.options]
module = "{directory}/sold-out"
"""
PROCESS = Path(__file__).parents[2] / "terraform" / "process"


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One with a short path, and of Terraform's command line no configuration."""
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    (directory / "terraformrc").touch()
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(directory / "terraformrc"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_what_terraform_cannot_have_sends_a_gang_to_the_next_offer_and_leaves_nothing(directory: Path) -> None:
    (directory / "sold-out").mkdir()
    (directory / "sold-out" / "main.tf").write_text(SOLD_OUT)
    toml = BURST_TOML.format(module=PROCESS, flux=find_flux(), directory=directory)
    with PrivateSite(directory, CHEAPER.format(directory=directory) + toml) as site:
        steps.serve(site)
        try:
            job = site.submit("--setattr", "burstable=true", "-N2", "hostname")
            assert steps.await_event(site, job, "finish")["context"]["status"] == 0
            assert set(steps.hosts_of(site, job)) == {"tf-0", "tf-1"}
            orders = site.config.state_path() / "providers" / "terraform" / "orders"
            eventually(lambda: steps.nothing_left(site) and not list(orders.iterdir()))
            failed = [node for node in steps.records(site, 0.0) if node["pool"] == "gone"]
            assert {node["host"] for node in failed} == {"gone-0", "gone-1"}
            assert all("sold out of gone-1" in node["reason"] for node in failed)
        finally:
            print(site.log_path.read_text()[-9000:])  # shown where the test failed


def test_followers_of_the_process_module_join_run_a_job_and_leave_an_empty_state(directory: Path) -> None:
    toml = BURST_TOML.format(module=PROCESS, flux=find_flux(), directory=directory)
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
