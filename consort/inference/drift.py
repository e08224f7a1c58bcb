"""Drift alarm: has traffic changed since calibration, as the scorer's values show it?

A conformal test martingale (Vovk et al., arXiv 2102.10439): each new value's rank among all seen so far is
uniform as long as nothing changes, whatever the values' distribution is; gamblers bet against that, on values
lower, higher, nearer the middle or farther out. Some of the money enters at every step, so that a change that
comes late finds gamblers who have not lost all. While nothing changes the capital ever reaches 1 / alarm_rate
with a probability of at most `alarm_rate` (Ville's inequality), so the alarm may run for months. It sees what
moves the scores; answers that grow worse at equal scores are seen only by grading answers anew.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# (tilt, spread): how much a gambler bets on high ranks, and on ranks far from the middle
# Scores are ranked by their float16, as which those above 0 keep three digits and their order: the memory of
# months is one table, and a tie is broken by chance, which costs no exactness.
_BINS = 1 << 15
_BETS = np.array([(1, 0), (-1, 0), (0.5, 0), (-0.5, 0), (0, 1), (0, -1), (0, 0.5), (0, -0.5)])


class DriftAlarm:
    """Watches one scorer's values, none below 0. `calibrated`: those of the calibration, in any order."""

    def __init__(self, calibrated: Iterable[float], *, alarm_rate: float = 0.01, seed: int = 0) -> None:
        assert 0 < alarm_rate < 1, "a rate"
        self._seen = np.zeros(_BINS, np.int64)
        for score in calibrated:
            self._seen[_bin(score)] += 1
        self._rng = np.random.default_rng(seed)
        self._capital = np.zeros(len(_BETS))
        self._reserve, self._steps = 1.0, 0
        self._limit = 1 / alarm_rate
        self.ringing = False

    @property
    def evidence(self) -> float:
        """The capital: 1 at the start; about how many times likelier the values are under some drift."""
        return self._reserve + float(self._capital.sum())

    def observe(self, score: float) -> bool:
        """Take in one value of live traffic; whether the alarm rings, which it then goes on to do."""
        own = _bin(score)
        below, ties = int(self._seen[:own].sum()), int(self._seen[own])
        above = int(self._seen[own + 1 :].sum())
        self._seen[own] += 1
        # the rank among all, itself included, ties broken by chance: exactly uniform without drift
        rank = (below + self._rng.random() * (ties + 1)) / (below + ties + above + 1)
        # of the reserve of 1, step t receives 1 / (t (t + 1)): in the end all of it
        self._steps += 1
        entering = 1 / (self._steps * (self._steps + 1))
        self._reserve -= entering
        # a pay-off is 1 on average over a uniform rank, and never negative
        tilt, spread = 2 * rank - 1, 2 * abs(2 * rank - 1) - 1
        self._capital = (self._capital + entering / len(_BETS)) * (1 + _BETS @ np.array([tilt, spread]))
        self.ringing = self.ringing or self.evidence >= self._limit
        return self.ringing


def _bin(score: float) -> int:
    return int(np.float16(abs(score)).view(np.uint16))
