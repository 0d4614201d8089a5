"""``flux burst simulate``."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fluxburst.cli.common import config_option, seconds
from fluxburst.errors import ConfigError

if TYPE_CHECKING:
    from fluxburst.config import BurstConfig
    from fluxburst.simulate.engine import Progress, Scenario
    from fluxburst.simulate.report import Run
    from fluxburst.simulate.trace import Trace

POLICIES = ("ours", "predecessor", "one-burst-a-job", "power-save", "least-waste")
SHARE = click.FloatRange(0, 1)
_TOLD = frozenset(
    {
        "procs_per_node", "burstable", "users", "queues", "max_nodes", "join", "prices", "stock_out", "lost_answer",
        "slow_boot", "slow_factor", "failed_boot", "spot_loss",
    }
)  # fmt: skip


def _names(_: click.Context, __: click.Parameter, value: str | None) -> frozenset[str] | None:
    return None if value is None else frozenset(filter(None, (name.strip() for name in value.split(","))))


def _factor(_: click.Context, __: click.Parameter, value: str) -> float | None:
    if value == "none":
        return None
    try:
        factor = float(value)
    except ValueError:
        factor = -1.0
    if not 0 < factor < float("inf"):
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor 'none'")
    return factor


@click.command()
@click.argument("trace", type=click.Path(path_type=Path, dir_okay=False))
@config_option
@click.option("--home", type=click.IntRange(min=1), required=True, help="Nodes of home.")
@click.option("--home-cores", type=click.IntRange(min=1), default=None, help="Cores of each; default --procs-per-node.")
@click.option("--home-gpus", type=click.IntRange(min=0), default=0, help="GPUs of each.")
@click.option(
    "--procs-per-node",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processors of a trace's nodes. With 1, each is a whole node; with more, a core of a shared one.",
)
@click.option(
    "--limit-factor",
    callback=_factor,
    default="1.0",
    show_default=True,
    help="Time limit of jobs that request none, as a multiple of their run time; 'none' for no limit.",
)
@click.option(
    "--burstable", type=SHARE, default=None, help="Share of jobs that may burst; default as recorded, else 1."
)
@click.option("--users", callback=_names, default=None, help="Only jobs of these users may burst (a,b,...).")
@click.option("--queues", callback=_names, default=None, help="Only jobs of these queues may burst (a,b,...).")
@click.option("--max-nodes", type=click.IntRange(min=1), default=None, help="Only jobs of so many nodes may burst.")
@click.option("--join", callback=seconds, default=None, help="How long nodes take to join; default boot_s, else 2m.")
@click.option("--prices", type=click.Path(path_type=Path, dir_okay=False), default=None, help="TOML with [[price]].")
@click.option(
    "--policy", "policies", type=click.Choice(POLICIES), multiple=True, default=("ours",), help="May be repeated."
)
@click.option("--baseline/--no-baseline", default=True, show_default=True, help="Show home without bursting, too.")
@click.option("--stock-out", type=SHARE, default=0.0, help="Share of orders refused for want of capacity.")
@click.option("--lost-answer", type=SHARE, default=0.0, help="Share of orders carried out but not answered.")
@click.option("--slow-boot", type=SHARE, default=0.0, help="Share of nodes that boot slowly.")
@click.option("--slow-factor", type=click.FloatRange(min=1), default=5.0, show_default=True, help="How slowly.")
@click.option("--failed-boot", type=SHARE, default=0.0, help="Share of nodes that never come up.")
@click.option("--spot-loss", type=click.FloatRange(min=0), default=0.0, help="Losses in an hour of a spot node.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, allow_dash=True), help="Write figures (-: print).")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write a page with plots.")
def simulate(
    trace: Path,
    config_path: Path,
    home: int,
    home_cores: int | None,
    home_gpus: int,
    procs_per_node: int,
    limit_factor: float | None,
    burstable: float | None,
    users: frozenset[str] | None,
    queues: frozenset[str] | None,
    max_nodes: int | None,
    join: float | None,
    prices: Path | None,
    policies: tuple[str, ...],
    baseline: bool,
    stock_out: float,
    lost_answer: float,
    slow_boot: float,
    slow_factor: float,
    failed_boot: float,
    spot_loss: float,
    seed: int,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Try burst.toml on a past queue, in virtual time. Nothing is bought.

    TRACE is in the Standard Workload Format, or what `flux burst record` wrote; it may be gzipped. The service itself
    runs on a mock of Flux and of the clouds.
    """
    _quiet()
    if importlib.util.find_spec("fluxburst_mock") is None:
        raise ConfigError("simulating needs fluxburst-mock; install it with: pip install 'fluxburst[simulate]'")
    from fluxburst import config as configuration
    from fluxburst.simulate import prices as price_list
    from fluxburst.simulate import report
    from fluxburst.simulate.engine import Burstable, Scenario
    from fluxburst.simulate.faults import Faults
    from fluxburst.simulate.trace import Reading, load

    config = configuration.load(config_path)
    if prices is not None:
        config = config.model_copy(update={"price": (*config.price, *price_list.load(prices))})
    what = load(trace, Reading(procs_per_node, limit_factor))
    scenario = Scenario(
        home_nodes=home,
        cores_per_node=home_cores or procs_per_node,
        gpus_per_node=home_gpus,
        burstable=Burstable(burstable, users, queues, max_nodes),
        faults=Faults(stock_out, lost_answer, slow_boot, slow_factor, failed_boot, spot_loss),
        join_s=join,
        seed=seed,
    )
    if html_path is not None:
        report.check()
    runs = _runs(what, config, scenario, list(dict.fromkeys(policies)), baseline)
    facts = {
        "trace": trace.name,
        "jobs": f"{what.count:,} over {what.last_s / 86400:.1f} days; {what.skipped:,} left out that never ran",
        "time limits": "as requested, else " + ("none" if limit_factor is None else f"{limit_factor:g} x the run time"),
        "home": f"{home} nodes, each with {scenario.cores_per_node} cores and {home_gpus} GPUs",
        "pools": ", ".join(f"{name} ({len(config.hosts_of(name))} hosts)" for name in config.pool),
        "options": " ".join(_given(click.get_current_context())) or "none",
        "seed": str(seed),
    }
    if json_path is not None:
        _write(json_path, report.as_json(runs, facts))
    if html_path is not None:
        _write(html_path, report.page(runs, facts))
    if json_path is None or str(json_path) != "-":
        _show(runs)


