"""What a request's models say, kept beside the answer, so that a label can be made of it (`gateway.shadow`).

A whole answer is kept, streamed or drafted; a session's tokens are nobody's whole answer and are not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from consort.align import Vocabulary
from consort.inference.metering import Side
from consort.inference.streams import Closing, answer_of
from consort.models.decoding.prompt import begun_text
from consort.models.decoding.text import TextWriter
from consort.types import LM, Answer, Chunk, Draft, DraftedLM, Request, Writing, Written


@dataclass(frozen=True, slots=True)
class Said:
    """One model's whole answer, and what it was asked."""

    request: Request
    answer: Answer


class Heard:
    """A model whose whole answers are kept, an edge's with log-probabilities; otherwise the same model."""

    __slots__ = ("_lm", "_said", "_side", "capabilities", "name")

    def __init__(self, lm: LM, side: Side, said: dict[str, Said]) -> None:
        self.name, self.capabilities = lm.name, lm.capabilities
        self._lm, self._side, self._said = lm, side, said

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)  # its tokenizer and sessions, where it has any

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The model's own stream."""
        unasked = self._side == "edge" and request.top_logprobs is None and "logprobs" in self.capabilities
        asked = replace(request, top_logprobs=0) if unasked else request
        chunks: list[Chunk] = []
        async with Closing(self._lm.stream(asked)) as stream:
            async for chunk in stream:
                chunks.append(chunk)
                if chunk.finish_reason is not None:
                    self._said[self.name] = Said(request, answer_of(chunks))
                yield replace(chunk, logprobs=()) if unasked and chunk.logprobs else chunk

    async def write(self, request: Request, *, after: Sequence[int] = ()) -> Writing:
        """As the model's own, which takes drafts."""
        lm = cast("DraftedLM", self._lm)
        writing = await lm.write(request, after=after)
        if after:  # the rest of an answer
            return writing
        text = TextWriter(
            cast("Vocabulary", lm.tokenizer), stop=request.stop, beginning=not begun_text(request)
        )

        def keep(answer: str) -> None:
            self._said[self.name] = Said(request, Answer(answer, self.name))

        return _HeardWriting(writing, text, keep)


class _HeardWriting:
    """An answer under way whose text is kept once it is whole (`types.Writing`)."""

    def __init__(self, writing: Writing, text: TextWriter, keep: Callable[[str], None]) -> None:
        self._writing, self._text, self._keep = writing, text, keep
        self._shown: list[str] = []

    @property
    def prompt_tokens(self) -> int:
        return self._writing.prompt_tokens

    @property
    def rtt_s(self) -> float:
        return self._writing.rtt_s

    async def written(self) -> AsyncIterator[Written]:
        async for written in self._writing.written():
            if not self._text.stopped:
                self._hear(written)
            yield written

    def draft(self, begins: int, draft: Draft) -> None:
        self._writing.draft(begins, draft)

    def pause_at(self, tokens: int | None) -> bool:
        return self._writing.pause_at(tokens)

    async def close(self) -> None:
        await self._writing.close()

    def _hear(self, written: Written) -> None:
        for token in written.ids:
            self._shown.append(self._text.write(token)[0])
            if self._text.stopped:
                break
        if written.finish_reason is not None and not self._text.stopped:
            self._shown.append(self._text.end()[0])
        if self._text.stopped or written.finish_reason is not None:
            self._keep("".join(self._shown))
