"""Shadow labels: some requests' questions are put to edge and cloud both, after the answer, to learn from.

Requests are drawn before anything is decided about them, each with the same chance, so that labels stand for
all traffic; whichever side did not answer is asked in the background, one request at a time. The most that
the cloud may take is set aside when a request is drawn, counted as one token a byte and every token it may
write: the month's budget holds by that, also over a `kill -9`. Private requests are never drawn, and where
redaction is on, nothing leaves here without it. An answer whose tokens several models chose (defer, mix) has
no label. Where a proxy is on the device, labels also hold what it thinks of the edge's answer. Does not
decide anything, and never delays an answer.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

from consort.errors import ConsortError, LimitError, ModelError
from consort.gateway.hearing import Heard, Said
from consort.gateway.labels import ASKED, Label
from consort.gateway.ledger import Ledger, Row, told_of
from consort.gateway.strategies import guarded
from consort.inference.agreement import agreement
from consort.inference.evidence import ProxyView, evidence_of, features
from consort.inference.metering import Call, Metered, Side, sent_bytes
from consort.inference.single import cloud, lacks
from consort.inference.streams import answer_of, collected
from consort.types import LM, Answer, Chunk, Consort, Request, Scorer

if TYPE_CHECKING:
    from consort.gateway.service import Service

WAITING = 64  # requests drawn and not yet labelled; further ones are not drawn: their texts take memory
TEMPLATE_TOKENS = 32  # a turn's, beside its text
TAKEN = ("prompt_tokens", "completion_tokens", "answer_s", "cost")  # of a call, kept in a label


@dataclass(slots=True)
class Draft:
    """A request that was drawn: what its models said, and the money set aside for it."""

    id: str
    redact: bool
    set_aside: float
    said: dict[str, Said] = field(default_factory=dict)  # by model


class Affordable:
    """The cloud's model, refusing what could cost more than was set aside; otherwise the same model."""

    __slots__ = ("_cost", "_lm", "_money", "capabilities", "name")

    def __init__(self, lm: LM, money: float, cost: Callable[[Request], float]) -> None:
        self.name, self.capabilities = lm.name, lm.capabilities
        self._lm, self._money, self._cost = lm, money, cost

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The model's own stream. LimitError before anything is sent."""
        if self._cost(request) > self._money:
            raise LimitError("the shadow budget does not reach", where=self.name)
        return self._lm.stream(request)


@dataclass(slots=True)
class Shadow:
    """Draws requests, and labels them in the background. `spent` is this month's money, with what is set
    aside."""

    share: float
    budget: float
    ledger: Ledger
    scorer: str = "confidence"
    spent: float = 0.0
    labels: int = 0  # since the start
    rng: Random = field(default_factory=Random)
    clock: Callable[[], float] = time.time
    _month: str = ""
    _set_aside: float = 0.0
    _waiting: list[tuple[Draft, Row]] = field(default_factory=list)
    _drafts: int = 0
    _worker: asyncio.Task[None] | None = None

    def draw(self, service: Service, *, id: str, request: Request, redact: bool) -> Draft | None:
        """A draft, where this request is drawn; the caller leaves out private ones."""
        self._new_month()
        if service.cloud is None or not service.edges or request.tools or self._drafts >= WAITING:
            return None
        if self.rng.random() >= self.share:
            return None
        set_aside = max(most_cost(service, lm, request) for lm in (service.edges[0], service.cloud))
        if redact:  # placeholders may be longer than what they stand for
            set_aside = 2 * set_aside
        if self.spent + set_aside > self.budget and set_aside > 0:
            return None
        self.spent += set_aside
        self._set_aside += set_aside
        self._drafts += 1
        return Draft(id, redact, set_aside)

    def take(self, service: Service, draft: Draft, row: Row) -> None:
        """The answer has left: label it when its turn comes. One that failed gives its money back."""
        if row.outcome != "done" or not draft.said:
            self._settle(draft, 0.0)
            return
        self._waiting.append((draft, row))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(service))

    async def close(self) -> None:
        """Stop; what was being asked stays in the ledger as money that may be spent."""
        self._waiting.clear()
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker

    async def settled(self) -> None:
        """Wait until nothing waits to be labelled."""
        if self._worker is not None:
            await self._worker

    async def _work(self, service: Service) -> None:
        while self._waiting:
            draft, row = self._waiting.pop(0)
            try:
                label = await self._labelled(service, draft, row)
            except Exception as error:  # never its message, which may quote a request
                print(f"shadow: {type(error).__name__} while labelling", file=sys.stderr)
                label = None
            self._settle(draft, label.cost if label else 0.0)
            if label is not None:
                self.ledger.record(label)
                self.labels += label.outcome == "done"
                service.meters.shadowed(label)

    async def _labelled(self, service: Service, draft: Draft, row: Row) -> Label | None:
        """The label of one request; None where the other side cannot answer it."""
        small, large = service.edges[0], service.cloud
        assert large is not None, "drawn only where there is a cloud"
        missing = [lm for lm in (small, large) if lm.name not in draft.said]
        if len(missing) == 2 or (missing and lacks(missing[0], _put(draft).request)):
            return None
        asked = missing[0].name if missing else ""
        label = Label(
            draft.id, self.clock(), ASKED, asked, draft.set_aside, self.share, small.name, large.name
        )
        calls: list[Call] = []
        if missing:
            self.ledger.record(label)
            try:
                async with asyncio.timeout(service.config.deadline_s):
                    await _ask(service, draft, missing[0], calls)
            except (ConsortError, TimeoutError) as error:
                outcome = error.code if isinstance(error, ConsortError) else "deadline_exceeded"
                return replace(label, outcome=outcome, cost=_cost(service, calls))
        done = replace(label, outcome="done", cost=_cost(service, calls), scorer=self.scorer)
        return await _judged(service, done, draft, _taken(service, row, calls))

    def _settle(self, draft: Draft, cost: float) -> None:
        self.spent += cost - draft.set_aside
        self._set_aside -= draft.set_aside
        self._drafts -= 1

    def _new_month(self) -> None:
        month = datetime.fromtimestamp(self.clock(), UTC).strftime("%Y-%m")
        if month != self._month:
            self.spent = self._set_aside if self._month else self.spent  # what is asked now is paid now
            self._month = month


