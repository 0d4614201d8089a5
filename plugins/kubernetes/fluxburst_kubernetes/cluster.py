"""One cluster's API server, through the `kubernetes` client: dictionaries in and out, errors of ours.

The client's models are left aside: what the server says is passed on as it came, and what a newer server knows is not
lost. Nothing is tried again here; the controller does that, with pauses of its own.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fluxburst import __version__
from fluxburst.errors import (
    AuthDenied,
    InvalidOrder,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
)
from fluxburst_kubernetes.objects import MANAGER, Object
from fluxburst_kubernetes.options import KubernetesOptions

if TYPE_CHECKING:
    import urllib3
    from kubernetes.client import ApiClient, Configuration

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
CONNECTIONS = 16
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
]
"""A watch whose server has vanished ends within half a minute."""


QUIET_S = 90.0
"""A watch that hears nothing for so long is opened anew where it was: that finds a server that is silent for good."""

TOLD = 600
"""So many characters of a server's message are passed on: a refusal may quote the whole object."""

_NO_SCHEMA = "failed to create typed patch object"
"""What is applied on the server's side with a field that the schema lacks is refused with this and status 500."""


class NotFound(ProviderUnavailable):
    """There is no such object, or no such kind."""


class AlreadyExists(ProviderUnavailable):
    """There is an object of that name."""


class Conflict(ProviderUnavailable):
    """What was sent is of an object as it was before."""


class Gone(ProviderUnavailable):
    """The server does not remember changes from so long ago."""


Configure = Callable[["Configuration"], None]
"""Fills a client's configuration in: where the API server is, and who asks it.

Raises:
    ProviderError: there is no way to it now.
"""


