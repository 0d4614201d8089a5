"""The launcher ``process`` with a stand-in for ``flux broker``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from local_support import Machine, order, phases, release_all, supervisors, until

from fluxburst.errors import InvalidOrder, NoCapacity, ProviderUnavailable
from fluxburst.model import NodeId, Severity
from fluxburst_local import supervisor


def test_each_host_gets_a_broker_of_its_own_name_and_config(machine: Machine) -> None:
    provider = machine.provider()
    provider.launch(order(1, "burst-0", "burst-1", config="answer = 42\n"))
    for host in ("burst-0", "burst-1"):
        machine.pid(host)
        (start,) = machine.starts(host)
        words = start.split()
        assert words[1] == "broker"
        assert f"-Shostname={host}" in words
        (config,) = [Path(word.partition("=")[2]) for word in words if word.startswith("--config-path=")]
        assert config.read_text() == "answer = 42\n"
        assert config.stat().st_mode & 0o777 == 0o600
        assert config.parent.stat().st_mode & 0o777 == 0o700
    first, second = provider.list_nodes()
    assert (first.node_id, first.pool, first.request_id) == ("b-000000000001.burst-0", "p", "b-000000000001")
    assert first.node_id != second.node_id


def test_sockets_have_short_paths_however_deep_the_state_directory_lies(machine: Machine) -> None:
    machine.state_dir = machine.root / ("deep" * 30) / "state"
    provider = machine.provider()
    provider.launch(order(1, "burst-0"))
    machine.pid("burst-0")
    (start,) = machine.starts("burst-0")
    (uri,) = [word for word in start.split() if word.startswith("-Slocal-uri=local://")]
    assert len(uri.removeprefix("-Slocal-uri=local://")) <= 107


def test_a_follower_inherits_neither_secrets_nor_the_flux_of_the_service(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLUX_URI", "PMI_RANK", "MY_TOKEN"):
        monkeypatch.setenv(name, "leaked")
    provider = machine.provider()
    provider.launch(order(1, "burst-0"))
    environ = Path(f"/proc/{machine.pid('burst-0')}/environ")
    until(lambda: b"PATH=" in environ.read_bytes())  # a process has none while it becomes its program
    assert b"leaked" not in environ.read_bytes()


def test_jobs_get_the_umask_of_the_service(machine: Machine) -> None:
    machine.broker_does('umask >"$here/umask"; exec sleep 600')
    old = os.umask(0o022)
    try:
        machine.provider().launch(order(1, "burst-0"))
    finally:
        os.umask(old)
    until(lambda: (machine.root / "umask").exists() and (machine.root / "umask").read_text() == "0022\n")


def test_the_same_request_twice_starts_nothing_twice(machine: Machine) -> None:
    provider = machine.provider()
    for _ in range(3):
        provider.launch(order(1, "burst-0"))
    machine.provider().launch(order(1, "burst-0"))
    machine.pid("burst-0")
    release_all(provider)
    provider.launch(order(1, "burst-0"))
    assert provider.list_nodes() == []
    assert len(machine.starts("burst-0")) == 1


def test_a_launch_retried_after_its_answer_was_lost_starts_nothing_twice(machine: Machine) -> None:
    provider = machine.provider()
    provider.list_nodes()
    request = {
        "op": "launch",
        "request_id": order(1).request_id,
        "pool": "p",
        "hosts": ["burst-0"],
        "flux": str(machine.root / "flux"),
        "config": "",
        "retries": 0,
        "grace_s": 5.0,
    }
    with socket.socket(socket.AF_UNIX) as lost:
        lost.connect(str(machine.state_dir / supervisor.SOCKET))
        lost.sendall(json.dumps(request).encode() + b"\n")
    provider.launch(order(1, "burst-0"))
    machine.pid("burst-0")
    provider.launch(order(1, "burst-0"))
    assert phases(provider) == {"burst-0": "running"}
    assert len(machine.starts("burst-0")) == 1


def test_a_host_that_still_runs_is_not_started_for_another_request(machine: Machine) -> None:
    provider = machine.provider()
    provider.launch(order(1, "burst-0"))
    with pytest.raises(InvalidOrder, match="burst-0 still runs for order b-000000000001"):
        provider.launch(order(2, "burst-1", "burst-0"))
    assert phases(provider) == {"burst-0": "running"}
    release_all(provider)
    provider.launch(order(3, "burst-1", "burst-0"))
    assert phases(provider) == {"burst-0": "running", "burst-1": "running"}


def test_an_order_is_started_whole_or_not_at_all(machine: Machine) -> None:
    provider = machine.provider()
    with pytest.raises(NoCapacity, match="cannot start another process"):
        provider.launch(order(1, "burst-0", "x" * 300))
    assert provider.list_nodes() == []
    assert machine.starts("burst-0") == []
    provider.launch(order(1, "burst-0"))
    assert phases(provider) == {"burst-0": "running"}


def test_nothing_is_started_that_the_journal_cannot_hold(machine: Machine) -> None:
    provider = machine.provider()
    provider.list_nodes()
    obstacle = machine.state_dir / f"{supervisor.JOURNAL}.new"
    obstacle.mkdir()
    with pytest.raises(NoCapacity, match="Is a directory"):
        provider.launch(order(1, "burst-0"))
    assert provider.list_nodes() == []
    assert machine.starts("burst-0") == []
    obstacle.rmdir()
    provider.launch(order(1, "burst-0"))
    assert phases(provider) == {"burst-0": "running"}


def test_a_clean_exit_is_no_failure_and_is_no_longer_listed(machine: Machine) -> None:
    machine.broker_does("exit 0")
    provider = machine.provider()
    provider.launch(order(1, "burst-0"))
    until(lambda: not provider.list_nodes())
    assert not (machine.state_dir / "orders" / order(1).request_id).exists()


def test_a_failure_stays_listed_with_its_last_words_until_released(machine: Machine) -> None:
    machine.broker_does("echo bad certificate >&2; exit 3")
    provider = machine.provider()
    provider.launch(order(1, "burst-0"))
    until(lambda: phases(provider) == {"burst-0": "failed"})
    (node,) = provider.list_nodes()
    assert node.detail == "exit status 3: bad certificate"
    provider.release([node.node_id])
    assert provider.list_nodes() == []


def test_a_killed_broker_is_reported_as_killed(machine: Machine) -> None:
    provider = machine.provider()
    provider.launch(order(1, "burst-0"))
    os.kill(machine.pid("burst-0"), signal.SIGKILL)
    until(lambda: phases(provider) == {"burst-0": "failed"})
    assert provider.list_nodes()[0].detail == "killed by SIGKILL: its log is empty"


def test_retries_are_bounded(machine: Machine) -> None:
    machine.broker_does("exit 1")
    provider = machine.provider(retries=1)
    provider.launch(order(1, "burst-0"))
    until(lambda: phases(provider) == {"burst-0": "failed"})
    assert len(machine.starts("burst-0")) == 2


def test_a_release_while_a_retry_is_due_prevents_it(machine: Machine) -> None:
    machine.broker_does("exit 1")
    provider = machine.provider(retries=1)
    provider.launch(order(1, "burst-0"))
    until(lambda: phases(provider) == {"burst-0": "starting"})
    assert provider.list_nodes()[0].detail.startswith("exit status 1")
    release_all(provider)
    machine.broker_does("exec sleep 600")
    provider.close()
    until(lambda: not supervisors(machine.state_dir))  # it would stay with a broker, and with a retry that is due
    assert len(machine.starts("burst-0")) == 1


def test_release_asks_first_and_kills_after_the_grace_time(machine: Machine) -> None:
    machine.broker_does("trap '' TERM; touch \"$here/ready\"; exec sleep 600")
    provider = machine.provider(grace="300ms")
    provider.launch(order(1, "burst-0"))
    until((machine.root / "ready").exists)
    provider.release([NodeId("b-000000000001.burst-0")])
    provider.release([NodeId("b-000000000001.burst-0")])
    assert phases(provider) == {"burst-0": "stopping"}
    until(lambda: not provider.list_nodes())


def test_unknown_ids_are_released_without_complaint(machine: Machine) -> None:
    provider = machine.provider()
    provider.release([NodeId("b-x.burst-9"), NodeId("nonsense")])
    provider.launch(order(1, "burst-0"))
    provider.release([NodeId("b-000000000001.burst-1")])
    assert phases(provider) == {"burst-0": "running"}


def test_brokers_outlive_the_provider_and_are_found_by_the_next(machine: Machine) -> None:
    first = machine.provider()
    first.launch(order(1, "burst-0"))
    pid = machine.pid("burst-0")
    first.close()
    second = machine.provider()
    assert phases(second) == {"burst-0": "running"}
    assert os.getsid(pid) != os.getsid(0)
    release_all(second)
    assert supervisor.started_ticks(pid) is None


def test_a_killed_supervisor_is_started_again_and_keeps_its_brokers_under_control(machine: Machine) -> None:
    provider = machine.provider()
    provider.launch(order(1, "burst-0", "burst-1", "burst-2"))
    kept, died = machine.pid("burst-0"), machine.pid("burst-1")
    machine.kill_supervisor()
    os.kill(died, signal.SIGKILL)
    until(lambda: supervisor.started_ticks(died) is None)

    assert phases(provider) == {"burst-0": "running", "burst-1": "failed", "burst-2": "running"}
    (failed,) = [node for node in provider.list_nodes() if node.host == "burst-1"]
    assert failed.detail.startswith("ended while its supervisor was away, exit status unknown")
    with pytest.raises(InvalidOrder, match="burst-0 still runs"):
        provider.launch(order(2, "burst-0"))
    provider.launch(order(1, "burst-0", "burst-1", "burst-2"))
    assert len(machine.starts("burst-1")) == 1

    release_all(provider)
    assert supervisor.started_ticks(kept) is None


def test_an_adopted_broker_that_ends_is_noticed_without_being_asked_for(machine: Machine) -> None:
    provider = machine.provider()
    provider.launch(order(1, "burst-0"))
    pid = machine.pid("burst-0")
    machine.kill_supervisor()
    provider.list_nodes()
    os.kill(pid, signal.SIGKILL)
    journal = machine.state_dir / supervisor.JOURNAL
    until(lambda: bool(json.loads(journal.read_text())["nodes"][0]["failed"]))


def test_a_request_outlives_a_supervisor_that_dies_while_it_listens(machine: Machine) -> None:
    provider = machine.provider()
    machine.state_dir.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dying:
        dying.bind(str(machine.state_dir / supervisor.SOCKET))
        dying.listen()

        def die() -> None:
            dying.accept()[0].close()
            second, _ = dying.accept()
            dying.close()
            second.close()

        with ThreadPoolExecutor(1) as pool:
            dead = pool.submit(die)
            assert provider.list_nodes() == []
            dead.result()


def test_a_stop_under_way_is_finished_by_the_next_supervisor(machine: Machine) -> None:
    machine.broker_does("trap '' TERM; touch \"$here/ready\"; exec sleep 600")
    provider = machine.provider(grace="500ms")
    provider.launch(order(1, "burst-0"))
    until((machine.root / "ready").exists)
    provider.release([NodeId("b-000000000001.burst-0")])
    machine.kill_supervisor()
    assert phases(provider) == {"burst-0": "stopping"}
    until(lambda: not provider.list_nodes())


def test_a_pid_that_now_belongs_to_another_process_is_left_alone(machine: Machine) -> None:
    provider = machine.provider()
    provider.launch(order(1, "burst-0"))
    pid = machine.pid("burst-0")
    machine.kill_supervisor()
    os.kill(pid, signal.SIGKILL)
    journal = machine.state_dir / supervisor.JOURNAL
    with subprocess.Popen(["sleep", "600"]) as bystander:
        data = json.loads(journal.read_text())
        data["nodes"][0]["pid"] = bystander.pid
        journal.write_text(json.dumps(data))
        assert phases(provider) == {"burst-0": "failed"}
        release_all(provider)
        assert bystander.poll() is None
        bystander.kill()


def test_a_broker_begins_only_once_the_journal_knows_it(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", supervisor.GATE, "gate", "touch", str(tmp_path / "began")]
    closed = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
    assert closed.returncode != 0
    assert not (tmp_path / "began").exists()
    subprocess.run(command, input=b"go\n", check=True)
    assert (tmp_path / "began").exists()


def test_after_a_restart_of_the_machine_its_brokers_are_reported_as_ended(machine: Machine) -> None:
    provider = machine.provider()
    provider.launch(order(1, "burst-0"))
    os.kill(machine.pid("burst-0"), signal.SIGKILL)
    machine.kill_supervisor()
    journal = machine.state_dir / supervisor.JOURNAL
    data = json.loads(journal.read_text())
    data["boot_id"] = "another"
    data["nodes"][0] |= {"pid": os.getpid(), "started_ticks": supervisor.started_ticks(os.getpid()), "failed": False}
    journal.write_text(json.dumps(data))
    assert phases(provider) == {"burst-0": "failed"}


def test_providers_that_race_to_start_the_supervisor_get_one(machine: Machine) -> None:
    providers = [machine.provider() for _ in range(6)]
    with ThreadPoolExecutor(len(providers)) as pool:
        assert list(pool.map(lambda provider: list(provider.list_nodes()), providers)) == [[]] * len(providers)
    assert len(supervisors(machine.state_dir)) == 1


def test_one_provider_serves_many_threads(machine: Machine) -> None:
    provider = machine.provider()
    orders = [order(number, f"burst-{number}") for number in range(4)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(provider.launch, orders * 3))
    assert phases(provider) == {f"burst-{number}": "running" for number in range(4)}


def test_the_supervisor_stays_with_a_broker_and_leaves_when_nothing_is_left(machine: Machine) -> None:
    provider = machine.provider()
    provider.launch(order(1, "burst-0"))
    (pid,) = supervisors(machine.state_dir)
    provider.close()
    broker = machine.pid("burst-0")
    began = time.monotonic()
    until(lambda: time.monotonic() > began + supervisor.LINGER_S + 0.5)
    assert supervisors(machine.state_dir) == [pid]
    os.kill(broker, signal.SIGKILL)
    until(lambda: not supervisors(machine.state_dir))
    assert phases(machine.provider()) == {"burst-0": "failed"}


def test_a_request_id_without_nodes_is_forgotten_after_a_day(tmp_path: Path) -> None:
    path = tmp_path / supervisor.JOURNAL
    journal = supervisor.Journal(path)
    journal.orders = {"b-1": supervisor.Order("p", "flux", 0, 1.0), "b-2": supervisor.Order("p", "flux", 0, 1.0)}
    journal.nodes = {"b-2.h": supervisor.Node("b-2", "h", 0)}
    journal.save()
    assert set(supervisor.Journal.load(path).orders) == {"b-1", "b-2"}
    assert journal.orders["b-1"].emptied_at is not None
    journal.orders["b-1"] = replace(journal.orders["b-1"], emptied_at=time.time() - supervisor.REMEMBER_S - 1)
    journal.save()
    assert set(supervisor.Journal.load(path).orders) == {"b-2"}


def test_an_unreadable_journal_is_an_error_and_not_an_empty_listing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, tmp_path / "state")
    machine.state_dir.mkdir()
    (machine.state_dir / supervisor.JOURNAL).write_text("{")
    with pytest.raises(ProviderUnavailable, match=r"supervisor.log: the supervisor did not start: .*JSONDecodeError"):
        machine.provider().list_nodes()


def test_a_launch_takes_less_than_ten_milliseconds_once_offers_were_asked_for(machine: Machine) -> None:
    provider = machine.provider()
    provider.list_nodes()
    taken = []
    for number in range(4):
        began = time.perf_counter()
        provider.launch(order(number, f"burst-{number}"))
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.010


def test_a_missing_executable_is_found_by_check_and_refused_by_launch(machine: Machine) -> None:
    provider = machine.provider(flux="/nowhere/flux")
    finding = provider.check()[0]
    assert (finding.subject, finding.severity) == ("flux", Severity.ERROR)
    assert "/nowhere/flux" in finding.message
    with pytest.raises(InvalidOrder, match="/nowhere/flux: no such executable"):
        provider.launch(order(1, "burst-0"))
    assert provider.list_nodes() == []


def test_check_starts_nothing(machine: Machine) -> None:
    machine.broker_does("exit 0")
    findings = machine.provider().check()
    assert [finding.severity for finding in findings] == [Severity.OK, Severity.OK]
    assert supervisors(machine.state_dir) == []


def test_a_temporary_directory_too_deep_for_sockets_is_found_by_check(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "x" * 100)
    finding = machine.provider().check()[1]
    assert (finding.subject, finding.severity) == ("run directory", Severity.ERROR)
    assert "TMPDIR" in finding.fix
