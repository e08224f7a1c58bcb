"""The endpoint as an ASGI application: paths to functions, errors to OpenAI's error object, and nothing else.

Written against ASGI itself: ten fixed paths need no router, and each microsecond here is paid by every
request.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from consort.errors import AccessError, BusyError, ConsortError, LimitError, RequestError
from consort.gateway.answering import Form, Headers, Receive, Send, answer, known
from consort.gateway.dashboard import page
from consort.gateway.forms import Ollama, OpenAI
from consort.gateway.keys import LOCAL, Key
from consort.gateway.ollama import parse_chat, show, tags
from consort.gateway.openai_answer import error_object
from consort.gateway.openai_request import Asked, parse
from consort.gateway.openapi import description
from consort.gateway.overview import overview
from consort.gateway.parameters import Parameters, configured
from consort.gateway.service import OWN, Service, strategy_names
from consort.gateway.verifier import AsgiSocket, converse
from consort.gateway.warming import warm
from consort.types import Request

Scope = dict[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
JSON: Headers = [(b"content-type", b"application/json")]
HTML = (b"content-type", b"text/html; charset=utf-8")


def create_app(service: Service) -> App:
    """The application over everything it serves."""
    return _Gateway(service)


class _Gateway:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._defaults: Parameters = configured(service.config, alike=service.alike)
        config = service.config
        self._unsaid = Request((), max_tokens=config.max_tokens, temperature=config.temperature)
        self._origin = service.config.allow_origin.encode("latin-1", "replace")
        self._posts: dict[str, Callable[[bytes], tuple[Asked, type[OpenAI] | type[Ollama]]]] = {
            "/v1/chat/completions": lambda body: (self._openai(body, chat=True), OpenAI),
            "/v1/completions": lambda body: (self._openai(body, chat=False), OpenAI),
            "/api/chat": lambda body: (self._ollama(body), Ollama),
        }
        self._gets: dict[str, Callable[[], tuple[Headers, bytes]]] = {
            "/v1/models": self._models,
            "/metrics": self._metrics,
            "/overview": lambda: (JSON, orjson.dumps(overview(service), default=str)),
            "/api/tags": lambda: (JSON, orjson.dumps(tags(service))),
        }
        if service.pool is not None:
            tokenizer = service.pool.vocabulary.to_json().encode()
            self._gets["/v1/tokenizer"] = lambda: (JSON, tokenizer)
        self._open: dict[str, Callable[[], tuple[Headers, bytes]]] = {  # without a key
            "/health": lambda: (JSON, b'{"status":"ok"}'),
            "/api/version": lambda: (
                JSON,
                b'{"version":"0.6.0"}',
            ),  # of the API that Ollama's clients ask for
            "/openapi.json": self._description,
            "/": self._dashboard,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await self._sessions(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            await self._request(scope, receive, send)
        except Exception as error:
            await self._failed(known(error), scope, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        parse_body = self._posts.get(path)
        if parse_body is not None and method == "POST":
            key = self._enter(scope)
            asked, form = parse_body(await self._body(receive))
            exchange = self._service.begin(asked, key)
            shape: Form = form(exchange)
            await answer(exchange, shape, receive, send, self._cors())
            return
        if path == "/api/show" and method == "POST":
            self._enter(scope)
            told = orjson.dumps(show(self._service, await self._body(receive)))
            await self._plain(send, 200, JSON, told)
            return
        shown = self._gets.get(path) or self._open.get(path) or self._model(path)
        if method == "OPTIONS" and (shown or parse_body):
            await self._preflight(send)
        elif shown is None and parse_body is None:
            raise _status(
                404, RequestError("nothing is served here", where=path[:100], hint="see /v1/models")
            )
        elif shown is None or method not in ("GET", "HEAD"):
            raise _status(405, RequestError(f"only {self._allowed(path)} is served here", where=path[:100]))
        else:
            if path not in self._open:
                self._enter(scope)
            headers, body = shown()
            await self._plain(send, 200, headers, body, is_shown=method == "GET")

    def _allowed(self, path: str) -> str:
        return "POST" if path in self._posts else "GET, HEAD"

    async def _sessions(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A drafter's connection; closed before it is open where it may not be."""
        await receive()
        pool = self._service.pool
        try:
            if pool is None or scope["path"] != "/v1/sessions":
                raise _status(404, RequestError("no sessions here", hint="consort serve --role cloud"))
            key = self._enter(scope)
        except ConsortError:
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "websocket.accept"})
        await converse(AsgiSocket(receive, send), pool, key)

    # ---- what is asked

    def _enter(self, scope: Scope) -> Key:
        """Who asks. Where no key is needed, no other site's page may ask through a visitor's browser."""
        given = origin = host = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                given = value
            elif name == b"origin":
                origin = value
            elif name == b"host":
                host = value
        key = self._service.door.enter(given)
        if key is LOCAL and origin and origin.rpartition(b"//")[2] != host and origin != self._origin:
            hint = "set serve.allow_origin to the page's origin"
            raise _status(403, AccessError("pages of other sites may not ask here", hint=hint))
        return key

    async def _body(self, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(self._service.config.deadline_s):
                return await self._whole_body(receive)
        except TimeoutError:
            raise _status(408, RequestError("the request did not come whole in time")) from None

    async def _whole_body(self, receive: Receive) -> bytes:
        limit = self._service.config.max_body_kb << 10
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("the client left before its request was whole")
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > limit:
                raise _status(413, RequestError(f"the request is larger than {limit >> 10} kB"))
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _openai(self, body: bytes, *, chat: bool) -> Asked:
        return parse(body, chat=chat, defaults=self._defaults, unsaid=self._unsaid)

    def _ollama(self, body: bytes) -> Asked:
        return parse_chat(body, defaults=self._defaults, unsaid=self._unsaid)

    # ---- what is shown

    def _dashboard(self) -> tuple[Headers, bytes]:
        html, policy = page()
        return [HTML, (b"content-security-policy", policy)], html

    def _models(self) -> tuple[Headers, bytes]:
        rows = [self._model_row(name) for name in self._service.names()]
        return JSON, orjson.dumps({"object": "list", "data": rows})

    def _model(self, path: str) -> Callable[[], tuple[Headers, bytes]] | None:
        name = path.removeprefix("/v1/models/")
        if name == path or name not in self._service.names():
            return None
        return lambda: (JSON, orjson.dumps(self._model_row(name)))

    def _model_row(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": int(self._service.started_s), "owned_by": OWN}

    def _description(self) -> tuple[Headers, bytes]:
        service = self._service
        # read without a key: then also what is served may only be told where nobody needs one
        names = service.names() if service.door.is_open() else strategy_names()
        return JSON, orjson.dumps(description(names, sessions=service.pool is not None))

    def _metrics(self) -> tuple[Headers, bytes]:
        text = self._service.meters.text(self._service.gauges, self._service.in_flight)
        return [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], text.encode()

    # ---- how it is sent

    def _cors(self) -> Headers:
        if not self._origin:
            return []
        return [(b"access-control-allow-origin", self._origin), (b"vary", b"origin")]

    async def _preflight(self, send: Send) -> None:
        allowed = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", b"authorization, content-type"),
        ]
        await self._plain(send, 204, allowed if self._origin else [], b"")

    async def _failed(self, error: ConsortError, scope: Scope, send: Send) -> None:
        is_ollama = scope["path"].startswith("/api/")
        body = orjson.dumps({"error": str(error)}) if is_ollama else error_object(error)
        more: Headers = [(b"www-authenticate", b"Bearer")] if error.http_status == 401 else []
        if error.http_status == 405:
            more.append((b"allow", self._allowed(scope["path"]).encode()))
        if error.http_status in (408, 413):  # the rest of the request is not read
            more.append((b"connection", b"close"))
        if error.http_status in (429, 503):
            retry_s = error.retry_s if isinstance(error, LimitError | BusyError) else LimitError.retry_s
            more.append((b"retry-after", b"%d" % retry_s))
        await self._plain(send, error.http_status, JSON + more, body)

    async def _plain(
        self, send: Send, status: int, headers: Headers, body: bytes, *, is_shown: bool = True
    ) -> None:
        told = [*headers, (b"content-length", b"%d" % len(body)), *self._cors()]
        told.append((b"x-content-type-options", b"nosniff"))
        await send({"type": "http.response.start", "status": status, "headers": told})
        await send({"type": "http.response.body", "body": body if is_shown else b""})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Starting warms the edges, the rest is done before; stopping gives connections and ledger back."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await warm(self._service)
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await close(self._service)
                await send({"type": "lifespan.shutdown.complete"})
                return


async def close(service: Service) -> None:
    """Give back what the service holds: the labeller, the models' connections, the ledger."""
    if service.shadow is not None:
        await service.shadow.close()
    bases = [guide.base for guide in service.guides if guide.base is not None]  # the tuned ones are served
    for lm in (*service.models, *((service.proxy,) if service.proxy else ()), *bases):
        if hasattr(lm, "close"):
            with contextlib.suppress(ConsortError):
                closed = lm.close()  # of an endpoint in the event loop, of a local model in its thread
                if inspect.isawaitable(closed):
                    await closed
    service.ledger.close()


def _status(status: int, error: ConsortError) -> ConsortError:
    error.http_status = status
    return error
