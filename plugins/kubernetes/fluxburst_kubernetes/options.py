"""The keys of ``[provider.NAME]`` and ``[pool.NAME.options]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from fluxburst import bootkit, durations
from fluxburst_kubernetes import merge

Duration = Annotated[float, BeforeValidator(durations.parse)]
"""A Flux Standard Duration in the file, seconds in the model."""

LABEL_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KubernetesOptions(Table):
    kubeconfig: Path | None = None
    """By default ``KUBECONFIG``, then ``~/.kube/config``; inside a cluster, the pod's own service account."""
    context: str = ""
    """The kubeconfig's context; by default its current one."""
    namespace: str = Field(default="default", pattern=LABEL_NAME, max_length=63)
    """Where the pods, and what belongs to them, are made. It must exist."""
    request_timeout: Duration = 15.0
    """How long one request to the API server may take."""
    workload: Literal["job", "minicluster"] = "job"
    """What an order becomes: an Indexed Job, or a MiniCluster of the Flux Operator."""
    mode: Literal["create", "resize"] = "create"
    """Whether an order's pods are made anew, or are more of the MiniCluster that the lead itself is in; that has the
    name of the pool's hosts, and no ``workload`` has to be named."""


class NodeOptions(Table):
    """What there is to say of a pool whose pods somebody else describes."""

    spot: bool = False
    """What the pool's nodes are, for jobs that ask for spot or on-demand nodes; say which by ``node_selector``."""
    instance_type: str = "pod"
    """What offers call the nodes."""
    join_time: Duration | None = None
    """The provider's guess until there are samples; with a cluster autoscaler some minutes."""
    schedule_timeout: Duration = 600.0
    """A pod for which there is no place, or whose image's registry gives no answer, has failed after so long."""


class PodOptions(NodeOptions):
    """How the pods of a pool are made. Tables without a description are as in the API's own PodSpec."""

    image: str
    """An image with Flux of the lead's version. It needs ``/bin/sh`` and coreutils, and no entry point."""
    flux: str = "flux"
    """The Flux executable in the image: a path, or a name on its PATH."""
    image_pull_policy: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets in the namespace."""
    service_account: str = ""
    """By default the namespace's own. Its token is mounted only where one is named."""
    share_nodes: bool = False
    """Let several of these pods run on one machine. Otherwise each has one of its own."""
    requests: dict[str, str] = Field(default_factory=dict)
    """By default the pool's cores less half a core for what a machine runs itself, and its GPUs."""
    limits: dict[str, str] = Field(default_factory=dict)
    """By default the GPUs alone."""
    gpu_resource: str = "nvidia.com/gpu"
    """The name of the resource that the pool's GPUs are."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    """Variables of the broker, and so of the jobs that it runs."""
    volumes: tuple[dict[str, Any], ...] = ()
    volume_mounts: tuple[dict[str, Any], ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    """Further labels of the pods."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Further annotations of the pods."""
    priority_class: str = ""
    retries: int = Field(default=3, ge=0)
    """How often a broker that ended with an error is started again in its pod."""
    lead_timeout: Duration = bootkit.LEAD_TIMEOUT_S
    """A broker that finds no lead for so long ends its pod, so that none outlives a lead that is gone for good."""
    grace: Duration = 30.0
    """How long a broker may take to leave before its pod is killed."""
    max_lifetime: Duration | None = None
    """The cluster itself ends an order's pods after so long, whatever runs on them; longer than the longest job."""
    patch: dict[str, Any] = Field(default_factory=dict)
    """A strategic merge patch of the pod template, for everything else; the container is called ``follower``."""

    @field_validator("patch", "volumes", "volume_mounts")
    @classmethod
    def _can_be_merged(cls, value: Any, info: ValidationInfo) -> Any:
        called = {"volumes": "volumes", "volume_mounts": "volumeMounts"}.get(info.field_name or "")
        if wrong := list(merge.faults({called: value} if called else value)):
            raise ValueError("; ".join(wrong))
        return value
