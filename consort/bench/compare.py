"""Ways of deciding compared on the same outcomes: chance, a learned route, cascades with or without labels.

Learned ones are cross-fitted: every prompt is judged by a model that learned from the other folds.
Quality, money and shares are read off the outcomes; no model is asked. What a strategy's own work costs
is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.bench.metrics import Score
from consort.bench.outcomes import Pair
from consort.bench.routing_curve import Judged, judge
from consort.errors import DataError
from consort.inference.answer_checks import failed_checks
from consort.inference.calibration import spent_of
from consort.inference.evidence import Evidence
from consort.inference.gain_fit import fit_gain

Array: TypeAlias = NDArray[np.float64]
_FEWEST = 40  # below, a fold learns from less than a model needs


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way of deciding: how much each prompt needs the cloud, and whether the edge answers first."""

    name: str
    need: Array
    edge_first: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """One strategy at one share of cloud answers. `eur` a request, where prices are known."""

    name: str
    judged: Judged | None
    edge_share: float
    quality: Score
    eur: float | None

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints; intervals are of 95 %."""
        row: dict[str, Any] = {
            "strategy": self.name,
            "quality": self.quality.mean,
            "quality_interval": self.quality.interval,
            "edge_share": self.edge_share,
            "eur_per_request": self.eur,
        }
        return row if self.judged is None else row | self.judged.to_json()


def strategies(data: Pair, *, folds: int = 10, seed: int = 0) -> list[Strategy]:
    """Chance and a route; with the small model's answers also a cascade, by checks alone and learned."""
    if len(data.outcomes) < _FEWEST:
        raise DataError(
            f"{len(data.outcomes)} outcomes are too few to compare on", hint=f"give at least {_FEWEST}"
        )
    # all of one need: the curve of such a ranking is the mean over random orders
    found = [Strategy("random", np.zeros(len(data.outcomes)))]
    found.append(
        Strategy("route", cross_fitted(data.evidence(answered=False), data.gains, folds=folds, seed=seed))
    )
    if data.has_answers:
        answered = data.evidence(answered=True)
        failed = np.array([failed_checks(known.question, known.answer or "") for known in answered])
        found.append(Strategy("cascade, checks only", failed, edge_first=True))
        need = cross_fitted(answered, data.gains, folds=folds, seed=seed)
        found.append(Strategy("cascade", need, edge_first=True))
    return found


def cross_fitted(evidence: Sequence[Evidence], gains: Array, *, folds: int, seed: int) -> Array:
    """The expected gain on each prompt, by a model that learned from the other folds."""
    need = np.empty(len(evidence))
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(evidence)), folds):
        rest = np.setdiff1d(np.arange(len(evidence)), fold)
        model = fit_gain([evidence[i] for i in rest], gains[rest], seed=seed)
        need[fold] = [model.gain(evidence[i]) for i in fold]
    return need


def standings(
    data: Pair,
    ways: Sequence[Strategy],
    *,
    cloud_share: float,
    prices_eur: Mapping[str, float],
    seed: int = 0,
) -> list[Standing]:
    """The edge alone, the cloud alone, and each strategy at `cloud_share`."""
    small_eur, large_eur = (request_eur(data, model, prices_eur) for model in (data.small, data.large))
    everything = np.ones(len(data.outcomes), dtype=bool)
    found = []
    for name, scores, eur in (
        ("edge", data.small_scores, small_eur),
        ("cloud", data.large_scores, large_eur),
    ):
        share = float(name == "edge")
        found.append(Standing(name, None, share, Score.of(scores.tolist()), _mean(eur)))
    rng = np.random.default_rng(seed)
    for way in ways:
        asked = ~everything
        # ties are broken by chance, as the curve takes them
        order = np.lexsort((rng.random(way.need.size), -way.need))
        asked[order[: round(cloud_share * way.need.size)]] = True
        quality = Score.of(np.where(asked, data.large_scores, data.small_scores).tolist())
        spent = None
        if small_eur is not None and large_eur is not None:
            spent = spent_of(small_eur, large_eur, asked, edge_first=way.edge_first)
        judged = judge(way.need, data.gains, seed=seed)
        found.append(Standing(way.name, judged, 1 - float(asked.mean()), quality, _mean(spent)))
    return found


def request_eur(data: Pair, model: str, prices_eur: Mapping[str, float]) -> Array | None:
    """Euros a prompt: the price given for a request, or what the outcomes say."""
    if model in prices_eur:
        return np.full(len(data.outcomes), prices_eur[model])
    return data.costs_eur(model)


def _mean(values: Array | None) -> float | None:
    return None if values is None else float(values.mean())
