"""What the Flux Operator does with a MiniCluster, for tests.

It makes the same objects under the same names, and its pods start the same brokers with the same options, as the
sources of the operator of June 2026 say (github.com/flux-framework/flux-operator; the files are named where it
matters). Left out is what follower-only MiniClusters do not ask for: Flux views, commands and batch jobs, services
beside the cluster, certificates of its own, clean-up after the first pod.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any, Self

from kubernetes.client.exceptions import ApiException

from tests.kube.api import Api, Object, Watch

GROUP = "flux-framework.org"
ROOT = "/mnt/flux"
CONFIG = f"{ROOT}/config"
MERGE = "application/merge-patch+json"

INIT = """\
#!/bin/sh
mkdir -p {config}/etc/flux/config {config}/etc/flux/system/cron.d {config}/var/lib/flux {config}/run/flux
cat <<EOT >> {config}/etc/flux/config/broker.toml
{broker_config}
EOT
cat {config}/etc/flux/config/broker.toml
cat /flux_operator/curve.cert
touch {root}/flux-operator-done.txt
"""
"""Writes the broker's configuration, by an unquoted here-document, and shows that and the certificate, quiet or not
(pkg/flux/view.go)."""

WAIT = """\
#!/bin/sh
{init} > /dev/null
mkdir -p {config}/curve
cp /flux_operator/curve.cert {config}/curve/curve.cert
chmod o-r {config}/curve/curve.cert
chmod g-r {config}/curve/curve.cert
{pre} > /dev/null 2>&1
options="-Scron.directory={config}/etc/flux/system/cron.d -Stbon.fanout=256 -Srundir={config}/run/flux {rc2} \
  -Sstatedir={config}/var/lib/flux -Slocal-uri=local://{config}/run/flux/local -Stbon.connect_timeout=5s {topology} \
  -Sbroker.quorum={size} -Slog-stderr-level={level} -Slog-stderr-mode=local"
if [ $(hostname) == "{name}-0" ]; then
    flux broker --config-path {config}/etc/flux/config $options
else
    while true; do
        flux start -o --config {config}/etc/flux/config $options
        status=$?
        if [ $status -eq 0 ] || [ "{complete}" == "true" ]; then break; fi
        sleep 15
    done
fi
touch {root}/flux-operator-complete.txt
"""
"""Runs index 0's broker once, and the others' again and again unless ``completeWorkers`` says so; ends with 0 whatever
they ended with (pkg/flux/templates/wait.sh)."""


class Operator(AbstractContextManager["Operator"]):
    """The operator of one namespace, until the end of the context."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._path = f"/apis/{GROUP}/v1alpha2/namespaces/{namespace}/miniclusters"
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self.trouble: list[BaseException] = []

    def __enter__(self) -> Self:
        listed = self._api.get(self._path)
        self._watch = self._api.watch(self._path, resourceVersion=listed["metadata"]["resourceVersion"])
        self._found = listed["items"]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._watch is not None
        self._watch.close()
        self._thread.join()
        assert not self.trouble, self.trouble

    def _run(self) -> None:
        assert self._watch is not None
        try:
            for found in self._found:
                self._take(found)
            for kind, found in self._watch:
                if kind != "DELETED" and "deletionTimestamp" not in found["metadata"]:
                    self._take(found)
        except ApiException as error:
            self.trouble.append(error)

    def _take(self, found: Object) -> None:
        try:
            self._reconcile(found)
        except ApiException as error:
            if error.status != 404:
                raise  # else it was deleted meanwhile

    def _reconcile(self, found: Object) -> None:
        """What is there stays as it is, but for the Job's size (controllers/flux/minicluster.go and scale.go)."""
        name, spec = found["metadata"]["name"], found["spec"]
        core = f"/api/v1/namespaces/{self._namespace}"
        jobs = f"/apis/batch/v1/namespaces/{self._namespace}/jobs"
        self._make(f"{core}/configmaps", found, config_map(found))
        headless = {"clusterIP": "None", "selector": {"job-name": name}}
        service = {"metadata": {"name": spec["network"]["headlessName"]}, "spec": headless}
        self._make(f"{core}/services", found, service)
        self._make(jobs, found, job(found))
        most = found.get("status", {}).get("maximumSize") or max(spec["size"], spec.get("maxSize", 0))
        there = self._api.get(f"{jobs}/{name}")
        if there["spec"]["parallelism"] != spec["size"] and 1 <= spec["size"] <= most:
            size = {"parallelism": spec["size"], "completions": spec["size"]}
            self._api.patch(f"{jobs}/{name}", {"spec": size})
        status = {"maximumSize": most, "size": spec["size"], "selector": f"hpa-selector={name}", "jobid": ""}
        if {**found.get("status", {}), **status} != found.get("status"):
            self._api.request("PATCH", f"{self._path}/{name}/status", {"status": status}, MERGE)

    def _make(self, path: str, owner: Object, body: Object) -> None:
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        try:
            self._api.post(path, {**body, "metadata": {**body["metadata"], "ownerReferences": [reference]}})
        except ApiException as error:
            if error.status != 409:
                raise


