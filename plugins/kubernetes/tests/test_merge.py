"""Patches of pod templates, in examples. tests/kube/test_merge_real.py compares them with a real server's."""

from __future__ import annotations

from typing import Any

import pytest

from fluxburst_kubernetes.merge import merge

BASE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "containers": [{"name": "follower", "image": "x", "env": [{"name": "A", "value": "1"}], "command": ["a", "b"]}],
        "volumes": [{"name": "given", "secret": {"secretName": "s"}}],
    },
}


@pytest.mark.parametrize(
    ("patch", "path", "expected"),
    [
        ({"metadata": {"labels": {"b": "2"}}}, ("metadata", "labels"), {"a": "1", "b": "2"}),
        ({"metadata": {"labels": {"a": None}}}, ("metadata", "labels"), {}),
        ({"spec": {"hostNetwork": True}}, ("spec", "hostNetwork"), True),
        ({"spec": {"volumes": [{"name": "data"}]}}, ("spec", "volumes", 1), {"name": "data"}),
        ({"spec": {"volumes": [{"name": "given", "$patch": "delete"}]}}, ("spec", "volumes"), []),
        (
            {"spec": {"containers": [{"name": "follower", "env": [{"name": "A", "value": "2"}]}]}},
            ("spec", "containers", 0, "env"),
            [{"name": "A", "value": "2"}],
        ),
        (
            {"spec": {"containers": [{"name": "follower", "command": ["c"]}]}},
            ("spec", "containers", 0, "command"),
            ["c"],
        ),
        ({"spec": {"tolerations": [{"key": "k"}]}}, ("spec", "tolerations"), [{"key": "k"}]),
    ],
)
def test_a_patch_changes_what_it_names_and_nothing_else(
    patch: dict[str, Any], path: tuple[Any, ...], expected: object
) -> None:
    merged: Any = merge(BASE, patch)
    assert merged["spec"]["containers"][0]["image"] == "x"
    for step in path:
        merged = merged[step]
    assert merged == expected


def test_neither_side_is_changed() -> None:
    before = repr(BASE)
    patch = {"spec": {"containers": [{"name": "follower", "env": [{"name": "B", "value": "2"}]}]}}
    told = repr(patch)
    merge(BASE, patch)
    assert (repr(BASE), repr(patch)) == (before, told)
