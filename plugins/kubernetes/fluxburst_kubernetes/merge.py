"""Strategic merge patches of pod templates.

The lists that are merged by a key are those of the API's own schema (``x-kubernetes-patch-merge-key`` in its OpenAPI
document, v1.36); all others are replaced. A None deletes, and in a list ``{"$patch": "delete"}``, which
TOML can say, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}


def merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``patch`` on it; neither is changed. What :func:`faults` finds nothing in can be merged."""
    merged = dict(base)
    for key, value in patch.items():
        known = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(known, Mapping):
            merged[key] = merge(known, value)
        elif key in KEYS and isinstance(value, list | tuple) and isinstance(known, list | tuple):
            merged[key] = _merge_list(known, value, KEYS[key])
        else:
            merged[key] = value
    return merged


def faults(patch: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Entries of a patch's merged lists that lack the key that says which entry is meant, one line for each."""
    for name, value in patch.items():
        path = f"{where}{name}"
        if isinstance(value, Mapping):
            yield from faults(value, f"{path}.")
        elif name in KEYS and isinstance(value, list | tuple):
            for index, entry in enumerate(value):
                if not isinstance(entry, Mapping) or KEYS[name] not in entry:
                    yield f"{path}[{index}] has no {KEYS[name]}, which says what it is merged with"
                else:
                    yield from faults(entry, f"{path}[{index}].")


def _merge_list(base: Sequence[Any], patch: Sequence[Any], key: str) -> list[Any]:
    merged = {entry[key]: entry for entry in base}
    for entry in patch:
        if entry.get("$patch") == "delete":
            merged.pop(entry[key], None)
        else:
            merged[entry[key]] = merge(merged.get(entry[key], {}), entry)
    return list(merged.values())
