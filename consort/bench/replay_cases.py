"""What a ledger knows of each request under another policy: its decision, what it takes, what is missing.

Does not guess: `replay` draws what is missing from other requests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from consort.errors import DataError
from consort.gateway.history import History
from consort.gateway.labels import Label
from consort.gateway.ledger import SHARED, Row

Strategy: TypeAlias = Literal["edge", "cloud", "route", "cascade"]
Side: TypeAlias = Literal["small", "large"]
Price: TypeAlias = tuple[float, float]  # of a million tokens read and written
STRATEGIES: tuple[Strategy, ...] = ("edge", "cloud", "route", "cascade")
# what a row notes where its strategy decided by a score, and where it could not
_DECIDED = {("cascade", "accepted"), ("cascade", "deferred"), ("route", "kept"), ("route", "deferred")}
_BOUND = {
    ("private", "kept"),
    *(("cascade", event) for event in ("unable", "failed", "kept")),
    *(("route", event) for event in ("unable", "failed")),
    *(("takeover", event) for event in ("broke", "busy", "stalled")),
}
SHADOW_HINT = "set serve.shadow_share, so that some requests are answered by both"


@dataclass(frozen=True, slots=True)
class Policy:
    """What `consort` would have meant; what is not given stays as it was. `score`: another scorer's value on
    a label, for a strategy."""

    strategy: Strategy | None = None
    threshold: float | None = None
    score: Callable[[Label, Strategy], float | None] | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """One request under the policy: what is known, and what must be drawn: a call of one side, or a whole
    label under (strategy, threshold). `at_edge`: the cloud wrote nothing of it."""

    cost: float
    seconds: float
    at_edge: bool
    draw: Side | tuple[Strategy, float] | None = None
    was_decided: bool = False
    is_shared: bool = False  # by edge and cloud, token by token: no label tells its worth


class Known:
    """What the ledger knows of each request, and of its models' calls in general."""

    def __init__(self, history: History, policy: Policy) -> None:
        self.policy = policy
        self.labels = {label.request: label for label in history.graded}
        scorers = {label.scorer for label in self.labels.values()}
        if (
            len(scorers) > 1
            and policy.score is None
            and policy != replace(policy, strategy=None, threshold=None)
        ):
            hint = "give --days, so that all are of one scorer; or --scorer FILE"
            raise DataError("this ledger holds values of several scorers, which do not compare", hint=hint)
        self.calls = [_done(row) for row in history.rows]
        # the edge that strategies ask first; labels name it, else it is the one that answered most
        names = Counter(call["model"] for calls in self.calls for call in calls if call["side"] == "edge")
        names.update({label.small: len(history.rows) for label in history.graded})
        self.small = next((name for name, _ in names.most_common(1)), "")

    def pool(self, side: Side) -> list[tuple[float, float]]:
        """Money and seconds of every answer of one side that the ledger holds."""
        found = [
            (self._cost(call), call["answer_s"])
            for calls in self.calls
            for call in calls
            if self._side(call) == side
        ]
        # a label that asked nobody has its calls from the row
        asked = [label for label in self.labels.values() if label.asked == self._model(label, side)]
        return found + [self.label_call(label, side) for label in asked]

    def case(self, row: Row) -> Case:
        """One request under the policy."""
        calls: Sequence[Any] = row.calls
        cost = math.fsum(map(self._cost, calls)) if self.policy.prices else row.cost
        at_edge = not row.cloud_tokens and all(call["side"] == "edge" for call in calls)
        strategy, threshold, score = self._decision(row)
        if strategy is None:
            return Case(cost, row.latency_s, at_edge, is_shared=row.strategy in SHARED)
        label = self.labels.get(row.id)
        if strategy in ("route", "cascade") and score is None:
            score = None if label is None else self.score(label, strategy)
            if score is None:
                return Case(0.0, 0.0, False, (strategy, threshold), True)
        path = path_of(strategy, score is None or score >= threshold)
        at_edge = path[-1] == "small"
        took = [call["side"] for call in calls if row.strategy not in SHARED]
        if took == ["edge" if side == "small" else "cloud" for side in path]:
            return Case(cost, row.latency_s, at_edge, None, True)
        had = self._had(row, label)
        # what the request took beside its models' time stays
        seconds = max(0.0, row.latency_s - sum(call["answer_s"] for call in calls))
        draw, money = None, []
        for side in path:
            if side in had:
                money.append(had[side][0])
                seconds += had[side][1]
            else:
                draw = side
        return Case(math.fsum(money), seconds, at_edge, draw, True)

    def donors(self, strategy: Strategy, threshold: float) -> list[tuple[float, float, float]]:
        """Money, seconds and "at the edge" of each label under a strategy."""
        found = []
        for label in self.labels.values():
            score = self.score(label, strategy)
            if score is not None and label.small_call and label.large_call:
                path = path_of(strategy, score >= threshold)
                taken = [self.label_call(label, side) for side in path]
                cost, seconds = math.fsum(c for c, _ in taken), math.fsum(s for _, s in taken)
                found.append((cost, seconds, float(path[-1] == "small")))
        if not found:
            what = f"no label tells how {strategy} would have decided requests that it did not decide"
            raise DataError(what, hint=SHADOW_HINT)
        return found

    def score(self, label: Label, strategy: Strategy) -> float | None:
        """The scorer's value on a labelled request."""
        if self.policy.score is not None:
            return self.policy.score(label, strategy)
        return label.before if strategy == "route" else label.after

    def _decision(self, row: Row) -> tuple[Strategy | None, float, float | None]:
        """How the request is decided anew: no strategy where it stays as it was; its score where noted."""
        notes: dict[tuple[object, object], Mapping[str, Any]]
        notes = {(note["strategy"], note["event"]): note for note in row.notes}
        decided = next((key for key in notes if key in _DECIDED), None)
        wanted = self.policy.strategy
        is_ours = row.model == "consort" or (
            row.model == f"consort/{wanted}" if wanted else row.model.startswith("consort/")
        )
        if row.outcome != "done" or not is_ours or notes.keys() & _BOUND:
            return None, 0.0, None
        strategy: Any = wanted or (decided[0] if decided else None)
        if strategy in (None, "edge", "cloud"):
            return strategy, 0.0, None
        is_same = decided is not None and decided[0] == strategy
        threshold = self.policy.threshold
        if threshold is None:
            if not is_same:
                raise DataError(
                    f"at which score {strategy} would have kept a request is not known",
                    hint="give --threshold, or a --goal to find it",
                )
            threshold = float(notes[decided]["threshold"])  # type: ignore[index]
        score = float(notes[decided]["score"]) if is_same and self.policy.score is None else None  # type: ignore[index]
        return strategy, threshold, score

    def _had(self, row: Row, label: Label | None) -> dict[Side, tuple[float, float]]:
        """Money and seconds of each side's answer to this request, in it or in its label."""
        had: dict[Side, tuple[float, float]] = {}
        if label is not None:
            sides: tuple[Side, ...] = ("small", "large")
            had = {side: self.label_call(label, side) for side in sides if _call(label, side)}
        for call in _done(row):
            if (own := self._side(call)) is not None:
                had[own] = (self._cost(call), call["answer_s"])
        return had

    def _side(self, call: Mapping[str, Any]) -> Side | None:
        """Whose call it is; None of an edge model that no strategy asks first."""
        if call["side"] == "cloud":
            return "large"
        return "small" if call["model"] == self.small else None

    def _model(self, label: Label, side: Side) -> str:
        return label.small if side == "small" else label.large

    def label_call(self, label: Label, side: Side) -> tuple[float, float]:
        """Money and seconds of one side's answer in a label."""
        call = _call(label, side)
        return self._cost({"model": self._model(label, side), **call}), call["answer_s"]

    def _cost(self, call: Mapping[str, Any]) -> float:
        price = self.policy.prices.get(call["model"])
        if price is not None:
            return float(call["prompt_tokens"] * price[0] + call["completion_tokens"] * price[1]) / 1e6
        if "cost" not in call:  # a row of before calls had prices
            hint = f"give --price {call['model']}=IN,OUT"
            raise DataError(f"what a call of {call['model']} cost is not in this ledger", hint=hint)
        return float(call["cost"])


def path_of(strategy: Strategy, kept: bool) -> tuple[Side, ...]:
    """Whose answers a request takes, the given one last."""
    if strategy == "cascade":
        return ("small",) if kept else ("small", "large")
    is_small = strategy == "edge" or (strategy == "route" and kept)
    return ("small",) if is_small else ("large",)


def _done(row: Row) -> list[Mapping[str, Any]]:
    """The calls that are whole answers."""
    return [call for call in row.calls if call["outcome"] == "done" and row.strategy not in SHARED]


def _call(label: Label, side: Side) -> Mapping[str, float]:
    return label.small_call if side == "small" else label.large_call
