"""An answer that a model far away writes, whatever connections break under it (`types.Writing`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from consort.errors import UpstreamError
from consort.models.frames import (
    Payload,
    frame_bytes,
    pack,
    pack_draft,
    pack_ids,
    request_map,
    token_bits,
    unpack_ids,
)
from consort.models.link import BrokenError, Link, OtherTokenizerError, error_of
from consort.types import Draft, Request, Written

if TYPE_CHECKING:
    from consort.models.verifier import Verifier


class RemoteWriting:
    """An answer that the cloud writes (`types.Writing`). Drafts may follow the question at once: only
    `written` hears whether it was taken, and raises what the cloud refused it with."""

    def __init__(self, verifier: Verifier, request: Request, after: list[int]) -> None:
        self._verifier, self._request = verifier, request
        self._answer = after
        self._token = ""  # the cloud's name for the session, to find it again
        self._link: Link | None = None
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
        await self._ask(await self._verifier.link())

    async def _ask(self, link: Link) -> None:
        await self.close()  # an attempt before, if its connection stands
        self._taken, self._link = False, link
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
        try:
            opened = await self._next()
        except OtherTokenizerError:
            self._verifier.is_stale = True
            raise
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
            except BrokenError:
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

    def pause_at(self, tokens: int | None) -> bool:
        """Nobody waits across a network."""
        return False

    async def close(self) -> None:
        """Write no further."""
        if self._link is not None:
            self._link.forget(self._number)

    async def _next(self) -> Payload:
        assert self._link is not None
        payload = await self._link.next(self._heard)
        self.received_bytes += frame_bytes(len(pack(self._number, payload)), masked=False)
        if isinstance(payload, Mapping) and "error" in payload:
            raise error_of(payload["error"], self._verifier.name)
        return payload

    async def _resume(self) -> None:
        """Open the session again, until it is too late."""
        assert self._link is not None
        self.resumed += 1
        await self._verifier.again(self._link, self._request, self._opened)

    async def _opened(self, link: Link) -> None:
        await self._ask(link)
        await self._hear_taken()

    def _failed(self, what: str) -> UpstreamError:
        return UpstreamError(what, where=self._verifier.name)
