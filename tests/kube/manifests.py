"""Objects as the tests of the bed make them."""

from __future__ import annotations

from typing import Any

IMAGE = "this-machine"


def container(*command: str, name: str = "main", **more: Any) -> dict[str, Any]:
    return {"name": name, "image": IMAGE, "command": list(command), **more}


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A pod that is never restarted, and has two seconds to end."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "containers": list(containers),
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            **spec,
        },
    }


def indexed_job(name: str, size: int, template: dict[str, Any]) -> dict[str, Any]:
    """A Job of pods with an index; the template is that of ``pod``."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": size,
            "parallelism": size,
            "backoffLimit": 0,
            "template": {"metadata": {"labels": {"app": name}}, "spec": template["spec"]},
        },
    }
