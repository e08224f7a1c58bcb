"""Routing: a scorer reads the prompt and decides who answers, before anything is written (RouteLLM, arXiv
2406.18665).

Does not look at answers: `cascade` does. Where the edge cannot do what is asked, or fails before its
first word, the cloud answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from consort.inference.single import FAILURES, cloud, edge, first_edge, lacks
from consort.inference.streams import Closing
from consort.types import Chunk, Consort, Note, Request, Scorer, Strategy


def route(scorer: Scorer, threshold: float, *, small: Strategy = edge, large: Strategy = cloud) -> Strategy:
    """`small` answers where the scorer gives it at least `threshold`, else `large`."""

    async def strategy(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        if lacks(first_edge(consort), request):
            consort.note(Note("route", "unable"))
            chosen = large
        else:
            score = await scorer(request, None)
            chosen = small if score >= threshold else large
            event = "kept" if chosen is small else "deferred"
            consort.note(Note("route", event, {"score": score, "threshold": threshold}))
        if chosen is small:
            begun = False
            try:
                async with Closing(small(request, consort)) as stream:
                    async for chunk in stream:
                        begun = True
                        yield chunk
                return
            except FAILURES as error:
                if begun or consort.cloud is None:
                    raise
                consort.note(Note("route", "failed", {"code": error.code}))
        async with Closing(large(request, consort)) as stream:
            async for chunk in stream:
                yield chunk

    return strategy
