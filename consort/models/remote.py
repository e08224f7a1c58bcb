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

import aiohttp
import orjson

from consort.errors import ConsortError, RequestError, UpstreamError
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
MAX_LINE_BYTES = 4 << 20  # a line that never ends is no answer
MAX_RETRY_AFTER_S = 5.0  # an endpoint that asks for more is one that failed
FAREWELL_S = 0.05


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
        self._session: aiohttp.ClientSession | None = None
        base = endpoint.base_url.rstrip("/")
        self._chat_url, self._text_url = f"{base}/chat/completions", f"{base}/completions"

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The endpoint's answer as it comes; leaving early closes the connection and frees the endpoint."""
        url, body = (
            (self._chat_url, chat_body(request, self._endpoint.model))
            if request.prompt is None
            else (self._text_url, text_body(request, self._endpoint.model))
        )
        response = await self._opened(url, body)
        try:
            async for chunk in self._chunks(response):
                yield chunk
        except NotAnAnswerError as error:
            raise self._failed(f"sent what is no answer: {error}") from None
        except TimeoutError:
            raise self._failed(f"was silent for {self._endpoint.silence_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._failed(f"broke off its answer ({type(error).__name__})") from None
        finally:
            response.close()  # a connection that was read to its end is in the pool already

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # ---- one request

    async def _opened(self, url: str, body: bytes) -> aiohttp.ClientResponse:
        """The response, its headers read: tried again while nothing of an answer was seen."""
        for attempt in range(1, self._endpoint.attempts + 1):
            wait_s = self._rng.uniform(0, self._endpoint.backoff_s * 2 ** (attempt - 1))
            try:
                response = await self._pool().post(url, data=body, allow_redirects=False)
            except TimeoutError:
                failure: ConsortError = self._failed("did not answer in time")
            except (aiohttp.ClientError, OSError) as error:
                failure = self._failed(f"cannot be reached ({type(error).__name__})")
            except ValueError:  # aiohttp's word for an address that is none
                raise self._failed("has no usable base_url") from None
            else:
                if response.status == 200:
                    return response
                failure = await self._refused(response)
                if response.status not in RETRIED:
                    break
                wait_s = max(wait_s, _retry_after_s(response))
            if attempt < self._endpoint.attempts:
                await asyncio.sleep(wait_s)
        raise failure

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self._endpoint.key:
                headers["Authorization"] = f"Bearer {self._endpoint.key}"
            self._session = aiohttp.ClientSession(
                headers=headers,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._endpoint.connect_s, sock_read=self._endpoint.silence_s
                ),
            )
        return self._session

    async def _refused(self, response: aiohttp.ClientResponse) -> ConsortError:
        """A status that is no answer as one of our errors, in the endpoint's words where they are safe."""
        try:
            said = _message(await response.content.read(4096)) if response.status in OURS else ""
        except (aiohttp.ClientError, TimeoutError, OSError):
            said = ""
        finally:
            response.close()
        if response.status in OURS:
            key = self._endpoint.key
            said = said.replace(key, "…") if key else said
            return RequestError(f"refused the request: {said or response.status}", where=self.name)
        if response.status in (401, 403):
            return self._failed("refused our key", hint="check the variable that key_env names")
        if response.status == 404:
            return self._failed(
                f"knows no model {self._endpoint.model!r} at this address", hint="check model and base_url"
            )
        return self._failed(f"answered {response.status}")

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[Chunk]:
        name = self.name
        if not response.content_type.endswith("event-stream"):  # an endpoint that cannot stream
            answer = chunk_of(await response.read(), name)
            yield answer if answer.finish_reason else ended_by(answer, Chunk("", name, "stop"))
            return
        last: Chunk | None = None  # what ends the answer; the usage comes after it
        rest = b""
        while received := await response.content.readany():
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
        if last is None:
            raise self._failed("ended its stream in the middle of the answer")
        yield last
        await _read_to_the_end(response)

    def _failed(self, what: str, *, hint: str = "") -> UpstreamError:
        return UpstreamError(what, where=self.name, hint=hint)


async def _read_to_the_end(response: aiohttp.ClientResponse) -> None:
    """What follows the answer is nothing, but only a connection read to its end can be used again."""
    if not response.content.at_eof():
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
            await asyncio.wait_for(response.content.readany(), FAREWELL_S)


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), MAX_RETRY_AFTER_S) if asked.isdecimal() else 0.0


def _message(body: bytes) -> str:
    """The words of an OpenAI error object, short; empty where there is none."""
    try:
        said = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
    return str(said)[:300]
