"""A model on this machine as the rest of consort asks it: streamed answers, and sessions whose distributions
are read, whichever library computes them (`Decodable`).

Both are served by one engine, so what a session reads is what an answer is drawn from. Calls no tools. Holds
the weights that the model had when it was opened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol, TypeAlias

from consort.errors import ContextFullError, ModelError
from consort.models.decoding.batch import Batch, Network, Row, Token, top_k
from consort.models.decoding.drafting import Growing
from consort.models.decoding.engine import Engine, Listener
from consort.models.decoding.prompt import Reader, begun_text, prompt_ids
from consort.models.decoding.sampling import Logits, Sampling, float64
from consort.models.decoding.text import TextWriter
from consort.models.drafts import is_sound
from consort.types import Capability, Chunk, Draft, Request, TokenLogprob, TopK, Usage, Written

News: TypeAlias = "Chunk | Written | ModelError"
Heard: TypeAlias = "asyncio.Queue[News]"


class Decodable(Reader, Protocol):
    """A model that this machine can compute: `LocalModel`, `GgufModel`."""

    context_tokens: int

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens of which any ends an answer."""
        ...

    def open_network(self, *, slots: int, positions: int) -> Network:
        """Its weights, with a cache of `slots` texts of up to `positions` tokens each."""
        ...

    def enter_thread(self) -> None:
        """Called first in the thread that will compute."""
        ...

    def states_sha256(self) -> str:
        """Names the weights that make the hidden states its networks show; empty where they show none."""
        ...


