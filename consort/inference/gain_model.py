"""The gain of asking the cloud, learned from a thousand or so outcomes: kernel ridge over words and features.

What is learned is the large model's score less the small one's, not how hard a question is: a question that
both fail is hard, and asking the cloud gains nothing. The kernel is a sum: cosines of rare byte n-grams and of
rare words, and a Gaussian over each group of plain features. The
penalty is chosen by the closed-form leave-one-out error (Rifkin and Lippert, 2007, section 3). The words' part
folds into one weight a bucket, so a score costs a look-up for each n-gram and one product with the examples'
features, in numpy alone; only fitting needs scipy. Does not read or write files; `gain_file` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.errors import DataError, ModelError
from consort.inference.evidence import Evidence, Group, features
from consort.inference.ngrams import NUM_BUCKETS, Buckets, byte_buckets, word_buckets

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Array: TypeAlias = NDArray[np.float64]
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)  # of the ridge, in units of one example's kernel with itself
MAX_EXAMPLES = 6000  # the solver is cubic: 6,000 take half a minute on one core
_WIDTH: Mapping[Group, float] = {"surface": 1.0, "checks": 0.3, "confidence": 0.3, "agreement": 0.3, "proxy": 0.3}
_FARTHEST = 4.0  # standard deviations: an odd question is odd, but not infinitely so
_MIN_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class TextPart:
    """The words' share of a gain. `rarity` is the inverse document frequency of each bucket, 0 for a bucket
    that no example had; `weight` is what a bucket at length 1 adds to the gain."""

    rarity: NDArray[np.float32]
    weight: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FeaturePart:
    """One group's share of a gain: a Gaussian around each example. `examples` is [examples, features] in
    standard deviations from `mean`."""

    mean: Array
    spread: Array
    examples: Array
    coefficients: Array


@dataclass(frozen=True, slots=True)
class GainModel:
    """What asking the large model is expected to add, and the probability that the small one suffices.

    `slope` and `offset`: log-odds that the small answer is at least as good = offset - slope * gain.
    `quantiles`: the gains at 0, 1, ..., 100 % of the examples, each as judged by a model without it.
    """

    small: str
    large: str
    groups: tuple[Group, ...]
    texts: Mapping[str, TextPart]
    parts: Mapping[Group, FeaturePart]
    mean_gain: float
    slope: float
    offset: float
    quantiles: Array
    num_examples: int
    penalty: float

    @property
    def needs_answer(self) -> bool:
        """Whether it judges written answers, not questions."""
        return "checks" in self.groups

    def gain(self, evidence: Evidence) -> float:
        """Expected score of the large model less that of the small one, on this question."""
        missing = set(self.groups) - set(evidence.groups)
        if missing:
            raise ModelError(
                f"this scorer needs {' and '.join(sorted(missing))}, which this request does not have",
                where=f"scorer for {self.small} and {self.large}",
                hint="use it after the edge's answer, or calibrate one on outcomes that lack the same",
            )
        gain = self.mean_gain
        for name, text in self.texts.items():
            gain += _text_gain(text, *_TEXTS[name](evidence))
        for group, part in self.parts.items():
            row = _standard(np.array([features(evidence, group)]), part.mean, part.spread)
            gain += float((_gaussian(row, part.examples, _WIDTH[group]) @ part.coefficients)[0])
        return gain

    def suffices(self, gain: float) -> float:
        """The probability that the small model's answer is at least as good: falls as `gain` rises."""
        return float(_sigmoid(np.array(self.offset - self.slope * gain)))


