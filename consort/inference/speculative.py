"""Speculation: a drafter on the device says what the cloud will write, and the cloud verifies many tokens in
one pass. The answer is the cloud's own, bit for bit, at every temperature and whatever is drafted.

Drafts are guesses about an answer that the cloud writes anyway: it draws each token with noise that seed,
position and token alone decide (shared-randomness coupling, arXiv 2408.07978) and goes as far in one pass as
the draft foresaw. A cloud far away never waits. The drafter works ahead of the reply: as long as its path is
likely it drafts on, and when the answer goes another way the next message begins after the cloud's own token.
A cloud in this process computes on the same cores, and there is no round trip to hide: the two take turns.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol, cast

from consort.align import Vocabulary
from consort.errors import ConsortError, RequestError
from consort.inference.pace import Pace
from consort.inference.single import answered_by, cloud_of
from consort.inference.streams import by_author
from consort.models.decoding.prompt import begun_text
from consort.models.decoding.text import TextWriter
from consort.models.drafts import NOTHING, below, child, depths, first_path, is_sound, joined
from consort.types import (
    Chunk,
    Consort,
    Draft,
    DraftedLM,
    Drafter,
    Drafting,
    DraftShape,
    FinishReason,
    Note,
    Request,
    Strategy,
    Usage,
    Writing,
)

MEASURING = "how fast the cloud is without drafts was measured first"


class Chooser(Protocol):
    """Which drafter a cloud's answers are drafted by, and what was measured between the two."""

    def __call__(self, cloud: DraftedLM) -> tuple[Drafter, Pace]:
        """For a cloud that takes drafts."""
        ...


