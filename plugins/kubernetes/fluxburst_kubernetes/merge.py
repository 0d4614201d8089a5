"""Strategic merge patches of pod templates.

The lists that are merged by a key are those of the API's own schema (``x-kubernetes-patch-merge-key`` in its OpenAPI
document, v1.36); all others are replaced. A null deletes, and so does ``{"$patch": "delete"}`` in a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """``base`` with ``patch`` on it; neither is changed."""
    merged = dict(base)
    for key, value in patch.items():
        known = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(known, Mapping):
            merged[key] = merge(known, value)
        elif key in KEYS and isinstance(value, Sequence) and isinstance(known, Sequence):
            merged[key] = _merge_list(known, value, KEYS[key])
        else:
            merged[key] = value
    return merged


def _merge_list(base: Sequence[Any], patch: Sequence[Any], key: str) -> list[Any]:
    merged = {entry[key]: entry for entry in base}
    for entry in patch:
        if entry.get("$patch") == "delete":
            merged.pop(entry[key], None)
        else:
            merged[entry[key]] = merge(merged.get(entry[key], {}), entry)
    return list(merged.values())
