"""Learning the gain of asking the cloud from a thousand or so outcomes: kernel ridge over words and features.

The kernel is a sum: cosines of rare byte n-grams and of rare words, and a Gaussian over each group of plain
features. The penalty is chosen by the closed-form leave-one-out error (Rifkin and Lippert, 2007, section 3),
and the same left-out predictions turn gains into probabilities. The words' part folds into one weight a
bucket. Needs scipy, which scoring does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from consort.errors import DataError
from consort.inference.evidence import Evidence, Group, features
from consort.inference.gain_model import (
    TEXTS,
    WIDTHS,
    Array,
    FeaturePart,
    GainModel,
    TextPart,
    sigmoid,
    standardised,
)
from consort.inference.ngrams import NUM_BUCKETS, Buckets

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)  # of the ridge, in units of one example's kernel with itself
MAX_EXAMPLES = 6000  # the solver is cubic: 6,000 take half a minute on one core
_MIN_EXAMPLES = 20
# Once there is an answer, the question alone says little more: its parts of the kernel count a quarter.
_BESIDE_ANSWER: Mapping[str, float] = {
    "question.bytes": 0.25, "question.words": 0.25, "surface": 0.25, "answer.bytes": 0.5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prepared:
    """Examples ready to learn any gains on them: all that does not depend on the scores.

    `words` are unit rows of weighed n-grams, `rows` standardised features; `inverses` hold, for each penalty,
    the inverse of the kernel plus penalty.
    """

    groups: tuple[Group, ...]
    rarities: Mapping[str, NDArray[np.float32]]
    words: Mapping[str, csr_array]
    means: Mapping[Group, Array]
    spreads: Mapping[Group, Array]
    rows: Mapping[Group, Array]
    inverses: Mapping[float, Array]
    num_examples: int


def fit_gain(
    evidence: Sequence[Evidence], gains: Array, *, small: str = "edge", large: str = "cloud", seed: int = 0
) -> GainModel:
    """Learn from examples and their gains; of more than `MAX_EXAMPLES` a sample is taken."""
    chosen = np.random.default_rng(seed).permutation(len(evidence))[:MAX_EXAMPLES]
    prepared = prepare([evidence[i] for i in chosen])
    return fit_prepared(prepared, np.asarray(gains, dtype=np.float64)[chosen], small=small, large=large)


def prepare(evidence: Sequence[Evidence]) -> Prepared:
    """Count, weigh and compare the examples. Several pairs of models can then learn from them. Of examples
    without their texts only the features teach."""
    if len(evidence) < _MIN_EXAMPLES:
        raise DataError(
            f"{len(evidence)} outcomes are too few to learn from",
            hint=f"give at least {_MIN_EXAMPLES}, better 1,000",
        )
    # what only some examples have cannot be asked for later
    groups = tuple(group for group in WIDTHS if all(group in known.groups for known in evidence))
    answered = "checks" in groups
    worded = all(known.worded and (known.answer is not None or not answered) for known in evidence)
    kernel = np.zeros((len(evidence), len(evidence)))
    rarities, words = {}, {}
    for name, read in (_texts_for(answered) if worded else {}).items():
        counts = _counts([read(known) for known in evidence])
        rarities[name] = _rarity(counts)
        words[name] = _unit_rows(counts, rarities[name])
        kernel += _part_weight(name, answered) * (words[name] @ words[name].T).toarray()
    means, spreads, rows = {}, {}, {}
    for group in groups:
        raw = np.array([features(known, group) for known in evidence])
        means[group], spread = raw.mean(axis=0), raw.std(axis=0)
        spread[spread < 1e-9] = np.inf  # a feature that never varies says nothing
        spreads[group], rows[group] = spread, standardised(raw, means[group], spread)
        kernel += _part_weight(group, answered) * _gaussian(rows[group], rows[group], WIDTHS[group])
    identity = np.eye(len(evidence))
    inverses = {p: np.asarray(np.linalg.inv(kernel + p * identity), np.float64) for p in PENALTIES}
    return Prepared(groups, rarities, words, means, spreads, rows, inverses, len(evidence))


def fit_prepared(prepared: Prepared, gains: Array, *, small: str, large: str) -> GainModel:
    """Learn one pair's gains on prepared examples."""
    assert len(gains) == prepared.num_examples, "one gain an example"
    mean_gain = float(gains.mean())
    penalty, coefficients, left_out = _ridge(prepared.inverses, gains - mean_gain)
    left_out += mean_gain
    # by left-out predictions: those of seen examples are too sure
    slope, offset = _logistic(left_out, gains <= 0)
    answered = "checks" in prepared.groups
    texts = {}
    for name, words in prepared.words.items():
        weight = _part_weight(name, answered) * (words.T @ coefficients)
        texts[name] = TextPart(prepared.rarities[name], weight.astype(np.float32))
    parts = {
        group: FeaturePart(
            prepared.means[group],
            prepared.spreads[group],
            prepared.rows[group],
            _part_weight(group, answered) * coefficients,
        )
        for group in prepared.groups
    }
    return GainModel(
        small=small,
        large=large,
        groups=prepared.groups,
        texts=texts,
        parts=parts,
        mean_gain=mean_gain,
        slope=slope,
        offset=offset,
        quantiles=np.quantile(left_out, np.linspace(0, 1, 101)),
        num_examples=prepared.num_examples,
        penalty=penalty,
    )


