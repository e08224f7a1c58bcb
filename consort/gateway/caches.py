"""Key-value caches of the cloud's model that a connection holds from outside (`types.Session`).

Opened, extended, rewound, closed. What other strategies read a far model by; speculation needs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consort.errors import RequestError
from consort.models.frames import Payload, pack_rows, request_of
from consort.types import Session, TokenLM, TopK


@dataclass(slots=True, eq=False)
class _Cache:
    """One number's cache; `session` is there once the request is read. One message at a time."""

    session: Session | None = None
    is_closed: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Caches:
    """One connection's caches, by the numbers of its sessions."""

    def __init__(self, lm: TokenLM) -> None:
        self._lm = lm
        self._held: dict[int, _Cache] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._held

    async def obey(self, number: int, said: Mapping[str, Any]) -> Payload:
        """What is to be answered. RequestError, or the model's own error, where it cannot be done."""
        if "hold" in said:
            return await self._open(number, said)
        cache = self._held.get(number)
        if cache is None or cache.session is None:
            raise RequestError("there is no such session")
        ids, rewound = said.get("extend"), said.get("rewind", 0)
        if not (isinstance(ids, list) and ids and all(type(token) is int for token in ids)):
            raise RequestError("a cache is extended by ids")
        if type(rewound) is not int:
            raise RequestError("a cache is rewound by a number of tokens")
        async with cache.turn:
            return pack_rows(await asyncio.to_thread(_extended, cache.session, ids, rewound))

    def drop(self, number: int) -> None:
        """Free a number's cache, also one that is still being opened."""
        cache = self._held.pop(number, None)
        if cache is not None:
            cache.is_closed = True
            if cache.session is not None:
                cache.session.close()

    def close(self) -> None:
        """Free them all."""
        for number in list(self._held):
            self.drop(number)

    async def _open(self, number: int, said: Mapping[str, Any]) -> Payload:
        if number in self._held:
            raise RequestError("this session is open")
        if not hasattr(self._lm, "open"):
            raise RequestError("this model's distributions cannot be read", where=self._lm.name)
        request = request_of(said["hold"])
        cache = self._held[number] = _Cache()
        opening = asyncio.create_task(asyncio.to_thread(self._lm.open, request))
        # a thread cannot be cancelled: whoever stops waiting leaves a session that must still be freed
        opening.add_done_callback(lambda done: _kept(cache, done))
        try:
            _, first = await asyncio.shield(opening)
        except Exception:
            if self._held.get(number) is cache:
                del self._held[number]
            raise
        return pack_rows([first])


def _extended(session: Session, ids: Sequence[int], rewound: int) -> list[TopK]:
    if rewound:
        session.rewind(rewound)
    return session.extend(ids)


def _kept(cache: _Cache, opened: asyncio.Task[tuple[Session, TopK]]) -> None:
    if opened.cancelled() or opened.exception() is not None:
        return
    cache.session = opened.result()[0]
    if cache.is_closed:
        cache.session.close()
