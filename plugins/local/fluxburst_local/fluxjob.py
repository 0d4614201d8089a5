"""Jobs of another Flux instance: the parent of this one, or any other that a URI reaches."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from fluxburst.errors import AuthDenied, InvalidOrder, NoCapacity, ProviderError, ProviderUnavailable, QuotaExceeded
from fluxburst.model import Finding, NodePhase, Order, Severity
from fluxburst_local.commands import CommandFailed, environment, find, run
from fluxburst_local.jobs import BOOT, Job, Tags
from fluxburst_local.options import FluxOptions, FluxSubmission

ERRORS: tuple[tuple[re.Pattern[str], type[ProviderError]], ...] = (
    (re.compile(r"Unable to connect|lost connection|Connection (refused|reset)|timed out"), ProviderUnavailable),
    (re.compile(r"disabled"), NoCapacity),
    (re.compile(r"unsatisfiable|exceeds policy limit|valid queue|invalid|unrecognized|not found"), InvalidOrder),
    (re.compile(r"(?i)permission|not permitted|access denied"), AuthDenied),
    (re.compile(r"(?i)max|limit"), QuotaExceeded),
)
"""What flux-submit(1), the validators (flux-config-ingest(5)) and the connectors say, in the order of precedence."""

STATES = {"RUN": NodePhase.RUNNING, "CLEANUP": NodePhase.STOPPING}
"""Job states (RFC 21) in which an order holds its nodes; in all others it waits for them."""


class FluxJobs:
    kind: ClassVar[str] = "flux"
    index_variable: ClassVar[str] = "FLUX_TASK_RANK"

    def __init__(self, options: FluxOptions, pools: Mapping[str, FluxSubmission]) -> None:
        self._options = options
        self._pools = pools

    def submit(self, name: str, order: Order, tags: Tags, directory: Path) -> None:
        pool = self._pools[order.pool]
        nodes = len(order.hosts)
        self._flux(
            "submit",
            f"--job-name={name}",
            "--dependency=singleton",
            f"--nodes={nodes}",
            f"--ntasks={nodes}",
            f"--cores-per-task={order.offer.cores}",
            *([f"--gpus-per-task={order.offer.gpus}"] if order.offer.gpus else []),
            "--exclusive",
            # One follower that leaves must not end the others (the shell's default is 30 s later).
            "-oexit-timeout=none",
            "-opmi=off",
            f"--output={directory / 'job.log'}",
            f"--setattr=user.fluxburst={tags.dumps()}",
            *([f"--queue={pool.queue}"] if pool.queue else []),
            *([f"--bank={pool.bank}"] if pool.bank else []),
            *([f"--time-limit={pool.time_limit}"] if pool.time_limit else []),
            *pool.args,
            "/bin/sh",
            str(directory / BOOT),
        )

    def jobs(self, prefix: str, names: Collection[str]) -> Sequence[Job]:
        jobs = [job for job in self._jobs() if job.name.startswith(prefix)]
        for name in set(names) - {job.name for job in jobs}:
            jobs += self._jobs("-a", f"--name={name}")
        return jobs

    def tags(self, job_id: int) -> Tags:
        jobspec = json.loads(self._flux("job", "info", str(job_id), "jobspec"))
        return Tags.loads(json.dumps(jobspec["attributes"]["user"]["fluxburst"]))

    def cancel(self, job_ids: Collection[int]) -> None:
        for job_id in job_ids:
            try:
                self._flux("cancel", str(job_id))
            except InvalidOrder as error:
                if "job is inactive" not in str(error):
                    raise

    def check(self) -> Sequence[Finding]:
        try:
            size = self._flux("getattr", "size").strip()
        except ProviderError as error:
            return [Finding("instance", Severity.ERROR, str(error), "mend uri in the provider's table")]
        return [Finding("instance", Severity.OK, f"{self._options.uri} answers; it has {size} brokers")]

    def _jobs(self, *args: str) -> list[Job]:
        listed = json.loads(self._flux("jobs", "--json", "--count=0", *args))
        return [_job(job) for job in listed["jobs"]]

    def _flux(self, *args: str) -> str:
        if self._options.uri != "parent":
            target, uri = [], self._options.uri
        elif uri := os.environ.get("FLUX_URI", ""):
            target = ["--parent"]
        else:
            raise ProviderUnavailable("uri = 'parent': the service does not run in a Flux instance; name the URI")
        try:
            return run([find(self._options.flux), *target, *args], environment(FLUX_URI=uri))
        except CommandFailed as failure:
            for pattern, error in ERRORS:
                if pattern.search(str(failure)):
                    raise error(str(failure)) from None
            raise ProviderUnavailable(str(failure)) from None


def _job(job: dict[str, Any]) -> Job:
    job_id, name, state = job["id"], job["name"], job["state"]
    if state != "INACTIVE":
        phase = STATES.get(state, NodePhase.STARTING)
        return Job(job_id, name, phase, f"waits in {state}" if phase is NodePhase.STARTING else "")
    if job["result"] in ("COMPLETED", "CANCELED"):
        return Job(job_id, name, None)
    exception = job["exception"]
    why = f"{exception['type']}: {exception['note']}" if exception["occurred"] else f"status {job['returncode']}"
    return Job(job_id, name, NodePhase.FAILED, f"job {job['jobid']} ended, {why}")
