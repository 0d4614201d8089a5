"""A store that ends with its process, for simulations, which should not wait for a disk."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from fluxburst.budget import Segment
from fluxburst.errors import StoreError
from fluxburst.model import Host, NodeRecord, OrderRecord, RequestId
from fluxburst.states import NodeState
from fluxburst.store.protocol import LogEntry


class MemoryStore:
    """:class:`~fluxburst.store.protocol.Records` in dicts: what is written is as durable as it will ever be."""

    def __init__(self, echo: Callable[[LogEntry], None] | None = None) -> None:
        self._echo = echo
        self._nodes: dict[tuple[RequestId, Host], NodeRecord] = {}
        self._live: dict[Host, NodeRecord] = {}
        self._orders: dict[RequestId, OrderRecord] = {}
        self._segments: dict[tuple[RequestId, Host, float], Segment] = {}
        self._log: deque[LogEntry] = deque()
        self._lines: dict[str, list[LogEntry]] = {}
        """The log by subject."""
        self._settings: dict[str, str] = {}

    def close(self) -> None:
        pass

    def commit(self) -> None:
        pass

    def live_nodes(self) -> list[NodeRecord]:
        return [self._live[host] for host in sorted(self._live)]

    def had_node(self, request_id: RequestId, host: Host) -> bool:
        return (request_id, host) in self._nodes

    def node_history(self, limit: int = 1000) -> list[NodeRecord]:
        return sorted(self._nodes.values(), key=attrgetter("planned_at"))[-limit:]

    def save_node(self, node: NodeRecord) -> None:
        its_key = (node.request_id, node.host)
        stored, live = self._nodes.get(its_key), node.state is not NodeState.GONE
        if node.version == 1:
            if stored is not None or (live and node.host in self._live):
                raise StoreError(f"{node.host} has a live record already; {node.request_id} cannot take it")
        elif stored is None or stored.version != node.version - 1:
            raise StoreError(f"{node.host} of {node.request_id}: version {node.version - 1} is not the stored one")
        self._nodes[its_key] = node
        if live:
            self._live[node.host] = node
        elif stored is not None:
            self._live.pop(node.host, None)

    def add_order(self, order: OrderRecord) -> None:
        self._orders[order.request_id] = order

    def order(self, request_id: RequestId) -> OrderRecord | None:
        return self._orders.get(request_id)

    def save_segment(self, segment: Segment) -> None:
        self._segments[segment.request_id, segment.host, segment.from_at] = segment

    def segments(self, since_at: float) -> list[Segment]:
        found = [one for one in self._segments.values() if one.ended_at is None or one.ended_at > since_at]
        return sorted(found, key=attrgetter("request_id", "host", "from_at"))

    def log(self, at: float, subject: str, kind: str, **data: Any) -> None:
        entry = LogEntry(at, subject, kind, data)
        if self._echo is not None:
            self._echo(entry)
        self._log.append(entry)
        lines = self._lines.get(subject)
        if lines is None:
            self._lines[subject] = [entry]
        else:
            lines.append(entry)

    def history(self, subject: str) -> list[LogEntry]:
        # as JSON on the way out only: few lines are ever read
        return [
            LogEntry(entry.at, subject, entry.kind, json.loads(json.dumps(entry.data)))
            for entry in self._lines.get(subject, ())
        ]

    def latest(self, subject: str, kind: str) -> LogEntry | None:
        return next((entry for entry in reversed(self.history(subject)) if entry.kind == kind), None)

    def setting(self, key: str, default: Any) -> Any:
        text = self._settings.get(key)
        return default if text is None else json.loads(text)

    def set_setting(self, key: str, value: Any) -> None:
        self._settings[key] = json.dumps(value)

    def forget(self, before_at: float) -> None:
        if not self._log or self._log[0].at >= before_at:
            return  # no record changes without a line in the log
        forgotten: dict[str, int] = {}
        while self._log and self._log[0].at < before_at:
            subject = self._log.popleft().subject
            forgotten[subject] = forgotten.get(subject, 0) + 1
        for subject, count in forgotten.items():
            lines = self._lines[subject]
            del lines[:count]
            if not lines:
                del self._lines[subject]
        gone = [key for key, one in self._nodes.items() if one.state is NodeState.GONE and one.changed_at < before_at]
        for key in gone:
            del self._nodes[key]
        kept = {request_id for request_id, _ in self._nodes}
        self._orders = {
            request_id: order
            for request_id, order in self._orders.items()
            if order.created_at >= before_at or request_id in kept
        }
        live = {(node.request_id, node.host) for node in self._live.values()}
        self._segments = {
            key: one
            for key, one in self._segments.items()
            if one.ended_at is None or one.ended_at >= before_at or key[:2] in live
        }
