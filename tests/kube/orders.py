"""Orders without a Flux: the follower is a script that stays until it is told to go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxburst.model import BootMaterial, Host, Offer, Order, PoolSpec, RequestId, Secret
from fluxburst.provider import ProviderContext
from fluxburst_kubernetes.provider import KubernetesProvider, build

CERTIFICATE = b'[curve]\npublic-key = "not a key"\nsecret-key = "8XvH0-this-must-not-be-seen-Qe72"\n'
CONFIG_TOML = '[bootstrap]\ncurve_cert = "/etc/flux/curve.cert"\n'
FOLLOWER = """\
#!/bin/sh
# stands for `flux broker`: stays until SIGTERM, and then leaves in good order
trap 'exit 0' TERM
echo "follower $*"
sleep inf &
wait
"""
POOL, CLUSTER, PROVIDER = "c2", "corona", "kubernetes"


def follower(directory: Path, text: str = FOLLOWER) -> str:
    """The path of an executable with this text."""
    path = directory / "follower"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def hosts(count: int) -> tuple[Host, ...]:
    return tuple(Host(f"c2-{index}") for index in range(count))


def provider(
    kubeconfig: Path,
    namespace: str,
    state_dir: Path,
    *,
    pool_hosts: int = 4,
    declared: Sequence[Host] = (),
    request_timeout: float = 15.0,
    workload: str = "job",
    **options: Any,
) -> KubernetesProvider:
    """With one pool of two cores a node."""
    spec = PoolSpec(
        POOL, tuple(declared) or hosts(pool_hosts), 2, options={"image": "follower", "grace": 2.0, **options}
    )
    table: Mapping[str, Any] = {
        "kubeconfig": str(kubeconfig),
        "namespace": namespace,
        "request_timeout": request_timeout,
        "workload": workload,
    }
    return build(ProviderContext(PROVIDER, CLUSTER, table, {POOL: spec}, state_dir))


def order(wanted: Sequence[Host], request_id: str = "b-aaaabbbbcccc", certificate: bytes = CERTIFICATE) -> Order:
    boot = BootMaterial(CONFIG_TOML, "/etc/flux/curve.cert", Secret(certificate))
    offer = Offer(POOL, PROVIDER, "pod", 2)
    return Order(RequestId(request_id), CLUSTER, POOL, tuple(wanted), offer, boot, created_at=1_800_000_000.0)
