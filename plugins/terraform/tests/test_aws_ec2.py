"""terraform/aws_ec2 by the real Terraform and its aws provider, against moto's server.

The provider is found in the directory that FLUXBURST_TERRAFORM_MIRROR names: a filesystem mirror, as in Terraform's CLI
configuration.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxburst.model import BootMaterial, Host, NodePhase, Offer, Order, PoolSpec, RequestId, Secret, Severity
from fluxburst.provider import ProviderContext
from fluxburst_terraform import make, roots
from tests.real.steps import eventually

MIRROR = os.environ.get("FLUXBURST_TERRAFORM_MIRROR", "")
MODULE = Path(__file__).parents[3] / "terraform" / "aws_ec2"
PATIENCE_S = 100.0
"""The provider's start takes seconds, for each plan and each apply."""
pytestmark = [
    pytest.mark.terraform,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not MIRROR, reason="FLUXBURST_TERRAFORM_MIRROR names no directory with the aws provider"),
]


@pytest.fixture
def ec2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's client of an empty account, which Terraform finds, too."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    (tmp_path / "terraformrc").write_text(f'provider_installation {{\n filesystem_mirror {{ path = "{MIRROR}" }}\n}}\n')
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "CHECKPOINT_DISABLE": "1",
        "TF_CLI_CONFIG_FILE": str(tmp_path / "terraformrc"),
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("ec2", region_name="us-east-1")
    yield client
    client.close()
    server.stop()


def alive(ec2: Any) -> dict[str, dict[str, Any]]:
    """The account's machines by their names."""
    found = ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}])
    machines = [machine for one in found["Reservations"] for machine in one["Instances"]]
    return {next(tag["Value"] for tag in machine["Tags"] if tag["Key"] == "Name"): machine for machine in machines}


def test_an_order_is_applied_given_back_one_by_one_and_leaves_no_machine(ec2: Any, tmp_path: Path) -> None:
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    variables = {"ami": image, "instance_type": "c5.large", "subnet_id": subnet, "tags": {"site": "corona"}}
    options = {"module": str(MODULE), "variables": variables, "max_lifetime": "8h", "certificate_command": "get-it"}
    spec = PoolSpec("c5", (Host("c5-0"), Host("c5-1")), 1, options=options)
    provider: Any = make(ProviderContext("terraform", "corona", {}, {"c5": spec}, tmp_path))
    boot = BootMaterial('[bootstrap]\ncurve_cert = "/c"\n', "/c", Secret(b"8XvH0-this-must-not-be-seen"))
    order = Order(
        RequestId("b-1"), "corona", "c5", spec.hosts, Offer("c5", "terraform", "c5", 1), boot, 1_800_000_000.0
    )
    try:
        assert {finding.severity for finding in provider.check()} == {Severity.OK}
        assert alive(ec2) == {}
        provider.launch(order)
        eventually(lambda: [node.phase for node in provider.list_nodes()] == [NodePhase.RUNNING] * 2, PATIENCE_S)
        machines = alive(ec2)
        assert set(machines) == {"c5-0", "c5-1"}
        tags = {tag["Key"]: tag["Value"] for tag in machines["c5-0"]["Tags"]}
        assert tags == {
            "Name": "c5-0",
            "site": "corona",
            "fluxburst:cluster": "corona",
            "fluxburst:order": "b-1",
            "fluxburst:expires": "2027-01-15T16:00:00+00:00",
        }
        told = ec2.describe_instance_attribute(InstanceId=machines["c5-0"]["InstanceId"], Attribute="userData")
        user_data = gzip.decompress(base64.b64decode(told["UserData"]["Value"])).decode()
        assert roots.boot_script(order, provider._pools["c5"]) in _script(user_data)
        assert "FLUXBURST_HOST='c5-0' sh" in user_data
        subprocess.run(["sh", "-n"], input=user_data, text=True, check=True)
        files = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < 10**6]
        assert not [path for path in files if b"8XvH0" in path.read_bytes()]

        provider.release(["b-1.c5-0"])
        eventually(lambda: [node.host for node in provider.list_nodes()] == ["c5-1"], PATIENCE_S)
        assert {name: one["InstanceId"] for name, one in alive(ec2).items()} == {"c5-1": machines["c5-1"]["InstanceId"]}
        provider.release(["b-1.c5-1"])
        eventually(lambda: provider.list_nodes() == [], PATIENCE_S)
        assert alive(ec2) == {}
    finally:
        provider.close()


def _script(user_data: str) -> str:
    encoded = re.search(r"^echo '([^']+)' \| base64 -d", user_data, re.MULTILINE)
    assert encoded is not None
    return base64.b64decode(encoded[1]).decode()


def test_what_aws_refuses_fails_the_order_in_its_words(ec2: Any, tmp_path: Path) -> None:
    variables = {"ami": "ami-00000000000000000", "instance_type": "c5.large", "subnet_id": "subnet-0"}
    spec = PoolSpec("c5", (Host("c5-0"),), 1, options={"module": str(MODULE), "variables": variables})
    provider: Any = make(ProviderContext("terraform", "corona", {}, {"c5": spec}, tmp_path))
    boot = BootMaterial("[bootstrap]\n", "")
    order = Order(RequestId("b-1"), "corona", "c5", spec.hosts, Offer("c5", "terraform", "c5", 1), boot, 0.0)
    try:
        provider.launch(order)
        eventually(lambda: [node.phase for node in provider.list_nodes()] == [NodePhase.FAILED], PATIENCE_S)
        (node,) = provider.list_nodes()
        assert "subnet-0" in node.detail or "ami-0000" in node.detail
        provider.release([node.node_id])
        eventually(lambda: provider.list_nodes() == [], PATIENCE_S)
    finally:
        provider.close()
    assert list((tmp_path / "orders").iterdir()) == []
