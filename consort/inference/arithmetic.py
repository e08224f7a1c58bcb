"""Equations written in running text, computed again: `8 x $1.50 = $12`, `<<60/3=20>>`, `(3 + 4) * 2 = 14`.

Only numbers, the four operations, brackets and percent signs are read; algebra with letters is not. Dates
(`2024-01-02`) and ranges have no equals sign and so are no equations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_AMOUNT = r"[(\s]*-?[$€£]?\s?\d[\d,]*(?:\.\d+)?%?[)\s]*"
_EQUATION = re.compile(rf"({_AMOUNT}(?:[-+*/x×÷]{_AMOUNT})+)=\s*(-?[$€£]?\s?-?\d[\d,]*(?:\.\d+)?%?)")
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?")
_TOKEN = re.compile(r"\d[\d,]*(?:\.\d+)?|[-+*/()%]")
_SAME = str.maketrans({"×": "*", "x": "*", "÷": "/", "−": "-", "–": "-"})


@dataclass(frozen=True, slots=True)
class Equation:
    """A calculation as written: its left side computed again, what the text says it is, and its numbers."""

    computed: float
    stated: float
    terms: tuple[float, ...]

    @property
    def holds(self) -> bool:
        """Whether the stated result is the computed one, up to rounding (`1/3 = 0.3`)."""
        return math.isclose(self.computed, self.stated, rel_tol=0.006, abs_tol=0.0051)


def equations(text: str) -> list[Equation]:
    """Every equation of `text` that can be computed, in order. `a = b + c = d` counts as `b + c = d`."""
    found = []
    for left, right in _EQUATION.findall(text.translate(_SAME)):
        tokens = _TOKEN.findall(left)
        computed = _value(tokens)
        if computed is not None:
            terms = tuple(number(token) for token in tokens if token[0].isdigit())
            found.append(Equation(computed, number(right), terms))
    return found


def number(written: str) -> float:
    """`1,200.50`, `$3` or `-15%` as a number (15, not 0.15: a share is compared as it is written)."""
    digits = re.sub(r"[^\d.]", "", written)[:30].rstrip(".")
    return (-1.0 if "-" in written else 1.0) * float(digits or 0)


def _value(tokens: list[str]) -> float | None:
    """The value of an expression; None where it divides by zero or its brackets do not match."""
    rest = iter([*tokens, ""])
    try:
        value, following = _sum(rest, next(rest))
    except (StopIteration, ZeroDivisionError, ValueError):
        return None
    return value if not following else None


def _sum(rest: Iterator[str], token: str) -> tuple[float, str]:
    value, token = _product(rest, token)
    while token in ("+", "-"):
        sign = 1 if token == "+" else -1
        term, token = _product(rest, next(rest))
        value += sign * term
    return value, token


def _product(rest: Iterator[str], token: str) -> tuple[float, str]:
    value, token = _term(rest, token)
    while token in ("*", "/"):
        divides = token == "/"
        factor, token = _term(rest, next(rest))
        value = value / factor if divides else value * factor
    return value, token


def _term(rest: Iterator[str], token: str) -> tuple[float, str]:
    """A number, a negative term or a bracket, with a percent sign if one follows; and the token after it."""
    if token == "-":
        value, token = _term(rest, next(rest))
        return -value, token
    if token == "(":
        value, token = _sum(rest, next(rest))
        if token != ")":
            raise ValueError("bracket not closed")
    else:
        value = float(token.replace(",", ""))
    token = next(rest)
    return (value / 100, next(rest)) if token == "%" else (value, token)
