"""A ledger's labels as outcomes to learn from, and its logged answers as questions for the cache.

A label's scores are agreement with the cloud, so what is learned from them is to answer as the cloud would.
Of labels without texts only features are learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from consort.bench.outcomes import Outcome, Pair
from consort.errors import DataError
from consort.gateway.history import History
from consort.gateway.labels import Label

FEWEST = 40  # labels: half of them are learned from


def labelled_pair(history: History, *, where: Path) -> Pair:
    """The labels of the pair of models that has most of them; where most of these heard the proxy, those that
    did. DataError where there are too few."""
    labels = history.graded
    pairs = [(label.small, label.large) for label in labels]
    small, large = max(pairs, key=pairs.count, default=("", ""))
    chosen = [label for label in labels if (label.small, label.large) == (small, large)]
    if len(chosen) < FEWEST:
        raise DataError(
            f"{len(chosen)} labels are too few to learn from",
            where=str(where),
            hint=f"at least {FEWEST}, better 1,000: set serve.shadow_share, or raise it",
        )
    # what only some labels hold cannot be learned from: older ones may be from before there was a proxy
    heard = [label for label in chosen if "proxy" in label.features]
    if len(heard) >= max(FEWEST, len(chosen) / 2):
        chosen = heard
    columns = [np.array([label.small_score for label in chosen]), np.array([1.0] * len(chosen))]
    worded = all(label.question for label in chosen)
    return Pair(small, large, tuple(_outcome(label, worded=worded) for label in chosen), *columns)


def logged_answers(history: History, *, where: Path) -> list[tuple[str, str]]:
    """Questions and answers in the order in which they came. DataError where no text was kept."""
    found = [(row.prompt, row.answer) for row in history.rows if row.outcome == "done"]
    asked = [(prompt, answer) for prompt, answer in found if prompt and answer]
    if not asked:
        hint = "set serve.log_text, or give a file of questions and answers"
        raise DataError("no question is kept in this ledger", where=str(where), hint=hint)
    return asked


def _outcome(label: Label, *, worded: bool) -> Outcome:
    names: Sequence[str] = (label.small, label.large)
    calls = (label.small_call, label.large_call)
    return Outcome(
        prompt=label.question or "" if worded else "",
        scores=dict(zip(names, (label.small_score, label.large_score), strict=True)),
        answers={label.small: label.small_answer or ""} if worded else {},
        cost_eur={name: call["cost"] for name, call in zip(names, calls, strict=True) if call},
        latency_s={name: call["answer_s"] for name, call in zip(names, calls, strict=True) if call},
        features=label.features,  # type: ignore[arg-type]
    )
