"""The Flux Operator's manifest, from where the administrator says, into a cluster."""

from __future__ import annotations

from pathlib import Path

from fluxburst.errors import ConfigError, ProviderError
from fluxburst_kubernetes.cluster import Cluster, NotFound, by_kubeconfig
from fluxburst_kubernetes.objects import Object
from fluxburst_kubernetes.options import KubernetesOptions

TIMEOUT_S = 60.0
"""For the manifest, and for each object of it."""


def install(manifest: str, kubeconfig: Path | None = None, context: str = "") -> list[str]:
    """Apply all objects of a manifest, in its order, on the server's side; again changes nothing.

    Args:
        manifest: A file's path, or an http or https address.
        kubeconfig: By default as kubectl finds it.
        context: The kubeconfig's; by default its current one.

    Returns:
        What is there now: ``Kind NAME`` or ``Kind NAMESPACE/NAME``.

    Raises:
        ConfigError: the manifest cannot be had, or is none.
        ProviderError: the API server refuses an object; those before it are there.
    """
    found = documents(manifest)
    where = "operator"
    way = KubernetesOptions(kubeconfig=kubeconfig, context=context)
    cluster = Cluster(where, by_kubeconfig(way, where), TIMEOUT_S)
    try:
        return [_apply(cluster, one) for one in found]
    finally:
        cluster.close()


def documents(manifest: str) -> list[Object]:
    """Raises :class:`~fluxburst.errors.ConfigError` where that is no file or address of Kubernetes objects."""
    import yaml

    try:
        found = [one for one in yaml.safe_load_all(_read(manifest)) if one is not None]
    except yaml.YAMLError as error:
        raise ConfigError(f"{manifest}: is no YAML: {' '.join(str(error).split())}") from None
    for number, one in enumerate(found, 1):
        keys = one.keys() if isinstance(one, dict) else set()
        if not ({"apiVersion", "kind"} <= keys and "name" in (one.get("metadata") or {})):
            raise ConfigError(f"{manifest}: document {number} is no Kubernetes object: apiVersion, kind, metadata.name")
    if not found:
        raise ConfigError(f"{manifest}: has no Kubernetes object")
    return found


def _read(manifest: str) -> str:
    import urllib3

    if not manifest.startswith(("http://", "https://")):
        try:
            return Path(manifest).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{manifest}: {error}") from None
    try:
        answer = urllib3.request("GET", manifest, timeout=TIMEOUT_S, retries=urllib3.Retry(3, raise_on_status=False))
    except urllib3.exceptions.HTTPError as error:
        raise ConfigError(f"{manifest}: {error}") from None
    if answer.status != 200:
        raise ConfigError(f"{manifest}: status {answer.status}")
    return answer.data.decode(errors="replace")


def _apply(cluster: Cluster, one: Object) -> str:
    kind, metadata = one["kind"], one["metadata"]
    called = f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else metadata["name"]
    try:
        cluster.apply(_path(cluster, one), one)
    except NotFound as error:
        raise ConfigError(f"{kind} {called}: {error}") from None
    except ProviderError as error:
        raise type(error)(f"{kind} {called}: {error}") from None
    return f"{kind} {called}"


def _path(cluster: Cluster, one: Object) -> str:
    """Where the server has objects of this kind, by its own discovery."""
    version, kind, metadata = one["apiVersion"], one["kind"], one["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    for resource in cluster.get(root)["resources"]:
        if resource["kind"] == kind and "/" not in resource["name"]:
            inside = f"/namespaces/{metadata.get('namespace', 'default')}" if resource["namespaced"] else ""
            return f"{root}{inside}/{resource['name']}/{metadata['name']}"
    raise ConfigError(f"the server knows no {kind} in {version}")
