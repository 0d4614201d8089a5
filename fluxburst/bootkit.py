"""What a machine needs to become a follower: its Flux configuration and, where a launcher runs a script, that script.

Pure: nothing here talks to Flux or reads a file. A follower's configuration is the lead's own with rank 0's ``connect``
address and the certificate's path replaced, as flux-config-bootstrap(5) asks for equal ``hosts`` on all brokers.
"""

from __future__ import annotations

import copy
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from fluxburst import hostlist
from fluxburst.config import BurstConfig
from fluxburst.errors import ConfigError
from fluxburst.model import BootMaterial, Secret

RETRY_DELAY_S = 5
"""Seconds between a follower broker's failure and its next start."""
LEAD_TIMEOUT_S = 600.0
"""How long a follower broker looks for its lead unless a site says otherwise."""
NO_LEAD = 69
"""The boot script's status where there was no lead (EX_UNAVAILABLE of sysexits.h)."""


def follower_config(live: Mapping[str, Any], config: BurstConfig) -> dict[str, Any]:
    """The follower's Flux configuration, made from the lead's.

    ``live`` is the lead's configuration as the RPC ``config.get`` or its TOML files give it; it is not changed.

    Raises:
        ConfigError: ``live`` has no ``[bootstrap]`` hosts or no certificate.
    """
    follower = copy.deepcopy(dict(live))
    bootstrap = follower.get("bootstrap", {})
    entries = bootstrap.get("hosts")
    if not entries:
        raise ConfigError(
            "[bootstrap] hosts: the lead's Flux configuration has none; write it with `flux burst config render`"
        )
    certificate = config.lead.curve_cert or bootstrap.get("curve_cert")
    if not certificate:
        raise ConfigError(
            "[bootstrap] curve_cert: the lead's Flux configuration names no certificate; "
            "make one with `flux keygen PATH`, set curve_cert = PATH and restart the lead"
        )
    bootstrap["curve_cert"] = str(certificate)
    lead = hostlist.expand(entries[0]["host"])[0]
    if entries[0]["host"] == lead:
        entries[0]["connect"] = config.lead.connect
    else:
        # Flux merges entries of one host, and the first that has a key wins: rank 0 keeps its place in the list.
        entries.insert(0, {"host": lead, "connect": config.lead.connect})
    return follower


def boot_material(live: Mapping[str, Any], config: BurstConfig, certificate: Secret | None = None) -> BootMaterial:
    """What goes with an order. ``certificate`` is passed through, for providers that carry the bytes themselves.

    Raises:
        ConfigError: see :func:`follower_config`.
    """
    follower = follower_config(live, config)
    return BootMaterial(
        config_toml=tomli_w.dumps(follower),
        curve_cert_path=follower["bootstrap"]["curve_cert"],
        curve_cert=certificate,
    )


