"""What the large model's token is expected to add here: boosted trees over a look's features, learned by
`token_fit`.

One of the features is the question: which words it has, weighed by what the large model gained on such
questions. Another, where it was learned, is what the small model's hidden state foretells. Scoring needs
numpy alone: all trees are walked at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from consort.inference.ngrams import word_buckets
from consort.inference.token_need import Look, look_features
from consort.inference.token_states import StateGain

_QUESTIONS_KEPT = 64  # their words are looked up once, not for each token
IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trees:
    """Regression trees of one depth limit, [trees, nodes]: a row goes left where its feature is at most the
    threshold; a leaf has itself as both children."""

    feature: IntArray
    threshold: FloatArray
    left: IntArray
    right: IntArray
    value: FloatArray  # of leaves, with the learning rate
    base: float
    depth: int

    def __call__(self, row: FloatArray) -> float:
        """The sum over all trees."""
        trees = np.arange(len(self.feature))
        node = np.zeros(len(self.feature), np.int32)
        for _ in range(self.depth):
            goes_left = row[self.feature[trees, node]] <= self.threshold[trees, node]
            node = np.where(goes_left, self.left[trees, node], self.right[trees, node])
        return self.base + float(self.value[trees, node].sum())


@dataclass(frozen=True, slots=True)
class TokenNeed:
    """A learned scorer for one pair of models. `vocabulary_sha256` is the small model's tokenizer;
    `occurrences` say how often each of its tokens was seen; `needs` are the scorer's values on tokens it did
    not learn from, lesson by lesson, for `Share`. With `states` it scores only looks that show theirs."""

    vocabulary_sha256: str
    trees: Trees
    occurrences: Mapping[int, int]
    words: FloatArray  # gain that a word of the question adds, by bucket
    mean_gain: float
    needs: FloatArray
    num_tokens: int
    states: StateGain | None = None
    _asked: dict[str, float] = field(default_factory=dict, repr=False)  # of the latest questions

    def __call__(self, look: Look) -> float:
        """The expected gain: a `TokenScorer`."""
        gain = self._asked.get(look.question)
        if gain is None:
            if len(self._asked) >= _QUESTIONS_KEPT:
                self._asked.clear()
            gain = self._asked[look.question] = question_gain(look.question, self.words, self.mean_gain)
        foretold = [gain]
        if self.states is not None:
            assert look.top.state is not None, "checked when the scorer was read"
            foretold.append(self.states(look.top.state))
        return self.trees(token_row(look, self.occurrences, foretold))


def token_row(look: Look, occurrences: Mapping[int, int], foretold: Sequence[float]) -> FloatArray:
    """All that is known about one token, as the trees read it. `foretold` are gains: by the question's words,
    and by the hidden state where that is read."""
    return np.array([*look_features(look), np.log1p(occurrences.get(look.token, 0)), *foretold])


def question_row(question: str) -> tuple[NDArray[np.int64], FloatArray]:
    """Buckets of the question's words, and their weights: a vector of length 1."""
    buckets, counts = word_buckets(question)
    damped = 1 + np.log(counts)
    return buckets, damped / (float(np.linalg.norm(damped)) or 1.0)


def question_gain(question: str, words: FloatArray, mean_gain: float) -> float:
    """What the large model is expected to gain on the whole answer."""
    buckets, weights = question_row(question)
    return mean_gain + float(words[buckets] @ weights)
