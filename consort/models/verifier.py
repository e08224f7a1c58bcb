"""A cloud model that takes drafts over a network: `consort serve --role cloud` on the other end.

One WebSocket a process carries every session. A connection that breaks is opened again, and each answer goes
on after the last token that arrived: the cloud replays it from its parked session, or writes it once more, to
the same tokens. What needs no drafts goes over HTTP, as to any endpoint. Drafts nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import aiohttp

from consort.align import Vocabulary
from consort.errors import BusyError, UnreachableError, UpstreamError
from consort.models.connections import unreached
from consort.models.frames import MAX_BYTES, PARKED_S
from consort.models.link import FAREWELL_S, Link
from consort.models.remote import Endpoint, Remote
from consort.models.remote_session import RemoteSession
from consort.models.remote_writing import RemoteWriting
from consort.types import Request, TopK, Writing

# After the last word a broken connection is opened again until then: a person waits half a second at most
# until the edge goes on (`takeover`) ...
RESUME_S = 0.35
# ... or until then, far away: missing a connection takes two at most, opening another two (TCP, WebSocket),
# and one may be lost again.
REOPENING_ROUND_TRIPS = 5
PAUSE_S = 0.05  # between two attempts
T = TypeVar("T")


class Verifier(Remote):
    """An LM behind `consort serve --role cloud` (`types.DraftedLM`, `types.TokenLM`)."""

    tokenizer: Vocabulary

    def __init__(self, endpoint: Endpoint, *, resume_s: float = RESUME_S) -> None:
        super().__init__(replace(endpoint, capabilities=frozenset({*endpoint.capabilities, "drafts"})))
        self.resume_s = resume_s
        self._base_url = endpoint.base_url.rstrip("/")
        self._link: Link | None = None
        self._linking = asyncio.Lock()
        self._left: set[Link] = set()  # broken ones, whose other end may not have heard of it yet
        self._http: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_stale = True  # whether the tokenizer is to be asked for

    async def write(self, request: Request, *, after: Sequence[int] = ()) -> Writing:
        """Begin to answer, or go on after an answer's first tokens."""
        writing = RemoteWriting(self, request, list(after))
        await writing.ask()
        return writing

    def open(self, request: Request) -> tuple[RemoteSession, TopK]:
        """As `types.TokenLM`: called from another thread than the event loop's, which must run."""
        assert self._loop is not None, "connect before"
        session = RemoteSession(self, self._loop, request)
        return session, session.begin()

    async def connect(self) -> None:
        """Open the connection and read the cloud's tokenizer, where it is not open. UpstreamError where there
        is none."""
        await self.link()

    async def close(self) -> None:
        """Close every connection."""
        links = [*self._left, *([self._link] if self._link is not None else [])]
        self._link, self._left = None, set()
        await asyncio.gather(*(link.close() for link in links))
        if self._http is not None:
            await self._http.close()
            self._http = None
        await super().close()

    async def link(self) -> Link:
        """The open connection; opened if there is none."""
        self._loop = asyncio.get_running_loop()
        async with self._linking:
            if self.is_stale:
                self.tokenizer = await self._fetched_tokenizer()
                self.is_stale = False
            if self._link is None or self._link.broken:
                if self._link is not None:
                    self._left.add(self._link)
                    self._link.when_left(self._left.discard)
                    self._link = None
                self._link = await self._opened_link()
            return self._link

    async def again(self, lost: Link, request: Request, opened: Callable[[Link], Awaitable[T]]) -> T:
        """What is opened over another connection in a lost one's place, until it is too late: for whoever
        goes on instead, for the request, or for the cloud, which keeps an answer for `PARKED_S`.
        UpstreamError then, or BusyError where there was no room to the end."""
        patience_s = max(self.resume_s, REOPENING_ROUND_TRIPS * lost.least_rtt_s)
        until_s = min(lost.lost_s + min(patience_s, PARKED_S), request.until_s or math.inf)
        while True:
            try:
                async with asyncio.timeout(max(PAUSE_S, until_s - time.monotonic())):
                    link = await self.link()
                # who is there again is waited for: what is to be read anew may be long
                return await opened(link)
            except (UpstreamError, BusyError, TimeoutError) as error:
                if time.monotonic() + PAUSE_S > until_s:
                    if isinstance(error, BusyError):
                        raise
                    raise self._failed("cannot be reached again") from None
                await asyncio.sleep(PAUSE_S)

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            key, wait_s = self._endpoint.key, self._endpoint.connect_s
            self._http = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=wait_s, sock_read=wait_s),
            )
        return self._http

    async def _opened_link(self) -> Link:
        url = "ws" + self._base_url.removeprefix("http") + "/sessions"
        began_s = time.monotonic()
        try:
            socket = await self._client().ws_connect(
                url,
                max_msg_size=MAX_BYTES,
                compress=0,
                heartbeat=20.0,
                timeout=aiohttp.ClientWSTimeout(ws_close=FAREWELL_S),
            )
        except aiohttp.WSServerHandshakeError as error:
            raise self._unreached(
                f"takes no drafts here ({error.status})", hint="check base_url and key_env, and its --role"
            ) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unreached(unreached(error)) from None
        return Link(socket, rtt_s=time.monotonic() - began_s)

    async def _fetched_tokenizer(self) -> Vocabulary:
        try:
            async with self._client().get(f"{self._base_url}/tokenizer") as response:
                if response.status in (401, 403):
                    what = "refused our key" if self._endpoint.key else "needs a key"
                    raise self._unreached(what, hint="key_env names the variable that holds it")
                if response.status != 200:
                    raise self._unreached(
                        f"shows no tokenizer ({response.status})", hint="is it `consort serve --role cloud`?"
                    )
                return Vocabulary.from_json(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unreached(unreached(error)) from None

    def _unreached(self, what: str, *, hint: str = "") -> UnreachableError:
        return UnreachableError(what, where=self.name, hint=hint)