def fit_gain(
    evidence: Sequence[Evidence], gains: Array, *, small: str = "edge", large: str = "cloud", seed: int = 0
) -> GainModel:
    """Learn from examples and their gains; of more than `MAX_EXAMPLES` a sample is taken."""
    if len(evidence) < _MIN_EXAMPLES:
        raise DataError(
            f"{len(evidence)} outcomes are too few to learn from", hint=f"give at least {_MIN_EXAMPLES}, better 1,000"
        )
    chosen = np.random.default_rng(seed).permutation(len(evidence))[:MAX_EXAMPLES]
    evidence, gains = [evidence[i] for i in chosen], np.asarray(gains, dtype=np.float64)[chosen]
    # what only some examples have cannot be asked for later
    groups = tuple(g for g in _WIDTH if all(g in known.groups for known in evidence))

    # 1) one kernel for the words of the question (and answer) and one for each group
    kernel = np.zeros((len(evidence), len(evidence)))
    counted = {name: _counts([read(evi) for evi in evidence]) for name, read in _texts_for(groups).items()}
    rarities = {name: _rarity(counts) for name, counts in counted.items()}
    weighed = {name: _unit_rows(counts, rarities[name]) for name, counts in counted.items()}
    for rows in weighed.values():
        kernel += (rows @ rows.T).toarray()
    standard = {}
    for group in groups:
        raw = np.array([features(known, group) for known in evidence])
        mean, spread = raw.mean(axis=0), raw.std(axis=0)
        spread[spread < 1e-9] = np.inf  # a feature that never varies says nothing
        standard[group] = (mean, spread, _standard(raw, mean, spread))
        kernel += _gaussian(standard[group][2], standard[group][2], _WIDTH[group])

    # 2) the ridge, by the penalty that predicts left-out examples best
    mean_gain = float(gains.mean())
    penalty, coefficients, left_out = _ridge(kernel, gains - mean_gain)
    left_out += mean_gain

    # 3) gains to probabilities, on left-out predictions: those of seen examples are too sure
    slope, offset = _logistic(left_out, gains <= 0)
    texts = {
        name: TextPart(rarities[name], (rows.T @ coefficients).astype(np.float32)) for name, rows in weighed.items()
    }
    parts = {
        group: FeaturePart(mean, spread, rows, coefficients) for group, (mean, spread, rows) in standard.items()
    }
    quantiles = np.quantile(left_out, np.linspace(0, 1, 101))
    return GainModel(
        small, large, groups, texts, parts, mean_gain, slope, offset, quantiles, len(evidence), penalty
    )


def _texts_for(groups: Sequence[Group]) -> dict[str, Callable[[Evidence], tuple[Buckets, Array]]]:
    return {name: read for name, read in _TEXTS.items() if "checks" in groups or name.startswith("question")}


_TEXTS: Mapping[str, Callable[[Evidence], tuple[Buckets, Array]]] = {
    "question.bytes": lambda evidence: byte_buckets(evidence.question),
    "question.words": lambda evidence: word_buckets(evidence.question),
    "answer.bytes": lambda evidence: byte_buckets(evidence.answer or ""),
}


def _text_gain(text: TextPart, buckets: Buckets, counts: Array) -> float:
    values = (1 + np.log(counts)) * text.rarity[buckets]
    norm = float(np.linalg.norm(values))
    return float(values @ text.weight[buckets]) / norm if norm else 0.0


def _counts(rows: Sequence[tuple[Buckets, Array]]) -> csr_array:
    from scipy.sparse import csr_array

    ends = np.cumsum([0, *(buckets.size for buckets, _ in rows)])
    damped = 1 + np.log(np.concatenate([counts for _, counts in rows]))
    return csr_array((damped, np.concatenate([buckets for buckets, _ in rows]), ends), shape=(len(rows), NUM_BUCKETS))


def _rarity(counts: csr_array) -> NDArray[np.float32]:
    holding = np.bincount(counts.indices, minlength=NUM_BUCKETS)
    rarity = np.log((1 + counts.shape[0]) / (1 + holding)) + 1
    return np.where(holding > 0, rarity, 0).astype(np.float32)


def _unit_rows(counts: csr_array, rarity: NDArray[np.float32]) -> csr_array:
    from scipy.sparse import csr_array

    data = counts.data * rarity[counts.indices]
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    norms = np.sqrt(np.bincount(row, weights=data**2, minlength=counts.shape[0]))
    return csr_array((data / norms[row], counts.indices, counts.indptr), shape=counts.shape)


def _standard(raw: Array, mean: Array, spread: Array) -> Array:
    return np.clip((raw - mean) / spread, -_FARTHEST, _FARTHEST)


def _gaussian(rows: Array, examples: Array, width: float) -> Array:
    """exp(-width * mean squared difference), [rows, examples]."""
    squares = (rows**2).sum(axis=1)[:, None] + (examples**2).sum(axis=1) - 2 * rows @ examples.T
    kernel: Array = np.exp(-width / rows.shape[1] * np.maximum(squares, 0))
    return kernel


def _ridge(kernel: Array, targets: Array) -> tuple[float, Array, Array]:
    """Penalty, dual coefficients and left-out predictions of the penalty with the least left-out error."""
    found = []
    for penalty in PENALTIES:
        inverse = np.linalg.inv(kernel + penalty * np.eye(len(targets)))
        coefficients = inverse @ targets
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
        likely = _sigmoid(design @ weights)
        curvature = (design * (likely * (1 - likely))[:, None]).T @ design + prior
        step = np.linalg.solve(curvature, design.T @ (suffices - likely) - prior @ weights)
        weights += np.clip(step, -2, 2)
    slope = max(float(weights[1]), 1e-3) / (float(gains.std()) + 1e-12)
    return slope, float(weights[0]) + slope * float(gains.mean())


def _sigmoid(values: Array) -> Array:
    return 0.5 * (1 + np.tanh(values / 2))


__all__ = ["MAX_EXAMPLES", "FeaturePart", "GainModel", "TextPart", "fit_gain"]
