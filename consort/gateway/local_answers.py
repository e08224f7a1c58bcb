"""A model on this machine as an LM: one token at a time, one request's token after another's.

Every model shares one thread, so requests take turns token by token. Does not batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from consort.config import RuntimeConfig
from consort.config_serve import ServedModel
from consort.errors import RequestError
from consort.types import Capability, Chunk, Request, Usage

if TYPE_CHECKING:
    from consort.models.local import LocalModel

ARITHMETIC = ThreadPoolExecutor(1, thread_name_prefix="decode")


def open_local(model: ServedModel, runtime: RuntimeConfig) -> LocalAnswers:
    """Load it, with its adapter."""
    from consort.training.tuned import load_tuned

    adapter = Path(model.adapter) if model.adapter else None
    return LocalAnswers(model.name, load_tuned(model.model, adapter=adapter, runtime=runtime))


class LocalAnswers:
    """An LM over a loaded model."""

    capabilities: frozenset[Capability] = frozenset({"text_completion"})

    def __init__(self, name: str, model: LocalModel) -> None:
        self.name = name
        self._model = model

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer piece by piece; what may begin a stop sequence waits until it is known not to."""
        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(ARITHMETIC, self._ids, request)
        pieces = self._pieces(ids, request)
        shown, text, stopped = 0, "", False
        while (
            not stopped and (piece := await loop.run_in_executor(ARITHMETIC, next, pieces, None)) is not None
        ):
            text += piece
            ends = [end for stop in request.stop if (end := text.find(stop)) >= 0]
            stopped = bool(ends)
            safe = min(ends) if ends else len(text) - _may_begin_a_stop(text, request.stop)
            if safe > shown:
                yield Chunk(text[shown:safe], self.name)
                shown = safe
        rest = "" if stopped else text[shown:]
        written = len(self._model.vocabulary.encode(text))
        finish = "length" if not stopped and written >= request.max_tokens else "stop"
        yield Chunk(rest, self.name, finish, Usage(len(ids), written))  # type: ignore[arg-type]

    def _ids(self, request: Request) -> list[int]:
        from consort.training.data import Sample, prompt_ids

        room = self._model.context_tokens - request.max_tokens
        if room < 1:
            hint = f"its context is {self._model.context_tokens} tokens"
            raise RequestError("max_tokens leaves no room for a question", where=self.name, hint=hint)
        if request.prompt is not None:
            ids = self._model.vocabulary.encode(request.prompt)
        else:
            turns, begun = request.messages, ""
            if turns[-1].role == "assistant":  # to be continued
                turns, begun = turns[:-1], turns[-1].content
            ids = [*prompt_ids(Sample(turns, None), self._model), *self._model.vocabulary.encode(begun)]
        if not ids:
            raise RequestError("an empty prompt cannot be continued", where=self.name)
        return ids[-room:]

    def _pieces(self, ids: list[int], request: Request) -> Iterator[str]:
        from consort.training.stream import stream_text

        return stream_text(
            self._model,
            ids,
            max_new_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed or 0,
        )


def _may_begin_a_stop(text: str, stops: tuple[str, ...]) -> int:
    """How many of the last characters may be the beginning of a stop sequence."""
    return max(
        (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
    )