def _given(context: click.Context) -> Iterator[str]:
    """The options that were given and decide what is simulated, as they were given."""
    from click.core import ParameterSource

    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if isinstance(parameter, click.Option) and given and name in _TOLD:
            value = context.params[name]
            yield f"{parameter.opts[0]}={','.join(sorted(value)) if isinstance(value, frozenset) else value}"


def _quiet() -> None:
    """What the service says of virtual days is of no use; its mistakes are."""
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def _runs(trace: Trace, config: BurstConfig, scenario: Scenario, names: Sequence[str], baseline: bool) -> list[Run]:
    import dataclasses

    from fluxburst.simulate.engine import simulate as engine
    from fluxburst.simulate.metrics import curves, summarize
    from fluxburst.simulate.policies import HOME
    from fluxburst.simulate.policies import POLICIES as KNOWN
    from fluxburst.simulate.report import Run

    policies = [*([HOME] if baseline else []), *(KNOWN[name] for name in names)]
    outcomes = []
    with _progress(trace, [policy.name for policy in policies]) as progress:
        for policy in policies:
            adapted = policy.adapt(config)
            tried = dataclasses.replace(scenario, bursting=policy is not HOME)
            outcome = engine(trace, adapted, tried, planner=policy.planner, progress=progress(policy.name))
            outcomes.append((policy, adapted, outcome))
    end_s = max(outcome.end_s for _, _, outcome in outcomes)
    return [
        Run(policy.name, policy.about, summarize(outcome, adapted), curves(outcome, adapted, end_s))
        for policy, adapted, outcome in outcomes
    ]


@contextmanager
def _progress(trace: Trace, names: Sequence[str]) -> Iterator[Callable[[str], Progress | None]]:
    """A bar for each policy, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,} of {task.total:,} jobs"))
    with Bars(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bars:
        tasks = {name: bars.add_task(name, total=trace.count, start=False) for name in names}

        def of(name: str) -> Progress:
            bars.start_task(tasks[name])
            return lambda ended, _: bars.update(tasks[name], completed=ended)

        yield of


def _show(runs: Sequence[Run]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fluxburst.simulate.report import rows

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right", no_wrap=True)
    for row in rows(runs):
        cells = [Text(cell, style="bold red" if bad else "") for cell, bad in zip(row.cells, row.bad, strict=True)]
        table.add_row(Text(row.label), *cells)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 400)
    console.print(table)
    for run in runs:
        for line in run.summary.caps_exceeded:
            console.print(Text(f"{run.name}: {line}", style="bold red"))


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        click.echo(text, nl=False)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; choose another file") from None
