"""What a cluster has, kept up to date by watches: a listing costs no request while nothing breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from fluxburst.errors import ProviderError, ProviderUnavailable
from fluxburst_kubernetes.cluster import Cluster, Watch
from fluxburst_kubernetes.objects import Object

WATCH_S = 300
"""The server ends a watch after so long, and the next one goes on where it ended."""
BRIEF_S = 1.0
"""A watch that told nothing and ended within so long is not opened anew at once: that could go on without a pause."""


class Mirror:
    """The objects of one collection that match a selector.

    :meth:`objects` gives them as the latest change left them. A watch that ends, or hears nothing for long, is gone on
    with from the last change that was heard of, so that none is missed; where that cannot be had, the next call lists
    anew, and raises while nobody answers.
    """

    def __init__(self, cluster: Cluster, path: str, **selector: str) -> None:
        self._cluster = cluster
        self._path = path
        self._selector = selector
        self._lock = threading.Lock()
        self._objects: dict[str, Object] = {}
        self._heard = 0
        """The resource version up to which all changes are known."""
        self._thread: threading.Thread | None = None
        self._watch: Watch | None = None
        self._closed = False

    def objects(self) -> list[Object]:
        """All of them.

        Raises:
            ProviderError: the server cannot be asked.
        """
        with self._lock:
            if self._closed:
                raise ProviderUnavailable(f"{self._path}: the provider is closed")
            if self._thread is None:
                self._begin()
            return list(self._objects.values())

    def put(self, found: Object) -> None:
        """Take in what a request of ours has just made, which its watch tells a moment later.

        What the watch has told already may be its deletion, and stands.
        """
        with self._lock:
            if self._thread is not None and _version(found) > self._heard:
                self._objects[found["metadata"]["name"]] = found

    def close(self) -> None:
        with self._lock:
            self._closed = True
            watch, thread = self._watch, self._thread
        if watch is not None:
            watch.close()
        if thread is not None:
            thread.join()

    def _begin(self) -> None:
        listed = self._cluster.get(self._path, **self._selector)
        # the items of a list do not tell their kind
        self._objects = {found["metadata"]["name"]: found for found in listed["items"]}
        self._heard = _version(listed)
        watch = self._watch = self._open()
        self._thread = threading.Thread(target=self._follow, args=(watch,), name=f"watch {self._path}", daemon=True)
        self._thread.start()

    def _open(self) -> Watch:
        query: Mapping[str, str] = {"allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_S), **self._selector}
        return self._cluster.watch(self._path, resourceVersion=str(self._heard), **query)

    def _follow(self, watch: Watch) -> None:
        """Until the next watch cannot be had."""
        try:
            while True:
                before, opened_at = self._heard, time.monotonic()
                for kind, found in watch:
                    self._change(kind, found)
                if self._heard == before and time.monotonic() - opened_at < BRIEF_S:
                    return
                watch = self._open()
                with self._lock:
                    self._watch = watch
                    if self._closed:
                        watch.close()
                        return
        except ProviderError:
            return  # the next listing says why, or begins anew
        finally:
            with self._lock:
                self._thread = self._watch = None

    def _change(self, kind: str, found: Object) -> None:
        with self._lock:
            self._heard = _version(found)
            if kind == "DELETED":
                self._objects.pop(found["metadata"]["name"], None)
            elif kind != "BOOKMARK":
                self._objects[found["metadata"]["name"]] = found


def _version(found: Object) -> int:
    """Resource versions of one collection grow (Kubernetes API concepts, resource versions)."""
    return int(found["metadata"]["resourceVersion"])
