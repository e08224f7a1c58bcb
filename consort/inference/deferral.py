"""Token deferral: the small model writes, single tokens are the large one's (R2R, arXiv 2505.21600).

A scorer judges every token of the small model before it stands; the neediest, a share of all that is a goal,
are written by the large model. Cheap and not exact: the answer is neither model's own. Where the large model
fails or falls silent, the small one goes on alone. Learns no scorer (`token_fit`), calls no tools.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from consort.align import Vocabulary
from consort.errors import ModelError, UpstreamError
from consort.inference.duet import Choice, Duet
from consort.inference.reading import Reader
from consort.inference.share import Share
from consort.inference.single import FAILURES, edge, first_edge, refuse_lacking
from consort.inference.streams import Closing
from consort.inference.token_need import TokenScorer
from consort.inference.white_box import reached, vocabulary_of
from consort.models.decoding.text import TextWriter
from consort.types import Chunk, Consort, FinishReason, Note, Request, Strategy, TokenLM, TokenLogprob

T = TypeVar("T")
SILENCE_S = 5.0  # seconds without a token of the large model: then it has failed


def defer(scorer: TokenScorer, share: Share, *, silence_s: float = SILENCE_S, at_once: int = 4) -> Strategy:
    """The edge writes; the tokens that need the cloud most are the cloud's. `share` outlives a request: the
    goal is kept over all answers together. Of more than `at_once` answers, which each hold a session of both
    models, the others wait."""
    room = asyncio.Semaphore(at_once)

    async def strategy(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        large = await _cloud_of(consort)
        if large is None:
            async with Closing(edge(request, consort)) as stream:
                async for chunk in stream:
                    yield chunk
            return
        small = await reached(first_edge(consort), where="defer")
        for lm in (small, large):
            refuse_lacking(lm, request)
        async with room:
            turn = _Turn(small, large, request, silence_s)
            try:
                while turn.finish is None:
                    for chunk in await turn.write_one(scorer, share):
                        yield chunk
            finally:
                turn.leave()
                consort.note(turn.note(share))

    return strategy


async def _cloud_of(consort: Consort) -> TokenLM | None:
    """The cloud's model; None where there is none, or none that is there now."""
    try:
        return None if consort.cloud is None else await reached(consort.cloud, where="defer")
    except UpstreamError as error:
        consort.note(Note("defer", "cloud_failed", {"code": error.code}))
        return None


class _Turn:
    """One answer. The small model reads the request at once, the large one when it is first asked."""

    def __init__(self, small: TokenLM, large: TokenLM, request: Request, silence_s: float) -> None:
        self._small, self._large = _Seat(small, request), _Seat(large, request)
        native = vocabulary_of(small).sha256 == vocabulary_of(large).sha256
        self._duet = Duet(request, native=native)
        self._text = _SharedText(request, vocabulary_of(small))
        self._request, self._silence_s = request, silence_s
        self._by_large = False  # the last token
        self._failed = ""  # why the large model is not asked any more
        self._edge_code = ""  # of the error that ended the answer
        self.finish: FinishReason | None = None

    async def write_one(self, scorer: TokenScorer, share: Share) -> list[Chunk]:
        """One more token by one of the two; the text that is certain then."""
        duet, seat, large = self._duet, self._small, None
        # 1) what the small model would write
        try:
            look, choice = await seat.run(duet.look)
        except ModelError as error:
            if not duet.tokens:
                raise
            self._edge_code = error.code  # as a rule its context is full
            return self._ended("length")
        # 2) who writes: whoever began a character ends it
        asks = share.asks(scorer(look)) if duet.whole else self._by_large
        if asks and not self._failed:
            large = await self._asked()
        if large is not None:
            seat, choice = self._large, large
        # 3) it is written
        self._by_large = large is not None
        if not self._failed:
            share.count(large=self._by_large)
        assert seat.reader is not None, "it has just looked"
        logprob = _logprob(choice, seat.reader.vocabulary, self._request.top_logprobs)
        piece = duet.write(seat.reader, choice, large=self._by_large)
        if piece is None:
            return self._ended("stop")
        chunks = self._text.chunks(piece, seat.name, logprob)
        if self._text.stopped:
            self.finish = "stop"
            return [*chunks, Chunk("", seat.name, "stop")]
        return chunks + (self._ended("length") if duet.tokens >= self._request.max_tokens else [])

    async def _asked(self) -> Choice | None:
        """The large model's choice; None where it fails, and from then on."""
        try:
            return await self._large.run(self._duet.asked, limit_s=self._silence_s)
        except TimeoutError:
            self._failed = "silent"
        except FAILURES as error:
            self._failed = error.code
        self._large.leave()
        return None

    def _ended(self, finish: FinishReason) -> list[Chunk]:
        self.finish = finish
        name = self._large.name if self._by_large else self._small.name
        return [*self._text.rest(name), Chunk("", name, finish)]

    def leave(self) -> None:
        """Release both models."""
        self._small.leave()
        self._large.leave()

    def note(self, share: Share) -> Note:
        """Who wrote how much, for the receipt."""
        duet, large = self._duet, self._large.reader
        told: dict[str, float | int | str] = {
            "tokens": duet.tokens,
            "cloud_tokens": duet.large_tokens,
            "share": round(duet.large_tokens / max(1, duet.tokens), 4),
            "goal": share.goal,
            "round_trips": 1 + large.looks if large else 0,
            "cloud_read_tokens": large.tokens_read if large else 0,
        }
        if self._edge_code:
            told["edge_code"] = self._edge_code
        if self._failed:
            told["code"] = self._failed
        return Note("defer", "cloud_failed" if self._failed else "written", told)


