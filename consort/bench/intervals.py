"""A figure with its interval, and a mean of values in 0..1 whose interval holds for any number of them.

The interval inverts the betting test of `inference.calibration` (arXiv 2010.09686): it holds all means that
are not rejected. Wider than a normal interval, and right also where all values are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from consort.inference.calibration import Array, mean_p_value

_STEPS = 20  # of the bisection: a millionth


@dataclass(frozen=True, slots=True)
class Figure:
    """A value and its 95 % interval; an exact value is its own interval."""

    value: float
    low: float
    high: float

    @property
    def is_exact(self) -> bool:
        """Whether nothing about it was estimated."""
        return self.low == self.value == self.high

    @classmethod
    def over(cls, draws: Sequence[float]) -> Figure:
        """The mean over draws and what 95 % of them lie within; draws that are all the same are exact."""
        if min(draws) == max(draws):
            return cls(draws[0], draws[0], draws[0])
        low, high = np.quantile(draws, [0.025, 0.975])
        return cls(float(np.mean(draws)), float(low), float(high))


def mean_by_betting(values: Array, weights: Array, *, confidence: float = 0.95, seed: int = 0) -> Figure:
    """The weighted mean of independent `values` in 0..1; weights are one over the chance of being drawn."""
    order = np.random.default_rng(seed).permutation(values.size)  # which the values did not choose
    values, weights = values[order], weights[order] / weights.max()
    mean = float(np.average(values, weights=weights))
    alpha = (1 - confidence) / 2
    low = _least(values, weights, mean, alpha)
    high = 1 - _least(1 - values, weights, 1 - mean, alpha)
    return Figure(mean, min(low, mean), max(high, mean))


def _least(values: Array, weights: Array, mean: float, alpha: float) -> float:
    """The largest mean below `mean` that is rejected as an upper bound."""
    rejected, kept = 0.0, mean
    for _ in range(_STEPS):
        tried = (rejected + kept) / 2
        if tried <= 0 or mean_p_value(weights * (values - tried), -tried) <= alpha:
            rejected = tried
        else:
            kept = tried
    return rejected
