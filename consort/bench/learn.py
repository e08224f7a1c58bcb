"""One scorer from outcomes: learned on a random half, calibrated for goals and judged on the other.

The halves share no row, so neither the promise nor the figures are flattered by what was learned. Does not
remove copies: of a prompt that is there twice, one may be learned and the other judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from consort.bench.compare import request_eur
from consort.bench.outcomes import Pair
from consort.bench.routing_curve import Judged, judge
from consort.inference.calibration import Trial, calibrate, threshold_grid
from consort.inference.gain_file import StoredScorer
from consort.inference.gain_fit import fit_gain
from consort.inference.goals import Goal


@dataclass(frozen=True, slots=True)
class Learned:
    """A scorer with its threshold, and how well it ranks prompts that it did not learn from."""

    scorer: StoredScorer
    judged: Judged
    num_judged: int


def learn_scorer(
    data: Pair,
    goals: Sequence[Goal],
    *,
    after_answer: bool,
    prices_eur: Mapping[str, float],
    confidence: float = 0.95,
    requests_per_month: float | None = None,
    seed: int = 0,
) -> Learned:
    """Learn who should answer before the small model does, or after; without goals there is no threshold."""
    evidence = data.evidence(answered=after_answer)
    half, rest = np.array_split(np.random.default_rng(seed).permutation(len(evidence)), 2)
    model = fit_gain(
        [evidence[i] for i in half], data.gains[half], small=data.small, large=data.large, seed=seed
    )
    need = np.array([model.gain(evidence[i]) for i in rest])
    suffices = np.array([model.suffices(gain) for gain in need])
    calibration = None
    if goals:
        columns = {
            "small_eur": request_eur(data, data.small, prices_eur),
            "large_eur": request_eur(data, data.large, prices_eur),
            "small_s": data.latencies_s(data.small),
            "large_s": data.latencies_s(data.large),
        }
        trial = Trial(
            suffices,
            data.small_scores[rest],
            data.large_scores[rest],
            edge_first=after_answer,
            **{name: None if column is None else column[rest] for name, column in columns.items()},
        )
        calibration = calibrate(
            trial,
            goals,
            # of left-out predictions on the learning half: fixed before the trial is seen
            threshold_grid(np.array([model.suffices(gain) for gain in model.quantiles])),
            confidence=confidence,
            requests_per_month=requests_per_month,
            seed=seed,
        )
    judged = judge(need, data.gains[rest], seed=seed)
    return Learned(StoredScorer(model, calibration, suffices), judged, rest.size)
