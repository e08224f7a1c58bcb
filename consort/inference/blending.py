"""Several models' next-token distributions, each cut to its likeliest tokens, as one.

Steering, `model + a * (plus - minus)` in log-probabilities, is proxy-tuning (arXiv 2401.08565) for a tuned
and an untuned proxy, the product of experts for `minus` = the model itself, and contrastive decoding (arXiv
2210.15097) for `plus` = the model and a weaker one. Where every distribution holds the whole vocabulary this
is the dense formula. Runs no model and chooses no token.

What a model did not list is unknown: `rest` is all the mass it has there. Each such token is given an equal
part of it (of all distributions that fit, the one of largest entropy), so sums stay 1, and the result has a
`rest` of its own, of the tokens that nobody listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from consort.types import FloatArray, IntArray, TopK

# The least mass beyond the tokens of a list that leaves some out: a model that is very sure of its list would
# otherwise forbid every other token, whoever wants it.
LEAST_REST = 1e-9


@dataclass(frozen=True, slots=True)
class Aligned:
    """Distributions [M, U] over the tokens that any of them lists; `unlisted` are each one's log-probability
    of one of the `num_unlisted` others."""

    ids: IntArray
    logprobs: FloatArray
    unlisted: FloatArray
    num_unlisted: int


def aligned(distributions: Sequence[TopK], size: int) -> Aligned:
    """All over the same tokens, ascending; `size` is the vocabulary's."""
    ids = np.unique(np.concatenate([each.ids for each in distributions]))
    unlisted = np.array([_unlisted(each, size) for each in distributions])
    logprobs = np.repeat(unlisted[:, None], len(ids), axis=1)
    for row, each in zip(logprobs, distributions, strict=True):
        row[np.searchsorted(ids, each.ids)] = each.logprobs
    return Aligned(ids, logprobs, unlisted, size - len(ids))


def steered(model: TopK, plus: TopK, minus: TopK, *, weight: float, size: int) -> TopK:
    """`model + weight * (plus - minus)`, normalised; with weight 0 the model's own distribution."""
    if weight == 0:
        return model
    every = aligned((model, plus, minus), size)
    coefficients = np.array([1.0, weight, -weight])
    return _normalised(every.ids, coefficients @ every.logprobs, float(coefficients @ every.unlisted), every)


def averaged(distributions: Sequence[TopK], shares: Sequence[float], *, size: int) -> TopK:
    """The mean of probabilities; `shares` are set against each other, and one of 0 leaves its model out."""
    parts, weights = _with_share(distributions, shares)
    if len(parts) == 1:
        return parts[0]
    every = aligned(parts, size)
    mixed = np.logaddexp.reduce(every.logprobs + np.log(weights)[:, None], axis=0)
    return _normalised(every.ids, mixed, float(np.logaddexp.reduce(every.unlisted + np.log(weights))), every)


def multiplied(distributions: Sequence[TopK], shares: Sequence[float], *, size: int) -> TopK:
    """The mean of log-probabilities, normalised: a product of experts. `shares` as in `averaged`."""
    parts, weights = _with_share(distributions, shares)
    if len(parts) == 1:
        return parts[0]
    every = aligned(parts, size)
    return _normalised(every.ids, weights @ every.logprobs, float(weights @ every.unlisted), every)


def plausible(distribution: TopK, model: TopK, *, share: float) -> TopK:
    """Only the tokens that `model` holds at least `share` times as likely as its likeliest: contrast without
    this bound rewards what both models find absurd (arXiv 2210.15097, section 3.3). The share is of a model
    that lists its likeliest tokens."""
    if not share:
        return distribution
    least = float(model.logprobs.max()) + np.log(share)
    kept = np.isin(distribution.ids, model.ids[model.logprobs >= least])
    logprobs = distribution.logprobs[kept]
    return TopK(distribution.ids[kept], logprobs - np.logaddexp.reduce(logprobs), 0.0)


def listed(ids: IntArray, probabilities: FloatArray) -> TopK:
    """Masses of tokens, of which some may come several times, as a distribution, likeliest first; what they
    lack of 1 is the rest."""
    found, places = np.unique(ids, return_inverse=True)
    masses = np.bincount(places, weights=probabilities, minlength=len(found))
    order = np.argsort(-masses, kind="stable")
    order = order[: np.count_nonzero(masses)]
    rest = max(0.0, 1.0 - float(masses.sum()))
    return TopK(found[order], np.log(masses[order]), rest)


def log_probability(distribution: TopK, token: int, size: int) -> float:
    """Of one token: listed, or its part of the rest."""
    place = np.flatnonzero(distribution.ids == token)
    return float(distribution.logprobs[place[0]]) if len(place) else _unlisted(distribution, size)


def entropy(distribution: TopK) -> float:
    """In nats, with the rest as one token: a bound from below, tight where little was cut off."""
    logprobs = distribution.logprobs
    rest = distribution.rest
    return float(-(np.exp(logprobs) @ logprobs) - (rest * np.log(rest) if rest > 0 else 0.0))


def _with_share(distributions: Sequence[TopK], shares: Sequence[float]) -> tuple[list[TopK], FloatArray]:
    kept = [(each, share) for each, share in zip(distributions, shares, strict=True) if share > 0]
    weights = np.array([share for _, share in kept])
    return [each for each, _ in kept], weights / weights.sum()


def _unlisted(distribution: TopK, size: int) -> float:
    count = size - len(distribution.ids)
    if count == 0:
        return 0.0  # of nothing
    even = float(np.log(max(distribution.rest, LEAST_REST) / count))
    return min(even, float(distribution.logprobs.min(initial=0.0)))


def _normalised(ids: IntArray, scores: FloatArray, unlisted: float, every: Aligned) -> TopK:
    beyond = unlisted + np.log(every.num_unlisted) if every.num_unlisted else -np.inf
    total = np.logaddexp(np.logaddexp.reduce(scores), beyond)
    order = np.argsort(-scores, kind="stable")
    return TopK(ids[order], scores[order] - total, float(np.exp(beyond - total)))
