"""Vote: several devices' models answer, and agreement decides (self-consistency, arXiv 2203.11171, across
models).

Enough of them alike: the answer nearest to its group is given. Too few: the cloud answers; where none may be
asked, the largest group does, or where no two agree, the surest of them. The waiting ends as soon as the vote
is decided, and the models still writing are stopped.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from consort.errors import ConsortError
from consort.inference.likeness import likeness
from consort.inference.single import FAILURES, cloud, lacks
from consort.inference.streams import Closing, answer_of, collected
from consort.types import LM, Chunk, Consort, Note, Request, Strategy

Written = tuple[Chunk, ...]


def vote(
    *,
    share: float = 0.5,
    alike: float = 0.8,
    measure: Callable[[str, str], float] = likeness,
    large: Strategy = cloud,
) -> Strategy:
    """An edge answer with which more than `share` of the voters agree (at least two), else `large`.

    Two answers agree where `measure` gives them at least `alike`; 1.0 asks for the same words.
    """

    async def strategy(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        voters = [lm for lm in consort.edges if not lacks(lm, request)]
        needed = max(2, int(share * len(voters)) + 1)
        # where the cloud cannot decide, how sure they are may have to
        loud = consort.cloud is None and request.top_logprobs is None
        asked = [(lm, _aloud(request, lm) if loud else request) for lm in voters]
        answers, winner, failed = await _count(asked, needed=needed, alike=alike, measure=measure)
        values = {"voters": len(voters), "answers": len(answers), "agreed": len(winner), "needed": needed}
        decided = len(winner) >= needed
        consort.note(Note("vote", "agreed" if decided else "split", values))
        if decided or (winner and consort.cloud is None):
            surest = not decided and len(winner) == 1
            if not decided:
                consort.note(Note("vote", "surest" if surest else "most", {"agreed": len(winner)}))
            for chunk in max(answers, key=_sureness) if surest else _central(winner, measure):
                yield replace(chunk, logprobs=()) if loud else chunk
            return
        if failed is not None and consort.cloud is None:
            raise failed
        async with Closing(large(request, consort)) as stream:
            async for chunk in stream:
                yield chunk

    return strategy


async def _count(
    voters: Sequence[tuple[LM, Request]],
    *,
    needed: int,
    alike: float,
    measure: Callable[[str, str], float],
) -> tuple[list[Written], list[Written], ConsortError | None]:
    """All answers so far, and the largest group of them, once it is large enough or all have spoken; and why
    the last of those who fail did."""
    tasks = [asyncio.create_task(collected(lm.stream(request))) for lm, request in voters]
    answers: list[Written] = []
    group: list[Written] = []
    failed: ConsortError | None = None
    try:
        for finished in asyncio.as_completed(tasks):
            try:
                answers.append(await finished)
            except FAILURES as error:  # a voter who fails does not vote
                failed = error
                continue
            group = _largest_group(answers, alike, measure)
            if len(group) >= needed:
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return answers, group, failed


def _largest_group(
    answers: Sequence[Written], alike: float, measure: Callable[[str, str], float]
) -> list[Written]:
    """The answers that agree with the one with which most agree."""
    groups = [
        [other for other in answers if other is each or _measured(each, other, measure) >= alike]
        for each in answers
    ]
    return max(groups, key=len, default=[])


def _central(group: Sequence[Written], measure: Callable[[str, str], float]) -> Written:
    return max(group, key=lambda each: sum(_measured(each, other, measure) for other in group))


def _aloud(request: Request, lm: LM) -> Request:
    """With log-probabilities, where the model has them."""
    return replace(request, top_logprobs=0) if "logprobs" in lm.capabilities else request


def _sureness(answer: Written) -> float:
    """The mean log-probability of an answer's tokens; least where the model does not tell it."""
    tokens = answer_of(answer).logprobs
    return sum(token.logprob for token in tokens) / len(tokens) if tokens else -math.inf


def _measured(first: Written, second: Written, measure: Callable[[str, str], float]) -> float:
    """How alike two answers are; those with tool calls only where the calls are the same."""
    calls = [[(c.name, c.arguments) for chunk in w for c in chunk.tool_calls] for w in (first, second)]
    if calls[0] != calls[1]:
        return 0.0
    return measure(answer_of(first).text, answer_of(second).text)
