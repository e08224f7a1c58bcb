"""A commented `consort.toml`, generated from `config`'s dataclasses and their comments: it cannot drift."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import re
import tokenize
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli_w

from consort.config import Config

HEADER = """\
# {title}
# Paths are relative to this file. `consort check FILE` finds all mistakes, `--set a.b=c` overrides a key.
"""


def render_template(config: Config, *, title: str) -> str:
    """`config` as TOML with each key explained where it first comes; reading it back gives `config`."""
    return HEADER.format(title=title) + "\n".join(_table(config, "", explained=set())) + "\n"


def field_comments(table: type) -> dict[str, str]:
    """What a dataclass says about each field: its choices, the comment above it, and the one on its line."""
    comments = {
        name: "one of " + ", ".join(json.dumps(option) for option in get_args(kind))
        for name, kind in get_type_hints(table).items()
        if get_origin(kind) is Literal
    }
    name, above = "", ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(table)).readline):
        said = token.string.lstrip("# ")
        if token.type == tokenize.NAME and token.start[1] == 4 and re.match(r" {4}\w+: ", token.line):
            name = token.string
            comments[name] = "; ".join(filter(None, [comments.get(name), above]))
            above = ""
        elif token.type == tokenize.COMMENT and name:
            comments[name] = "; ".join(filter(None, [comments[name], said]))
        elif token.type == tokenize.COMMENT:
            above = f"{above} {said}".strip()
        elif token.type == tokenize.NEWLINE:
            name = ""
    return {name: comment for name, comment in comments.items() if comment}


def _table(table: Any, prefix: str, *, explained: set[type]) -> list[str]:
    """Scalars first, as TOML wants, then the tables and arrays of tables below."""
    comments = field_comments(type(table)) if type(table) not in explained else {}
    explained.add(type(table))
    values, below, hints = [], [], get_type_hints(type(table))
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            below += [
                "",
                *_purpose(value, explained),
                f"[{key}]",
                *_table(value, f"{key}.", explained=explained),
            ]
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for row in value:
                below += [
                    "",
                    *_purpose(row, explained),
                    f"[[{key}]]",
                    *_table(row, f"{key}.", explained=explained),
                ]
        else:
            if isinstance(value, tuple):
                if not value and dataclasses.is_dataclass(get_args(hints[field.name])[0]):
                    continue  # an array of tables without any
                items = (_assigned("", item).removeprefix('"" = ') for item in value)
                line = f"{field.name} = [{', '.join(items)}]"
            else:
                line = _assigned(field.name, value)
            comment = comments.get(field.name, "")
            values.append(f"{line}  # {comment}" if comment else line)
    return values + below


def _assigned(key: str, value: object) -> str:
    return tomli_w.dumps({key: value}).rstrip("\n")


def _purpose(table: object, explained: set[type]) -> list[str]:
    return [] if type(table) in explained else [f"# {inspect.getdoc(type(table))}".splitlines()[0]]
