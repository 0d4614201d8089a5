"""What instance types have, as EC2 tells it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from fluxburst_eks.aws import Aws

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Shape:
    """``cores`` are what Flux counts; ``vcpus`` their threads, which Kubernetes and quotas count."""

    cores: int
    vcpus: int
    memory_bytes: int
    gpus: int
    gpu_model: str


class Types:
    """Remembers what it was told: a type does not change."""

    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self._lock = threading.Lock()
        self._known: dict[str, Shape] = {}

    def of(self, name: str) -> Shape:
        """Raises :class:`~fluxburst.errors.InvalidOrder` where there is no such type."""
        with self._lock:
            if name not in self._known:
                (told,) = self._aws.call("ec2", "describe_instance_types", InstanceTypes=[name])["InstanceTypes"]
                cpus, gpus = told["VCpuInfo"], told.get("GpuInfo", {}).get("Gpus", ())
                self._known[name] = Shape(
                    cores=cpus.get("DefaultCores", cpus["DefaultVCpus"]),
                    vcpus=cpus["DefaultVCpus"],
                    memory_bytes=told["MemoryInfo"]["SizeInMiB"] * MIB,
                    gpus=sum(gpu["Count"] for gpu in gpus),
                    gpu_model=" ".join(f"{gpus[0].get('Manufacturer', '')} {gpus[0]['Name']}".split()) if gpus else "",
                )
            return self._known[name]
