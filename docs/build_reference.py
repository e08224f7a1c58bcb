"""Writes docs/reference.md: every configuration key, every verb, the functions and types behind them.

Keys and verbs are asked of the code itself. Signatures and comments are copied from the source as they stand,
so that no framework is imported and neither terminal nor Python version shows. Does not explain anything:
quickstart.md does.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from consort.cli import VERBS, command_line, verb_module
from consort.config import Config, DeviceConfig
from consort.config_serve import ServeConfig, ServedModel
from consort.config_template import field_comments

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference.md"
MODULES = (
    "consort.align",
    "consort.training.mutual",
    "consort.training.losses",
    "consort.training.proxy",
    "consort.training.prune",
    "consort.training.export",
    "consort.federated.co_plms",
    "consort.federated.party",
    "consort.federated.packets",
    "consort.federated.aggregate",
    "consort.federated.baselines",
    "consort.bench.simulate",
    "consort.bench.workload",
)
INTRODUCTION = """\
# Reference

`make docs` generates this page from the source: change it there.

- [Configuration](#configuration): every key of `consort.toml`
- [Command line](#command-line): every verb and its arguments
- [Python](#python): the functions and types behind both

## Configuration

Paths are relative to the file. `--set tune.rounds=3` overrides a key, `--set devices.bank.slm.lora_rank=4`
one of the device named bank.
"""
TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def reference() -> str:
    """The whole page."""
    one_edge = dataclasses.replace(ServeConfig(), edges=(ServedModel(),))
    every_key = dataclasses.replace(Config(), devices=(DeviceConfig(),), serve=one_edge)
    lines = [INTRODUCTION, *_keys(every_key, ""), "## Command line", "", *_verbs(), "## Python", ""]
    for module in MODULES:
        lines += _module(module)
    return "\n".join(lines).rstrip("\n") + "\n"


# ---- configuration


def _keys(table: Any, section: str) -> Iterator[str]:
    """A table's own keys, then the tables below it."""
    hints, comments = get_type_hints(type(table)), field_comments(type(table))
    values = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    below = {
        name: value
        for name, value in values.items()
        if dataclasses.is_dataclass(value) or (isinstance(value, tuple) and not isinstance(value[0], str))
    }
    yield from (f"### `{section}`" if section else "### Top level", "")
    yield from (_prose(inspect.getdoc(type(table)) or ""), "")
    yield from _table(
        ("key", "type", "default", "meaning"),
        [
            (f"`{name}`", _type(hints[name]), f"`{json.dumps(value)}`", _prose(comments.get(name, "")))
            for name, value in values.items()
            if name not in below
        ],
    )
    for name, value in below.items():
        path = f"{section.strip('[]')}.{name}".lstrip(".")
        yield from _keys(value[0], f"[[{path}]]") if isinstance(value, tuple) else _keys(value, f"[{path}]")


def _type(hint: Any) -> str:
    """As `consort check` names it; what a Literal offers stands in its comment."""
    if get_origin(hint) is tuple:
        return "list of strings"
    return TYPES[hint if isinstance(hint, type) else type(get_args(hint)[0])]


# ---- command line


def _verbs() -> Iterator[str]:
    parser, verbs = command_line()
    yield from _arguments(parser._actions, leave_out={"help", "verb"})
    for verb, purpose in VERBS.items():
        verb_module(verb).add_arguments(verbs[verb])
        yield from (f"### `consort {verb}`", "", _prose(f"{purpose[0].upper()}{purpose[1:]}."), "")
        yield from _arguments(verbs[verb]._actions, leave_out={"help", "debug"})
        yield from _block(verbs[verb].epilog or "", language="text")


def _arguments(actions: Iterable[argparse.Action], *, leave_out: set[str]) -> Iterator[str]:
    """The actions themselves, as argparse's own text depends on the terminal and on Python's version."""
    rows = []
    for action in actions:
        if action.dest not in leave_out:
            default = "required" if action.required else f"`{action.default}`" if _is_said(action) else ""
            rows.append((f"`{_call(action)}`", default, _prose((action.help or "") % vars(action))))
    return _table(("argument", "default", "meaning"), rows)


def _call(action: argparse.Action) -> str:
    """`--split {train,valid,test}`, `--json`, `[file]`."""
    if not action.option_strings:
        return f"[{action.dest}]" if action.nargs == "?" else action.dest
    value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else action.dest.upper())
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")


def _is_said(action: argparse.Action) -> bool:
    """Whether the default is a value, and not just nothing."""
    return action.nargs != 0 and action.default not in (None, "", [])


# ---- Python


@dataclasses.dataclass(frozen=True, slots=True)
class Definition:
    """A name of a module or of a class: a function, a type, or a value."""

    name: str
    node: ast.stmt
    lines: Sequence[str]  # of its file


def _module(module: str) -> Iterator[str]:
    """A module's docstring, then each of its names."""
    yield from (f"### `{module}`", "", *_docstring(ast.parse(_text(module))))
    for each in _exported(module):
        yield from (f"#### `{each.name}`", "", *_block(_code(each), language="python"))
        yield from _docstring(each.node)
        for method in _members(each, ast.FunctionDef):
            yield from (*_block(_code(method), language="python"), *_docstring(method.node))


def _exported(module: str) -> list[Definition]:
    """A package's names are those it imports, another module's its types and functions, and the values that
    their signatures use.
    """
    if _file(module).stem == "__init__":
        imports = [node for node in ast.parse(_text(module)).body if isinstance(node, ast.ImportFrom)]
        homes = {alias.name: node.module or "" for node in imports for alias in node.names}
        return [each for name, home in homes.items() for each in _public(home) if each.name == name]
    found = _public(module)
    code = "\n".join(_code(each) for each in found)
    return [
        each
        for each in found
        if isinstance(each.node, ast.ClassDef | ast.FunctionDef)
        or len(re.findall(rf"\b{each.name}\b", code)) > 1
    ]


def _public(module: str) -> list[Definition]:
    """What a module defines without an underscore."""
    return _definitions(ast.parse(_text(module)).body, _text(module).splitlines())


def _definitions(body: Iterable[ast.stmt], lines: Sequence[str]) -> list[Definition]:
    found = []
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                pass
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                pass
            case _:
                continue
        if not name.startswith("_") or name == "__init__":
            found.append(Definition(name, node, lines))
    return found


def _members(each: Definition, kind: type[ast.stmt]) -> list[Definition]:
    """A type's fields or methods; nothing of a function or value."""
    body = each.node.body if isinstance(each.node, ast.ClassDef) else []
    return [member for member in _definitions(body, each.lines) if isinstance(member.node, kind)]


def _code(each: Definition) -> str:
    """As it stands, comments too: a value whole, a function without its body, a type with its fields."""
    node, first, last = each.node, each.node.lineno, each.node.end_lineno
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        first = min([first, *(decorator.lineno for decorator in node.decorator_list)])
        last = node.body[0].lineno - 1
    own = textwrap.dedent("\n".join(each.lines[first - 1 : last])).rstrip()
    fields = [textwrap.indent(_code(field), "    ") for field in _members(each, ast.AnnAssign)]
    return "\n".join([own, *fields])


def _docstring(node: ast.AST) -> Iterator[str]:
    """Paragraph and empty line, or nothing."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
        yield from (_prose(text), "")


def _file(module: str) -> Path:
    folder = ROOT.joinpath(*module.split("."))
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def _text(module: str) -> str:
    return _file(module).read_text(encoding="utf-8")


# ---- Markdown


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (headings, ["---"] * len(headings), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _block(code: str, *, language: str) -> Iterator[str]:
    yield from (f"```{language}", *code.splitlines(), "```", "")


def _prose(text: str) -> str:
    """`<name>` would be read as HTML, unless it stands in backticks."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "\\<") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
