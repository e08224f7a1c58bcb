"""From goals to a threshold that keeps them, with a guarantee that holds for any finite number of outcomes.

Learn then test (Angelopoulos et al., arXiv 2110.01052): every threshold of a grid that was fixed before these
outcomes were seen is a hypothesis "this threshold breaks a goal"; one is taken only where that is rejected.
So with probability `confidence` over the outcomes, the chosen threshold keeps all goals on average over
further traffic like them. Means are tested by betting (Waudby-Smith and Ramdas, arXiv 2010.09686): gamblers
who bet fixed shares against the hypothesis, one outcome after the other, on average never grow rich if it is
true (Ville's inequality). Shares of requests are tested by the exact binomial tail. Thresholds are tried from
a safe end until one fails, which costs no correction; where goals pull apart, a coarser grid shares the
error. The guarantee ends where traffic changes: `drift` watches for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.errors import ConfigError
from consort.inference.goals import Goal

Array: TypeAlias = NDArray[np.float64]
NEVER, ALWAYS = 0.0, 2.0  # thresholds on a probability: ask the cloud about nothing, about everything
_SHARES = np.concatenate([[0.001, 0.002, 0.005], np.linspace(0.01, 0.99, 99)])
_COARSE = 8  # of the grid, every eighth: fewer questions, more certainty for each


@dataclass(frozen=True, slots=True)
class Trial:
    """Outcomes to calibrate on, none of which the scorer learned from. `suffices`: its probability on each;
    scores in 0..1. `edge_first`: the edge answers before it is decided (cascade), so that an answer of the
    cloud also takes the edge's money and time."""

    suffices: Array
    small_scores: Array
    large_scores: Array
    edge_first: bool = False
    small_eur: Array | None = None
    large_eur: Array | None = None
    small_s: Array | None = None
    large_s: Array | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The cloud is asked where `suffices` is below `threshold`. Without `kept` no threshold could be
    certified, and everything goes to the cloud (for a quality goal) or stays at the edge. Values are
    estimates on the trial's outcomes."""

    goals: tuple[str, ...]
    confidence: float
    threshold: float
    kept: bool
    cloud_share: float
    quality: float
    quality_of_cloud: float
    eur_per_request: float | None
    num_outcomes: int

    def rule(self, small: str = "the edge", large: str = "the cloud") -> str:
        """Whom to ask when, in words."""
        if self.threshold <= NEVER:
            return f"never ask {large}"
        if self.threshold >= ALWAYS:
            return f"always ask {large}"
        return f"ask {large} where the probability that {small} suffices is below {self.threshold:.4f}"


def threshold_grid(suffices: Array) -> Array:
    """Thresholds from few cloud calls to all: quantiles of the scorer's values on what it learned from."""
    return np.unique(np.concatenate([[NEVER], np.quantile(suffices, np.sort(_SHARES)), [ALWAYS]]))


def calibrate(
    trial: Trial,
    goals: Sequence[Goal],
    grid: Array,
    *,
    confidence: float = 0.95,
    requests_per_month: float | None = None,
    most_eur: float | None = None,
    seed: int = 0,
) -> Calibration:
    """The cheapest threshold that keeps the goals, if one is about quality; else the one of best quality.

    `most_eur`: no request costs more; by default the dearest of the trial, which is then an assumption.
    `seed` is of the order in which outcomes are looked at.
    """
    if not goals:
        raise ConfigError(
            "there is no goal to calibrate for", hint='as in: --goal "quality >= 0.98 of cloud"'
        )
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"a confidence of {confidence:g} is no confidence", hint="give 0.5 to 0.999")
    trial = _shuffled(trial, seed)
    margins = [_Margin(trial, goal, requests_per_month, most_eur) for goal in goals]
    about_quality = any(goal.kind == "quality" for goal in goals)
    alpha = 1 - confidence
    kinds = {goal.kind for goal in goals}
    if kinds == {"quality"}:
        kept = _walk(margins, grid[::-1], alpha)
    elif kinds == {"cost"}:
        kept = _walk(margins, grid, alpha)
    elif about_quality:
        coarse = np.unique(np.concatenate([grid[::_COARSE], grid[-1:]]))
        kept = [float(t) for t in coarse if _worst(margins, t) <= alpha / len(coarse)]
    else:  # either end may be the quick one
        kept = _walk(margins, grid, alpha / 2) + _walk(margins, grid[::-1], alpha / 2)
    if not kept:
        return _estimated(trial, goals, ALWAYS if about_quality else NEVER, confidence, kept=False)
    # a quality goal is kept by asking little, else money and time are used for the best quality
    threshold = min(kept) if about_quality else max(kept, key=lambda t: _quality(trial, t))
    return _estimated(trial, goals, float(threshold), confidence, kept=True)


def mean_p_value(margins: Array, least: float) -> float:
    """Of "the mean margin is at most 0", for independent margins of at least `least` (below 0), in an order
    that their values did not choose: exact for any number of them."""
    bets = np.geomspace(0.003, 0.9, 12) / -least
    wealth = np.cumsum(np.log1p(margins[:, None] * bets), axis=0)
    top = float(wealth.max(initial=0.0))
    richest = float(np.exp(wealth - top).mean(axis=1).max(initial=0.0))
    return min(1.0, math.exp(-top) / richest) if richest else 1.0


