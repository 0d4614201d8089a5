"""SQLite (WAL) in the state directory: nodes with versions, orders, settings, and an append-only log.

Nothing is written until :meth:`Store.commit`: the controller records a whole step, commits it, and only then acts.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxburst.config import private_directory
from fluxburst.errors import StoreError
from fluxburst.model import Host, NodeRecord, Offer, OrderRecord, RequestId
from fluxburst.states import NodeState

SCHEMA_VERSION = 1

_SCHEMA = """
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
"""

_NODE_COLUMNS = tuple(field.name for field in dataclasses.fields(NodeRecord))
_STATE = _NODE_COLUMNS.index("state")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the log. ``subject`` is ``job/ID``, ``node/HOST``, ``order/REQUEST``, ``pool/NAME``,
    ``provider/NAME`` or ``service``.
    """

    at: float
    subject: str
    kind: str
    data: Mapping[str, Any]


class Store:
    """The open state directory. One process at a time; one thread.

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
        """The schema's version; made now, where the file is new."""
        self._db.execute("PRAGMA journal_mode = WAL")
        # FULL: a record of money spent must survive a power cut, not only the end of the process
        self._db.execute("PRAGMA synchronous = FULL")
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            return SCHEMA_VERSION
        return version

    def close(self) -> None:
        """Close without committing what is pending."""
        self._db.close()
        os.close(self._lock)

    def commit(self) -> None:
        """Make everything written since the last commit durable, at once or not at all."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def _write(self, statement: str, values: Iterable[Any]) -> sqlite3.Cursor:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        return self._db.execute(statement, tuple(values))

    def live_nodes(self) -> list[NodeRecord]:
        """Every record that is not gone, by host."""
        return self._nodes("state != 'gone' ORDER BY host")

    def had_node(self, request_id: RequestId, host: Host) -> bool:
        """Whether there is, or was, a record of this host under this request."""
        query = "SELECT 1 FROM nodes WHERE request_id = ? AND host = ?"
        return self._db.execute(query, (request_id, host)).fetchone() is not None

    def node_history(self, limit: int = 1000) -> list[NodeRecord]:
        """The latest records, gone ones too, in the order in which they were planned."""
        return sorted(self._nodes("1 ORDER BY planned_at DESC LIMIT ?", limit), key=lambda node: node.planned_at)

    def _nodes(self, where: str, *values: Any) -> list[NodeRecord]:
        rows = self._db.execute(f"SELECT {', '.join(_NODE_COLUMNS)} FROM nodes WHERE {where}", values)  # noqa: S608
        return [
            NodeRecord(**{**dict(zip(_NODE_COLUMNS, row, strict=True)), "state": NodeState(row[_STATE])})
            for row in rows
        ]

    def save_node(self, node: NodeRecord) -> None:
        """Write one record. Its ``version`` must be one above the stored one, or 1 for a new record.

        Raises:
            StoreError: someone else changed the record, or its host has another live record.
        """
        values = [getattr(node, column) for column in _NODE_COLUMNS]
        if node.version == 1:
            marks = ", ".join("?" * len(values))
            try:
                self._write(f"INSERT INTO nodes ({', '.join(_NODE_COLUMNS)}) VALUES ({marks})", values)  # noqa: S608
            except sqlite3.IntegrityError:
                raise StoreError(f"{node.host} has a live record already; {node.request_id} cannot take it") from None
            return
        sets = ", ".join(f"{column} = ?" for column in _NODE_COLUMNS)
        changed = self._write(
            f"UPDATE nodes SET {sets} WHERE request_id = ? AND host = ? AND version = ?",  # noqa: S608
            [*values, node.request_id, node.host, node.version - 1],
        ).rowcount
        if changed != 1:
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
        """One order; None when this store never made it."""
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

    def log(self, at: float, subject: str, kind: str, **data: Any) -> None:
        """Append one line; it is never changed afterwards. ``echo`` gets it too."""
        if self._echo is not None:
            self._echo(LogEntry(at, subject, kind, data))
        self._write(
            "INSERT INTO log (at, subject, kind, data) VALUES (?, ?, ?, ?)", (at, subject, kind, json.dumps(data))
        )

    def history(self, subject: str) -> list[LogEntry]:
        """All lines on one subject, oldest first."""
        rows = self._db.execute("SELECT at, subject, kind, data FROM log WHERE subject = ? ORDER BY id", (subject,))
        return [LogEntry(at, subject, kind, json.loads(data)) for at, subject, kind, data in rows]

    def latest(self, subject: str, kind: str) -> LogEntry | None:
        """The newest line of one kind on one subject."""
        return next((entry for entry in reversed(self.history(subject)) if entry.kind == kind), None)

    def setting(self, key: str, default: Any) -> Any:
        """A small JSON value kept under a name, such as whether buying is paused."""
        row = self._db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else default

    def set_setting(self, key: str, value: Any) -> None:
        self._write("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, json.dumps(value)))
