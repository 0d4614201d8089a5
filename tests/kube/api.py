"""Plain requests through the `kubernetes` client: dictionaries in and out, and watches that another thread can end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

Object = dict[str, Any]

MERGE = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
CONNECTIONS = 32
TIMEOUT_S = 10.0


class Api:
    """One user's way to the API server.

    Args:
        kubeconfig: Whose current context is used.
    """

    def __init__(self, kubeconfig: Path) -> None:
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        configuration.connection_pool_maxsize = CONNECTIONS
        configuration.retries = False  # who calls knows better
        self.client = client.ApiClient(configuration)

    def get(self, path: str, **query: Any) -> Object:
        return self.request("GET", path, **query)

    def post(self, path: str, body: Mapping[str, Any], **query: Any) -> Object:
        return self.request("POST", path, body, **query)

    def patch(self, path: str, body: Mapping[str, Any], **query: Any) -> Object:
        """A strategic merge, as the kubelet's own."""
        return self.request("PATCH", path, body, MERGE, **query)

    def apply(self, path: str, body: Mapping[str, Any], manager: str = "tests", **query: Any) -> Object:
        """Apply on the server's side; refuses what the schema does not know."""
        return self.request("PATCH", path, body, APPLY, fieldManager=manager, fieldValidation="Strict", **query)

    def delete(self, path: str, **options: Any) -> Object:
        """Delete with these DeleteOptions."""
        return self.request("DELETE", path, options or None)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        request_timeout_s: float = TIMEOUT_S,
        **query: Any,
    ) -> Object:
        """Send a request, and return its answer.

        Raises:
            ApiException: The server refused it.
            urllib3.exceptions.HTTPError: The server could not be reached.
        """
        response = self._send(method, path, body, content_type, query, request_timeout_s)
        data = response.read()
        if not 200 <= response.status < 300:
            text = data.decode()
            raise ApiException.from_response(http_resp=response, body=text, data=text)
        answer: Object = json.loads(data)
        return answer

    def watch(self, path: str, **query: Any) -> Watch:
        """The changes of a collection, from ``resourceVersion`` on."""
        response = self._send("GET", path, None, "application/json", {"watch": "true", **query}, None)
        if response.status != 200:
            text = response.read().decode()
            raise ApiException.from_response(http_resp=response, body=text, data=text)
        return Watch(response.response)

    def wait_for(self, path: str, condition: Callable[[Object], bool], timeout_s: float = 30.0, **query: Any) -> Object:
        """The first object of a collection, now or later, of which ``condition`` holds.

        Raises:
            TimeoutError: None came in time.
        """
        listed = self.get(path, **query)
        for item in listed["items"]:
            if condition(item):
                found: Object = item
                return found
        version = listed["metadata"]["resourceVersion"]
        watch = self.watch(path, resourceVersion=version, timeoutSeconds=int(timeout_s), **query)
        try:
            for kind, item in watch:
                if kind != "DELETED" and condition(item):
                    return item
        finally:
            watch.close()
        raise TimeoutError(f"nothing in {path} became as awaited within {timeout_s:g} s")

    def wait_gone(self, path: str, name: str, timeout_s: float = 30.0) -> None:
        """Wait until a collection has no object of that name.

        Raises:
            TimeoutError: It is still there.
        """
        selector = f"metadata.name={name}"
        listed = self.get(path, fieldSelector=selector)
        if not listed["items"]:
            return
        version = listed["metadata"]["resourceVersion"]
        watch = self.watch(path, resourceVersion=version, timeoutSeconds=int(timeout_s), fieldSelector=selector)
        try:
            if not any(kind == "DELETED" for kind, _ in watch):
                raise TimeoutError(f"{path}/{name} is still there after {timeout_s:g} s")
        finally:
            watch.close()

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        content_type: str,
        query: Mapping[str, Any],
        timeout_s: float | None,
    ) -> Any:
        request = self.client.param_serialize(
            method=method,
            resource_path=path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        return self.client.call_api(*request, _request_timeout=timeout_s)


class Watch:
    """Iterates over the kind and the object of each change, until the server or ``close`` ends it."""

    def __init__(self, response: urllib3.HTTPResponse) -> None:
        self._response = response

    def __iter__(self) -> Iterator[tuple[str, Object]]:
        pending = b""
        try:
            for chunk in self._response.stream(amt=None):
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiException(status=event["object"].get("code"), reason=event["object"].get("message"))
                    yield event["type"], event["object"]
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError):
            return  # closed on the one side or the other, in the middle of a read

    def close(self) -> None:
        """End it, from any thread."""
        try:
            self._response.shutdown()
        except (ValueError, OSError, RuntimeError):
            return  # it had ended
