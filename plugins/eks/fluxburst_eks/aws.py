"""AWS's APIs through boto3: dictionaries in and out, errors of ours in AWS's own words.

What is tried again is botocore's own affair (retry mode ``standard``): a few times within a call. After that the
controller decides, with pauses of its own.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fluxburst.errors import (
    AuthDenied,
    InvalidOrder,
    NoCapacity,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
)

if TYPE_CHECKING:
    from boto3.session import Session
    from botocore.exceptions import ClientError

    from fluxburst_eks.options import EksOptions

ATTEMPTS = 3
CONNECTIONS = 16

_NOT_FOUND = frozenset({"ResourceNotFoundException", "NoSuchResourceException", "NoSuchEntity"})
_THROTTLED = frozenset(
    {
        "EC2ThrottledException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "Throttling",
        "ThrottledException",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IDPRejectedClaim",
        "InvalidClientTokenId",
        "InvalidIdentityToken",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    }
)
_QUOTA = frozenset(
    {
        "InstanceLimitExceeded",
        "LimitExceeded",
        "LimitExceededException",
        "MaxSpotInstanceCountExceeded",
        "ResourceLimitExceededException",
        "ServiceQuotaExceededException",
        "VcpuLimitExceeded",
    }
)
_SOLD_OUT = frozenset(
    {
        "InsufficientCapacity",
        "InsufficientHostCapacity",
        "InsufficientInstanceCapacity",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
    }
)
_REFUSED = frozenset(
    {"ClientException", "Unsupported", "UnsupportedOperation", "ValidationError", "ValidationException"}
)
"""Beside all codes that begin with ``Invalid``."""
_NOT_READY = re.compile(r"\bnot (in|in an) active\b|\bnot active\b", re.IGNORECASE)
"""In a refusal of EKS: the cluster or the node group will be, without a change of the request."""


class NotFound(Exception):
    """AWS knows nothing of that name."""


class Aws:
    """One account's way to AWS. Thread-safe; nothing is read and nobody talked to before the first call.

    Args:
        where: What errors begin with, such as ``provider eks``.
        options: The region, the credentials and the limits.
    """

    def __init__(self, where: str, options: EksOptions) -> None:
        self.where = where
        self.region = options.region
        self._options = options
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._clients: dict[tuple[str, str], Any] = {}

    def call(self, service: str, operation: str, *, region: str = "", **arguments: Any) -> dict[str, Any]:
        """One request, such as ``call("eks", "describe_cluster", name="hpc")``.

        Raises:
            NotFound: there is nothing of that name.
            ProviderError: anything else, in AWS's own words.
        """
        with self._told():
            answer: dict[str, Any] = getattr(self.client(service, region), operation)(**arguments)
        return answer

    def all(self, service: str, operation: str, key: str, **arguments: Any) -> list[Any]:
        """What all pages of a listing have under ``key``; raises as :meth:`call` does rather than return a part."""
        with self._told():
            pages = self.client(service).get_paginator(operation).paginate(**arguments)
            return [item for page in pages for item in page[key]]

    def client(self, service: str, region: str = "") -> Any:
        """boto3's client of a service, which threads may share; sessions they may not."""
        from botocore.config import Config

        region = region or self.region
        with self._lock:
            if (service, region) not in self._clients:
                timeout_s = self._options.request_timeout
                config = Config(
                    connect_timeout=timeout_s,
                    read_timeout=timeout_s,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    max_pool_connections=CONNECTIONS,
                    user_agent_extra="fluxburst",
                )
                self._clients[service, region] = self._open().client(
                    service, region, endpoint_url=self._options.endpoint_url or None, config=config
                )
            return self._clients[service, region]

    def presign(self, url: str, headers: dict[str, str], valid_s: int) -> str:
        """A GET of STS, signed with the present credentials; ``url`` begins at the service's root.

        Raises:
            AuthDenied: there are no credentials.
        """
        from botocore.signers import RequestSigner

        with self._told():
            sts = self.client("sts")
            with self._lock:
                session = self._open()
                # looked up each time: they may be others by now
                credentials = session.get_credentials()
            signer = RequestSigner(
                sts.meta.service_model.service_id, self.region, "sts", "v4", credentials, session.events
            )
            request = {
                "method": "GET",
                "url": f"{sts.meta.endpoint_url}{url}",
                "body": {},
                "headers": headers,
                "context": {},
            }
            signed: str = signer.generate_presigned_url(request, operation_name="", expires_in=valid_s)
        return signed

    def close(self) -> None:
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    def _open(self) -> Session:
        from boto3.session import Session

        if self._session is None:
            self._session = Session(profile_name=self._options.profile or None, region_name=self.region)
        return self._session

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise botocore's errors as ours."""
        from botocore import exceptions as fault

        try:
            yield
        except fault.ClientError as error:
            if error.response.get("Error", {}).get("Code") in _NOT_FOUND:
                raise NotFound(_message(error)) from None
            raise _typed(self.where, error) from None
        except (
            fault.NoCredentialsError,
            fault.PartialCredentialsError,
            fault.CredentialRetrievalError,
            fault.ProfileNotFound,
            fault.TokenRetrievalError,
            fault.SSOError,
        ) as error:
            raise AuthDenied(f"{self.where}: no credentials for AWS: {error}") from None
        except fault.ParamValidationError as error:
            raise InvalidOrder(f"{self.where}: {' '.join(str(error).split())}") from None
        except fault.BotoCoreError as error:
            raise ProviderUnavailable(f"{self.where}: AWS gives no answer: {error}") from None


def kind_of(code: str, message: str = "") -> type[ProviderError]:
    """What one of AWS's error codes means; one that is not known means that the outcome is not, either."""
    if code == "InvalidRequestException" and _NOT_READY.search(message):
        return ProviderUnavailable
    for codes, kind in (
        (_THROTTLED, RateLimited),
        (_DENIED, AuthDenied),
        (_QUOTA, QuotaExceeded),
        (_SOLD_OUT, NoCapacity),
        (_REFUSED, InvalidOrder),
    ):
        if code in codes:
            return kind
    return InvalidOrder if code.startswith("Invalid") else ProviderUnavailable


def _typed(where: str, error: ClientError) -> ProviderError:
    """By its code alone: EC2 says that it is sold out, or asked too often, with a status that is a server's fault."""
    said, told = error.response.get("Error", {}), f"{where}: {_message(error)}"
    kind = kind_of(said.get("Code", ""), said.get("Message", ""))
    if kind is RateLimited:
        after = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
        return RateLimited(told, retry_after_s=float(after) if after.isdecimal() else None)
    return kind(told)


def _message(error: ClientError) -> str:
    """``CODE: MESSAGE (OPERATION)``; an STS message about permissions may be encoded, and is cut."""
    said = error.response.get("Error", {})
    message = re.sub(r"(Encoded authorization failure message: )\S+", r"\1...", said.get("Message", ""))
    return f"{said.get('Code', 'unknown')}: {message} ({error.operation_name})"