_SCRIPT = """\
#!/bin/sh
# Runs the follower broker of one host until it has been asked to go (exit status 0, or a signal to this script).
if [ -z "${index}" ]; then
    echo "{index} is not set: start this script as a task of the launcher that sets it" >&2
    exit 2
fi
index=${index}
set -- {hosts}
if [ "$index" -ge "$#" ]; then
    echo "task $index has no host: only $# are ordered" >&2
    exit 2
fi
shift "$index"
host=$1

# An outer Flux or Slurm job must not be taken for this broker's own parent.
unset FLUX_URI FLUX_KVS_NAMESPACE FLUX_JOB_ID_PATH FLUX_PMI_CLIENT_METHODS PMI_FD PMI_RANK PMI_SIZE PMI_SPAWNED

# The broker's umask is its jobs' umask, so only this directory is made private.
# shellcheck disable=SC2174
mkdir -p {work_dir} && mkdir -p -m 700 {work_dir}/"$host" && cd {work_dir}/"$host" || exit 2

# A broker waits for its lead without end. It has one as soon as Flux runs what is in rc1.d.
# shellcheck disable=SC2016
mkdir -p rc/rc1.d && printf '%s\\n' '#!/bin/sh' ': >"$FLUXBURST_JOINED"' >rc/rc1.d/joined && chmod 700 rc/rc1.d/joined
export FLUXBURST_JOINED="$PWD/joined" FLUX_RC_EXTRA="$PWD/rc${{FLUX_RC_EXTRA:+:$FLUX_RC_EXTRA}}"

# Shells run this between commands: $child is the broker, or the pause before the next one, or "$!" is, just begun.
stop() {{
    : "${{child:=$!}}"
    rm -f "try-$left"
    kill -TERM "$watch" 2>/dev/null
    # Again and again: a child that has not yet become its program loses the signal.
    while kill -TERM "$child" 2>/dev/null; do sleep 1; done
    exit 0
}}
trap stop TERM INT HUP

left={retries}
while :; do
    rm -f joined no-lead
    : >"try-$left"
    child='' watch=''
    {flux} broker -c {config_dir} -Shostname="$host" -Sbroker.boot-method=config >>{log} 2>&1 &
    child=$!
    if [ -x rc/rc1.d/joined ]; then
        (
            exec </dev/null >/dev/null 2>&1
            trap 'kill "$!"; exit 0' TERM
            sleep {lead_timeout} &
            wait "$!"
            # A signal to a process that has just begun may be lost: this broker may have ended long ago.
            [ -e joined ] || [ ! -e "try-$left" ] || {{ : >no-lead; kill -TERM "$child"; }}
        ) &
        watch=$!
    fi
    wait "$child"
    status=$?
    rm -f "try-$left"
    [ -z "$watch" ] || kill -TERM "$watch" 2>/dev/null
    [ "$status" -ne 0 ] || exit 0
    if [ -e no-lead ]; then
        echo "there was no lead for {lead_timeout} s" >>{log}
        exit {no_lead}
    fi
    [ "$left" -gt 0 ] || exit "$status"
    left=$((left - 1))
    child=''
    sleep {delay} &
    child=$!
    wait "$child"
done
"""


def with_certificate_at(config_toml: str, path: str) -> str:
    """A follower's configuration for machines that have the certificate elsewhere than :func:`follower_config` says."""
    follower = tomllib.loads(config_toml)
    follower["bootstrap"]["curve_cert"] = path
    return tomli_w.dumps(follower)


def boot_script(
    flux: str,
    config_dir: str,
    hosts: Sequence[str],
    index_variable: str,
    work_dir: str,
    retries: int = 3,
    log: str = "broker.log",
    lead_timeout_s: float = LEAD_TIMEOUT_S,
) -> str:
    """A POSIX shell script that runs one host's follower broker, for launchers that run a command on each node.

    ``flux`` is the Flux executable's path and ``config_dir`` the follower's configuration (directory or file); all
    paths are absolute, as the node sees them. The task's host is ``hosts[$index_variable]``: ``FLUX_TASK_RANK`` in a
    Flux job, ``SLURM_PROCID`` in a Slurm job, ``JOB_COMPLETION_INDEX`` in a Kubernetes Job. The broker's output goes to
    ``log``, which is seen from ``work_dir/HOST``; its run directory is Flux's own, below ``TMPDIR``, as a work
    directory may be on a file system without sockets.

    The script exits 0 as soon as the broker does (asked to go); any other end is tried again, ``retries`` times in
    all, and then is the script's own status. SIGTERM, SIGINT and SIGHUP stop the broker in good order. Status 2 means
    that the script was started wrongly, :data:`NO_LEAD` that a broker had not joined after ``lead_timeout_s``: without
    that, a machine whose lead is gone for good would wait, and cost, for ever. (Flux 0.88: a follower that has lost its
    lead ends after five minutes without a heartbeat, and one that looks for a lead never does. Both seen.) Where the
    work directory allows no programs this cannot be known, and nothing is given up.
    """
    return _SCRIPT.format(
        flux=shlex.quote(flux),
        config_dir=shlex.quote(config_dir),
        hosts=shlex.join(hosts),
        index=index_variable,
        work_dir=shlex.quote(work_dir),
        retries=retries,
        log=shlex.quote(log),
        delay=RETRY_DELAY_S,
        lead_timeout=f"{lead_timeout_s:g}",
        no_lead=NO_LEAD,
    )
