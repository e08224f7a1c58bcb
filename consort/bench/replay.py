"""A ledger under another policy: what the same requests would have cost, taken and been worth.

Exact where the ledger knows: who would have answered follows from a stored score, what an answer took from
its call or its label. What the ledger does not know of a request is drawn from what it knows of others, and
the figure says so, with an interval over draws. Quality is read off the labels alone, with an interval that
holds for any number of them; answers that edge and cloud wrote together have none, and are left out of it,
and counted. Requests that failed are left out of everything, and counted. Assumes that models answer as
they did, and that their pace does not depend on who else is asked. Requests that asked for a model by name,
or could not be decided, stay as they were.
Speculation is a strategy to replay from (the answer is the cloud's own), not one to replay to: how soon its
drafts would have been accepted is in no ledger. Nor are the tokens of deferral and mixture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.bench.intervals import Figure, mean_by_betting, sum_with_missing
from consort.bench.replay_cases import SHADOW_HINT, Case, Known, Policy, Side, Strategy
from consort.errors import DataError
from consort.gateway.history import DAY_S, History
from consort.gateway.labels import Label
from consort.gateway.ledger import ANSWERED, Row
from consort.inference.calibration import ALWAYS, NEVER, Calibration, Trial, calibrate
from consort.inference.goals import Goal

Array: TypeAlias = NDArray[np.float64]
DRAWS = 200
FEWEST = 5  # values to draw what is missing from: of fewer no interval holds
GRID = 201  # thresholds that are tried for a goal
DAYS_A_MONTH = 30.44


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a policy makes of a ledger. `decided` of the requests were decided anew; of the others stays what
    was. `guessed`: how many lacked what, and took it from others."""

    requests: int
    decided: int
    edge_share: Figure
    money: Figure
    p50_s: Figure
    p95_s: Figure
    quality: Figure | None
    labels: int
    shared: int  # answers that edge and cloud wrote together, of which no label tells the worth
    guessed: Mapping[str, int]
    failed: int  # further requests, which nobody answered


def replay(history: History, policy: Policy, *, seed: int = 0) -> Replayed:
    """The ledger under `policy`. DataError where it lacks what the policy needs."""
    if not history.rows:
        raise DataError("no request in this ledger", hint="serve some, or give more --days")
    known = Known(history, policy)
    rows = [row for row in history.rows if row.outcome in ANSWERED]
    if not rows:
        raise DataError("no request in this ledger was answered", hint="serve some, or give more --days")
    cases = [known.case(row) for row in rows]
    groups: dict[object, list[int]] = {}
    for index, case in enumerate(cases):
        if case.draw is not None:
            groups.setdefault(case.draw, []).append(index)
    pools = {draw: _pool(known, draw) for draw in groups}
    draws = _draws(cases, groups, pools, np.random.default_rng(seed))
    edge_share, own_share, p50_s, p95_s = (Figure.over(column) for column in zip(*draws, strict=True))
    shared = sum(case.is_shared for case in cases)
    graded = [
        (case.at_edge, label.small_score, 1 / label.chance)
        for row, case in zip(rows, cases, strict=True)
        if (label := known.labels.get(row.id)) and _is_graded(row, case, label)
    ]
    return Replayed(
        requests=len(cases),
        decided=sum(case.was_decided for case in cases),
        edge_share=edge_share,
        money=sum_with_missing(
            math.fsum(case.cost for case in cases),
            [(pools[draw][:, 0], len(indices)) for draw, indices in groups.items()],
            draws=DRAWS,
            seed=seed,
        ),
        p50_s=p50_s,
        p95_s=p95_s,
        quality=None if shared == len(cases) else _quality(graded, own_share, seed=seed),
        labels=len(graded),
        shared=shared,
        guessed=_guessed(groups),
        failed=len(history.rows) - len(rows),
    )


def _quality(graded: Sequence[tuple[bool, float, float]], edge_share: Figure, *, seed: int) -> Figure | None:
    """Agreement with the cloud over all answers that one of the two wrote: the cloud's own agree, of the
    edge's the labels tell. Where the edge's share is known, only its own answers are left to be estimated.
    Requests that are never drawn for a label (private, with tools) are taken to be like the others."""
    at_edge, scores, weights = np.array(graded or np.empty((0, 3))).T
    if not edge_share.is_exact:
        values = np.where(at_edge > 0, scores, 1.0)
        return mean_by_betting(values, weights, seed=seed) if values.size else None
    if edge_share.value == 0:
        return Figure(1.0, 1.0, 1.0)
    own = at_edge > 0
    if not own.any():
        return None
    mean = mean_by_betting(scores[own], weights[own], seed=seed)
    return Figure(*(1 - edge_share.value * (1 - end) for end in (mean.value, mean.low, mean.high)))


