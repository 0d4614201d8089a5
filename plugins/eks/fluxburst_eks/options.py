"""The keys of ``[provider.NAME]`` and ``[pool.NAME.options]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fluxburst_kubernetes.options import LABEL_NAME, Duration, PodOptions, Table


class EksOptions(Table):
    region: str
    """The cluster's region, such as ``us-east-1``."""
    cluster: str
    """The EKS cluster's name. It must exist."""
    profile: str = ""
    """A profile of ``~/.aws``; by default boto3's own search: environment, files, the machine's role."""
    namespace: str = Field(default="default", pattern=LABEL_NAME, max_length=63)
    """Where the pods, and what belongs to them, are made. It must exist."""
    endpoint_url: str = ""
    """Where all of AWS's APIs are, for private endpoints; by default AWS's own addresses."""
    request_timeout: Duration = 15.0
    """How long one request to AWS or to the API server may take."""


class EksPodOptions(PodOptions):
    """A pool's pods, as with kubernetes, and the node group that they run on."""

    instance_types: tuple[str, ...] = Field(min_length=1)
    """The first is what is offered; all must have the cores that the pool declares."""
    capacity: Literal["on-demand", "spot"] = "on-demand"
    subnets: tuple[str, ...] = ()
    """By default the cluster's own. Name one where the nodes of a gang should be in one zone."""
    node_role: str
    """The ARN of the role that the nodes have."""
    ami_type: str = ""
    """Such as ``AL2023_x86_64_NVIDIA``; by default EKS chooses by the instance types."""
    disk: int | None = Field(default=None, gt=0)
    """Gibibytes of each node's root volume; by default 20."""
    launch_template: str = ""
    """A launch template's id, for what a node group does not know: placement group, EFA, disks, machines' tags."""
    launch_template_version: str = ""
    """By default the template's default version at the time when the node group is made."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Further labels of the nodes."""
    node_group: str = Field(default="", max_length=63)
    """The node group's name; by default ``fluxburst-CLUSTER-POOL``. One that is not fluxburst's own is left alone."""
    max_size: int | None = Field(default=None, gt=0)
    """By default as many nodes as the pool declares hosts."""
    keep_node_group: bool = True
    """Leave the node group at zero nodes, which costs nothing, until the next burst. Otherwise it is deleted."""
    join_time: Duration | None = 150.0
    """The provider's guess until there are samples."""

    @field_validator("share_nodes")
    @classmethod
    def _does_not_share(cls, value: bool) -> bool:
        if value:
            raise ValueError("a node group has one machine for each pod; take smaller instance types instead")
        return value

    @field_validator("spot", "instance_type")
    @classmethod
    def _follows(cls, value: object) -> object:
        raise ValueError(f"{value!r} follows from capacity and instance_types; leave it out")

    @model_validator(mode="after")
    def _launch_template_goes_alone(self) -> EksPodOptions:
        if self.launch_template and self.disk is not None:
            raise ValueError("with a launch_template, the disk belongs into the template")
        if self.launch_template_version and not self.launch_template:
            raise ValueError("launch_template_version goes with launch_template")
        return self
