"""What every store does, whatever keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fluxburst.budget import Segment
from fluxburst.model import Host, NodeRecord, OrderRecord, RequestId


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the log. ``subject`` is ``job/ID``, ``node/HOST``, ``order/REQUEST``, ``pool/NAME``,
    ``provider/NAME`` or ``service``.
    """

    at: float
    subject: str
    kind: str
    data: Mapping[str, Any]


class Records(Protocol):
    """Nodes with versions, orders, the ledger, settings, and an append-only log. One thread."""

    def close(self) -> None:
        """Close without committing what is pending."""

    def commit(self) -> None:
        """Make everything written since the last commit durable, at once or not at all."""

    def live_nodes(self) -> list[NodeRecord]:
        """Every record that is not gone, by host."""

    def had_node(self, request_id: RequestId, host: Host) -> bool:
        """Whether there is, or was, a record of this host under this request."""

    def node_history(self, limit: int = 1000) -> list[NodeRecord]:
        """The latest records, gone ones too, in the order in which they were planned."""

    def save_node(self, node: NodeRecord) -> None:
        """Write one record. Its ``version`` must be one above the stored one, or 1 for a new record.

        Raises:
            StoreError: someone else changed the record, or its host has another live record.
        """

    def add_order(self, order: OrderRecord) -> None: ...

    def order(self, request_id: RequestId) -> OrderRecord | None:
        """One order; None when this store never made it."""

    def save_segment(self, segment: Segment) -> None:
        """Write one stretch of a node's life into the ledger, anew or changed."""

    def segments(self, since_at: float) -> list[Segment]:
        """The ledger's segments of all that lives, and of what ended after ``since_at``."""

    def log(self, at: float, subject: str, kind: str, **data: Any) -> None:
        """Append one line of JSON values; it is never changed afterwards."""

    def history(self, subject: str) -> list[LogEntry]:
        """All lines on one subject, oldest first."""

    def latest(self, subject: str, kind: str) -> LogEntry | None:
        """The newest line of one kind on one subject."""

    def setting(self, key: str, default: Any) -> Any:
        """A small JSON value kept under a name, such as whether buying is paused."""

    def set_setting(self, key: str, value: Any) -> None: ...

    def forget(self, before_at: float) -> None:
        """Drop what is older: log lines, and the nodes that were gone by then, with their orders and what they cost."""
