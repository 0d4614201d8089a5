from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.eks_server import ACCESS_KEY, SECRET_KEY, EksServer


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of the tests; none of this machine's own are looked for."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def aws() -> Iterator[EksServer]:
    """AWS with an EKS cluster whose API server nobody answers for."""
    with EksServer("hpc", "https://127.0.0.1:1", None) as server:
        yield server
