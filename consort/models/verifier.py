"""A cloud model that takes drafts over a network: `consort serve --role cloud` on the other end.

One WebSocket a process carries every session. A connection that breaks is opened again, and each answer goes
on after the last token that arrived: the cloud replays it from its parked session, or writes it once more, to
the same tokens. What needs no drafts goes over HTTP, as to any endpoint. Drafts nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import aiohttp

from consort.align import Vocabulary
from consort.errors import ConsortError, RequestError, UpstreamError
from consort.models.frames import (
    CONTROL,
    MAX_BYTES,
    Payload,
    frame_bytes,
    pack,
    pack_draft,
    pack_ids,
    request_map,
    rows_of,
    token_bits,
    unpack,
    unpack_ids,
)
from consort.models.remote import Endpoint, Remote
from consort.types import Draft, Request, TopK, Writing, Written

# After the last word: a person waits half a second at most until the edge goes on (`takeover`).
RESUME_S = 0.4  # until then a broken connection is opened again
PAUSE_S = 0.05  # between two attempts
PING_S = 0.1  # without a word, then the other end is asked whether it is there
SILENT_S = 0.25  # without an answer to that, or two and a half round trips: the connection counts as broken


class Verifier(Remote):
    """An LM behind `consort serve --role cloud` (`types.DraftedLM`, `types.TokenLM`)."""

    tokenizer: Vocabulary

    def __init__(self, endpoint: Endpoint, *, resume_s: float = RESUME_S) -> None:
        super().__init__(replace(endpoint, capabilities=frozenset({*endpoint.capabilities, "drafts"})))
        self.resume_s = resume_s
        self._base_url = endpoint.base_url.rstrip("/")
        self._link: _Link | None = None
        self._linking = asyncio.Lock()
        self._http: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def write(self, request: Request, *, after: Sequence[int] = ()) -> Writing:
        """Begin to answer, or go on after an answer's first tokens."""
        writing = RemoteWriting(self, request, list(after))
        await writing.ask()
        return writing

    def open(self, request: Request) -> tuple[RemoteSession, TopK]:
        """As `types.TokenLM`: called from another thread than the event loop's, which must run."""
        assert self._loop is not None, "connect before"
        session = RemoteSession(self, self._loop)
        return session, session.begin(request)

    async def connect(self) -> None:
        """Open the connection and read the cloud's tokenizer. UpstreamError where there is none."""
        await self.link()

    async def close(self) -> None:
        """Close every connection."""
        if self._link is not None:
            await self._link.close()
            self._link = None
        if self._http is not None:
            await self._http.close()
            self._http = None
        await super().close()

    async def link(self) -> _Link:
        """The open connection; opened if there is none."""
        self._loop = asyncio.get_running_loop()
        async with self._linking:
            if self._link is None or self._link.broken:
                if not hasattr(self, "tokenizer"):
                    self.tokenizer = await self._fetched_tokenizer()
                self._link = await self._opened_link()
            return self._link

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            key, wait_s = self._endpoint.key, self._endpoint.connect_s
            self._http = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=wait_s, sock_read=wait_s),
            )
        return self._http

    async def _opened_link(self) -> _Link:
        url = "ws" + self._base_url.removeprefix("http") + "/sessions"
        try:
            socket = await self._client().ws_connect(
                url, max_msg_size=MAX_BYTES, compress=0, heartbeat=20.0, autoping=True
            )
        except aiohttp.WSServerHandshakeError as error:
            raise self._failed(
                f"takes no drafts here ({error.status})", hint="check base_url and key_env, and its --role"
            ) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._failed(f"cannot be reached ({type(error).__name__})") from None
        return _Link(socket)

    async def _fetched_tokenizer(self) -> Vocabulary:
        try:
            async with self._client().get(f"{self._base_url}/tokenizer") as response:
                if response.status != 200:
                    raise self._failed(
                        f"shows no tokenizer ({response.status})", hint="is it `consort serve --role cloud`?"
                    )
                return Vocabulary.from_json(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._failed(f"cannot be reached ({type(error).__name__})") from None


class _Link:
    """One connection: numbered sessions, each with what was heard for it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.broken = False
        self.rtt_s = 0.0
        self.heard_s = time.monotonic()
        self._socket = socket
        self._numbers = itertools.count(1)
        self._heard: dict[int, asyncio.Queue[Payload | UpstreamError]] = {}
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._pinged_s = 0.0
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

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
        """Measure the round trip."""
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
        await self._socket.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

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

    def listen(self) -> None:
        """Nothing was heard for a while: ask, and break off where nobody answers."""
        if time.monotonic() - self.heard_s > max(SILENT_S, 2.5 * self.rtt_s):
            self._break()
        else:
            self.ping()

    def _hear(self, session: int, payload: Payload) -> None:
        self.heard_s = time.monotonic()
        if session == CONTROL:
            self.rtt_s = time.monotonic() - self._pinged_s
        elif (heard := self._heard.get(session)) is not None:
            heard.put_nowait(payload)

    def _break(self) -> None:
        if self.broken:
            return
        self.broken = True
        for heard in self._heard.values():
            heard.put_nowait(_broken())
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()


class RemoteWriting:
    """An answer that the cloud writes (`types.Writing`). Drafts may follow the question at once: only
    `written` hears whether it was taken, and raises what the cloud refused it with."""

    def __init__(self, verifier: Verifier, request: Request, after: list[int]) -> None:
        self._verifier, self._request = verifier, request
        self._answer = after
        self._token = ""  # the cloud's name for the session, to find it again
        self._link: _Link | None = None
        self._number = 0
        self._heard: asyncio.Queue[Payload | UpstreamError] = asyncio.Queue()
        self._taken = False
        self._bits = 0
        self.prompt_tokens = 0
        self.sent_bytes = self.received_bytes = self.draft_bytes = 0
        self.resumed = 0

    @property
    def rtt_s(self) -> float:
        """To the cloud and back, when it was last measured."""
        return self._link.rtt_s if self._link is not None else 0.0

    async def ask(self) -> None:
        """Open the session, after what is known of the answer."""
        await self.close()  # an attempt before, if its connection stands
        self._taken = False
        self._link = link = await self._verifier.link()
        self._bits = token_bits(self._verifier.tokenizer.size)
        self._number, self._heard = link.session()
        opening: dict[str, Any] = {
            "open": request_map(self._request),
            "vocabulary": self._verifier.tokenizer.sha256[:16],
        }
        if self._answer:
            opening["after"] = pack_ids(self._answer, self._bits)
        if self._token:
            opening["session"] = self._token
        self.sent_bytes += link.say(self._number, opening)
        link.ping()

    async def _hear_taken(self) -> None:
        opened = await self._next()
        if not isinstance(opened, Mapping) or "session" not in opened:
            raise self._failed("opened no session")
        self._token, self.prompt_tokens = str(opened["session"]), int(opened["prompt_tokens"])
        self._taken = True

    async def written(self) -> AsyncIterator[Written]:
        """The answer's tokens as they arrive; goes on after a broken connection."""
        while True:
            try:
                if not self._taken:
                    await self._hear_taken()
                payload = await self._next()
            except _BrokenError:
                await self._resume()
                yield Written(())  # what was drafted may not have arrived
                continue
            if isinstance(payload, int):
                ids = [payload]
            elif isinstance(payload, bytes):
                ids = unpack_ids(payload, self._bits)
            elif isinstance(payload, Mapping) and "finish" in payload:
                yield Written((), payload["finish"])
                return
            else:
                raise self._failed("sent what is no part of an answer")
            if not all(0 <= token < self._verifier.tokenizer.size for token in ids):
                raise self._failed("sent a token that its tokenizer does not have")
            self._answer += ids
            yield Written(tuple(ids))

    def draft(self, begins: int, draft: Draft) -> None:
        """Say what may come after the answer's first `begins` tokens."""
        assert self._link is not None
        if not self._link.broken:
            sent = self._link.say(self._number, pack_draft(begins, draft, self._bits))
            self.sent_bytes += sent
            self.draft_bytes += sent

    async def close(self) -> None:
        """Write no further."""
        if self._link is not None:
            self._link.forget(self._number)

    async def _next(self) -> Payload:
        assert self._link is not None
        while True:
            try:
                async with asyncio.timeout(PING_S):
                    payload = await self._heard.get()
                break
            except TimeoutError:
                self._link.listen()
        if isinstance(payload, UpstreamError):
            raise payload
        self.received_bytes += frame_bytes(len(pack(self._number, payload)), masked=False)
        if isinstance(payload, Mapping) and "error" in payload:
            raise _told(payload["error"], self._verifier.name)
        return payload

    async def _resume(self) -> None:
        """Open the session again, until it is too late."""
        assert self._link is not None
        until_s = self._link.heard_s + self._verifier.resume_s
        self.resumed += 1
        while True:
            try:
                async with asyncio.timeout(max(PAUSE_S, until_s - time.monotonic())):
                    await self.ask()
                    await self._hear_taken()
                return
            except (UpstreamError, TimeoutError):
                if time.monotonic() + PAUSE_S > until_s:
                    raise self._failed("cannot be reached again") from None
                await asyncio.sleep(PAUSE_S)

    def _failed(self, what: str) -> UpstreamError:
        return UpstreamError(what, where=self._verifier.name)


class RemoteSession:
    """A key-value cache in the cloud (`types.Session`), used from a thread beside the event loop."""

    def __init__(self, verifier: Verifier, loop: asyncio.AbstractEventLoop) -> None:
        self._verifier, self._loop = verifier, loop
        self._link: _Link | None = None
        self._number = 0
        self._heard: asyncio.Queue[Payload | UpstreamError] = asyncio.Queue()

    def begin(self, request: Request) -> TopK:
        """Read the request."""

        async def opened() -> Payload:
            self._link = await self._verifier.link()
            self._number, self._heard = self._link.session()
            vocabulary = self._verifier.tokenizer.sha256[:16]
            return await self._ask({"hold": request_map(request), "vocabulary": vocabulary})

        return _rows(self._wait(opened()))[0]

    def extend(self, ids: Sequence[int]) -> list[TopK]:
        """Append ids; returns the next-token distribution after each of them."""
        if not ids:
            return []
        return _rows(self._wait(self._ask({"extend": list(ids)})))

    def rewind(self, num_tokens: int) -> None:
        """Forget the last ids."""
        self._wait(self._ask({"rewind": num_tokens}))

    def close(self) -> None:
        """Release the cache."""
        if self._link is not None:
            self._loop.call_soon_threadsafe(self._link.forget, self._number)

    async def _ask(self, payload: Payload) -> Payload:
        assert self._link is not None
        self._link.say(self._number, payload)
        heard = await self._heard.get()
        if isinstance(heard, UpstreamError):
            raise heard
        if isinstance(heard, Mapping) and "error" in heard:
            raise _told(heard["error"], self._verifier.name)
        return heard

    def _wait(self, asked: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()


class _BrokenError(UpstreamError):
    """The connection broke: the answer may go on over another."""


def _broken() -> _BrokenError:
    return _BrokenError("broke the connection")


def _rows(said: Payload) -> list[TopK]:
    assert isinstance(said, Mapping)
    return rows_of(said)


def _told(error: Mapping[str, Any], name: str) -> ConsortError:
    """An error that the cloud told us: the request's own, or the cloud's."""
    kind = RequestError if error.get("code") == RequestError.code else UpstreamError
    return kind(str(error.get("message", "failed"))[:300], where=name)
