"""Mixture: the large model writes, and small ones that read along move its next-token distribution.

Proxy-tuning (arXiv 2401.08565): `llm + a * (tuned - base)` gives a large model what its proxy was tuned to,
and leaves its weights alone; also a product and an average of two models, and contrastive decoding (arXiv
2210.15097). Every model is one session; all read a token at the same time, as each may be far away. The LLM's
tokens are written whatever the tokenizers of the others (`following`). Noise is the project's: with weight 0
the answer is the LLM's own with that seed. Where a small model fails in the middle, the LLM goes on alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from consort.align import Vocabulary
from consort.errors import ContextFullError
from consort.inference.following import Follower, Written, follower
from consort.inference.mixed_answer import MixedAnswer
from consort.inference.mixing_weights import Kind, Weight
from consort.inference.single import FAILURES, cloud_of, refuse_lacking
from consort.inference.white_box import reached, vocabulary_of
from consort.types import LM, Chunk, Consort, Request, Strategy, TokenLM, TopK


@dataclass(frozen=True, slots=True)
class Guides:
    """Small models that steer: one tuned to what the answers need, and the same before it was."""

    tuned: LM
    base: LM

    def of(self, kind: Kind) -> tuple[LM, ...]:
        """Those that a kind of mixture hears."""
        if kind == "tuned":
            return self.tuned, self.base
        return (self.base,) if kind == "contrast" else (self.tuned,)


def mix(guides: Guides, *, kind: Kind, weight: Weight) -> Strategy:
    """The cloud's model writes, steered by the guides."""

    async def strategy(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        llm, *small = [await reached(lm, where="mix") for lm in (cloud_of(consort), *guides.of(kind))]
        refuse_lacking(llm, request)
        models = (llm, *small)
        voices = [_Voice(model, request, vocabulary_of(llm)) for model in models]
        answer = MixedAnswer(request, models[:2], kind=kind, weight=weight)
        try:
            await asyncio.gather(*(voice.open() for voice in voices))
            while True:
                own = voices[0].heard(None)
                assert own is not None, "a writer hears itself"
                chunk = answer.write(own, [voice.heard(own) for voice in voices[1:]])
                if chunk is not None:
                    yield chunk
                if chunk is not None and chunk.finish_reason is not None:
                    break
                if await _all_follow(voices, answer.written):
                    yield answer.cut_short()
                    break
        finally:
            consort.note(answer.note())
            closings = [voice.close() for voice in voices]
        await asyncio.gather(*map(asyncio.wrap_future, closings))  # the next answer finds them free

    return strategy


async def _all_follow(voices: list[_Voice], written: Written) -> bool:
    """Every model reads on; True where the writer's context is full. Its failures are raised, those of the
    others silence them."""
    ends = await asyncio.gather(*(voice.follow(written) for voice in voices), return_exceptions=True)
    if isinstance(ends[0], ContextFullError):
        return True
    for voice, end in zip(voices, ends, strict=True):
        if isinstance(end, FAILURES) and voice is not voices[0]:
            voice.silent = True
        elif end is not None:
            raise end
    return False


class _Voice:
    """One model's session in a thread of its own, where what is asked is done in turn, and its closing last:
    a client that hangs up does not wait for the step under way."""

    def __init__(self, lm: TokenLM, request: Request, writer: Vocabulary) -> None:
        self._lm, self._request, self._writer = lm, request, writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mix")
        self._follower: Follower | None = None
        self.silent = False

    async def open(self) -> None:
        """Read the request."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def follow(self, written: Written) -> None:
        """Read the answer up to there."""
        if not self.silent:
            assert self._follower is not None, "opened before"
            await asyncio.get_running_loop().run_in_executor(self._thread, self._follower.follow, written)

    def heard(self, writer: TopK | None) -> TopK | None:
        """What the model would say next, in the writer's tokens; None where it cannot tell."""
        assert self._follower is not None, "opened before"
        return None if self.silent else self._follower.heard(writer)

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
