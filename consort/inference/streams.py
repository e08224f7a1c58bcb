"""Streams of chunks: closed when they are left, read whole where a whole answer is judged, cut by author."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import groupby
from types import TracebackType
from typing import Any

from consort.types import Answer, Chunk


class Closing:
    """`async with Closing(stream) as stream`: leaving early frees the model behind it now, not later."""

    __slots__ = ("_stream",)

    def __init__(self, stream: AsyncIterator[Chunk]) -> None:
        self._stream: Any = stream

    async def __aenter__(self) -> AsyncIterator[Chunk]:
        stream: AsyncIterator[Chunk] = self._stream
        return stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self._stream, "aclose"):  # an iterator that is no generator holds nothing to close
            await self._stream.aclose()


async def collected(stream: AsyncIterator[Chunk]) -> tuple[Chunk, ...]:
    """Every chunk that counts: what a later `anew` withdraws is left out."""
    chunks: list[Chunk] = []
    async with Closing(stream):
        async for chunk in stream:
            if chunk.anew:
                chunks.clear()
            chunks.append(chunk)
    return tuple(chunks)


def answer_of(chunks: Sequence[Chunk]) -> Answer:
    """The chunks as one finished answer, by the author of the last."""
    return Answer(
        "".join(chunk.text for chunk in chunks),
        chunks[-1].model if chunks else "",
        tuple(token for chunk in chunks for token in chunk.logprobs),
    )


def by_author(pieces: Sequence[tuple[str, str]], struck: str) -> Iterator[Chunk]:
    """Pieces of text and their authors as chunks, one for each run of an author; the last with what was
    struck."""
    runs = [
        ("".join(text for text, _ in run), author)
        for author, run in groupby([piece for piece in pieces if piece[0]], key=lambda piece: piece[1])
    ]
    for place, (text, author) in enumerate(runs):
        yield Chunk(text, author, struck=struck if place == len(runs) - 1 else "")
