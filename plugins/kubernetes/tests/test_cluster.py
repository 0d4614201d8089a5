"""What the answers of an API server become, by a server that gives those which a real one seldom gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fluxburst.errors import AuthDenied, InvalidOrder, ProviderError, ProviderUnavailable, RateLimited
from fluxburst_kubernetes.cluster import TOLD, Cluster, by_kubeconfig
from fluxburst_kubernetes.options import KubernetesOptions


def kubeconfig(server: str) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": server}}],
            "users": [{"name": "me", "user": {"token": "x"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
        }
    )


Answer = Callable[..., Cluster]


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Answer]:
    """Makes a cluster that gives one answer to all requests."""
    servers: list[ThreadingHTTPServer] = []

    def make(status: int, body: bytes, **headers: str) -> Cluster:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST  # noqa: N815 - the base class asks for this name

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "kubeconfig").write_text(kubeconfig(f"http://127.0.0.1:{server.server_port}"))
        return cluster(tmp_path / "kubeconfig")

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def cluster(path: Path) -> Cluster:
    return Cluster("provider x", by_kubeconfig(KubernetesOptions(kubeconfig=path), "provider x"), 5.0)


def status(**fields: Any) -> bytes:
    return json.dumps({"kind": "Status", **fields}).encode()


def test_too_many_requests_are_told_with_the_servers_pause(answering: Answer) -> None:
    with pytest.raises(RateLimited, match="provider x: too many requests") as limited:
        answering(429, status(message="too many requests"), Retry_After="7").get("/api/v1/pods")
    assert limited.value.retry_after_s == 7.0


def test_a_refusal_that_quotes_all_that_was_sent_is_cut_short(answering: Answer) -> None:
    with pytest.raises(InvalidOrder) as refused:
        answering(422, status(message="Job is invalid: " + "x" * 100_000)).create("/jobs", {})
    assert len(str(refused.value)) < TOLD + 50


def test_what_the_server_says_of_a_secret_is_not_repeated(answering: Answer) -> None:
    with pytest.raises(InvalidOrder) as refused:
        answering(422, status(reason="Invalid", message="data: Invalid value: c2VjcmV0")).create(
            "/secrets", {}, private=True
        )
    assert str(refused.value) == "provider x: status 422 Invalid"


@pytest.mark.parametrize("body", [b"<html>captive portal</html>", b""])
def test_an_answer_of_something_else_is_no_answer(answering: Answer, body: bytes) -> None:
    with pytest.raises(ProviderUnavailable, match="what answers is no API server"):
        answering(200, body).get("/api/v1/pods")


@pytest.mark.parametrize(
    ("code", "reason"), [(404, "NotFound"), (409, "Conflict"), (409, "AlreadyExists"), (410, "Gone")]
)
def test_whatever_nobody_expected_is_an_unclear_answer(answering: Answer, code: int, reason: str) -> None:
    with pytest.raises(ProviderUnavailable, match="provider x: said"):
        answering(code, status(reason=reason, message="said")).get("/api/v1/pods")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        "a: [",
        "just words",
        "clusters: 7",
        kubeconfig("https://127.0.0.1:1").replace('"token"', '"client-key-data": "?", "client-certificate-data"'),
        kubeconfig("http://127.0.0.1:1").replace('"contexts": [', '"contexts": [7, '),
    ],
    ids=["empty", "list", "broken", "words", "number", "no base64", "odd context"],
)
def test_a_kubeconfig_that_is_none_is_told_with_the_fix(tmp_path: Path, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(AuthDenied, match=r"provider x: no way to a cluster: .+; set kubeconfig and context"):
        cluster(tmp_path / "kubeconfig").get("/version")


@pytest.mark.parametrize("server", ["nonsense://x", "http://127.0.0.1:port", "ftp://127.0.0.1", "https://[::1"])
def test_a_server_that_is_no_address_is_a_typed_error(tmp_path: Path, server: str) -> None:
    (tmp_path / "kubeconfig").write_text(kubeconfig(server))
    with pytest.raises(ProviderError, match="provider x: "):
        cluster(tmp_path / "kubeconfig").get("/version")
