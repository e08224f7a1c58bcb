"""One exchange to its client: whole, or event by event. Every end is written to the ledger, also a hang-up.

A stream's producer runs beside its writer: what a model says while the network is busy leaves in one piece.
Before the first event a failure is an HTTP error, after it one error event.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from consort.errors import ConsortError, DeadlineError
from consort.gateway.exchange import Exchange, outcome_of, receipt
from consort.inference.streams import Closing, collected
from consort.types import Chunk

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Headers = list[tuple[bytes, bytes]]
ROOM_BYTES = 256 << 10  # of events a slow client has not read; then the models wait for it
GRACE_S = 5.0  # beyond the deadline, for the last bytes to leave


class Form(Protocol):
    """How an answer looks on the wire: OpenAI's, Ollama's."""

    content_type: bytes

    def event(self, chunk: Chunk) -> bytes:
        """One chunk of a stream."""
        ...

    def end(self, exchange: Exchange, told: dict[str, Any] | None) -> bytes:
        """What ends a stream."""
        ...

    def failed(self, error: ConsortError) -> bytes:
        """What ends a stream that failed."""
        ...

    def whole(self, chunks: tuple[Chunk, ...], exchange: Exchange, told: dict[str, Any] | None) -> bytes:
        """An answer in one piece."""
        ...


async def answer(exchange: Exchange, form: Form, receive: Receive, send: Send, headers: Headers) -> None:
    """Answer and record. A ConsortError before the first byte is the caller's to send."""
    task = asyncio.current_task()
    assert task is not None
    listener = asyncio.create_task(_hang_up(receive))
    listener.add_done_callback(lambda done: None if done.cancelled() else task.cancel())
    outcome = "client_left"
    try:
        if exchange.asked.stream:
            outcome = await _streamed(exchange, form, send, headers)
        else:
            outcome = await _whole(exchange, form, send, headers)
    except asyncio.CancelledError:
        if not listener.done():  # the server stops; otherwise the client left, and nobody waits for an answer
            raise
        task.uncancel()
    except BaseException as error:
        outcome = outcome_of(error)
        raise
    finally:
        listener.cancel()
        if exchange.row is None:
            exchange.finish(outcome)
        exchange.delivered()


async def _hang_up(receive: Receive) -> None:
    """Returns when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _whole(exchange: Exchange, form: Form, send: Send, headers: Headers) -> str:
    try:
        async with asyncio.timeout(exchange.deadline_s):
            chunks = await collected(exchange.chunks())
    except TimeoutError:
        raise _late(exchange) from None
    row = exchange.finish("done")
    body = form.whole(chunks, exchange, receipt(row) if exchange.asked.parameters.receipt else None)
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head + headers + _told(exchange)})
    await send({"type": "http.response.body", "body": body})
    return "done"


class _Buffer:
    """Events between producer and writer, with room for so many bytes."""

    __slots__ = ("ended", "error", "events", "has_events", "has_room", "size")

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.size = 0
        self.has_events, self.has_room = asyncio.Event(), asyncio.Event()
        self.ended = False
        self.error: BaseException | None = None

    def take(self) -> bytes:
        data = b"".join(self.events)
        self.events.clear()
        self.size = 0
        self.has_events.clear()
        self.has_room.set()
        return data


async def _produce(exchange: Exchange, form: Form, buffer: _Buffer) -> None:
    try:
        async with asyncio.timeout(exchange.deadline_s), Closing(exchange.chunks()) as stream:
            async for chunk in stream:
                data = form.event(chunk)
                buffer.events.append(data)
                buffer.size += len(data)
                buffer.has_events.set()
                if buffer.size > ROOM_BYTES:
                    buffer.has_room.clear()
                    await buffer.has_room.wait()
    except TimeoutError:
        buffer.error = _late(exchange)
    except Exception as error:
        buffer.error = error
    buffer.ended = True
    buffer.has_events.set()


async def _streamed(exchange: Exchange, form: Form, send: Send, headers: Headers) -> str:
    buffer = _Buffer()
    producer = asyncio.create_task(_produce(exchange, form, buffer))
    try:
        async with asyncio.timeout(exchange.deadline_s + GRACE_S):
            await buffer.has_events.wait()
            if buffer.error is not None and not buffer.events:
                raise buffer.error
            head = [(b"content-type", form.content_type), (b"cache-control", b"no-cache")]
            told = head + headers + _told(exchange)
            await send({"type": "http.response.start", "status": 200, "headers": told})
            while not buffer.ended:
                await send({"type": "http.response.body", "body": buffer.take(), "more_body": True})
                if not buffer.ended:
                    await buffer.has_events.wait()
            outcome, end = _ending(exchange, form, buffer.error)
            await send({"type": "http.response.body", "body": buffer.take() + end})
    finally:
        if not producer.done():
            producer.cancel()
            with suppress(asyncio.CancelledError):
                await producer
    return outcome


def _ending(exchange: Exchange, form: Form, error: BaseException | None) -> tuple[str, bytes]:
    """Record the row, then what ends the stream."""
    outcome = "done" if error is None else outcome_of(error)
    row = exchange.finish(outcome)
    if error is None:
        return outcome, form.end(exchange, receipt(row) if exchange.asked.parameters.receipt else None)
    return outcome, form.failed(known(error))


def known(error: BaseException) -> ConsortError:
    """One of our errors; of a mistake of ours the client learns only that there was one."""
    if isinstance(error, ConsortError):
        return error
    print(f"internal error: {type(error).__name__} in {_place(error)}", file=sys.stderr)
    failure = ConsortError("the gateway failed", hint="its log names the place")
    failure.code = "internal_error"
    return failure


def _place(error: BaseException) -> str:
    """Where a mistake of ours was raised; never its message, which may quote a request."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (
        f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "an unknown place"
    )


def _late(exchange: Exchange) -> DeadlineError:
    return DeadlineError(
        f"no whole answer within {exchange.deadline_s:g} s", hint="ask for less, or allow more"
    )


def _told(exchange: Exchange) -> Headers:
    """Who answered, as far as it is known when the headers leave."""
    author = exchange.spans[-1][0] if exchange.spans else exchange.asked.model
    return [
        (b"x-request-id", exchange.id.encode()),
        (b"x-consort-strategy", exchange.strategy_name.encode()),
        (b"x-consort-model", str(author).encode("latin-1", "replace")),
    ]
