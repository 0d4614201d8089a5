"""Allocations of a Slurm cluster, by its commands: sbatch(1), squeue(1), scontrol(1), scancel(1)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from fluxburst.errors import AuthDenied, InvalidOrder, NoCapacity, ProviderError, ProviderUnavailable, QuotaExceeded
from fluxburst.model import Finding, NodePhase, Order, Severity
from fluxburst_local.commands import CommandFailed, environment, run
from fluxburst_local.jobs import BOOT, Job, Tags
from fluxburst_local.options import SlurmSubmission
from fluxburst_local.supervisor import replace

ERRORS: tuple[tuple[re.Pattern[str], type[ProviderError]], ...] = (
    (re.compile(r"(?i)unable to contact|timed out|connection refused|zero bytes|communication"), ProviderUnavailable),
    (re.compile(r"(?i)authentication|credential|munge|access/permission|permission denied|user.s group"), AuthDenied),
    (re.compile(r"(?i)accounting/QOS policy|QOSMax|QOSGrp|AssocMax|AssocGrp|submit limit"), QuotaExceeded),
    (re.compile(r"(?i)required (partition|node) not available|nodes are busy"), NoCapacity),
    (re.compile(r"(?i)invalid|not available|more processors|unrecognized|not permitted|exceed|too long"), InvalidOrder),
)
"""What sbatch(1) and its like say (Slurm's src/common/slurm_errno.c), in the order of precedence."""

HOLDING = {
    "CONFIGURING": NodePhase.STARTING,
    "RUNNING": NodePhase.RUNNING,
    "SUSPENDED": NodePhase.RUNNING,
    "STOPPED": NodePhase.RUNNING,
    "SIGNALING": NodePhase.RUNNING,
    "STAGE_OUT": NodePhase.STOPPING,
    "COMPLETING": NodePhase.STOPPING,
}
FAILED = frozenset({"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"})
OVER = frozenset({"CANCELLED", "COMPLETED"})
"""Job states (squeue(1), JOB STATE CODES). In all others a job waits for its nodes."""

HEADER = "# fluxburst: "
"""Begins the line of the batch script with its tags. A comment may be no longer than 1,024 characters, a script may."""

SCRIPT = """\
#!/bin/sh
{header}{tags}
exec srun --wait=0 --kill-on-bad-exit=0 --no-kill --mpi=none --cpu-bind=none --output={log} /bin/sh {boot}
"""


class SlurmJobs:
    kind: ClassVar[str] = "slurm"
    index_variable: ClassVar[str] = "SLURM_PROCID"

    def __init__(self, pools: Mapping[str, SlurmSubmission]) -> None:
        self._pools = pools

    def submit(self, name: str, order: Order, tags: Tags, directory: Path) -> None:
        pool = self._pools[order.pool]
        nodes = len(order.hosts)
        log = shlex.quote(str(directory / "job.log"))
        script = directory / "job.sh"
        replace(
            script,
            SCRIPT.format(header=HEADER, tags=tags.dumps(), log=log, boot=shlex.quote(str(directory / BOOT))),
        )
        self._run(
            "sbatch",
            "--parsable",
            f"--job-name={name}",
            "--dependency=singleton",
            f"--nodes={nodes}",
            f"--ntasks={nodes}",
            "--ntasks-per-node=1",
            f"--mincpus={order.offer.cores}",
            *([f"--gpus-per-node={order.offer.gpus}"] if order.offer.gpus else []),
            "--exclusive",
            "--mem=0",
            # A lost node ends its own follower only, and nothing starts again by itself under the same hosts.
            "--no-kill",
            "--no-requeue",
            f"--chdir={directory}",
            f"--output={directory / 'job.log'}",
            *([f"--partition={pool.partition}"] if pool.partition else []),
            *([f"--account={pool.account}"] if pool.account else []),
            *([f"--qos={pool.qos}"] if pool.qos else []),
            *([f"--constraint={pool.constraint}"] if pool.constraint else []),
            *([f"--time={pool.time_limit}"] if pool.time_limit else []),
            *pool.args,
            str(script),
        )

    def jobs(self, prefix: str, names: Collection[str]) -> Sequence[Job]:
        """Slurm remembers ended jobs for MinJobAge (slurm.conf(5)), 300 s by default."""
        listed = self._run("squeue", "--me", "--noheader", "--states=all", "--format=%A|%T|%r|%j")
        jobs = [_job(*line.split("|", 3)) for line in listed.splitlines()]
        return [job for job in jobs if job.name in names or (job.active and job.name.startswith(prefix))]

    def tags(self, job_id: int) -> Tags:
        script = self._run("scontrol", "write", "batch_script", str(job_id), "-")
        for line in script.splitlines():
            if line.startswith(HEADER):
                return Tags.loads(line.removeprefix(HEADER))
        raise ProviderUnavailable(
            f"Slurm job {job_id} has a fluxburst name and no tags in its script; cancel it by hand"
        )

    def cancel(self, job_ids: Collection[int]) -> None:
        self._run("scancel", "--quiet", *(str(job_id) for job_id in job_ids))

    def check(self) -> Sequence[Finding]:
        try:
            version = self._run("sbatch", "--version").strip()
            self._run("scontrol", "ping")
        except ProviderError as error:
            fix = "install Slurm's client commands, or set SLURM_CONF in the service's environment"
            return [Finding("slurm", Severity.ERROR, str(error), fix)]
        return [Finding("slurm", Severity.OK, f"{version} answers")]

    @staticmethod
    def _run(*command: str) -> str:
        try:
            return run(command, environment())
        except CommandFailed as failure:
            for pattern, error in ERRORS:
                if pattern.search(str(failure)):
                    raise error(str(failure)) from None
            raise ProviderUnavailable(str(failure)) from None


def _job(job_id: str, state: str, reason: str, name: str) -> Job:
    if state in OVER:
        return Job(int(job_id), name, None)
    if state in FAILED:
        return Job(int(job_id), name, NodePhase.FAILED, f"job {job_id} ended, {state}")
    phase = HOLDING.get(state, NodePhase.STARTING)
    return Job(int(job_id), name, phase, f"waits in {state}: {reason}" if phase is NodePhase.STARTING else "")
