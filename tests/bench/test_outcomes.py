"""Outcomes are read whole or refused with every mistake's line; pairs show the small model's answer only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from consort.bench.outcomes import Outcome, pair, read_outcomes
from consort.errors import DataError

GOOD = {"prompt": "1 + 1?", "scores": {"edge": 0, "cloud": 1.0}}


def written(path: Path, *rows: object) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("{", "not JSON"),
        ("[]", "in braces"),
        ({**GOOD, "promt": "x"}, 'did you mean "prompt"'),
        ({**GOOD, "prompt": " "}, "not empty"),
        ({**GOOD, "prompt": 3}, "not empty"),
        ({"prompt": "x"}, "at least one model"),
        ({**GOOD, "scores": [1]}, "one value a model"),
        ({**GOOD, "scores": {"edge": True}}, "must be a number"),
        ({**GOOD, "scores": {"edge": "1"}}, "must be a number"),
        ({**GOOD, "scores": {"edge": 1.5}}, "give 0 to 1"),
        ({**GOOD, "cost_eur": {"edge": -1}}, "0 or more"),
        ('{"prompt": "x", "scores": {"edge": NaN}}', "must be a number"),
        ({**GOOD, "answers": {"edge": 2}}, "must be a text"),
    ],
)
def test_each_mistake_names_its_line(row: object, what: str, tmp_path: Path) -> None:
    path = written(tmp_path / "outcomes.jsonl", GOOD, "", row)
    with pytest.raises(DataError, match=what) as caught:
        read_outcomes(path)
    assert caught.value.where == f"{path}:3"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path / "outcomes.jsonl", "{", GOOD, {"prompt": ""})
    with pytest.raises(DataError) as caught:
        read_outcomes(path)
    told = str(caught.value)
    assert "3 mistakes" in told
    assert f"{path}:1:" in told
    assert told.count(f"{path}:3:") == 2


@pytest.mark.parametrize(("content", "what"), [(b"", "no outcome"), (b"\xff\xfe", "not UTF-8")])
def test_files_that_hold_nothing_are_refused(content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=what):
        read_outcomes(path)
    with pytest.raises(DataError, match="no such file"):
        read_outcomes(tmp_path / "elsewhere.jsonl")


def test_rows_become_columns_and_only_the_small_answer_is_shown(tmp_path: Path) -> None:
    row = {
        **GOOD,
        "answers": {"edge": "3", "cloud": "2", "phone": "4"},
        "latency_s": {"edge": 0.1},
        "group": 7,
    }
    row["scores"] = {"edge": 0, "cloud": 1, "phone": 0}
    data = pair(read_outcomes(written(tmp_path / "o.jsonl", row, row)), small="edge", large="cloud")
    assert data.gains.tolist() == [1, 1]
    (known, _) = data.evidence(answered=True)
    assert (known.answer, known.others) == ("3", ("4",))
    assert data.evidence(answered=False)[0].answer is None
    assert data.outcomes[0].group == "7"
    np.testing.assert_allclose(data.latencies_s("edge"), [0.1, 0.1])
    assert data.latencies_s("cloud") is None


def test_of_two_models_the_better_one_is_large_and_of_three_both_must_be_named() -> None:
    rows = [Outcome("x", {"b": 0.2, "a": 0.9}), Outcome("y", {"b": 0.8, "a": 0.9})]
    assert (pair(rows).small, pair(rows).large) == ("b", "a")
    assert (pair(rows, small="a").small, pair(rows, small="a").large) == ("a", "b")
    three = [Outcome("x", {"a": 1, "b": 0, "c": 0})]
    for arguments, what in (
        ({}, "3 models"),
        ({"small": "a", "large": "a"}, "cannot be both"),
        ({"small": "d", "large": "a"}, 'no outcome has a score of "d"'),
    ):
        with pytest.raises(DataError, match=what):
            pair(three, **arguments)
    with pytest.raises(DataError, match="two models"):
        pair([Outcome("x", {"a": 1})])
    apart = [Outcome("x", {"a": 1}), Outcome("y", {"b": 1})]
    with pytest.raises(DataError, match="no prompt was scored for both"):
        pair(apart)