def speculate(choose: Chooser) -> Strategy:
    """The cloud answers, sooner than alone where a drafter foresees it."""

    async def answer(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        lm = cloud_of(consort)
        if "drafts" not in lm.capabilities:
            raise RequestError(
                "this model takes no drafts",
                where=lm.name,
                hint="serve it with `consort serve --role cloud`, or ask consort/cloud",
            )
        if request.top_logprobs is not None or request.tools:
            async for chunk in answered_by(lm, request):  # what a stream of tokens alone does not carry
                yield chunk
            return
        cloud = cast("DraftedLM", lm)
        if request.seed is None:
            request = replace(request, seed=secrets.randbits(63))  # both sides must draw alike
        writing = await cloud.write(request)  # first: a cloud far away has its tokenizer only then
        try:
            drafter, pace = choose(cloud)
        except BaseException:
            await writing.close()
            raise
        run = _Run(cloud.name, drafter, pace, cast("Vocabulary", cloud.tokenizer), request, writing)
        try:
            async for chunk in run.chunks():
                yield chunk
        finally:
            await run.close()
            consort.note(Note("speculate", "drafted", run.told()))

    return answer


@dataclass(slots=True)
class _Run:
    """One answer, its drafts, and what came of them."""

    cloud: str
    drafter: Drafter
    pace: Pace
    vocabulary: Vocabulary
    request: Request
    writing: Writing
    drafting: Drafting | None = None
    task: asyncio.Task[None] | None = None
    answer: list[int] = field(default_factory=list)
    pending: Draft = NOTHING  # drafted and not decided: what the verifier holds, too
    chances: list[float] = field(default_factory=list)  # of the pending first path's tokens, each by itself
    news: asyncio.Event = field(default_factory=asyncio.Event)
    off: str = ""  # why nothing is drafted any more
    idle: str = "the drafter had not read the question when the answer ended"  # why nothing is drafted yet
    in_turn: bool = False  # the verifier waits for drafts
    drafted: int = 0
    accepted: int = 0
    pieces: int = 0  # heard, the end among them: several passes may come as one
    turns: int = 0  # drafts for which the verifier waited
    resumed: int = 0

    async def chunks(self) -> AsyncIterator[Chunk]:
        """The answer, each piece by who foresaw it."""
        if not self.pace.begins():
            self.off = "did not pay lately"
        elif self.writing.pause_at(None if self.pace.is_trial() else 1):
            self.in_turn = True
        else:
            self.task = asyncio.create_task(self._draft())
        text = TextWriter(self.vocabulary, stop=self.request.stop, beginning=not begun_text(self.request))
        before_s = asked_s = self.pace.clock()
        async for written in self.writing.written():
            now_s = self.pace.clock()
            if self.pieces and written.ids:  # the first came after the prompt was read
                self.pace.came(
                    len(written.ids),
                    now_s - before_s,
                    pass_s=now_s - max(before_s, asked_s),
                    foreseen=bool(self.pending.ids),
                    drafting=not (self.off or self.pace.is_trial()),
                )
            before_s, self.pieces = now_s, self.pieces + 1
            if not written.ids and written.finish_reason is None:
                self._forget()
            pieces = []
            for token in written.ids:
                pieces.append(text.write(token)[0])
                if text.stopped:
                    break
            authors, struck = self._take(written.ids[: len(pieces)])
            shown = list(zip(pieces, authors, strict=True))
            finish: FinishReason | None = "stop" if text.stopped else written.finish_reason
            if finish is not None and not text.stopped:
                shown.append((text.end()[0], self.cloud))
            for chunk in by_author(shown, struck):
                yield chunk
            if finish is not None:
                usage = Usage(self.writing.prompt_tokens, len(self.answer))
                yield Chunk("", self.cloud, finish, usage)
                return
            self._reconsider()
            if self.in_turn:  # after what was written is out
                await self._take_turn()
                asked_s = self.pace.clock()

    async def close(self) -> None:
        """Stop drafting and writing, whatever the end."""
        if self.task is not None:
            self.task.cancel()
            (ended,) = await asyncio.gather(self.task, return_exceptions=True)
            if isinstance(ended, Exception):  # of the drafter's code: not to be hidden by a whole answer
                self.off = f"the drafter failed: {type(ended).__name__}"
        if self.drafting is not None:
            self.drafting.close()
        await self.writing.close()

    def told(self) -> dict[str, float | int | str]:
        """For the receipt: what was drafted, and by what measurements it was decided."""
        pace = self.pace
        shape = pace.shape_in_turn(self.request.max_tokens) if self.turns else pace.shape()
        told: dict[str, float | int | str] = {
            "drafter": self.drafter.name,
            "seed": str(self.request.seed),  # of 63 bits: a JSON number would lose some in a browser
            "temperature": self.request.temperature,
            "top_p": self.request.top_p,
            "max_tokens": self.request.max_tokens,
            "pieces": self.pieces,
            "turns": self.turns,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "resumed": self.resumed,
            "acceptance": round(pace.acceptance, 3),
            "depth": shape.depth,
            "width": shape.width,
            "least": round(shape.least, 3),
            "off": self.off,
            "undrafted": "" if self.drafted else self.off or self.idle,
        }
        return told | pace.measured_ms() | {"rtt_ms": round(1e3 * self.writing.rtt_s, 3)}

    def _take(self, ids: tuple[int, ...]) -> tuple[list[str], str]:
        """Tokens of the answer: who foresaw each, and what had been drafted in place of the last."""
        authors, struck = [], ""
        for token in ids:
            path = [self.pending.ids[node] for node in first_path(self.pending)]
            foreseen = child(self.pending, -1, token) is not None
            self.pending = below(self.pending, (token,))
            if path:
                right = path[0] == token
                self.pace.judged(self.chances[0], right)
                self.chances = self.chances[1:]
                if not right:
                    struck = "" if foreseen else self._text(path)
                    self._go_another_way()
            authors.append(self.drafter.name if foreseen else self.cloud)
            self.accepted += foreseen
            self.answer.append(token)
        self.news.set()
        return authors, struck

    def _forget(self) -> None:
        """The verifier knows of no drafts: draft anew."""
        self.pending = NOTHING
        self.resumed += 1
        self._go_another_way()
        self.news.set()

    def _go_another_way(self) -> None:
        """The answer left the path that is drafted on: perhaps along a branch, perhaps not."""
        self.chances = [self.pace.acceptance] * len(first_path(self.pending))
        if self.drafting is not None:
            self.drafting.stop()

    async def _draft(self) -> None:
        """Draft ahead of the verifier as long as the path is likely."""
        try:
            self.drafting = await self.drafter.open(self.request)
            self.idle = MEASURING
            while not self.off:
                shape, chance = self.pace.shape(ahead=bool(self.chances)), math.prod(self.chances)
                if self.pace.is_trial() or chance <= shape.least or not await self._draft_on(shape, chance):
                    self.news.clear()
                    await self.news.wait()
        except ConsortError as error:  # the answer needs no drafts
            self.off = f"the drafter failed: {error.code}"

    async def _take_turn(self) -> None:
        """Draft while the verifier waits, and let it make a pass; where no drafts are wanted, let it write
        on."""
        if self.pace.is_trial():
            self.idle = MEASURING
            return
        room = self.request.max_tokens - len(self.answer) - 1  # the pass itself writes one
        try:
            if not self.off and room > 0:
                if self.drafting is None:
                    self.drafting = await self.drafter.open(self.request)
                self.turns += 1
                await self._draft_on(self.pace.shape_in_turn(room), 1.0)
        except ConsortError as error:
            self.off = f"the drafter failed: {error.code}"
        except Exception as error:  # of the drafter's code, as in `close`: the answer needs no drafts
            self.off = f"the drafter failed: {type(error).__name__}"
        self.in_turn = not self.off
        self.writing.pause_at(len(self.answer) + 1 if self.in_turn else None)

    async def _draft_on(self, shape: DraftShape, chance: float) -> bool:
        """Draft after the pending path, which has this chance; whether there was anything to say."""
        assert self.drafting is not None
        self.idle = "the first draft was not done when the answer ended"
        believed = [*self.answer, *self._path()]
        began_s = self.pace.clock()
        draft, chances = await self.drafting.draft(believed, replace(shape, least=shape.least / chance))
        took_s = self.pace.clock() - began_s
        if not is_sound(draft, self.vocabulary.size):
            self.idle = "what the drafter said was no draft"
            return False
        self.pace.levels(1 + max(depths(draft.parents), default=-1), took_s)
        if not draft.ids:
            self.idle = "the drafter foresaw nothing that was likely enough"
            return False
        held = self.pending
        self.pending = joined(held, self.answer, len(believed), draft)
        if self.pending is held:  # the answer went another way meanwhile
            self.idle = "the answer went another way while it was drafted"
            return True
        self.writing.draft(len(believed), draft)
        self.drafted += len(draft.ids)
        along = [1.0, *(chances[node] for node in first_path(draft))]
        self.chances += [after / before for before, after in pairwise(along)]
        surplus = len(self.chances) - len(self._path())
        if surplus >= 0:
            del self.chances[:surplus]  # the answer has gone on meanwhile
        else:  # along a branch that is longer than the first path
            self._go_another_way()
        return True

    def _path(self) -> list[int]:
        return [self.pending.ids[node] for node in first_path(self.pending)]

    def _reconsider(self) -> None:
        if not self.off and not self.pace.pays():
            self.off = "does not pay"
            self.pace.gave_up()
            self.news.set()

    def _text(self, ids: list[int]) -> str:
        return b"".join(self.vocabulary.token_bytes[token] or b"" for token in ids).decode(errors="replace")
