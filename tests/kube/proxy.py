"""Stands before the API server, and lets it be busy, or late with what it tells."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import urllib3
import yaml

HOP = ("connection", "content-length", "host", "transfer-encoding")
"""Headers that are of one connection only."""


class Proxy(AbstractContextManager["Proxy"]):
    """Passes requests on to the API server of a kubeconfig, as they came.

    Attributes:
        lag_s: How long what a watch tells is kept back.
    """

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self._config = config
        cluster = config["clusters"][0]["cluster"]
        self._upstream = cluster["server"]
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=32, ca_certs=cluster.get("certificate-authority"), retries=False
        )
        self.lag_s = 0.0
        self._busy: list[tuple[str, str, int]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._pool.clear()

    def write_kubeconfig(self, path: Path) -> None:
        """A kubeconfig for the same user, by way of this proxy."""
        url = f"http://127.0.0.1:{self._server.server_port}"
        clusters = [{"name": one["name"], "cluster": {"server": url}} for one in self._config["clusters"]]
        path.write_text(json.dumps({**self._config, "clusters": clusters}))

    def refuse(self, method: str, kind: str, retry_after_s: int) -> None:
        """Answer the next such request with 429, such as a POST of ``jobs``."""
        self._busy.append((method, kind, retry_after_s))

    @property
    def refused_all(self) -> bool:
        return not self._busy

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kind = self.path.partition("?")[0].rpartition("/")[2]
                for asked in proxy._busy:
                    if asked[:2] == (self.command, kind):
                        proxy._busy.remove(asked)
                        self.refuse(asked[2])
                        return
                headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
                answer = proxy._pool.request(
                    self.command, proxy._upstream + self.path, body=body, headers=headers, preload_content=False
                )
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in HOP:
                        self.send_header(name, value)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    for chunk in proxy._late(answer) if "watch=true" in self.path else answer.stream(amt=None):
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    self.wfile.write(b"0\r\n\r\n")
                except (OSError, urllib3.exceptions.HTTPError):
                    self.close_connection = True  # one side has gone
                finally:
                    answer.close()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815 - the base class asks for these

            def refuse(self, retry_after_s: int) -> None:
                body = b'{"kind":"Status","message":"too many requests, please try again later"}'
                self.send_response(429)
                self.send_header("Retry-After", str(retry_after_s))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _late(self, answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """What an answer has, each part of it so long after it came."""
        parts: queue.SimpleQueue[tuple[float, bytes | None]] = queue.SimpleQueue()

        def read() -> None:
            try:
                for part in answer.stream(amt=None):
                    parts.put((time.monotonic() + self.lag_s, part))
            except (OSError, urllib3.exceptions.HTTPError, ValueError, AttributeError):
                pass  # closed in the middle of a read
            parts.put((0.0, None))

        threading.Thread(target=read, daemon=True).start()
        while True:
            due, part = parts.get()
            if part is None:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            yield part
