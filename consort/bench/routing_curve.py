"""How well a ranking of prompts decides who answers: APGR and CPT of RouteLLM (arXiv 2406.18665, 3.1).

A ranking sends the prompts of highest need to the large model. At each share of large-model calls the
performance gap recovered is PGR = (quality - small) / (large - small); APGR is the area under it, 0.5 for
chance, and CPT(x) the least share at which PGR reaches x. RouteLLM adds up ten shares; here the area is
exact, and prompts of equal need count as in random order. A perfect ranking exceeds 1 where the small
model is sometimes the better one. Does not learn and does not choose a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.errors import DataError

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self, name: str) -> dict[str, object]:
        """The value under `name`, its interval beside it."""
        return {name: self.value, f"{name}_interval": (self.low, self.high)}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}, {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Curve:
    """The performance gap recovered against the share of prompts that the large model answers, from (0, 0)
    to (1, 1); straight between its points."""

    share: Array
    recovered: Array

    @property
    def apgr(self) -> float:
        """Average performance gap recovered."""
        return float(np.trapezoid(self.recovered, self.share))

    def cpt(self, recovered: float) -> float:
        """Call-performance threshold: the least share of large-model calls that recovers this much."""
        index = int(np.argmax(self.recovered >= recovered - 1e-12))
        if index == 0:
            return float(self.share[0])
        rise = self.recovered[index] - self.recovered[index - 1]
        part = (recovered - self.recovered[index - 1]) / rise if rise > 0 else 1.0
        return float(self.share[index - 1] + part * (self.share[index] - self.share[index - 1]))


@dataclass(frozen=True, slots=True)
class Judged:
    """A ranking's figures over one set of prompts, with intervals over resampled prompts."""

    apgr: Interval
    cpt50: Interval
    cpt80: Interval
    curve: Curve

    def to_json(self) -> dict[str, object]:
        """The three figures, each with its interval."""
        figures = {"apgr": self.apgr, "cpt50": self.cpt50, "cpt80": self.cpt80}
        return {key: value for name, figure in figures.items() for key, value in figure.to_json(name).items()}


def routing_curve(need: Array, gains: Array) -> Curve:
    """The curve of asking the large model in the order of falling `need`; `gains` is large less small."""
    counts, summed = _by_need(need, gains, np.ones_like(gains))
    return _curve(counts, summed)


def judge(need: Array, gains: Array, *, resamples: int = 1000, seed: int = 0) -> Judged:
    """The curve's figures, with bootstrap intervals over prompts (percentile, 95 %)."""
    rng = np.random.default_rng(seed)
    curve = routing_curve(need, gains)
    drawn = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(len(gains), size=len(gains)), minlength=len(gains)).astype(float)
        counts, summed = _by_need(need, gains, weights)
        if summed.sum() > 0:  # a tiny set can be drawn without any gain to recover
            other = _curve(counts, summed)
            drawn.append((other.apgr, other.cpt(0.5), other.cpt(0.8)))
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    apgr, cpt50, cpt80 = (
        Interval(value, float(least), float(most))
        for value, least, most in zip((curve.apgr, curve.cpt(0.5), curve.cpt(0.8)), low, high, strict=True)
    )
    return Judged(apgr, cpt50, cpt80, curve)


def _by_need(need: Array, gains: Array, weights: Array) -> tuple[Array, Array]:
    """Weight and weighted gain of each distinct need, highest first."""
    order = np.argsort(-need, kind="stable")
    ranked = need[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    weighted = (weights * gains)[order]
    return np.add.reduceat(weights[order], starts), np.add.reduceat(weighted, starts)


def _curve(counts: Array, summed: Array) -> Curve:
    total = float(summed.sum())
    if total <= 0:
        raise DataError(
            "the large model is no better than the small one on these prompts, so there is no gap to recover",
            hint="exchange --small and --large, or answer everything with the small one",
        )
    share = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    return Curve(share, np.concatenate([[0.0], np.cumsum(summed) / total]))
