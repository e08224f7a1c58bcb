"""HTTP/1.1 as far as asking a model needs it: a POST, its answer as it comes, the connection kept.

httptools (Node's llhttp) reads the answers. A general client costs five times as much a request, and that was
a third of what the gateway cost (docs/LOG.md). Does not follow redirects, decompress, keep cookies, try again
or read proxies from the environment: `remote` decides what a failure means.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
import time
from collections import deque
from typing import cast
from urllib.parse import urlsplit

import httptools

IDLE_S = 30.0  # a connection unused for longer is more likely gone than good
HEAD_BYTES = 64 << 10  # headers that do not end are no answer
ROOM_BYTES = 256 << 10  # of an answer nobody has taken yet; then its sender waits


class BrokenError(Exception):
    """A connection that ended before its answer, or what came is no HTTP. The message never quotes it."""


def unreached(error: Exception) -> str:
    """Why nothing was answered, for a person."""
    if isinstance(error, TimeoutError):
        return "did not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "cannot be reached: nobody vouches for its certificate"
    if isinstance(error, ssl.SSLError):
        return "cannot be reached: it speaks no TLS"
    code = (error.errno or 0) if isinstance(error, OSError) else 0
    if code in errno.errorcode:
        return f"cannot be reached: {os.strerror(code).lower()}"
    if code < 0:  # of the resolver
        return "cannot be reached: no address is known for its name"
    return "cannot be reached"


class Connection(asyncio.Protocol):
    """One connection, one answer at a time: after `ask` it has `status` and `headers`, `some` gives the body
    until it is empty, `release` ends it. BrokenError and TimeoutError where the answer does."""

    def __init__(self, idle: deque[Connection], silence_s: float) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}  # names in lower case
        self.is_ended = True  # nothing is asked, or the answer is whole
        self.idle_since_s = 0.0
        self._idle, self._silence_s = idle, silence_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._size = self._head_size = 0
        self._has_head = self._is_paused = self._is_reusable = False
        self._failure = ""
        self._waiter: asyncio.Future[None] | None = None

    async def ask(self, request: bytes) -> None:
        """Send a request and wait for its answer's headers."""
        self.status, self.headers = 0, {}
        self._head_size = self._size = 0
        self.is_ended = self._has_head = False
        self._transport.write(request)
        while not self._has_head:
            await self._more()

    async def some(self) -> bytes:
        """What came of the body since; empty at its end."""
        while not self._parts and not self.is_ended:
            await self._more()
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    async def all(self, limit: int) -> bytes:
        """The whole body. BrokenError where it is larger than the limit."""
        parts, size = [], 0
        while part := await self.some():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise BrokenError("an answer without an end")
        return b"".join(parts)

    def release(self) -> None:
        """Keep the connection for the next request if its answer was read to the end, else close it: whoever
        still answers there stops."""
        if not (self.is_ended and self._is_reusable) or self._parts or self._transport.is_closing():
            self._transport.abort()
            return
        self.idle_since_s = now = time.monotonic()
        self._idle.append(self)
        while self._idle[0].idle_since_s < now - IDLE_S:
            self._idle.popleft().abort()

    def abort(self) -> None:
        """Close without a word."""
        self._transport.abort()

    @property
    def is_open(self) -> bool:
        """Whether a request may still be sent."""
        return not self._transport.is_closing()

    @property
    def was_heard(self) -> bool:
        """Whether a byte of the present answer came."""
        return self._head_size > 0

    async def _more(self) -> None:
        if self._failure:
            raise BrokenError(self._failure)
        self._waiter = self._loop.create_future()
        try:
            async with asyncio.timeout(self._silence_s):
                await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if not self._has_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # also raised for an error inside what the parser calls
            self._fail("sent what is no HTTP")
        if self._head_size > HEAD_BYTES and not self._has_head:
            self._fail("sent headers without an end")
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        if self in self._idle:
            self._idle.remove(self)
        lasts_until_closed = self._has_head and not (
            b"content-length" in self.headers or b"transfer-encoding" in self.headers
        )
        if lasts_until_closed and error is None:
            self.is_ended = True
        else:
            self._failure = self._failure or "closed the connection"
        self._wake()

    def _fail(self, why: str) -> None:
        self._is_reusable = False
        self._failure = why
        self._transport.abort()

    # ---- what the parser calls

    def on_message_begin(self) -> None:  # noqa: D102
        if self.is_ended:
            raise BrokenError("an answer to nothing")

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:  # noqa: D102
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200  # before it: "go on", and the answer follows
        self._is_reusable = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:  # noqa: D102
        self._parts.append(body)
        self._size += len(body)
        if self._size > ROOM_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:  # noqa: D102
        self.is_ended = self._has_head
        if not self._has_head:
            self.headers = {}


class Pool:
    """Connections to one address. ValueError where it is none."""

    def __init__(self, url: str, *, key: str, connect_s: float, silence_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("no address, or a password in it")
        is_https = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if is_https else 80)
        self._path = parts.path.rstrip("/")
        self._connect_s, self._silence_s = connect_s, silence_s
        self._tls = ssl.create_default_context() if is_https else None
        self._idle: deque[Connection] = deque()
        asked_for = f" HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        known = f"Authorization: Bearer {key}\r\n" if key else ""
        if not all(33 <= ord(letter) < 127 for letter in self._path + key + parts.netloc):
            raise ValueError("no address, or no key")  # a line's end in them would begin another header
        self._head = f"{asked_for}{known}Content-Type: application/json\r\nContent-Length: ".encode()

    async def post(self, path: str, body: bytes) -> Connection:
        """A connection whose answer's headers have come. BrokenError, OSError, TimeoutError."""
        request = b"POST %s%s%d\r\n\r\n%s" % ((self._path + path).encode(), self._head, len(body), body)
        while self._idle:
            connection = self._idle.pop()
            try:
                if connection.is_open:
                    await connection.ask(request)
                    return connection
            except BrokenError:
                if connection.was_heard:
                    raise
                continue  # it was closed while it lay idle: nothing of an answer was seen
            except BaseException:
                connection.abort()
                raise
        connection = await self._opened()
        try:
            await connection.ask(request)
        except BaseException:
            connection.abort()
            raise
        return connection

    def close(self) -> None:
        """Close what lies idle."""
        while self._idle:
            self._idle.pop().abort()

    async def _opened(self) -> Connection:
        def protocol() -> Connection:
            return Connection(self._idle, self._silence_s)

        async with asyncio.timeout(self._connect_s):
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(protocol, self._host, self._port, ssl=self._tls)
        return connection
