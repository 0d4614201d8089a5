"""Answers of the service as rich tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
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


_PROSE = frozenset({"REASON", "NOTE", "REFUSAL", "DETAIL", "HEALTH", "FIX", "FOR JOBS"})


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
    spent = [Text(_spent(line)) for line in answer["budget"] if line["scope"] == "all" or line["level"]]
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
    return Group(head, *spent, table)


def _spent(line: Mapping[str, Any]) -> str:
    committed = line["spent_usd"] + line["reserved_usd"]
    who = f" {line['name']}" if line["name"] else ""
    return f"{line['cap']}{who}: ${committed:.2f} of ${line['limit_usd']:.2f} spent or reserved ({line['share']:.0%})"


def _pool_note(pool: Mapping[str, Any]) -> str:
    if pool["cooldown"]:
        alone = f"left alone for {durations.show(pool['cooldown_s'])}"
        return f"{alone if pool['cooldown_s'] else 'tried with one order first'}: {pool['cooldown']}"
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
    considered = answer["considered"]
    if considered is None:
        lines += [_indented(f"pool {pool}: {reason}") for pool, reason in answer["pools"]]
    else:
        lines.append(_entry("what decided", considered["decided"]))
    if answer["fix"]:
        lines.append(_entry("what would change it", answer["fix"]))
    if considered is not None:
        lines += _considered(considered, answer["now"])
    if answer["history"]:
        lines.append(Text())
        table = _table("TIME", "WHAT", "DETAIL")
        for entry in answer["history"]:
            table.add_row(_time(entry["at"]), _word(entry["kind"]), _detail(entry))
        lines.append(table)
    return Group(*lines)


def _entry(title: str, text: str) -> Text:
    return Text(f"{title}: ", style="bold") + Text(text, style="not bold")


def _indented(text: str | Text, depth: int = 1) -> RenderableType:
    """Lines that are broken stay below their first one."""
    return Padding(text if isinstance(text, Text) else Text(text), (0, 0, 0, 2 * depth), expand=False)


def _considered(considered: Mapping[str, Any], now: float) -> list[RenderableType]:
    lines: list[RenderableType] = []
    home = considered["home"]
    if home is not None:
        by = "by the scheduler's forecast" if home["told"] else "by the running jobs' time limits"
        told = "never, as things are" if home["start_at"] is None else f"{_in(home['start_at'], now)}, {by}"
        lines.append(_entry("start at home", told))
    for pool in considered["pools"]:
        lines.append(_entry(f"pool {pool['pool']} ({pool['provider']})", _pool_answer(pool, now)))
        if pool["obstacle"] and pool["obstacle"]["fix"]:
            lines.append(_indented(f"to change it: {pool['obstacle']['fix']}"))
        for offer in pool["offers"]:
            lines.append(_indented(_offer_answer(offer, now)))
            no = offer["obstacle"]
            if no and no["fix"] and no["reason"] != (pool["obstacle"] or {}).get("reason"):
                lines.append(_indented(f"to change it: {no['fix']}", 2))
    return lines


def _pool_answer(pool: Mapping[str, Any], now: float) -> str:
    parts = [] if pool["obstacle"] is None else [pool["obstacle"]["words"]]
    there = pool["there"]
    if there is not None:
        what = "free" if there["start_at"] <= now or there["busy"] else "up"
        parts.append(f"{there['hosts']} {what} {_in(there['start_at'], now)}")
    return "; ".join(parts)


def _offer_answer(offer: Mapping[str, Any], now: float) -> str:
    spot, zone = "spot " if offer["spot"] else "", offer["zone"] or offer["region"]
    left = "" if offer["nodes_left"] is None else f", {offer['nodes_left']} left"
    price = "no known price" if offer["usd_per_node_hour"] is None else f"{_usd(offer['usd_per_node_hour'])} an hour"
    head = (
        f"{spot}{offer['instance_type']}{f' in {zone}' if zone else ''} ({price}, joins in "
        f"{durations.show(offer['join_s'])}{'' if offer['samples'] else ' by guess'}{left})"
    )
    if offer["obstacle"] is not None:
        return f"{head}: {offer['obstacle']['words']}"
    place = offer["place"]
    usd = "at an unknown price" if place["usd"] is None else f"for ${place['usd']:.2f}"
    beside = f" beside {place['hosts']}" if place["hosts"] else ""
    return f"{head}: would start it {_in(place['start_at'], now)} {usd} on {_nodes(place['buys'])}{beside}"


def _in(at: float, now: float) -> str:
    return f"in {durations.show(at - now)}" if at > now else "now"


def _nodes(count: int) -> str:
    return f"{count} new node{'' if count == 1 else 's'}"


def explain_all(answer: Mapping[str, Any]) -> RenderableType:
    if not answer["groups"]:
        return Text("no active burstable jobs")
    table = _table("STATE", "JOBS", "EXAMPLES", "POOL", "REASON", "FIX")
    for group in answer["groups"]:
        more = " …" if group["count"] > len(group["examples"]) else ""
        table.add_row(
            _word(group["state"]),
            str(group["count"]),
            " ".join(group["examples"]) + more,
            group["pool"],
            group["reason"],
            group["fix"],
        )
    return table


def plan(answer: Mapping[str, Any]) -> RenderableType:
    parts: list[RenderableType] = []
    if answer["paused"]:
        parts.append(Text("buying is paused; after `flux burst resume`:"))
    if answer["purchases"]:
        table = _table("POOL", "HOSTS", "TYPE", "WHERE", "SPOT", "USD/H", "RESERVED", "FOR JOBS")
        for row in answer["purchases"]:
            table.add_row(
                row["pool"],
                row["hosts"],
                row["instance_type"],
                row["zone"] or row["region"],
                "yes" if row["spot"] else "no",
                _usd(row["usd_per_hour"]),
                _reserved(row["reserved_usd"]),
                " ".join(row["jobs"]) or "-",
            )
        parts.append(table)
        hourly = "unknown" if answer["usd_per_hour"] is None else f"${answer['usd_per_hour']:g}"
        parts.append(
            Text(f"in all {_nodes(answer['nodes'])}, {hourly} an hour, {_reserved(answer['reserved_usd'])} reserved")
        )
    else:
        parts.append(Text("nothing would be bought"))
    parts += [Text(f"pool {pool} cannot be kept warm: {why}") for pool, why in answer["unmet"].items()]
    verdicts = ", ".join(f"{count} {kind}" for kind, count in sorted(answer["verdicts"].items())) or "none"
    parts.append(Text(f"verdicts: {verdicts}; `flux burst explain` tells the reasons"))
    for ask in answer["asks"]:
        parts.append(Text(f"not answered yet: provider {ask['provider']} for {_needs(ask)}"))
    return Group(*parts)


def _reserved(usd: float | None) -> str:
    return "unknown" if usd is None else f"${usd:.2f}"


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
    if not answer["offers"] and not answer["refusals"]:
        return Text("no provider has been asked yet")
    parts: list[RenderableType] = []
    if answer["offers"]:
        table = _table(
            "POOL", "PROVIDER", "TYPE", "ZONE", "REGION", "SPOT", "CORES", "MEMORY", "GPUS",
            "USD/H", "JOINS IN", "P90", "MEASURED", "LEFT", "ANSWERED", "HEALTH",
        )  # fmt: skip
        for row in answer["offers"]:
            table.add_row(
                row["pool"],
                row["provider"],
                row["instance_type"],
                row["zone"],
                row["region"],
                "yes" if row["spot"] else "no",
                str(row["cores"]),
                "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**30:.4g}GiB",
                f"{row['gpus']} {row['gpu_model']}".strip() if row["gpus"] else "",
                _usd(row["usd_per_node_hour"]),
                durations.show(row["join_s"]),
                durations.show(row["join_p90_s"]),
                f"{row['samples']} nodes" if row["samples"] else "guess",
                "" if row["nodes_left"] is None else str(row["nodes_left"]),
                f"{durations.show(row['age_s'])} ago",
                _health(row),
            )
        parts.append(table)
    if answer["refusals"]:
        table = _table("POOL", "PROVIDER", "FOR", "ANSWERED", "REFUSAL")
        for row in answer["refusals"]:
            ago = f"{durations.show(row['age_s'])} ago"
            table.add_row(row["pool"], row["provider"], _needs(row), ago, row["reason"])
        parts += [Text(), table] if parts else [table]
    return Group(*parts)


def _health(row: Mapping[str, Any]) -> str:
    wait = "" if row["closed_s"] is None else f", for another {durations.show(row['closed_s'])}"
    return f"{row['health']}{wait}"


def budget(answer: Mapping[str, Any]) -> RenderableType:
    caps = _table("WINDOW", "OF", "NAME", "SPENT", "RESERVED", "CAP", "USED", "CAP IN burst.toml")
    for line in answer["caps"]:
        capped = line["limit_usd"] is not None
        caps.add_row(
            line["window"],
            line["scope"],
            line["name"],
            f"${line['spent_usd']:.2f}",
            f"${line['reserved_usd']:.2f}",
            f"${line['limit_usd']:.2f}" if capped else "",
            Text(f"{line['share']:.0%}", style=_level_style(line["level"])) if capped else "",
            line["cap"],
        )
    since = datetime.fromtimestamp(answer["since_at"], UTC).date().isoformat()
    table = _table(answer["by"].upper(), "NODES", "NODE-HOURS", "SPENT", "RESERVED", "UNPRICED HOURS")
    for total in answer["totals"]:
        table.add_row(
            total["name"] or "-",
            str(total["nodes"]),
            f"{total['node_hours']:.2f}",
            f"${total['spent_usd']:.2f}",
            f"${total['reserved_usd']:.2f}",
            f"{total['unpriced_hours']:.2f}" if total["unpriced_hours"] else "",
        )
    return Group(caps, Text(), Text(f"since {since}:"), table if answer["totals"] else Text("nothing was bought"))


def _level_style(level: float) -> str:
    return "red" if level >= 1 else "yellow" if level else ""


def live(status_answer: Mapping[str, Any], nodes_answer: Mapping[str, Any], jobs_answer: Mapping[str, Any]) -> Group:
    """All three at once, for ``flux burst watch`` and the demo."""
    return Group(status(status_answer), Text(), nodes(nodes_answer), Text(), jobs(jobs_answer))