class Cluster:
    """Thread-safe. Nothing is read and nobody talked to before the first request.

    Args:
        where: What errors begin with, such as ``provider kubernetes``.
        configure: Is called for the first request, and again after credentials were refused.
        timeout_s: How long a request may take.
    """

    def __init__(self, where: str, configure: Configure, timeout_s: float) -> None:
        self._where = where
        self._configure = configure
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._client: ApiClient | None = None

    def get(self, path: str, **query: Any) -> Object:
        return self.request("GET", path, **query)

    def post(self, path: str, body: Mapping[str, Any], **query: Any) -> Object:
        return self.request("POST", path, body, **query)

    def create(self, path: str, body: Mapping[str, Any], *, private: bool = False, **query: Any) -> Object:
        """Make an object in a collection; what the schema does not know is refused.

        What the server says of a ``private`` one is not repeated, as it may quote what was sent.

        Raises:
            AlreadyExists: there is one of that name.
        """
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict", **query}
        return self.request("POST", path, body, private=private, **query)

    def ensure(self, path: str, body: Mapping[str, Any], *, private: bool = False, **query: Any) -> Object | None:
        """:meth:`create` an object, unless there is one of that name, which stays as it is: then None.

        Raises:
            InvalidOrder: there is no such namespace, or no such kind.
        """
        try:
            return self.create(path, body, private=private, **query)
        except AlreadyExists:
            return None
        except NotFound as error:
            raise InvalidOrder(str(error)) from None

    def apply(self, path: str, body: Mapping[str, Any], **query: Any) -> Object:
        """Make an object, or make it so, by server-side apply; what the schema does not know is refused."""
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict", **query}
        return self.request("PATCH", path, body, APPLY, **query)

    def delete(self, path: str, **query: Any) -> Object | None:
        """Delete an object, or all of a collection that are selected. One that is not there is fine: then None."""
        try:
            return self.request("DELETE", path, **query)
        except NotFound:
            return None

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        *,
        private: bool = False,
        **query: Any,
    ) -> Object:
        """Send a request, and return its answer.

        Raises:
            NotFound: there is no such object.
            AlreadyExists: there is one already.
            Conflict: it was changed meanwhile.
            ProviderError: anything else, in the server's own words.
        """
        response = self._send(method, path, body, content_type, query, self._timeout_s)
        data = self._read(response)
        if not 200 <= response.status < 300:
            self._fail(response.status, data, response, private=private)
        try:
            answer: Object = json.loads(data)
        except ValueError:
            _, begun = _status(data)
            raise ProviderUnavailable(f"{self._where}: what answers is no API server: {begun}") from None
        return answer

    def watch(self, path: str, **query: Any) -> Watch:
        """The changes of a collection, from ``resourceVersion`` on.

        Raises:
            Gone: the server has forgotten that version.
            ProviderError: see :meth:`request`.
        """
        times = (self._timeout_s, QUIET_S)
        response = self._send("GET", path, None, "application/json", {"watch": "true", **query}, times)
        if response.status != 200:
            self._fail(response.status, self._read(response), response)
        return Watch(response.response)

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.rest_client.pool_manager.clear()

    def _read(self, response: Any) -> bytes:
        import urllib3

        try:
            data: bytes = response.read()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ProviderUnavailable(f"{self._where}: the API server's answer broke off: {error}") from None
        return data

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        content_type: str,
        query: Mapping[str, Any],
        timeout_s: float | tuple[float, float],
    ) -> Any:
        import urllib3
        from kubernetes.client.exceptions import ApiException

        client = self._connect()
        try:
            # it renews credentials, too
            request = client.param_serialize(
                method=method,
                resource_path=path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            return client.call_api(*request, _request_timeout=timeout_s)
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            # of the client's own exceptions it is the one for a certificate that does not fit
            told = " ".join(str(error).split())
            raise ProviderUnavailable(f"{self._where}: the API server gives no answer: {told}") from None

    def _connect(self) -> ApiClient:
        """The client, made anew after credentials were refused: they may be others by now.

        Raises:
            AuthDenied: there are no credentials, or they cannot be used.
        """
        with self._lock:
            if self._client is None:
                self._client = self._load()
            return self._client

    def _load(self) -> ApiClient:
        from kubernetes import client

        configuration = client.Configuration()
        self._configure(configuration)
        configuration.connection_pool_maxsize = CONNECTIONS
        configuration.socket_options = KEEPALIVE
        configuration.retries = False
        made = client.ApiClient(configuration)
        made.user_agent = f"fluxburst/{__version__}"
        return made

    def _fail(self, status: int, data: bytes, response: Any, *, private: bool = False) -> None:
        """Raise what the server's refusal means (Kubernetes API conventions, HTTP status codes)."""
        reason, message = _status(data)
        bare = f"status {status} {reason}".rstrip()
        told = f"{self._where}: {bare if private or not message else message}"
        if status == 404:
            raise NotFound(told)
        if status == 409:
            raise AlreadyExists(told) if reason == "AlreadyExists" else Conflict(told)
        if status == 410:
            raise Gone(told)
        if status == 403 and "exceeded quota" in message:
            raise QuotaExceeded(told)
        if status in (401, 403):
            self.close()
            raise AuthDenied(told)
        if status == 429:
            raise RateLimited(told, retry_after_s=_seconds(response.getheader("Retry-After")))
        if status in (400, 405, 413, 415, 422) or _NO_SCHEMA in message:
            raise InvalidOrder(told)
        raise ProviderUnavailable(told)


class Watch:
    """Iterates over the kind and the object of each change, until the server, a loss, or ``close`` ends it."""

    def __init__(self, response: urllib3.HTTPResponse) -> None:
        self._response = response

    def __iter__(self) -> Iterator[tuple[str, Object]]:
        """Raises :class:`Gone` where the server has forgotten the version that was asked for."""
        import urllib3

        pending = b""
        try:
            for chunk in self._response.stream(amt=None):
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise Gone(event["object"].get("message", ""))
                    yield event["type"], event["object"]
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError):
            return  # ended on the one side or the other, in the middle of a read

    def close(self) -> None:
        """End it, from any thread."""
        try:
            self._response.shutdown()
        except (ValueError, OSError, RuntimeError):
            return  # it had ended


def by_kubeconfig(options: KubernetesOptions, where: str) -> Configure:
    """The way that a kubeconfig describes or, inside a cluster, the pod's own service account."""

    def configure(configuration: Configuration) -> None:
        from kubernetes import config
        from kubernetes.config import ConfigException
        from yaml import YAMLError

        try:
            if options.kubeconfig is None and not options.context and "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            else:
                path = None if options.kubeconfig is None else str(options.kubeconfig.expanduser())
                config.load_kube_config(  # type: ignore[no-untyped-call]
                    path, options.context or None, client_configuration=configuration
                )
        except (ConfigException, OSError, YAMLError, ValueError, TypeError, AttributeError) as error:
            # the last three are the client's own words for a file of another shape
            fix = "set kubeconfig and context, or run the service where it has a service account"
            raise AuthDenied(f"{where}: no way to a cluster: {' '.join(str(error).split())}; {fix}") from None

    return configure


def _status(data: bytes) -> tuple[str, str]:
    """A Status object's reason, which is one word, and its message; or the beginning of what came instead."""
    try:
        status = json.loads(data)
    except ValueError:
        return "", " ".join(data[:200].decode(errors="replace").split())
    if not isinstance(status, dict):
        return "", ""
    message = str(status.get("message", ""))
    return str(status.get("reason", "")), message if len(message) <= TOLD else f"{message[:TOLD]}…"


def _seconds(header: str | None) -> float | None:
    return float(header) if header and header.isdecimal() else None
