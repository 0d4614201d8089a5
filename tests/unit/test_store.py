from __future__ import annotations

import dataclasses
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fluxburst.budget import Segment
from fluxburst.errors import ConfigError, StoreError
from fluxburst.model import Account, Host, JobId, NodeId, NodeRecord, Offer, OrderRecord, RequestId
from fluxburst.states import NodeState
from fluxburst.store import LogEntry, MemoryStore, Records, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "state")) as opened:
        yield opened


def record(host: str = "c2-0", request: str = "b-one", version: int = 1, state: str = "planned") -> NodeRecord:
    return NodeRecord(
        host=Host(host),
        pool="c2",
        provider="gke",
        request_id=RequestId(request),
        state=NodeState(state),
        reason="",
        changed_at=2.5,
        planned_at=1.5,
        version=version,
    )


FULL = dataclasses.replace(
    record(state="joined"),
    node_id=NodeId("i-1"),
    joined_at=2.0,
    stop_sent_at=3.0,
    usd_per_node_hour=0.25,
    reason="idle",
)
ORDER = OrderRecord(
    RequestId("b-one"),
    "c2",
    (Host("c2-1"), Host("c2-0")),
    Offer("c2", "gke", "c2-standard-4", 4, 1, 0.2, True, "b", "us-central1", 55.0, 7),
    12.5,
    (JobId(2), JobId(1)),
)


