"""Small consorts of simulated models, and what a strategy answers on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from consort.inference.streams import Closing
from consort.models.simulated import Fault, Simulated
from consort.types import Answer, Chunk, Consort, Message, Note, Request, Scorer, Strategy


def says(name: str, text: str, *, fault: Fault | None = None, **more: object) -> Simulated:
    return Simulated(name, answer=lambda request: text, fault=fault, **more)  # type: ignore[arg-type]


def user(text: str = "when does it open?", **more: object) -> Request:
    return Request((Message("user", text),), **more)  # type: ignore[arg-type]


def always(score: float) -> Scorer:
    async def scorer(request: Request, answer: Answer | None) -> float:
        return score

    return scorer


@dataclass(frozen=True)
class Outcome:
    chunks: tuple[Chunk, ...]
    notes: tuple[Note, ...]

    @property
    def text(self) -> str:
        """What a client shows: an `anew` chunk withdraws what came before."""
        text = ""
        for chunk in self.chunks:
            text = chunk.text if chunk.anew else text + chunk.text
        return text

    @property
    def authors(self) -> set[str]:
        return {chunk.model for chunk in self.chunks if chunk.text}

    @property
    def events(self) -> list[str]:
        return [note.event for note in self.notes]


def outcome(
    strategy: Strategy,
    *,
    edges: Sequence[Simulated] = (),
    cloud: Simulated | None = None,
    request: Request | None = None,
) -> Outcome:
    notes: list[Note] = []
    chunks: list[Chunk] = []

    async def run() -> None:
        stream = strategy(request or user(), Consort(tuple(edges), cloud, notes.append))
        async with Closing(stream):
            async for chunk in stream:
                chunks.append(chunk)

    asyncio.run(run())
    return Outcome(tuple(chunks), tuple(notes))
