"""The launcher ``flux``: followers as a job of another Flux instance of three nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from local_support import context, order, phases, until, up

from fluxburst.errors import InvalidOrder, ProviderUnavailable
from fluxburst.flux.private import PrivateInstance, private_config
from fluxburst.model import Host, NodeId, Severity
from fluxburst.provider import Provider
from fluxburst_local import make
from fluxburst_local.jobs import JobProvider

pytestmark = pytest.mark.flux


@pytest.fixture
def other(short_dir: Path) -> Iterator[PrivateInstance]:
    """Another instance, whose nodes the followers of ours may run on."""
    config = private_config({"far": ("far-[0-1]", 2)}, mode="open")
    with PrivateInstance(short_dir / "other", config, scheduler="sched-simple") as instance:
        hosts = [Host("far-0"), Host("far-1")]
        instance.start_followers(hosts)
        until(lambda: instance.run("resource", "list", "--states=free", "--no-header", "--format={nnodes}") == "3\n")
        yield instance


@pytest.fixture
def provider(other: PrivateInstance, tmp_path: Path) -> Iterator[Provider]:
    provider = make(context(tmp_path, launcher="flux", flux=str(other.flux), uri=other.uri, retries=0))
    yield provider
    provider.release([node.node_id for node in provider.list_nodes()])
    until(lambda: not provider.list_nodes(), timeout_s=30)
    provider.close()


def names(instance: PrivateInstance) -> list[str]:
    return [job["name"] for job in json.loads(instance.run("jobs", "-a", "--json"))["jobs"]]


def test_followers_on_another_instance_join_and_are_given_back_whole(
    lead: PrivateInstance, other: PrivateInstance, provider: Provider, tmp_path: Path
) -> None:
    ours = order(1, "burst-0", "burst-1", config=lead.config_path.read_text())
    provider.launch(ours)
    provider.launch(ours)
    until(lambda: up(lead) == {"burst-0", "burst-1"}, timeout_s=30)
    assert names(other) == [f"fluxburst-c.{ours.request_id}"]
    provider.close()

    # a service that has lost its state still knows whose nodes these are
    context_of_next = context(tmp_path / "new", launcher="flux", flux=str(other.flux), uri=other.uri)
    found = make(context_of_next)
    first, second = found.list_nodes()
    assert (first.request_id, first.pool, first.host, first.phase) == (ours.request_id, "p", "burst-0", "running")

    found.release([first.node_id])
    assert phases(found) == {"burst-0": "running", "burst-1": "running"}
    found.release([second.node_id])
    until(lambda: not found.list_nodes(), timeout_s=30)
    until(lambda: not up(lead))
    assert "lost" not in lead.run("resource", "eventlog", "--format=json")
    found.launch(ours)
    assert names(other) == [f"fluxburst-c.{ours.request_id}"]


def test_one_follower_that_leaves_ends_neither_the_others_nor_the_job(
    lead: PrivateInstance, provider: Provider
) -> None:
    provider.launch(order(1, "burst-0", "burst-1", config=lead.config_path.read_text()))
    until(lambda: up(lead) == {"burst-0", "burst-1"}, timeout_s=30)
    stop = "kill -TERM $(flux getattr broker.pid)"
    lead.run("exec", "-r1", "sh", "-c", stop)
    until(lambda: up(lead) == {"burst-1"})
    assert phases(provider) == {"burst-0": "running", "burst-1": "running"}
    lead.run("exec", "-r2", "sh", "-c", stop)
    until(lambda: not provider.list_nodes(), timeout_s=30)


def test_followers_that_fail_stay_listed_with_their_last_words_until_released(provider: Provider) -> None:
    provider.launch(order(1, "burst-0", config="this is no TOML\n"))
    until(lambda: phases(provider) == {"burst-0": "failed"}, timeout_s=30)
    (node,) = provider.list_nodes()
    assert "ended, status 1" in node.detail
    assert "broker.toml" in node.detail
    provider.release([node.node_id])
    assert provider.list_nodes() == []


def test_an_order_that_waits_for_nodes_is_starting_and_says_so(other: PrivateInstance, provider: Provider) -> None:
    hog = other.run("submit", "-N3", "--exclusive", "sleep", "600").strip()
    provider.launch(order(1, "burst-0"))
    until(lambda: [(node.phase, node.detail) for node in provider.list_nodes()] == [("starting", "waits in SCHED")])
    other.run("cancel", hog)


def test_an_order_that_never_fits_fails_with_the_scheduler_s_reason(provider: Provider) -> None:
    provider.launch(order(1, "burst-0", "burst-1", "burst-2", "burst-3"))
    until(lambda: set(phases(provider).values()) == {"failed"})
    assert "unsatisfiable" in provider.list_nodes()[0].detail


def test_the_parent_of_the_service_s_own_instance_is_reached(
    other: PrivateInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = other.run("batch", "-N1", "--exclusive", "--output=/dev/null", "--wrap", "sleep", "600").strip()
    other.run("job", "wait-event", "--timeout=20", child, "memo")
    monkeypatch.setenv("FLUX_URI", other.run("uri", "--local", child).strip())
    provider = make(context(tmp_path, launcher="flux", flux=str(other.flux), uri="parent"))
    assert "3 brokers" in provider.check()[1].message
    other.run("cancel", child)


def test_a_second_job_of_one_name_holds_no_nodes_and_goes_with_the_first(
    other: PrivateInstance, provider: Provider, tmp_path: Path
) -> None:
    assert isinstance(provider, JobProvider)
    config = context(tmp_path, launcher="flux", flux=str(other.flux), uri=other.uri)
    sleeps = "sh", "-c", "exec sleep 600"
    ours = order(1, "burst-0")
    submit = (
        *("submit", "-n1", f"--job-name=fluxburst-c.{ours.request_id}", "--dependency=singleton"),
        '--setattr=user.fluxburst={"pool": "p", "hosts": ["burst-0"]}',
    )
    first, second = (other.run(*submit, *sleeps).strip() for _ in range(2))
    other.run("job", "wait-event", first, "start")
    assert phases(make(config)) == {"burst-0": "running"}
    provider.release([NodeId(f"{ours.request_id}.burst-0")])
    for job in (first, second):
        other.run("job", "wait-event", "--timeout=10", job, "clean")
    assert provider.list_nodes() == []


def test_other_clusters_jobs_are_left_alone(other: PrivateInstance, provider: Provider, tmp_path: Path) -> None:
    theirs = make(replace(context(tmp_path / "b", launcher="flux", flux=str(other.flux), uri=other.uri), cluster="c-b"))
    theirs.launch(order(1, "burst-0"))
    try:
        assert provider.list_nodes() == []
        provider.release([NodeId("b-000000000001.burst-0")])
        assert phases(theirs) != {}
    finally:
        theirs.release([node.node_id for node in theirs.list_nodes()])
        until(lambda: not theirs.list_nodes(), timeout_s=30)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"queue": "nope"}, "'nope' is not a valid queue"),
        ({"args": ["--nonsense"]}, "unrecognized arguments: --nonsense"),
        ({"args": ["--requires=host:nowhere"]}, "invalid hosts"),
    ],
)
def test_what_flux_refuses_is_an_invalid_order(
    other: PrivateInstance, tmp_path: Path, args: dict[str, object], message: str
) -> None:
    provider = make(context(tmp_path, launcher="flux", flux=str(other.flux), uri=other.uri, **args))
    with pytest.raises(InvalidOrder, match=message):
        provider.launch(order(1, "burst-0"))
    assert not list((tmp_path / "orders").iterdir())


def test_an_instance_out_of_reach_is_unavailable_and_a_finding(flux: str, tmp_path: Path) -> None:
    provider = make(context(tmp_path, launcher="flux", flux=flux, uri="local:///nowhere/local"))
    for call in (provider.list_nodes, lambda: provider.launch(order(1, "burst-0"))):
        with pytest.raises(ProviderUnavailable, match="/nowhere/local"):
            call()
    version, instance = provider.check()
    assert version.severity is Severity.OK
    assert instance.severity is Severity.ERROR


def test_check_tells_the_size_of_the_other_instance(provider: Provider) -> None:
    assert [finding.severity for finding in provider.check()] == [Severity.OK, Severity.OK]
    assert "3 brokers" in provider.check()[1].message


def test_the_parent_of_no_instance_is_unavailable(flux: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUX_URI", raising=False)
    provider = make(context(tmp_path, launcher="flux", flux=flux, uri="parent"))
    with pytest.raises(ProviderUnavailable, match="does not run in a Flux instance"):
        provider.list_nodes()
