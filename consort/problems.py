"""What a person must change before training starts, collected so that all of it is told at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from consort.errors import ConfigError

SHOWN = 3  # mistakes of one kind that are told one by one


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake, or (as a warning) one thing that is probably not meant.

    `key` is the dotted configuration key concerned, as in `devices.0.slm.model`; empty where only a file is.
    """

    where: str
    what: str
    hint: str = ""
    key: str = ""
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.hint}" if self.hint else "")


def first_few(problems: Sequence[Problem], what: str) -> list[Problem]:
    """The first of many alike; the last line says how many more there are, as `<count> more <what>`."""
    if len(problems) <= SHOWN:
        return list(problems)
    place = problems[0].where.rpartition(":")[0] or problems[0].where
    more = Problem(
        place, f"{len(problems) - SHOWN} more {what}", key=problems[0].key, level=problems[0].level
    )
    return [*problems[:SHOWN], more]


def raise_errors(found: Sequence[Problem]) -> None:
    """One ConfigError for all the errors among `found`; warnings pass."""
    errors = [problem for problem in found if problem.level == "error"]
    if len(errors) == 1:
        raise ConfigError(errors[0].what, where=errors[0].where, hint=errors[0].hint)
    if errors:
        raise ConfigError("\n".join([f"{len(errors)} mistakes", *(f"  {problem}" for problem in errors)]))


def nearest(word: str, known: Sequence[str]) -> str:
    """The hint for a mistyped word: the nearest known one, or all of them."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known) or 'none'}"


def counted(count: int, thing: str) -> str:
    """`1 round`, `2 rounds`."""
    return f"{count} {thing}" + ("" if count == 1 else "s")


def size(num_bytes: float) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def shown(value: object) -> str:
    """A configuration value as a person writes it, short enough for one line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
