"""Answers of the service as rich tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fluxburst import durations

_COLOURS = {
    "planned": "yellow", "ordered": "yellow", "booting": "yellow", "joined": "green", "draining": "cyan",
    "stopped": "cyan", "releasing": "cyan", "gone": "dim", "running": "green", "home": "green", "coming": "yellow",
    "burst": "yellow", "wait": "blue", "refused": "red",
}  # fmt: skip


class _Table(Table):
    """Takes text as it is: rich would read the ``[limits]`` of a reason as markup and leave it out."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), **options)


_PROSE = frozenset({"REASON", "NOTE", "REFUSAL", "DETAIL"})


def _table(*columns: str) -> Table:
    table = _Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # only prose may be broken into lines: half a host name is of no use
        prose = column in _PROSE
        table.add_column(column, overflow="fold" if prose else "ellipsis", no_wrap=not prose)
    return table


def _word(state: str) -> Text:
    return Text(state, style=_COLOURS.get(state, ""))


def _usd(price: float | None) -> str:
    return "unknown" if price is None else f"${price:g}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3] + "Z"


def _progress(node: Mapping[str, Any]) -> RenderableType:
    """How far a boot is, measured against the offer's join time; nothing for a node that is not booting."""
    if node.get("join_s") is None:
        return ""
    return ProgressBar(total=node["join_s"], completed=min(node["age_s"], 0.95 * node["join_s"]), width=20)


def status(answer: Mapping[str, Any]) -> RenderableType:
    state = "paused" if answer["paused"] else "ready" if answer["ready"] else "catching up"
    jobs = ", ".join(f"{count} {kind}" for kind, count in sorted(answer["jobs"].items())) or "none"
    limit = "" if answer["nodes_limit"] is None else f" of {answer['nodes_limit']}"
    head = Text(
        f"cluster {answer['cluster']}, {answer['mode']} mode, {state}; "
        f"{answer['nodes']}{limit} nodes bought; burstable jobs: {jobs}"
    )
    table = _table("POOL", "PROVIDER", "QUEUE", "HOSTS", "COMING", "UP", "BUSY", "LEAVING", "WARM", "NOTE")
    for pool in answer["pools"]:
        count = pool["states"]
        table.add_row(
            pool["pool"],
            pool["provider"],
            pool["queue"],
            str(pool["declared"]),
            str(sum(count.get(name, 0) for name in ("planned", "ordered", "booting"))),
            str(count.get("joined", 0)),
            str(pool["busy"]),
            str(sum(count.get(name, 0) for name in ("draining", "stopped", "releasing"))),
            str(pool["warm"]),
            _pool_note(pool),
        )
    return Group(head, table)


def _pool_note(pool: Mapping[str, Any]) -> str:
    if pool["cooldown"]:
        return f"left alone for {durations.show(pool['cooldown_s'])}: {pool['cooldown']}"
    return f"warm nodes: {pool['warm_unmet']}" if pool["warm_unmet"] else ""


def nodes(answer: Mapping[str, Any]) -> RenderableType:
    table = _table("HOST", "POOL", "PROVIDER", "STATE", "BOOT", "AGE", "JOINED", "JOBS", "USD/H", "REASON")
    for node in answer["nodes"]:
        end = node["changed_at"] if node["state"] == "gone" else node["planned_at"] + node["age_s"]
        joined = "" if node["joined_at"] is None else durations.show(node["joined_at"] - node["planned_at"])
        table.add_row(
            node["host"],
            node["pool"],
            node["provider"],
            _word(node["state"]),
            _progress(node),
            durations.show(end - node["planned_at"]),
            joined,
            " ".join(node.get("jobs", ())),
            _usd(node["usd_per_node_hour"]) if "usd_per_node_hour" in node else "",
            "" if node["state"] == "joined" else node["reason"],
        )
    return table if answer["nodes"] else Text("no nodes")


def jobs(answer: Mapping[str, Any]) -> RenderableType:
    table = _table("JOB", "USER", "QUEUE", "NEEDS", "STATE", "POOL", "HOSTS", "WAITED", "REASON")
    for job in answer["jobs"]:
        table.add_row(
            job["f58"],
            str(job["userid"]),
            job["queue"],
            _needs(job),
            _word(job["state"]),
            job["pool"],
            job["hosts"],
            durations.show(max(job["waited_s"], 0.0)),
            job["reason"],
        )
    if not answer["jobs"]:
        return Text("no active burstable jobs")
    hidden = answer["total"] - len(answer["jobs"])
    return Group(table, Text(f"and {hidden} more; see --limit")) if hidden else table