class LocalLM:
    """A model on this machine (`types.TokenLM`).

    Up to `answers` requests are written at once, others wait; up to `sessions` are open at once. Memory is
    taken for both when it is opened: a cache of `context_tokens` each. `alternatives` is the K of a session's
    distributions, which `shows_states` gives the hidden states too, where the model has them to show.
    """

    capabilities: frozenset[Capability] = frozenset({"logprobs", "text_completion", "drafts"})

    def __init__(
        self,
        model: Decodable,
        *,
        answers: int = 8,
        sessions: int = 4,
        context_tokens: int = 4096,
        alternatives: int = 64,
        shows_states: bool = False,
    ) -> None:
        self.name, self.model, self.tokenizer = model.name, model, model.vocabulary
        self.context_tokens = min(context_tokens, model.context_tokens)
        self._alternatives, self._shows_states = alternatives, shows_states
        self._news: dict[asyncio.AbstractEventLoop, list[tuple[Heard, News]]] = {}
        self._closed = False

        def open_batch() -> Batch:
            network = model.open_network(slots=answers + sessions, positions=self.context_tokens)
            network.shows_states = shows_states
            return Batch(network, model.vocabulary)

        self._engine = Engine(
            open_batch, answers=answers, enter_thread=model.enter_thread, after_step=self._deliver
        )

    @property
    def states_sha256(self) -> str:
        """Names the weights that make its sessions' hidden states; empty where they show none."""
        return self.model.states_sha256() if self._shows_states else ""

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Answer piece by piece; ModelError where the request cannot be answered."""
        row = self._row(request)
        heard: Heard = asyncio.Queue()
        self._engine.write(row, self._listener(request, row, heard))
        try:
            while True:
                chunk = await heard.get()
                if isinstance(chunk, ModelError):
                    raise chunk
                assert isinstance(chunk, Chunk)
                yield chunk
                if chunk.finish_reason:
                    return
        finally:
            self._engine.drop(row)  # a client that hangs up frees its slot before the next token

    async def write(self, request: Request, *, after: Sequence[int] = ()) -> LocalWriting:
        """Begin to answer, or go on after an answer's first tokens, which are not written again."""
        row = self._row(request, after)
        heard: Heard = asyncio.Queue()
        loop, ends = asyncio.get_running_loop(), self.model.end_ids

        def listen(one: Token | ModelError) -> bool:
            if isinstance(one, ModelError):
                self._tell(loop, heard, one)
                return True
            ended = one.token in ends
            self._tell(loop, heard, Written(() if ended else (one.token,), "stop" if ended else one.finish))
            return ended

        prompt_tokens = len(row.unread) - len(after)
        self._engine.write(row, listen)
        return LocalWriting(
            self._engine, row, heard, prompt_tokens=prompt_tokens, vocabulary_size=self.tokenizer.size
        )

    def open(self, request: Request) -> tuple[LocalSession, TopK]:
        """Read the request; returns the session and the distribution of the first token of the answer."""
        session, logits = self.hold(request)
        return session, session.tops(logits.result()[None])[0]

    def hold(self, request: Request) -> tuple[LocalSession, Future[Logits]]:
        """A session that begins to read the request now: close it also if it is not waited for."""
        row = self._row(request)
        row.max_new_tokens = 0
        session = LocalSession(self._engine, row, alternatives=self._alternatives, limits=self._limits())
        return session, self._engine.hold(row)

    def close(self) -> None:
        """Stop the thread; answers under way end with an error."""
        self._closed = True
        self._engine.close()

    def _limits(self) -> tuple[int, int]:
        return self.model.vocabulary.size, self.context_tokens

    def _row(self, request: Request, after: Sequence[int] = ()) -> Row:
        """What the batch is to write; the one place where a request is refused."""
        if self._closed:
            raise ModelError("the model was closed", where=self.name)
        if request.tools and request.tool_choice != "none":
            raise ModelError(
                "this model calls no tools", where=self.name, hint="ask another model, or leave out `tools`"
            )
        if request.max_tokens < 1:
            raise ModelError("max_tokens must be at least 1", where=self.name)
        ids = prompt_ids(self.model, request)
        room = self.context_tokens - len(ids)
        if room < 1:
            raise ModelError(
                f"the prompt has {len(ids)} tokens, and the context is {self.context_tokens}",
                where=self.name,
                hint="shorten it: the answer needs room too",
            )
        max_new_tokens = min(request.max_tokens, room)
        if len(after) >= max_new_tokens or not all(0 <= token < self.tokenizer.size for token in after):
            raise ModelError("what is to be continued is no part of such an answer", where=self.name)
        return Row(
            [*ids, *after],
            max_new_tokens=max_new_tokens,
            written=list(after),
            sampling=Sampling.of(request),
            top_logprobs=request.top_logprobs,
        )

    def _listener(self, request: Request, row: Row, heard: Heard) -> Listener:
        """Turns tokens into chunks, in the worker's thread: a stop sequence ends the row before its next
        token."""
        text = TextWriter(self.tokenizer, stop=request.stop, beginning=not begun_text(request))
        prompt_tokens, loop = len(row.unread), asyncio.get_running_loop()
        ends = self.model.end_ids

        def listen(one: Token | ModelError) -> bool:
            if isinstance(one, ModelError):
                self._tell(loop, heard, one)
                return True
            ended = one.token in ends
            piece, logprobs = ("", ()) if ended else text.write(one.token, self._logprob(one))
            if (one.finish or ended) and not text.stopped:
                rest, further = text.end()
                piece, logprobs = piece + rest, logprobs + further
            if not (one.finish or ended or text.stopped):
                if piece:
                    self._tell(loop, heard, Chunk(piece, self.name, logprobs=logprobs))
                return False
            usage = Usage(prompt_tokens, len(row.written) - ended)
            finish = "stop" if text.stopped or ended else one.finish
            self._tell(loop, heard, Chunk(piece, self.name, finish, usage, logprobs))
            return True

        return listen

    def _logprob(self, one: Token) -> TokenLogprob | None:
        if one.logprob is None:
            return None
        return TokenLogprob(
            self._text(one.token), one.logprob, tuple((self._text(token), logp) for token, logp in one.top)
        )

    def _text(self, token: int) -> str:
        return (self.tokenizer.token_bytes[token] or b"").decode(errors="replace")

    def _tell(self, loop: asyncio.AbstractEventLoop, heard: Heard, news: News) -> None:
        self._news.setdefault(loop, []).append((heard, news))

    def _deliver(self) -> None:
        """Wake each event loop once a step, not once a token."""
        for loop, news in self._news.items():
            with contextlib.suppress(RuntimeError):  # a loop that was closed: nobody hears any more
                loop.call_soon_threadsafe(_put, news)
        self._news = {}


