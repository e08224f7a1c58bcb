"""What can be checked in a written answer without knowing the right one, as a row of plain features.

Every equation in the answer is computed again; the final answer must be there, must follow from what was
computed and be of the kind that was asked for; numbers must come from somewhere and go somewhere; the text
must end, and not hedge, refuse or repeat itself. `failed_checks` counts without any training; the features
are for `gain_model`. Does not run models and does not compare with a reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from consort.inference.arithmetic import NUMBER, equations, number

_MARK = r"(?:####|\\boxed\{|\banswer(?: is|:))"
_MARKED = re.compile(_MARK, re.IGNORECASE)
_FINAL = re.compile(_MARK + r"[^\d\n]{0,16}?(-?[$€£]?\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
_BARE = re.compile(r"\s*(-?[$€£]?\d[\d,]*(?:\.\d+)?)\s*[%.]?\s*")
_HEDGE = re.compile(
    r"\b(?:however|actually|assum\w*|perhaps|maybe|might|probably|possibly|unclear|not sure|cannot|can't"
    r"|mistake|sorry|wait|apolog\w*|impossible|sense|enough|approximately|about|around|round\w*|since)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:as an ai|i (?:cannot|can't|do not know|don't know)|(?:i am|i'm) unable)\b", re.IGNORECASE
)
_WORD_NUMBER = re.compile(
    r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|twice|double|half|third|quarter"
    r"|triple|week|day|year|month|hour|minute)s?\b",
    re.IGNORECASE,
)
_END = re.compile(r"[.!?\d)\]}\"'”`*]\s*$")
_LONG_DECIMAL = re.compile(r"\d\.\d{3,}")
_UNKNOWN = re.compile(r"\b[xyznXYZ]\b\s*[-=+*]|\blet\b")
_HOW_MANY = re.compile(r"\bhow many\b", re.IGNORECASE)

CHECKS = (
    "log characters", "log lines", "log equations", "wrong equations, share", "a wrong equation",
    "final answer marked", "no final answer", "log final answer", "final answer is fractional",
    "final answer is negative", "final answer was the last result", "final answer was computed",
    "final answer stands in the question", "final answer is below a cent",
    "numbers of the question used, share", "numbers from nowhere, share", "results used later, share",
    "results, fractional share",
    "log largest number", "characters per equation", "hedges", "refusal", "text ends",
    "repeated lines, share",
    "log answer over question", "equations over given numbers", "numbers given", "numbers given in words",
    "distinct results, share", "terms per equation", "divisions per equation", "results below zero",
    "asked how many, answered a fraction", "final answer over largest given", "terms from nowhere, share",
    "long decimals", "solves for an unknown", "asks back", "marked more than once", "calculator notes, share",
)  # fmt: skip


def check_answer(question: str, answer: str) -> list[float]:
    """One value for each name in `CHECKS`."""
    found = equations(answer)
    given = [number(text) for text in NUMBER.findall(question)]
    written = [number(text) for text in NUMBER.findall(answer)]
    results = [equation.stated for equation in found]
    terms = [term for equation in found for term in equation.terms]
    final = final_number(answer)
    size = abs(final or 0.0)
    fractional = final is not None and not final.is_integer()
    wrong = sum(not equation.holds for equation in found)
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    in_words = len(_WORD_NUMBER.findall(question))
    num_marks = len(_MARKED.findall(answer))
    per_equation = max(len(found), 1)
    return [
        math.log1p(len(answer)),
        math.log1p(len(lines)),
        math.log1p(len(found)),
        wrong / per_equation,
        float(wrong > 0),
        float(num_marks > 0),
        float(final is None),
        math.log1p(size),
        float(fractional),
        float(final is not None and final < 0),
        float(_among(final, results[-1:])),
        float(_among(final, results)),
        float(_among(final, given)),
        float(final is not None and not (final * 100).is_integer()),
        _share(given, [*written, *terms]),
        1 - _share(written, [*given, *results, *_CONSTANTS]),
        _share(results, [*terms, *([final] if final is not None else [])]),
        sum(not result.is_integer() for result in results) / max(len(results), 1),
        math.log1p(max(written, default=0.0)),
        math.log1p(len(answer) / per_equation),
        math.log1p(len(_HEDGE.findall(answer))),
        float(_REFUSAL.search(answer) is not None),
        float(_END.search(answer) is not None),
        1 - len(set(lines)) / max(len(lines), 1),
        math.log1p(len(answer)) - math.log1p(len(question)),
        len(found) / max(len(given) + in_words, 1),
        math.log1p(len(given)),
        math.log1p(in_words),
        len(set(results)) / max(len(results), 1),
        len(terms) / per_equation,
        answer.count("/") / per_equation,
        float(any(result < 0 for result in results)),
        float(fractional and _HOW_MANY.search(question) is not None),
        math.log1p(size) - math.log1p(max(given, default=0.0)),
        1 - _share(terms, [*given, *results]),
        float(_LONG_DECIMAL.search(answer) is not None),
        float(_UNKNOWN.search(answer) is not None),
        float("?" in answer),
        float(num_marks > 1),
        answer.count("<<") / max(answer.count("="), 1),
    ]


def failed_checks(question: str, answer: str) -> float:
    """How many checks an answer to a question in numbers fails, each counting at most 1 (hedges 2).

    Weights are equal on purpose: nothing here was trained. Text without numbers can fail few of them.
    """
    value = dict(zip(CHECKS, check_answer(question, answer), strict=True))
    return (
        value["a wrong equation"]
        + (1 - value["final answer marked"])
        + (1 - value["final answer was the last result"])
        + value["final answer is fractional"]
        + (1 - value["results used later, share"])
        + (1 - value["numbers of the question used, share"])
        + max(0.0, 1 - value["equations over given numbers"])
        + min(2.0, value["hedges"] / math.log(2))
        + value["refusal"]
        + (1 - value["text ends"])
    )


def final_number(answer: str) -> float | None:
    """The number an answer ends in: after `####`, `\\boxed{` or "answer is", else the last one written."""
    marked = marked_number(answer)
    if marked is not None:
        return marked
    written = NUMBER.findall(answer)
    return number(written[-1]) if written else None


def marked_number(answer: str) -> float | None:
    """The last number that an answer marks as its end, or the one it consists of."""
    marked = _FINAL.findall(answer)
    if marked:
        return number(marked[-1])
    return number(whole.group(1)) if (whole := _BARE.fullmatch(answer)) else None


_CONSTANTS = (1.0, 2.0, 10.0, 12.0, 60.0, 100.0)  # what a calculation may bring in by itself


def _among(value: float | None, others: Sequence[float]) -> bool:
    return value is not None and any(math.isclose(value, other, rel_tol=1e-6) for other in others)


def _share(values: Sequence[float], among: Sequence[float]) -> float:
    """How many of `values` occur in `among`; 1 where there are none."""
    known = {round(value, 6) for value in among}
    return sum(round(value, 6) in known for value in values) / len(values) if values else 1.0