def _needs(job: Mapping[str, Any]) -> str:
    if job["slots"] is None:
        return "?"
    cores, gpus = job["slots"] * job["cores_per_slot"], job["slots"] * job["gpus_per_slot"]
    parts = [f"{job['nodes']}N"] if job["nodes"] else []
    parts.append(f"{cores}c")
    return " ".join([*parts, f"{gpus}g"] if gpus else parts)


def explain(answer: Mapping[str, Any]) -> RenderableType:
    job = answer["job"]
    lines: list[RenderableType] = []
    if job is None:
        lines.append(Text(f"{answer['f58']} is no longer active"))
    else:
        where = f" on {job['hosts']}" if job["hosts"] else ""
        lines.append(Text(f"{answer['f58']} needs {_needs(job)}, queue {job['queue'] or '-'}: {job['state']}{where}"))
        lines.append(Text(answer["verdict"] or job["reason"]))
    for pool, reason in answer["pools"]:
        lines.append(Text(f"  pool {pool}: {reason}"))
    if answer["history"]:
        table = _table("TIME", "WHAT", "DETAIL")
        for entry in answer["history"]:
            table.add_row(_time(entry["at"]), _word(entry["kind"]), _detail(entry))
        lines.append(table)
    return Group(*lines)


def _detail(entry: Mapping[str, Any]) -> str:
    told = {key: value for key, value in entry.items() if key not in ("at", "kind", "pools") and value}
    reason = told.pop("reason", "")
    return "  ".join([reason, *(f"{key}={_flat(value)}" for key, value in told.items())]).strip()


def _flat(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def providers(answer: Mapping[str, Any]) -> RenderableType:
    table = _table("PROVIDER", "PLUGIN", "FROM", "POOLS", "SHRINKS BY", "MACHINES", "LISTED")
    for row in answer["providers"]:
        listed = "never" if row["listed_s"] is None else f"{durations.show(row['listed_s'])} ago"
        machines = "?" if row["machines"] is None else str(row["machines"])
        table.add_row(
            row["provider"],
            row["kind"],
            row["distribution"],
            " ".join(row["pools"]),
            row["shrink"],
            machines,
            listed,
        )
    used = {row["kind"] for row in answer["providers"]}
    lines: list[RenderableType] = [table]
    for plugin in answer["plugins"]:
        if not used & set(plugin["kinds"]):
            brings = ", ".join(plugin["kinds"]) or "hooks only"
            lines.append(Text(f"also installed: {plugin['name']} ({plugin['distribution']}): {brings}"))
    for plugin in answer["skipped"]:
        lines.append(Text(f"skipped: {plugin['name']} ({plugin['distribution']}): {plugin['error']}", style="red"))
    return Group(*lines)


def offers(answer: Mapping[str, Any]) -> RenderableType:
    table = _table(
        "POOL", "PROVIDER", "FOR", "TYPE", "USD/H", "SPOT", "ZONE", "JOINS IN", "LEFT", "ANSWERED", "REFUSAL"
    )
    for row in answer["offers"]:
        ago = f"{durations.show(row['age_s'])} ago"
        if row["refusal"]:
            table.add_row(row["pool"], row["provider"], _needs(row), "", "", "", "", "", "", ago, row["refusal"])
            continue
        table.add_row(
            row["pool"],
            row["provider"],
            _needs(row),
            row["instance_type"],
            _usd(row["usd_per_node_hour"]),
            "yes" if row["spot"] else "no",
            row["zone"],
            "" if row["join_s"] is None else durations.show(row["join_s"]),
            "" if row["nodes_left"] is None else str(row["nodes_left"]),
            ago,
            "",
        )
    return table if answer["offers"] else Text("no provider has been asked yet")


def live(status_answer: Mapping[str, Any], nodes_answer: Mapping[str, Any], jobs_answer: Mapping[str, Any]) -> Group:
    """All three at once, for ``flux burst watch`` and the demo."""
    return Group(status(status_answer), Text(), nodes(nodes_answer), Text(), jobs(jobs_answer))
