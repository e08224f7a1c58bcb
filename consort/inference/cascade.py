"""Cascade: answer small, defer to large when the score is low (FrugalGPT, arXiv 2305.05176).

The small answer is shown once it is accepted; `optimistic` shows it at once and, if it is refused, begins the
answer anew. An answer that the scorer cannot judge is not accepted. A large model that fails before its first
word leaves the small answer standing: less than was wanted, more than nothing. Does not retry or cache.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from consort.errors import ConsortError
from consort.inference.scored import scored
from consort.inference.single import FAILURES, cloud, edge, first_edge, lacks
from consort.inference.streams import Closing, answer_of
from consort.types import Chunk, Consort, Note, Request, Scorer, Strategy


def cascade(
    scorer: Scorer,
    threshold: float,
    *,
    small: Strategy = edge,
    large: Strategy = cloud,
    optimistic: bool = False,
) -> Strategy:
    """`small` answers; where the scorer gives its answer less than `threshold`, `large` answers instead."""

    async def strategy(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        if lacks(first_edge(consort), request):
            consort.note(Note("cascade", "unable"))
            async with Closing(large(request, consort)) as stream:
                async for chunk in stream:
                    yield chunk
            return
        # 1) the small answer, with the log-probabilities that scorers read
        asked, unasked = _for_the_scorer(request, consort)
        held: list[Chunk] = []
        failed: ConsortError | None = None
        async with Closing(small(asked, consort)) as stream:
            try:
                async for chunk in stream:
                    held.append(chunk)
                    if optimistic and chunk.finish_reason is None:
                        yield _shown(chunk, unasked)
            except FAILURES as error:
                failed = error
        # 2) the decision
        score: float | None = 0.0
        if not failed:
            score = await scored(scorer, request, answer_of(held), consort, strategy="cascade")
        accepted = not failed and (score or 0.0) >= threshold
        if score is not None:
            event = "failed" if failed else "accepted" if accepted else "deferred"
            consort.note(Note("cascade", event, {"score": score, "threshold": threshold}))
        if accepted:
            for chunk in held[-1:] if optimistic else held:
                yield _shown(chunk, unasked)
            return
        # 3) the large answer, in place of what was shown
        withdrawn = optimistic and any(chunk.text for chunk in held)
        begun = False
        try:
            async with Closing(large(request, consort)) as stream:
                async for chunk in stream:
                    yield replace(chunk, anew=True) if withdrawn and not begun else chunk
                    begun = True
        except FAILURES:
            if failed and consort.cloud is None:
                raise failed from None
            if begun or failed:
                raise
            consort.note(Note("cascade", "kept", {} if score is None else {"score": score}))
            for chunk in held[-1:] if optimistic else held:
                yield _shown(chunk, unasked)

    return strategy


def _for_the_scorer(request: Request, consort: Consort) -> tuple[Request, bool]:
    """The request with log-probabilities where the edge has them, and whether they were not asked for."""
    unasked = request.top_logprobs is None and "logprobs" in first_edge(consort).capabilities
    return (replace(request, top_logprobs=0) if unasked else request), unasked


def _shown(chunk: Chunk, unasked: bool) -> Chunk:
    return replace(chunk, logprobs=()) if unasked and chunk.logprobs else chunk
