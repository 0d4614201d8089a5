"""Calls to the ``burst`` service, for the command line."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Mapping
from typing import Any

from fluxburst.errors import InstanceError, RequestError
from fluxburst.flux import bindings

NOT_RUNNING = "the burst service does not run on this instance; start it with: flux burst run"


def call(method: str, payload: Mapping[str, Any], uri: str | None = None, *, timeout: float = 30.0) -> dict[str, Any]:
    """Send the RPC ``burst.METHOD`` to the instance at ``uri``, or to the enclosing one, and wait for the response.

    ``timeout`` is in seconds.

    Raises:
        BindingsMissing: the Flux Python bindings cannot be imported.
        RequestError: the service does not run, or refuses; in its own words.
        InstanceError: no broker answers there, or the service does not answer in time.
    """
    handle = bindings.connect(uri)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        response = handle.rpc(f"burst.{method}", payload).wait_for(timeout).get()
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise RequestError(NOT_RUNNING) from error
        if error.errno == errno.ETIMEDOUT:
            raise InstanceError(f"the burst service did not answer within {timeout:g} s") from error
        if error.errno == errno.EINVAL:
            raise RequestError(error.strerror) from error
        raise InstanceError(f"burst.{method}: {error.strerror}") from error
    finally:
        # The bindings let an interrupt kill a waiting process, and leave it like that when the wait fails.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)
    return dict(response)
