"""``flux burst expose`` and ``flux burst operator``."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import click


def _pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        found[key] = text
    return found


@click.command("expose")
@click.option("--pod", default=socket.gethostname, show_default="this host's name", help="The lead's pod.")
@click.option("--namespace", default="default", show_default=True, help="Where the pod is.")
@click.option("--kubeconfig", type=click.Path(dir_okay=False, path_type=Path), help="By default as kubectl finds it.")
@click.option("--context", default="", help="The kubeconfig's context; by default its current one.")
@click.option("--port", default=8050, show_default=True, help="The port that the lead binds.")
@click.option("--node-port", type=int, help="The port of the nodes; by default the cluster chooses one, and keeps it.")
@click.option("--address", default="", help="What followers dial; by default the external address of the lead's node.")
@click.option("--selector", multiple=True, metavar="KEY=VALUE", callback=_pairs, help="Labels of the lead's pod alone.")
@click.option("--source", "sources", multiple=True, metavar="CIDR", help="Let only these in; may be repeated.")
def command(**chosen: Any) -> None:
    """Make a lead that is a pod reachable from outside its cluster, and print the address that followers dial.

    It makes a Service of type NodePort for the pod, or makes it so; doing it again changes nothing.
    """
    from fluxburst.provider.protocol import options
    from fluxburst_kubernetes.expose import NodePort, expose

    made = expose(options(NodePort, chosen, "expose"))
    click.echo(f'[lead]\nconnect = "{made.connect}"')
    selected = ",".join(f"{key}={value}" for key, value in made.selector.items())
    click.echo(f"# Service {made.service} in namespace {chosen['namespace']} selects {selected}", err=True)
    if made.inside:
        click.echo("# its node has no external address: only the cluster's own network knows this one", err=True)


@click.command("operator")
@click.argument("manifest")
@click.option("--kubeconfig", type=click.Path(dir_okay=False, path_type=Path), help="By default as kubectl finds it.")
@click.option("--context", default="", help="The kubeconfig's context; by default its current one.")
def install_operator(manifest: str, kubeconfig: Path | None, context: str) -> None:
    """Install the Flux Operator, by its MANIFEST: a file, or an http or https address.

    Only workload = "minicluster" needs it. Doing it again changes nothing. What an address gives is applied as it
    comes, with your own rights: name a version that you trust.
    """
    from fluxburst_kubernetes.install import install

    for one in install(manifest, kubeconfig, context):
        click.echo(one)
