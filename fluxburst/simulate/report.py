"""Shows runs side by side: rows of figures for a terminal or JSON, and one self-contained page with plots.

The page's bytes depend on the runs alone: no dates, no random ids.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fluxburst import durations
from fluxburst.errors import ConfigError
from fluxburst.simulate.metrics import Curves, Summary

COLOURS = ("#4c566a", "#2f6fb4", "#d9822b", "#3a9a5b", "#b0413e", "#7d5ba6", "#8c6d46")
"""By policy and by pool, in their order; the first is home's alone."""


@dataclass(frozen=True, slots=True)
class Run:
    """One policy on the trace: its name, one line on what it does, what came of it."""

    name: str
    about: str
    summary: Summary
    curves: Curves


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    cells: tuple[str, ...]
    bad: tuple[bool, ...]
    """Cells that should alarm."""


def rows(runs: Sequence[Run]) -> Iterator[Row]:
    """The table, one cell for each run."""
    for label, cell, bad in _ROWS:
        values = [cell(run.summary) for run in runs]
        yield Row(label, tuple(values), tuple(bad(run.summary) for run in runs))
    for fault in sorted({name for run in runs for name in run.summary.survived}):
        counts = tuple(str(run.summary.survived.get(fault, 0)) for run in runs)
        yield Row(f"survived: {fault.replace('_', ' ')}", counts, (False,) * len(runs))


def _span(seconds: float | None) -> str:
    """With its seconds up to ten minutes, as that is where policies differ."""
    if seconds is None:
        return "-"
    return f"{seconds:.1f}s" if 1 <= seconds < 600 else durations.show(seconds)


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _usd(usd: float | None) -> str:
    return "unknown" if usd is None else f"${usd:,.2f}"


def _never(_: Summary) -> bool:
    return False


_ROWS: tuple[tuple[str, Any, Any], ...] = (
    ("jobs", lambda of: _count(of.jobs), _never),
    ("jobs that burst", lambda of: _count(of.burst_jobs), _never),
    ("refused at submit", lambda of: _count(of.refused), lambda of: of.refused > 0),
    ("never ended", lambda of: _count(of.not_ended), lambda of: of.not_ended > 0),
    ("failed", lambda of: _count(of.failed), lambda of: of.failed > 0),
    ("submitted again", lambda of: _count(of.resubmitted), _never),
    ("wait, mean", lambda of: _span(of.waits.mean_s), _never),
    ("wait, p50", lambda of: _span(of.waits.p50_s), _never),
    ("wait, p90", lambda of: _span(of.waits.p90_s), _never),
    ("wait, p99", lambda of: _span(of.waits.p99_s), _never),
    ("bounded slowdown", lambda of: _ratio(of.waits.slowdown), _never),
    ("burst jobs' wait, mean", lambda of: _span(of.burst_waits.mean_s), _never),
    ("burst jobs' wait, p50", lambda of: _span(of.burst_waits.p50_s), _never),
    ("burst jobs' wait, p90", lambda of: _span(of.burst_waits.p90_s), _never),
    ("burst jobs' wait, p99", lambda of: _span(of.burst_waits.p99_s), _never),
    ("node-hours bought", lambda of: _hours(of.bought_h), _never),
    ("node-hours used", lambda of: _hours(of.used_h), _never),
    ("node-hours in boot", lambda of: _hours(of.boot_h), _never),
    ("node-hours idle", lambda of: _hours(of.idle_h), _never),
    ("used / bought", lambda of: _ratio(of.used_share), _never),
    ("dollars", lambda of: _usd(of.usd), _never),
    ("nodes bought", lambda of: _count(of.nodes), _never),
    ("orders", lambda of: _count(of.orders), _never),
    ("caps exceeded", lambda of: _count(len(of.caps_exceeded)), lambda of: bool(of.caps_exceeded)),
)


def as_json(runs: Sequence[Run], facts: Mapping[str, str]) -> str:
    """The figures for programs, without curves."""
    value = {"facts": dict(facts), "policies": {run.name: run.summary.as_json() for run in runs}}
    return json.dumps(value, indent=2) + "\n"


def check() -> None:
    """Raises:
    ConfigError: what :func:`page` draws with is not installed.
    """
    for name in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--html needs {name}; install it with: pip install 'fluxburst[simulate]'")


