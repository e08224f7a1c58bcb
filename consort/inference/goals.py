"""Goals as people state them: `quality >= 0.98 of cloud`, `cost <= 10 EUR/month`, `p95 <= 1.5 s`.

Only reads them; `calibration` finds the threshold that keeps them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from consort.errors import ConfigError
from consort.problems import nearest

Kind: TypeAlias = Literal["quality", "cost", "latency"]
EXAMPLES = ("quality >= 0.98 of cloud", "cost <= 10 EUR/month", "p95 <= 1.5 s")
_GOAL = re.compile(r"\s*([a-z_]+)(\d*)\s*(>=|<=|≥|≤|=|<|>)\s*([-+]?[\d.,]+)\s*(%?)\s*(.*?)\s*", re.IGNORECASE)
_SECONDS = {"s": 1.0, "ms": 0.001}
_PERIODS = ("month", "request")


@dataclass(frozen=True, slots=True)
class Goal:
    """One bound. `of_cloud`: the limit is a share of what the cloud alone reaches or costs. A latency goal
    bounds the quantile `quantile` in seconds; a cost goal bounds euros a month or a request."""

    kind: Kind
    limit: float
    of_cloud: bool = False
    quantile: float = 0.0
    per: Literal["", "month", "request"] = ""

    def __str__(self) -> str:
        if self.kind == "latency":
            return f"p{100 * self.quantile:g} <= {self.limit:g} s"
        unit = " of cloud" if self.of_cloud else f" EUR/{self.per}" if self.per else ""
        return f"{self.kind} {'>=' if self.kind == 'quality' else '<='} {self.limit:g}{unit}"


def parse_goal(text: str) -> Goal:
    """Read one goal; a ConfigError says what cannot be meant."""
    found = _GOAL.fullmatch(text)
    if found is None:
        raise _unclear(text, "not a goal")
    word, digits, relation, written, percent, unit = (part.lower() for part in found.groups())
    try:
        limit = float(written.replace(",", ".")) / (100 if percent else 1)
    except ValueError:
        raise _unclear(text, f'"{written}" is not a number') from None
    if limit <= 0:
        raise _unclear(text, "the limit must be above 0")
    if word == "p" and digits:
        _demand(text, relation, "<=", "a latency is bounded from above")
        return _latency(text, int(digits), limit, unit if not percent else "%")
    if digits or word not in ("quality", "cost"):
        raise _unclear(
            text, f'"{word}{digits}" cannot be a goal; {nearest(word, ("quality", "cost", "p95"))}'
        )
    if word == "quality":
        _demand(text, relation, ">=", "quality is bounded from below")
        return _quality(text, limit, unit)
    _demand(text, relation, "<=", "a cost is bounded from above")
    return _cost(text, limit, unit, percent=bool(percent))


def _quality(text: str, limit: float, unit: str) -> Goal:
    if unit not in ("", "of cloud", "of the cloud"):
        raise _unclear(
            text, f'"{unit}" is not known after a quality', "write `of cloud`, or nothing for a mean score"
        )
    if limit > 1:
        raise _unclear(text, "a quality is at most 1", "write 0.98 or 98 %")
    return Goal("quality", limit, of_cloud=bool(unit))


def _cost(text: str, limit: float, unit: str, *, percent: bool) -> Goal:
    if unit in ("of cloud", "of the cloud"):
        return Goal("cost", limit, of_cloud=True)
    currency, _, period = unit.replace(" per ", "/").replace(" ", "").partition("/")
    if percent or currency not in ("eur", "€", "euro"):
        raise _unclear(
            text, "a cost is in euros or a share of the cloud's", "write `10 EUR/month` or `0.3 of cloud`"
        )
    if period not in _PERIODS:
        raise _unclear(text, "a cost needs its period", "write `10 EUR/month` or `0.002 EUR/request`")
    return Goal("cost", limit, per="month" if period == "month" else "request")


def _latency(text: str, percentile: int, limit: float, unit: str) -> Goal:
    if not 1 <= percentile <= 99:
        raise _unclear(text, f"p{percentile} is no percentile", "write p50 to p99")
    if unit not in _SECONDS:
        raise _unclear(text, "a latency needs its unit", "write `1.5 s` or `800 ms`")
    return Goal("latency", limit * _SECONDS[unit], quantile=percentile / 100)


def _demand(text: str, relation: str, wanted: str, why: str) -> None:
    if relation.replace("≥", ">=").replace("≤", "<=") != wanted:
        raise _unclear(text, why, f"write {wanted}")


def _unclear(text: str, what: str, hint: str = "") -> ConfigError:
    return ConfigError(what, where=f'goal "{text}"', hint=hint or "as in: " + "; ".join(EXAMPLES))
