"""The checks on a real Flux."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fluxburst.errors import InstanceError
from fluxburst.flux.check import check, from_files, snapshot
from fluxburst.flux.private import Scheduler
from fluxburst.model import Severity

from .conftest import Lead, LeadFactory

pytestmark = pytest.mark.flux


def unfit(running: Lead) -> dict[str, str]:
    """Subject to message of all findings that are not OK."""
    findings = list(check(running.burst_config, snapshot(running.handle())))
    assert all(finding.fix for finding in findings if finding.severity is not Severity.OK)
    return {finding.subject: finding.message for finding in findings if finding.severity is not Severity.OK}


@pytest.mark.parametrize("scheduler", ["sched-simple", "fluxion-fcfs", "fluxion-easy"])
def test_a_rendered_lead_is_fit_in_queue_mode_under_every_scheduler(lead: LeadFactory, scheduler: Scheduler) -> None:
    with lead(scheduler, ingest={"validator": {"plugins": ["jobspec", "feasibility"]}}) as running:
        running.start_queues()
        assert unfit(running) == {}
        seen = snapshot(running.handle())
        assert seen.live is not None
        assert seen.live.method == "configuration"
        assert seen.nodes["gpu-1"].gpus == {0, 1}
        assert seen.nodes["gpu-1"].properties == {"gpu", "a100"}


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("sched-simple", "sched-simple: a job that waits for nodes blocks"),
        ("fluxion-fcfs", "Fluxion's policy 'fcfs' (queue default) fails jobs"),
        ("fluxion-easy", None),
    ],
)
def test_open_mode_wants_fluxion_with_a_policy_that_waits(
    lead: LeadFactory, scheduler: Scheduler, message: str | None
) -> None:
    with lead(scheduler, "open") as running:
        found = unfit(running)
        assert found.keys() == ({"scheduler"} if message else set())
        assert found.get("scheduler", "").startswith(message or "")


def test_queue_states_are_seen(lead: LeadFactory) -> None:
    with lead("sched-simple") as running:
        running.run("queue", "start", "staging")
        running.run("queue", "disable", "gpu")
        running.run("queue", "start", "gpu")
        found = unfit(running)
        assert found["queue staging"].startswith("is started")
        assert found["queue c2"].startswith("is stopped")
        assert found["queue gpu"].startswith("is disabled")
        assert found["queue batch"] == "is stopped: its jobs do not start"


@pytest.mark.parametrize(
    "tweak",
    [
        lambda table: table["resource"]["config"][0].update(hosts="leed"),
        lambda table: table["resource"]["config"].append({"hosts": "late", "cores": "0"}),
        lambda table: table["policy"]["jobspec"]["defaults"]["system"].update(queue="nope"),
    ],
)
def test_what_is_said_to_keep_flux_from_starting_does_so(
    lead: LeadFactory, tweak: Callable[[dict[str, Any]], object]
) -> None:
    instance = lead("sched-simple", tweak=tweak)
    found = {
        finding.subject: finding.message for finding in check(instance.burst_config, from_files(instance.rendered.lead))
    }
    assert "so that Flux would not start" in found["configuration"]
    with pytest.raises(InstanceError, match="did not start"):
        instance.start()


@pytest.mark.parametrize(
    ("resource", "fit"),
    [({}, False), ({"verify": {"default": "allow-extra", "gpu": "ignore", "hostname": "ignore"}}, True)],
)
def test_flux_drains_nodes_for_their_host_names_where_that_is_said(
    lead: LeadFactory, resource: dict[str, Any], fit: bool
) -> None:
    def change(table: dict[str, Any]) -> None:
        table["resource"] = {"config": table["resource"]["config"]} | resource

    with lead("sched-simple", tweak=change) as running:
        assert ("host names" not in unfit(running)) is fit
        drained = "got hostname" in running.run("resource", "drain", "-no", "{reason}")
        assert drained is not fit


def test_discovered_resources_are_seen(lead: LeadFactory) -> None:
    with lead("sched-simple", "open", tweak=lambda table: table.pop("resource")) as running:
        found = unfit(running)
        assert found["resources"].startswith("R does not come from the configuration but from discovery")
        assert found["pool c2"] == "R lacks c2-0"
        assert running._lead is not None
        running._lead.kill()  # an instance that waits for its R does not end in good order


def test_hosts_that_were_added_without_a_restart_are_seen(lead: LeadFactory) -> None:
    with lead("fluxion-easy", "open") as running:
        running.rendered.lead["bootstrap"]["hosts"].append({"host": "late"})
        running.config_path.write_text(running.rendered.lead_toml())
        running.run("config", "reload")
        assert unfit(running) == {
            "configuration": "[bootstrap] hosts: late is not in [resource] config, so that Flux would not start",
            "hosts": "the instance runs with 7 hosts, its configuration has 8",
        }


@pytest.mark.parametrize("exclude", ["c2-1", "2"])
def test_resource_exclude_is_seen_by_host_and_by_rank(lead: LeadFactory, exclude: str) -> None:
    with lead("fluxion-easy", "open", tweak=lambda table: table["resource"].update(exclude=exclude)) as running:
        assert unfit(running) == {"pool c2": "c2-1 is in [resource] exclude: no job would ever run there"}
