"""The records that outlive the service."""

from fluxburst.store.sqlite import LogEntry, Store

__all__ = ["LogEntry", "Store"]
