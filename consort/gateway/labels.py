"""A label: one request whose question was put to edge and cloud, and how far the two answers agree.

The cloud's answer is taken as right, so a score is agreement with the cloud and not truth. A label holds
numbers; texts only where `log_text` keeps them. `gateway.shadow` makes labels, `gateway.history` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ASKED = "asked"  # the outcome of a label that is still waited for


@dataclass(frozen=True, slots=True)
class Label:
    """Stored first as `asked`, with the most it may cost, so that no killed process leaves money uncounted;
    then whole. `small_call` and `large_call` are tokens and seconds of each answer; money is in
    serve.currency."""

    request: str  # the id of the request's row
    at: float  # seconds since 1970
    outcome: str  # "asked", "done", an error's code
    asked: str  # the model that was asked for the label's sake; empty: both had answered anyway
    cost: float  # of asking it
    chance: float  # with which such a request was drawn
    small: str = ""
    large: str = ""
    small_score: float = 0.0
    large_score: float = 1.0
    scorer: str = ""  # whose values follow: a file's hash, or "confidence"
    before: float | None = None  # the scorer's value before the edge's answer
    after: float | None = None  # and after it
    features: Mapping[str, list[float]] = field(default_factory=dict)  # by group, as `inference.evidence`
    small_call: Mapping[str, float] = field(default_factory=dict)
    large_call: Mapping[str, float] = field(default_factory=dict)
    question: str | None = None
    small_answer: str | None = None
    large_answer: str | None = None
