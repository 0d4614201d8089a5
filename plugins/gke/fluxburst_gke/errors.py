"""What Google says, as errors of ours in its own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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

SOLD_OUT = ("STOCKOUT", "RESOURCE_POOL_EXHAUSTED", "DOES NOT HAVE ENOUGH RESOURCES", "CURRENTLY UNAVAILABLE")
"""In codes and messages of Compute Engine and GKE: this zone has none of these machines now."""
RATE = ("RATE_LIMIT", "RATELIMIT", "PER MINUTE", "PER SECOND", "PER 100 SECONDS")
"""In what is said of a quota of requests."""


def told(text: str) -> ProviderError:
    """What an operation or a machine failed of, by the code and the words that Google gave.

    A stock-out is of one machine type in one zone, which is one offer. What is none of these is no order's fault that
    anybody could mend, and something may have been bought: it has no clear type.
    """
    upper = text.upper()
    if any(mark in upper for mark in SOLD_OUT):
        return NoCapacity(text, scope=Scope.OFFER)
    if "QUOTA" in upper:
        return QuotaExceeded(text)
    if "PERMISSION" in upper:
        return AuthDenied(text)
    return ProviderUnavailable(text, scope=Scope.POOL)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise what Google's clients raise as a :class:`~fluxburst.errors.ProviderError`.

    Args:
        where: What its message begins with, such as ``provider gke``.
    """
    from google.api_core import exceptions
    from google.auth import exceptions as auth
    from requests import RequestException

    try:
        yield
    except exceptions.GoogleAPICallError as error:
        raise _of_call(error, where) from None
    except auth.TransportError as error:
        raise ProviderUnavailable(f"{where}: no access token: {_line(error)}") from None
    except auth.GoogleAuthError as error:
        if error.retryable:
            raise ProviderUnavailable(f"{where}: no access token: {_line(error)}") from None
        fix = "run `gcloud auth application-default login`, or give the service's machine a service account"
        raise AuthDenied(f"{where}: no access token: {_line(error)}; {fix}") from None
    except (exceptions.RetryError, RequestException) as error:
        raise ProviderUnavailable(f"{where}: no answer: {_line(error)}") from None


def _of_call(error: object, where: str) -> ProviderError:
    from google.api_core import exceptions as e

    assert isinstance(error, e.GoogleAPICallError)
    said = error.message or type(error).__name__
    text, upper = f"{where}: {said}", f"{said} {error.reason or ''} {error.errors or ''}".upper()
    if isinstance(error, (e.TooManyRequests, e.Forbidden)) and any(mark in upper for mark in RATE):
        return RateLimited(text, retry_after_s=_pause(error))
    if any(mark in upper for mark in SOLD_OUT):
        return NoCapacity(text)
    # GKE says of the machines' quota PERMISSION_DENIED or RESOURCE_EXHAUSTED, Compute Engine 403 quotaExceeded
    if isinstance(error, (e.TooManyRequests, e.Forbidden)) and "QUOTA" in upper:
        return QuotaExceeded(text)
    if isinstance(error, e.TooManyRequests):
        return RateLimited(text, retry_after_s=_pause(error))
    if isinstance(error, (e.Forbidden, e.Unauthorized)):
        return AuthDenied(text)
    if isinstance(error, e.FailedPrecondition):
        # such as "Cluster is running incompatible operation …": the same again is fine a moment later
        return ProviderUnavailable(text, scope=Scope.POOL)
    if isinstance(error, (e.BadRequest, e.NotFound, e.MethodNotAllowed)):
        return InvalidOrder(text)
    return ProviderUnavailable(text)


def _pause(error: object) -> float | None:
    """The server's own word on when to come back (google.rpc.RetryInfo)."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.rpc.error_details_pb2 import RetryInfo

    assert isinstance(error, GoogleAPICallError)
    for detail in error.details:
        if isinstance(detail, RetryInfo):
            return float(detail.retry_delay.ToTimedelta().total_seconds())
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
