"""Learned token scorers: the trees are scikit-learn's, a file gives back the same scorer and nothing else,
and labels are gains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consort.errors import DataError, ModelError
from consort.inference.divergence import Lesson, lesson
from consort.inference.token_file import load_token_need, save_token_need
from consort.inference.token_fit import boosted, fit_token_need, walkable
from consort.inference.token_need import FEATURES, SCORERS, Look, look_features
from consort.models.decoding.lm import LocalLM
from consort.types import Message, Request, TopK
from tests.tiny_models import byte_level, escaped_spaces, tiny

VOCABULARY = tiny().vocabulary


def look(rng: np.random.Generator, question: str) -> Look:
    probabilities = np.sort(rng.dirichlet(np.full(6, 0.3)))[::-1] * 0.9
    top = TopK(np.arange(6), np.log(probabilities + 1e-12), 0.1)
    return Look(top, int(rng.integers(40)), b" word", int(rng.integers(20)), 2, 0.1, 0.2, question)


def lessons(count: int, seed: int = 0) -> list[Lesson]:
    """Where the small model doubts, or is asked in red, the large one's token is worth something."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        question = f"number {index} in {'red' if index % 2 else 'blue'}"
        looks = tuple(look(rng, question) for _ in range(12))
        gains = tuple(SCORERS["doubt"](one) * (0.5 + index % 2) for one in looks)
        found.append(Lesson(looks, gains, len(looks), float(index % 2)))
    return found


def test_features_have_names_and_are_finite():
    rng = np.random.default_rng(0)
    for one in (look(rng, "?"), replace(look(rng, "?"), piece=None)):
        assert len(look_features(one)) == len(FEATURES)
        assert np.isfinite(look_features(one)).all()
    sure = TopK(np.array([3]), np.array([0.0]), 0.0)
    assert [scorer(replace(look(rng, "?"), top=sure)) for scorer in SCORERS.values()] == [0, 0, 0]


def test_a_learned_scorer_ranks_unseen_tokens_and_reads_the_question(tmp_path: Path):
    model = fit_token_need(lessons(60), VOCABULARY)
    unseen = lessons(20, seed=1)
    need = [model(one) for each in unseen for one in each.looks]
    gain = [gain for each in unseen for gain in each.gains]
    assert np.corrcoef(need, gain)[0, 1] > 0.9
    red, blue = (replace(unseen[0].looks[0], question=f"number 5 in {colour}") for colour in ("red", "blue"))
    assert model(red) > model(blue)
    save_token_need(model, tmp_path / "scorer")
    stored = load_token_need(tmp_path / "scorer", VOCABULARY)
    assert [stored(one) for one in unseen[0].looks] == [model(one) for one in unseen[0].looks]
    assert stored.needs.tolist() == model.needs.tolist()
    other = tiny("gpt2", escaped_spaces("bpe", lines_apart=False)).vocabulary
    with pytest.raises(ModelError, match="another tokenizer"):
        load_token_need(tmp_path / "scorer", other)
    (tmp_path / "scorer").write_bytes((tmp_path / "scorer").read_bytes()[:-9])
    with pytest.raises(ModelError, match="damaged"):
        load_token_need(tmp_path / "scorer", VOCABULARY)
    with pytest.raises(DataError, match="too few"):
        fit_token_need(lessons(5), VOCABULARY)


def test_the_trees_are_scikit_learns():
    """The same sum on every row, also far from those that were learned from."""
    rng = np.random.default_rng(0)
    rows, gains = rng.normal(size=(200, 5)), rng.normal(size=200)
    learned = boosted(rows, gains, seed=3)
    ours = walkable(learned)
    far = rng.normal(scale=9, size=(100, 5))
    assert [ours(row) for row in far] == pytest.approx(learned.predict(far).tolist(), abs=1e-6)


def test_labels_are_what_the_answer_gains():
    """Nothing where both models are one, nothing where every answer is as good."""
    small = LocalLM(tiny("llama"), answers=1, sessions=2, context_tokens=128)
    large = LocalLM(tiny("gpt2", byte_level(use_regex=False)), answers=1, sessions=2, context_tokens=128)
    request = Request((Message("user", "the clinic opens"),), max_tokens=8)
    same = lesson(small, small, request, verify=lambda text: text.count("e") / 100)
    assert (same.differing, set(same.gains), same.answer_gain) == (0, {0.0}, 0.0)
    equal = lesson(small, large, request, verify=lambda text: 0.5)
    assert equal.differing > 0
    assert set(equal.gains) == {0.0}
    graded = lesson(small, large, request, verify=lambda text: len(text.encode()) / 100)
    assert len(graded.gains) == len(graded.looks) == 8
    assert any(graded.gains)
    for lm in (small, large):
        lm.close()
