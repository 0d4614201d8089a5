"""The commands that look after the site's files: config render, check."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from fluxburst import config as configuration
from fluxburst.cli.common import config_option, print_json
from fluxburst.config import BurstConfig
from fluxburst.errors import ConfigError, FluxburstError, ProviderError
from fluxburst.model import Finding, Severity

if TYPE_CHECKING:
    from fluxburst.provider.discovery import Plugins

_MARKS = {Severity.OK: ("ok", "green"), Severity.WARNING: ("warning", "yellow"), Severity.ERROR: ("error", "red")}


@click.group()
def config() -> None:
    """Make the Flux configuration of lead and followers."""


@config.command()
@config_option
@click.option(
    "--site",
    type=click.Path(path_type=Path),
    default=Path("/etc/flux/system/conf.d"),
    show_default=True,
    help="The site's own Flux configuration: a TOML file or a directory of them.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where to write lead.d/flux.toml, follower.d/flux.toml and burst-frobnicator.py.",
)
def render(config_path: Path, site: Path, output: Path) -> None:
    """Write the Flux configuration with every host declared that may ever burst."""
    from fluxburst.flux import render as rendering
    from fluxburst.provider.discovery import Plugins

    frobnicator = output.absolute() / "burst-frobnicator.py"
    burst = Plugins().find_lead(configuration.load(config_path))
    rendered = rendering.render(burst, rendering.load_site(site), frobnicator=frobnicator)
    for path, text in (
        (frobnicator, rendering.PLUGIN.read_text(encoding="utf-8")),
        (output / "lead.d" / "flux.toml", rendered.lead_toml()),
        (output / "follower.d" / "flux.toml", rendered.follower_toml()),
    ):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}; choose another --output") from None
        click.echo(f"wrote {path}")


@click.command()
@config_option
@click.option("--uri", default=None, help="The instance to look at; by default the enclosing one (FLUX_URI).")
@click.option(
    "--files",
    type=click.Path(path_type=Path),
    default=None,
    help="Look at these Flux TOML files (or directory) instead of a running instance.",
)
@click.option("--providers/--no-providers", "ask_providers", default=True, help="Ask the providers, too.")
@click.option("--probe", is_flag=True, help="Let each provider start something that dials the lead, too. May cost.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(
    config_path: Path, uri: str | None, files: Path | None, ask_providers: bool, probe: bool, as_json: bool
) -> None:
    """Tell what is fit for bursting and what is not, with the fix. Exit 1 if anything is an error."""
    from fluxburst.provider.discovery import Plugins

    burst, plugins = configuration.load(config_path), Plugins()
    findings = []
    try:
        burst = plugins.find_lead(burst)
    except ProviderError as error:
        findings.append(Finding("lead", Severity.ERROR, str(error), "mend what it says, then check again"))
    findings += _flux(burst, uri, files)
    if ask_providers or probe:
        findings += _providers(burst, plugins, probe=probe)
    if as_json:
        print_json({"findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        console = Console(highlight=False, soft_wrap=True)
        for finding in findings:
            word, style = _MARKS[finding.severity]
            fix = f"; fix: {finding.fix}" if finding.fix else ""
            console.print(Text(f"{word:8}", style=style) + Text(f"{finding.subject}: {finding.message}{fix}"))
    if any(finding.severity is Severity.ERROR for finding in findings):
        sys.exit(1)


def _flux(burst: BurstConfig, uri: str | None, files: Path | None) -> Iterator[Finding]:
    from fluxburst.flux import bindings, render
    from fluxburst.flux import check as checks

    if files is not None:
        yield from checks.check(burst, checks.from_files(render.load_site(files)))
        return
    yield from checks.check(burst, checks.snapshot(bindings.connect(uri)))


def _providers(burst: BurstConfig, plugins: Plugins, *, probe: bool) -> Iterator[Finding]:
    from fluxburst.provider.manager import Providers

    for report in plugins.reports:
        if report.error:
            yield Finding(f"plugin {report.name}", Severity.WARNING, f"skipped: {report.error}", "mend or remove it")
    try:
        providers = Providers(burst, plugins)
    except FluxburstError as error:
        yield Finding("providers", Severity.ERROR, str(error), "mend burst.toml")
        return
    try:
        probed = providers.probe(burst.lead.connect) if probe else {}
        for name, findings in providers.check().items():
            for finding in (*findings, *probed.get(name, ())):
                yield Finding(f"{name}: {finding.subject}", finding.severity, finding.message, finding.fix)
    finally:
        providers.close()
