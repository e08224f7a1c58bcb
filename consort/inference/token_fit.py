"""Learning the gain of the large model's token from labelled paths: boosted trees over a look's features.

What a question's words say is learned first, by ridge regression on whole answers' gains; the trees see its
closed-form leave-one-out prediction (Rifkin and Lippert, 2007, section 3), not its fit. So it is with hidden
states, question by question. Needs scikit-learn, which scoring does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor

from consort.align import Vocabulary
from consort.errors import DataError
from consort.inference.divergence import Lesson
from consort.inference.ngrams import NUM_BUCKETS
from consort.inference.token_model import FloatArray, TokenNeed, Trees, question_row, token_row
from consort.inference.token_states import fit_states

FOLDS = 4  # the scorer's own values, for `Share`, are of questions that it did not learn from
_MIN_QUESTIONS = 20
_WORDS_PENALTY = 1.0  # in units of one question's kernel with itself
_NUM_TREES, _DEPTH, _RATE, _LEAF, _PART = 80, 3, 0.05, 15, 0.7


def fit_token_need(
    lessons: Sequence[Lesson], vocabulary: Vocabulary, *, states_sha256: str = "", seed: int = 0
) -> TokenNeed:
    """Learn from labelled paths of a model with this vocabulary; from its hidden states too, where their
    weights are named. DataError for fewer than 20 questions, or looks that show no states."""
    if len(lessons) < _MIN_QUESTIONS:
        raise DataError(
            f"{len(lessons)} labelled answers are too few to learn from",
            hint=f"give at least {_MIN_QUESTIONS}, better 200",
        )
    words, mean_gain, left_out = _words(lessons)
    occurrences = Counter(look.token for one in lessons for look in one.looks)
    foretold = [np.full((len(one.looks), 1), gain) for one, gain in zip(lessons, left_out, strict=True)]
    gains = [np.array(one.gains) for one in lessons]
    folds = np.array_split(np.random.default_rng(seed).permutation(len(lessons)), FOLDS)
    states = None
    if states_sha256:
        states, by_state = fit_states([_states(one) for one in lessons], gains, states_sha256, folds)
        foretold = [np.column_stack(columns) for columns in zip(foretold, by_state, strict=True)]
    rows = [
        np.array([token_row(look, occurrences, told) for look, told in zip(one.looks, values, strict=True)])
        for one, values in zip(lessons, [each.tolist() for each in foretold], strict=True)
    ]
    needs: list[list[float]] = [[] for _ in lessons]
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(lessons)), fold)
        trees = _trees([rows[i] for i in rest], [gains[i] for i in rest], seed)
        for i in fold:
            needs[i] = [trees(row) for row in rows[i]]
    return TokenNeed(
        vocabulary_sha256=vocabulary.sha256,
        trees=_trees(rows, gains, seed),
        occurrences=dict(occurrences),
        words=words,
        mean_gain=mean_gain,
        needs=np.concatenate(needs),
        num_tokens=sum(map(len, rows)),
        states=states,
    )


def _states(one: Lesson) -> FloatArray:
    """[T, D] of a path."""
    shown = [look.top.state for look in one.looks if look.top.state is not None]
    if len(shown) < len(one.looks):
        raise DataError("these looks show no hidden states", hint="open the small model with shows_states")
    return np.array(shown, np.float64)


def _words(lessons: Sequence[Lesson]) -> tuple[FloatArray, float, FloatArray]:
    """Weight of each bucket, mean gain, and each question's gain as judged without it."""
    gains = np.array([one.answer_gain for one in lessons])
    rows = [question_row(one.looks[0].question) for one in lessons]
    dense = np.zeros((len(rows), NUM_BUCKETS), np.float32)
    for place, (buckets, weights) in enumerate(rows):
        dense[place, buckets] = weights
    inverse = np.linalg.inv((dense @ dense.T).astype(np.float64) + _WORDS_PENALTY * np.eye(len(rows)))
    mean = float(gains.mean())
    coefficients = inverse @ (gains - mean)
    left_out = gains - coefficients / np.diag(inverse)
    return (dense.T @ coefficients).astype(np.float64), mean, left_out


def _trees(rows: Sequence[FloatArray], gains: Sequence[FloatArray], seed: int) -> Trees:
    return walkable(boosted(np.concatenate(rows), np.concatenate(gains), seed=seed))


def boosted(rows: FloatArray, gains: FloatArray, *, seed: int) -> GradientBoostingRegressor:
    """scikit-learn's boosted trees, small and slow to learn: labels are few and noisy."""
    return GradientBoostingRegressor(
        n_estimators=_NUM_TREES,
        max_depth=_DEPTH,
        learning_rate=_RATE,
        min_samples_leaf=_LEAF,
        subsample=_PART,
        random_state=seed,
    ).fit(rows, gains)


def walkable(learned: GradientBoostingRegressor) -> Trees:
    """The same trees as arrays."""
    found = [estimator.tree_ for estimator in learned.estimators_[:, 0]]
    width = max(tree.node_count for tree in found)

    def column(name: str) -> FloatArray:
        values = [getattr(tree, name).reshape(-1) for tree in found]
        return np.array([np.pad(one, (0, width - one.size)) for one in values])

    left, right = column("children_left").astype(np.int32), column("children_right").astype(np.int32)
    own = np.arange(width, dtype=np.int32)
    leaf = left <= 0  # -1, or padding; no branch leads back to the root
    return Trees(
        feature=np.where(leaf, 0, column("feature")).astype(np.int32),
        threshold=column("threshold"),
        left=np.where(leaf, own, left),
        right=np.where(leaf, own, right),
        value=learned.learning_rate * column("value"),
        base=float(np.ravel(learned.init_.constant_)[0]),
        depth=learned.max_depth,
    )
