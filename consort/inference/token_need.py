"""What is known when the small model is about to write a token, and how much the large one is needed.

Training-free scorers read the small model's distribution: how unlikely its best token is, how close the next
one, how flat the whole. `token_model` learns from what became of such tokens. Decides nothing: `share` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from consort.types import TopK


@dataclass(frozen=True, slots=True)
class Look:
    """A token of the small model before it stands. `piece` is its text, None for the end of the answer."""

    top: TopK
    token: int
    piece: bytes | None
    position: int  # tokens of the answer before it
    since_large: int  # of those, since the large model's last; all where it has written none
    doubt_before: float  # 1 - probability of the small model's best token, one token ago; 0 at first
    mean_doubt: float  # the same, over the answer so far
    question: str  # all turns of the request


# How much the large model is needed for this token: any order, the more the higher.
TokenScorer: TypeAlias = Callable[[Look], float]

FEATURES = (
    "log probability", "log probability of the second", "margin", "entropy", "rest",
    "probability of the third", "is the end", "begins a word", "letters", "has a digit", "log position",
    "log tokens since the large model", "doubt before", "mean doubt",
)  # fmt: skip


def doubt(look: Look) -> float:
    """1 - probability of the likeliest token."""
    return 1 - _probabilities(look.top)[0]


def closeness(look: Look) -> float:
    """1 - margin between the two likeliest tokens."""
    first, second, *_ = (*_probabilities(look.top), 0.0, 0.0)
    return 1 - (first - second)


def entropy(look: Look) -> float:
    """Nats; the mass beyond the K likeliest tokens counts as one token."""
    probabilities = np.append(np.exp(look.top.logprobs), look.top.rest)
    held = probabilities[probabilities > 0]
    return float(-(held * np.log(held)).sum())


SCORERS: Mapping[str, TokenScorer] = {"doubt": doubt, "margin": closeness, "entropy": entropy}
# a first guess of where needs lie, evenly, for a share that nobody has calibrated
SPREADS: Mapping[str, tuple[float, float]] = {
    "doubt": (0.0, 1.0),
    "margin": (0.0, 1.0),
    "entropy": (0.0, 3.0),
}


def look_features(look: Look) -> list[float]:
    """The values of `FEATURES`."""
    first, second, third, *_ = (*_probabilities(look.top), 0.0, 0.0, 0.0)
    piece = look.piece or b""
    return [
        math.log(max(first, 1e-9)),
        math.log(max(second, 1e-9)),
        first - second,
        entropy(look),
        look.top.rest,
        third,
        float(look.piece is None),
        float(piece[:1].isspace()),
        float(sum(97 <= byte | 32 <= 122 for byte in piece)),
        float(any(48 <= byte <= 57 for byte in piece)),
        math.log1p(look.position),
        math.log1p(look.since_large),
        look.doubt_before,
        look.mean_doubt,
    ]


def _probabilities(top: TopK) -> list[float]:
    """Of the three likeliest tokens, the likeliest first."""
    return [math.exp(value) for value in sorted(top.logprobs.tolist(), reverse=True)[:3]]
