"""The keys of ``[provider.NAME]`` and ``[pool.NAME.options]`` for each launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from fluxburst import durations

Duration = Annotated[float, BeforeValidator(durations.parse)]
"""A Flux Standard Duration in the file, seconds in the model."""


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(Table):
    """Pools of the ``process`` launcher have no keys of their own."""


class ProcessOptions(Table):
    launcher: Literal["process"] = "process"
    flux: str = "flux"
    """The Flux executable that followers run: a path, or a name on PATH."""
    retries: int = Field(default=0, ge=0)
    """How often a broker that ended with an error is started again."""
    grace: Duration = 10.0
    """How long a released broker may take to leave before it is killed."""


class JobOptions(Table):
    """Keys of both launchers that run followers as one job an order."""

    flux: str = "flux"
    """The Flux executable, at the same path here and on the nodes: a path, or a name on PATH."""
    shared_dir: Path | None = None
    """A directory that the nodes see under the same path; by default the provider's state directory."""
    retries: int = Field(default=3, ge=0)
    """How often a follower that ended with an error is started again on its node."""

    @field_validator("shared_dir")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(f"{str(value)!r} is no absolute path; the nodes look it up from another directory")
        return value


class FluxSubmission(Table):
    """What a pool may set for itself. ``args`` are further arguments of flux-submit(1)."""

    queue: str = ""
    bank: str = ""
    time_limit: str = ""
    args: tuple[str, ...] = ()


class FluxOptions(JobOptions, FluxSubmission):
    launcher: Literal["flux"] = "flux"
    uri: str
    """The other instance: ``parent``, or what ``flux uri`` prints for it."""

    @field_validator("uri")
    @classmethod
    def _is_uri(cls, value: str) -> str:
        if value != "parent" and not value.startswith(("local://", "ssh://")):
            raise ValueError(f"{value!r} is neither 'parent' nor a local:// or ssh:// URI; ask `flux uri` for it")
        return value


class SlurmSubmission(Table):
    """What a pool may set for itself. ``args`` are further arguments of sbatch(1)."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time_limit: str = ""
    args: tuple[str, ...] = ()


class SlurmOptions(JobOptions, SlurmSubmission):
    launcher: Literal["slurm"] = "slurm"