def _put(news: Sequence[tuple[Heard, News]]) -> None:
    for heard, one in news:
        heard.put_nowait(one)


class LocalWriting:
    """An answer under way in the engine (`types.Writing`)."""

    rtt_s = 0.0

    def __init__(
        self, engine: Engine, row: Row, heard: Heard, *, prompt_tokens: int, vocabulary_size: int
    ) -> None:
        self._engine, self._row, self._heard = engine, row, heard
        self._vocabulary_size = vocabulary_size
        self.prompt_tokens = prompt_tokens

    async def written(self) -> AsyncIterator[Written]:
        """The answer's tokens, all that a pass gave in one piece."""
        finish = None
        while finish is None:
            news = [await self._heard.get()]
            while not self._heard.empty():
                news.append(self._heard.get_nowait())
            ids: list[int] = []
            for one in news:
                if isinstance(one, ModelError):
                    raise one
                assert isinstance(one, Written)
                ids += one.ids
                finish = one.finish_reason
            yield Written(tuple(ids), finish)

    def draft(self, begins: int, draft: Draft) -> None:
        """Say what may come after the answer's first `begins` tokens. What is no draft is left out."""
        if is_sound(draft, self._vocabulary_size):
            self._engine.take(self._row, begins, draft)

    def pause_at(self, tokens: int | None) -> bool:
        """Write until the answer has so many tokens, and wait there; None: write on."""
        self._engine.pause_at(self._row, tokens)
        return True

    async def close(self) -> None:
        """Write no further."""
        self._engine.drop(self._row)


class LocalSession:
    """A text in the engine's cache (`types.Session`); used by one thread at a time."""

    def __init__(self, engine: Engine, row: Row, *, alternatives: int, limits: tuple[int, int]) -> None:
        self._engine, self._row, self._alternatives = engine, row, alternatives
        self._vocabulary_size, self._context_tokens = limits
        self.prompt_tokens = len(row.unread)
        self._text = list(row.unread)

    def extend(self, ids: Sequence[int]) -> list[TopK]:
        """Append ids; returns the next-token distribution after each of them."""
        if not ids:
            return []
        if not all(0 <= index < self._vocabulary_size for index in ids):
            raise ModelError(f"ids run from 0 to {self._vocabulary_size - 1}")
        if self._row.filled + len(ids) > self._context_tokens:
            raise ContextFullError(
                f"the session would be longer than its context of {self._context_tokens} tokens"
            )
        self._text[self._row.filled :] = ids
        logits: Future[Logits] = self._engine.extend(self._row, list(ids))
        return self.tops(logits.result())

    def tops(self, logits_TV: Logits) -> list[TopK]:
        """The distributions that the engine just answered with, and the states they are made from."""
        tops = [top_k(logits_V, self._alternatives) for logits_V in logits_TV]
        if self._row.states is None:
            return tops
        return [replace(top, state=state) for top, state in zip(tops, float64(self._row.states), strict=True)]

    def rewind(self, num_tokens: int) -> None:
        """Forget the last ids; not those of the request."""
        extended = self._row.filled - self.prompt_tokens
        if not 0 <= num_tokens <= extended:
            raise ModelError(f"cannot forget {num_tokens} of {extended} tokens")
        self._row.filled -= num_tokens

    def draft(self, answer: Sequence[int], growing: Growing) -> Future[Growing]:
        """Let a draft grow after the request and `answer`, of which only what is new is read; the session
        then holds this text. A draft that has no room stays empty."""
        text = self._text[: self.prompt_tokens] + list(answer)
        room = self._context_tokens - len(text)
        if growing.shape.depth * growing.shape.width > room:
            done: Future[Growing] = Future()
            done.set_result(growing)
            return done
        pairs = enumerate(zip(self._text[: self._row.filled], text[:-1], strict=False))
        common = next((place for place, (held, wanted) in pairs if held != wanted), None)
        self._row.filled = min(self._row.filled, len(text) - 1) if common is None else common
        self._text = text
        return self._engine.grow(self._row, text[self._row.filled :], growing)

    def close(self) -> None:
        """Release the cache."""
        self._engine.drop(self._row)
