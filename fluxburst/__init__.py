"""fluxburst: lets a Flux Framework instance burst."""

__version__ = "0.1.0"
