"""Any OpenAI-compatible endpoint as a model: vLLM, Ollama, llama.cpp's server, commercial APIs.

Tries again, with full jitter, only before the first byte of an answer; after it a failure is an
UpstreamError, and what to do then is a strategy's part (`inference.takeover`). One connection pool a model.
The key travels in one header and is never part of an error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random

import orjson

from consort.errors import ConsortError, RequestError, UnreachableError, UpstreamError
from consort.models.connections import BrokenError, Connection, Pool, unreached
from consort.models.openai_stream import (
    NotAnAnswerError,
    chat_body,
    chunk_of,
    chunks_of,
    ended_by,
    lines_of,
    text_body,
)
from consort.types import Capability, Chunk, Request

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
OURS = frozenset({400, 413, 422})  # the request itself was refused: whoever sent it can mend it
EVERYTHING: frozenset[Capability] = frozenset({"logprobs", "tools", "text_completion"})
CHAT, TEXT = "/chat/completions", "/completions"
MAX_LINE_BYTES = 4 << 20  # a line that never ends is no answer
MAX_RETRY_AFTER_S = 5.0  # an endpoint that asks for more is one that failed
MAX_ANSWER_BYTES = 64 << 20  # of an endpoint that answers whole
MAX_REFUSAL_BYTES = 64 << 10
FAREWELL_S = 0.05  # for the end of a stream whose answer is whole


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model answers, and how long we wait for it."""

    name: str  # what it is called here
    base_url: str  # up to and with /v1
    model: str  # what it is called there
    key: str = field(default="", repr=False)
    connect_s: float = 5.0
    silence_s: float = 60.0  # between two bytes, the first included
    attempts: int = 3  # before the first byte
    backoff_s: float = 0.25  # doubled each time, drawn between 0 and that
    capabilities: frozenset[Capability] = EVERYTHING


class Remote:
    """An LM over HTTP. `close` gives the connections back; the pool opens with the first request."""

    def __init__(self, endpoint: Endpoint, *, rng: Random | None = None) -> None:
        self.name = endpoint.name
        self.capabilities = endpoint.capabilities
        self._endpoint = endpoint
        self._rng = rng or Random()
        self._pool: Pool | None = None

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The endpoint's answer as it comes; leaving early closes the connection and frees the endpoint."""
        path, body = (
            (CHAT, chat_body(request, self._endpoint.model))
            if request.prompt is None
            else (TEXT, text_body(request, self._endpoint.model))
        )
        connection = await self._answering(path, body)
        try:
            async for chunk in self._chunks(connection):
                yield chunk
        except NotAnAnswerError as error:
            raise self._failed(f"sent what is no answer: {error}") from None
        except TimeoutError:
            raise self._failed(f"was silent for {self._endpoint.silence_s:g} s") from None
        except (BrokenError, OSError):
            raise self._failed("broke off its answer") from None
        finally:
            connection.release()

    async def close(self) -> None:
        """Close every connection."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    # ---- one request

    async def _answering(self, path: str, body: bytes) -> Connection:
        """The connection, its headers read: tried again while nothing of an answer was seen."""
        is_sent = False
        for attempt in range(1, self._endpoint.attempts + 1):
            wait_s = self._rng.uniform(0, self._endpoint.backoff_s * 2 ** (attempt - 1))
            try:
                connection = await self._opened().post(path, body)
            except (BrokenError, OSError) as error:
                # where no connection came about, nothing was sent
                is_sent |= isinstance(error, BrokenError | TimeoutError)
                what = unreached(error)
                failure: ConsortError = (
                    self._failed(what) if is_sent else UnreachableError(what, where=self.name)
                )
            else:
                if connection.status == 200:
                    return connection
                is_sent = True
                failure = await self._refused(connection)
                if connection.status not in RETRIED:
                    break
                wait_s = max(wait_s, _retry_after_s(connection))
            if attempt < self._endpoint.attempts:
                await asyncio.sleep(wait_s)
        raise failure

    def _opened(self) -> Pool:
        end = self._endpoint
        if self._pool is None:
            try:
                self._pool = Pool(end.base_url, key=end.key, connect_s=end.connect_s, silence_s=end.silence_s)
            except ValueError:
                raise self._failed("has no usable base_url or key") from None
        return self._pool

    async def _refused(self, connection: Connection) -> ConsortError:
        """A status that is no answer as one of our errors, in the endpoint's words where they are safe."""
        status = connection.status
        try:
            said = _message(await connection.all(MAX_REFUSAL_BYTES)) if status in OURS else ""
        except (BrokenError, TimeoutError, OSError):
            said = ""
        finally:
            connection.release()
        if status in OURS:
            key = self._endpoint.key
            said = said.replace(key, "…") if key else said
            return RequestError(f"refused the request: {said or status}", where=self.name)
        if status in (401, 403):
            return self._failed("refused our key", hint="check the variable that key_env names")
        if status == 404:
            return self._failed(
                f"knows no model {self._endpoint.model!r} at this address", hint="check model and base_url"
            )
        return self._failed(f"answered {status}")

    async def _chunks(self, connection: Connection) -> AsyncIterator[Chunk]:
        name = self.name
        if b"event-stream" not in connection.headers.get(b"content-type", b"").lower():
            answer = chunk_of(await connection.all(MAX_ANSWER_BYTES), name)  # an endpoint that cannot stream
            yield answer if answer.finish_reason else ended_by(answer, Chunk("", name, "stop"))
            return
        last: Chunk | None = None  # what ends the answer; the usage comes after it
        rest = b""
        try:
            while received := await connection.some():
                lines, rest, done = lines_of(rest + received if rest else received)
                for chunk in chunks_of(lines, name):
                    if last is not None:
                        last = ended_by(chunk, last)
                    elif chunk.finish_reason is not None:
                        last = chunk
                    else:
                        yield chunk
                if done:
                    break
                if len(rest) > MAX_LINE_BYTES:
                    raise NotAnAnswerError("a line without an end")
        except (NotAnAnswerError, BrokenError, OSError):
            if last is None:
                raise
            # the answer is whole: only what would have followed it is missing
        if last is None:
            raise self._failed("ended its stream in the middle of the answer")
        yield last
        await _read_to_the_end(connection)

    def _failed(self, what: str, *, hint: str = "") -> UpstreamError:
        return UpstreamError(what, where=self.name, hint=hint)


async def _read_to_the_end(connection: Connection) -> None:
    """What follows the answer is nothing, but only a connection read to its end can be used again."""
    if not connection.is_ended:
        with contextlib.suppress(TimeoutError, BrokenError, OSError):
            async with asyncio.timeout(FAREWELL_S):
                await connection.some()


def _retry_after_s(connection: Connection) -> float:
    asked = connection.headers.get(b"retry-after", b"")
    return min(float(asked), MAX_RETRY_AFTER_S) if asked.isdigit() else 0.0


def _message(body: bytes) -> str:
    """The words of an OpenAI error object, short; empty where there is none."""
    try:
        said = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
    return str(said)[:300]
