"""What the small model's hidden state says about the large one's gain: ridge regression on the states' first
principal components, which together are one direction.

How many components, and how strong the ridge, is what foretells best the gains of questions left out; where
nothing foretells them better than their mean, the direction is nought. Reads states; shows none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consort.types import FloatArray as State

FloatArray = NDArray[np.float64]
COMPONENTS = (2, 4, 8, 16, 32, 64, 128, 256)
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # in units of the mean component's strength
_TOKENS_A_COMPONENT = 4  # at least
_LEAST_SPREAD = 1e-6  # of a dimension that never changes


@dataclass(frozen=True, slots=True)
class StateGain:
    """`sha256` names the weights whose states these are: beside others they mean nothing."""

    sha256: str
    mean: FloatArray  # [D]
    direction: FloatArray  # [D], gain a unit of the state
    mean_gain: float
    components: int  # that the direction is made of, of D

    def __call__(self, state: State) -> float:
        """The gain that the state foretells."""
        return self.mean_gain + float((state - self.mean) @ self.direction)


def fit_states(
    states: Sequence[FloatArray], gains: Sequence[FloatArray], sha256: str, folds: Sequence[NDArray[np.intp]]
) -> tuple[StateGain, list[FloatArray]]:
    """Learn from each question's states [T, D] and gains [T]; with each question's gains as foretold without
    its fold."""
    most = min(states[0].shape[1], sum(map(len, states)) // _TOKENS_A_COMPONENT)
    counts = sorted({min(count, most) for count in COMPONENTS})
    choices = [(0, 1.0), *((count, penalty) for count in counts for penalty in PENALTIES)]
    # 1) every choice foretells every question that it did not see
    foretold = [np.empty((len(one), len(choices))) for one in gains]
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(states)), fold)
        parts = _Components.of([states[i] for i in rest], [gains[i] for i in rest])
        directions = np.column_stack([parts.direction(*choice) for choice in choices])
        for i in fold:
            foretold[i] = parts.mean_gain + (states[i] - parts.mean) @ directions
    # 2) the best one, learned from all
    errors = [((told - one[:, None]) ** 2).sum(0) for told, one in zip(foretold, gains, strict=True)]
    best = int(np.argmin(np.sum(errors, 0)))
    parts = _Components.of(states, gains)
    learned = StateGain(
        sha256, parts.mean, parts.direction(*choices[best]), parts.mean_gain, choices[best][0]
    )
    return learned, [each[:, best] for each in foretold]


@dataclass(frozen=True, slots=True)
class _Components:
    """Principal components of standardised states, the strongest first, and how gains go with them."""

    mean: FloatArray  # [D]
    axes_DK: FloatArray  # of the states as they are
    strength_K: FloatArray  # variance along each
    along_K: FloatArray  # covariance of the gain with each
    mean_gain: float

    @classmethod
    def of(cls, states: Sequence[FloatArray], gains: Sequence[FloatArray]) -> _Components:
        states_ND, gains_N = np.concatenate(states), np.concatenate(gains)
        mean, spread = states_ND.mean(0), states_ND.std(0) + _LEAST_SPREAD
        standard_ND = (states_ND - mean) / spread
        strength_K, axes_DK = np.linalg.eigh(standard_ND.T @ standard_ND / len(standard_ND))
        strength_K, axes_DK = strength_K[::-1], axes_DK[:, ::-1]
        mean_gain = float(gains_N.mean())
        along_K = axes_DK.T @ (standard_ND.T @ (gains_N - mean_gain)) / len(standard_ND)
        return cls(mean, axes_DK / spread[:, None], strength_K, along_K, mean_gain)

    def direction(self, count: int, penalty: float) -> FloatArray:
        """[D]: the first components, each as far as the ridge lets it."""
        weights_K = self.along_K[:count] / (self.strength_K[:count] + penalty)
        found: FloatArray = self.axes_DK[:, :count] @ weights_K
        return found
