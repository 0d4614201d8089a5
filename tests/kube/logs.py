"""The part of a kubelet that the API server itself asks: the logs of containers."""

from __future__ import annotations

import ssl
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Read = Callable[[str, str, str], str]
"""The log of a container, by its namespace, its pod and its name."""


class LogServer:
    """Answers for all fake nodes, whose address is loopback.

    Args:
        certificate: Its own.
        key: That of the certificate.
        read: Where the logs are from.
    """

    def __init__(self, certificate: Path, key: Path, read: Read) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                address = urllib.parse.urlsplit(self.path)
                room, *names = address.path.strip("/").split("/")
                if room != "containerLogs" or len(names) != 3:
                    self.send_error(404)
                    return
                lines = read(*names).splitlines(keepends=True)
                tail = urllib.parse.parse_qs(address.query).get("tailLines")
                body = "".join(lines[-int(tail[0]) :] if tail else lines).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="kubelet-logs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
