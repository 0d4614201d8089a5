"""Each distribution pulls in what it needs and no other cloud's libraries, and importing one imports no SDK at all."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
CLOUDS = {
    "kubernetes": ("kubernetes",),
    "gke": ("google-", "requests"),  # what google-auth speaks HTTP by
    "eks": ("boto",),
    "terraform": ("python-terraform",),
    "compute_engine": ("google-", "requests"),
}
"""What the names of each plugin's own libraries begin with."""
SDKS = ("kubernetes", "google", "boto3", "botocore", "grpc", "python_terraform", "urllib3")


def dependencies(directory: Path) -> set[str]:
    table = tomllib.loads((directory / "pyproject.toml").read_text())
    return {re.split(r"[^a-z0-9-]", name)[0] for name in table["project"]["dependencies"]}


def test_the_core_needs_no_cloud() -> None:
    assert not [name for name in dependencies(ROOT) if name.startswith(sum(CLOUDS.values(), ()))]


@pytest.mark.parametrize("directory", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_needs_its_own_cloud_alone(directory: Path) -> None:
    ours = {"fluxburst", "pydantic", "fluxburst-kubernetes", "kubernetes"} - (
        {"fluxburst-kubernetes", "kubernetes"} if directory.name == "local" else set()
    )
    others = {name for name in dependencies(directory) - ours if not name.startswith(CLOUDS.get(directory.name, ()))}
    assert others == set()


@pytest.mark.parametrize("package", ["fluxburst", *(f"fluxburst_{path.name}" for path in PLUGINS)])
def test_importing_it_imports_no_sdk(package: str) -> None:
    program = f"import sys, {package}; print(*({{name.partition('.')[0] for name in sys.modules}} & {{*{SDKS!r}}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
