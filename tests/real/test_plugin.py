"""A provider from outside: its own distribution, made and installed here, and known to nobody before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fluxburst.testing import PrivateSite
from tests.real import steps

pytestmark = pytest.mark.flux

SHED = '''
"""Machines in a shed behind the office: a provider with its nodes in memory."""

import os
import subprocess

from fluxburst.provider import Finding, NodeId, NodePhase, NodeReport, Offer, Severity, Shrink, hookimpl


class Shed:
    shrink = Shrink.ANY

    def __init__(self, context):
        self.context = context
        self.nodes = {}

    def check(self):
        return [Finding("door", Severity.OK, "open")]

    def offers(self, demand):
        return [Offer(pool.name, self.context.name, "bench", pool.cores) for pool in self.context.pools.values()]

    def launch(self, order):
        for host in order.hosts:
            home = self.context.state_dir / host
            home.mkdir()
            (home / "flux.toml").write_text(order.boot.config_toml)
            command = ["flux", "broker", f"--config-path={home}/flux.toml", f"-Shostname={host}",
                       "-Sbroker.boot-method=config", f"-Srundir={home}", f"-Sstatedir={home}",
                       f"-Slocal-uri=local://{home}/local"]
            env = {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}
            broker = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, start_new_session=True)
            self.nodes[NodeId(f"{order.request_id}.{host}")] = order, host, broker

    def list_nodes(self):
        self.nodes = {node_id: node for node_id, node in self.nodes.items() if node[2].poll() is None}
        return [
            NodeReport(node_id, order.pool, order.request_id, host, NodePhase.RUNNING)
            for node_id, (order, host, _) in self.nodes.items()
        ]

    def release(self, node_ids):
        for node_id in node_ids:
            if node_id in self.nodes:
                self.nodes[node_id][2].terminate()

    def close(self):
        pass


@hookimpl
def fluxburst_providers():
    return {"shed": Shed}
'''
BROKEN = "raise RuntimeError('no luck today')\n"

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "fluxburst-{name}"
version = "1.2.3"
[project.entry-points.fluxburst]
{name} = "fluxburst_{name}"
[tool.hatch.build.targets.wheel]
only-include = ["fluxburst_{name}.py"]
"""
BURST_TOML = """
[pool.burst]
provider = "shed"
hosts = "burst-[0-1]"
cores = 2
idle_timeout = "500ms"
"""


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    """Where both distributions are installed by pip, without an index."""
    for name, source in {"shed": SHED, "broken": BROKEN}.items():
        project = tmp_path / name
        project.mkdir()
        (project / "pyproject.toml").write_text(PYPROJECT.format(name=name))
        (project / f"fluxburst_{name}.py").write_text(source)
    target = tmp_path / "site-packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", target, tmp_path / "shed", tmp_path / "broken"], check=True, timeout=100)
    return target


def test_a_provider_from_outside_bursts_and_a_broken_one_is_reported_and_skipped(
    plain_directory: Path, site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site_packages))
    # this process does not know the plugin, so it could not clean up after it; the lead's end ends the followers
    with PrivateSite(plain_directory, BURST_TOML, scheduler="sched-simple", strays=False) as site:
        steps.serve(site)
        job = site.submit(steps.BURSTABLE, "-N2", "true")
        assert steps.await_event(site, job, "finish")["context"]["status"] == 0
        assert set(steps.hosts_of(site, job)) == {"burst-0", "burst-1"}

        answer = json.loads(steps.flux_burst(site, "providers", "--json").stdout)
        (shed,) = answer["providers"]
        assert (shed["provider"], shed["kind"], shed["distribution"]) == ("shed", "shed", "fluxburst-shed 1.2.3")
        table = " ".join(steps.flux_burst(site, "providers").stdout.split())
        assert "shed shed fluxburst-shed 1.2.3 burst" in table
        assert "skipped: broken (fluxburst-broken 1.2.3): RuntimeError: no luck today" in table

        steps.eventually(lambda: steps.nothing_left(site))
