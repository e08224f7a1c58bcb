"""What hidden states foretell: the ridge is the dense formula's, noise gives nought, and a scorer that reads
states is refused where others are shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from consort.errors import DataError, ModelError
from consort.inference.divergence import Lesson
from consort.inference.token_file import load_token_need, save_token_need
from consort.inference.token_fit import fit_token_need
from consort.inference.token_states import _Components, fit_states
from tests.inference.test_token_model import VOCABULARY, lessons

WIDTH, HERE = 12, "weights here"


def folds(count: int) -> list[np.ndarray]:
    return np.array_split(np.random.default_rng(0).permutation(count), 4)


def with_states(taught: list[Lesson], seed: int, *, width: int = WIDTH) -> list[Lesson]:
    """The same lessons, each look with a state, which alone knows of a further gain."""
    rng = np.random.default_rng(seed)
    found = []
    for one in taught:
        states = rng.normal(size=(len(one.looks), width)) * np.linspace(3, 0.1, width) + 5
        looks = tuple(
            replace(look, top=replace(look.top, state=state))
            for look, state in zip(one.looks, states, strict=True)
        )
        further = (states[:, 0] - 5) / 3
        found.append(replace(one, looks=looks, gains=tuple(np.array(one.gains) + further)))
    return found


def test_with_all_components_it_is_ridge_regression():
    rng = np.random.default_rng(0)
    states, gains = rng.normal(size=(300, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) + 3, rng.normal(size=300)
    parts = _Components.of([states[:100], states[100:]], [gains[:100], gains[100:]])
    standard = (states - states.mean(0)) / states.std(0)
    expected = Ridge(alpha=0.3 * len(states)).fit(standard, gains).predict(standard)
    found = parts.mean_gain + (states - parts.mean) @ parts.direction(WIDTH, 0.3)
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_a_question_is_foretold_never_comes_from_itself():
    """Other gains of one question change what others are foretold, and not what it is."""
    rng = np.random.default_rng(1)
    states = [rng.normal(size=(9, WIDTH)) for _ in range(30)]
    gains = [one[:, 0] + rng.normal(size=9) * 0.1 for one in states]
    learned, before = fit_states(states, gains, HERE, folds(30))
    assert learned.components > 0
    assert [learned(state) for state in states[0]] == pytest.approx(list(states[0][:, 0]), abs=0.2)
    _, after = fit_states(states, [gains[0] + np.linspace(-1, 1, 9), *gains[1:]], HERE, folds(30))
    assert after[0] == pytest.approx(before[0], abs=1e-6)
    assert any(np.abs(one - other).max() > 1e-4 for one, other in zip(before[1:], after[1:], strict=True))


def test_states_that_tell_nothing_are_not_heard():
    rng = np.random.default_rng(2)
    states = [rng.normal(size=(8, WIDTH)) for _ in range(40)]
    learned, foretold = fit_states(states, [rng.normal(size=8) for _ in states], HERE, folds(40))
    assert np.abs(learned.direction).max() < 0.1
    assert max(np.abs(one).max() for one in foretold) < 0.5


def test_a_scorer_with_states_knows_what_one_without_cannot(tmp_path: Path):
    taught, unseen = (with_states(lessons(count, seed), seed) for count, seed in ((60, 0), (20, 1)))
    gains = [gain for each in unseen for gain in each.gains]
    kinds = {"without": fit_token_need(taught, VOCABULARY)}
    kinds["with"] = fit_token_need(taught, VOCABULARY, states_sha256=HERE)
    agrees = {
        name: np.corrcoef([model(look) for each in unseen for look in each.looks], gains)[0, 1]
        for name, model in kinds.items()
    }
    assert agrees["with"] > 0.9 > agrees["without"] + 0.3
    save_token_need(kinds["with"], tmp_path / "scorer")
    stored = load_token_need(tmp_path / "scorer", VOCABULARY, states_sha256=HERE)
    looks = unseen[0].looks
    assert [stored(look) for look in looks] == [kinds["with"](look) for look in looks]
    with pytest.raises(ModelError, match="the edge's model shows none"):
        load_token_need(tmp_path / "scorer", VOCABULARY)
    with pytest.raises(ModelError, match="and the edge's are elsewhere"):
        load_token_need(tmp_path / "scorer", VOCABULARY, states_sha256="elsewhere")
    save_token_need(kinds["without"], tmp_path / "scorer")
    assert load_token_need(tmp_path / "scorer", VOCABULARY, states_sha256=HERE).states is None


def test_looks_without_states_teach_no_states():
    with pytest.raises(DataError, match="show no hidden states"):
        fit_token_need(lessons(30), VOCABULARY, states_sha256=HERE)
