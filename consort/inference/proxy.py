"""What the device's copy of the proxy thinks of the edge's answer: the cloud's opinion without the cloud.

The proxy was distilled from the cloud model and shares its tokenizer. It reads the answer in its own tokens,
in one pass, and is asked at every place where both tokenizers cut. Before there is an answer the roles are
exchanged: the proxy writes one, and the edge reads it. Who asks waits for a turn, at most half of the time
that the request has left: the other half is for whoever answers then. Does not decide.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from consort.align import Vocabulary
from consort.inference.evidence import Hear, ProxyView
from consort.inference.likeness import likeness
from consort.inference.reading import Reader
from consort.inference.streams import answer_of, collected
from consort.inference.white_box import vocabulary_of
from consort.types import Answer, Request, TokenLM, TopK

_LEAST = 1e-6  # probability of a token of which only the mass of all the rest is known, at the least


def proxy_agreement(
    proxy: TokenLM,
    edge: TokenLM | None = None,
    *,
    own_answer: bool = True,
    turns: asyncio.Semaphore | None = None,
) -> Hear:
    """Hears the proxy about an answer of the edge, or, before there is one, about the question. `own_answer`:
    the proxy also answers by itself, which costs an answer, to see how alike the two are. `turns`: how many
    may read at once, no more than the reader has sessions; None: one. TimeoutError where half of the
    request's time is over first."""
    turns = turns or asyncio.Semaphore(1)

    async def hear(request: Request, answer: Answer | None) -> ProxyView:
        left_s = None if request.until_s is None else max(0.0, request.until_s - time.monotonic())
        async with asyncio.timeout(None if left_s is None else left_s / 2):
            return await heard(request, answer)

    async def heard(request: Request, answer: Answer | None) -> ProxyView:
        greedy = replace(request, temperature=0.0, top_logprobs=None)
        own = ""
        if own_answer or answer is None:
            own = answer_of(await collected(proxy.stream(greedy))).text
        reader, writer = (proxy, edge) if answer is not None else (edge or proxy, proxy)
        text = own if answer is None else answer.text
        cuts = None if writer is None else vocabulary_of(writer)
        view = await _in_turn(turns, partial(read_by, reader, greedy, text, cuts))
        return replace(view, likeness=likeness(text, own) if own_answer or answer is None else view.share)

    return hear


async def _in_turn(turns: asyncio.Semaphore, read: Callable[[], ProxyView]) -> ProxyView:
    """A reading in a thread, which nobody can cancel: its turn is over when its session is closed, also where
    whoever asked has left."""
    await turns.acquire()
    reading = asyncio.ensure_future(asyncio.to_thread(read))
    reading.add_done_callback(lambda done: turns.release())
    return await asyncio.shield(reading)


def read_by(reader: TokenLM, request: Request, text: str, writer: Vocabulary | None) -> ProxyView:
    """One model's view of another's answer; `writer`: the tokenizer that wrote it, whose cuts alone count."""
    opened = Reader(reader, request)
    try:
        opened.read(text.encode())
        opened.look()
        starts, tops = opened.starts, opened.tops
        ids = [*opened.ids, opened.vocabulary.eos_id]
    finally:
        opened.close()
    shared = None if writer is None else {0, len(text.encode()), *writer.spans(text).ends.tolist()}
    agrees, logprobs = [], []
    for token, start, top in zip(ids, starts, tops, strict=True):
        logprobs.append(_logprob(top, token))
        if shared is None or start in shared:
            agrees.append(int(top.ids[int(np.argmax(top.logprobs))]) == token)
    return ProxyView(
        share=sum(agrees) / len(agrees),
        nats_per_byte=-sum(logprobs) / max(1, len(text.encode())),
        least=min(logprobs),
        likeness=0.0,
    )


def _logprob(top: TopK, token: int | None) -> float:
    found = np.flatnonzero(top.ids == token)
    return float(top.logprobs[found[0]]) if found.size else math.log(max(top.rest, _LEAST))
