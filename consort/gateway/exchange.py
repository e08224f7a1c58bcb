"""One request's life, from its admission to its row in the ledger. Knows nothing of HTTP."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from consort.errors import ConsortError
from consort.gateway.hearing import Heard
from consort.gateway.keys import Key
from consort.gateway.ledger import ANSWERED, SHARED, Row, told_of
from consort.gateway.openai_request import Asked
from consort.gateway.shadow import Draft
from consort.inference.metering import BYTES_PER_TOKEN, Call, Side, metered, sent_bytes, stalled
from consort.inference.streams import Closing
from consort.types import LM, Chunk, Consort, Note, Request, Strategy, Usage

if TYPE_CHECKING:
    from consort.gateway.service import Service


@dataclass(slots=True)
class Exchange:
    """One request and what became of it."""

    service: Service
    asked: Asked
    key: Key
    strategy_name: str
    strategy: Strategy
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    at: float = field(default_factory=time.time)
    began_s: float = field(default_factory=time.monotonic)
    calls: list[Call] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    spans: list[list[Any]] = field(default_factory=list)  # [author, bytes]
    texts: list[str] = field(default_factory=list)  # only with log_text
    first_s: float | None = None
    usage: Usage | None = None  # as the present writer counts
    begun: Usage | None = None  # of what another had sent before the edge took over
    calls_before: int = 0  # those that were made until then
    row: Row | None = None
    draft: Draft | None = None  # of a label

    @property
    def deadline_s(self) -> float:
        """Seconds this request may take."""
        return min(self.asked.parameters.deadline_s, self.service.config.deadline_s)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """The answer. Whoever reads it keeps the deadline."""
        service, asked = self.service, self.asked
        service.in_flight += 1
        private = asked.parameters.private
        if private:
            self.notes.append(Note("private", "kept"))
        elif service.shadow is not None:
            redact = asked.parameters.redact
            self.draft = service.shadow.draw(service, id=self.id, request=asked.request, redact=redact)
        cloud = None if private or service.cloud is None else self._metered(service.cloud, "cloud")
        consort = Consort(tuple(self._metered(lm, "edge") for lm in service.edges), cloud, self._noted)
        request = replace(asked.request, until_s=time.monotonic() + self.deadline_s)
        try:
            async with Closing(self.strategy(request, consort)) as stream:
                async for chunk in stream:
                    self._span(chunk)
                    yield chunk
        finally:
            service.in_flight -= 1

    def finish(self, outcome: str) -> Row:
        """Write the row: once, whatever the end."""
        assert self.row is None, "an exchange is finished once"
        service = self.service
        usage = self.counted()
        self.row = row = self._row(outcome, usage)
        service.record(row)
        return row

    def counted(self) -> Usage:
        """Tokens as the client sees them: the request's, as whoever began the answer reads it, and those of
        the one answer it got, whoever wrote them."""
        if self.first_s is None:
            return Usage(0, 0)
        last = self._last_writers()
        if self.begun is None:
            return last
        return Usage(self.begun.prompt_tokens, self.begun.completion_tokens + last.completion_tokens)

    def author(self) -> str:
        """Who wrote the answer; what was asked for where several did."""
        authors = {span[0] for span in self.spans}
        return str(authors.pop()) if len(authors) == 1 else self.asked.model

    def delivered(self) -> None:
        """The last byte has left, or the client has: a label may be made of the request now."""
        if self.draft is not None and self.service.shadow is not None and self.row is not None:
            self.service.shadow.take(self.service, self.draft, self.row)
            self.draft = None

    def _metered(self, lm: LM, side: Side) -> LM:
        counted = metered(lm, side, self.service.gauge(lm), self.calls)
        return counted if self.draft is None else Heard(counted, side, self.draft.said)

    def _span(self, chunk: Chunk) -> None:
        if chunk.anew:
            self.spans.clear()
            self.texts.clear()
        if self.first_s is None:
            self.first_s = time.monotonic() - self.began_s
        if chunk.usage is not None:
            self.usage = chunk.usage
        text = chunk.text
        if not text:
            return
        size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        if self.spans and self.spans[-1][0] == chunk.model:
            self.spans[-1][1] += size
        else:
            self.spans.append([chunk.model, size])
        if self.service.config.log_text:
            self.texts.append(text)

    def _noted(self, note: Note) -> None:
        if note.strategy == "takeover":
            self._taken_over(note)
        self.notes.append(note)

    def _taken_over(self, note: Note) -> None:
        """The edge goes on from here: count what was sent before, and a silent cloud as one that failed."""
        asked = next((call for call in reversed(self.calls) if call.side == "cloud"), None)
        # a client with less patience than is configured says nothing about the model
        is_patient = self.asked.parameters.stall_s >= self.service.config.stall_s
        if note.event == "stalled" and is_patient and asked is not None and self.strategy_name not in SHARED:
            assert self.service.cloud is not None, "it was asked"
            stalled(asked, self.service.gauge(self.service.cloud))
        if note.values["sent_bytes"]:
            self.begun, self.usage, self.calls_before = self._last_writers(), None, len(self.calls)

    def _last_writers(self) -> Usage:
        """What whoever writes at last read of the request, and wrote of the answer."""
        calls = self.calls[self.calls_before :]
        if not self.calls and (self.usage is None or len(self.spans) > 1):  # kept, as several had written it
            answer_bytes = sum(size for _, size in self.spans)
            return Usage(*(-(-size // BYTES_PER_TOKEN) for size in (self._request_bytes(), answer_bytes)))
        if self.usage is not None:
            return self.usage
        writing = [note for note in self.notes if note.strategy == "takeover" or note.strategy in SHARED]
        if calls and writing and writing[-1].strategy in SHARED:  # the note counts its tokens
            read = next((call for call in calls if call.side == "cloud"), calls[0])
            return Usage(read.request_tokens, int(writing[-1].values.get("tokens", 0)))
        author = self.spans[-1][0] if self.spans else ""
        wrote = [call for call in calls if call.model == author] or calls  # a drafter is named, but not asked
        return Usage(wrote[-1].prompt_tokens, wrote[-1].completion_tokens) if wrote else Usage(0, 0)

    def _request_bytes(self) -> int:
        return sent_bytes(self.asked.request)

    def _in_cloud(self, usage: Usage) -> Usage:
        """What the cloud alone would have read and written: counted where it did, else estimated."""
        service = self.service
        assert service.cloud is not None, "there is nothing to compare with"
        request_bytes, answer_bytes = self._request_bytes(), sum(size for _, size in self.spans)
        heard = (call for call in reversed(self.calls) if call.side == "cloud" and call.first_s is not None)
        own = next(heard, None)
        if own is None:
            return service.rates.estimated(request_bytes, answer_bytes) or usage
        if self.strategy_name in SHARED:
            return Usage(own.request_tokens, usage.completion_tokens)
        if own.outcome != "done":  # what another wrote after it, it would have written
            return Usage(own.prompt_tokens, usage.completion_tokens)
        if own.counted:
            is_its_own = {author for author, _ in self.spans} == {service.cloud.name}
            service.rates.observe(own, request_bytes, answer_bytes if is_its_own else 0)
        return Usage(own.prompt_tokens, own.completion_tokens)

    def _row(self, outcome: str, usage: Usage) -> Row:
        service, calls = self.service, self.calls
        by_side = {"edge": 0, "cloud": 0}
        cloud_bytes, costs = 0, list[float]()
        for call in calls:
            by_side[call.side] += call.completion_tokens
            cloud_bytes += call.sent_bytes if call.side == "cloud" else 0
            costs.append(service.price(call.model, call.prompt_tokens, call.completion_tokens))
        all_cloud = 0.0
        if service.cloud is not None and outcome in ANSWERED and self.first_s is not None:
            in_cloud = self._in_cloud(usage)
            all_cloud = service.price(service.cloud.name, in_cloud.prompt_tokens, in_cloud.completion_tokens)
        redactions: dict[str, int] = {}
        for note in self.notes:
            if (note.strategy, note.event) == ("redact", "hidden"):  # spans of each kind
                for kind, count in note.values.items():
                    redactions[kind] = redactions.get(kind, 0) + int(count)
        log_text = service.config.log_text
        return Row(
            id=self.id,
            at=self.at,
            key=self.key.name,
            model=self.asked.model,
            strategy=self.strategy_name,
            outcome=outcome,
            streamed=self.asked.stream,
            latency_s=round(time.monotonic() - self.began_s, 6),
            first_s=None if self.first_s is None else round(self.first_s, 6),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            edge_tokens=by_side["edge"],
            cloud_tokens=by_side["cloud"],
            cloud_bytes=cloud_bytes,
            cost=math.fsum(costs),
            cost_all_cloud=all_cloud,
            spans=tuple((author, size) for author, size in self.spans),
            calls=tuple(map(told_of, calls, costs)),
            notes=tuple(
                {"strategy": note.strategy, "event": note.event, **note.values} for note in self.notes
            ),
            redactions=redactions,
            prompt=_prompt(self.asked.request) if log_text else None,
            answer="".join(self.texts) if log_text else None,
        )


def receipt(row: Row) -> dict[str, Any]:
    """A row as the client gets it: everything but the texts and whose key it was."""
    return {
        name: getattr(row, name)
        for name in Row.__dataclass_fields__
        if name not in ("prompt", "answer", "key", "at", "streamed")
    }


def _prompt(request: Request) -> str:
    if request.prompt is not None:
        return request.prompt
    return "\n".join(f"{message.role}: {message.content}" for message in request.messages)


def outcome_of(error: BaseException) -> str:
    """The word for an ending in the ledger."""
    return error.code if isinstance(error, ConsortError) else "internal_error"
