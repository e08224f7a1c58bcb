"""The answers that the cloud's model writes for others, each in any case: at most so many at once.

An answer outlives its connection: whoever comes back with its name gets what was written meanwhile. Those
without a connection are parked; where there is no room, those parked longest leave first. Speaks to nobody
(`verifier`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from consort.align import Vocabulary
from consort.errors import BusyError, ConsortError, DeadlineError
from consort.gateway.exchange import outcome_of
from consort.gateway.keys import Key
from consort.gateway.ledger import Row
from consort.gateway.service import Service
from consort.inference.metering import Call
from consort.models.frames import PARKED_S, request_of, seconds_left, token_bits, unpack_ids
from consort.types import DraftedLM, FinishReason, Writing


@dataclass(slots=True, eq=False)
class Answering:
    """One answer under way, with or without somebody who listens."""

    name: str
    writing: Writing
    key: Key
    began_s: float
    answer: list[int]
    first: int  # tokens that were known before
    finish: FinishReason | None = None
    error: ConsortError | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    listeners: int = 0
    parked_s: float = 0.0  # since when nobody listens
    drafts: int = 0
    is_recorded: bool = False

    def leave(self) -> None:
        """One listener less."""
        self.listeners -= 1
        self.parked_s = time.monotonic()

    @property
    def ended(self) -> bool:
        """Whether nothing will be added."""
        return self.finish is not None or self.error is not None


class Pool:
    """The sessions of one model: at most `room` at once, the parked ones leave first."""

    def __init__(self, service: Service, lm: DraftedLM, *, room: int) -> None:
        self.service, self.lm, self._room = service, lm, room
        self.vocabulary = cast("Vocabulary", lm.tokenizer)
        self.bits = token_bits(self.vocabulary.size)
        self.answerings: OrderedDict[str, Answering] = OrderedDict()  # the longest untouched first

    async def begin(self, said: Mapping[str, Any], key: Key) -> tuple[Answering, int]:
        """A new answer, or the one that the message names; and how many of its tokens are known to whoever
        asks. BusyError where there is no room."""
        after = said.get("after")
        known = unpack_ids(after, self.bits) if isinstance(after, bytes) else []
        held = self.answerings.get(str(said.get("session", "")))
        if held is not None and held.key == key and held.answer[: len(known)] == known:
            self.answerings.move_to_end(held.name)
            return held, len(known)
        self.service.door.check(key)
        await self._make_room()
        request = request_of(said.get("open"))
        writing = await self.lm.write(request, after=known)
        answering = Answering(
            secrets.token_hex(8), writing, key, time.monotonic(), list(known), first=len(known)
        )
        self.answerings[answering.name] = answering
        left_s = seconds_left(request, self.service.config.deadline_s)
        answering.task = asyncio.create_task(self._write(answering, left_s))
        return answering, len(known)

    async def end(self, answering: Answering) -> None:
        """Nobody wants the answer any more."""
        self.answerings.pop(answering.name, None)
        if answering.task is not None:
            answering.task.cancel()
            await asyncio.gather(answering.task, return_exceptions=True)
            await self._end(answering, "client_left")  # a task that never began ends nothing itself

    async def _make_room(self) -> None:
        for held in list(self.answerings.values()):
            old = time.monotonic() - held.parked_s > PARKED_S
            if held.listeners == 0 and (held.ended or old or len(self.answerings) >= self._room):
                await self.end(held)
        if len(self.answerings) >= self._room:
            raise BusyError(f"all {self._room} sessions are taken", hint="try again in a moment")

    async def _write(self, answering: Answering, deadline_s: float) -> None:
        outcome = "client_left"
        try:
            async with asyncio.timeout(deadline_s):
                async for written in answering.writing.written():
                    answering.answer += written.ids
                    answering.finish = written.finish_reason
                    answering.news.set()
            outcome = "done"
        except TimeoutError:
            answering.error = DeadlineError("no whole answer in time")
        except ConsortError as error:
            answering.error = error
        finally:
            if answering.error is not None:
                outcome = outcome_of(answering.error)
            answering.news.set()
            await self._end(answering, outcome)

    async def _end(self, answering: Answering, outcome: str) -> None:
        """Free the model and write down what was taken, once."""
        if not answering.is_recorded:
            answering.is_recorded = True
            await answering.writing.close()
            note = {"strategy": "verify", "event": "drafted", "messages": answering.drafts}
            tokens = answering.writing.prompt_tokens, len(answering.answer) - answering.first
            self._record(answering.name, answering.key, answering.began_s, tokens, outcome, note)

    def price(self, call: Call) -> float:
        """What a cache has cost so far."""
        return self.service.price(self.lm.name, call.prompt_tokens, call.completion_tokens)

    def read(self, key: Key, call: Call) -> None:
        """Write down a cache that was read by, with its tokens."""
        note = {"strategy": "verify", "event": "read"}
        tokens = call.prompt_tokens, call.completion_tokens
        self._record(secrets.token_hex(8), key, call.began_s, tokens, call.outcome, note)

    def _record(
        self,
        name: str,
        key: Key,
        began_s: float,
        tokens: tuple[int, int],
        outcome: str,
        note: Mapping[str, object],
    ) -> None:
        seconds = round(time.monotonic() - began_s, 6)
        prompt_tokens, written = tokens
        cost = self.service.price(self.lm.name, prompt_tokens, written)
        row = Row(
            id=f"session-{name}",
            at=time.time() - seconds,
            key=key.name,
            model=self.lm.name,
            strategy="verify",
            outcome=outcome,
            streamed=True,
            latency_s=seconds,
            first_s=None,
            prompt_tokens=prompt_tokens,
            completion_tokens=written,
            edge_tokens=0,
            cloud_tokens=written,
            cloud_bytes=0,
            cost=cost,
            cost_all_cloud=cost,
            spans=(),
            calls=(),
            notes=(note,),
        )
        self.service.record(row)
