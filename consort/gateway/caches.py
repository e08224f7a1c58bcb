"""Key-value caches of the cloud's model that a connection holds from outside (`types.Session`).

Opened, extended, rewound, closed. What other strategies read a far model by; speculation needs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consort.errors import RequestError
from consort.inference.metering import Call, Gauge, MeteredSessions
from consort.inference.white_box import white_box
from consort.models.frames import Payload, pack_rows, request_of, seconds_left
from consort.types import LM, Session, TopK


@dataclass(slots=True, eq=False)
class _Cache:
    """One number's cache; `session` is there once the request is read. One message at a time."""

    calls: list[Call] = field(default_factory=list)
    session: Session | None = None
    end: asyncio.TimerHandle | None = None
    is_closed: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Caches:
    """One connection's caches, by the numbers of its sessions, each as long as its request waits, and for
    `deadline_s` at most; `ended` hears what each has taken."""

    def __init__(self, lm: LM, *, deadline_s: float, ended: Callable[[Call], None]) -> None:
        self._lm, self._deadline_s, self._ended = lm, deadline_s, ended
        self._held: dict[int, _Cache] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._held

    @property
    def calls(self) -> list[Call]:
        """What the caches that are held have taken so far."""
        return [call for cache in self._held.values() for call in cache.calls]

    def hold(self, number: int, said: Mapping[str, Any]) -> Callable[[], Awaitable[Payload]]:
        """A new cache, held from now on, and how it is opened: that ends in what is to be answered. One that
        takes another's place reads what that held (`after`), and `extend`, at once. RequestError, or the
        model's own error, where it cannot be."""
        request, cache = request_of(said["hold"]), _Cache()
        after, ids = (_ids(said[name]) if said.get(name) else [] for name in ("after", "extend"))
        lm = MeteredSessions(white_box(self._lm, where="a session"), "cloud", Gauge(), cache.calls)
        self._held[number] = cache
        left_s = seconds_left(request, self._deadline_s)
        cache.end = asyncio.get_running_loop().call_later(left_s, self.drop, number)

        async def opened() -> Payload:
            if cache.is_closed:
                raise RequestError("there is no such session")
            opening = asyncio.create_task(asyncio.to_thread(lm.open, request))
            # a thread cannot be cancelled: whoever stops waiting leaves a session that must still be freed
            opening.add_done_callback(lambda done: self._kept(cache, done))
            try:
                async with cache.turn:
                    session, first = await asyncio.shield(opening)
                    rows = [first]
                    if ids:
                        rows = (await asyncio.to_thread(session.extend, [*after, *ids]))[-len(ids) :]
                    return {**pack_rows(rows), "prompt_tokens": cache.calls[0].request_tokens}
            except Exception:
                if self._held.get(number) is cache:
                    self.drop(number)
                raise

        return opened

    def extend(self, number: int, said: Mapping[str, Any]) -> Callable[[], Awaitable[Payload]]:
        """How a cache forgets and reads on. RequestError where it cannot."""
        cache, rewound = self._held.get(number), said.get("rewind", 0)
        if cache is None or cache.session is None:
            raise RequestError("there is no such session")
        if type(rewound) is not int:
            raise RequestError("a cache is rewound by a number of tokens")
        session, ids = cache.session, _ids(said.get("extend"))

        async def extended() -> Payload:
            async with cache.turn:
                return pack_rows(await asyncio.to_thread(_extended, session, ids, rewound))

        return extended

    def drop(self, number: int) -> None:
        """Free a number's cache, also one that is still being opened."""
        cache = self._held.pop(number, None)
        if cache is not None:
            cache.is_closed = True
            if cache.end is not None:
                cache.end.cancel()
            self._free(cache)

    def close(self) -> None:
        """Free them all."""
        for number in list(self._held):
            self.drop(number)

    def _kept(self, cache: _Cache, opened: asyncio.Task[tuple[Session, TopK]]) -> None:
        if not opened.cancelled() and opened.exception() is None:
            cache.session = opened.result()[0]
            if cache.is_closed:
                self._free(cache)

    def _free(self, cache: _Cache) -> None:
        if cache.session is not None:
            cache.session.close()
            self._ended(cache.calls[0])


def _ids(said: object) -> list[int]:
    if not (isinstance(said, list) and said and all(type(token) is int for token in said)):
        raise RequestError("a cache is extended by ids")
    return said


def _extended(session: Session, ids: Sequence[int], rewound: int) -> list[TopK]:
    if rewound:
        session.rewind(rewound)
    return session.extend(ids)
