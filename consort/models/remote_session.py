"""A key-value cache in the cloud seen from here (`types.Session`), whatever connections break under it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from consort.errors import ModelError, UpstreamError
from consort.models.frames import Payload, request_map, rows_of
from consort.models.link import BrokenError, Link, OtherTokenizerError, error_of
from consort.types import Request, TopK

if TYPE_CHECKING:
    from consort.models.verifier import Verifier


class RemoteSession:
    """Used from a thread beside the event loop, by one at a time. Where the connection breaks, another cache
    is opened and reads what this one held."""

    def __init__(self, verifier: Verifier, loop: asyncio.AbstractEventLoop, request: Request) -> None:
        self._verifier, self._loop, self._request = verifier, loop, request
        self._ids: list[int] = []  # behind the request
        self._rewound = 0  # ids that the cache holds yet: it forgets them before it reads on
        self._link: _Numbered | None = None
        self.prompt_tokens: int | None = None  # of the request, by the cloud's count; None: it did not say

    def begin(self) -> TopK:
        """Read the request; the distribution of the first token of the answer."""
        return self._rows(())[0]

    def extend(self, ids: Sequence[int]) -> list[TopK]:
        """Append ids; returns the next-token distribution after each of them."""
        if not ids:
            return []
        found = self._rows(ids)
        self._ids += ids
        self._rewound = 0
        return found

    def rewind(self, num_tokens: int) -> None:
        """Forget the last ids; waits for nobody."""
        left = len(self._ids) - num_tokens
        if num_tokens < 0 or left < 0:
            raise ModelError(f"cannot forget {num_tokens} of {len(self._ids)} tokens")
        del self._ids[left:]
        self._rewound += num_tokens

    def close(self) -> None:
        """Release the cache."""
        if self._link is not None:
            self._loop.call_soon_threadsafe(self._link.forget)

    def _rows(self, ids: Sequence[int]) -> list[TopK]:
        said = asyncio.run_coroutine_threadsafe(self._lasting(list(ids)), self._loop).result()
        try:
            return rows_of(said)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            raise UpstreamError("sent what is no distribution", where=self._verifier.name) from None

    async def _lasting(self, ids: list[int]) -> Payload:
        """Ask, over another connection where one breaks, until it is too late."""
        if self._link is None:
            try:
                return await self._opened(await self._verifier.link(), ids)
            except BrokenError:  # one that stood idle, perhaps: another is opened
                return await self._opened(await self._verifier.link(), ids)
        lost = self._link
        try:
            return await lost.ask({"extend": ids, "rewind": self._rewound})
        except BrokenError:
            self._link = None
        return await self._verifier.again(lost.link, self._request, lambda link: self._opened(link, ids))

    async def _opened(self, opened: Link, ids: list[int]) -> Payload:
        """A cache that reads the request, what was held, and `ids`, in one round trip."""
        verifier = self._verifier
        link = _Numbered(opened, verifier.name)
        opened.ping()  # opening took several round trips
        asked: dict[str, Any] = {
            "hold": request_map(self._request),
            "vocabulary": verifier.tokenizer.sha256[:16],
        }
        if ids:
            asked |= {"after": self._ids, "extend": ids}
        try:
            found = await link.ask(asked)
        except BaseException as error:
            link.forget()
            verifier.is_stale |= isinstance(error, OtherTokenizerError)
            raise
        self._link, self._rewound = link, 0
        if self.prompt_tokens is None and isinstance(found, Mapping):
            told = found.get("prompt_tokens")
            self.prompt_tokens = told if type(told) is int and told >= 0 else None
        return found


class _Numbered:
    """One session's part of a connection."""

    def __init__(self, link: Link, name: str) -> None:
        self.link, self._name = link, name
        self._number, self._heard = link.session()

    async def ask(self, payload: Payload) -> Payload:
        """Say it and hear the answer. BrokenError, or what the cloud refuses it with."""
        self.link.say(self._number, payload)
        heard = await self.link.next(self._heard)
        if isinstance(heard, Mapping) and "error" in heard:
            raise error_of(heard["error"], self._name)
        return heard

    def forget(self) -> None:
        """Nothing is asked any more."""
        self.link.forget(self._number)