def most_cost(service: Service, lm: LM, request: Request) -> float:
    """What a model can take at most for a request: no token is shorter than a byte."""
    prompt_tokens = sent_bytes(request) + TEMPLATE_TOKENS * (len(request.messages) + 1)
    return service.price(lm.name, prompt_tokens, request.max_tokens)


def _put(draft: Draft) -> Said:
    """What was said, where one side alone spoke; several edges were asked the same."""
    return next(iter(draft.said.values()))


async def _ask(service: Service, draft: Draft, lm: LM, calls: list[Call]) -> None:
    """Put the question that the other side answered to `lm`, and keep what it says."""
    request = replace(_put(draft).request, top_logprobs=None, until_s=None)
    side: Side = "edge" if lm is service.edges[0] else "cloud"
    metered = Metered(lm, side, service.gauge(lm), calls)
    if side == "edge":
        await collected(Heard(metered, side, draft.said).stream(request))
        return
    affordable = Affordable(metered, draft.set_aside, lambda sent: most_cost(service, lm, sent))
    strategy = guarded(cloud, service.detect) if draft.redact else cloud
    chunks = await collected(strategy(request, Consort((), affordable)))
    answer = answer_of(chunks)
    draft.said[lm.name] = Said(request, answer)
    if calls and calls[-1].counted:
        service.rates.observe(calls[-1], sent_bytes(request), len(answer.text.encode("utf-8", "replace")))


async def _judged(
    service: Service, label: Label, draft: Draft, taken: Mapping[str, Mapping[str, float]]
) -> Label:
    """The label with scores, features and what each answer took."""
    small, large = draft.said[label.small], draft.said[label.large]
    question = replace(small.request, until_s=None)  # nobody waits for a label
    evidence = evidence_of(question, small.answer, proxy=await _heard(service, question, small.answer))
    log_text = service.config.log_text
    return replace(
        label,
        small_score=agreement(small.answer.text, large.answer.text),
        before=await _scored(service.before, question, None),
        after=await _scored(service.after, question, small.answer),
        features={group: features(evidence, group) for group in evidence.groups},
        small_call=taken.get(label.small, {}),
        large_call=taken.get(label.large, {}),
        question=evidence.question if log_text else None,
        small_answer=small.answer.text if log_text else None,
        large_answer=large.answer.text if log_text else None,
    )


async def _heard(service: Service, request: Request, answer: Answer) -> ProxyView | None:
    """What the device's proxy thinks of the edge's answer, as a learned scorer hears it when it decides."""
    if service.hear is None:
        return None
    try:
        async with asyncio.timeout(service.config.deadline_s):
            return await service.hear(request, answer)
    except (ModelError, TimeoutError):  # longer than the proxy's context, as it would be when deciding
        return None


async def _scored(scorer: Scorer, request: Request, answer: Answer | None) -> float | None:
    try:
        return await scorer(request, answer)
    except ModelError:  # it needs what this request does not have
        return None


def _taken(service: Service, row: Row, calls: Sequence[Call]) -> dict[str, Mapping[str, float]]:
    """Tokens, seconds and money of each model's whole answer, in the request and for the label."""
    told = [*row.calls, *(told_of(call, _cost(service, [call])) for call in calls)]
    # who drafts leaves the cloud at a stop sequence, which only the reader looks for
    taken: Any = {call["model"]: call for call in told if call["outcome"] in ("done", "left")}
    return {model: {name: call[name] for name in TAKEN} for model, call in taken.items()}


def _cost(service: Service, calls: Sequence[Call]) -> float:
    return sum(service.price(call.model, call.prompt_tokens, call.completion_tokens) for call in calls)
