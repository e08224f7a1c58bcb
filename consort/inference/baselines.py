"""Two scorers that need no training: the start before `consort calibrate` has seen any outcome.

Neither knows the task; a calibrated scorer must beat them to be worth its place.
"""

from __future__ import annotations

import math

from consort.types import Answer, Request

EVEN = 0.5
LONG_WORDS = 60.0  # a prompt of so many words is as likely the cloud's as the edge's


async def brevity(request: Request, answer: Answer | None) -> float:
    """Before the answer: short prompts are the edge's."""
    text = request.prompt if request.prompt is not None else " ".join(m.content for m in request.messages)
    return 1.0 / (1.0 + len(text.split()) / LONG_WORDS)


async def confidence(request: Request, answer: Answer | None) -> float:
    """After the answer: the geometric mean of its tokens' probabilities; even chances without any."""
    if answer is None or not answer.logprobs:
        return EVEN
    return math.exp(sum(token.logprob for token in answer.logprobs) / len(answer.logprobs))
