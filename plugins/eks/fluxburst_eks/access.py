"""The way from AWS's credentials into the cluster: its endpoint, its authority, and a token that is a signed URL."""

from __future__ import annotations

import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fluxburst.errors import InvalidOrder, ProviderUnavailable
from fluxburst_eks.aws import Aws, NotFound

if TYPE_CHECKING:
    from kubernetes.client import Configuration

    from fluxburst_kubernetes.cluster import Configure

SIGNED_S = 60
TOKEN_S = 600.0
"""A token is renewed when it is so old. EKS takes each for 15 minutes from its signature."""


def describe(aws: Aws, cluster: str) -> dict[str, Any]:
    """The EKS cluster.

    Raises:
        InvalidOrder: there is none.
        ProviderError: it cannot be asked after.
    """
    try:
        found: dict[str, Any] = aws.call("eks", "describe_cluster", name=cluster)["cluster"]
    except NotFound as error:
        raise InvalidOrder(f"{aws.where}: {error}; [provider] region and cluster name it") from None
    return found


def token(aws: Aws, cluster: str) -> str:
    """A bearer token for the cluster's API server: STS's GetCallerIdentity, signed for this cluster."""
    query = "/?Action=GetCallerIdentity&Version=2011-06-15"
    signed = aws.presign(query, {"x-k8s-aws-id": cluster}, SIGNED_S)
    return "k8s-aws-v1." + urlsafe_b64encode(signed.encode()).decode().rstrip("=")


def by_eks(aws: Aws, cluster: str, clock: Callable[[], float] = time.monotonic) -> Configure:
    """The way into an EKS cluster. After a refusal it is looked up again, with a new token."""

    def configure(configuration: Configuration) -> None:
        found = describe(aws, cluster)
        if "endpoint" not in found:
            raise ProviderUnavailable(f"{aws.where}: cluster {cluster} is {found['status']}, and has no endpoint yet")
        configuration.host = found["endpoint"]
        # as text: bytes would be taken for DER
        configuration.ca_cert_data = b64decode(found["certificateAuthority"]["data"]).decode()
        renewed_at = float("-inf")

        def renew(used: Configuration) -> None:
            nonlocal renewed_at
            # two threads that both find it old make two tokens, which are equally good
            if clock() - renewed_at >= TOKEN_S:
                used.api_key["BearerToken"] = f"Bearer {token(aws, cluster)}"
                renewed_at = clock()

        renew(configuration)
        configuration.refresh_api_key_hook = renew  # type: ignore[assignment]

    return configure
