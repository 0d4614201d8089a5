"""Every error that fluxburst raises.

::

    FluxburstError                 one line for people: what, where, and the fix
    ├── ConfigError                burst.toml or a Flux TOML file is wrong; names the table, the key and the fix
    ├── JobspecError               a jobspec that cannot be read, or asks for what is not supported
    ├── OptionError                a job's ``burst.*`` option is unknown or malformed
    ├── IllegalTransition          a node was to change to a state that its present one does not allow
    ├── StoreError                 the state directory cannot be used
    ├── RequestError               an RPC or a command asked for something that does not exist
    ├── InstanceError              the Flux instance refused a call
    │   ├── BindingsMissing        the Flux Python bindings cannot be imported
    │   └── Disconnected           the connection to the broker is gone
    └── ProviderError              a provider could not do what it was asked; has a ``scope`` that it poisons
        ├── NoCapacity             nothing of this offer is to be had now
        ├── QuotaExceeded          the account's limit is reached
        ├── AuthDenied             credentials are missing, expired or not allowed to do this
        ├── InvalidOrder           the provider will never accept this order as it is
        ├── RateLimited            asked too often; ``retry_after_s`` says when to come back
        └── ProviderUnavailable    no clear answer: the order may or may not exist, only a listing decides
"""

from __future__ import annotations

from enum import StrEnum


class FluxburstError(Exception):
    """The root of the tree. ``str(error)`` is one line written for the person who has to act on it."""


class ConfigError(FluxburstError):
    """A configuration file is wrong. The message names file, table, key and fix."""


class JobspecError(FluxburstError):
    """A jobspec that cannot be read, or that asks for what is not supported."""


class OptionError(FluxburstError):
    """A ``burst.*`` option of a job is unknown or malformed; the message names the key."""


class IllegalTransition(FluxburstError):
    """A node was to change to a state that its present one does not allow."""


class StoreError(FluxburstError):
    """The state directory cannot be used: not writable, in use, or of another version."""


class RequestError(FluxburstError):
    """An administrator's or a user's request names something that does not exist or is not allowed."""


class InstanceError(FluxburstError):
    """The Flux instance refused a call."""


class BindingsMissing(InstanceError):
    """``import flux`` failed; the message says how to mend it."""


class Disconnected(InstanceError):
    """The connection to the broker is gone. The service reconnects."""


class Scope(StrEnum):
    """How far a provider's error reaches: what should not be tried again for a while.

    OFFER is one offer of one pool; ZONE and REGION are all of the provider's offers there, in whatever pool, and the
    pool where the offer names neither.
    """

    OFFER = "offer"
    ZONE = "zone"
    REGION = "region"
    POOL = "pool"
    PROVIDER = "provider"


class ProviderError(FluxburstError):
    """A provider could not do what it was asked.

    ``scope`` is what the error poisons (see :class:`Scope`).
    """

    default_scope = Scope.POOL

    def __init__(self, message: str, *, scope: Scope | None = None) -> None:
        super().__init__(message)
        self.scope = scope or self.default_scope


class NoCapacity(ProviderError):
    """Nothing of this offer is to be had now; another offer or zone may have it."""

    default_scope = Scope.OFFER


class QuotaExceeded(ProviderError):
    """The account's limit is reached; buying elsewhere in the same region will not help."""

    default_scope = Scope.REGION


class AuthDenied(ProviderError):
    """Credentials are missing, expired or not allowed to do this."""

    default_scope = Scope.PROVIDER


class InvalidOrder(ProviderError):
    """The provider will never accept this order as it is; trying again is useless."""

    default_scope = Scope.POOL


class RateLimited(ProviderError):
    """Asked too often. ``retry_after_s`` is the provider's own word, where it gave one."""

    default_scope = Scope.PROVIDER

    def __init__(self, message: str, *, retry_after_s: float | None = None, scope: Scope | None = None) -> None:
        super().__init__(message, scope=scope)
        self.retry_after_s = retry_after_s


class ProviderUnavailable(ProviderError):
    """No clear answer came. The order may or may not exist: only the provider's listing decides."""

    default_scope = Scope.PROVIDER
