"""Boot material and the boot script, without Flux (the script's broker is a stand-in script)."""

from __future__ import annotations

import os
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fluxburst import bootkit
from fluxburst.errors import ConfigError
from fluxburst.model import Secret

from .conftest import burst, site


def test_boot_material_is_a_whole_configuration_without_the_certificate_s_bytes() -> None:
    secret = Secret(b"curve")
    material = bootkit.boot_material(site(queues={"batch": {}}), burst(port=4711), secret)
    config = tomllib.loads(material.config_toml)
    assert config["bootstrap"]["hosts"][0] == {
        "host": "lead0",
        "bind": "tcp://127.0.0.1:8050",
        "connect": "tcp://127.0.0.1:4711",
    }
    assert config["queues"] == {"batch": {}}
    assert material.curve_cert_path == "/etc/flux/system/curve.cert"
    assert material.curve_cert is secret
    assert "curve'" not in repr(material)


def test_the_follower_s_own_certificate_path_is_used_where_it_is_given() -> None:
    other = burst().model_copy(update={"lead": burst().lead.model_copy(update={"curve_cert": Path("/run/curve.cert")})})
    material = bootkit.boot_material(site(), other)
    assert material.curve_cert_path == "/run/curve.cert"
    assert tomllib.loads(material.config_toml)["bootstrap"]["curve_cert"] == "/run/curve.cert"


def test_only_rank_0_s_address_changes_where_one_entry_names_many_hosts() -> None:
    own: dict[str, Any] = site()
    own["bootstrap"]["hosts"] = [{"host": "n[0-7]", "bind": "tcp://*:1"}]
    assert bootkit.follower_config(own, burst())["bootstrap"]["hosts"] == [
        {"host": "n0", "connect": "tcp://127.0.0.1:30093"},
        {"host": "n[0-7]", "bind": "tcp://*:1"},
    ]
    assert own["bootstrap"]["hosts"] == [{"host": "n[0-7]", "bind": "tcp://*:1"}], "the lead's own is not changed"


@pytest.mark.parametrize(
    ("bootstrap", "said"),
    [
        ({}, r"\[bootstrap\] hosts: .*config render"),
        ({"hosts": [{"host": "a"}]}, r"\[bootstrap\] curve_cert: .*flux keygen"),
    ],
)
def test_a_lead_that_has_no_hosts_or_certificate_is_refused(bootstrap: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bootkit.boot_material({"bootstrap": bootstrap}, burst())


def start(
    tmp_path: Path, broker: str, index: str | None = "1", retries: int = 3, lead_timeout_s: float = 60.0
) -> subprocess.Popen[str]:
    """The boot script for hosts a-0 and a-1, whose ``flux`` is this shell script."""
    flux = tmp_path / "fl ux"
    flux.write_text(f"#!/bin/sh\n{broker}\n")
    flux.chmod(0o700)
    text = bootkit.boot_script(
        str(flux),
        "/etc/fl ux",
        ["a-0", "a-1"],
        "RANK",
        str(tmp_path / "wo rk"),
        retries,
        lead_timeout_s=lead_timeout_s,
    )
    script = tmp_path / "boot.sh"
    script.write_text(text)
    environment = {"PATH": os.environ["PATH"], "FLUX_URI": "local:///outer", "PMI_RANK": "3", "PMI_FD": "7"}
    return subprocess.Popen(
        ["sh", str(script)],
        env=environment | ({} if index is None else {"RANK": index}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_script_starts_the_broker_of_its_own_host_and_hides_the_outer_job(tmp_path: Path) -> None:
    process = start(tmp_path, 'printf "%s\\n" "$@"; env; exit 0')
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0
    lines = (tmp_path / "wo rk" / "a-1" / "broker.log").read_text().splitlines()
    assert lines[:5] == ["broker", "-c", "/etc/fl ux", "-Shostname=a-1", "-Sbroker.boot-method=config"]
    assert not [line for line in lines if line.startswith(("FLUX_URI", "PMI_"))]


def test_a_broker_that_fails_is_tried_again_so_many_times_and_its_status_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootkit, "RETRY_DELAY_S", 0)
    process = start(tmp_path, "echo tried; exit 7", retries=2)
    process.communicate(timeout=10)
    assert process.returncode == 7
    assert (tmp_path / "wo rk" / "a-1" / "broker.log").read_text().split() == ["tried"] * 3


BROKER = """
trap 'echo stopped; kill "$!"; exit 1' TERM
{joins}
sleep 60 &
wait
"""
JOINS = 'IFS=:; for dir in $FLUX_RC_EXTRA; do "$dir/rc1.d/joined"; done'


def test_a_broker_that_finds_no_lead_is_given_up_and_not_tried_again(tmp_path: Path) -> None:
    process = start(tmp_path, BROKER.format(joins=""), lead_timeout_s=0.2)
    process.communicate(timeout=10)
    assert process.returncode == bootkit.NO_LEAD
    said = (tmp_path / "wo rk" / "a-1" / "broker.log").read_text().splitlines()
    assert said == ["stopped", "there was no lead for 0.2 s"]


def test_a_broker_that_has_joined_stays_and_leaves_no_process_behind(tmp_path: Path) -> None:
    process = start(tmp_path, BROKER.format(joins=JOINS), lead_timeout_s=0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1.0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)  # until nobody has its output open any more
    assert process.returncode == 0


def test_a_broker_that_had_joined_and_failed_is_given_up_where_the_next_finds_no_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootkit, "RETRY_DELAY_S", 0)
    first = f"if [ ! -e been ]; then {JOINS}; : >been; exit 5; fi"
    process = start(tmp_path, BROKER.format(joins=first), lead_timeout_s=0.2)
    process.communicate(timeout=10)
    assert process.returncode == bootkit.NO_LEAD


def test_a_broker_that_ends_leaves_nobody_waiting_for_its_lead(tmp_path: Path) -> None:
    process = start(tmp_path, "exit 0", lead_timeout_s=3600.0)
    process.communicate(timeout=10)
    assert process.returncode == 0


@pytest.mark.parametrize("index", [None, "", "2"])
def test_a_task_without_a_host_ends_with_status_2(tmp_path: Path, index: str | None) -> None:
    process = start(tmp_path, "exit 0", index)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 2
    assert said


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_script_stops_the_broker_and_waits_for_it(tmp_path: Path, signum: signal.Signals) -> None:
    up = tmp_path / "up"
    os.mkfifo(up)
    broker = f"trap 'echo stopped; kill $!; exit 1' TERM; sleep 60 & echo up >'{up}'; wait"
    process = start(tmp_path, broker)
    assert up.read_text() == "up\n"
    process.send_signal(signum)
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert (tmp_path / "wo rk" / "a-1" / "broker.log").read_text() == "stopped\n"


def test_a_signal_between_two_tries_ends_the_script_at_once(tmp_path: Path) -> None:
    up = tmp_path / "up"
    os.mkfifo(up)
    process = start(tmp_path, f"echo up >'{up}'; exit 1")
    assert up.read_text() == "up\n"
    process.terminate()
    process.communicate(timeout=bootkit.RETRY_DELAY_S - 1)
    assert process.returncode == 0
