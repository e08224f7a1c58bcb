"""What every call of a model takes, measured round the model, so that no strategy has to.

A `Gauge` belongs to a model for as long as the process lives (its pace, load and failures, which `auto`
reads); a `Call` belongs to one request (tokens, bytes, time, which the ledger stores). Never text.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from consort.errors import BusyError, ConsortError, ModelError, UnreachableError
from consort.inference.counting import request_tokens
from consort.inference.streams import Closing
from consort.types import (
    LM,
    Chunk,
    Draft,
    DraftedLM,
    Request,
    Session,
    Tokenizer,
    TokenLM,
    TopK,
    Writing,
    Written,
)

Side = Literal["edge", "cloud"]
MEMORY = 0.2  # weight of the newest measurement in a gauge's averages
BYTES_PER_TOKEN = 4  # of text, where a model does not count its tokens
BYTES_PER_ID = 2  # of a token sent to a session


@dataclass(slots=True)
class Gauge:
    """A model's present state; `first_s` and `answer_s` are moving averages in seconds, None before any."""

    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    failures_in_row: int = 0
    last_failure_s: float = 0.0
    first_s: float | None = None
    answer_s: float | None = None
    answers: int = 0
    tokens: int = 0  # written in them


@dataclass(slots=True)
class Call:
    """One model's part in one request. `sent_bytes` is the text handed to it, without framing."""

    model: str
    side: Side
    sent_bytes: int
    began_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    request_tokens: int = 0  # of a session's prompt_tokens, the request's own; the others wrote the rest
    counted: bool = False  # by the model; else estimated
    first_s: float | None = None
    answer_s: float = 0.0
    outcome: str = "left"  # "done", an error's code, "stalled", or left before its end


