"""``flux burst check --probe``: a pod as a pool's followers are, which dials the lead."""

from __future__ import annotations

import re
import secrets
import time

from fluxburst.errors import ProviderError
from fluxburst.model import Finding, NodePhase, Order, PoolSpec, Severity
from fluxburst_kubernetes import objects
from fluxburst_kubernetes.cluster import Cluster
from fluxburst_kubernetes.objects import Object
from fluxburst_kubernetes.options import PodOptions

TIMEOUT_S = 120.0
"""For a place, the image and the call."""
_DIAL = """\
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as lead:
    lead.settimeout(10)
    greeting = lead.recv(10, socket.MSG_WAITALL)
if len(greeting) < 10 or (greeting[0], greeting[9]) != (0xFF, 0x7F):
    sys.exit("it is open, but no ZeroMQ peer answers there")
"""
"""A ZeroMQ peer speaks first: ten bytes, 0xFF to 0x7F (ZMTP 3.1, greeting)."""


def probe(cluster: Cluster, namespace: str, order: Order, pool: PoolSpec, options: PodOptions, connect: str) -> Finding:
    """Run a pod like those of ``order`` that dials ``connect``, as followers do; it is deleted in any case.

    Nobody takes it for a follower: it has none of their labels.
    """
    subject = f"pool {pool.name}: probe"
    match = re.fullmatch(r"tcp://\[?(.+?)\]?:(\d+)", connect)
    if match is None:
        return Finding(subject, Severity.WARNING, f"{connect} is no TCP address", "nothing is tried")
    name = f"fluxburst-probe-{secrets.token_hex(4)}"
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    began = time.monotonic()
    try:
        cluster.create(jobs, _job(name, order, pool, options, [match[1], match[2]]))
        try:
            pod = _last(cluster, f"/api/v1/namespaces/{namespace}/pods", name)
        finally:
            cluster.delete(f"{jobs}/{name}", propagationPolicy="Background")
    except ProviderError as error:
        return Finding(subject, Severity.ERROR, str(error), "mend what it says, then probe again")
    if pod.get("status", {}).get("phase") == "Succeeded":
        took = f"{time.monotonic() - began:.1f} s after it was asked for"
        return Finding(
            subject, Severity.OK, f"a pod on {pod['spec']['nodeName']} reached the lead at {connect}, {took}"
        )
    phase, detail = objects.phase_of(pod, 0.0, time.time()) if pod else (NodePhase.STARTING, "no pod was made")
    if detail.startswith("Unschedulable"):
        fix = "have a machine of the pool there, then probe again"
        return Finding(subject, Severity.WARNING, f"there is no machine to try it on: {detail}", fix)
    fix = f"let the pods reach {connect}: routes, network policies, and the lead's firewall"
    return Finding(subject, Severity.ERROR, detail or f"it is {phase} after {TIMEOUT_S:g} s", fix)


def _job(name: str, order: Order, pool: PoolSpec, options: PodOptions, address: list[str]) -> Object:
    template = objects.probe_template(order, pool, options, [options.flux, "python", "-c", _DIAL, *address])
    spec = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": round(TIMEOUT_S) + 60,  # should we be killed before we delete it
        "ttlSecondsAfterFinished": 60,
        "template": template,
    }
    labels = {"app.kubernetes.io/name": "flux-probe", "app.kubernetes.io/managed-by": objects.MANAGER}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": labels}, "spec": spec}


def _last(cluster: Cluster, path: str, job: str) -> Object:
    """The job's pod as it is when it has ended, or after :data:`TIMEOUT_S`; empty where there is none."""
    these = {"labelSelector": f"batch.kubernetes.io/job-name={job}"}
    listed = cluster.get(path, **these)
    pod: Object = next(iter(listed["items"]), {})
    if _has_ended(pod):
        return pod
    version, seconds = listed["metadata"]["resourceVersion"], str(round(TIMEOUT_S))
    watch = cluster.watch(path, resourceVersion=version, timeoutSeconds=seconds, **these)
    try:
        for kind, found in watch:
            if kind in ("ADDED", "MODIFIED"):
                pod = found
                if _has_ended(pod):
                    break
    finally:
        watch.close()
    return pod


def _has_ended(pod: Object) -> bool:
    """It has ended, or what it waits for will not come."""
    if not pod:
        return False
    phase, _ = objects.phase_of(pod, TIMEOUT_S, time.time())
    return pod.get("status", {}).get("phase") == "Succeeded" or phase is NodePhase.FAILED
