"""The provider against the real terraform, with modules that need no plugin of Terraform's."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxburst.errors import ConfigError, InvalidOrder
from fluxburst.model import (
    BootMaterial,
    Demand,
    Host,
    NodePhase,
    Offer,
    Order,
    PoolSpec,
    RequestId,
    Secret,
    Severity,
)
from fluxburst.provider import ProviderContext
from fluxburst_terraform import make, roots
from fluxburst_terraform.options import ModuleOptions
from fluxburst_terraform.orders import Job, Orders
from fluxburst_terraform.provider import TerraformProvider
from fluxburst_terraform.terraform import Terraform, TerraformFailed
from tests.real.steps import eventually

PROCESS = Path(__file__).parents[3] / "terraform" / "process"
GOLDEN = Path(__file__).parent / "golden" / "boot.sh"
CERTIFICATE = b'secret-key = "8XvH0-this-must-not-be-seen-Qe72"'
VARIABLES = "".join(f'variable "{name}" {{}}\n' for name in ("cluster", "order", "hosts", "boot_script", "expires_at"))
RECORDS = """
resource "terraform_data" "node" {
  for_each = toset(var.hosts)
  input = { host = each.key, all = [var.cluster, var.order, var.boot_script, var.expires_at, var.more] }
}
variable "more" {}
output "nodes" { value = { for host, node in terraform_data.node : host => {} } }
"""
"""Nodes that are only written down."""
FAILS = """
resource "terraform_data" "node" {
  for_each = toset(var.hosts)
  input = each.key
  lifecycle {
    postcondition {
      condition = !fileexists("${path.root}/../../full")
      error_message = "ZONE_RESOURCE_POOL_EXHAUSTED: no more ${var.order}"
    }
  }
}
output "nodes" { value = { for host, node in terraform_data.node : host => {} if host != "tf-3" } }
"""
"""Nodes that cannot be had while there is a file beside the orders, and one that never can."""

FOLLOWER = """#!/bin/sh
# stands for `flux broker`: stays until SIGTERM, and then leaves in good order
trap 'exit 0' TERM
sleep inf &
echo $$ >{directory}/up-$$
wait
"""

Build = Callable[..., TerraformProvider]
pytestmark = pytest.mark.terraform


@pytest.fixture(autouse=True)
def own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of Terraform's command line: none."""
    (tmp_path / "terraformrc").touch()
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(tmp_path / "terraformrc"))
    monkeypatch.setenv("CHECKPOINT_DISABLE", "1")


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Build]:
    """Makes providers that share a state directory, as one process after the other does."""
    made: list[Any] = []
    state = tmp_path / "state"
    state.mkdir()

    def build(text: str = RECORDS, options: dict[str, Any] | None = None, **pool: Any) -> Any:
        module = tmp_path / "module"
        module.mkdir(exist_ok=True)
        (module / "main.tf").write_text(VARIABLES + text)
        table = {
            "module": str(module),
            "variables": {"more": "${x} %{y}"} if 'variable "more"' in text and "module" not in pool else {},
            **pool,
        }
        spec = PoolSpec("tf", tuple(Host(f"tf-{index}") for index in range(4)), 2, options=table)
        made.append(make(ProviderContext("terraform", "corona", options or {}, {"tf": spec}, state)))
        return made[-1]

    yield build
    for provider in made:
        provider.close()


def order(count: int, request_id: str = "b-1") -> Order:
    hosts = tuple(Host(f"tf-{index}") for index in range(count))
    boot = BootMaterial(
        '[bootstrap]\ncurve_cert = "/etc/flux/curve.cert"\n', "/etc/flux/curve.cert", Secret(CERTIFICATE)
    )
    return Order(RequestId(request_id), "corona", "tf", hosts, Offer("tf", "terraform", "x", 2), boot, 1_800_000_000.0)


def phases(provider: TerraformProvider) -> dict[str, NodePhase]:
    return {node.host: node.phase for node in provider.list_nodes()}


def state(tmp_path: Path, request_id: str = "b-1") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "state" / "orders" / request_id / "terraform.tfstate").read_text())
    return found


# A life


