"""Outcomes: what models scored on prompts, as JSONL rows `{"prompt", "scores": {model: score}}`, with
`"answers"`, `"cost_eur"` and `"latency_s"` (also one value a model) and `"group"` where they are known.

A ledger whose answers were graded writes the same rows. Does not grade answers and does not ask models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.errors import DataError
from consort.files import whole_file
from consort.inference.evidence import Evidence, Group
from consort.problems import nearest, shown

Array: TypeAlias = NDArray[np.float64]
_KEYS = ("prompt", "scores", "answers", "cost_eur", "latency_s", "group")
_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """One prompt and what became of it, by model's name: scores in 0..1, answers, euros and seconds.
    `features` of prompt and small answer stand for texts that were not kept (an empty prompt)."""

    prompt: str
    scores: Mapping[str, float]
    answers: Mapping[str, str] = field(default_factory=dict)
    cost_eur: Mapping[str, float] = field(default_factory=dict)
    latency_s: Mapping[str, float] = field(default_factory=dict)
    group: str = ""
    features: Mapping[Group, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """The outcomes that both a small and a large model scored, as columns."""

    small: str
    large: str
    outcomes: tuple[Outcome, ...]
    small_scores: Array
    large_scores: Array

    @property
    def gains(self) -> Array:
        """Score of the large model less that of the small one, a prompt."""
        return self.large_scores - self.small_scores

    @property
    def has_answers(self) -> bool:
        """Whether the small model's answer is known on every prompt, or what was computed from it."""
        return all(self.small in outcome.answers or "checks" in outcome.features for outcome in self.outcomes)

    def evidence(self, *, answered: bool) -> list[Evidence]:
        """What is known before the small model answers, or after. The large model's answer is never shown."""
        if not answered:
            return [
                Evidence(outcome.prompt, kept={g: v for g, v in outcome.features.items() if g == "surface"})
                for outcome in self.outcomes
            ]
        return [
            Evidence(
                outcome.prompt,
                outcome.answers.get(self.small),
                kept=outcome.features,
                others=tuple(
                    text for name, text in outcome.answers.items() if name not in (self.small, self.large)
                ),
            )
            for outcome in self.outcomes
        ]

    def costs_eur(self, model: str) -> Array | None:
        """Euros a prompt; None unless known for every prompt."""
        return _column([outcome.cost_eur for outcome in self.outcomes], model)

    def latencies_s(self, model: str) -> Array | None:
        """Seconds a prompt; None unless known for every prompt."""
        return _column([outcome.latency_s for outcome in self.outcomes], model)


def read_outcomes(path: Path) -> list[Outcome]:
    """Every row of the file, or one DataError that tells each mistake with its line."""
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), hint="give a JSONL file of outcomes")
    rows, mistakes = [], []
    with path.open(encoding="utf-8", errors="strict") as file:
        try:
            for line, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                row, wrong = _parsed(text)
                mistakes += [(line, what) for what in wrong]
                if row is not None and not wrong:
                    rows.append(_outcome(row))
        except UnicodeDecodeError as error:
            raise DataError(
                f"not UTF-8: {error.reason}", where=str(path), hint="save the file as UTF-8"
            ) from None
    if mistakes:
        raise _told(path, mistakes)
    if not rows:
        raise DataError(
            "no outcome in this file", where=str(path), hint='a row: {"prompt": ..., "scores": {...}}'
        )
    return rows


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """The rows that `read_outcomes` reads: of texts, which features do not stand for there."""
    with whole_file(path) as file:
        for outcome in outcomes:
            row = {key: getattr(outcome, key) for key in _KEYS}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def pair(outcomes: Sequence[Outcome], *, small: str = "", large: str = "", where: str = "") -> Pair:
    """Two models' columns. Unnamed, they are the worse and the better of two; of more, both must be named."""
    models = sorted({name for outcome in outcomes for name in outcome.scores})
    for name in (small, large):
        if name and name not in models:
            raise DataError(f'no outcome has a score of "{name}"', where=where, hint=nearest(name, models))
    if len(models) < 2:
        raise DataError(
            "deciding needs the scores of two models", where=where, hint=f"known: {', '.join(models)}"
        )
    if not (small and large) and len(models) > 2:
        raise DataError(
            f"{len(models)} models have scores here",
            where=where,
            hint=f"name --small and --large: {', '.join(models)}",
        )
    if not (small and large):
        known = {small, large} - {""}
        free = sorted((name for name in models if name not in known), key=lambda name: _mean(outcomes, name))
        small = small or free.pop(0)
        large = large or free.pop()
    if small == large:
        raise DataError(f'"{small}" cannot be both the small and the large model', where=where)
    both = tuple(outcome for outcome in outcomes if small in outcome.scores and large in outcome.scores)
    if not both:
        raise DataError(f'no prompt was scored for both "{small}" and "{large}"', where=where)
    columns = [
        np.array([outcome.scores[name] for outcome in both], dtype=np.float64) for name in (small, large)
    ]
    return Pair(small, large, both, *columns)


def _mean(outcomes: Sequence[Outcome], model: str) -> float:
    return float(np.mean([outcome.scores[model] for outcome in outcomes if model in outcome.scores]))


def _column(rows: Sequence[Mapping[str, float]], model: str) -> Array | None:
    return np.array([row[model] for row in rows]) if all(model in row for row in rows) else None


def _parsed(text: str) -> tuple[dict[str, Any] | None, list[str]]:
    try:
        row = json.loads(text)
    except ValueError as error:
        return None, [f"not JSON: {error}"]
    if not isinstance(row, dict):
        return None, ["a row is an object, in braces"]
    return row, list(_mistakes(row))


def _mistakes(row: dict[str, Any]) -> Iterator[str]:
    for key in row:
        if key not in _KEYS:
            yield f'unknown key "{key}"; {nearest(key, _KEYS)}'
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        yield '"prompt" must be a text that is not empty'
    if not row.get("scores"):
        yield '"scores" must name at least one model'
    for key in ("scores", "answers", "cost_eur", "latency_s"):
        yield from _column_mistakes(key, row.get(key) or {})


def _column_mistakes(key: str, values: object) -> Iterator[str]:
    if not isinstance(values, dict):
        yield f'"{key}" must be an object of one value a model, not {shown(values)}'
        return
    for model, value in values.items():
        if key == "answers":
            if not isinstance(value, str):
                yield f'the answer of "{model}" must be a text, not {shown(value)}'
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield f'"{key}" of "{model}" must be a number, not {shown(value)}'
        elif value < 0 or (key == "scores" and value > 1):
            yield f'"{key}" of "{model}" is {shown(value)}; ' + (
                "give 0 to 1" if key == "scores" else "give 0 or more"
            )


def _outcome(row: dict[str, Any]) -> Outcome:
    group = row.get("group")
    return Outcome(
        row["prompt"],
        row["scores"],
        row.get("answers") or {},
        row.get("cost_eur") or {},
        row.get("latency_s") or {},
        "" if group is None else str(group),
    )


def _told(path: Path, mistakes: Sequence[tuple[int, str]]) -> DataError:
    if len(mistakes) == 1:
        (line, what), *_ = mistakes
        return DataError(what, where=f"{path}:{line}")
    told = [f"  {path}:{line}: {what}" for line, what in mistakes[:_MOST_SHOWN]]
    more = len(mistakes) - _MOST_SHOWN
    return DataError(
        "\n".join([f"{len(mistakes)} mistakes", *told, *([f"  and {more} more"] if more > 0 else [])])
    )
