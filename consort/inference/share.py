"""A goal for the share of tokens that the large model writes, kept without knowing the scorer's scale.

The scorer's needs on held-out prompts give a threshold for every share: a quantile. Prompts change, so the
share that is asked for moves against the error, token by token (an integral controller; its long-run error is
at most (1 + 2 * step) / (step * tokens), as of adaptive conformal inference, arXiv 2106.00984, section 4.1).
Knows no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

STEP = 0.01  # of the asked share for each token written: a wrong threshold is mended in about a hundred


@dataclass(slots=True)
class Share:
    """The goal and where it stands. `needs` are the scorer's values on held-out tokens, in any order; their
    spread is all that is used. `step` 0 keeps the threshold of the held-out tokens."""

    goal: float
    needs: Sequence[float] | NDArray[np.float64]
    step: float = STEP
    asked: float = field(init=False)  # share of the held-out tokens above the present threshold
    tokens: int = 0
    large_tokens: int = 0
    _sorted: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert 0 <= self.goal <= 1, "checked where it was read"
        self.asked = self.goal
        self._sorted = np.sort(np.asarray(self.needs, dtype=np.float64))

    @property
    def threshold(self) -> float:
        """The need from which on the large model is asked."""
        if self.asked >= 1 or self.goal == 1:
            return -np.inf
        if self.asked <= 0 or self.goal == 0:
            return np.inf
        return float(np.quantile(self._sorted, 1 - self.asked))

    def asks(self, need: float) -> bool:
        """Whether the large model is to write this token."""
        return need > self.threshold

    def count(self, *, large: bool) -> None:
        """A token was written."""
        self.tokens += 1
        self.large_tokens += large
        if self.step:
            # not cut off at 0 and 1: beyond them nobody, or everybody, is asked, and it comes back by itself
            self.asked += self.step * (self.goal - large)