class Metered:
    """A model whose calls are written down; otherwise the same model."""

    __slots__ = ("_calls", "_clock", "_gauge", "_lm", "_side", "capabilities", "name")

    def __init__(
        self,
        lm: LM,
        side: Side,
        gauge: Gauge,
        calls: list[Call],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.capabilities = lm.name, lm.capabilities
        self._lm, self._side, self._gauge, self._calls, self._clock = lm, side, gauge, calls, clock

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The model's own stream."""
        clock, gauge = self._clock, self._gauge
        call = self._begun(request)
        chunks, written = 0, 0
        try:
            async with Closing(self._lm.stream(request)) as stream:
                async for chunk in stream:
                    if call.first_s is None:
                        call.first_s = clock() - call.began_s
                    chunks += 1
                    written += len(chunk.text)
                    if chunk.usage is not None:
                        call.prompt_tokens = chunk.usage.prompt_tokens
                        call.completion_tokens = chunk.usage.completion_tokens
                        call.counted = True
                    if chunk.finish_reason is not None:
                        call.outcome = "done"
                    yield chunk
        except ConsortError as error:
            _failed(call, gauge, error, clock)
            raise
        finally:
            if call.first_s is not None and not call.counted:  # what was not answered costs nothing
                call.prompt_tokens = -(-call.sent_bytes // BYTES_PER_TOKEN)
                call.completion_tokens = max(chunks, written // BYTES_PER_TOKEN)
            _ended(call, gauge, clock)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return cast("DraftedLM", self._lm).tokenizer

    async def write(self, request: Request, *, after: Sequence[int] = ()) -> Writing:
        """As the model's own, which takes drafts."""
        call = self._begun(request)
        try:
            writing = await cast("DraftedLM", self._lm).write(request, after=after)
        except BaseException as error:
            if isinstance(error, ConsortError):
                _failed(call, self._gauge, error, self._clock)
            _ended(call, self._gauge, self._clock)
            raise
        return _MeteredWriting(writing, call, self._gauge, self._clock)

    def _begun(self, request: Request) -> Call:
        call = Call(self.name, self._side, sent_bytes(request), self._clock())
        self._calls.append(call)
        self._gauge.in_flight += 1
        self._gauge.requests += 1
        return call


class _MeteredWriting:
    """An answer under way whose call is written down (`types.Writing`)."""

    def __init__(self, writing: Writing, call: Call, gauge: Gauge, clock: Callable[[], float]) -> None:
        self._writing, self._call, self._gauge, self._clock = writing, call, gauge, clock

    @property
    def prompt_tokens(self) -> int:
        return self._writing.prompt_tokens  # known once the model has taken the request

    @property
    def rtt_s(self) -> float:
        return self._writing.rtt_s

    async def written(self) -> AsyncIterator[Written]:
        call = self._call
        try:
            async for written in self._writing.written():
                if call.first_s is None:
                    call.first_s = self._clock() - call.began_s
                call.completion_tokens += len(written.ids)
                if written.finish_reason is not None:
                    call.outcome = "done"
                yield written
        except ConsortError as error:
            _failed(call, self._gauge, error, self._clock)
            raise

    def draft(self, begins: int, draft: Draft) -> None:
        self._writing.draft(begins, draft)

    def pause_at(self, tokens: int | None) -> bool:
        return self._writing.pause_at(tokens)

    async def close(self) -> None:
        await self._writing.close()
        call = self._call
        call.counted = True
        if call.first_s is not None:
            call.prompt_tokens = self._writing.prompt_tokens
        call.sent_bytes = max(call.sent_bytes, getattr(self._writing, "sent_bytes", 0))
        _ended(call, self._gauge, self._clock)


def stalled(call: Call, gauge: Gauge, clock: Callable[[], float] = time.monotonic) -> None:
    """Whoever read this call left it because nothing came any more: its model failed, without a word."""
    call.outcome = "stalled"
    _count_failure(gauge, clock)


def _failed(call: Call, gauge: Gauge, error: ConsortError, clock: Callable[[], float]) -> None:
    call.outcome = error.code
    _unsent(call, error)
    if not isinstance(error, BusyError):  # who is busy answers others
        _count_failure(gauge, clock)


def _count_failure(gauge: Gauge, clock: Callable[[], float]) -> None:
    gauge.failures += 1
    gauge.failures_in_row += 1
    gauge.last_failure_s = clock()


def _unsent(call: Call, error: ConsortError, *, is_far: bool = False) -> None:
    """A model here that refuses a request, and an endpoint that is not there, were handed nothing."""
    refused = isinstance(error, UnreachableError) or (isinstance(error, ModelError) and not is_far)
    if call.first_s is None and refused:
        call.sent_bytes = 0


def _ended(call: Call, gauge: Gauge, clock: Callable[[], float]) -> None:
    gauge.in_flight -= 1
    call.answer_s = clock() - call.began_s
    if call.outcome == "done":
        gauge.failures_in_row = 0
        gauge.answers += 1
        gauge.tokens += call.completion_tokens
        gauge.first_s = _averaged(gauge.first_s, call.first_s or 0.0)
        gauge.answer_s = _averaged(gauge.answer_s, call.answer_s)


class MeteredSessions(Metered):
    """A white box whose sessions are written down too, each as a call; gauges know answers only."""

    __slots__ = ("_white_box",)

    def __init__(
        self,
        lm: TokenLM,
        side: Side,
        gauge: Gauge,
        calls: list[Call],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(lm, side, gauge, calls, clock)
        self._white_box = lm

    async def connect(self) -> None:
        """Reach a model that is far away."""
        connect = getattr(self._white_box, "connect", None)
        if connect is not None:
            await connect()

    def open(self, request: Request) -> tuple[Session, TopK]:
        """The model's own session."""
        call = Call(self.name, self._side, sent_bytes(request), self._clock())
        self._calls.append(call)
        try:
            session, first = self._white_box.open(request)
        except ConsortError as error:
            call.outcome = error.code
            _unsent(call, error, is_far=hasattr(self._white_box, "connect"))
            raise
        call.first_s = self._clock() - call.began_s
        call.prompt_tokens, call.counted = request_tokens(self._white_box, session, request)
        call.request_tokens, call.completion_tokens = call.prompt_tokens, 1  # it was asked for the first one
        return _MeteredSession(session, call, self._clock), first


class _MeteredSession:
    """A session whose tokens are counted; used by one thread at a time, as any."""

    __slots__ = ("_call", "_clock", "_is_extended", "_session")

    def __init__(self, session: Session, call: Call, clock: Callable[[], float]) -> None:
        self._session, self._call, self._clock = session, call, clock
        self._is_extended = False

    def extend(self, ids: Sequence[int]) -> list[TopK]:
        call = self._call
        call.sent_bytes += BYTES_PER_ID * len(ids)
        try:
            found = self._session.extend(ids)
        except ConsortError as error:
            call.outcome = error.code
            raise
        # a look is asked for the token it writes; what it catches up with beside its own last one is read;
        # where that is several tokens at first, another wrote them, and its own first look was no token
        first_was_its_own = self._is_extended or len(ids) == 1
        call.completion_tokens += first_was_its_own
        call.prompt_tokens += len(ids) - first_was_its_own
        self._is_extended = True
        return found

    def rewind(self, num_tokens: int) -> None:
        self._session.rewind(num_tokens)

    def close(self) -> None:
        self._session.close()
        self._call.answer_s = self._clock() - self._call.began_s
        if self._call.outcome == "left":
            self._call.outcome = "done"


def metered(lm: LM, side: Side, gauge: Gauge, calls: list[Call]) -> LM:
    """The model with its calls written down, a white box where it is one."""
    if hasattr(lm, "open"):
        return MeteredSessions(cast("TokenLM", lm), side, gauge, calls)
    return Metered(lm, side, gauge, calls)


def sent_bytes(request: Request) -> int:
    """Bytes of the text that a request hands over."""
    texts = [message.content for message in request.messages]
    texts += [call.arguments for message in request.messages for call in message.tool_calls]
    texts += [tool.description + tool.parameters for tool in request.tools]
    if request.prompt is not None:
        texts.append(request.prompt)
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts)


def _averaged(before: float | None, measured: float) -> float:
    return measured if before is None else before + MEMORY * (measured - before)