def exceedance_p_value(exceeding: int, number: int, allowed: float) -> float:
    """Of "more than the share `allowed` exceeds": the exact binomial probability of seeing so few."""
    logs = [
        math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1)
        + k * math.log(allowed) + (number - k) * math.log1p(-allowed)
        for k in range(exceeding + 1)
    ]  # fmt: skip
    top = max(logs)
    return min(1.0, math.exp(top) * sum(math.exp(one - top) for one in logs))


class _Margin:
    """One goal on one trial: how sure it is that a threshold breaks it."""

    def __init__(
        self, trial: Trial, goal: Goal, requests_per_month: float | None, most_eur: float | None
    ) -> None:
        self._trial, self._goal = trial, goal
        if goal.kind == "quality":
            self._least = -goal.limit
        elif goal.kind == "cost":
            if trial.small_eur is None or trial.large_eur is None:
                raise _unknown(
                    goal, "what the models cost", "give cost_eur in the outcomes, or --price NAME=EUR"
                )
            dearest = float(trial.large_eur.max() + (trial.small_eur.max() if trial.edge_first else 0))
            dearest = max(dearest, float(trial.small_eur.max())) if most_eur is None else most_eur
            self._limit = goal.limit
            if goal.per == "month":
                if not requests_per_month:
                    raise _unknown(goal, "the requests a month", "give --requests-per-month")
                self._limit = goal.limit / requests_per_month
            # the worst a request can do to this bound
            self._least = -dearest if goal.of_cloud else -max(dearest - self._limit, 0.01 * dearest)
        elif trial.small_s is None or trial.large_s is None:
            raise _unknown(goal, "how long the models take", "give latency_s in the outcomes")

    def p_value(self, threshold: float) -> float:
        """Of "this threshold breaks the goal"; small where it surely keeps it."""
        trial, goal = self._trial, self._goal
        asked = trial.suffices < threshold
        if goal.kind == "quality":
            score = np.where(asked, trial.large_scores, trial.small_scores)
            if goal.of_cloud and threshold == ALWAYS:
                return 0.0  # the cloud alone is as good as the cloud: nothing to test
            wanted = goal.limit * trial.large_scores if goal.of_cloud else goal.limit
            return mean_p_value(score - wanted, self._least)
        if goal.kind == "cost":
            assert trial.small_eur is not None, "checked above"
            assert trial.large_eur is not None, "checked above"
            spent = spent_of(trial.small_eur, trial.large_eur, asked, edge_first=trial.edge_first)
            limit = goal.limit * trial.large_eur if goal.of_cloud else self._limit
            return mean_p_value(limit - spent, self._least)
        assert trial.small_s is not None, "checked above"
        assert trial.large_s is not None, "checked above"
        took = spent_of(trial.small_s, trial.large_s, asked, edge_first=trial.edge_first)
        return exceedance_p_value(int((took > goal.limit).sum()), took.size, 1 - goal.quantile)


def spent_of(small: Array, large: Array, asked: NDArray[np.bool_], *, edge_first: bool) -> Array:
    """Money or time of each request: after the edge's answer the cloud's comes on top, before it instead."""
    return np.where(asked, large + small if edge_first else large, small)


def _shuffled(trial: Trial, seed: int) -> Trial:
    """A file's order may follow its subjects, and then the first outcomes are not like the others."""
    order = np.random.default_rng(seed).permutation(trial.suffices.size)

    def taken(column: Array | None) -> Array | None:
        return None if column is None else column[order]

    return Trial(
        trial.suffices[order],
        trial.small_scores[order],
        trial.large_scores[order],
        edge_first=trial.edge_first,
        small_eur=taken(trial.small_eur),
        large_eur=taken(trial.large_eur),
        small_s=taken(trial.small_s),
        large_s=taken(trial.large_s),
    )


def _walk(margins: Sequence[_Margin], thresholds: Array, alpha: float) -> list[float]:
    """Fixed-sequence testing: all thresholds before the first that may break a goal."""
    kept = []
    for threshold in thresholds:
        if _worst(margins, threshold) > alpha:
            break
        kept.append(float(threshold))
    return kept


def _worst(margins: Sequence[_Margin], threshold: float) -> float:
    """All goals are kept unless one is broken, so the least sure one speaks for all."""
    return max(margin.p_value(float(threshold)) for margin in margins)


def _quality(trial: Trial, threshold: float) -> float:
    return float(np.where(trial.suffices < threshold, trial.large_scores, trial.small_scores).mean())


def _estimated(
    trial: Trial, goals: Sequence[Goal], threshold: float, confidence: float, *, kept: bool
) -> Calibration:
    asked = trial.suffices < threshold
    quality = _quality(trial, threshold)
    euros = None
    if trial.small_eur is not None and trial.large_eur is not None:
        euros = float(spent_of(trial.small_eur, trial.large_eur, asked, edge_first=trial.edge_first).mean())
    return Calibration(
        goals=tuple(map(str, goals)),
        confidence=confidence,
        threshold=threshold,
        kept=kept,
        cloud_share=float(asked.mean()),
        quality=quality,
        quality_of_cloud=quality / max(float(trial.large_scores.mean()), 1e-12),
        eur_per_request=euros,
        num_outcomes=trial.suffices.size,
    )


def _unknown(goal: Goal, what: str, hint: str) -> ConfigError:
    return ConfigError(f"{what} must be known for this goal", where=f'goal "{goal}"', hint=hint)
