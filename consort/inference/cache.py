"""Cache: the same question is answered once. Exact by default; alike questions only inside a measured bound.

Only answers that would come again are kept: those at temperature 0 or with a seed. A shelf belongs to one
client (the gateway keeps one a key): an answer never crosses to another. Nothing is written to disk.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from consort.inference.likeness import Grams, cosines, grams, guards, plain
from consort.inference.streams import Closing
from consort.types import Chunk, Consort, Note, Request, Strategy

OFF = 2.0  # no two texts are as alike


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer, with what its question is compared by."""

    chunks: tuple[Chunk, ...]
    rest: str  # hash of everything but the last turn's text
    guards: tuple[tuple[str, ...], int]
    grams: Grams


class Shelf:
    """One client's answers, the least recently used leaving first. Not shared between threads."""

    def __init__(self, *, max_answers: int = 512) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._max_answers = max_answers

    def find(self, request: Request, *, alike: float = OFF) -> tuple[tuple[Chunk, ...], float] | None:
        """An answer and how alike its question is: 1 for the same, else at least `alike`."""
        key, rest, text = _keys(request)
        if same := self._kept.get(key):
            self._kept.move_to_end(key)
            return same.chunks, 1.0
        if alike >= 1.0:
            return None
        guarded = guards(text)
        near = [kept for kept in self._kept.values() if kept.rest == rest and kept.guards == guarded]
        if not near:
            return None
        measured = cosines(grams(text), [kept.grams for kept in near])
        best = int(measured.argmax())
        return (near[best].chunks, float(measured[best])) if measured[best] >= alike else None

    def keep(self, request: Request, chunks: tuple[Chunk, ...]) -> None:
        """Put an answer on the shelf."""
        key, rest, text = _keys(request)
        self._kept[key] = Kept(chunks, rest, guards(text), grams(text))
        self._kept.move_to_end(key)
        if len(self._kept) > self._max_answers:
            self._kept.popitem(last=False)


def cache(strategy: Strategy, shelf: Shelf, *, alike: float = OFF) -> Strategy:
    """Answers from `shelf` where it can, else by `strategy`; `alike` from `measured_threshold` takes answers
    to questions that are nearly the same, with the same numbers and negations."""

    async def cached(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        keepable = request.temperature == 0 or request.seed is not None
        if keepable and (found := shelf.find(request, alike=alike)):
            chunks, likeness = found
            consort.note(Note("cache", "hit", {"likeness": likeness}))
            for chunk in chunks:
                yield chunk
            return
        consort.note(Note("cache", "missed" if keepable else "passed"))
        written: list[Chunk] = []
        async with Closing(strategy(request, consort)) as stream:
            async for chunk in stream:
                if chunk.anew:
                    written.clear()
                written.append(replace(chunk, anew=False) if chunk.anew else chunk)
                yield chunk
        if keepable and written and written[-1].finish_reason:
            shelf.keep(request, tuple(written))

    return cached


def measured_threshold(
    pairs: Sequence[tuple[float, bool]], *, max_error: float, confidence: float = 0.95
) -> float:
    """The lowest likeness from which on at most `max_error` of the pairs have different answers.

    `pairs`: likeness of two questions, and whether one's answer is right for the other. Thresholds are tested
    from the highest down, each by the exact binomial bound, until one fails (fixed-sequence testing, arXiv
    2110.01052, section 3): the promise holds with `confidence`. `OFF` where none does.
    """
    ordered = sorted(pairs, key=lambda pair: -pair[0])
    fewest = math.ceil(math.log(1 - confidence) / math.log1p(-max_error))  # that could prove it
    threshold, errors = OFF, 0
    for count, (measured, right) in enumerate(ordered, start=1):
        errors += not right
        is_last_of_its_likeness = count == len(ordered) or ordered[count][0] != measured
        if count < fewest or not is_last_of_its_likeness:
            continue
        if _chance_of_at_most(errors, count, max_error) > 1 - confidence:
            break
        threshold = measured
    return threshold


def _chance_of_at_most(errors: int, count: int, rate: float) -> float:
    """Binomial: so few errors among `count` if the true rate were `rate`."""
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    return sum(
        math.exp(math.log(math.comb(count, k)) + k * log_rate + (count - k) * log_rest)
        for k in range(errors + 1)
    )


def _keys(request: Request) -> tuple[str, str, str]:
    """Hash of everything, hash of everything but the last turn's text, and that text made plain."""
    if request.prompt is not None or not request.messages:
        text, others = request.prompt or "", replace(request, prompt="")
    else:
        last = request.messages[-1]
        text = last.content
        others = replace(request, messages=(*request.messages[:-1], replace(last, content="")))
    rest = hashlib.sha256(repr(others).encode("utf-8", "surrogatepass")).hexdigest()
    exact = hashlib.sha256(f"{rest}{text}".encode("utf-8", "surrogatepass")).hexdigest()
    return exact, rest, plain(text)
