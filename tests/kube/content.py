"""What a pod's containers find: the values of their environment, and the files of their volumes."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubernetes.client.exceptions import ApiException

from tests.kube.api import Api, Object

ACCOUNT_TOKEN_S = 3600
REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][\w.-]*)\)")
KEYED = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


class NotThere(Exception):
    """A Secret, a ConfigMap or a key in it that a pod needs is not there yet; in a kubelet's words."""


class Content:
    """One pod's view of the cluster.

    Args:
        api: The kubelet's.
        pod: The pod, bound to a node.
        status: What only the kubelet knows of it: podIP, podIPs and hostIP.
    """

    def __init__(self, api: Api, pod: Object, status: Mapping[str, Any]) -> None:
        self._api = api
        self._pod = pod
        self._status = status
        self._namespace: str = pod["metadata"]["namespace"]

    def environment(self, container: Mapping[str, Any], base: Mapping[str, str]) -> dict[str, str]:
        """A container's environment; ``base`` is what it has without its manifest.

        Raises:
            NotThere: Something that it refers to is not there.
        """
        found = dict(base)
        for source in container.get("envFrom", ()):
            for kind in ("configMapRef", "secretRef"):
                if kind in source:
                    data = self._data(kind.removesuffix("Ref"), source[kind]["name"], source[kind].get("optional"))
                    found |= {source.get("prefix", "") + key: value.decode() for key, value in data.items()}
        for variable in container.get("env", ()):
            value = self._value(variable, found)
            if value is not None:
                found[variable["name"]] = value
        return found

    def write_volume(self, volume: Mapping[str, Any], directory: Path) -> Path:
        """Make what a volume has, and return where it is: in ``directory``, but for a hostPath.

        Raises:
            NotThere: Something that it refers to is not there.
        """
        if "hostPath" in volume:
            path = Path(volume["hostPath"]["path"])
            if volume["hostPath"].get("type") == "DirectoryOrCreate":
                path.mkdir(parents=True, exist_ok=True)
            elif not path.exists():
                raise NotThere(f"hostPath type check failed: {path} does not exist")
            return path
        if "emptyDir" in volume:
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o777)
            return directory
        if "projected" in volume:
            mode = volume["projected"].get("defaultMode", 0o644)
            sources = volume["projected"]["sources"]
        else:
            kind = next(kind for kind in volume if kind != "name")
            mode = volume[kind].get("defaultMode", 0o644)
            sources = [{kind: volume[kind]}]
        files: dict[str, tuple[bytes, int]] = {}
        for source in sources:
            files |= self._files(source, mode)
        shutil.rmtree(directory, ignore_errors=True)  # of a try before
        directory.mkdir(parents=True)
        for name, (data, mode) in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_bytes(data)
            path.chmod(mode)
        return directory

    def _value(self, variable: Mapping[str, Any], known: Mapping[str, str]) -> str | None:
        source = variable.get("valueFrom")
        if source is None:
            return expand(variable.get("value", ""), known)
        if "fieldRef" in source:
            return self._field(source["fieldRef"]["fieldPath"])
        for kind in ("configMapKeyRef", "secretKeyRef"):
            if kind in source:
                reference = source[kind]
                optional = reference.get("optional")
                data = self._data(kind.removesuffix("KeyRef"), reference["name"], optional)
                if reference["key"] in data:
                    return data[reference["key"]].decode()
                if optional:
                    return None
                named = f"{kind.removesuffix('KeyRef')} {self._namespace}/{reference['name']}"
                raise NotThere(f"couldn't find key {reference['key']} in {named}")
        raise NotThere(f"the tests' kubelet knows no {next(iter(source))}")

    def _files(self, source: Mapping[str, Any], mode: int) -> dict[str, tuple[bytes, int]]:
        """The files of one source of a volume with their modes, by their paths."""
        if "downwardAPI" in source:
            items = source["downwardAPI"].get("items", ())
            return {
                item["path"]: (self._field(item["fieldRef"]["fieldPath"]).encode(), item.get("mode", mode))
                for item in items
            }
        if "serviceAccountToken" in source:
            token = self._account_token(source["serviceAccountToken"])
            return {source["serviceAccountToken"]["path"]: (token.encode(), 0o600)}
        kind = next((kind for kind in ("secret", "configMap") if kind in source), None)
        if kind is None:
            raise NotThere(f"the tests' kubelet knows no {next(iter(source))} volume")
        wanted = source[kind]
        name = wanted.get("secretName") or wanted["name"]
        data = self._data(kind, name, wanted.get("optional"))
        if "items" not in wanted:
            return {key: (value, mode) for key, value in data.items()}
        found = {}
        for item in wanted["items"]:
            if item["key"] in data:
                found[item["path"]] = (data[item["key"]], item.get("mode", mode))
            elif not wanted.get("optional"):
                raise NotThere(f"references non-existent {kind.lower()} key: {item['key']}")
        return found

    def _data(self, kind: str, name: str, optional: object) -> dict[str, bytes]:
        collection = "secrets" if kind == "secret" else "configmaps"
        try:
            found = self._api.get(f"/api/v1/namespaces/{self._namespace}/{collection}/{name}")
        except ApiException as error:
            if error.status != 404:
                raise
            if optional:
                return {}
            raise NotThere(f'{kind.lower()} "{name}" not found') from error
        if kind == "secret":
            return {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}
        text = {key: value.encode() for key, value in found.get("data", {}).items()}
        return text | {key: base64.b64decode(value) for key, value in found.get("binaryData", {}).items()}

    def _account_token(self, wanted: Mapping[str, Any]) -> str:
        account = self._pod["spec"]["serviceAccountName"]
        metadata = self._pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        spec: Object = {
            "expirationSeconds": wanted.get("expirationSeconds", ACCOUNT_TOKEN_S),
            "boundObjectRef": bound,
            "audiences": [wanted["audience"]] if "audience" in wanted else [],
        }
        answer = self._api.post(
            f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        token: str = answer["status"]["token"]
        return token

    def _field(self, path: str) -> str:
        """What the downward API tells of a field."""
        if keyed := KEYED.fullmatch(path):
            value: str = self._pod["metadata"].get(keyed[1], {}).get(keyed[2], "")
            return value
        if path in ("metadata.labels", "metadata.annotations"):
            values = self._pod["metadata"].get(path.removeprefix("metadata."), {})
            return "".join(f"{key}={json.dumps(value)}\n" for key, value in sorted(values.items()))
        room, field = path.split(".")
        if path == "status.podIPs":
            return ",".join(entry["ip"] for entry in self._status["podIPs"])
        known: Mapping[str, Any] = self._status if room == "status" else self._pod[room]
        return str(known[field])


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Kubernetes' own $(NAME); what is not known stays, and $$ is a dollar."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return REFERENCE.sub(replace, text)
