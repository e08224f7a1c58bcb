"""A figure with its interval: over draws, of a sum that lacks some terms, of a mean of values in 0..1.

The mean's interval inverts the betting test of `inference.calibration` (arXiv 2010.09686): it holds all means
that are not rejected, for any number of values. Wider than a normal interval, and right also where all values
are equal. The sum's is a studentised bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from consort.inference.calibration import Array, mean_p_value

TAILS = (0.025, 0.975)
_STEPS = 20  # of the bisection: a millionth
_LEAST_SPREAD = 0.2  # of a drawn pool, in spreads of the pool: few values drawn alike bound nothing


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
        # the truth is one draw more: one of B + 1, not of B, lies below the least
        low, high = np.quantile(draws, TAILS, method="weibull")
        return cls(float(np.mean(draws)), float(low), float(high))


def sum_with_missing(known: float, missing: Sequence[tuple[Array, int]], *, draws: int, seed: int) -> Figure:
    """`known` and, for each pool of at least two values, so many more values like those in it; none is
    negative.

    Studentised bootstrap (Hall, The Bootstrap and Edgeworth Expansion, 1992, chapter 3) of what is missing: a
    pool without large values has a small mean and looks as if it varied little, and both are put right by how
    far drawn pools are from drawn sums, each in its own standard errors.
    """
    value = known + math.fsum(count * float(pool.mean()) for pool, count in missing)
    least = [_LEAST_SPREAD * _spread(pool) for pool, _ in missing]
    error = _standard_error(missing, least)
    if error == 0:
        return Figure(value, value, value)
    rng = np.random.default_rng(seed)
    offs = np.empty(draws)
    for draw in range(draws):
        sums = [float(pool[rng.integers(pool.size, size=count)].sum()) for pool, count in missing]
        drawn = [(pool[rng.integers(pool.size, size=pool.size)], count) for pool, count in missing]
        expected = math.fsum(count * float(pool.mean()) for pool, count in drawn)
        offs[draw] = (math.fsum(sums) - expected) / _standard_error(drawn, least)
    low, high = value + error * np.quantile(offs, TAILS, method="weibull")
    return Figure(value, max(known, float(low)), float(high))


def _standard_error(missing: Sequence[tuple[Array, int]], least: Sequence[float]) -> float:
    """Of sums predicted by pools: the sums vary, and so do the pools' means."""
    return math.sqrt(
        math.fsum(
            max(_spread(pool), floor) ** 2 * (count + count**2 / pool.size)
            for (pool, count), floor in zip(missing, least, strict=True)
        )
    )


def _spread(pool: Array) -> float:
    """The standard deviation; 0, not almost 0, where all values are the same."""
    return float(pool.std(ddof=1)) if pool.min() < pool.max() else 0.0


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
