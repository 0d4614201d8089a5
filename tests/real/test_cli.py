"""The command line as an administrator types it, against a running service."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from fluxburst.testing import PrivateSite
from tests.real import steps

pytestmark = pytest.mark.flux


def said(site: PrivateSite, *arguments: str) -> str:
    """What a command prints, with every run of white space as one blank; it must succeed."""
    done = steps.flux_burst(site, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return " ".join(done.stdout.split())


def test_every_command_that_shows_has_a_table_and_json(site: PrivateSite) -> None:
    job = site.submit(steps.BURSTABLE, "-N2", "sleep", "inf")
    steps.await_event(site, job, "start")
    f58 = site.instance.run("job", "id", "--to=f58", str(job)).strip()
    steps.eventually(lambda: site.call("jobs")["jobs"][0]["state"] == "running")

    assert "2 nodes bought; burstable jobs: 1 running" in said(site, "status")
    status = json.loads(said(site, "status", "--json"))
    assert (status["ready"], status["nodes"], status["pools"][0]["states"]) == (True, 2, {"joined": 2})

    table = said(site, "nodes")
    assert table.startswith("HOST POOL PROVIDER STATE")
    assert "burst-0 burst local joined" in table
    nodes = json.loads(said(site, "nodes", "--json"))["nodes"]
    assert [(node["host"], node["jobs"]) for node in nodes] == [("burst-0", [f58]), ("burst-1", [f58])]

    assert f58 in said(site, "jobs")
    (row,) = json.loads(said(site, "jobs", "--json"))["jobs"]
    assert (row["id"], row["pool"], row["hosts"]) == (job, "burst", "burst-[0-1]")

    story = said(site, "explain", f58)
    assert "running on burst-[0-1]" in story
    assert "moved queue=burst" in story
    history = json.loads(said(site, "explain", str(job), "--json"))["history"]
    assert "moved" in [entry["kind"] for entry in history]

    assert "local local fluxburst-local" in said(site, "providers")
    (provider,) = json.loads(said(site, "providers", "--json"))["providers"]
    assert (provider["provider"], provider["machines"]) == ("local", 2)

    assert "burst local" in said(site, "offers")
    assert {offer["pool"] for offer in json.loads(said(site, "offers", "--json"))["offers"]} == {"burst"}
    (total,) = json.loads(said(site, "budget", "--by", "pool", "--json"))["totals"]
    assert (total["name"], total["spent_usd"]) == ("burst", 0.0)
    assert "since " in said(site, "budget", "--since", "2026-01")

    watched = said(site, "watch", "--count", "2", "--interval", "0.1")
    assert "2 nodes bought" in watched
    assert "burst-1" in watched


def test_nodes_can_be_asked_for_and_given_back_by_hand(site: PrivateSite) -> None:
    assert said(site, "request", "burst", "-N", "2", "--for", "1h") == "pool burst is kept at 2 nodes for 1h"
    steps.await_nodes_up(site, 2)
    assert said(site, "release", "burst-[0-1]").startswith("burst-[0-1]: drained, and given back")
    steps.eventually(lambda: steps.nothing_left(site))
    assert said(site, "nodes") == "no nodes"
    assert "gone" in said(site, "nodes", "--all")


def test_a_pause_stops_buying_until_it_is_resumed(site: PrivateSite) -> None:
    said(site, "pause")
    orders = steps.orders_taken(site)
    job = site.submit(steps.BURSTABLE, "-N2", "true")
    steps.eventually(lambda: steps.memo(site, job).get("state") == "wait")
    assert "buying is paused" in said(site, "explain", str(job))
    assert steps.orders_taken(site) == orders
    said(site, "resume")
    assert steps.await_event(site, job, "finish")["context"]["status"] == 0


def test_check_finds_nothing_amiss_on_a_rendered_site(site: PrivateSite) -> None:
    findings = json.loads(said(site, "check", "--json"))["findings"]
    assert [finding for finding in findings if finding["severity"] != "ok"] == []
    assert {"scheduler", "frobnicator", "reach", "local: flux"} <= {finding["subject"] for finding in findings}
    lines = steps.flux_burst(site, "check").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * len(findings)


def test_check_tells_what_is_amiss_and_its_exit_code_does_too(site: PrivateSite) -> None:
    site.instance.run("queue", "disable", "burst", "--message=closed", "--quiet")
    try:
        done = steps.flux_burst(site, "check")
    finally:
        site.instance.run("queue", "enable", "burst", "--quiet")
    assert done.returncode == 1
    assert "error   queue burst: is disabled" in done.stdout


def test_the_flux_configuration_is_rendered_from_the_sites_own(site: PrivateSite, tmp_path: Path) -> None:
    own = tmp_path / "site.toml"
    own.write_text(
        f"""
        [bootstrap]
        curve_cert = "/etc/flux/curve.cert"
        hosts = [{{ host = "lead0", bind = "tcp://127.0.0.1:8050", connect = "{site.config.lead.connect}" }}]
        [[resource.config]]
        hosts = "lead0"
        cores = "0-3"
        """
    )
    said(site, "config", "render", "--site", str(own), "--output", str(tmp_path / "out"))
    for role in ("lead", "follower"):
        config = tomllib.loads((tmp_path / "out" / f"{role}.d" / "flux.toml").read_text())
        assert {"host": "burst-[0-3]"} in config["bootstrap"]["hosts"]
        assert set(config["queues"]) == {"batch", "staging", "burst"}


@pytest.mark.parametrize(
    "arguments",
    [
        "status",
        "nodes",
        "jobs",
        "explain f1",
        "plan",
        "providers",
        "offers",
        "budget",
        "watch",
        "pause",
        "request burst -N1",
    ],
)
def test_without_a_service_each_command_says_so_in_one_line(site: PrivateSite, arguments: str) -> None:
    site.stop_service()
    done = steps.flux_burst(site, *arguments.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "flux burst: the burst service does not run on this instance; start it with: flux burst run\n"
    )


def test_a_second_service_is_refused_in_one_line(site: PrivateSite) -> None:
    second = steps.flux_burst(site, "run")
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith("flux burst: ")
    assert site.ready()
