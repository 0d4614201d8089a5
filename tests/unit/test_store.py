from __future__ import annotations

import dataclasses
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fluxburst.errors import ConfigError, StoreError
from fluxburst.model import Host, JobId, NodeId, NodeRecord, Offer, OrderRecord, RequestId
from fluxburst.states import NodeState
from fluxburst.store import LogEntry, Store


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
        with pytest.raises(StoreError, match=r"schema 99, this one has 1\); run that version, or name an empty"):
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
