"""An order's root module: the site's module with the order's variables. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fluxburst import bootkit
from fluxburst.model import Host, Order
from fluxburst_terraform.options import ModuleOptions

END = "FLUXBURST_END_OF_FILE"


def root(
    order_id: str, cluster: str, hosts: Sequence[Host], script: str, expires_at: str, options: ModuleOptions,
    backend: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """``main.tf.json``: one call of the module, whose output ``nodes`` is passed on."""
    call = {
        **_literal(options.variables),
        "source": str(options.module),
        "cluster": cluster,
        "order": order_id,
        "hosts": list(hosts),
        "boot_script": _literal(script),
        "expires_at": expires_at,
    }
    found: dict[str, Any] = {
        "module": {"nodes": call},
        "output": {"nodes": {"value": "${module.nodes.nodes}"}},
    }
    if backend:
        ((kind, settings),) = backend.items()
        named = {
            key: value.replace("{order}", order_id) if isinstance(value, str) else value
            for key, value in settings.items()
        }
        found["terraform"] = {"backend": {kind: _literal(named)}}
    return found


def expires_at(order: Order, options: ModuleOptions) -> str:
    """RFC 3339, or empty: never."""
    if options.max_lifetime is None:
        return ""
    return datetime.fromtimestamp(order.created_at + options.max_lifetime, UTC).isoformat(timespec="seconds")


def boot_script(order: Order, options: ModuleOptions) -> str:
    """What a node runs with its host name in FLUXBURST_HOST: all that it needs, but for the certificate.

    It ends as :func:`fluxburst.bootkit.boot_script` does. It is the same for all nodes of an order, and stays so when
    some are given back.
    """
    directory = f"{options.directory}/{order.request_id}"
    config, certificate = order.boot.config_toml, ""
    if options.certificate_command:
        path = f"{directory}/curve.cert"
        config = bootkit.with_certificate_at(config, path)
        certificate = f"(umask 077 && {{ {options.certificate_command}; }} >{shlex.quote(path)}) || exit 3\n"
    boot = bootkit.boot_script(
        options.flux,
        f"{directory}/broker.toml",
        order.hosts,
        "FLUXBURST_INDEX",
        directory,
        options.retries,
        lead_timeout_s=options.lead_timeout,
    )
    return f"""\
#!/bin/sh
# Makes this machine the follower FLUXBURST_HOST of order {order.request_id}.
if [ -z "$FLUXBURST_HOST" ]; then
    echo "FLUXBURST_HOST is not set: it is the host of the order that this machine is" >&2
    exit 2
fi
FLUXBURST_INDEX=0
for host in {shlex.join(order.hosts)}; do
    [ "$host" != "$FLUXBURST_HOST" ] || break
    FLUXBURST_INDEX=$((FLUXBURST_INDEX + 1))
done
export FLUXBURST_INDEX
mkdir -p {shlex.quote(directory)} || exit 3
{certificate}cat >{shlex.quote(directory)}/"$FLUXBURST_HOST.toml" <<'{END}' || exit 3
{config}
{END}
mv {shlex.quote(directory)}/"$FLUXBURST_HOST.toml" {shlex.quote(directory)}/broker.toml || exit 3
cat >{shlex.quote(directory)}/"$FLUXBURST_HOST.sh" <<'{END}' || exit 3
{boot}{END}
exec /bin/sh {shlex.quote(directory)}/"$FLUXBURST_HOST.sh"
"""


def _literal(value: Any) -> Any:
    """Text as it is, in a language in which ``${`` and ``%{`` begin templates."""
    if isinstance(value, str):
        return value.replace("${", "$${").replace("%{", "%%{")
    if isinstance(value, Mapping):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_literal(inner) for inner in value]
    return value
