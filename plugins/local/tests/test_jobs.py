"""What both launchers of jobs do on this side: arguments, directories, and what is kept when no answer comes."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_support import context, order

from fluxburst.errors import InvalidOrder, ProviderUnavailable
from fluxburst.model import Host
from fluxburst.provider import Provider
from fluxburst_local import make
from fluxburst_local.jobs import KEEP_S, Tags


class Site:
    """Stand-ins for Slurm's commands, which note what they are told and answer as the test wants."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.state_dir = root / "state"
        for name in ("squeue", "sbatch", "scontrol", "scancel"):
            self.answer(name, "")
        monkeypatch.setenv("PATH", f"{root}:{os.environ['PATH']}")

    def answer(self, command: str, script: str) -> None:
        path = self.root / command
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{self.root}/{command}.told"\n{script}\n')
        path.chmod(0o755)

    def told(self, command: str) -> list[str]:
        return (self.root / f"{command}.told").read_text().splitlines()

    def provider(self, **options: Any) -> Provider:
        return make(context(self.state_dir, launcher="slurm", flux="/bin/true", **options))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_an_order_becomes_whole_nodes_with_the_pool_s_options_before_the_provider_s(site: Site) -> None:
    ours = context(site.state_dir, launcher="slurm", flux="/bin/true", partition="main", account="a1", args=["--nice"])
    pool = replace(ours.pools["p"], options={"partition": "gpu", "time_limit": "60"})
    bought = order(1, "burst-0", "burst-1", cores=8)
    make(replace(ours, pools={"p": pool})).launch(replace(bought, offer=replace(bought.offer, gpus=2)))
    told = site.told("sbatch")
    assert {"--nodes=2", "--ntasks=2", "--mincpus=8", "--gpus-per-node=2", "--exclusive"} <= set(told)
    assert {"--partition=gpu", "--time=60", "--account=a1", "--nice"} <= set(told)
    assert {f"--job-name=fluxburst-c.{bought.request_id}", "--dependency=singleton"} <= set(told)
    assert not [word for word in told if word.startswith(("--qos", "--constraint"))]


def test_the_nodes_read_the_order_from_the_shared_directory(site: Site, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    site.provider(shared_dir=str(shared)).launch(order(1, "burst-0", config="answer = 42\n"))
    directory = shared / "c" / "local" / "orders" / order(1).request_id
    assert (directory / "broker.toml").read_text() == "answer = 42\n"
    assert site.told("sbatch")[-1] == str(directory / "job.sh")
    assert str(directory / "boot.sh") in (directory / "job.sh").read_text()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_commands_get_neither_secrets_nor_the_flux_of_the_service(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUX_URI", "SLURM_JOB_ID", "MY_TOKEN"):
        monkeypatch.setenv(name, "leaked")
    site.answer("sbatch", f"env >{site.root}/env")
    site.provider().launch(order(1, "burst-0"))
    assert "leaked" not in (site.root / "env").read_text()


def test_after_an_unanswered_submission_the_directory_stays_and_the_next_launch_looks_first(site: Site) -> None:
    provider = site.provider()
    site.answer("sbatch", "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1")
    with pytest.raises(ProviderUnavailable, match="timed out"):
        provider.launch(order(1, "burst-0"))
    assert (site.state_dir / "orders" / order(1).request_id / "boot.sh").exists()

    site.answer("squeue", f"echo '7|RUNNING|None|fluxburst-c.{order(1).request_id}'")
    site.answer("sbatch", "exit 1")
    provider.launch(order(1, "burst-0"))


def test_a_launch_that_cannot_look_first_submits_nothing(site: Site) -> None:
    site.answer("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ProviderUnavailable):
        site.provider().launch(order(1, "burst-0"))
    assert not (site.root / "sbatch.told").exists()


def test_a_listing_that_cannot_be_complete_raises(site: Site) -> None:
    site.answer("squeue", "echo '7|RUNNING|None|fluxburst-c.b-1'")
    with pytest.raises(ProviderUnavailable, match="Slurm job 7 has a fluxburst name and no tags"):
        site.provider().list_nodes()


def test_directories_of_orders_without_a_job_are_swept_after_a_while(site: Site) -> None:
    provider = site.provider()
    provider.launch(order(1, "burst-0"))
    provider.launch(order(2, "burst-1"))
    old, young = (site.state_dir / "orders" / order(number).request_id for number in (1, 2))
    then = time.time() - KEEP_S - 1
    os.utime(old, (then, then))
    provider.launch(order(3, "burst-2"))
    assert not old.exists()
    assert young.exists()


def test_a_pool_that_is_no_longer_configured_is_an_invalid_order(site: Site) -> None:
    with pytest.raises(InvalidOrder, match=r"\[pool.gone\] is not in the configuration"):
        site.provider().launch(replace(order(1, "burst-0"), pool="gone"))


def test_a_missing_flux_is_refused_before_anything_is_written(site: Site) -> None:
    provider = make(context(site.state_dir, launcher="slurm", flux="/nowhere/flux"))
    with pytest.raises(InvalidOrder, match="/nowhere/flux: no such executable"):
        provider.launch(order(1, "burst-0"))
    assert not site.state_dir.exists()


def test_tags_survive_a_round_trip_in_one_line() -> None:
    tags = Tags("p", tuple(Host(f"burst-{index}") for index in range(200)))
    assert "\n" not in tags.dumps()
    assert Tags.loads(tags.dumps()) == tags
