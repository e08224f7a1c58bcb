"""From which likeness on two questions may share an answer: measured on questions whose answers are known.

Each question is compared with the one most alike before it, which is what the cache would have done, and one
answer is right for the other where both say the same. The lowest likeness whose error is surely small enough
becomes a file, and the gateway takes alike questions only from such a file. The promise is for traffic like
the measured questions, and for answers that `agreement` can compare.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from consort.errors import DataError
from consort.files import whole_file
from consort.inference.agreement import SAME, agreement
from consort.inference.cache import OFF, measured_threshold
from consort.inference.likeness import Grams, cosines, grams, guards, plain

FORMAT = "consort.likeness/1"
MOST_COMPARED = 512  # earlier questions, as many as a shelf holds
HINT = "write it with `consort calibrate --cache`"


@dataclass(frozen=True, slots=True)
class MeasuredLikeness:
    """With `confidence`, at most `max_error` of the answers given from `threshold` on are wrong ones.
    `hits` of the `pairs` are as alike, and `wrong` of those had other answers."""

    threshold: float
    max_error: float
    confidence: float
    pairs: int
    hits: int
    wrong: int


def measure_likeness(
    asked: Sequence[tuple[str, str]], *, max_error: float, confidence: float = 0.95
) -> MeasuredLikeness:
    """From (question, answer) in the order in which they came; the same question twice teaches nothing."""
    pairs = alike_pairs(asked)
    threshold = measured_threshold(pairs, max_error=max_error, confidence=confidence)
    above = [right for measured, right in pairs if measured >= threshold]
    return MeasuredLikeness(
        threshold, max_error, confidence, len(pairs), len(above), sum(not right for right in above)
    )


def alike_pairs(asked: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Each question's likeness to the one most alike before it, and whether that one's answer is right."""
    kept: dict[tuple[tuple[str, ...], int], list[tuple[str, Grams, str]]] = {}
    pairs = []
    for question, answer in asked:
        text = plain(question)
        shelf = kept.setdefault(guards(text), [])
        own = grams(text)
        others = [entry for entry in shelf if entry[0] != text]
        if others:
            alike = cosines(own, [each for _, each, _ in others])
            best = int(np.argmax(alike))
            pairs.append((float(alike[best]), agreement(others[best][2], answer) >= SAME))
        if len(others) == len(shelf):
            shelf.append((text, own, answer))
            del shelf[:-MOST_COMPARED]
    return pairs


def save_likeness(measured: MeasuredLikeness, path: Path) -> None:
    """Write the whole file or nothing."""
    assert measured.threshold < OFF, "nothing was proven"
    with whole_file(path) as file:
        file.write(json.dumps({"format": FORMAT, **asdict(measured)}, indent=1).encode())


def load_likeness(path: Path) -> MeasuredLikeness:
    """Read a measurement; DataError where the file is none."""
    try:
        row = json.loads(path.read_bytes())
        if row.pop("format") != FORMAT:
            raise KeyError
        measured = MeasuredLikeness(**row)
        if not 0 < measured.threshold < OFF:
            raise ValueError
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(path), hint=HINT) from None
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise DataError("holds no measured likeness", where=str(path), hint=HINT) from None
    return measured
