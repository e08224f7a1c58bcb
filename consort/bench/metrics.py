"""Scores of answers: Rouge-L, exact match, majority baseline, perplexity, bits per byte, with their errors.

Rouge-L is Lin, 2004 (F1 of the longest common subsequence) over the tokens of Google's `rouge_score`, without
stemming: answers without any ASCII letter or digit score 0 there, while exact match has no such limit.
Scores are shares between 0 and 1. Does not generate answers and does not run models.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

JsonScore: TypeAlias = dict[str, float]

# 97.5 % quantile of Student's t at 1..30 degrees of freedom; for three seeds the normal 1.96 is far too small
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over `n` rows with its standard error; `rows` are the values behind it, if a plain mean."""

    mean: float
    stderr: float
    n: int
    rows: tuple[float, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, rows: Sequence[float]) -> Score:
        """The mean of `rows`; one row alone has no standard error, which reads 0."""
        values = np.asarray(rows, dtype=np.float64)
        assert values.size, "a score needs at least one row"
        stderr = float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else 0.0
        return cls(float(values.mean()), stderr, values.size, tuple(values.tolist()))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean (Student's t)."""
        quantile = _T_975[self.n - 2] if 2 <= self.n <= len(_T_975) + 1 else 1.96
        return self.mean - quantile * self.stderr, self.mean + quantile * self.stderr


@dataclass(frozen=True, slots=True)
class Scores:
    """How one model answered one set of questions."""

    rouge_l: Score
    em: Score

    def to_json(self) -> JsonScore:
        """Means, standard errors and the number of rows; the rows themselves stay out."""
        return {
            "rouge_l": self.rouge_l.mean,
            "em": self.em.mean,
            "rouge_l_stderr": self.rouge_l.stderr,
            "em_stderr": self.em.stderr,
            "rows": self.em.n,
        }


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How well a model predicts given answers: lower is better in both."""

    perplexity: Score
    bits_per_byte: Score


def score_answers(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Rouge-L and exact match of each answer against its reference."""
    pairs = list(zip(answers, references, strict=True))
    return Scores(
        rouge_l=Score.of([rouge_l(answer, reference) for answer, reference in pairs]),
        em=Score.of([exact_match(answer, reference) for answer, reference in pairs]),
    )


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of lower-cased ASCII words and numbers; 0 if either is empty."""
    ours, theirs = _words(answer), _words(reference)
    common = _common_subsequence_length(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same text but for case and the amount of white space, else 0."""
    return float(_normalised(answer) == _normalised(reference))


def majority_baseline(train_answers: Sequence[str], test_answers: Sequence[str]) -> float:
    """Exact match of always giving the most frequent training answer: what reading no question earns.

    Among equally frequent answers the one seen first counts.
    """
    if not train_answers or not test_answers:
        return 0.0
    ((majority, _),) = Counter(map(_normalised, train_answers)).most_common(1)
    return sum(_normalised(answer) == majority for answer in test_answers) / len(test_answers)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Score:
    """Mean of the row-wise differences: on the same rows its error is below that of two separate means."""
    return Score.of([a - b for a, b in zip(ours, theirs, strict=True)])


def likelihood(
    log_likelihoods: Sequence[float], num_tokens: Sequence[int], *, num_bytes: Sequence[int]
) -> Likelihood:
    """Perplexity per token and bits per byte of rows, from each row's summed log-likelihood in nats.

    Only bits per byte compare across tokenizers. Both are ratios of sums, so long rows weigh more; the
    errors are those of the ratio estimator (Cochran, Sampling Techniques, 6.4), carried through exp by slope.
    """
    nats = -np.asarray(log_likelihoods, dtype=np.float64)
    per_token, per_byte = _ratio(nats, num_tokens), _ratio(nats / math.log(2), num_bytes)
    # exp overflows for a model that diverged: infinite perplexity is then the true reading
    perplexity = math.exp(per_token.mean) if per_token.mean < 700 else math.inf
    return Likelihood(Score(perplexity, perplexity * per_token.stderr, per_token.n), per_byte)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()


def _common_subsequence_length(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Bit-parallel: one big-integer addition a word instead of a row of the table (Hyyrö, 2004)."""
    positions: dict[str, int] = {}
    for index, word in enumerate(ours):
        positions[word] = positions.get(word, 0) | 1 << index
    full = (1 << len(ours)) - 1
    unmatched = full
    for word in theirs:
        matches = unmatched & positions.get(word, 0)
        unmatched = (unmatched + matches | unmatched - matches) & full
    return len(ours) - unmatched.bit_count()


def _ratio(amounts: np.ndarray[tuple[int], np.dtype[np.float64]], sizes: Sequence[int]) -> Score:
    weights = np.asarray(sizes, dtype=np.float64)
    assert weights.size == amounts.size, "one size a row"
    assert weights.sum() > 0, "no tokens to predict"
    ratio = float(amounts.sum() / weights.sum())
    n = weights.size
    spread = float(np.square(amounts - ratio * weights).sum())
    stderr = math.sqrt(spread * n / (n - 1)) / float(weights.sum()) if n > 1 else 0.0
    return Score(ratio, stderr, n)
