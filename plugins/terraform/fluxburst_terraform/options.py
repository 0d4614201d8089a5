"""The keys of ``[provider.NAME]`` and ``[pool.NAME.options]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from fluxburst import bootkit, durations

Duration = Annotated[float, BeforeValidator(durations.parse)]
"""A Flux Standard Duration in the file, seconds in the model."""


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TerraformOptions(Table):
    terraform: str = "terraform"
    """The executable: a path, or a name on PATH."""
    parallel: int = Field(default=8, ge=1)
    """How many orders Terraform works on at a time."""
    lock_timeout: Duration = 60.0
    """How long it waits for the lock of an order's state, which one that was killed may hold."""
    backend: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Where states are kept, as a ``backend`` block: ``{ s3 = { bucket = "b", key = "burst/{order}" } }``. In texts,
    ``{order}`` is the order's id. By default they are files of the provider's state directory."""

    @field_validator("backend")
    @classmethod
    def _one_for_each_order(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if len(value) > 1:
            raise ValueError("name one backend")
        if value and "{order}" not in str(value):
            raise ValueError("no key has {order} in it: all orders would have one state")
        return value


class ModuleOptions(Table):
    """What the nodes of a pool are made by."""

    module: Path
    """The directory of a Terraform module, absolute."""
    variables: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the module."""
    flux: str = "flux"
    """The Flux executable on the nodes: a path, or a name on PATH."""
    directory: str = Field(default="/var/lib/fluxburst", pattern="^/")
    """Where a node keeps what its broker needs."""
    certificate_command: str = ""
    """A shell command that prints the lead's certificate on a node, such as one that reads a secret store. By default
    the nodes have it at the path that the lead's configuration names."""
    instance_type: str = "terraform"
    """What offers call the nodes."""
    spot: bool = False
    zone: str = ""
    region: str = ""
    join_time: Duration | None = None
    """The provider's guess until there are samples."""
    retries: int = Field(default=3, ge=0)
    """How often a broker that ended with an error is started again on its node."""
    lead_timeout: Duration = bootkit.LEAD_TIMEOUT_S
    """A broker that finds no lead for so long is given up."""
    max_lifetime: Duration | None = None
    """``expires_at``, which the module may obey, is so long after the order."""

    @field_validator("module")
    @classmethod
    def _is_a_module(cls, value: Path) -> Path:
        if not value.is_absolute() or not any(value.glob("*.tf*")):
            raise ValueError(f"{str(value)!r} is no absolute path of a directory with *.tf files")
        return value
