"""What a cluster has, kept up to date by watches: a listing costs no request while nothing breaks."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from fluxburst.errors import ProviderError, ProviderUnavailable
from fluxburst_kubernetes.cluster import Cluster, Gone, NotFound, Watch
from fluxburst_kubernetes.objects import Object

WATCH_S = 300
"""The server ends a watch after so long, and the next one goes on where it ended."""


class Mirror:
    """The objects of one collection that match a selector.

    :meth:`objects` gives them as the latest change left them, and raises where that is not known: a watch that broke is
    not gone on with in the background, but the next call lists anew.
    """

    def __init__(self, cluster: Cluster, path: str, **selector: str) -> None:
        self._cluster = cluster
        self._path = path
        self._selector = selector
        self._lock = threading.Lock()
        self._objects: dict[str, Object] = {}
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
        """Take in what a request of ours has just made, which its watch tells a moment later."""
        with self._lock:
            known = self._objects.get(found["metadata"]["name"])
            if self._thread is not None and (known is None or _version(known) < _version(found)):
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
        try:
            listed = self._cluster.get(self._path, **self._selector)
        except NotFound as error:
            raise ProviderUnavailable(f"{self._path}: {error}") from None
        # the items of a list do not tell their kind
        self._objects = {found["metadata"]["name"]: found for found in listed["items"]}
        watch = self._watch = self._open(listed["metadata"]["resourceVersion"])
        self._thread = threading.Thread(target=self._follow, args=(watch,), name=f"watch {self._path}", daemon=True)
        self._thread.start()

    def _open(self, version: str) -> Watch:
        query: Mapping[str, str] = {"allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_S), **self._selector}
        return self._cluster.watch(self._path, resourceVersion=version, **query)

    def _follow(self, watch: Watch) -> None:
        """Until a watch breaks off before its time, or the next one cannot be had."""
        version = ""
        try:
            while True:
                heard = version
                for kind, found in watch:
                    version = found["metadata"]["resourceVersion"]
                    self._change(kind, found)
                if version == heard:
                    return  # it broke: in all the time of a watch there is a bookmark at least
                with self._lock:
                    if self._closed:
                        return
                watch = self._open(version)
                with self._lock:
                    self._watch = watch
        except (Gone, NotFound, ProviderError):
            return  # the next listing says why, or begins anew
        finally:
            with self._lock:
                self._thread = self._watch = None

    def _change(self, kind: str, found: Object) -> None:
        if kind == "BOOKMARK":
            return
        name = found["metadata"]["name"]
        with self._lock:
            if kind == "DELETED":
                self._objects.pop(name, None)
            else:
                self._objects[name] = found


def _version(found: Object) -> int:
    """Resource versions of one collection grow (Kubernetes API concepts, resource versions)."""
    return int(found["metadata"]["resourceVersion"])
