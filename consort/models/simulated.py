"""A model without weights: answers, pace and faults follow from a seed. For tests and simulation.

Deterministic: the same request gives the same answer, chunk by chunk. Does not compute anything a language
model would; its log-probabilities are made up, though always the same.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from consort.errors import UpstreamError
from consort.types import Capability, Chunk, FinishReason, Request, TokenLogprob, ToolCall, Usage

WORDS = ("the", "nine", "blue", "card", "clinic", "opens", "on", "is", "not", "to", "17", "Köln")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong in every answer, after so many tokens: it breaks, or it says nothing more."""

    kind: Literal["break", "stall"]
    after_tokens: int = 0


@dataclass(slots=True)
class Simulated:
    """An LM by seed. `answer` says what it writes (default: seeded words); `calls` holds what was asked."""

    name: str
    seed: int = 0
    answer: Callable[[Request], str] | None = None
    first_token_s: float = 0.0
    token_s: float = 0.0
    fault: Fault | None = None
    capabilities: frozenset[Capability] = frozenset({"logprobs", "tools", "text_completion"})
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    calls: list[Request] = field(default_factory=list)
    in_flight: int = 0

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer word by word, at the model's pace."""
        self.calls.append(request)
        self.in_flight += 1
        try:
            async for chunk in self._write(request):
                yield chunk
        finally:
            self.in_flight -= 1

    async def _write(self, request: Request) -> AsyncIterator[Chunk]:
        called = _call(request) if "tools" in self.capabilities else None
        rng = self._rng(request)
        text = self.answer(request) if self.answer else _words(rng, length=rng.randint(3, 12))
        words, finish = ([], "tool_calls") if called else _cut(text, request)
        await self._wait(self.first_token_s)
        for position, word in enumerate(words):
            await self._break(position)
            if position:
                await self._wait(self.token_s)
            yield Chunk(word, self.name, logprobs=_logprobs(word, request, rng))
        await self._break(len(words))
        usage = Usage(len(_asked(request).split()), max(1, len(words)))
        yield Chunk("", self.name, finish, usage, tool_calls=(called,) if called else ())

    def _rng(self, request: Request) -> Random:
        asked = f"{self.seed}|{request.seed if request.temperature else None}|{_asked(request)}"
        return Random(hashlib.sha256(asked.encode()).digest())

    async def _wait(self, seconds: float) -> None:
        if seconds:
            await self.sleep(seconds)

    async def _break(self, position: int) -> None:
        if self.fault is None or position < self.fault.after_tokens:
            return
        if self.fault.kind == "break":
            raise UpstreamError("broke off", where=self.name, hint="a simulated fault")
        await asyncio.Event().wait()


def pieces(text: str) -> list[str]:
    """A text cut before each space; joined, it is the text again."""
    found: list[str] = []
    for index, word in enumerate(text.split(" ")):
        found.append(f" {word}" if index else word)
    return [piece for piece in found if piece]


def _asked(request: Request) -> str:
    return request.prompt if request.prompt is not None else "\n".join(m.content for m in request.messages)


def _words(rng: Random, *, length: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(length))


def _cut(text: str, request: Request) -> tuple[list[str], FinishReason]:
    """The words that are written before a stop sequence or the limit, and why they end."""
    ends = [end for stop in request.stop if (end := text.find(stop)) >= 0]
    words = pieces(text[: min(ends)] if ends else text)
    if len(words) > request.max_tokens:
        return words[: request.max_tokens], "length"
    return words, "stop"


def _logprobs(word: str, request: Request, rng: Random) -> tuple[TokenLogprob, ...]:
    if request.top_logprobs is None:
        return ()
    logprob = -rng.random()
    others = ((f"{word}{rank}", logprob - 1.0 - rank) for rank in range(request.top_logprobs - 1))
    top = ((word, logprob), *others) if request.top_logprobs else ()
    return (TokenLogprob(word, logprob, top),)


def _call(request: Request) -> ToolCall | None:
    """A call of the first tool, where the request demands one."""
    if not request.tools or request.tool_choice in ("auto", "none"):
        return None
    names = [tool.name for tool in request.tools]
    name = request.tool_choice if request.tool_choice in names else names[0]
    return ToolCall(0, "call_0", name, "{}")
