"""What a question looks like: lengths, kinds of characters, choices, numbers, as a row of plain features.

On published answers of Mixtral and GPT-4 these few numbers, used non-linearly, tell as much about the gain of
asking the larger model as all its words do (experiments/results/routing.md). Does not read any meaning.
"""

from __future__ import annotations

import math
import re

_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d[\d,]*\.?\d*")
_CHOICE = re.compile(r"^\s*\(?([A-J])[.):]\s*(.*)$", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_DIGIT, _UPPER = re.compile(r"\d"), re.compile(r"[A-Z]")
_SYMBOL, _FOREIGN = re.compile(r"[-+*/=^<>()\[\]{}|\\$_]"), re.compile(r"[^\x00-\x7f]")
_NEGATION = re.compile(r"\b(?:not|except|never|least|incorrect|false)\b", re.IGNORECASE)
_COMPARISON = re.compile(r"\b(?:more|less|fewer|than|times|twice|half|each|every|per|total)\b", re.IGNORECASE)
_ASKING = re.compile(r"\b(?:what|which|who|when|where|why|how)\b", re.IGNORECASE)
_FRACTION = re.compile(r"\d\s*/\s*\d|%|percent|\b(?:third|quarter|half)s?\b", re.IGNORECASE)

SURFACE = (
    "log characters", "log characters of the first line", "log words", "log lines", "log sentences",
    "mean word length", "distinct words, share", "digits, share", "capitals, share", "symbols, share",
    "other scripts, share", "log numbers", "log largest number", "choices", "log mean choice length",
    "spread of choice lengths", "choices that are numbers, share", "question marks", "first line asks",
    "first line is a sentence", "blank to fill", "quotation", "negation", "comparisons", "question words",
    "fractions", "statements",
)  # fmt: skip


def surface_features(text: str) -> list[float]:
    """One value for each name in `SURFACE`."""
    characters = max(len(text), 1)
    words = _WORD.findall(text)
    numbers = _NUMBER.findall(text)
    first_line = text.strip().partition("\n")[0].rstrip()
    choices = [choice.strip() for _, choice in _CHOICE.findall(text)]
    lengths = [len(choice) for choice in choices]
    mean_length = sum(lengths) / len(lengths) if lengths else 0.0
    spread = math.sqrt(sum((n - mean_length) ** 2 for n in lengths) / len(lengths)) if lengths else 0.0
    return [
        math.log1p(len(text)),
        math.log1p(len(first_line)),
        math.log1p(len(words)),
        math.log1p(text.count("\n")),
        math.log1p(len(_SENTENCE_END.findall(text))),
        sum(map(len, words)) / max(len(words), 1),
        len({word.lower() for word in words}) / max(len(words), 1),
        len(_DIGIT.findall(text)) / characters,
        len(_UPPER.findall(text)) / characters,
        len(_SYMBOL.findall(text)) / characters,
        len(_FOREIGN.findall(text)) / characters,
        math.log1p(len(numbers)),
        max((_log_size(number) for number in numbers), default=0.0),
        float(len(choices)),
        math.log1p(mean_length),
        math.log1p(spread),
        sum(bool(_NUMBER.search(choice)) for choice in choices) / max(len(choices), 1),
        float(min(text.count("?"), 5)),
        float(first_line.endswith("?")),
        float(first_line.endswith(".")),
        float("__" in text),
        float('"' in text or "“" in text),
        float(len(_NEGATION.findall(text)) > 0),
        math.log1p(len(_COMPARISON.findall(text))),
        math.log1p(len(_ASKING.findall(text))),
        math.log1p(len(_FRACTION.findall(text))),
        float(text.count("Statement")),
    ]


def _log_size(number: str) -> float:
    """Of a number as written; a hundred digits are as large as any: no overflow."""
    return math.log1p(float(number.replace(",", "")[:30].rstrip(".") or 0))
