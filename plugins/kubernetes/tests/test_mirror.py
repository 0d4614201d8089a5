"""What a mirror shows while its watches come and go, against a server of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, cast

import pytest

from fluxburst.errors import ProviderUnavailable
from fluxburst_kubernetes import mirror as room
from fluxburst_kubernetes.cluster import Cluster, Gone
from fluxburst_kubernetes.mirror import Mirror

Change = tuple[str, dict[str, Any]]


def found(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


class FakeWatch:
    """Gives what the test puts in; ``None`` ends it."""

    def __init__(self) -> None:
        self.changes: SimpleQueue[Change | None] = SimpleQueue()
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[Change]:
        yield from iter(self.changes.get, None)

    def close(self) -> None:
        self.closed.set()
        self.changes.put(None)


class FakeCluster:
    """One collection. ``opened`` gives each watch, and the version that it was opened at, as soon as it is opened."""

    def __init__(self, *listed: dict[str, Any], version: int = 10) -> None:
        self.listed, self.version = list(listed), version
        self.lists = 0
        self.opened: SimpleQueue[tuple[FakeWatch, str]] = SimpleQueue()
        self.refusal: Exception | None = None
        self.before_watch: Callable[[], None] = lambda: None

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        self.lists += 1
        if self.refusal is not None:
            raise self.refusal
        return {"items": list(self.listed), "metadata": {"resourceVersion": str(self.version)}}

    def watch(self, path: str, **query: Any) -> FakeWatch:
        self.before_watch()
        if self.refusal is not None:
            raise self.refusal
        watch = FakeWatch()
        self.opened.put((watch, query["resourceVersion"]))
        return watch


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(found("a", 7))


@pytest.fixture
def mirror(cluster: FakeCluster) -> Iterator[Mirror]:
    mirror = Mirror(cast("Cluster", cluster), "/pods")
    yield mirror
    mirror.close()


@pytest.fixture(autouse=True)
def never_brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BRIEF_S", 0.0)


def names(mirror: Mirror) -> set[str]:
    return {one["metadata"]["name"] for one in mirror.objects()}


def after(cluster: FakeCluster, watch: FakeWatch, *changes: Change) -> tuple[FakeWatch, str]:
    """The watch that follows one that told these changes, and the version that it was opened at."""
    for change in changes:
        watch.changes.put(change)
    watch.changes.put(None)
    return cluster.opened.get(timeout=10)


def test_changes_are_seen_without_a_listing(mirror: Mirror, cluster: FakeCluster) -> None:
    assert names(mirror) == {"a"}
    watch, version = cluster.opened.get(timeout=10)
    assert version == "10"
    after(cluster, watch, ("ADDED", found("b", 11)), ("DELETED", found("a", 12)))
    assert names(mirror) == {"b"}
    assert cluster.lists == 1


def test_a_watch_goes_on_where_the_last_one_ended(mirror: Mirror, cluster: FakeCluster) -> None:
    mirror.objects()
    watch, _ = cluster.opened.get(timeout=10)
    watch, version = after(
        cluster, watch, ("ADDED", found("b", 11)), ("BOOKMARK", {"metadata": {"resourceVersion": "40"}})
    )
    assert version == "40"
    _, version = after(cluster, watch)  # nothing heard, as where events of a kind have no bookmarks
    assert version == "40"
    assert names(mirror) == {"a", "b"}


def test_where_the_server_has_forgotten_it_is_listed_anew(mirror: Mirror, cluster: FakeCluster) -> None:
    mirror.objects()
    watch, _ = cluster.opened.get(timeout=10)
    thread = mirror._thread
    assert thread is not None
    cluster.refusal = Gone("too old resource version")
    watch.changes.put(None)
    thread.join(10)
    cluster.refusal, cluster.listed, cluster.version = None, [found("c", 50)], 60
    assert names(mirror) == {"c"}
    assert cluster.lists == 2


def test_while_nobody_answers_the_last_state_is_not_shown(mirror: Mirror, cluster: FakeCluster) -> None:
    mirror.objects()
    watch, _ = cluster.opened.get(timeout=10)
    thread = mirror._thread
    assert thread is not None
    cluster.refusal = ProviderUnavailable("away")
    watch.changes.put(None)
    thread.join(10)
    with pytest.raises(ProviderUnavailable, match="away"):
        mirror.objects()


def test_a_watch_that_ends_at_once_is_not_opened_again_and_again(
    mirror: Mirror, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BRIEF_S", 3600.0)
    mirror.objects()
    watch, _ = cluster.opened.get(timeout=10)
    thread = mirror._thread
    assert thread is not None
    watch.changes.put(None)
    thread.join(10)
    assert not thread.is_alive()
    assert cluster.opened.empty()


def test_what_was_just_made_is_shown_before_it_is_heard_of(mirror: Mirror, cluster: FakeCluster) -> None:
    mirror.objects()
    mirror.put(found("made", 11))
    assert names(mirror) == {"a", "made"}


def test_what_was_heard_to_be_deleted_does_not_come_back(mirror: Mirror, cluster: FakeCluster) -> None:
    mirror.objects()
    watch, _ = cluster.opened.get(timeout=10)
    after(cluster, watch, ("ADDED", found("made", 11)), ("DELETED", found("made", 12)))
    mirror.put(found("made", 11))
    assert names(mirror) == {"a"}


def test_closing_while_the_next_watch_is_being_opened_ends_that_too(mirror: Mirror, cluster: FakeCluster) -> None:
    mirror.objects()
    watch, _ = cluster.opened.get(timeout=10)
    opening, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        opening.set()
        assert go_on.wait(10)

    cluster.before_watch = pause
    watch.changes.put(None)
    assert opening.wait(10)
    closing = threading.Thread(target=mirror.close)
    closing.start()
    assert watch.closed.wait(10)  # closing has begun, with the watch that it knew
    go_on.set()
    closing.join(10)
    assert not closing.is_alive()
    with pytest.raises(ProviderUnavailable, match="closed"):
        mirror.objects()