def config_map(found: Object) -> Object:
    """The entry points, and the certificate (pkg/flux/entrypoint.go)."""
    name, spec = found["metadata"]["name"], found["spec"]
    flux, commands = spec["flux"], spec["containers"][0].get("commands", {})
    quiet = spec.get("logging", {}).get("quiet", False)
    assert quiet, "without it, the scripts differ"
    wait = WAIT.format(
        config=CONFIG,
        root=ROOT,
        name=name,
        size=spec["size"],
        init=commands.get("init", ""),
        pre=commands.get("pre", ""),
        rc2="-Sbroker.rc2_none" if spec.get("interactive") else "",
        topology=f"-Stbon.topo={flux['topology']}" if flux.get("topology") else "",
        level=0,
        complete="true" if flux.get("completeWorkers") else "false",
    )
    init = INIT.format(config=CONFIG, root=ROOT, broker_config=flux["brokerConfig"])
    data = {"wait-0": wait, "flux-view": init, "curve.cert": flux["curveCert"]}
    return {"metadata": {"name": f"{name}-entrypoint"}, "data": data}


def job(found: Object) -> Object:
    """See controllers/flux/job.go, containers.go and volumes.go."""
    name, spec = found["metadata"]["name"], found["spec"]
    pod, container, view = spec.get("pod", {}), spec["containers"][0], spec["flux"]["container"]
    assert view.get("disable"), "the image's own Flux"
    labels = {**pod.get("labels", {}), "namespace": found["metadata"]["namespace"], "app": "flux-operator"}
    labels |= {"app.kubernetes.io/name": name, "hpa-selector": name}
    items = [
        {"key": "wait-0", "path": "wait-0.sh", "mode": 0o777},
        {"key": "flux-view", "path": "flux-init.sh", "mode": 0o777},
        {"key": "curve.cert", "path": "curve.cert"},
    ]
    mounts = [
        {"name": "flux-operator-home", "mountPath": "/home/flux-operator"},
        {"name": "flux-view", "mountPath": ROOT},
        {"name": f"{name}-entrypoint", "mountPath": "/flux_operator/", "readOnly": True},
    ]
    apart = {"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "In", "values": [name]}]}
    preferred = [{"weight": 100, "podAffinityTerm": {"labelSelector": apart, "topologyKey": "kubernetes.io/hostname"}}]
    secrets = [one["imagePullSecret"] for one in spec["containers"] if one.get("imagePullSecret")]
    environment = [{"name": key, "value": value} for key, value in container.get("environment", {}).items()]
    main = {
        "name": name,
        "image": container["image"],
        "imagePullPolicy": container.get("imagePullPolicy", "IfNotPresent"),
        "command": ["/bin/bash", "/flux_operator/wait-0.sh"],
        "volumeMounts": [*mounts, {"name": "spack-software", "mountPath": "/opt/software"}],
        "stdin": True,
        "tty": True,
        "resources": container.get("resources", {}),
        "env": environment,
    }
    if hook := container.get("lifeCycle", {}).get("preStopExec"):
        main["lifecycle"] = {"preStop": {"exec": {"command": [hook]}}}
    init = {
        "name": "flux-view",
        "image": view["image"],
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/bash", "/flux_operator/flux-init.sh"],
        "volumeMounts": mounts,
        "stdin": True,
        "tty": True,
    }
    template: dict[str, Any] = {
        "subdomain": spec["network"]["headlessName"],
        "setHostnameAsFQDN": False,
        "restartPolicy": "OnFailure",
        "serviceAccountName": pod.get("serviceAccountName", ""),
        "automountServiceAccountToken": pod.get("automountServiceAccountToken", False),
        "nodeSelector": pod.get("nodeSelector", {}),
        "tolerations": pod.get("tolerations", []),
        "imagePullSecrets": [{"name": secret} for secret in secrets],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
        "initContainers": [init],
        "containers": [main],
        "volumes": [
            {"name": "spack-software", "emptyDir": {}},
            {"name": "flux-operator-home", "emptyDir": {}},
            {"name": "flux-view", "emptyDir": {}},
            {"name": f"{name}-entrypoint", "configMap": {"name": f"{name}-entrypoint", "items": items}},
        ],
    }
    return {
        "metadata": {"name": name, "labels": spec.get("jobLabels", {})},
        "spec": {
            "backoffLimit": spec.get("backoffLimit") or 100,
            "completions": spec["size"],
            "parallelism": spec["size"],
            "completionMode": "Indexed",
            "activeDeadlineSeconds": spec["deadlineSeconds"],
            "template": {"metadata": {"labels": labels, "annotations": pod.get("annotations", {})}, "spec": template},
        },
    }
