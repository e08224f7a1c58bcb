"""Weights are found where likelihood is largest, told apart by features, stored and read again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from consort.errors import ModelError
from consort.inference.blending import averaged, log_probability, steered
from consort.inference.mixing_weights import (
    FEATURES,
    Learned,
    Moment,
    fading,
    features,
    fit,
    fixed,
    load_weights,
    save_weights,
)
from consort.types import TopK

SIZE = 30


def top(rng: np.random.Generator) -> TopK:
    scores = rng.normal(size=SIZE) * 2
    scores -= np.logaddexp.reduce(scores)
    ids = np.argsort(-scores)[:20]
    return TopK(ids, scores[ids], float(1 - np.exp(scores[ids]).sum()))


def told(seed: int, weight: float, count: int = 300) -> tuple[list[Moment], list[int]]:
    """Tokens that were drawn with this weight."""
    rng = np.random.default_rng(seed)
    moments = [Moment(top(rng), top(rng), top(rng), position) for position in range(count)]
    tokens = []
    for moment in moments:
        mixed = steered(moment.model, moment.plus, moment.minus, weight=weight, size=SIZE)
        chances = np.exp(mixed.logprobs)
        tokens.append(int(rng.choice(mixed.ids, p=chances / chances.sum())))
    return moments, tokens


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.5])
def test_the_weight_that_tokens_were_drawn_with_is_found(weight: float) -> None:
    moments, tokens = told(1, weight)
    learned = fit(moments, tokens, size=SIZE, penalty=100.0)
    found = [learned(moment) for moment in moments]
    assert np.mean(found) == pytest.approx(weight, abs=0.2)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_the_share_of_a_mean_that_tokens_were_drawn_with_is_found(share: float) -> None:
    rng = np.random.default_rng(4)
    moments = [Moment(top(rng), top(rng), top(rng), position) for position in range(800)]
    tokens = []
    for moment in moments:
        mixed = averaged((moment.model, moment.plus), (1 - share, share), size=SIZE)
        chances = np.exp(mixed.logprobs)
        tokens.append(int(rng.choice(mixed.ids, p=chances / chances.sum())))
    learned = fit(moments, tokens, size=SIZE, kind="mean", penalty=100.0)
    found = [learned(moment) for moment in moments]
    assert np.mean(found) == pytest.approx(share, abs=0.1)
    assert 0 <= min(found) <= max(found) <= 1


def test_no_other_weight_makes_the_answers_likelier() -> None:
    moments, tokens = told(2, 0.8)
    learned = fit(moments, tokens, size=SIZE, penalty=1e-3)

    def likelihood(weights: list[float]) -> float:
        return sum(
            log_probability(steered(m.model, m.plus, m.minus, weight=w, size=SIZE), token, SIZE)
            for m, w, token in zip(moments, weights, tokens, strict=True)
        )

    best = likelihood([float(features(m) @ learned.coefficients) for m in moments])
    rng = np.random.default_rng(3)
    for _ in range(5):
        other = np.array(learned.coefficients) + rng.normal(size=len(FEATURES)) * 0.05
        assert likelihood([float(features(m) @ other) for m in moments]) <= best + 1e-3


def test_a_fading_weight_halves_and_a_fixed_one_does_not() -> None:
    rng = np.random.default_rng(0)
    first, later = (Moment(top(rng), top(rng), top(rng), position) for position in (0, 8))
    assert (fading(2.0, 8.0)(first), fading(2.0, 8.0)(later)) == (2.0, 1.0)
    assert fixed(0.7)(first) == fixed(0.7)(later) == 0.7


def test_learned_weights_are_read_as_they_were_written_and_held_in_bounds(tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    learned = Learned(tuple(np.linspace(-1, 1, len(FEATURES)).tolist()), "product", 3.0)
    save_weights(learned, file)
    assert load_weights(file) == learned
    rng = np.random.default_rng(0)
    for sign in (-100.0, 100.0):
        bold = Learned((sign,) + (0.0,) * (len(FEATURES) - 1), "tuned", 3.0)
        assert bold(Moment(top(rng), top(rng), top(rng), 0)) == (0.0 if sign < 0 else 3.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other/1"}, "another version"),
        ({"features": ["one"]}, "another version"),
        ({"coefficients": [1.0]}, "damaged"),
        ({"coefficients": [float("nan")] * len(FEATURES)}, "damaged"),
        ({"kind": "magic"}, "damaged"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_in_words(tmp_path: Path, change, words: str) -> None:
    file = tmp_path / "weights.json"
    save_weights(Learned((0.0,) * len(FEATURES)), file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=words):
        load_weights(file)
    with pytest.raises(ModelError, match="no such weights"):
        load_weights(tmp_path / "none.json")