def _draws(
    cases: Sequence[Case],
    groups: Mapping[object, list[int]],
    pools: Mapping[object, Array],
    rng: np.random.Generator,
) -> Iterator[tuple[float, float, float, float]]:
    """Share at the edge, of all and of those that were not written together, p50 and p95 in seconds: once, or
    in draws where something must be drawn."""
    base = np.array([(case.seconds, float(case.at_edge)) for case in cases])
    own = np.array([not case.is_shared for case in cases])
    for _ in range(DRAWS if groups else 1):
        values = base.copy()
        for draw, indices in groups.items():
            # others might have been known as well: what is drawn from is itself drawn
            pool = pools[draw][rng.integers(len(pools[draw]), size=len(pools[draw]))]
            values[indices] += pool[rng.integers(len(pool), size=len(indices)), 1:]
        seconds = np.sort(values[:, 0])
        at_edge = values[:, 1]
        own_share = float(at_edge[own].mean()) if own.any() else 0.0
        yield float(at_edge.mean()), own_share, _quantile(seconds, 0.5), _quantile(seconds, 0.95)


def _guessed(groups: Mapping[object, list[int]]) -> dict[str, int]:
    words = {"small": "an answer of the edge", "large": "an answer of the cloud"}
    guessed: dict[str, int] = {}
    for draw, indices in groups.items():
        word = words.get(str(draw), "a score")
        guessed[word] = guessed.get(word, 0) + len(indices)
    return guessed


def _pool(known: Known, draw: Any) -> Array:
    """Money, seconds and "at the edge" of what is like the missing. DataError where that is too little."""
    if not isinstance(draw, str):
        pool, what = known.donors(*draw), "requests that both sides answered"
    else:
        side: Side = "small" if draw == "small" else "large"
        pool = [(cost, seconds, 0.0) for cost, seconds in known.pool(side)]
        what = f"answers of the {'edge' if side == 'small' else 'cloud'}"
    if len(pool) < FEWEST:
        many = f"{len(pool)} {what} are in this ledger, and {FEWEST} are needed to draw what is missing from"
        raise DataError(many, hint=SHADOW_HINT)
    return np.array(pool)


def _is_graded(row: Row, case: Case, label: Label) -> bool:
    """Whether the label tells what the request's answer would have been worth."""
    if case.is_shared:
        return False
    if case.was_decided or not case.at_edge:
        return not isinstance(case.draw, tuple)
    return {author for author, _ in row.spans} == {label.small}  # another device's answer was not graded


def _quantile(ordered: Array, share: float) -> float:
    return float(ordered[min(ordered.size - 1, int(share * ordered.size))])


def threshold_for(
    history: History,
    policy: Policy,
    strategy: Strategy,
    goals: Sequence[Goal],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Calibration:
    """The threshold of `strategy` that keeps the goals, found on the labels alone."""
    known = Known(history, policy)
    rows = []
    for label in known.labels.values():
        score = known.score(label, strategy)
        if score is not None and label.small_call and label.large_call:
            small, large = known.label_call(label, "small"), known.label_call(label, "large")
            rows.append((score, label.small_score, label.large_score, *small, *large))
    if not rows:
        raise DataError("no label in this ledger, so no goal can be tested", hint=SHADOW_HINT)
    score, small, large, small_cost, small_s, large_cost, large_s = np.array(rows).T
    return calibrate(
        Trial(score, small, large, strategy == "cascade", small_cost, large_cost, small_s, large_s),
        goals,
        np.append(np.linspace(NEVER, 1.0, GRID), ALWAYS),  # fixed before these labels are seen
        confidence=confidence,
        requests_per_month=answered_a_month(history),
        seed=seed,
    )


def answered_a_month(history: History) -> float | None:
    """At the ledger's pace: what failed costs nothing. None where its requests came all at once."""
    days = (history.rows[-1].at - history.rows[0].at) / DAY_S if history.rows else 0.0
    return sum(row.outcome in ANSWERED for row in history.rows) / days * DAYS_A_MONTH if days else None
