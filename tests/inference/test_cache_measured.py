"""A likeness is measured as the cache would use it, keeps its bound on other questions, and is read back."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from consort.errors import DataError
from consort.inference.cache import OFF
from consort.inference.cache_measured import (
    MeasuredLikeness,
    alike_pairs,
    load_likeness,
    measure_likeness,
    save_likeness,
)

WORDS = [f"{first}{second}" for first in "bdfgklm" for second in ("arin", "olet", "undo", "imex")]
MEASURED = MeasuredLikeness(0.9, 0.02, 0.95, 200, 150, 1)


def traffic(seed: int, number: int = 150) -> list[tuple[str, str]]:
    """Questions about things, often asked again with a word more; the answer is the thing's."""
    rng, asked = random.Random(seed), []
    for _ in range(number):
        thing = rng.choice(WORDS)
        dress = rng.choice(["please", "now", "today", "for me", "again"])
        asked.append((f"where do i find the {thing} {dress}", f"beside the {thing}"))
    return asked


def test_each_question_is_compared_with_the_one_most_alike_before_it() -> None:
    pairs = alike_pairs(
        [
            ("where is it", "here"),
            ("where is it?", "here"),
            ("where is it now", "here"),
            ("where is he", "out"),
        ]
    )
    assert len(pairs) == 2  # the first has none before it, the second is the same question
    assert [right for _, right in pairs] == [True, False]
    assert alike_pairs([("pay 20 euro", "yes"), ("pay 30 euro", "no")]) == []


def test_the_bound_is_kept_on_further_questions_at_the_promised_rate() -> None:
    broken, proven, draws = 0, 0, 8
    further = alike_pairs(traffic(999, 500))
    for seed in range(draws):
        measured = measure_likeness(traffic(seed), max_error=0.1, confidence=0.8)
        if measured.threshold < OFF:
            proven += 1
            hits = [right for alike, right in further if alike >= measured.threshold]
            broken += hits.count(False) / max(len(hits), 1) > 0.1
    assert proven > draws / 2, "a bound that is never proven is kept trivially"
    assert broken <= 0.2 * draws + 2


def test_few_questions_prove_nothing() -> None:
    assert measure_likeness(traffic(0, 10), max_error=0.02).threshold == OFF
    assert measure_likeness([], max_error=0.02) == MeasuredLikeness(OFF, 0.02, 0.95, 0, 0, 0)


def test_a_measurement_is_read_back_and_nothing_else_is(tmp_path: Path) -> None:
    file = tmp_path / "alike.json"
    save_likeness(MEASURED, file)
    assert load_likeness(file) == MEASURED
    row = json.loads(file.read_text())
    for wrong in (
        "{",
        "[]",
        "{}",
        json.dumps({**row, "format": "x"}),
        json.dumps({**row, "threshold": 2.0}),
        json.dumps({**row, "more": 1}),
        json.dumps({**row, "threshold": "high"}),
    ):
        file.write_text(wrong)
        with pytest.raises(DataError, match="holds no measured likeness"):
            load_likeness(file)
    with pytest.raises(DataError, match="no such file"):
        load_likeness(tmp_path / "nowhere")
    with pytest.raises(AssertionError):
        save_likeness(replace(MEASURED, threshold=OFF), file)
