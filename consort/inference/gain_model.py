"""The gain of asking the cloud, as a learned scorer expects it: a sum over words and over plain features.

The gain is the large model's score less the small one's, not how hard a question is: a question that both
fail is hard, and asking the cloud gains nothing. `gain_fit` learns it, `gain_file` stores it; a score needs
numpy alone, and takes a look-up for each n-gram and one product with the examples' features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.errors import ModelError
from consort.inference.evidence import Evidence, Group, features
from consort.inference.ngrams import Buckets, byte_buckets, word_buckets

if TYPE_CHECKING:
    pass

Array: TypeAlias = NDArray[np.float64]
WIDTHS: Mapping[Group, float] = {
    "surface": 1.0,
    "checks": 0.3,
    "confidence": 0.3,
    "agreement": 0.3,
    "proxy": 0.3,
}
_FARTHEST = 4.0  # standard deviations: an odd question is odd, but not infinitely so


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
    squares: Array = field(init=False, repr=False)  # of the examples: summed once, not for each score

    def __post_init__(self) -> None:
        object.__setattr__(self, "squares", np.square(self.examples).sum(axis=1))


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
        if self.texts and not evidence.worded:
            raise ModelError(
                "this scorer reads words, and only features were kept here",
                where=f"scorer for {self.small} and {self.large}",
                hint="calibrate one on features alone, or keep texts: serve.log_text",
            )
        gain = self.mean_gain
        for name, text in self.texts.items():
            gain += _text_gain(text, *TEXTS[name](evidence))
        for group, part in self.parts.items():
            row = standardised(np.array(features(evidence, group)), part.mean, part.spread)
            distances = row @ row + part.squares - 2 * (part.examples @ row)
            gain += float(np.exp(-WIDTHS[group] / row.size * distances) @ part.coefficients)
        return gain

    def suffices(self, gain: float) -> float:
        """The probability that the small model's answer is at least as good: falls as `gain` rises."""
        return float(sigmoid(np.array(self.offset - self.slope * gain)))


TEXTS: Mapping[str, Callable[[Evidence], tuple[Buckets, Array]]] = {
    "question.bytes": lambda evidence: byte_buckets(evidence.question),
    "question.words": lambda evidence: word_buckets(evidence.question),
    "answer.bytes": lambda evidence: byte_buckets(evidence.answer or ""),
}


def _text_gain(text: TextPart, buckets: Buckets, counts: Array) -> float:
    values = (1 + np.log(counts)) * text.rarity[buckets]
    norm = float(np.linalg.norm(values))
    return float(values @ text.weight[buckets]) / norm if norm else 0.0


def standardised(raw: Array, mean: Array, spread: Array) -> Array:
    """Features in standard deviations from the examples' mean, none farther out than four."""
    return np.clip((raw - mean) / spread, -_FARTHEST, _FARTHEST)


def sigmoid(values: Array) -> Array:
    """Probabilities of log-odds, without overflow."""
    return 0.5 * (1 + np.tanh(values / 2))
