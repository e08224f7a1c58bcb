"""A score, or a note why there is none: a scorer that cannot judge decides nothing, and fails no answer. Does
not compare with a threshold: `route` and `cascade` do."""

from __future__ import annotations

from consort.inference.single import FAILURES
from consort.types import Answer, Consort, Note, Request, Scorer


async def scored(
    scorer: Scorer, request: Request, answer: Answer | None, consort: Consort, *, strategy: str
) -> float | None:
    """What the scorer says; None, noted as "unscored" with the failure's code, where it cannot judge: its
    context is full, its model failed or was not free in time."""
    try:
        return await scorer(request, answer)
    except FAILURES as error:
        values = {"code": error.code, "where": error.where}
    except TimeoutError:
        values = {"code": "scorer_timeout", "where": ""}
    consort.note(Note(strategy, "unscored", {name: value for name, value in values.items() if value}))
    return None