def test_an_order_is_applied_any_node_given_back_and_nothing_left(built: Build, tmp_path: Path) -> None:
    provider = built(max_lifetime="1h")
    provider.launch(order(3))
    assert set(phases(provider)) == {"tf-0", "tf-1", "tf-2"}
    provider.launch(order(3))
    eventually(lambda: set(phases(provider).values()) == {NodePhase.RUNNING})
    told = state(tmp_path)["resources"][0]["instances"][0]["attributes"]["input"]["value"]["all"]
    assert (told[0], told[1], told[3], told[4]) == ("corona", "b-1", "2027-01-15T09:00:00+00:00", "${x} %{y}")
    assert told[2] == roots.boot_script(order(3), provider._pools["tf"])
    provider.release(["b-1.tf-1"])  # type: ignore[list-item]
    assert phases(provider)["tf-1"] in (NodePhase.STOPPING, None)
    eventually(lambda: phases(provider) == {"tf-0": NodePhase.RUNNING, "tf-2": NodePhase.RUNNING})
    assert len(state(tmp_path)["resources"][0]["instances"]) == 2
    provider.release([node.node_id for node in provider.list_nodes()])
    eventually(lambda: provider.list_nodes() == [])
    assert list((tmp_path / "state" / "orders").iterdir()) == []
    provider.release(["b-1.tf-0"])  # type: ignore[list-item]  # unknown ids are fine


def test_orders_have_a_state_each_and_another_process_finds_them(built: Build, tmp_path: Path) -> None:
    first = built()
    first.launch(order(2))
    first.launch(order(4, "b-2"))
    first.close()  # what has begun, ends
    second = built()
    eventually(lambda: [node.phase for node in second.list_nodes()] == [NodePhase.RUNNING] * 6)
    second.release([node.node_id for node in second.list_nodes() if node.request_id == "b-1"])
    eventually(lambda: {node.request_id for node in second.list_nodes()} == {"b-2"})
    assert [path.name for path in (tmp_path / "state" / "orders").iterdir()] == ["b-2"]


def test_an_order_that_was_taken_and_not_begun_is_begun_by_the_next_process(built: Build, tmp_path: Path) -> None:
    provider, taken = built(), order(2)
    ends_before = Orders(tmp_path / "state" / "orders", Terraform, lambda work: None)
    ends_before.add(Job(taken.request_id, "tf", taken.hosts, provider._root(taken), taken.hosts))
    eventually(lambda: phases(provider) == {"tf-0": NodePhase.RUNNING, "tf-1": NodePhase.RUNNING})


def test_what_terraform_refuses_fails_all_of_the_order_in_its_own_words(built: Build, tmp_path: Path) -> None:
    (tmp_path / "state" / "full").touch()
    provider = built(FAILS)
    provider.launch(order(2))
    eventually(lambda: phases(provider) == {"tf-0": NodePhase.FAILED, "tf-1": NodePhase.FAILED})
    assert {node.detail for node in provider.list_nodes()} == {
        "; ".join(["Resource postcondition failed: ZONE_RESOURCE_POOL_EXHAUSTED: no more b-1"] * 2)
    }
    provider.release([node.node_id for node in provider.list_nodes()])
    eventually(lambda: provider.list_nodes() == [])
    assert list((tmp_path / "state" / "orders").iterdir()) == []


def test_a_node_that_the_module_does_not_name_has_failed(built: Build) -> None:
    provider = built(FAILS)
    provider.launch(order(4))
    eventually(lambda: phases(provider).get("tf-0") is NodePhase.RUNNING)
    assert phases(provider)["tf-3"] is NodePhase.FAILED


def test_a_destruction_that_fails_is_told_and_tried_again(built: Build, tmp_path: Path) -> None:
    stop = 'provisioner "local-exec" {\n when = destroy\n command = "test -e ../../may"\n }\n'
    provider = built(RECORDS.replace("  for_each", f"  {stop}  for_each"))
    provider.launch(order(1))
    eventually(lambda: phases(provider) == {"tf-0": NodePhase.RUNNING})
    provider.release(["b-1.tf-0"])  # type: ignore[list-item]
    eventually(lambda: any("local-exec" in node.detail for node in provider.list_nodes()))
    assert phases(provider) == {"tf-0": NodePhase.STOPPING}
    (tmp_path / "state" / "may").touch()
    provider.release(["b-1.tf-0"])  # type: ignore[list-item]
    eventually(lambda: provider.list_nodes() == [])


