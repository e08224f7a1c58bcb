"""Takeover: the stream breaks or falls silent, and the edge goes on from what was already sent.

What continues is a request whose last turn is the assistant's: a model that repeats it instead of continuing
is cut where it repeats. Half a tool call cannot be continued; that failure stays a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from consort.errors import BusyError, UpstreamError
from consort.inference.single import cloud, edge
from consort.inference.streams import Closing
from consort.types import Chunk, Consort, Message, Note, Request, Strategy

SILENCE_S = 5.0  # seconds; longer than a busy model's pause, shorter than a person's patience
MIN_REPEAT = 8  # characters; a shorter beginning may come twice by chance


def takeover(
    strategy: Strategy = cloud,
    *,
    rescuer: Strategy = edge,
    silence_s: float = SILENCE_S,
    only_begun: bool = False,
) -> Strategy:
    """`strategy` answers; `rescuer` continues where it fails, is busy or says nothing for `silence_s`.
    Without an edge, `strategy` answers alone. `only_begun`: what fails before its first word is left to the
    caller, who has another answer; silence is then an UpstreamError."""

    async def rescued(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        if not consort.edges:  # nobody to go on: what fails is told as it is
            async with Closing(strategy(request, consort)) as stream:
                async for chunk in stream:
                    yield chunk
            return
        sent: list[Chunk] = []
        try:
            async with Closing(strategy(request, consort)) as stream:
                async for chunk in _not_silent(stream, silence_s):
                    if chunk.anew:
                        sent.clear()
                    sent.append(chunk)
                    yield chunk
            return
        except (UpstreamError, BusyError, TimeoutError) as error:
            if any(chunk.tool_calls for chunk in sent) or (sent and sent[-1].finish_reason):
                raise
            unbegun = only_begun and not sent  # the caller has another answer
            if unbegun and not isinstance(error, TimeoutError):
                raise
            text = "".join(chunk.text for chunk in sent)
            consort.note(_noted(error, sent, text))
            if unbegun:
                raise UpstreamError(f"said nothing for {silence_s:g} s", where=_asked(consort)) from None
        left = max(1, request.max_tokens - max(len(sent), len(text) // 4))  # a token is about four characters
        asked = replace(_continued(request, text), max_tokens=left) if text else request
        async with Closing(rescuer(asked, consort)) as stream:
            async for chunk in _without_repeat(stream, text):
                yield chunk

    return rescued


def _noted(error: UpstreamError | BusyError | TimeoutError, sent: list[Chunk], text: str) -> Note:
    told: dict[str, float | int | str] = {"sent_chunks": len(sent), "sent_bytes": len(text.encode())}
    if isinstance(error, TimeoutError):
        return Note("takeover", "stalled", told)
    return Note("takeover", "busy" if isinstance(error, BusyError) else "broke", told | {"code": error.code})


def _asked(consort: Consort) -> str:
    return consort.cloud.name if consort.cloud else ""


async def _not_silent(stream: AsyncIterator[Chunk], silence_s: float) -> AsyncIterator[Chunk]:
    """The stream; TimeoutError where it says nothing for so long."""
    while True:
        try:
            async with asyncio.timeout(silence_s):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        yield chunk


def _continued(request: Request, text: str) -> Request:
    if request.prompt is not None:
        return replace(request, prompt=request.prompt + text)
    return replace(request, messages=(*request.messages, Message("assistant", text)))


async def _without_repeat(stream: AsyncIterator[Chunk], sent: str) -> AsyncIterator[Chunk]:
    """The stream without `sent` at its beginning, if that is how it begins, and without its tokens."""
    held: list[Chunk] = []
    begun = ""
    written = repeated = 0  # characters
    undecided = len(sent) >= MIN_REPEAT
    async for chunk in stream:
        written += len(chunk.text)
        if not undecided:
            yield _uncounted(chunk, repeated / written) if repeated and chunk.usage else chunk
            continue
        held.append(chunk)
        begun += chunk.text
        if len(begun) < len(sent) and sent.startswith(begun) and chunk.finish_reason is None:
            continue
        undecided = False
        if begun.startswith(sent):
            repeated = len(sent)
            rest = replace(chunk, text=begun[repeated:])
            yield _uncounted(rest, repeated / written) if chunk.usage else rest
        else:
            for piece in held:
                yield piece


def _uncounted(chunk: Chunk, share: float) -> Chunk:
    """The chunk, that share of the tokens it counts left out."""
    usage = chunk.usage
    assert usage is not None, "it counts"
    left = round(usage.completion_tokens * (1 - share))
    return replace(chunk, usage=replace(usage, completion_tokens=left))
