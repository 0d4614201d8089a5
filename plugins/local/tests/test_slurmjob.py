"""The launcher ``slurm``: followers as an allocation of a private Slurm cluster of two nodes on this machine."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_support import context, order, phases, until, up

from fluxburst.errors import AuthDenied, InvalidOrder, NoCapacity, ProviderError, ProviderUnavailable, QuotaExceeded
from fluxburst.flux.private import PrivateInstance, free_port
from fluxburst.model import Host, NodeId, Severity
from fluxburst.provider import Provider
from fluxburst_local import make
from fluxburst_local.jobs import Tags

SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd-%n.log
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=main Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Slurm:
    directory: Path

    def run(self, *command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

    def names(self) -> list[str]:
        return self.run("squeue", "--noheader", "--states=all", "--format=%j").split()


@pytest.fixture
def slurm(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """A controller and two nodes, without munge: everything is of one user on one machine."""
    daemons = [shutil.which(name, path=SBIN) for name in ("slurmctld", "slurmd")]
    if not all(daemons) or not shutil.which("sbatch"):
        pytest.skip("no slurmctld, slurmd and sbatch: install slurmctld, slurmd and slurm-client (Debian)")
    directory = short_dir / "slurm"
    for name in ("state", "spool-n0", "spool-n1"):
        (directory / name).mkdir(parents=True)
    ports = [free_port() for _ in range(3)]
    config = directory / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname(), ports=ports, user=getpass.getuser(), dir=directory))
    monkeypatch.setenv("SLURM_CONF", str(config))
    running: list[subprocess.Popen[bytes]] = []
    with (directory / "daemons.log").open("wb") as log:
        for arguments in ((daemons[0], "-D", "-i"), (daemons[1], "-D", "-b", "-Nn0"), (daemons[1], "-D", "-b", "-Nn1")):
            running.append(subprocess.Popen([str(word) for word in arguments], stdout=log, stderr=log))
    try:
        cluster = Slurm(directory)
        until((directory / "slurmctld.pid").exists)
        until(lambda: cluster.run("sinfo", "--noheader", "--format=%T %D").startswith("idle 2"), timeout_s=30)
        yield cluster
        cluster.run("scancel", f"--user={getpass.getuser()}")
        until(lambda: not cluster.run("squeue", "--noheader"), timeout_s=30)
    finally:
        for daemon in reversed(running):
            daemon.terminate()
        for daemon in running:
            daemon.wait(20)


@pytest.fixture
def provider(slurm: Slurm, tmp_path: Path, flux: str) -> Provider:
    return make(context(tmp_path, launcher="slurm", flux=flux, retries=0))


@pytest.mark.slurm
@pytest.mark.flux
def test_followers_in_an_allocation_join_and_are_given_back_whole(
    lead: PrivateInstance, slurm: Slurm, provider: Provider, tmp_path: Path
) -> None:
    ours = order(1, "burst-0", "burst-1", config=lead.config_path.read_text())
    provider.launch(ours)
    provider.launch(ours)
    until(lambda: up(lead) == {"burst-0", "burst-1"}, timeout_s=60)
    assert slurm.names() == [f"fluxburst-c.{ours.request_id}"]

    # a service that has lost its state still knows whose nodes these are
    found = make(context(tmp_path / "new", launcher="slurm", flux=str(lead.flux)))
    first, second = found.list_nodes()
    assert (first.request_id, first.pool, first.host, first.phase) == (ours.request_id, "p", "burst-0", "running")
    found.release([first.node_id])
    assert phases(found) == {"burst-0": "running", "burst-1": "running"}
    found.release([second.node_id])
    until(lambda: not found.list_nodes(), timeout_s=60)
    until(lambda: not up(lead))
    assert "lost" not in lead.run("resource", "eventlog", "--format=json")
    found.launch(ours)
    assert slurm.names() == [f"fluxburst-c.{ours.request_id}"]


@pytest.mark.slurm
@pytest.mark.flux
def test_one_follower_that_leaves_ends_neither_the_others_nor_the_job(
    lead: PrivateInstance, provider: Provider
) -> None:
    provider.launch(order(1, "burst-0", "burst-1", config=lead.config_path.read_text()))
    until(lambda: up(lead) == {"burst-0", "burst-1"}, timeout_s=60)
    stop = "kill -TERM $(flux getattr broker.pid)"
    lead.run("exec", "-r1", "sh", "-c", stop)
    until(lambda: up(lead) == {"burst-1"})
    assert phases(provider) == {"burst-0": "running", "burst-1": "running"}
    lead.run("exec", "-r2", "sh", "-c", stop)
    until(lambda: not provider.list_nodes(), timeout_s=60)


@pytest.mark.slurm
@pytest.mark.flux
def test_followers_that_fail_stay_listed_with_their_last_words_until_released(provider: Provider) -> None:
    provider.launch(order(1, "burst-0", config="this is no TOML\n"))
    until(lambda: phases(provider) == {"burst-0": "failed"}, timeout_s=30)
    (node,) = provider.list_nodes()
    assert re.match(r"job \d+ ended, FAILED: .*broker.toml", node.detail)
    provider.release([node.node_id])
    assert provider.list_nodes() == []


@pytest.mark.slurm
@pytest.mark.flux
def test_a_second_job_of_one_name_holds_no_nodes_and_goes_with_the_first(slurm: Slurm, provider: Provider) -> None:
    ours = order(1, "burst-0")
    script = slurm.directory / "job.sh"
    script.write_text(f"#!/bin/sh\n# fluxburst: {Tags('p', (Host('burst-0'),)).dumps()}\nexec sleep 600\n")
    submit = ("sbatch", "--parsable", f"--job-name=fluxburst-c.{ours.request_id}", "--dependency=singleton")
    for _ in range(2):
        slurm.run(*submit, "--output=/dev/null", str(script))
    until(lambda: phases(provider) == {"burst-0": "running"}, timeout_s=30)
    assert sorted(slurm.run("squeue", "--noheader", "--format=%T %r").splitlines()) == [
        "PENDING Dependency",
        "RUNNING None",
    ]
    provider.release([NodeId(f"{ours.request_id}.burst-0")])
    until(lambda: not slurm.run("squeue", "--noheader"), timeout_s=30)
    assert provider.list_nodes() == []


@pytest.mark.slurm
@pytest.mark.flux
def test_what_slurm_refuses_is_an_invalid_order(slurm: Slurm, flux: str, tmp_path: Path) -> None:
    for options, message in (
        ({"partition": "nope"}, "invalid partition specified: nope"),
        ({"constraint": "nope"}, "Invalid feature specification"),
        ({"args": ["--nonsense"]}, "unrecognized option '--nonsense'"),
        ({"args": ["--mincpus=99"]}, "Requested node configuration is not available"),
    ):
        provider = make(context(tmp_path, launcher="slurm", flux=flux, **options))
        with pytest.raises(InvalidOrder, match=message):
            provider.launch(order(1 + len(slurm.names()), "burst-0"))
        assert provider.list_nodes() == []
        assert not list((tmp_path / "orders").iterdir())


@pytest.mark.slurm
@pytest.mark.flux
def test_an_order_that_waits_for_nodes_is_starting_and_says_why(slurm: Slurm, provider: Provider) -> None:
    slurm.run("sbatch", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 600")
    provider.launch(order(1, "burst-0"))
    until(
        lambda: (
            [(node.phase, node.detail) for node in provider.list_nodes()]
            == [("starting", "waits in PENDING: Resources")]
        ),
        timeout_s=30,
    )


@pytest.mark.slurm
@pytest.mark.flux
def test_check_asks_the_controller(provider: Provider) -> None:
    findings = provider.check()
    assert [finding.severity for finding in findings] == [Severity.OK, Severity.OK]
    assert findings[1].message.startswith("slurm-wlm ")


def test_without_slurm_s_commands_calls_are_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    provider = make(context(tmp_path, launcher="slurm"))
    with pytest.raises(ProviderUnavailable, match="squeue: no such command"):
        provider.list_nodes()
    assert provider.check()[-1].severity is Severity.ERROR


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", ProviderUnavailable),
        ("Batch job submission failed: Socket timed out on send/recv operation", ProviderUnavailable),
        ("Batch job submission failed: Zero Bytes were transmitted or received", ProviderUnavailable),
        ("Batch job submission failed: Invalid partition name specified", InvalidOrder),
        ("Batch job submission failed: Invalid account or account/partition combination specified", InvalidOrder),
        ("Batch job submission failed: Invalid qos specification", InvalidOrder),
        ("Batch job submission failed: Requested node configuration is not available", InvalidOrder),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", InvalidOrder),
        (
            "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or "
            "time limits)",
            QuotaExceeded,
        ),
        ("error: QOSMaxSubmitJobPerUserLimit", QuotaExceeded),
        ("error: AssocMaxSubmitJobLimit", QuotaExceeded),
        ("Batch job submission failed: Required partition not available (inactive or drain)", NoCapacity),
        ("Batch job submission failed: Protocol authentication error", AuthDenied),
        ("Batch job submission failed: Access/permission denied", AuthDenied),
        ("error: Munge encode failed: Failed to access \"/run/munge/munge.socket.2\"", AuthDenied),
        ("Batch job submission failed: User's group not permitted to use this partition", AuthDenied),
    ],
)  # fmt: skip
def test_what_slurm_says_becomes_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: type[ProviderError]
) -> None:
    (tmp_path / "said").write_text(f"sbatch: {said}\n")
    for name, script in (("squeue", ""), ("sbatch", f"cat {tmp_path}/said >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    provider = make(context(tmp_path / "state", launcher="slurm", flux="/bin/true"))
    with pytest.raises(error) as caught:
        provider.launch(order(1, "burst-0"))
    assert type(caught.value) is error
    assert said in str(caught.value)
