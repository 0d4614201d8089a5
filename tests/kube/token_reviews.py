"""The webhook that the API server asks about bearer tokens that it does not know, as the clouds' own clusters do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Judge = Callable[[str], tuple[str, list[str]] | None]
"""The user and the groups that a token stands for; None for one that it does not know."""


class TokenReviews:
    """Answers TokenReviews (authentication.k8s.io/v1) by whatever judges there are at that time."""

    def __init__(self) -> None:
        self.judges: list[Judge] = []
        reviews = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps({**asked, "status": reviews.review(asked["spec"]["token"])}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the API server's audit log has it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="token-reviews", daemon=True)

    def __enter__(self) -> TokenReviews:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def review(self, token: str) -> dict[str, Any]:
        for judge in self.judges:
            if (known := judge(token)) is not None:
                user, groups = known
                return {"authenticated": True, "user": {"username": user, "groups": groups}}
        return {"authenticated": False}