def test_a_terraform_that_was_killed_in_the_middle_is_gone_on_with(built: Build, tmp_path: Path) -> None:
    """Of three nodes one is there and one is being made, by a process that holds the state's lock."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    slow = f'provisioner "local-exec" {{\n command = "touch {begun}; until [ -e {go} ]; do sleep 0.1; done"\n }}\n'
    first = built(RECORDS.replace("  for_each", f"  {slow}  for_each"))
    first.launch(order(2))
    eventually(begun.exists)
    directory = tmp_path / "state" / "orders" / "b-1"
    mine = subprocess.run(["pgrep", "-f", "terraform apply"], capture_output=True, text=True, check=True).stdout.split()
    (killed,) = [pid for pid in mine if Path(f"/proc/{pid}/cwd").readlink() == directory]
    os.kill(int(killed), 9)
    go.touch()
    eventually(lambda: set(phases(first).values()) == {NodePhase.FAILED})
    second = built()
    eventually(lambda: phases(second) == {"tf-0": NodePhase.RUNNING, "tf-1": NodePhase.RUNNING})
    second.release([node.node_id for node in second.list_nodes()])
    eventually(lambda: second.list_nodes() == [])
    assert not directory.exists()


def test_what_a_killed_terraform_has_made_and_not_written_down_is_given_back(built: Build, tmp_path: Path) -> None:
    """Of two followers one is up, and the other holds Terraform up."""
    flux = tmp_path / "flux"
    flux.write_text(FOLLOWER.format(directory=tmp_path))
    flux.chmod(0o755)
    slow = (PROCESS / "start.sh").read_text() + f"\nuntil [ -e {tmp_path}/go ]; do sleep 0.1; done\n"
    module = shutil.copytree(PROCESS, tmp_path / "process")
    (module / "start.sh").write_text(slow)
    pool = {"module": str(module), "flux": str(flux), "directory": str(tmp_path / "node")}
    provider = built(**pool)
    provider.launch(order(2))
    pids = eventually(lambda: [int(path.read_text()) for path in tmp_path.glob("up-*") if path.read_text()])
    directory = tmp_path / "state" / "orders" / "b-1"
    mine = subprocess.run(["pgrep", "-f", "terraform apply"], capture_output=True, text=True, check=True).stdout.split()
    (killed,) = [pid for pid in mine if Path(f"/proc/{pid}/cwd").readlink() == directory]
    os.kill(int(killed), 9)
    (tmp_path / "go").touch()
    eventually(lambda: set(phases(provider).values()) == {NodePhase.FAILED})
    assert (directory / "terraform.tfstate").read_text() == ""
    provider.release([node.node_id for node in provider.list_nodes()])
    eventually(lambda: provider.list_nodes() == [])
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_the_certificate_is_in_no_file_of_an_order(built: Build, tmp_path: Path) -> None:
    provider = built(certificate_command="cat /run/secret")
    provider.launch(order(1))
    eventually(lambda: phases(provider) == {"tf-0": NodePhase.RUNNING})
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert not [path for path in files if b"8XvH0" in path.read_bytes()]


# Before


def test_check_validates_the_module_and_leaves_nothing(built: Build, tmp_path: Path) -> None:
    findings = built().check()
    assert [finding.severity for finding in findings] == [Severity.OK, Severity.OK], findings
    assert not (tmp_path / "state" / "orders").exists()
    (_, wrong) = built(RECORDS.replace("var.more", "var.mor")).check()
    assert wrong.severity is Severity.ERROR
    assert 'An input variable with the name "mor" has not been declared' in wrong.message
    (absent,) = built(options={"terraform": "/nowhere/terraform"}).check()
    assert absent.severity is Severity.ERROR
    assert "cannot be run" in absent.message


def test_a_pool_that_is_not_there_is_an_invalid_order(built: Build) -> None:
    with pytest.raises(InvalidOrder, match=r"\[pool.other\]"):
        built().launch(dataclasses.replace(order(1), pool="other"))


def test_offers_are_what_the_pool_says(built: Build) -> None:
    (offer,) = built(spot=True, instance_type="m5", zone="z", join_time="90s").offers(Demand(1, 1, 1))
    assert isinstance(offer, Offer)
    assert (offer.instance_type, offer.cores, offer.spot, offer.zone, offer.join_s) == ("m5", 2, True, "z", 90.0)


@pytest.mark.parametrize(
    ("options", "pool", "what"),
    [
        ({"backend": {"s3": {"key": "burst"}}}, {}, "all orders would have one state"),
        ({"backend": {"s3": {"key": "{order}"}, "gcs": {}}}, {}, "name one backend"),
        ({}, {"module": "module"}, "no absolute path of a directory with"),
        ({}, {"directory": "here"}, "directory"),
    ],
)
def test_a_table_that_cannot_be_is_told(built: Build, options: Any, pool: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        built(RECORDS, options, **pool)


def test_each_order_has_its_own_state_in_a_backend(built: Build, tmp_path: Path) -> None:
    provider = built(RECORDS, {"backend": {"local": {"path": f"{tmp_path}/states/{{order}}.tfstate"}}})
    provider.launch(order(1))
    eventually(lambda: phases(provider) == {"tf-0": NodePhase.RUNNING})
    assert (tmp_path / "states" / "b-1.tfstate").exists()
    provider.release(["b-1.tf-0"])  # type: ignore[list-item]
    eventually(lambda: provider.list_nodes() == [])
    assert json.loads((tmp_path / "states" / "b-1.tfstate").read_text())["resources"] == []


# The room around python-terraform


def test_a_plan_tells_whether_anything_would_change(tmp_path: Path) -> None:
    (tmp_path / "main.tf").write_text('resource "terraform_data" "one" {}\n')
    terraform = Terraform(tmp_path)
    terraform.init()
    assert terraform.plan()
    terraform.apply()
    assert not terraform.plan()
    terraform.destroy()
    assert terraform.plan()


def test_every_command_that_fails_tells_terraforms_own_diagnostics(tmp_path: Path) -> None:
    (tmp_path / "main.tf").write_text('resource "terraform_data" "one" { wrong = 1 }\n')
    terraform = Terraform(tmp_path)
    terraform.init()
    for command in (terraform.validate, terraform.plan, terraform.apply, terraform.destroy):
        with pytest.raises(TerraformFailed, match='An argument named "wrong" is not expected here'):
            command()
    (tmp_path / "main.tf").write_text("resource {\n")
    with pytest.raises(TerraformFailed, match="Missing"):
        terraform.init()


# What a node runs


def test_the_boot_script_is_byte_for_byte_the_one_that_was_looked_at() -> None:
    options = ModuleOptions(module=PROCESS, certificate_command="cloud secret read curve-cert")
    assert roots.boot_script(order(2), options) == GOLDEN.read_text(encoding="utf-8")


def test_the_boot_script_is_one_and_finds_its_host(tmp_path: Path) -> None:
    (tmp_path / "flux").write_text('#!/bin/sh\necho "$* $(cat "$3")"\n')
    (tmp_path / "flux").chmod(0o755)
    pool = {"module": PROCESS, "directory": str(tmp_path / "node"), "flux": str(tmp_path / "flux"), "retries": 0}
    options = ModuleOptions(**pool, certificate_command="echo the-key")  # type: ignore[arg-type]
    script = roots.boot_script(order(3), options)
    path = tmp_path / "boot.sh"
    path.write_text(script)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", path, GOLDEN], check=True)
    subprocess.run(["sh", path], check=True, env={**os.environ, "FLUXBURST_HOST": "tf-2"}, timeout=20)
    log = (tmp_path / "node" / "b-1" / "tf-2" / "broker.log").read_text()
    assert "-Shostname=tf-2" in log
    assert f'curve_cert = "{tmp_path}/node/b-1/curve.cert"' in log
    certificate = tmp_path / "node" / "b-1" / "curve.cert"
    assert (certificate.read_text(), certificate.stat().st_mode & 0o777) == ("the-key\n", 0o600)
    done = subprocess.run(["sh", path], capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, "FLUXBURST_HOST is not set" in done.stderr) == (2, True)


# The modules of the project


def test_the_modules_are_formatted_and_valid() -> None:
    subprocess.run(["terraform", f"-chdir={PROCESS.parent}", "fmt", "-check", "-recursive"], check=True)
