"""`--set a.b=c`: one key of a configuration, written over the parsed file before it becomes dataclasses.

A device is meant by its position or its name: `devices.0.slm.lora_rank=4`, `devices.bank.slm.lora_rank=4`.
"""

from __future__ import annotations

import tomllib
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from consort.config import Config
from consort.problems import Problem, nearest


def apply_override(raw: dict[str, Any], override: str) -> str | Problem:
    """Write `override` into the parsed file; returns the dotted key that was written, or what is wrong."""
    path, equals, text = override.partition("=")
    parts = [part.strip() for part in path.split(".")]
    where = f"--set {override}"
    if not equals or not all(parts):
        return Problem(where, "must read key=value", "for example tune.rounds=3")
    table: Any = raw
    kind: Any = Config
    written: list[str] = []
    for depth, part in enumerate(parts):
        at = ".".join(written)
        if get_origin(kind) is tuple:
            names = [str(row.get("name", "")) for row in table if isinstance(row, dict)]
            step: Any = _position(part, names, count=len(table))
            if step is None:
                return Problem(where, f'no "{part}" in {at}', nearest(part, names))
            kind = get_args(kind)[0]
        else:
            hints = get_type_hints(kind) if is_dataclass(kind) else {}
            if part not in hints:
                hint = nearest(part, list(hints)) if hints else f"{at} holds a single value"
                return Problem(where, f'unknown key "{part}" in {at or "the top level"}', hint)
            kind, step = hints[part], part
        written.append(str(step))
        if depth == len(parts) - 1:
            table[step] = _value(kind, text)
        else:
            empty: Any = [] if get_origin(kind) is tuple else {}
            table = table.setdefault(step, empty) if isinstance(table, dict) else table[step]
            if type(table) is not type(empty) and not is_scalar(kind):
                return ".".join(written)  # the file itself has the wrong type here, which its reader reports
    return ".".join(written)


def is_scalar(kind: Any) -> bool:
    """Whether a field of this type holds a single value."""
    return not is_dataclass(kind) and get_origin(kind) is not tuple


def _position(part: str, names: list[str], *, count: int) -> int | None:
    if part in names:
        return names.index(part)
    return int(part) if part.isdecimal() and int(part) < count else None


def _value(kind: Any, text: str) -> Any:
    """`text` as TOML where it is TOML, else as it stands; a text field takes `3` as text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    return text if len(parsed) > 1 or (kind is str and not isinstance(value, str)) else value