def _part_weight(part: str, answered: bool) -> float:
    return _BESIDE_ANSWER.get(part, 1.0) if answered else 1.0


def _texts_for(answered: bool) -> dict[str, Callable[[Evidence], tuple[Buckets, Array]]]:
    return {name: read for name, read in TEXTS.items() if answered or name.startswith("question")}


def _counts(rows: Sequence[tuple[Buckets, Array]]) -> csr_array:
    ends = np.cumsum([0, *(buckets.size for buckets, _ in rows)])
    damped = 1 + np.log(np.concatenate([counts for _, counts in rows]))
    return csr_array(
        (damped, np.concatenate([buckets for buckets, _ in rows]), ends), shape=(len(rows), NUM_BUCKETS)
    )


def _rarity(counts: csr_array) -> NDArray[np.float32]:
    holding = np.bincount(counts.indices, minlength=NUM_BUCKETS)
    rarity = np.log((1 + counts.shape[0]) / (1 + holding)) + 1
    return np.where(holding > 0, rarity, 0).astype(np.float32)


def _unit_rows(counts: csr_array, rarity: NDArray[np.float32]) -> csr_array:
    data = counts.data * rarity[counts.indices]
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    norms = np.sqrt(np.bincount(row, weights=data**2, minlength=counts.shape[0]))
    return csr_array((data / norms[row], counts.indices, counts.indptr), shape=counts.shape)


def _gaussian(rows: Array, examples: Array, width: float) -> Array:
    """exp(-width * mean squared difference), [rows, examples]."""
    squares = (rows**2).sum(axis=1)[:, None] + (examples**2).sum(axis=1) - 2 * rows @ examples.T
    kernel: Array = np.exp(-width / rows.shape[1] * np.maximum(squares, 0))
    return kernel


def _ridge(inverses: Mapping[float, Array], targets: Array) -> tuple[float, Array, Array]:
    """Penalty, dual coefficients and left-out predictions of the penalty with the least left-out error."""
    found = []
    for penalty, inverse in inverses.items():
        coefficients = inverse @ targets
        # what a model without this example would have predicted, without learning it anew
        left_out = targets - coefficients / np.diag(inverse)
        found.append((float(np.square(targets - left_out).mean()), penalty, coefficients, left_out))
    _, penalty, coefficients, left_out = min(found, key=lambda one: one[0])
    return penalty, coefficients, left_out


def _logistic(gains: Array, suffices: NDArray[np.bool_], steps: int = 50) -> tuple[float, float]:
    """Slope and offset by Newton's method; the slope is kept above 0, so that no ranking changes."""
    design = np.stack([np.ones_like(gains), -(gains - gains.mean()) / (gains.std() + 1e-12)], axis=1)
    weights = np.zeros(2)
    prior = np.diag([1e-3, 1.0])  # one example's worth of doubt: no infinite slope where all is separable
    for _ in range(steps):
        likely = sigmoid(design @ weights)
        curvature = (design * (likely * (1 - likely))[:, None]).T @ design + prior
        step = np.linalg.solve(curvature, design.T @ (suffices - likely) - prior @ weights)
        weights += np.clip(step, -2, 2)
    slope = max(float(weights[1]), 1e-3) / (float(gains.std()) + 1e-12)
    return slope, float(weights[0]) + slope * float(gains.mean())