def page(runs: Sequence[Run], facts: Mapping[str, str]) -> str:
    """The HTML page. ``facts`` are shown on top: what was simulated, and how.

    Raises:
        ConfigError: jinja2 or matplotlib is not installed.
    """
    check()
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(
        resources.files("fluxburst.simulate").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        facts=facts,
        runs=runs,
        rows=list(rows(runs)),
        plots=[
            (
                title,
                about,
                Markup(svg),  # noqa: S704 - drawn here, with its texts escaped
            )
            for title, about, svg in _plots(runs)
        ],
        broken=[(run.name, line) for run in runs for line in run.summary.caps_exceeded],
    )


def _plots(runs: Sequence[Run]) -> Iterator[tuple[str, str, str]]:
    yield (
        "Queue length",
        "Jobs that wait, at home and for bought nodes; the largest number in each interval.",
        _lines(runs, lambda curves: curves.queue, "jobs waiting"),
    )
    bursting = [run for run in runs if run.summary.nodes]
    if bursting:
        yield "Nodes by pool", "Bought nodes, boot and idling included; the mean of each interval.", _nodes(bursting)
        yield "Dollars", "Spent since the start.", _lines(bursting, lambda curves: curves.usd, "US dollars", runs)
    yield "Waits", "The share of jobs that waited no longer than so long.", _waits(runs)


def _axes(figure: Any, count: int = 1) -> Any:
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(visible=True, axis="y", color="#e5e9f0", linewidth=0.8)
        each.set_axisbelow(True)
        each.margins(x=0.01)
    return axes


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(9.6, height), layout="constrained")


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _days(curves: Curves) -> list[float]:
    return [at / 86400 for at in curves.at_s]


def _lines(runs: Sequence[Run], values: Any, what: str, among: Sequence[Run] | None = None) -> str:
    """One line a run, each in the colour that it has ``among`` all."""
    figure = _figure(3.2)
    (axes,) = _axes(figure)
    order = [run.name for run in (among or runs)]
    for run in runs:
        axes.plot(
            _days(run.curves),
            values(run.curves),
            drawstyle="steps-post",
            linewidth=1.3,
            color=_colour(order.index(run.name)),
            label=run.name,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("days")
    axes.set_ylabel(what)
    axes.legend(frameon=False, ncols=min(len(runs), 6), loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


def _nodes(runs: Sequence[Run]) -> str:
    """One band a run, its pools stacked, all on one scale."""
    figure = _figure(0.6 + 1.5 * len(runs))
    every = _axes(figure, len(runs))
    highest = max(max(map(sum, zip(*run.curves.nodes.values(), strict=True))) for run in runs)
    for axes, run in zip(every, runs, strict=True):
        pools = list(run.curves.nodes)
        axes.stackplot(
            _days(run.curves),
            *run.curves.nodes.values(),
            step="post",
            labels=pools,
            colors=[_colour(index + 1) for index in range(len(pools))],
            linewidth=0,
        )
        axes.set_ylim(0, highest * 1.05)
        axes.set_title(run.name, loc="left", fontsize=10)
        axes.set_ylabel("nodes")
    every[-1].set_xlabel("days")
    every[0].legend(frameon=False, ncols=6, loc="lower right", bbox_to_anchor=(1, 1))
    return _svg(figure)


WAIT_LEAST_S = 1.0
"""A wait below this is drawn as this: the axis is logarithmic."""
WAIT_POINTS = 400


def _waits(runs: Sequence[Run]) -> str:
    figure = _figure(3.4)
    (axes,) = _axes(figure)
    for index, run in enumerate(runs):
        waits = run.curves.waits_s
        if not waits:
            continue
        picked = sorted({round(part * (len(waits) - 1) / WAIT_POINTS) for part in range(WAIT_POINTS + 1)})
        axes.plot(
            [max(waits[place], WAIT_LEAST_S) for place in picked],
            [(place + 1) / len(waits) for place in picked],
            drawstyle="steps-post",
            linewidth=1.3,
            color=_colour(index),
            label=run.name,
        )
    axes.set_xscale("log")
    ticks = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h", 86400: "1 d", 864000: "10 d"}
    longest = max((run.curves.waits_s[-1] for run in runs if run.curves.waits_s), default=1.0)
    shown = [at for at in ticks if at <= max(longest, 60) * 2]
    axes.set_xticks(shown, [ticks[at] for at in shown])
    axes.minorticks_off()
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("wait")
    axes.set_ylabel("share of jobs")
    axes.legend(frameon=False, ncols=min(len(runs), 6), loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "fluxburst", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    return text[text.index("<svg") :]
