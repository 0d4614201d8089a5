"""Writes docs/reference/ from the code. ``--check`` only compares, and exits 1 where the docs are behind the code.

It also holds the hand-written docs to the code: every hook appears in docs/plugin-authors.md with its exact signature,
every listing that names its file is a part of that file, and every relative link leads somewhere.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fluxburst import durations, errors, model, states
from fluxburst.cli import cli
from fluxburst.config import BurstConfig
from fluxburst.provider import hookspecs, protocol

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
WIDTH = 100
HEAD = "<!-- Written by docs/generate.py from the code: change it there, then run `make docs`. -->\n"


def main(arguments: Sequence[str]) -> int:
    """Write the reference, or with ``--check`` compare; the exit status."""
    check = list(arguments) == ["--check"]
    if arguments and not check:
        print("usage: generate.py [--check]", file=sys.stderr)
        return 2
    problems: list[str] = []
    for name, page in PAGES.items():
        path, text = REFERENCE / f"{name}.md", f"{HEAD}\n{page()}"
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old == text:
            continue
        if check:
            problems.append(f"{_place(path)} is behind the code; run `make docs`\n{_summary(old, text)}")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {_place(path)}")
    problems += [*missing_hooks(), *stale_listings(), *dead_links()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _place(path: Path) -> str:
    return os.path.relpath(path, ROOT)


def _summary(old: str, new: str, most: int = 12) -> str:
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0))[2:]
    more = [f"... and {len(lines) - most} more lines"] if len(lines) > most else []
    return "\n".join(f"    {line}" for line in [*lines[:most], *more])


# -- the hand-written pages ------------------------------------------------------------------------------------------


def missing_hooks() -> Iterator[str]:
    page = ROOT / "docs" / "plugin-authors.md"
    text = page.read_text(encoding="utf-8")
    for function in _functions(hookspecs):
        if _signature(function) not in text:
            yield f"{_place(page)} lacks the hook as it is now: {_signature(function)}"


def stale_listings() -> Iterator[str]:
    """A listing below a line ``<!-- from PATH -->`` must be in that file, word for word."""
    for page in _pages():
        for path, listing in re.findall(r"<!-- from (\S+) -->\n```\w*\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            if listing.strip("\n") not in (ROOT / path).read_text(encoding="utf-8"):
                yield f"{_place(page)}: a listing from {path} differs from the file: {listing.strip().splitlines()[0]}"


def dead_links() -> Iterator[str]:
    for page in _pages():
        for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                yield f"{_place(page)}: the link to {target} leads nowhere"


def _pages() -> Iterable[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


# -- pages from the code ---------------------------------------------------------------------------------------------


def commands() -> str:
    def tree(command: click.Command, context: click.Context) -> Iterator[str]:
        if isinstance(command, click.Group):
            if context.parent is not None:
                yield f"## {context.command_path}\n\n{(command.help or '').strip()}\n"
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                if found is not None and _is_ours(found):
                    yield from tree(found, context_of(found, context, name))
        else:
            yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"

    def context_of(command: click.Command, parent: click.Context | None, name: str) -> click.Context:
        return click.Context(
            command, parent, name, terminal_width=WIDTH, max_content_width=WIDTH, **command.context_settings
        )

    intro = (
        "# Commands\n\n"
        "Plugins may add more; `flux burst --help` lists them all. Most commands ask the service, so `flux burst run`\n"
        "must run on the instance. An error is one line on standard error, and exit status 1.\n"
    )
    return "\n".join([intro, *tree(cli, context_of(cli, None, "flux burst"))])


def _is_ours(command: click.Command) -> bool:
    return command.callback is not None and command.callback.__module__.startswith("fluxburst.")


def burst_toml() -> str:
    parts = [
        "# burst.toml\n",
        "Unknown keys are errors. A *duration* is a Flux Standard Duration (RFC 23): a number of seconds,\n"
        "or text such as `90s`, `5m` or `1.5h`.\n",
        *_table("top level", BurstConfig),
    ]
    titles: dict[type[BaseModel], list[str]] = {}
    for place, kind in _tables_below("", BurstConfig):
        titles.setdefault(kind, []).append(place)
    for kind, places in titles.items():
        parts += _table(", ".join(places), kind)
    return "\n".join(parts)


def _tables_below(path: str, kind: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every table that may stand in a table, as it is written, with its model."""
    for name, field in kind.model_fields.items():
        for inner in _kinds(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                place = f"{path}{name}" if field.annotation is inner else f"{path}{name}.NAME"
                yield (f"[[{path}{name}]]" if get_origin(field.annotation) is tuple else f"[{place}]"), inner
                yield from _tables_below(f"{place}.", inner)


def _table(title: str, kind: type[BaseModel]) -> Iterator[str]:
    yield f"## {title}\n"
    if kind is not BurstConfig:
        yield f"{_prose(_documented(kind.__name__, inspect.getdoc(kind)))}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        meaning = _documented(f"{kind.__name__}.{name}", field.description)
        yield f"| `{name}` | {_type(field)} | {_default(field)} | {_cell(meaning)} |"
    yield ""


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return (annotation, *(part for inner in get_args(annotation) for part in _kinds(inner)))


def _is_duration(field: FieldInfo) -> bool:
    """Whether it is a duration, or a duration or nothing."""
    inner = (part for argument in get_args(field.annotation) for part in getattr(argument, "__metadata__", ()))
    return any(getattr(item, "func", None) is durations.parse for item in (*field.metadata, *inner))


def _type(field: FieldInfo) -> str:
    if _is_duration(field):
        return "duration"
    words = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    arguments = [argument for argument in get_args(field.annotation) if argument is not type(None)]
    origin = get_origin(field.annotation)
    if field.annotation in words:
        word = words[field.annotation]
    elif origin is tuple and isinstance(arguments[0], type) and issubclass(arguments[0], BaseModel):
        word = "list of tables"
    elif origin is tuple:
        word = "list of " + " or ".join(words[kind] for inner in arguments[:1] for kind in get_args(inner) or (inner,))
    elif origin is dict:
        word = "table"
    elif all(isinstance(argument, str) for argument in arguments):
        word = " or ".join(f'`"{argument}"`' for argument in arguments)
    else:
        word = " or ".join(words[argument] for argument in arguments)
    least = [f", {item.ge} or more" for item in field.metadata if hasattr(item, "ge")]
    return word + "".join(least)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required() or value is PydanticUndefined:
        return "required"
    if _is_duration(field) and value is not None:
        return f'`"{durations.show(value)}"`' if value else '`"0s"`'
    if value in (None, (), {}, ""):
        return ""
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def hooks() -> str:
    parts = [
        "# Hooks and the provider protocol\n",
        _prose(ast.get_docstring(_tree(hookspecs)) or "") + "\n",
        "How to use them: [plugin-authors.md](../plugin-authors.md).\n",
        "## Hooks\n",
    ]
    for function in _functions(hookspecs):
        parts.append(f"### {function.name}\n\n```python\n{_signature(function)}\n```\n\n{_doc_of(function)}\n")
    provider = _class(protocol, "Provider")
    parts.append(f"## Provider\n\n{_doc_of(provider)}\n")
    parts += [f"`{name}`: {_prose(text)}\n" for name, text in _attribute_docs(provider)]
    for method in provider.body:
        if isinstance(method, ast.FunctionDef):
            parts.append(f"### {method.name}\n\n```python\n{_signature(method)}\n```\n\n{_doc_of(method)}\n")
    parts.append(f"## ProviderContext\n\n{_doc_of(_class(protocol, 'ProviderContext'))}\n")
    return "\n".join(parts)


def error_page() -> str:
    def rows(kind: type[errors.FluxburstError], depth: int) -> Iterator[str]:
        scope = f"`{kind.default_scope}`" if issubclass(kind, errors.ProviderError) else ""
        text = _cell(" ".join(_documented(kind.__name__, inspect.getdoc(kind)).split("\n\n")[0].split()))
        yield f"| {'&emsp;' * depth}`{kind.__name__}` | {scope} | {text} |"
        for child in kind.__subclasses__():
            if child.__module__ == errors.__name__:
                yield from rows(child, depth + 1)

    return "\n".join(
        [
            "# Errors\n",
            "All are in `fluxburst.errors`. *Scope* is what a provider's error poisons unless another is named:\n"
            "so much is left alone for the cool-down. `offer` is one offer of one pool; `zone` and `region` are all\n"
            "of the provider's offers there, in whatever pool, and the order's pool where its offer names neither.\n",
            "| error | scope | meaning |\n|---|---|---|",
            *rows(errors.FluxburstError, 0),
            "",
        ]
    )


def state_page() -> str:
    nodes = dict(_attribute_docs(_class(states, "NodeState")))
    parts = [
        "# States\n",
        "## Nodes\n",
        "What `flux burst nodes` shows.\n",
        "| state | meaning | may become |\n|---|---|---|",
    ]
    for state in states.NodeState:
        allowed = [f"`{other}`" for other in states.NodeState if other in states.TRANSITIONS[state]]
        parts.append(f"| `{state}` | {_cell(nodes[state.name])} | {', '.join(allowed) or 'nothing, it is final'} |")
    parts += ["", "Any other change is an error of the program (`IllegalTransition`) and is not recorded.\n"]
    parts += ["Why a node left its path; the reason begins with one of: " + _listed(states.Why) + ".\n"]
    parts += [
        "## Jobs\n",
        "What `flux burst jobs`, `flux burst explain` and a job's memo (`{user.burst.state}`) show.\n",
    ]
    parts += ["| state | meaning |\n|---|---|"]
    verdicts = dict(_attribute_docs(_class(model, "VerdictKind")))
    parts += [f"| `{kind}` | {_cell(verdicts[kind.name])} |" for kind in model.VerdictKind]
    parts += ["| `running` | It has an allocation. |"]
    parts += ["| `lost` | A node was lost while it ran there (in the memo only). |"]
    parts += ["| `new` | It was just submitted and has no verdict yet (`flux burst jobs` only). |", ""]
    return "\n".join(parts)


def _listed(kind: type[StrEnum]) -> str:
    return ", ".join(f"*{word}*" for word in kind)


# -- reading source --------------------------------------------------------------------------------------------------


def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _functions(module: ModuleType) -> list[ast.FunctionDef]:
    return [node for node in _tree(module).body if isinstance(node, ast.FunctionDef)]


def _class(module: ModuleType, name: str) -> ast.ClassDef:
    return next(node for node in _tree(module).body if isinstance(node, ast.ClassDef) and node.name == name)


def _signature(function: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"def {function.name}({ast.unparse(function.args)}){returns}"


def _doc_of(node: ast.FunctionDef | ast.ClassDef) -> str:
    return _prose(_documented(node.name, ast.get_docstring(node)))


def _attribute_docs(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """The name of each attribute and the text below it."""
    for before, after in zip(node.body, node.body[1:], strict=False):
        target = before.target if isinstance(before, ast.AnnAssign) else getattr(before, "targets", [None])[0]
        if isinstance(target, ast.Name) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            yield target.id, inspect.cleandoc(str(after.value.value))


def _documented(name: str, text: str | None) -> str:
    if not text:
        raise SystemExit(f"{name} has no docstring: the reference would say nothing about it")
    return text


def _prose(text: str) -> str:
    """Docstring markup as Markdown."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(_prose(text).split()).replace("|", r"\|")


PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "burst-toml": burst_toml,
    "hooks": hooks,
    "errors": error_page,
    "states": state_page,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
