"""The records that outlive the service."""

from fluxburst.store.memory import MemoryStore
from fluxburst.store.protocol import LogEntry, Records
from fluxburst.store.sqlite import Store

__all__ = ["LogEntry", "MemoryStore", "Records", "Store"]
