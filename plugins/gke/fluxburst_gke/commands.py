"""``flux burst gke-clean``: delete what the provider created, which costs nothing or little but is there."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fluxburst.errors import ConfigError, FluxburstError
from fluxburst.provider import ProviderContext
from fluxburst.provider.protocol import options as read


@click.command("gke-clean")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    envvar="FLUXBURST_CONFIG",
    default=Path("/etc/flux/burst.toml"),
    show_default=True,
    show_envvar=True,
    help="The site's burst.toml.",
)
@click.option("--yes", is_flag=True, help="Delete it. Without this it is only told.")
def clean_up(config_path: Path, yes: bool) -> None:
    """Delete what fluxburst created in Google Cloud: GKE node pools and clusters.

    Those in which there are machines are left. Stop the service first: it would make them again for its next order.
    """
    try:
        for context in _contexts(tomllib.loads(config_path.read_text(encoding="utf-8"))):
            for line in cleaned_up(context, delete=yes):
                click.echo(line)
    except tomllib.TOMLDecodeError as error:
        raise click.ClickException(f"{config_path}: {error}") from None
    except FluxburstError as error:
        raise click.ClickException(str(error)) from None


def _contexts(burst_toml: dict[str, Any]) -> Iterator[ProviderContext]:
    """Of all tables of this kind of provider."""
    if "cluster" not in burst_toml:
        raise ConfigError("cluster: burst.toml names none")
    for name, table in burst_toml.get("provider", {}).items():
        options = dict(table)
        if options.pop("plugin", name) == "gke":
            yield ProviderContext(name, burst_toml["cluster"], options, {}, Path())


def cleaned_up(context: ProviderContext, *, delete: bool) -> Iterator[str]:
    """Delete what one provider table created, and tell of each thing; see :func:`clean_up`."""
    from fluxburst_gke.firewall import owner_of, rule_name
    from fluxburst_gke.google import Google
    from fluxburst_gke.options import GkeOptions, short
    from fluxburst_gke.pools import is_for_followers, is_ours

    options = read(GkeOptions, context.options, f"provider.{context.name}")
    name = options.gke_cluster or short(f"fluxburst-{context.cluster}")
    google = Google(options, name, f"provider {context.name}")
    verb = "deleting" if delete else "would delete"
    try:
        if options.firewall is not None:
            rule = google.firewall(rule_name(context))
            if rule is not None and rule.description == owner_of(context):
                yield f"firewall rule {rule.name}: {verb} it"
                if delete:
                    google.delete_firewall(rule.name)
        cluster, pools = google.cluster(), google.node_pools()
        if cluster is None or pools is None:
            yield f"GKE cluster {name}: there is none"
            return
        ours = [pool for pool in pools if is_for_followers(pool.labels, context)]
        busy = [pool.name for pool in ours if google.instances(pool.groups)]
        others = [pool.name for pool in pools if pool not in ours and not is_ours(pool.labels, context)]
        if is_ours(cluster.labels, context) and not busy and not others:
            yield f"GKE cluster {name}: {verb} it, with its node pools"
            if delete:
                google.delete_cluster()
            return
        for pool in ours:
            if pool.name in busy:
                yield f"node pool {pool.name}: left, as there are machines in it; release them first"
                continue
            yield f"node pool {pool.name}: {verb} it"
            if delete:
                google.delete_node_pool(pool.name)
        why = "as others made it" if not is_ours(cluster.labels, context) else f"for {', '.join([*busy, *others])}"
        yield f"GKE cluster {name}: left, {why}"
    finally:
        google.close()
