"""What is known about one question when it is decided who answers, as groups of plain features.

Before the edge has answered that is the question alone; after it also the answer, its log-probabilities, what
other devices' models answered, and how far the device's copy of the proxy agrees. Nothing here asks a model:
a caller hands over what it has. Does not weigh the features; `gain_model` learns that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from consort.inference.answer_checks import CHECKS, check_answer, final_number
from consort.inference.likeness import cosines, grams
from consort.inference.surface import SURFACE, surface_features
from consort.types import Answer, Request, TokenLogprob

Group: TypeAlias = Literal["surface", "checks", "confidence", "agreement", "proxy"]
CONFIDENCE = (
    "mean log-probability", "lowest log-probability", "tenth percentile", "share below half", "mean margin",
    "log tokens",
)  # fmt: skip
AGREEMENT = ("same final answer, share", "mean likeness", "least likeness", "distinct final answers, share")
_CHOICE = re.compile(r"^\W*([A-J])\b(?!')|\b(?:answer|option|choice)\W+(?:is\W+)?([A-J])\b")


@dataclass(frozen=True, slots=True)
class ProxyView:
    """How far the device's proxy agrees with an answer. `share`: of the places where both tokenizers cut, at
    which the proxy would have gone on likewise; `least`: log-probability of its least likely token;
    `likeness` of the answer and the proxy's own."""

    share: float
    nats_per_byte: float
    least: float
    likeness: float


# asks the device's proxy about an answer of the edge; None: about the question alone
Hear: TypeAlias = Callable[[Request, "Answer | None"], Awaitable[ProxyView]]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A question and whatever else is known. `others`: what other models answered, never the cloud's, which
    would already be paid for. `kept`: features that were computed when the texts were at hand, in their place
    or beside them."""

    question: str
    answer: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    others: tuple[str, ...] = ()
    proxy: ProxyView | None = None
    kept: Mapping[Group, Sequence[float]] = field(default_factory=dict)

    @property
    def worded(self) -> bool:
        """Whether the texts are here, and not only what was computed from them."""
        return bool(self.question)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of features that this evidence has."""
        has: dict[Group, bool] = {
            "surface": self.worded,
            "checks": self.answer is not None,
            "confidence": bool(self.logprobs),
            "agreement": self.answer is not None and bool(self.others),
            "proxy": self.proxy is not None,
        }
        return tuple(group for group, present in has.items() if present or group in self.kept)


def evidence_of(
    request: Request, answer: Answer | None, *, others: Sequence[str] = (), proxy: ProxyView | None = None
) -> Evidence:
    """The evidence about a request as it is served: all its turns are the question."""
    question = question_of(request)
    if answer is None:
        return Evidence(question, proxy=proxy)
    return Evidence(question, answer.text, answer.logprobs, tuple(others), proxy)


def question_of(request: Request) -> str:
    """All that was asked, as one text."""
    if request.prompt is not None:
        return request.prompt
    return "\n".join(message.content for message in request.messages)


def features(evidence: Evidence, group: Group) -> list[float]:
    """The features of one group, in the order of `FEATURES[group]`."""
    kept = evidence.kept.get(group)
    return _COMPUTE[group](evidence) if kept is None else list(kept)


def _checks(evidence: Evidence) -> list[float]:
    return check_answer(evidence.question, evidence.answer or "")


def _confidence(evidence: Evidence) -> list[float]:
    logprobs = np.array([token.logprob for token in evidence.logprobs])
    margins = [
        token.logprob - max(other for text, other in token.top if text != token.token)
        for token in evidence.logprobs
        if any(text != token.token for text, _ in token.top)
    ]
    return [
        float(logprobs.mean()),
        float(logprobs.min()),
        float(np.quantile(logprobs, 0.1)),
        float((logprobs < math.log(0.5)).mean()),
        sum(margins) / len(margins) if margins else 0.0,
        math.log1p(logprobs.size),
    ]


def _agreement(evidence: Evidence) -> list[float]:
    answer = evidence.answer or ""
    ours, finals = _final(answer), [_final(other) for other in evidence.others]
    alike = cosines(grams(answer), [grams(other) for other in evidence.others])
    return [
        sum(final == ours for final in finals) / len(finals),
        float(alike.mean()),
        float(alike.min()),
        len({ours, *finals}) / (1 + len(finals)),
    ]


def _final(answer: str) -> float | str:
    """What an answer comes down to: its chosen letter, its final number, or else its words."""
    choices = _CHOICE.findall(answer)
    if choices:
        return "".join(choices[-1])
    final = final_number(answer)
    return final if final is not None else " ".join(answer.lower().split())


def _surface(evidence: Evidence) -> list[float]:
    return surface_features(evidence.question)


def _proxy(evidence: Evidence) -> list[float]:
    assert evidence.proxy is not None, "`groups` says whether the proxy was heard"
    view = evidence.proxy
    return [view.share, view.nats_per_byte, view.least, view.likeness]


_COMPUTE: Mapping[Group, Callable[[Evidence], list[float]]] = {
    "surface": _surface,
    "checks": _checks,
    "confidence": _confidence,
    "agreement": _agreement,
    "proxy": _proxy,
}
FEATURES: Mapping[Group, tuple[str, ...]] = {
    "surface": SURFACE,
    "checks": CHECKS,
    "confidence": CONFIDENCE,
    "agreement": AGREEMENT,
    "proxy": ("agreement of the proxy", "nats a byte", "least likely token", "likeness of its answer"),
}
