"""The keys of ``[provider.NAME]`` and ``[pool.NAME.options]``, and the names that follow from them."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Literal

from pydantic import Field, model_validator

from fluxburst_kubernetes.options import LABEL_NAME, Duration, PodOptions, Table

NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MOST = 40
"""Characters in a name of GKE's."""
ZONE = r"[a-z]+-[a-z]+[0-9]+-[a-z]"


class FirewallOptions(Table):
    """``[provider.NAME.firewall]``: the lead's port is opened to the cluster's pods. It is in the same project."""

    network: str = Field(default="default", pattern=NAME)
    """The lead's network."""
    port: int = Field(default=8050, ge=1, le=65535)
    """That the lead binds."""
    target_tags: tuple[str, ...] = ()
    """The network tags of the lead's machine."""
    target_service_accounts: tuple[str, ...] = ()
    """Or the service account that it runs as."""
    sources: tuple[str, ...] = ()
    """CIDRs that may reach it; by default the cluster's range of pod addresses."""

    @model_validator(mode="after")
    def _of_one_machine(self) -> FirewallOptions:
        if bool(self.target_tags) == bool(self.target_service_accounts):
            raise ValueError("name the lead's machine by either target_tags or target_service_accounts")
        return self


class GkeOptions(Table):
    project: str
    """The Google Cloud project's id."""
    location: str
    """The GKE cluster's zone or region."""
    gke_cluster: str = Field(default="", pattern=f"^$|{NAME}", max_length=MOST)
    """The GKE cluster's name; by default ``fluxburst-`` and the ``cluster`` of burst.toml."""
    manage_cluster: bool = False
    """Create the GKE cluster with the first order, where there is none. It costs money as long as it is there."""
    system_machine_type: str = "e2-standard-2"
    """Of the one node that a created cluster has for its own services."""
    network: str = ""
    """Of a created cluster; by default the project's network ``default``."""
    subnetwork: str = ""
    control_plane: Literal["public", "private", "dns"] = "public"
    """Which of the control plane's endpoints is used."""
    namespace: str = Field(default="default", pattern=LABEL_NAME, max_length=63)
    """Where the pods, and what belongs to them, are made. It must exist."""
    request_timeout: Duration = 15.0
    """How long one request may take."""
    firewall: FirewallOptions | None = None
    """A firewall rule to the lead, made with the first order; by default none is."""
    endpoints: dict[Literal["container", "compute", "cloudresourcemanager"], str] = Field(default_factory=dict)
    """Other addresses of Google's services. ``http://`` means plain text without credentials, as in tests."""

    @property
    def zone(self) -> str:
        """The location, if that is a zone."""
        return self.location if re.fullmatch(ZONE, self.location) else ""


class GkePodOptions(PodOptions):
    """The nodes of a pool, and its pods as with the provider ``kubernetes``. GPUs are those of the pool: ``gpus``."""

    machine_type: str
    zones: tuple[str, ...] = ()
    """Where its nodes may be, each zone an offer and a node pool of its own; by default the cluster's own zone."""
    accelerator_type: str = ""
    """Which GPUs, such as ``nvidia-l4``."""
    gpu_driver: Literal["default", "latest", "none"] = "default"
    """Which driver GKE installs."""
    compact: bool = False
    """Compact placement: the nodes of a zone close to each other."""
    disk_type: str = ""
    disk_size_gb: int = Field(default=0, ge=0)
    """By default GKE's own."""
    image_type: str = ""
    """Of the nodes' system, such as ``COS_CONTAINERD``; by default GKE's own."""
    node_service_account: str = ""
    """The Google service account that the nodes run as; by default the project's own."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Further Kubernetes labels of the nodes."""
    resource_labels: dict[str, str] = Field(default_factory=dict)
    """Further Google Cloud labels of the nodes, for bills."""
    node_pool: str = Field(default="", pattern=f"^$|{NAME}", max_length=MOST)
    """The node pool's name; by default it is made of the cluster's and the pool's. Several zones are added to it."""

    @model_validator(mode="after")
    def _one_pod_a_node(self) -> GkePodOptions:
        if self.share_nodes:
            raise ValueError("share_nodes: nodes are bought for one pod each; leave it out")
        return self


def short(name: str) -> str:
    """The name itself or, where it is too long for GKE, its beginning and a digest of it."""
    if len(name) <= MOST:
        return name
    digest = sha256(name.encode()).hexdigest()[:8]
    return f"{name[: MOST - 9].rstrip('-')}-{digest}"


def region_of(zone: str) -> str:
    return zone.rpartition("-")[0]
