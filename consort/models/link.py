"""One WebSocket to a `consort serve --role cloud`: numbered sessions, each with what was heard for it.

Measures the round trip, and breaks off where nobody answers. Opens nothing again: `verifier` does.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from consort.errors import BusyError, ConsortError, ContextFullError, RequestError, UpstreamError
from consort.models.frames import CONTROL, OTHER_TOKENIZER, Payload, frame_bytes, pack, unpack

PING_S = 0.06  # without a word, then the other end is asked whether it is there
SILENT_S = 0.25  # without an answer to that, or two and a half round trips: the connection counts as broken
FAREWELL_S = 1.0  # for the other end to answer a connection's end, before this one leaves without


class BrokenError(UpstreamError):
    """The connection broke: what was asked may go on over another."""


class OtherTokenizerError(UpstreamError):
    """The cloud serves another tokenizer than it did."""


class Link:
    """An open connection; opening it took `rtt_s`, which is measured from then on. `least_rtt_s`: of all that
    was measured, without what a busy other end added. `lost_s`: since when a broken one is missed."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, *, rtt_s: float) -> None:
        self.broken = False
        self.rtt_s = self.least_rtt_s = rtt_s
        self.lost_s = 0.0
        self._heard_s = time.monotonic()
        self._socket = socket
        self._numbers = itertools.count(1)
        self._heard: dict[int, asyncio.Queue[Payload | UpstreamError]] = {}
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._pinged_s: float | None = None  # of the ping that is not answered yet
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]
        self._left: asyncio.Task[bool] | None = None  # a broken one's end, told to whoever may hear it

    def session(self) -> tuple[int, asyncio.Queue[Payload | UpstreamError]]:
        """A new session's number, and where it is heard."""
        number = next(self._numbers)
        self._heard[number] = asyncio.Queue()
        if self.broken:
            self._heard[number].put_nowait(_broken())
        return number, self._heard[number]

    def say(self, session: int, payload: Payload) -> int:
        """Send a message; its bytes on the wire."""
        data = pack(session, payload)
        self._outgoing.put_nowait(data)
        return frame_bytes(len(data), masked=True)

    def ping(self) -> None:
        """Measure the round trip, if it is not being measured."""
        if self._pinged_s is None:
            self._pinged_s = time.monotonic()
            self.say(CONTROL, 1)

    def forget(self, session: int) -> None:
        """Nothing is heard of a session any more; the cloud may free it."""
        if self._heard.pop(session, None) is not None and not self.broken:
            self.say(session, None)

    async def close(self) -> None:
        """Close the connection, once what was said has left."""
        said = asyncio.create_task(self._outgoing.join())
        await asyncio.wait({said, self._tasks[0]}, return_when=asyncio.FIRST_COMPLETED)
        said.cancel()
        self._break()
        assert self._left is not None, "a broken one is left"
        await asyncio.gather(self._left, *self._tasks, return_exceptions=True)

    def when_left(self, heard: Callable[[Link], None]) -> None:
        """Call back once a broken connection is closed here."""
        assert self._left is not None, "it is broken"
        self._left.add_done_callback(lambda _: heard(self))

    async def _send(self) -> None:
        try:
            while True:
                await self._socket.send_bytes(await self._outgoing.get())
                self._outgoing.task_done()
        except (aiohttp.ClientError, OSError):
            self._break()

    async def _receive(self) -> None:
        try:
            async for message in self._socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    self._hear(*unpack(message.data))
        except (aiohttp.ClientError, OSError, RequestError):
            pass
        self._break()

    async def next(self, heard: asyncio.Queue[Payload | UpstreamError]) -> Payload:
        """What a session hears next. After a while without a word the other end is asked whether it is there;
        where nobody answers, the connection is broken off. BrokenError, also of one that broke by itself."""
        wait_s = PING_S
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    payload = await heard.get()
                break
            except TimeoutError:
                self.ping()
                assert self._pinged_s is not None, "asked just now, or before"
                silent_s = time.monotonic() - max(self._heard_s, self._pinged_s)
                left_s = max(SILENT_S, 2.5 * self.rtt_s) - silent_s
                if left_s <= 0:
                    self._break(noticed_s=self._pinged_s)
                wait_s = min(PING_S, left_s) if left_s > 0 else PING_S
        if isinstance(payload, UpstreamError):
            raise payload
        return payload

    def _hear(self, session: int, payload: Payload) -> None:
        self._heard_s = time.monotonic()
        if session == CONTROL:
            if self._pinged_s is not None:
                self.rtt_s, self._pinged_s = self._heard_s - self._pinged_s, None
                self.least_rtt_s = min(self.least_rtt_s, self.rtt_s)
        elif (heard := self._heard.get(session)) is not None:
            heard.put_nowait(payload)

    def _break(self, *, noticed_s: float | None = None) -> None:
        if self.broken:
            return
        self.broken = True
        noticed_s = time.monotonic() if noticed_s is None else noticed_s
        self.lost_s = max(self._heard_s, noticed_s - PING_S)
        for heard in self._heard.values():
            heard.put_nowait(_broken())
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        # also where nothing is heard any more: what is held for it over there is free as soon as this arrives
        self._left = asyncio.create_task(self._socket.close())


def error_of(error: Mapping[str, Any], name: str) -> ConsortError:
    """An error that the cloud told us: the request's own, or the cloud's."""
    kinds: dict[object, type[ConsortError]] = {
        RequestError.code: RequestError,
        ContextFullError.code: ContextFullError,
        OTHER_TOKENIZER: OtherTokenizerError,
    }
    what, code, retry_s = str(error.get("message", "failed"))[:300], error.get("code"), error.get("retry_s")
    if code == BusyError.code:
        busy = BusyError(what, where=name, hint="try again in a moment")
        busy.retry_s = retry_s if isinstance(retry_s, int) else BusyError.retry_s
        return busy
    return kinds.get(code, UpstreamError)(what, where=name)


def _broken() -> BrokenError:
    return BrokenError("broke the connection")
