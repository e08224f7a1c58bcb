"""Scorers: the probability that the edge's answer suffices, from what is known about a request.

`gain_scorer` is learned from outcomes, `checks_scorer` needs none, `proxy_scorer` hears the device's copy
of the proxy. Each is a plain coroutine, as `route` and `cascade` call it. Does not decide: a threshold
does.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

from consort.inference.answer_checks import failed_checks
from consort.inference.evidence import Hear, evidence_of
from consort.inference.gain_model import GainModel
from consort.types import Answer, Request, Scorer


def gain_scorer(
    model: GainModel,
    *,
    proxy_agreement: Hear | None = None,
    other_answers: Callable[[Request], Awaitable[Sequence[str]]] | None = None,
) -> Scorer:
    """A scorer of what was learned; the proxy and the other devices are asked where it learned with them."""

    async def score(request: Request, answer: Answer | None) -> float:
        # a model of questions is as right after the answer as before
        seen = answer if model.needs_answer else None
        if seen is not None and not seen.text:
            return 0.0  # nothing was said
        proxy = None
        if proxy_agreement is not None and "proxy" in model.groups:
            proxy = await proxy_agreement(request, answer)
        others: Sequence[str] = ()
        if other_answers is not None and "agreement" in model.groups:
            others = await other_answers(request)
        return model.suffices(model.gain(evidence_of(request, seen, others=others, proxy=proxy)))

    return score


def checks_scorer() -> Scorer:
    """A scorer without training: 1 where an answer fails no check, 1/2 at one, 1/3 at two. An order, not a
    calibrated probability; before there is an answer it knows nothing and says 1/2."""

    async def score(request: Request, answer: Answer | None) -> float:
        if answer is None:
            return 0.5
        return 1 / (1 + failed_checks(evidence_of(request, answer).question, answer.text))

    return score


def proxy_scorer(proxy_agreement: Hear) -> Scorer:
    """A scorer without training: the probability that the on-device proxy, which was distilled from the
    cloud, gives the answer's least likely token. An order, no calibrated probability; means over the answer
    hardly order at all (docs/LOG.md)."""

    async def score(request: Request, answer: Answer | None) -> float:
        if answer is not None and not answer.text:
            return 0.0  # nothing was said
        return math.exp(min(0.0, (await proxy_agreement(request, answer)).least))

    return score
