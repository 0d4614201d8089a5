"""What Google's clients raise, and what its operations tell, as errors of ours."""

from __future__ import annotations

import pytest
import requests
from google.api_core import exceptions as e
from google.auth import exceptions as auth
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo

from fluxburst.errors import (
    AuthDenied,
    InvalidOrder,
    NoCapacity,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
    Scope,
)
from fluxburst_gke.errors import told, translated


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (e.ResourceExhausted("Quota exceeded for quota metric 'Read requests' per minute"), RateLimited),
        (e.ResourceExhausted("Too many requests"), RateLimited),
        (e.ResourceExhausted("Insufficient regional quota to satisfy request"), QuotaExceeded),
        (e.Forbidden("Quota 'CPUS' exceeded. Limit: 8.0 in region us-central1."), QuotaExceeded),
        (e.Forbidden("Rate Limit Exceeded", errors=[{"reason": "rateLimitExceeded"}]), RateLimited),
        (e.PermissionDenied("Insufficient regional quota to satisfy request"), QuotaExceeded),
        (e.PermissionDenied('Required "container.clusters.update" permission'), AuthDenied),
        (e.Unauthenticated("Request had invalid authentication credentials"), AuthDenied),
        (e.InvalidArgument("Machine type not found"), InvalidOrder),
        (e.NotFound("Not found: projects/p"), InvalidOrder),
        (e.FailedPrecondition("Cluster is running incompatible operation operation-1"), ProviderUnavailable),
        (e.Aborted("try again"), ProviderUnavailable),
        (e.DeadlineExceeded("Deadline Exceeded"), ProviderUnavailable),
        (e.ServiceUnavailable("GCE_STOCKOUT: try another zone"), NoCapacity),
        (e.ServiceUnavailable("failed to connect"), ProviderUnavailable),
        (e.InternalServerError("internal"), ProviderUnavailable),
        (requests.ConnectionError("refused"), ProviderUnavailable),
        (requests.Timeout("late"), ProviderUnavailable),
        (auth.DefaultCredentialsError("no credentials"), AuthDenied),
        (auth.RefreshError("expired", retryable=False), AuthDenied),
        (auth.RefreshError("server", retryable=True), ProviderUnavailable),
        (auth.TransportError("refused"), ProviderUnavailable),
    ],
)
def test_each_refusal_has_its_type(raised: Exception, error: type[ProviderError]) -> None:
    with pytest.raises(ProviderError) as caught, translated("provider gke"):
        raise raised
    assert type(caught.value) is error
    assert str(caught.value).startswith("provider gke: ")
    assert "\n" not in str(caught.value)


def test_a_rate_limit_says_when_to_come_back() -> None:
    pause = RetryInfo(retry_delay=Duration(seconds=7))
    with pytest.raises(RateLimited) as caught, translated("provider gke"):
        raise e.ResourceExhausted("Too many requests", details=[pause])
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("text", "error", "scope"),
    [
        ("GCE_STOCKOUT: Instance 'x' creation failed", NoCapacity, Scope.OFFER),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS: no c2 here", NoCapacity, Scope.OFFER),
        ("QUOTA_EXCEEDED: Quota 'C2_CPUS' exceeded. Limit: 8.0 in region us-central1.", QuotaExceeded, Scope.REGION),
        ("NODE_SERVICE_ACCOUNT_MISSING_PERMISSIONS: roles", AuthDenied, Scope.PROVIDER),
        ("UNKNOWN: something", ProviderUnavailable, Scope.POOL),
    ],
)
def test_what_an_operation_failed_of_has_its_type(text: str, error: type[ProviderError], scope: Scope) -> None:
    found = told(text)
    assert (type(found), found.scope, str(found)) == (error, scope, text)
