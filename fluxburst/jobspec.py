"""Reading Jobspec Version 1 (RFC 14, RFC 25) and RFC 31 constraints: what a job needs of its nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fluxburst import hostlist
from fluxburst.errors import JobspecError
from fluxburst.model import Constraint, Demand, JobId

_RANGE = re.compile(r"(?P<min>\d{1,18})(?:\+|-(?P<max>\d{1,18}))(?::\d{1,18}(?::[+*^])?)?")
_DEEPEST = 64
"""How deep constraints may nest: far beyond any use, and far from the end of the interpreter's stack."""


def least(count: object, where: str) -> int:
    """The least value that a count allows: an integer, an RFC 14 range object, or an RFC 45 range string.

    Raises:
        JobspecError: the count is none of these, or its least value is below 1.
    """
    value: object = count
    if isinstance(count, Mapping):
        value = count.get("min")
        maximum = count.get("max", value)
        if not isinstance(value, int) or not isinstance(maximum, int) or maximum < value:
            raise JobspecError(f"{where}: count {dict(count)!r} is no range with min and max")
    elif isinstance(count, str):
        match = _RANGE.fullmatch(count[1:-1] if count[:1] == "[" and count[-1:] == "]" else count)
        if match is not None:
            value = int(match["min"])
            if match["max"] is not None and int(match["max"]) < value:
                raise JobspecError(f"{where}: count {count!r} ends below its start")
        else:
            try:
                value = min(hostlist.ids(count))
            except ValueError:
                raise JobspecError(f"{where}: count {count!r} is neither a number nor an RFC 45 range") from None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise JobspecError(f"{where}: count {count!r} is not 1 or more")
    return value


def demand(jobspec: Mapping[str, Any], *, constraint: Constraint | None = None, spot: bool | None = None) -> Demand:
    """What a V1 jobspec needs of its nodes, at the least values of its counts.

    ``constraint`` is what remains of the job's constraints for the planner to match.

    Raises:
        JobspecError: not version 1, or a resource graph other than ``[node >] slot > core [, gpu]``.
    """
    if jobspec.get("version") != 1:
        raise JobspecError(f"jobspec version {jobspec.get('version')!r} is not supported, only 1")
    resources = jobspec.get("resources")
    if not isinstance(resources, Sequence) or len(resources) != 1 or not isinstance(resources[0], Mapping):
        raise JobspecError("resources: exactly one of node or slot is supported at the top")
    top, nodes, exclusive = resources[0], 0, False
    if top.get("type") == "node":
        nodes = least(top.get("count"), "resources.node")
        exclusive = top.get("exclusive", False) is True
        top = _only_child(top, "slot", "resources.node")
    if top.get("type") != "slot":
        raise JobspecError(f"resources: type {top.get('type')!r} is not supported here; node or slot is")
    slots = least(top.get("count"), "resources.slot") * max(nodes, 1)
    exclusive = exclusive or top.get("exclusive", False) is True
    cores, gpus = 0, 0
    for child in _children(top, "resources.slot"):
        kind = child.get("type")
        if child.get("with"):
            raise JobspecError(f"resources.slot.{kind}: nested resources are not supported")
        if kind == "core":
            cores += least(child.get("count"), "resources.slot.core")
        elif kind == "gpu":
            gpus += least(child.get("count"), "resources.slot.gpu")
        else:
            raise JobspecError(f"resources.slot: type {kind!r} is not supported; core and gpu are")
    if cores < 1:
        raise JobspecError("resources.slot: a slot needs at least one core")
    return Demand(
        nodes=nodes,
        slots=slots,
        cores_per_slot=cores,
        gpus_per_slot=gpus,
        exclusive=exclusive,
        duration_s=_duration(jobspec),
        constraint=canonical(constraint),
        spot=spot,
    )


def _only_child(resource: Mapping[str, Any], kind: str, where: str) -> Mapping[str, Any]:
    children = _children(resource, where)
    if len(children) != 1 or children[0].get("type") != kind:
        raise JobspecError(f"{where}: exactly one {kind} is supported inside a {resource.get('type')}")
    return children[0]


def _children(resource: Mapping[str, Any], where: str) -> Sequence[Mapping[str, Any]]:
    children = resource.get("with") or []
    if not isinstance(children, Sequence) or not all(isinstance(child, Mapping) for child in children):
        raise JobspecError(f"{where}.with: not a list of resources")
    return children


