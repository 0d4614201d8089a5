"""SQLite (WAL) in the state directory: nodes with versions, orders, the ledger, settings, and an append-only log.

Nothing is written until :meth:`Store.commit`: the controller records a whole step, commits it, and only then acts.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from fluxburst.budget import Segment
from fluxburst.config import private_directory
from fluxburst.errors import StoreError
from fluxburst.model import Account, Host, NodeRecord, Offer, OrderRecord, RequestId
from fluxburst.states import NodeState
from fluxburst.store.protocol import LogEntry

SCHEMA_VERSION = 2

_LEDGER = """
CREATE TABLE ledger (
    request_id TEXT NOT NULL, host TEXT NOT NULL, pool TEXT NOT NULL, provider TEXT NOT NULL,
    user TEXT NOT NULL, bank TEXT NOT NULL, project TEXT NOT NULL, usd_per_node_hour REAL,
    launched_at REAL NOT NULL, reserved_at REAL NOT NULL, from_at REAL NOT NULL, until_at REAL NOT NULL,
    increment_s REAL NOT NULL, minimum_s REAL NOT NULL, ended_at REAL,
    PRIMARY KEY (request_id, host, from_at)
) STRICT, WITHOUT ROWID;
CREATE INDEX ledger_by_end ON ledger (ended_at);
"""
_SCHEMA = f"""
CREATE TABLE nodes (
    request_id TEXT NOT NULL, host TEXT NOT NULL, pool TEXT NOT NULL, provider TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL, changed_at REAL NOT NULL, planned_at REAL NOT NULL,
    node_id TEXT, joined_at REAL, stop_sent_at REAL, usd_per_node_hour REAL, version INTEGER NOT NULL,
    PRIMARY KEY (request_id, host)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX one_live_node_a_host ON nodes (host) WHERE state != 'gone';
CREATE TABLE orders (
    request_id TEXT PRIMARY KEY, pool TEXT NOT NULL, hosts TEXT NOT NULL, offer TEXT NOT NULL,
    created_at REAL NOT NULL, job_ids TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE log (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, subject TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL
) STRICT;
CREATE INDEX log_by_subject ON log (subject, id);
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
{_LEDGER}
"""
_FROM_VERSION_1 = (
    _LEDGER
    + """
INSERT INTO ledger
SELECT request_id, host, pool, provider, '', '', '', usd_per_node_hour, planned_at, planned_at, planned_at, changed_at,
    1.0, 0.0, CASE WHEN node_id IS NULL AND joined_at IS NULL THEN planned_at ELSE changed_at END
FROM nodes WHERE state = 'gone';
"""
)
"""What is gone is entered as it was, on nobody's account; the service enters what lives when it starts."""

_NODE_COLUMNS = tuple(field.name for field in dataclasses.fields(NodeRecord))
_STATE = _NODE_COLUMNS.index("state")
_node_values = attrgetter(*_NODE_COLUMNS)
_INSERT_NODE = f"INSERT INTO nodes ({', '.join(_NODE_COLUMNS)}) VALUES ({', '.join('?' * len(_NODE_COLUMNS))})"  # noqa: S608
_UPDATE_NODE = (
    f"UPDATE nodes SET {', '.join(f'{column} = ?' for column in _NODE_COLUMNS)} "  # noqa: S608
    "WHERE request_id = ? AND host = ? AND version = ?"
)
_LEDGER_COLUMNS = (
    *("request_id", "host", "pool", "provider", "user", "bank", "project", "usd_per_node_hour", "launched_at"),
    *("reserved_at", "from_at", "until_at", "increment_s", "minimum_s", "ended_at"),
)
_segment_values = attrgetter(
    *(f"account.{column}" if column in ("user", "bank", "project") else column for column in _LEDGER_COLUMNS)
)
_SAVE_SEGMENT = (
    f"INSERT OR REPLACE INTO ledger ({', '.join(_LEDGER_COLUMNS)}) VALUES ({', '.join('?' * len(_LEDGER_COLUMNS))})"  # noqa: S608
)


class Store:
    """:class:`~fluxburst.store.protocol.Records` in a state directory. One process at a time; one thread.

    Raises:
        StoreError: the directory cannot be used, another service holds it, or its schema is of another version.
    """

    def __init__(self, directory: Path, echo: Callable[[LogEntry], None] | None = None) -> None:
        self.directory = directory
        self._echo = echo
        private_directory(directory)
        try:
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"state_dir {directory}: cannot be used: {error.strerror}; set another in burst.toml"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StoreError(f"state_dir {directory}: another fluxburst service uses it; stop that one first") from None
        try:
            # SQLite gives its journals the mode of the database file
            os.close(os.open(directory / "state.sqlite", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(directory / "state.sqlite", isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            os.close(self._lock)
            raise StoreError(f"state_dir {directory}: state.sqlite cannot be opened: {error}") from None
        try:
            version = self._open_schema()
        except sqlite3.Error as error:
            self.close()
            raise StoreError(f"state_dir {directory}: state.sqlite cannot be used: {error}") from None
        if version != SCHEMA_VERSION:
            self.close()
            raise StoreError(
                f"state_dir {directory}: written by another version of fluxburst (schema {version}, "
                f"this one has {SCHEMA_VERSION}); run that version, or name an empty state_dir once no node lives"
            )

    def _open_schema(self) -> int:
        """The schema's version; made now where the file is new, brought up where it is older."""
        self._db.execute("PRAGMA journal_mode = WAL")
        # FULL: a record of money spent must survive a power cut, not only the end of the process
        self._db.execute("PRAGMA synchronous = FULL")
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        steps = {0: _SCHEMA, 1: _FROM_VERSION_1}
        if version not in steps:
            return version
        self._db.executescript(f"BEGIN; {steps[version]} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        return SCHEMA_VERSION

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)

    def commit(self) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def _write(self, statement: str, values: Sequence[Any]) -> sqlite3.Cursor:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        return self._db.execute(statement, values)

    def live_nodes(self) -> list[NodeRecord]:
        return self._nodes("state != 'gone' ORDER BY host")

    def had_node(self, request_id: RequestId, host: Host) -> bool:
        query = "SELECT 1 FROM nodes WHERE request_id = ? AND host = ?"
        return self._db.execute(query, (request_id, host)).fetchone() is not None

    def node_history(self, limit: int = 1000) -> list[NodeRecord]:
        return sorted(self._nodes("1 ORDER BY planned_at DESC LIMIT ?", limit), key=lambda node: node.planned_at)

    def _nodes(self, where: str, *values: Any) -> list[NodeRecord]:
        rows = self._db.execute(f"SELECT {', '.join(_NODE_COLUMNS)} FROM nodes WHERE {where}", values)  # noqa: S608
        return [
            NodeRecord(**{**dict(zip(_NODE_COLUMNS, row, strict=True)), "state": NodeState(row[_STATE])})
            for row in rows
        ]

    def save_node(self, node: NodeRecord) -> None:
        values = _node_values(node)
        if node.version == 1:
            try:
                self._write(_INSERT_NODE, values)
            except sqlite3.IntegrityError:
                raise StoreError(f"{node.host} has a live record already; {node.request_id} cannot take it") from None
            return
        changed = self._write(_UPDATE_NODE, (*values, node.request_id, node.host, node.version - 1))
        if changed.rowcount != 1:
            raise StoreError(f"{node.host} of {node.request_id}: version {node.version - 1} is not the stored one")

    def add_order(self, order: OrderRecord) -> None:
        self._write(
            "INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)",
            (
                order.request_id,
                order.pool,
                json.dumps(order.hosts),
                json.dumps(dataclasses.asdict(order.offer)),
                order.created_at,
                json.dumps(order.job_ids),
            ),
        )

    def order(self, request_id: RequestId) -> OrderRecord | None:
        row = self._db.execute("SELECT * FROM orders WHERE request_id = ?", (request_id,)).fetchone()
        if row is None:
            return None
        return OrderRecord(
            request_id=row[0],
            pool=row[1],
            hosts=tuple(json.loads(row[2])),
            offer=Offer(**json.loads(row[3])),
            created_at=row[4],
            job_ids=tuple(json.loads(row[5])),
        )

    def save_segment(self, segment: Segment) -> None:
        self._write(_SAVE_SEGMENT, _segment_values(segment))

    def segments(self, since_at: float) -> list[Segment]:
        rows = self._db.execute(
            f"SELECT {', '.join(_LEDGER_COLUMNS)} FROM ledger "  # noqa: S608
            "WHERE ended_at IS NULL OR ended_at > ? ORDER BY request_id, host, from_at",
            (since_at,),
        )
        found = [dict(zip(_LEDGER_COLUMNS, row, strict=True)) for row in rows]
        return [
            Segment(account=Account(*(row.pop(name) for name in ("user", "bank", "project"))), **row) for row in found
        ]

    def log(self, at: float, subject: str, kind: str, **data: Any) -> None:
        """Append one line; ``echo`` gets it too."""
        if self._echo is not None:
            self._echo(LogEntry(at, subject, kind, data))
        self._write(
            "INSERT INTO log (at, subject, kind, data) VALUES (?, ?, ?, ?)", (at, subject, kind, json.dumps(data))
        )

    def history(self, subject: str) -> list[LogEntry]:
        rows = self._db.execute("SELECT at, subject, kind, data FROM log WHERE subject = ? ORDER BY id", (subject,))
        return [LogEntry(at, subject, kind, json.loads(data)) for at, subject, kind, data in rows]

    def latest(self, subject: str, kind: str) -> LogEntry | None:
        return next((entry for entry in reversed(self.history(subject)) if entry.kind == kind), None)

    def setting(self, key: str, default: Any) -> Any:
        row = self._db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else default

    def set_setting(self, key: str, value: Any) -> None:
        self._write("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, json.dumps(value)))

    def forget(self, before_at: float) -> None:
        oldest = self._db.execute("SELECT at FROM log ORDER BY id LIMIT 1").fetchone()
        if oldest is None or oldest[0] >= before_at:
            return  # no record changes without a line in the log
        for statement in (
            # its ids grow with time, so that no line is looked at but those that go
            "DELETE FROM log WHERE id < coalesce((SELECT id FROM log WHERE at >= ? ORDER BY id LIMIT 1), 1 << 62)",
            "DELETE FROM nodes WHERE state = 'gone' AND changed_at < ?",
            "DELETE FROM orders WHERE created_at < ? AND request_id NOT IN (SELECT request_id FROM nodes)",
            "DELETE FROM ledger WHERE ended_at < ? "
            "AND (request_id, host) NOT IN (SELECT request_id, host FROM nodes WHERE state != 'gone')",
        ):
            self._write(statement, (before_at,))
