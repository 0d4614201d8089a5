"""The plugin of docs/plugin-authors.md: it installs, keeps the promises of a provider, and bursts a real Flux."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fluxburst.errors import ConfigError, InvalidOrder
from fluxburst.model import BootMaterial, Demand, Host, NodeReport, Offer, Order, RequestId
from fluxburst.provider import PoolSpec, Provider, ProviderContext, Refusal
from fluxburst.provider.discovery import Plugins
from fluxburst.testing import PrivateSite

pytestmark = pytest.mark.usefixtures("installed_plugin")

HOSTS = (Host("lab-0"), Host("lab-1"))


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for what happens in another process, of which no event comes here."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def make(state_dir: Path, command: str = "sleep 60", **options: object) -> Provider:
    pool = PoolSpec(name="lab", hosts=HOSTS, cores=2)
    context = ProviderContext("static", "c", {"command": command, **options}, {"lab": pool}, state_dir)
    return Plugins().factories["static"](context)


def order(number: int, *hosts: Host) -> Order:
    return Order(
        request_id=RequestId(f"b-{number:012}"),
        cluster="c",
        pool="lab",
        hosts=hosts,
        offer=Offer(pool="lab", provider="static", instance_type="static", cores=2),
        boot=BootMaterial(config_toml="# flux\n", curve_cert_path="/etc/flux/curve.cert"),
        created_at=0.0,
    )


def phases(provider: Provider) -> dict[str, str]:
    return {node.host: str(node.phase) for node in provider.list_nodes()}


def release_all(provider: Provider) -> None:
    def gone() -> bool:
        nodes = provider.list_nodes()
        provider.release([node.node_id for node in nodes])
        return not nodes

    until(gone)


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    release_all(make(tmp_path))


def test_it_is_found_by_its_entry_point() -> None:
    (report,) = [report for report in Plugins().reports if report.name == "static"]
    assert (report.distribution, report.error, report.kinds) == ("fluxburst-static 0.1.0", "", ("static",))


def test_the_same_request_id_starts_a_host_once(state_dir: Path) -> None:
    provider = make(state_dir, command="sh -c 'echo started; exec sleep 60'")
    for _ in range(3):
        provider.launch(order(1, *HOSTS))
    log = state_dir / "b-000000000001.lab-0" / "log"
    until(lambda: log.read_text() != "")
    assert phases(provider) == {"lab-0": "running", "lab-1": "running"}
    assert log.read_text() == "started\n"


def test_nodes_outlive_the_provider_and_are_listed_by_the_next(state_dir: Path) -> None:
    first = make(state_dir)
    first.launch(order(1, *HOSTS))
    until(lambda: len(phases(first)) == 2)
    first.close()
    second = make(state_dir)
    assert phases(second) == {"lab-0": "running", "lab-1": "running"}
    second.launch(order(1, *HOSTS))
    assert phases(second) == {"lab-0": "running", "lab-1": "running"}


def test_one_node_is_released_and_the_other_stays(state_dir: Path) -> None:
    provider = make(state_dir)
    provider.launch(order(1, *HOSTS))
    until(lambda: len(phases(provider)) == 2)
    first = next(node.node_id for node in provider.list_nodes() if node.host == HOSTS[0])

    def left() -> bool:
        provider.release([first])
        return phases(provider) == {"lab-1": "running"}

    until(left)
    provider.release([first])


def test_a_command_that_ends_is_listed_as_failed_with_its_last_words_until_released(state_dir: Path) -> None:
    provider = make(state_dir, command="sh -c 'echo no such config >&2; exit 1'")
    provider.launch(order(1, HOSTS[0]))

    def failed() -> list[NodeReport]:
        return [node for node in provider.list_nodes() if node.phase == "failed"]

    until(lambda: bool(failed()))
    (node,) = failed()
    assert node.detail == "no such config"
    provider.release([node.node_id])
    assert provider.list_nodes() == []


def test_a_command_that_is_not_there_is_an_invalid_order_and_nothing_is_listed(state_dir: Path) -> None:
    provider = make(state_dir, command="/no/such/command")
    with pytest.raises(InvalidOrder, match=r"\[provider.static\] command"):
        provider.launch(order(1, HOSTS[0]))
    assert provider.list_nodes() == []
    assert [str(finding.severity) for finding in provider.check()] == ["error"]


def test_a_job_that_is_too_long_is_refused_and_others_get_an_offer(state_dir: Path) -> None:
    provider = make(state_dir, longest_job_s=60)
    (no,) = provider.offers(Demand(1, 1, 1, duration_s=61))
    (yes,) = provider.offers(Demand(1, 1, 1, duration_s=60))
    assert isinstance(no, Refusal)
    assert isinstance(yes, Offer)


def test_an_unknown_key_is_refused_with_its_place(state_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"^\[provider.static\] comand: unknown key"):
        make(state_dir, comand="x")


@pytest.mark.flux
def test_a_job_runs_on_its_nodes() -> None:
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    pool = '[pool.lab]\nprovider = "static"\nhosts = "lab-[0-1]"\ncores = 2\nidle_timeout = "1s"\n'
    try:
        with PrivateSite(directory / "s", pool) as site:
            site.start_service()
            until(site.ready)
            job = site.submit("--setattr=burstable=true", "-N2", "-c2", "hostname")
            site.instance.run("job", "wait-event", "--timeout=60", str(int(job)), "clean")
            assert (
                site.instance.run("jobs", "-no", "{nodelist} {status}", str(int(job))).strip() == "lab-[0-1] COMPLETED"
            )
            until(lambda: site.call("nodes")["nodes"] == [], timeout_s=40)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
