"""Vote: several devices' models answer, and agreement decides (self-consistency, arXiv 2203.11171, across
models).

Enough of them alike: the answer nearest to its group is given. Too few: the cloud answers. The waiting ends
as soon as the vote is decided, and the models still writing are stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

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
        answers, winner = await _count(voters, request, needed=needed, alike=alike, measure=measure)
        values = {"voters": len(voters), "answers": len(answers), "agreed": len(winner), "needed": needed}
        if len(winner) >= needed:
            consort.note(Note("vote", "agreed", values))
            for chunk in _central(winner, measure):
                yield chunk
            return
        consort.note(Note("vote", "split", values))
        async with Closing(large(request, consort)) as stream:
            async for chunk in stream:
                yield chunk

    return strategy


async def _count(
    voters: Sequence[LM],
    request: Request,
    *,
    needed: int,
    alike: float,
    measure: Callable[[str, str], float],
) -> tuple[list[Written], list[Written]]:
    """All answers so far, and the largest group of them, once it is large enough or all have spoken."""
    tasks = [asyncio.create_task(collected(lm.stream(request))) for lm in voters]
    answers: list[Written] = []
    group: list[Written] = []
    try:
        for finished in asyncio.as_completed(tasks):
            try:
                answers.append(await finished)
            except FAILURES:  # a voter who fails does not vote
                continue
            group = _largest_group(answers, alike, measure)
            if len(group) >= needed:
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return answers, group


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


def _measured(first: Written, second: Written, measure: Callable[[str, str], float]) -> float:
    """How alike two answers are; those with tool calls only where the calls are the same."""
    calls = [[(c.name, c.arguments) for chunk in w for c in chunk.tool_calls] for w in (first, second)]
    if calls[0] != calls[1]:
        return 0.0
    return measure(answer_of(first).text, answer_of(second).text)
