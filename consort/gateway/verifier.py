"""The cloud's end of speculation: sessions on a WebSocket. Answers are the pool's, caches the connection's.

All share the model's batch, so many are verified in one pass. Messages: `models.frames`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from consort.errors import BusyError, ConsortError, LimitError, RequestError
from consort.gateway.caches import Caches
from consort.gateway.keys import Key
from consort.gateway.pool import Answering, Pool
from consort.models.frames import (
    CONTROL,
    MAX_BYTES,
    OTHER_TOKENIZER,
    Payload,
    pack,
    pack_ids,
    unpack,
    unpack_draft,
)


class Socket(Protocol):
    """Messages in and out; `receive` gives None when the other end has left."""

    async def receive(self) -> bytes | None:
        """The next message."""
        ...

    async def send(self, data: bytes) -> None:
        """Send one."""
        ...


async def converse(socket: Socket, pool: Pool, key: Key) -> None:
    """One connection, to its end. Its answers are parked then, its caches freed."""
    connection = _Connection(socket, pool, key)
    try:
        with contextlib.suppress(OSError):  # the other end left while it was being answered
            while (data := await socket.receive()) is not None:
                await connection.hear(data)
    finally:
        await connection.leave()


class _Connection:
    def __init__(self, socket: Socket, pool: Pool, key: Key) -> None:
        self._socket, self._pool, self._key = socket, pool, key
        self._answerings: dict[int, Answering] = {}
        self._tellers: dict[int, asyncio.Task[None]] = {}
        self._caches = Caches(
            pool.lm, deadline_s=pool.service.config.deadline_s, ended=lambda call: pool.read(key, call)
        )
        self._working: set[asyncio.Task[None]] = set()

    async def hear(self, data: bytes) -> None:
        """One message. What is no message, or asks for what cannot be, is answered by an error."""
        number = CONTROL
        try:
            if len(data) > MAX_BYTES:
                raise RequestError("the message is too long")
            number, payload = unpack(data)
            await self._obey(number, payload)
        except ConsortError as error:
            await self._refuse(number, error)

    async def leave(self) -> None:
        """The connection is gone."""
        tasks = [*self._tellers.values(), *self._working]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for answering in self._answerings.values():
            answering.leave()
        self._caches.close()

    async def _obey(self, number: int, payload: Payload) -> None:
        if number == CONTROL:
            await self._say(CONTROL, payload if isinstance(payload, int) else 0)
        elif payload is None:
            await self._close(number)
        elif isinstance(payload, bytes):
            self._draft(number, payload)
        elif not isinstance(payload, Mapping):
            raise RequestError("nothing is asked")
        else:
            await self._asked(number, payload)

    async def _asked(self, number: int, said: Mapping[str, Any]) -> None:
        opens = "open" in said or "hold" in said
        if opens and (number in self._answerings or number in self._caches):
            raise RequestError("this session is open")
        if opens and str(said.get("vocabulary")) != self._pool.vocabulary.sha256[:16]:
            error = RequestError("this is for another tokenizer", hint="ask for /v1/tokenizer again")
            error.code = OTHER_TOKENIZER
            raise error
        if "open" in said:
            await self._open(number, said)
            return
        owed = sum(map(self._pool.price, self._caches.calls))  # what is held is written down when it ends
        self._pool.service.door.check(self._key, counts="hold" in said, owed=owed)
        reading = self._caches.hold if "hold" in said else self._caches.extend
        self._background(reading(number, said), number)  # nobody's drafts wait for it

    async def _open(self, number: int, said: Mapping[str, Any]) -> None:
        answering, known = await self._pool.begin(said, self._key)
        answering.listeners += 1
        self._answerings[number] = answering
        await self._say(number, {"session": answering.name, "prompt_tokens": answering.writing.prompt_tokens})
        self._tellers[number] = asyncio.create_task(self._tell(number, answering, known))

    async def _tell(self, number: int, answering: Answering, told: int) -> None:
        """Say what is written as it is written."""
        with contextlib.suppress(OSError):
            while True:
                while told == len(answering.answer) and not answering.ended:
                    answering.news.clear()
                    await answering.news.wait()
                fresh = answering.answer[told:]
                told += len(fresh)
                if len(fresh) == 1:
                    await self._say(number, fresh[0])
                elif fresh:
                    await self._say(number, pack_ids(fresh, self._pool.bits))
                if answering.error is not None:
                    await self._refuse(number, answering.error)
                    return
                if answering.finish is not None and told == len(answering.answer):
                    await self._say(number, {"finish": answering.finish})
                    return

    def _draft(self, number: int, data: bytes) -> None:
        """A draft for an answer that may have ended meanwhile. One that cannot be read is no worse than none:
        the answer goes on."""
        answering = self._answerings.get(number)
        if answering is None:
            return
        answering.drafts += 1
        try:
            begins, draft = unpack_draft(data, self._pool.bits, written=len(answering.answer))
        except RequestError:
            return
        if begins >= 0:
            answering.writing.draft(begins, draft)

    async def _close(self, number: int) -> None:
        teller = self._tellers.pop(number, None)
        if teller is not None:
            teller.cancel()
        answering = self._answerings.pop(number, None)
        if answering is not None:
            answering.leave()
            if not answering.listeners:
                await self._pool.end(answering)
        self._caches.drop(number)

    def _background(self, work: Callable[[], Awaitable[Payload]], number: int) -> None:
        async def obeyed() -> None:
            with contextlib.suppress(OSError):
                try:
                    await self._say(number, await work())
                except ConsortError as error:
                    await self._refuse(number, error)

        task = asyncio.create_task(obeyed())
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _refuse(self, number: int, error: ConsortError) -> None:
        told: dict[str, Any] = {"code": error.code, "message": error.what}
        if isinstance(error, BusyError | LimitError):
            told["retry_s"] = error.retry_s
        await self._say(number, {"error": told})

    async def _say(self, number: int, payload: Payload) -> None:
        await self._socket.send(pack(number, payload))


class AsgiSocket:
    """An accepted WebSocket of the web server."""

    def __init__(self, receive: Any, send: Any) -> None:
        self._receive, self._send = receive, send

    async def receive(self) -> bytes | None:
        """The next binary message; text is none of ours."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            return None
        return message.get("bytes") or b""

    async def send(self, data: bytes) -> None:
        """Send one; OSError when the other end has left."""
        try:
            await self._send({"type": "websocket.send", "bytes": data})
        except Exception as error:  # each server has its own for a closed connection
            raise LeftError from error


class LeftError(ConnectionError):
    """The other end has left."""