class _Seat:
    """A model with its reader, which one thread uses at a time."""

    def __init__(self, lm: TokenLM, request: Request) -> None:
        self.name, self._lm, self._request = lm.name, lm, request
        self.reader: Reader | None = None
        self._task: asyncio.Task[Any] | None = None
        self._left = False

    async def run(self, work: Callable[[Reader], T], *, limit_s: float | None = None) -> T:
        """Compute beside the event loop; TimeoutError after `limit_s`, and the reader is not to be used any
        more."""

        def in_thread() -> T:
            if self.reader is None:
                self.reader = Reader(self._lm, self._request)
            return work(self.reader)

        self._task = task = asyncio.create_task(asyncio.to_thread(in_thread))
        return await asyncio.wait_for(asyncio.shield(task), limit_s)

    def leave(self) -> None:
        """Close the reader, once, as soon as nothing is computed with it."""
        if self._left:
            return
        self._left = True
        if self._task is not None and not self._task.done():
            self._task.add_done_callback(self._close)
        else:
            self._close()

    def _close(self, task: asyncio.Task[Any] | None = None) -> None:
        if task is not None and not task.cancelled():
            task.exception()  # nobody waits for it: seen, so that nobody is told of it
        if self.reader is not None:
            self.reader.close()


class _SharedText:
    """The answer as text by several authors: whole characters, nothing of a stop sequence, each piece under
    its author's name; half a character belongs to whoever ends it."""

    def __init__(self, request: Request, vocabulary: Vocabulary) -> None:
        self._writer = TextWriter(vocabulary, stop=request.stop, beginning=False)
        self._ends: deque[tuple[int, str]] = deque()  # in characters, of each author's pieces
        self._shown = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence is complete."""
        return self._writer.stopped

    def chunks(self, piece: bytes, author: str, logprob: TokenLogprob | None) -> list[Chunk]:
        """What is certain with this piece."""
        text, logprobs = self._writer.write_bytes(piece, logprob)
        self._ends.append((self._shown + len(text) + self._writer.held, author))
        return list(self._by_author(text, logprobs))

    def rest(self, author: str) -> list[Chunk]:
        """What was held back when the answer ended."""
        text, logprobs = self._writer.end()
        self._ends.append((self._shown + len(text), author))
        return list(self._by_author(text, logprobs))

    def _by_author(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> Iterator[Chunk]:
        while text:
            end, author = self._ends[0]
            piece, text = text[: end - self._shown], text[end - self._shown :]
            self._shown += len(piece)
            if self._shown == end:
                self._ends.popleft()
            if piece:
                yield Chunk(piece, author, logprobs=logprobs)
                logprobs = ()


def _logprob(choice: Choice, vocabulary: Vocabulary, count: int | None) -> TokenLogprob | None:
    """The written token's, under its writer."""
    if count is None:
        return None
    ids, values = choice.top.ids.tolist(), choice.top.logprobs.tolist()
    named = [
        ((vocabulary.token_bytes[index] or b"").decode(errors="replace"), value)
        for index, value in zip(ids, values, strict=True)
    ]
    text, value = named[ids.index(choice.token)]
    return TokenLogprob(text, value, tuple(named[:count]))
