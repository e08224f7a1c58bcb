"""Routing: a scorer reads the prompt and decides who answers, before anything is written (RouteLLM, arXiv
2406.18665).

Does not look at answers: `cascade` does. Where the edge cannot do what is asked, fails before its first word,
or the scorer cannot judge, the cloud answers; where no cloud may be asked, the edge.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from consort.inference.scored import scored
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
            score = await scored(scorer, request, None, consort, strategy="route")
            suffices = (score or 0.0) >= threshold
            chosen = small if suffices or consort.cloud is None else large
            if score is not None:
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