def stranger(store: Store, query: str) -> list[tuple[object, ...]]:
    """What a second connection sees of the file."""
    with closing(sqlite3.connect(f"file:{store.directory / 'state.sqlite'}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


def test_a_record_comes_back_whole_after_reopening(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.save_node(FULL)
        store.commit()
    with closing(Store(tmp_path)) as store:
        assert store.live_nodes() == [FULL]


def test_nothing_is_visible_to_others_before_the_commit_and_all_of_it_after(store: Store) -> None:
    store.save_node(record())
    store.add_order(ORDER)
    store.log(1.0, "node/c2-0", "planned")
    store.set_setting("paused", True)
    tables = ("nodes", "orders", "log", "settings")
    assert [stranger(store, f"SELECT count(*) FROM {table}") for table in tables] == [[(0,)]] * 4
    assert store.live_nodes() == [record()], "the writer itself sees it"
    store.commit()
    assert [stranger(store, f"SELECT count(*) FROM {table}") for table in tables] == [[(1,)]] * 4


def test_what_was_not_committed_is_forgotten_whole(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.set_setting("paused", False)
        store.commit()
        store.set_setting("paused", True)
        store.save_node(record())
    with closing(Store(tmp_path)) as store:
        assert (store.setting("paused", None), store.live_nodes()) == (False, [])


def test_a_commit_with_nothing_to_commit_is_fine(store: Store) -> None:
    store.commit()
    store.commit()
    assert store.live_nodes() == []


def test_a_process_that_is_killed_keeps_what_it_committed_and_no_more(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from fluxburst.store import Store
store = Store(Path({str(tmp_path)!r}))
store.set_setting("committed", 1)
store.commit()
store.set_setting("pending", 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == -9
    with closing(Store(tmp_path)) as store:
        assert (store.setting("committed", None), store.setting("pending", None)) == (1, None)


def test_a_record_is_changed_only_from_the_version_that_is_stored(store: Store) -> None:
    store.save_node(record())
    second = dataclasses.replace(record(version=2), state=NodeState.ORDERED)
    store.save_node(second)
    for stale in (second, record(version=4), record(version=0), record("c2-9", version=2)):
        with pytest.raises(StoreError, match="is not the stored one"):
            store.save_node(stale)
    assert store.live_nodes() == [second]


def test_a_host_has_one_live_record_and_is_free_again_when_it_is_gone(store: Store) -> None:
    store.save_node(record())
    with pytest.raises(StoreError, match=r"c2-0 has a live record already; b-two cannot take it"):
        store.save_node(record(request="b-two"))
    store.save_node(record(version=2, state="gone"))
    store.save_node(record(request="b-two"))
    store.commit()
    assert store.live_nodes() == [record(request="b-two")]


def test_a_refused_write_leaves_the_others_of_the_step(store: Store) -> None:
    store.save_node(record())
    with pytest.raises(StoreError):
        store.save_node(record(request="b-two"))
    store.commit()
    assert stranger(store, "SELECT request_id FROM nodes") == [("b-one",)]


def test_live_nodes_come_by_host_and_history_in_the_order_of_planning(store: Store) -> None:
    plans = [("c2-1", 3.0, "planned"), ("c2-0", 2.0, "joined"), ("c2-2", 1.0, "gone"), ("c2-2", 4.0, "stopped")]
    for index, (host, at, state) in enumerate(plans):
        store.save_node(dataclasses.replace(record(host, f"b-{index}", state=state), planned_at=at))
    assert [node.host for node in store.live_nodes()] == ["c2-0", "c2-1", "c2-2"]
    assert [node.planned_at for node in store.node_history()] == [1.0, 2.0, 3.0, 4.0]
    assert [node.planned_at for node in store.node_history(limit=2)] == [3.0, 4.0], "the latest"


def test_an_order_comes_back_as_it_was(store: Store) -> None:
    store.add_order(ORDER)
    store.commit()
    assert store.order(ORDER.request_id) == ORDER
    assert store.order(RequestId("b-nosuch")) is None


SEGMENT = Segment(
    RequestId("b-one"), Host("c2-0"), "c2", "gke", Account("alice", "physics", "higgs"), 0.5,
    launched_at=1.5, reserved_at=2.5, from_at=3.5, until_at=9.5, increment_s=60.0, minimum_s=600.0,
)  # fmt: skip


def test_the_ledger_keeps_every_segment_whole_and_changes_it_in_place(tmp_path: Path) -> None:
    unpriced = dataclasses.replace(SEGMENT, from_at=9.5, until_at=12.0, usd_per_node_hour=None, account=Account())
    longer = dataclasses.replace(unpriced, until_at=20.0)
    with closing(Store(tmp_path)) as store:
        for segment in (unpriced, SEGMENT, longer):
            store.save_segment(segment)
        store.commit()
    with closing(Store(tmp_path)) as store:
        assert store.segments(1e9) == [SEGMENT, longer], "live ones, whenever they began"


def test_what_has_ended_is_read_only_from_its_end_back(store: Store) -> None:
    ended = dataclasses.replace(SEGMENT, ended_at=8.0)
    store.save_segment(SEGMENT)
    store.save_segment(ended)
    assert store.segments(7.9) == [ended]
    assert store.segments(8.0) == []


VERSION_1 = """
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
INSERT INTO nodes VALUES
    ('b-1', 'c2-0', 'c2', 'gke', 'gone', 'idle', 50.0, 10.0, 'i-1', 20.0, 40.0, 0.25, 9),
    ('b-2', 'c2-1', 'c2', 'gke', 'gone', 'launch failed', 50.0, 10.0, NULL, NULL, NULL, 0.25, 3),
    ('b-3', 'c2-0', 'c2', 'gke', 'joined', '', 70.0, 60.0, 'i-2', 70.0, NULL, NULL, 4);
INSERT INTO settings VALUES ('paused', 'true');
PRAGMA user_version = 1;
"""


def test_a_file_of_version_1_is_brought_up_once_with_what_it_knows(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "state.sqlite")) as database:
        database.executescript(VERSION_1)
    for _ in range(2):
        with closing(Store(tmp_path)) as store:
            assert [(node.host, node.version) for node in store.live_nodes()] == [("c2-0", 4)]
            assert store.setting("paused", False) is True
            assert [
                (one.request_id, one.account, one.usd_per_node_hour, one.from_at, one.ended_at)
                for one in store.segments(0.0)
            ] == [("b-1", Account(), 0.25, 10.0, 50.0), ("b-2", Account(), 0.25, 10.0, 10.0)]


def test_a_file_that_was_brought_up_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o700)
    with closing(sqlite3.connect(tmp_path / "old" / "state.sqlite")) as database:
        database.executescript(VERSION_1)
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    with closing(Store(tmp_path / "old")) as old, closing(Store(tmp_path / "new")) as new:
        assert stranger(old, query) == stranger(new, query)


def test_the_log_keeps_its_order_by_subject_and_is_echoed(tmp_path: Path) -> None:
    echoed: list[LogEntry] = []
    entries = [
        LogEntry(3.0, "job/1", "burst", {"pool": "c2", "hosts": ["c2-0"]}),
        LogEntry(1.0, "node/c2-0", "planned", {}),
        LogEntry(2.0, "job/1", "start", {"n": None}),
    ]
    with closing(Store(tmp_path, echoed.append)) as store:
        for entry in entries:
            store.log(entry.at, entry.subject, entry.kind, **entry.data)
        store.commit()
        assert store.history("job/1") == [entries[0], entries[2]], "by the time of writing, not by their clock"
        assert store.history("node/c2-0") == [entries[1]]
        assert store.history("job/2") == []
    assert echoed == entries


@pytest.mark.parametrize("value", [True, None, 3, 2.5, "text", [1, "two"], {"a": {"b": []}}])
def test_a_setting_is_any_json_value_and_the_last_one_holds(store: Store, value: object) -> None:
    assert store.setting("key", "default") == "default"
    store.set_setting("key", "before")
    store.set_setting("key", value)
    store.commit()
    assert store.setting("key", "default") == value


def test_a_second_store_in_this_process_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        with pytest.raises(StoreError, match="another fluxburst service uses it"):
            Store(tmp_path)
        store.set_setting("still", "works")
        store.commit()
    with closing(Store(tmp_path)) as store:
        assert store.setting("still", None) == "works"


def test_a_second_process_is_refused_while_the_first_lives(store: Store) -> None:
    program = f"""
from pathlib import Path
from fluxburst.errors import ConfigError, StoreError
from fluxburst.store import Store
try:
    Store(Path({str(store.directory)!r}))
except StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30)
    assert f"state_dir {store.directory}: another fluxburst service uses it" in done.stdout


def test_a_file_of_another_version_is_left_alone_with_the_way_out(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "state.sqlite")) as database:
        database.execute("PRAGMA user_version = 99")
    for _ in range(2):  # the lock is free again after the refusal
        with pytest.raises(StoreError, match=r"schema 99, this one has 2\); run that version, or name an empty"):
            Store(tmp_path)


def test_a_file_that_is_no_database_is_an_error_in_words_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"no database at all" * 100)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"state_dir .*: state\.sqlite cannot be used: file is not a database"):
            Store(tmp_path)
    assert path.read_bytes() == b"no database at all" * 100


def test_a_database_that_cannot_be_opened_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").mkdir()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"state\.sqlite cannot be opened"):
            Store(tmp_path)


def test_a_directory_that_cannot_be_made_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be made: .*; set another in burst\.toml"):
        Store(tmp_path / "file" / "state")


def test_the_directory_is_the_owners_alone(store: Store) -> None:
    assert store.directory.stat().st_mode & 0o077 == 0


def test_what_is_older_is_forgotten_and_what_lives_is_kept_whole(store: Store) -> None:
    long_gone, just_gone, lives = (
        dataclasses.replace(record(host, request, state=state), changed_at=at, planned_at=1.0)
        for host, request, state, at in (
            ("c2-0", "b-old", "gone", 10.0),
            ("c2-0", "b-new", "gone", 100.0),
            ("c2-1", "b-live", "joined", 10.0),
        )
    )
    for node in (long_gone, just_gone, lives):
        store.save_node(node)
        store.add_order(dataclasses.replace(ORDER, request_id=node.request_id, created_at=1.0))
        for ended_at in (5.0, 10.0) if node is lives else (node.changed_at,):
            store.save_segment(segment(node, from_at=ended_at - 1, ended_at=ended_at))
        store.log(node.changed_at, f"order/{node.request_id}", "of a node")
    store.log(9.0, "job/1", "told late")
    store.log(100.0, "job/1", "new")
    store.forget(100.0)
    assert {node.request_id for node in store.node_history()} == {"b-new", "b-live"}
    assert store.order(RequestId("b-old")) is None
    assert store.order(RequestId("b-new")) is not None
    assert store.order(RequestId("b-live")) is not None
    assert [(one.request_id, one.ended_at) for one in store.segments(0.0)] == [
        ("b-live", 5.0),
        ("b-live", 10.0),
        ("b-new", 100.0),
    ]
    assert [store.history(f"order/{request}") != [] for request in ("b-old", "b-new")] == [False, True]
    store.forget(1000.0)
    assert store.history("job/1") == []
    assert [node.request_id for node in store.node_history()] == ["b-live"]


def segment(node: NodeRecord, *, from_at: float, ended_at: float) -> Segment:
    return Segment(
        node.request_id,
        node.host,
        node.pool,
        node.provider,
        Account(),
        0.5,
        0.0,
        0.0,
        from_at,
        ended_at,
        ended_at=ended_at,
    )


def test_a_store_in_memory_holds_what_one_on_disk_does() -> None:
    with closing(MemoryStore()) as store:
        store.save_node(record())
        store.add_order(ORDER)
        store.set_setting("paused", True)
        store.log(1.0, "job/1", "moved", queue="c2")
        store.commit()
        store.save_node(dataclasses.replace(FULL, version=2))
        assert store.live_nodes() == [dataclasses.replace(FULL, version=2)]
        assert store.order(ORDER.request_id) == ORDER
        assert store.setting("paused", False) is True
        assert store.history("job/1") == [LogEntry(1.0, "job/1", "moved", {"queue": "c2"})]


HOSTS = ("c2-0", "c2-1", "c2-2")
REQUESTS = ("b-one", "b-two", "b-three")
TIMES = st.integers(0, 20).map(float)
NODES = st.builds(
    record,
    st.sampled_from(HOSTS),
    st.sampled_from(REQUESTS),
    st.integers(1, 4),
    st.sampled_from(["planned", "joined", "gone"]),
)
SEGMENTS = st.builds(
    lambda host, request, from_at, ended_at: dataclasses.replace(
        SEGMENT, host=host, request_id=request, from_at=from_at, ended_at=ended_at
    ),
    st.sampled_from(HOSTS),
    st.sampled_from(REQUESTS),
    TIMES,
    st.none() | TIMES,
)
ORDERS = st.builds(
    lambda request, at: dataclasses.replace(ORDER, request_id=request, created_at=at), st.sampled_from(REQUESTS), TIMES
)
DATA = st.dictionaries(st.sampled_from("xyz"), st.integers() | st.tuples(st.text()) | st.none())
SUBJECTS = ("job/1", "node/c2-0", "service")


class SameRecords(RuleBasedStateMachine):
    """The store on disk and the one in memory, told the same and asked the same."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = TemporaryDirectory(prefix="fb-")
        self._disk, self._memory = Store(Path(self._directory.name)), MemoryStore()
        self._at = 0.0

    def teardown(self) -> None:
        self._disk.close()
        self._directory.cleanup()

    @rule(node=NODES, at=TIMES)
    def save_node(self, node: NodeRecord, at: float) -> None:
        node = dataclasses.replace(node, changed_at=at)
        live = {one.host: one.request_id for one in self._disk.live_nodes()}
        if live.get(node.host, node.request_id) != node.request_id and node.version > 1:
            return  # what is gone does not come back
        outcomes = []
        for store in (self._disk, self._memory):
            try:
                store.save_node(node)
                outcomes.append("")
            except StoreError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]

    @rule(order=ORDERS)
    def add_order(self, order: OrderRecord) -> None:
        if self._disk.order(order.request_id) is None:
            self._disk.add_order(order)
            self._memory.add_order(order)

    @rule(segment=SEGMENTS)
    def save_segment(self, segment: Segment) -> None:
        self._disk.save_segment(segment)
        self._memory.save_segment(segment)

    @rule(subject=st.sampled_from(SUBJECTS), later=st.integers(-2, 4), data=DATA)
    def log(self, subject: str, later: int, data: dict[str, object]) -> None:
        self._at += later
        self._disk.log(self._at, subject, "kind", **data)
        self._memory.log(self._at, subject, "kind", **data)

    @rule(key=st.sampled_from("ab"), value=st.none() | st.booleans() | st.lists(st.integers()))
    def set_setting(self, key: str, value: object) -> None:
        self._disk.set_setting(key, value)
        self._memory.set_setting(key, value)

    @rule(before_at=TIMES)
    def forget(self, before_at: float) -> None:
        self._disk.forget(before_at)
        self._memory.forget(before_at)

    @rule()
    def commit(self) -> None:
        self._disk.commit()
        self._memory.commit()

    @invariant()
    def tell_the_same(self) -> None:
        assert self._told(self._disk) == self._told(self._memory)

    @staticmethod
    def _told(store: Records) -> list[object]:
        return [
            store.live_nodes(),
            sorted((node.request_id, node.host, node) for node in store.node_history()),
            [store.had_node(RequestId(request), Host(host)) for request in REQUESTS for host in HOSTS],
            [store.order(RequestId(request)) for request in REQUESTS],
            [store.segments(since_at) for since_at in (0.0, 10.0)],
            [(store.history(subject), store.latest(subject, "kind")) for subject in SUBJECTS],
            [store.setting(key, "default") for key in "ab"],
        ]


TestSameRecords = SameRecords.TestCase
TestSameRecords.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
