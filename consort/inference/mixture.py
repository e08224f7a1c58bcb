"""Mixture: the large model writes, and small ones that read along move its next-token distribution.

Proxy-tuning (arXiv 2401.08565): `llm + a * (tuned - base)` gives a large model what its proxy was tuned to,
and leaves its weights alone; also a product and an average of several models, which err differently, and
contrastive decoding (arXiv 2210.15097). Every model is one session; all read a token at the same time, as
each may be far away. The LLM's tokens are written whatever the tokenizers of the others (`following`). Noise
is the project's: with weight 0 the answer is the LLM's own with that seed. Where a small model fails in the
middle, or has no session free, the others go on, and at last the LLM alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from consort.align import Vocabulary
from consort.errors import BusyError, ContextFullError, ModelError
from consort.inference.following import Follower, Written, follower
from consort.inference.mixed_answer import MixedAnswer, Opinion
from consort.inference.mixing_weights import Kind, Weight
from consort.inference.single import FAILURES, cloud_of, refuse_lacking
from consort.inference.white_box import reached, vocabulary_of
from consort.types import LM, Chunk, Consort, Request, Strategy, TokenLM, TopK


@dataclass(frozen=True, slots=True)
class Guide:
    """A small model that steers: tuned to what the answers need, the same before it was, if there is one,
    and its share of what all guides weigh together, which is set against the others' shares."""

    tuned: LM
    base: LM | None = None
    share: float = 1.0


def mix(guides: Sequence[Guide], *, kind: Kind, weight: Weight) -> Strategy:
    """The cloud's model writes, steered by the guides; those without a share are not asked. ModelError where
    the kind asks for models before their tuning and no guide has one."""

    async def strategy(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        chosen = _heard_for(kind, guides)
        llm = await reached(cloud_of(consort), where="mix")
        refuse_lacking(llm, request)
        writer = _Voice(llm, request, vocabulary_of(llm))
        steering = [await _Steering.of(guide, kind, request, vocabulary_of(llm)) for guide in chosen]
        voices = [writer, *(voice for each in steering for voice in each.voices)]
        answer = MixedAnswer(request, llm, kind=kind, weight=weight)
        try:
            await _all_open(voices)
            while True:
                if await _all_follow(voices, answer.written):
                    yield answer.cut_short()
                    break
                await _all_hear(voices)
                assert writer.says is not None, "a writer hears itself"
                chunk = answer.write(writer.says, [each.opinion() for each in steering])
                if chunk is not None:
                    yield chunk
                if chunk is not None and chunk.finish_reason is not None:
                    break
        finally:
            consort.note(answer.note(busy=[voice.name for voice in voices if voice.is_busy]))
            closings = [voice.close() for voice in voices]
        await asyncio.gather(*map(asyncio.wrap_future, closings))  # the next answer finds them free

    return strategy


def _heard_for(kind: Kind, guides: Sequence[Guide]) -> list[Guide]:
    """Those that a kind of mixture hears."""
    chosen = [guide for guide in guides if guide.share > 0]
    if kind not in ("tuned", "contrast"):
        return chosen
    found = [guide for guide in chosen if guide.base is not None]
    if chosen and not found:
        raise ModelError(
            f"a mixture of kind {kind} needs a small model as it was before its tuning",
            where="mix",
            hint="ask for kind mean or product, or give a proxy a share",
        )
    return found


async def _all_open(voices: list[_Voice]) -> None:
    """Every model reads the request. One that has no session free is not heard; without the writer there is
    no answer."""
    ends = await asyncio.gather(*(voice.open() for voice in voices), return_exceptions=True)
    for voice, end in zip(voices, ends, strict=True):
        if end is None:
            continue
        if voice is voices[0] or not isinstance(end, BusyError):
            raise end
        voice.silent = voice.is_busy = True


async def _all_follow(voices: list[_Voice], written: Written) -> bool:
    """Every model reads on; True where the writer's context is full. Its failures are raised, those of the
    others silence them."""
    ends = await asyncio.gather(*(voice.follow(written) for voice in voices), return_exceptions=True)
    if isinstance(ends[0], ContextFullError):
        return True
    if ends[0] is not None:
        raise ends[0]
    _silence(voices[1:], ends[1:])
    return False


async def _all_hear(voices: list[_Voice]) -> None:
    """Those with another tokenizer find out what they would say, among what those with the writer's do."""
    among = [voice.says for voice in voices if voice.same and voice.says is not None]
    across = [voice for voice in voices if not voice.same and not voice.silent]
    if across:
        ends = await asyncio.gather(*(voice.hear(among) for voice in across), return_exceptions=True)
        _silence(across, ends)


def _silence(voices: Sequence[_Voice], ends: Sequence[BaseException | None]) -> None:
    for voice, end in zip(voices, ends, strict=True):
        if isinstance(end, FAILURES):
            voice.silent, voice.says = True, None
        elif end is not None:
            raise end


@dataclass(frozen=True, slots=True)
class _Steering:
    """One guide's models, as far as the kind of mixture hears them."""

    name: str
    share: float
    tuned: _Voice | None
    base: _Voice | None

    @classmethod
    async def of(cls, guide: Guide, kind: Kind, request: Request, writer: Vocabulary) -> _Steering:
        async def voice(lm: LM) -> _Voice:
            return _Voice(await reached(lm, where="mix"), request, writer)

        if kind == "contrast" and guide.base is not None:
            return cls(guide.base.name, guide.share, None, await voice(guide.base))
        base = await voice(guide.base) if kind == "tuned" and guide.base is not None else None
        return cls(guide.tuned.name, guide.share, await voice(guide.tuned), base)

    @property
    def voices(self) -> list[_Voice]:
        return [voice for voice in (self.tuned, self.base) if voice is not None]

    def opinion(self) -> Opinion | None:
        if any(voice.says is None for voice in self.voices):
            return None
        tuned, base = (None if voice is None else voice.says for voice in (self.tuned, self.base))
        return Opinion(self.name, self.share, tuned, base)


class _Voice:
    """One model's session in a thread of its own, where what is asked is done in turn, and its closing last:
    a client that hangs up does not wait for the step under way."""

    def __init__(self, lm: TokenLM, request: Request, writer: Vocabulary) -> None:
        self._lm, self._request, self._writer = lm, request, writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mix")
        self._follower: Follower | None = None
        self.same = vocabulary_of(lm).sha256 == writer.sha256
        self.name = lm.name
        self.silent = False
        self.is_busy = False  # it was from the beginning, and so silent
        self.says: TopK | None = None  # next, in the writer's tokens; None where it cannot tell

    async def open(self) -> None:
        """Read the request."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def follow(self, written: Written) -> None:
        """Read the answer up to there; one with the writer's tokenizer then knows what it would say."""
        if not self.silent:
            assert self._follower is not None, "opened before"
            await asyncio.get_running_loop().run_in_executor(self._thread, self._follower.follow, written)
            self.says = self._follower.heard(()) if self.same else None

    async def hear(self, among: Sequence[TopK]) -> None:
        """Find out what it would say next, where those with the writer's tokenizer would say `among`."""
        assert self._follower is not None, "opened before"
        loop = asyncio.get_running_loop()
        self.says = await loop.run_in_executor(self._thread, self._follower.heard, among)

    def close(self) -> Future[None]:
        """Release the session when the thread has done what it is at."""
        closing = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        return closing

    def _open(self) -> None:
        self._follower = follower(self._lm, self._request, self._writer)

    def _close(self) -> None:
        if self._follower is not None:
            self._follower.close()