def system(jobspec: Mapping[str, Any]) -> Mapping[str, Any]:
    """``attributes.system`` of a jobspec; empty where it is missing or null."""
    value: Any = jobspec
    for place, key in (("attributes", "attributes"), ("attributes.system", "system")):
        value = value.get(key) or {}
        if not isinstance(value, Mapping):
            raise JobspecError(f"{place}: not a table")
    found: Mapping[str, Any] = value
    return found


def queue(jobspec: Mapping[str, Any]) -> str:
    """The queue that a job is submitted to; empty where it names none."""
    value = system(jobspec).get("queue") or ""
    if not isinstance(value, str):
        raise JobspecError(f"attributes.system.queue: {value!r} is not a name")
    return value


def _duration(jobspec: Mapping[str, Any]) -> float:
    value = system(jobspec).get("duration", 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise JobspecError(f"attributes.system.duration: {value!r} is not a number of seconds")
    return float(value)


def canonical(constraint: Constraint | None) -> str:
    """A constraint as JSON that is equal for equal constraints; empty for none.

    Raises:
        JobspecError: the constraint is malformed (see :func:`matches`).
    """
    if not constraint:
        return ""
    matches(constraint, host="", rank=-1, properties=frozenset())
    return json.dumps(constraint, sort_keys=True, separators=(",", ":"))


def matches(
    constraint: Constraint, *, host: str, rank: int, properties: frozenset[str], deepest: int = _DEEPEST
) -> bool:
    """Whether a node satisfies an RFC 31 constraint. All operators are evaluated, so that malformed ones show.

    Where Flux's schedulers differ it follows Fluxion, the stricter one: nothing satisfies an empty ``or``, and a host's
    name is none of its properties (librlist, behind sched-simple, takes both).

    Raises:
        JobspecError: an operator is unknown or has operands of the wrong form, or they nest deeper than ``deepest``.
    """
    if deepest < 1:
        raise JobspecError(f"constraints: operators nest deeper than {_DEEPEST}")
    if not isinstance(constraint, Mapping) or len(constraint) > 1:
        raise JobspecError(f"constraints: {constraint!r} is not an object with one operator (RFC 31)")
    for operator, operands in constraint.items():
        if not isinstance(operands, Sequence) or isinstance(operands, str):
            raise JobspecError(f"constraints.{operator}: operands must be a list (RFC 31)")
        if operator in ("and", "or", "not"):
            results = [
                matches(part, host=host, rank=rank, properties=properties, deepest=deepest - 1) for part in operands
            ]
            if operator == "or":
                return any(results)
            return all(results) is (operator == "and")
        if not all(isinstance(operand, str) for operand in operands):
            raise JobspecError(f"constraints.{operator}: operands must be strings (RFC 31)")
        try:
            if operator == "properties":
                return all((name[1:] not in properties) if name[:1] == "^" else name in properties for name in operands)
            if operator == "hostlist":
                return any(host in hostlist.expand(text) for text in operands)
            if operator == "ranks":
                return any(rank in hostlist.ids(text) for text in operands)
        except ValueError as error:
            raise JobspecError(f"constraints.{operator}: {error}") from None
        raise JobspecError(f"constraints: operator {operator!r} is not one of RFC 31's")
    return True


_MARK = "fluxburst"
"""The key below ``attributes.user`` where a resubmitted job names the one that it replaces."""


def mark_resubmission(spec: Mapping[str, Any], job_id: int, attempt: int) -> dict[str, Any]:
    """A copy of a jobspec that says, under ``attributes.user``, which job it is submitted again for."""
    attributes = dict(spec.get("attributes") or {})
    user = attributes.get("user")
    mark = {"resubmit_of": int(job_id), "attempt": attempt}
    attributes["user"] = {**(user if isinstance(user, Mapping) else {}), _MARK: mark}
    return {**spec, "attributes": attributes}


def resubmit_of(spec: Mapping[str, Any]) -> JobId | None:
    """The job that this one is submitted again for; None for an ordinary job."""
    value = _mark(spec).get("resubmit_of")
    return JobId(value) if isinstance(value, int) else None


def attempt(spec: Mapping[str, Any]) -> int:
    """How many times a job has been submitted again; 0 for an ordinary job."""
    value = _mark(spec).get("attempt")
    return value if isinstance(value, int) and value > 0 else 0


def _mark(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    user = (spec.get("attributes") or {}).get("user")
    mark = user.get(_MARK) if isinstance(user, Mapping) else None
    return mark if isinstance(mark, Mapping) else {}


def with_system(spec: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """A copy of a jobspec with some of its ``attributes.system`` replaced."""
    return {**spec, "attributes": {**(spec.get("attributes") or {}), "system": {**system(spec), **values}}}
