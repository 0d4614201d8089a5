"""A firewall rule that lets a cluster's pods reach a lead in the same project."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxburst.errors import InvalidOrder
from fluxburst.provider import ProviderContext
from fluxburst_gke.google import Google
from fluxburst_gke.options import FirewallOptions, short

if TYPE_CHECKING:
    from google.cloud import compute_v1


def rule_name(context: ProviderContext) -> str:
    return short(f"fb-{context.cluster}-{context.name}-lead")


def owner_of(context: ProviderContext) -> str:
    """What the rule's description is: firewall rules have no labels."""
    return f"managed-by=fluxburst fluxburst-cluster={context.cluster} fluxburst-provider={context.name}"


def rule(context: ProviderContext, project: str, wanted: FirewallOptions, pods: str) -> compute_v1.Firewall:
    """The rule as it has to be.

    Args:
        context: Whose it is.
        project: The lead's, which is the cluster's.
        wanted: ``[provider.NAME.firewall]``.
        pods: The cluster's range of pod addresses, as CIDR.
    """
    from google.cloud import compute_v1

    return compute_v1.Firewall(
        name=rule_name(context),
        description=owner_of(context),
        network=f"projects/{project}/global/networks/{wanted.network}",
        direction="INGRESS",
        source_ranges=list(wanted.sources or (pods,)),
        target_tags=list(wanted.target_tags),
        target_service_accounts=list(wanted.target_service_accounts),
        allowed=[compute_v1.Allowed(I_p_protocol="tcp", ports=[str(wanted.port)])],
    )


def open_to(google: Google, context: ProviderContext, where: str, wanted: compute_v1.Firewall) -> bool:
    """Make the rule, or make it so; whether it was so already.

    Raises:
        InvalidOrder: there is one of its name that others made.
        ProviderError: Google refuses.
    """
    found = google.firewall(wanted.name)
    if found is None:
        google.create_firewall(wanted)
        return False
    if found.description != owner_of(context):
        raise InvalidOrder(
            f"{where}: firewall rule {wanted.name} was not made by this provider, which leaves it as it is; "
            "delete or rename it, or leave [provider.NAME.firewall] out and open the port yourself"
        )
    if is_so(found, wanted):
        return True
    google.change_firewall(wanted)
    return False


def is_so(found: compute_v1.Firewall, wanted: compute_v1.Firewall) -> bool:
    """Whether a rule lets in what it has to, and nothing else. Google writes the network as a whole address."""
    return (
        found.network.endswith(wanted.network)
        and not found.disabled
        and all(
            sorted(getattr(found, key)) == sorted(getattr(wanted, key))
            for key in ("source_ranges", "target_tags", "target_service_accounts")
        )
        and [(one.I_p_protocol, list(one.ports)) for one in found.allowed]
        == [(one.I_p_protocol, list(one.ports)) for one in wanted.allowed]
    )
