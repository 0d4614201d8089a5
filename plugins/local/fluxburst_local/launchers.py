"""From a provider's tables to its launcher."""

from __future__ import annotations

from typing import TypeVar

from fluxburst.errors import ConfigError
from fluxburst.provider import Provider, ProviderContext, options
from fluxburst_local.fluxjob import FluxJobs
from fluxburst_local.jobs import JobProvider
from fluxburst_local.options import (
    FluxOptions,
    FluxSubmission,
    NoOptions,
    ProcessOptions,
    SlurmOptions,
    SlurmSubmission,
    Table,
)
from fluxburst_local.process import ProcessProvider
from fluxburst_local.slurmjob import SlurmJobs

_Table = TypeVar("_Table", bound=Table)


def build(context: ProviderContext) -> Provider:
    """Raises :class:`ConfigError` naming the table and the key."""
    where = f"provider.{context.name}"
    match context.options.get("launcher", "process"):
        case "process":
            process = options(ProcessOptions, context.options, where)
            _for_pools(context, NoOptions, NoOptions())
            return ProcessProvider(context, process)
        case "flux":
            flux = options(FluxOptions, context.options, where)
            return JobProvider(context, flux, FluxJobs(flux, _for_pools(context, FluxSubmission, flux)))
        case "slurm":
            slurm = options(SlurmOptions, context.options, where)
            return JobProvider(context, slurm, SlurmJobs(_for_pools(context, SlurmSubmission, slurm)))
        case other:
            raise ConfigError(f"[{where}] launcher: {other!r} is unknown; write 'process', 'flux' or 'slurm'")


def _for_pools(context: ProviderContext, model: type[_Table], defaults: Table) -> dict[str, _Table]:
    """Each pool's options; keys that it leaves out have the provider's values."""
    base = defaults.model_dump(include=set(model.model_fields))
    return {
        name: options(model, {**base, **pool.options}, f"pool.{name}.options") for name, pool in context.pools.items()
    }
