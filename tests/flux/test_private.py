from __future__ import annotations

import json
import os
import select
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fluxburst.errors import InstanceError
from fluxburst.flux.private import PrivateInstance, Scheduler, free_port, private_config
from tests.contract.harness import GHOSTS, HOME
from tests.contract.real import RealHarness
from tests.contract.steps import event, job
from tests.real.steps import eventually

CONFIG = private_config({"burst": (",".join(GHOSTS), 2)}, mode="open")

OWNER = """
import sys
from pathlib import Path
from fluxburst.flux.private import PrivateInstance, private_config
from fluxburst.model import Host
private = PrivateInstance(Path(sys.argv[1]), private_config({"burst": ("burst-0", 2)}, mode="open"))
private.start()
private.start_followers([Host("burst-0")])
private.run("overlay", "status", "--wait=full", "--timeout=20s")
print(private.run("getattr", "broker.pid").strip(), flush=True)
sys.stdin.read()
"""


def processes_of(directory: Path) -> list[str]:
    """The command lines that name this directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(directory) in line:
            found.append(line)
    return found


def test_an_open_instance_has_no_queues_and_a_queue_instance_one_for_each_pool() -> None:
    pools = {"a": ("a-[0-1]", 4), "b": ("b-[0-1]", 8)}
    assert "queues" not in private_config(pools, mode="open")
    config = private_config(pools, mode="queue")
    assert config["queues"] == {
        "batch": {"requires": ["home"]},
        "staging": {},
        "a": {"requires": ["a"]},
        "b": {"requires": ["b"]},
    }
    assert [entry["host"] for entry in config["bootstrap"]["hosts"]] == ["lead0", "a-0", "a-1", "b-0", "b-1"]
    assert config["resource"]["config"][1] == {"hosts": "a-[0-1]", "cores": "0-3", "properties": ["a"]}


@pytest.mark.flux
@pytest.mark.parametrize(
    ("scheduler", "module"), [("sched-simple", "sched-simple"), ("fluxion-fcfs", "sched-fluxion-qmanager")]
)
def test_the_chosen_scheduler_runs(short_path: Path, scheduler: Scheduler, module: str) -> None:
    with PrivateInstance(short_path, CONFIG, scheduler=scheduler) as private:
        assert f"{module} " in private.run("module", "list")
        if module == "sched-fluxion-qmanager":
            assert private.run("config", "get", "sched-fluxion-qmanager.queue-policy").strip() == "fcfs"


@pytest.mark.flux
def test_the_configuration_may_be_text_and_keeps_what_it_says(short_path: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    text = f"""
        [bootstrap]
        hosts = [{{ host = "head", bind = "{endpoint}", connect = "{endpoint}" }}, {{ host = "ghost" }}]
        [resource]
        noverify = true
        config = [{{ hosts = "head,ghost", cores = "0-6" }}]
    """
    with PrivateInstance(short_path, text, hostname="head") as private:
        assert json.loads(private.run("config", "get", "bootstrap.hosts"))[0]["bind"] == endpoint
        assert private.run("resource", "list", "-n", "-s", "all", "-o", "{ncores}").strip() == "14"


@pytest.mark.flux
def test_the_certificate_is_the_owner_s_alone(short_path: Path) -> None:
    with PrivateInstance(short_path, CONFIG):
        assert stat.S_IMODE((short_path / "curve.cert").stat().st_mode) == 0o600


@pytest.mark.flux
def test_closing_leaves_no_process_even_when_followers_have_just_begun(short_path: Path) -> None:
    with PrivateInstance(short_path, CONFIG) as private:
        private.start_followers(GHOSTS[:2])
        # the flux command becomes the broker, and has no command line for an instant
        eventually(lambda: len(processes_of(short_path)) == 3)
    assert processes_of(short_path) == []


@pytest.mark.flux
def test_a_killed_follower_takes_its_tasks_with_it(harness: RealHarness, short_path: Path) -> None:
    marker = short_path / "a-task-of-its-own"
    marker.write_text("sleep 60 & wait\n")
    harness.join(GHOSTS[:1])
    job_id = harness.submit(job("sh", str(marker), nodes=1, queue="burst"))
    event(harness, job_id, "start")
    harness.run_until(lambda: any(str(marker) in line for line in processes_of(short_path)))
    harness.kill(GHOSTS[:1])
    assert [line for line in processes_of(short_path) if str(marker) in line or GHOSTS[0] in line] == []


@pytest.mark.flux
def test_the_instance_ends_when_its_owner_is_killed(short_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(short_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    lead = os.pidfd_open(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    ended, _, _ = select.select([lead], [], [], 20)
    os.close(lead)
    owner.stdout.close()
    owner.stdin.close()
    assert ended
    assert processes_of(short_path) == []


@pytest.mark.flux
def test_an_instance_that_cannot_start_shows_the_end_of_its_log(short_path: Path) -> None:
    with (
        pytest.raises(InstanceError, match=r"did not start; .*lead0\.log ends with: .*lead0"),
        PrivateInstance(short_path, private_config({}, mode="open", home=("another", 2))),
    ):
        pass
    assert processes_of(short_path) == []


@pytest.mark.flux
def test_a_directory_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InstanceError, match="too long a path for a Unix socket; choose a shorter directory"),
        PrivateInstance(tmp_path / ("d" * 100), CONFIG),
    ):
        pass


@pytest.mark.flux
def test_a_command_that_fails_raises_with_its_error(harness: RealHarness) -> None:
    with pytest.raises(InstanceError, match=r"flux queue start nowhere: .*'nowhere' is not a valid queue"):
        harness.private.run("queue", "start", "nowhere")
    assert harness.private.run("getattr", "hostname").strip() == HOME
