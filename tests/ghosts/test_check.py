"""Each finding, without Flux: a fit lead with one thing broken."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fluxburst.config import BurstConfig
from fluxburst.flux.check import CHECKS, Live, Queue, Snapshot, check, from_files
from fluxburst.flux.render import PLUGIN, render
from fluxburst.model import Finding, Severity

from .conftest import burst, site


def lead(mode: str = "queue", **tables: Any) -> Snapshot:
    """A fit lead under Fluxion, as its configuration and its brokers would tell."""
    config = burst(mode)
    own = site(ingest={"validator": {"plugins": ["jobspec", "feasibility"]}}, **tables)
    seen = from_files(render(config, own, frobnicator=PLUGIN).lead)
    queues = {name: Queue(enabled=True, started=name != "staging") for name in seen.config.get("queues", {})}
    live = Live(
        attributes={"version": "0.88.0", "broker.quorum": "1", "security.owner": "1000", "tbon.topo": "custom"},
        hosts=seen.hosts,
        services={"sched": "sched-fluxion-qmanager"},
        queues=queues,
        policies={"default": "easy"},
        method="configuration",
        uid=1000,
    )
    return replace(seen, live=live)


def findings(seen: Snapshot, mode: str = "queue", extra: str = "") -> list[Finding]:
    return [finding for one in CHECKS for finding in one(burst(mode, extra=extra), seen)]


def unfit(seen: Snapshot, mode: str = "queue") -> list[Finding]:
    return [finding for finding in findings(seen, mode) if finding.severity is not Severity.OK]


def with_config(seen: Snapshot, change: Callable[[dict[str, Any]], object]) -> Snapshot:
    """The lead after a change of its configuration and a restart."""
    table = copy.deepcopy(dict(seen.config))
    change(table)
    again = from_files(table)
    return replace(again, live=seen.live and replace(seen.live, hosts=again.hosts))


def with_live(seen: Snapshot, **changes: Any) -> Snapshot:
    assert seen.live is not None
    return replace(seen, live=replace(seen.live, **changes))


def with_attribute(seen: Snapshot, name: str, value: str) -> Snapshot:
    assert seen.live is not None
    return with_live(seen, attributes={**seen.live.attributes, name: value})


@pytest.mark.parametrize("mode", ["queue", "open"])
def test_a_fit_lead_has_no_finding_but_ok_and_every_line_is_one(mode: str) -> None:
    found = findings(lead(mode), mode)
    assert {finding.severity for finding in found} == {Severity.OK}
    assert len(found) >= 10
    assert not [finding for finding in found if "\n" in finding.message or finding.fix]


def drop(path: str) -> Callable[[dict[str, Any]], object]:
    def change(table: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            table = table[parent]
        del table[last]

    return change


def put(path: str, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(table: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value

    return change


def resource(index: int, **change: Any) -> Callable[[dict[str, Any]], object]:
    return lambda table: table["resource"]["config"][index].update(change)


def plugins(*names: str) -> Callable[[dict[str, Any]], object]:
    return put("ingest/frobnicator/plugins", list(names))


def misname_home(table: dict[str, Any]) -> None:
    for entry in table["resource"]["config"]:
        if entry["hosts"] == "lead0":
            entry["hosts"] = "leed"


CONFIG = [
    (lambda table: table["bootstrap"]["hosts"].pop(1), "hosts", r"\[bootstrap\] hosts lacks c2-\[0-3\] of \[pool.c2\]"),
    (lambda table: table["bootstrap"]["hosts"][1].update(parent="gpu-0"), "hosts", "parent = 'gpu-0'"),
    (drop("resource/config"), "resources", "R does not come from the configuration"),
    (lambda table: table["resource"]["config"].pop(2), "pool c2", "R lacks c2-0"),
    (resource(2, cores="0-7"), "pool c2", r"c2-0 has 8 cores and 0 GPUs in R, 2 and 0 in \[pool.c2\]"),
    (resource(3, gpus="0"), "pool gpu", "gpu-0 has 4 cores and 1 GPUs in R, 4 and 2"),
    (resource(3, properties=["gpu"]), "pool gpu", "gpu-0 lacks the property a100"),
    (put("resource/exclude", "c2-2"), "pool c2", "c2-2 is in .* exclude"),
    (drop("queues/c2"), "queue c2", "is missing"),
    (drop("queues/staging"), "queue staging", "is missing"),
    (put("queues/c2/requires", ["gpu"]), "queue c2", r"requires \['gpu'\], not \['c2'\]"),
    (put("queues/staging/requires", ["home"]), "queue staging", r"requires \['home'\], not \[\]"),
    (drop("queues/batch/requires"), "queues", r"\[queues.batch\] requires = \[\] admits the nodes of \[pool.c2\]"),
    (resource(0, properties=["c2"]), "queues", r"lead0 in \[resource\] config has \['c2'\]"),
    (drop("queues/batch"), "queues", "no queue admits the site's own nodes, lead0: ordinary jobs run nowhere"),
    (misname_home, "configuration", r"\[bootstrap\] hosts: lead0 is not in \[resource\] config"),
    (misname_home, "configuration", r"\[resource\] config: leed is not in \[bootstrap\] hosts"),
    (
        put("policy/jobspec/defaults/system/queue", "nope"),
        "configuration",
        r"system\] queue: 'nope' is not in \[queues\]",
    ),
    (drop("resource/noverify"), "host names", "drains each node whose real host name differs"),
    (drop("burst"), "frobnicator", r"the table \[burst\] is missing"),
    (put("burst/capacity", []), "frobnicator", r"\[burst\] differs"),
    (put("ingest/frobnicator/disable", True), "frobnicator", "disable is set"),
    (plugins("defaults", "constraints"), "frobnicator", "plugins lacks .*frobnicator.py"),
    (plugins("defaults", "constraints", str(PLUGIN)), "frobnicator", "does not come after"),
    (plugins("defaults", "constraints"), "feasibility validator", "larger than their queue's nodes are refused"),
    (drop("modules/job-ingest"), "ingest", "burst nodes have an ingest of their own"),
    (put("modules/job-ingest/ranks", "0-3"), "ingest", "burst nodes have an ingest of their own"),
]


@pytest.mark.parametrize(("change", "subject", "message"), CONFIG)
def test_what_is_wrong_in_the_configuration_is_found_with_its_fix(
    change: Callable[[dict[str, Any]], object], subject: str, message: str
) -> None:
    found = [finding for finding in unfit(with_config(lead(), change)) if finding.subject == subject]
    assert all(finding.fix for finding in found)
    assert_match(found, message)


def assert_match(found: list[Finding], message: str) -> None:
    assert [finding for finding in found if re.search(message, finding.message)], found


LIVE: list[tuple[Callable[[Snapshot], Snapshot], str, str]] = [
    (lambda seen: with_attribute(seen, "version", "0.81.2"), "version", "0.81.2 is too old"),
    (lambda seen: with_attribute(seen, "version", "0.89.0-3-gabc"), "version", "newer than any"),
    (lambda seen: with_live(seen, uid=1001), "owner", "user id 1001 does not own the instance, user id 1000 does"),
    (lambda seen: with_attribute(seen, "broker.quorum", "7"), "quorum", "broker.quorum is 7"),
    (lambda seen: with_attribute(seen, "tbon.topo", "kary:2"), "hosts", "the topology is kary:2"),
    (lambda seen: with_live(seen, hosts=("lead0",)), "hosts", "runs with 1 hosts, its configuration has 7"),
    (lambda seen: with_live(seen, method="job-info"), "resources", "but from job-info"),
    (lambda seen: with_live(seen, services={}), "scheduler", "no scheduler"),
    (lambda seen: with_live(seen, queues={"staging": Queue(True, True)}), "queue staging", "is started"),
    (lambda seen: with_live(seen, queues={"c2": Queue(True, False)}), "queue c2", "is stopped"),
    (lambda seen: with_live(seen, queues={"c2": Queue(False, True)}), "queue c2", "is disabled"),
    (lambda seen: with_live(seen, queues={"batch": Queue(True, False)}), "queue batch", "is stopped: its jobs"),
    (lambda seen: replace(seen, live=None), "instance", "only files were read"),
]


@pytest.mark.parametrize(("change", "subject", "message"), LIVE)
def test_what_is_wrong_in_the_running_instance_is_found_with_its_fix(
    change: Callable[[Snapshot], Snapshot], subject: str, message: str
) -> None:
    (found,) = unfit(change(lead()))
    assert found.subject == subject
    assert found.fix
    assert_match([found], message)


@pytest.mark.parametrize(
    ("services", "policies", "message"),
    [
        ("sched-simple", {}, "sched-simple: a job that waits"),
        ("sched-backfill", {}, "sched-backfill: a job that waits"),
        ("sched-fluxion-qmanager", {"default": "fcfs"}, r"'fcfs' \(queue default\)"),
        ("sched-fluxion-qmanager", {"a": "easy", "b": "fcfs"}, r"'fcfs' \(queue b\)"),
    ],
)
def test_open_mode_wants_a_scheduler_that_lets_others_pass(
    services: str, policies: dict[str, str], message: str
) -> None:
    seen = with_live(lead("open"), services={"sched": services}, policies=policies)
    assert_match(unfit(seen, "open"), message)
    assert not unfit(with_live(lead(), services={"sched": services}, policies=policies)), "queue mode fits all"


@pytest.mark.parametrize("policy", ["easy", "hybrid", "conservative"])
def test_open_mode_is_fit_under_fluxion_s_waiting_policies(policy: str) -> None:
    assert not unfit(with_live(lead("open"), policies={"default": policy}), "open")


def test_open_mode_on_named_queues_is_told_of_queue_mode() -> None:
    (found,) = unfit(lead("open", queues={"batch": {}}), "open")
    assert (found.subject, found.severity) == ("queues", Severity.WARNING)
    assert 'mode = "queue"' in found.fix


@pytest.mark.parametrize(
    ("resource", "fit"),
    [
        ({"noverify": True, "verify": True}, True),
        ({"verify": False}, True),
        ({"verify": {"hostname": "ignore"}}, True),
        ({"verify": {"default": "ignore"}}, True),
        ({"noverify": False}, False),
        ({"verify": True}, False),
        ({"verify": {}}, False),
        ({"verify": {"default": "ignore", "hostname": "strict"}}, False),
    ],
)
def test_host_names_are_told_of_where_flux_verifies_them(resource: dict[str, Any], fit: bool) -> None:
    def change(table: dict[str, Any]) -> None:
        table["resource"] = {"config": table["resource"]["config"]} | resource

    found = unfit(with_config(lead(), change))
    assert [finding.subject for finding in found] == ([] if fit else ["host names"])
    for finding in found:
        assert finding.severity is Severity.WARNING
        for part in ('default = "allow-extra"', 'gpu = "ignore"', 'hostname = "ignore"'):
            assert part in finding.fix


def test_a_limit_above_the_pool_s_hosts_is_told_of() -> None:
    limited = burst().model_copy(update={"pool": {"c2": burst().pool["c2"].model_copy(update={"max_nodes": 9})}})
    found = [finding for one in CHECKS for finding in one(limited, lead()) if finding.subject == "pool c2"]
    assert [finding.severity for finding in found] == [Severity.WARNING]
    assert "max_nodes = 9 in burst.toml limits nothing: the pool declares 4 hosts" in found[0].message


def test_selected_queues_and_users_that_are_not_there_are_told_of() -> None:
    config = burst(extra='[select]\nqueues = ["batch", "nosuchq"]\nusers = ["root", "nosuchuser", 4242]\n')
    found = [finding for finding in check(config, lead()) if finding.subject == "select"]
    assert [finding.severity for finding in found] == [Severity.WARNING] * 2
    assert_match(found, r"\[select\] queues in burst.toml names nosuchq, which")
    assert_match(found, r"\[select\] users in burst.toml names nosuchuser, which")
    assert not [finding for finding in check(burst(), lead()) if finding.subject == "select"]


def probed(seen: Snapshot, config: BurstConfig, subject: str) -> Finding:
    (found,) = (finding for finding in check(config, seen) if finding.subject == subject)
    return found


def certified(path: Path) -> Snapshot:
    seen = with_attribute(lead(), "security.owner", str(os.geteuid()))
    return with_config(seen, put("bootstrap/curve_cert", str(path)))


def test_the_certificate_must_be_there_and_be_the_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "curve.cert"
    assert "flux keygen" in probed(certified(path), burst(), "certificate").fix
    path.touch(mode=0o600)
    assert probed(certified(path), burst(), "certificate").severity is Severity.OK
    stranger = with_attribute(certified(path), "security.owner", "4242")
    assert probed(stranger, burst(), "certificate").fix == f"chown 4242 {path}"
    path.chmod(0o640)
    assert probed(certified(path), burst(), "certificate").fix == f"chmod 600 {path}"
    none = with_config(lead(), drop("bootstrap/curve_cert"))
    assert "curve_cert is missing" in probed(none, burst(), "certificate").message


def test_the_plugin_s_file_must_be_there(tmp_path: Path) -> None:
    assert probed(lead(), burst(), "frobnicator file").severity is Severity.OK
    gone = with_config(lead(), put("burst/frobnicator", str(tmp_path / "gone.py")))
    assert "every submission would fail" in probed(gone, burst(), "frobnicator file").message


@contextlib.contextmanager
def listener(greeting: bytes) -> Iterator[int]:
    """A loopback port that sends this to its one caller and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            caller, _ = server.accept()
            caller.sendall(greeting)
            caller.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_the_lead_s_address_must_answer_as_a_zeromq_peer() -> None:
    with listener(b"\xff" + bytes(7) + b"\x01\x7f") as port:
        assert probed(lead(), burst(port=port), "reach").severity is Severity.OK
    for other in (b"SSH-2.0-OpenSSH_9.2", b"\xff", b""):
        with listener(other) as port:
            assert "no ZeroMQ peer" in probed(lead(), burst(port=port), "reach").message
    found = probed(lead(), burst(port=port), "reach")
    assert "Connection refused" in found.message
    assert found.fix
