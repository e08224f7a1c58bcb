"""What strategies' live replies are worth: quality with its interval, who answered, time, bytes and money.

Quality is Rouge-L or exact match against each question's right answer; differences are paired, question by
question. The edge's and the cloud's own replies are outcomes, on which the scores that `route` and `cascade`
gave are judged as rankings: APGR and CPT at every threshold at once. Does not ask any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from consort.bench.compare import Strategy
from consort.bench.live import Question, Replies, Reply
from consort.bench.metrics import Score, Scores, paired_difference, score_answers
from consort.bench.outcomes import Array, Outcome, Pair
from consort.bench.routing_curve import Interval, Judged, judge
from consort.inference.evidence import evidence_of

Metric = Literal["rouge_l", "em"]
EDGE, CLOUD = "edge", "cloud"
RANKING = {"route": False, "cascade": True}  # what scores before it decides; whether the edge answers first
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class LiveStanding:
    """One strategy over all questions. `edge_share`: of questions for which the cloud was not asked; bytes
    and money are means a question; `judged` is the strategy's score as a ranking, where it has one."""

    name: str
    scores: Scores
    quality: Score
    against_cloud: Score
    edge_share: float
    p50_s: Interval
    p95_s: Interval
    cloud_bytes: float
    price: float
    price_all_cloud: float
    failures: int
    judged: Judged | None

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints; intervals are of 95 %."""
        row: dict[str, Any] = {
            "strategy": self.name,
            "quality": self.quality.mean,
            "quality_interval": self.quality.interval,
            "against_cloud": self.against_cloud.mean,
            "against_cloud_interval": self.against_cloud.interval,
            **self.scores.to_json(),
            "edge_share": self.edge_share,
            "cloud_bytes": self.cloud_bytes,
            "price": self.price,
            "price_all_cloud": self.price_all_cloud,
            "failures": self.failures,
        }
        row |= self.p50_s.to_json("p50_s") | self.p95_s.to_json("p95_s")
        return row if self.judged is None else row | self.judged.to_json()


def live_pair(asked: Sequence[Question], replies: Replies, *, metric: Metric) -> Pair:
    """The edge's and the cloud's own replies as outcomes: what `consort calibrate` learns from."""
    sides = {side: _scores(asked, replies[side], metric) for side in (EDGE, CLOUD)}
    outcomes = tuple(
        Outcome(
            evidence_of(question.request, None).question,  # as scorers read it when they serve
            {side: sides[side].rows[index] for side in sides},
            {side: replies[side][index].text for side in sides},
            {side: replies[side][index].receipt.cost for side in sides},
            {side: replies[side][index].receipt.latency_s for side in sides},
            question.device,
        )
        for index, question in enumerate(asked)
    )
    columns = [np.array(sides[side].rows, dtype=np.float64) for side in (EDGE, CLOUD)]
    return Pair(EDGE, CLOUD, outcomes, *columns)


def rankings(replies: Replies) -> list[Strategy]:
    """The strategies that scored before they decided, as rankings of need; what stands after a comma in a
    name tells variants of one strategy apart."""
    found = []
    for name, each in replies.items():
        strategy = name.partition(",")[0]
        if strategy in RANKING:
            need = np.array([_need(reply, strategy) for reply in each])
            found.append(Strategy(name, need, edge_first=RANKING[strategy]))
    return found


def live_standings(
    asked: Sequence[Question], replies: Replies, *, metric: Metric, seed: int = 0
) -> list[LiveStanding]:
    """Every strategy, in the order in which they were named."""
    gains = live_pair(asked, replies, metric=metric).gains
    judged = {}
    if gains.sum() > 0:  # else the cloud has nothing to give here, and there is no ranking to judge
        judged = {way.name: judge(way.need, gains, seed=seed) for way in rankings(replies)}
    cloud = _scores(asked, replies[CLOUD], metric)
    return [
        _standing(name, asked, each, cloud, judged.get(name), metric=metric, seed=seed)
        for name, each in replies.items()
    ]


def _standing(
    name: str,
    asked: Sequence[Question],
    replies: Sequence[Reply],
    cloud: Score,
    judged: Judged | None,
    *,
    metric: Metric,
    seed: int,
) -> LiveStanding:
    scores = score_answers([reply.text for reply in replies], [question.reference for question in asked])
    quality: Score = getattr(scores, metric)
    rows = [reply.receipt for reply in replies]
    latencies = np.array([row.latency_s for row in rows])
    return LiveStanding(
        name,
        scores,
        quality,
        paired_difference(quality.rows, cloud.rows),
        float(np.mean([not _asked_cloud(reply) for reply in replies])),
        _quantile(latencies, 0.5, seed),
        _quantile(latencies, 0.95, seed),
        float(np.mean([row.cloud_bytes for row in rows])),
        float(np.mean([row.cost for row in rows])),
        float(np.mean([row.cost_all_cloud for row in rows])),
        sum(reply.failed for reply in replies),
        judged,
    )


def _scores(asked: Sequence[Question], replies: Sequence[Reply], metric: Metric) -> Score:
    texts = [reply.text for reply in replies]
    score: Score = getattr(score_answers(texts, [question.reference for question in asked]), metric)
    return score


def _asked_cloud(reply: Reply) -> bool:
    return any(call["side"] == CLOUD for call in reply.receipt.calls)


def _need(reply: Reply, strategy: str) -> float:
    """How much the strategy thought the cloud was needed: wholly, where there was no score to think with."""
    notes = [note for note in reply.receipt.notes if note["strategy"] == strategy]
    scores = [note["score"] for note in notes if "score" in note]
    return -float(scores[0]) if scores else 0.0  # type: ignore[arg-type]


def _quantile(values: Array, share: float, seed: int) -> Interval:
    """A quantile with its bootstrap interval over questions (percentile, 95 %)."""
    rng = np.random.default_rng(seed)
    drawn = np.quantile(rng.choice(values, (RESAMPLES, values.size)), share, axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(np.quantile(values, share)), float(low), float(high))
