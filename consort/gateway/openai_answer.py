"""Chunks as OpenAI's answers, whole or as server-sent events; errors as OpenAI's error object.

`model` names who wrote: in a stream each event's author, in a whole answer the author or, of several, what
was asked for. What never changes between two events of one author is encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from consort.errors import ConsortError, ParameterError
from consort.inference.streams import answer_of
from consort.types import Chunk, TokenLogprob, Usage

DONE = b"data: [DONE]\n\n"
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(slots=True)
class Events:
    """One answer's events. `chat` is the form: a conversation's deltas, or a text's."""

    id: str
    created: int
    chat: bool
    _heads: dict[str, bytes] = field(default_factory=dict)
    _began: bool = False

    def event(self, chunk: Chunk) -> bytes:
        """One chunk as an event."""
        head = self._heads.get(chunk.model) or self._head(chunk.model)
        text = orjson.dumps(chunk.text)
        is_usual = not (
            chunk.logprobs or chunk.tool_calls or chunk.finish_reason or chunk.anew or chunk.struck
        )
        if self._began and is_usual:
            tail = (
                b'},"logprobs":null,"finish_reason":null}]}\n\n'
                if self.chat
                else (b',"logprobs":null,"finish_reason":null}]}\n\n')
            )
            return head + text + tail
        return self._unusual(chunk, head, text)

    def last(self, model: str, usage: Usage | None, receipt: Mapping[str, Any] | None) -> bytes:
        """What was asked for beside the answer, after its end; nothing where nothing was."""
        if usage is None and receipt is None:
            return b""
        body: dict[str, Any] = {
            "id": self.id,
            "object": _object(self.chat, stream=True),
            "created": self.created,
            "model": model,
            "choices": [],
        }
        if usage is not None:
            body["usage"] = _usage(usage)
        if receipt is not None:
            body["consort"] = {"receipt": receipt}
        return b"data: " + orjson.dumps(body, default=str) + b"\n\n"

    def _head(self, author: str) -> bytes:
        name = orjson.dumps(author)
        opening = b'"delta":{"content":' if self.chat else b'"text":'
        head = b'data: {"id":"%s","object":"%s","created":%d,"model":%s,"choices":[{"index":0,%s' % (
            self.id.encode(), _object(self.chat, stream=True).encode(), self.created, name, opening,
        )  # fmt: skip
        self._heads[author] = head
        return head

    def _unusual(self, chunk: Chunk, head: bytes, text: bytes) -> bytes:
        delta = b""
        if self.chat:
            delta = b"" if self._began else b',"role":"assistant"'
            if chunk.tool_calls:
                delta += b',"tool_calls":' + orjson.dumps([_call(c, indexed=True) for c in chunk.tool_calls])
            delta += b"}"
        self._began = True
        logprobs = orjson.dumps(_logprobs(chunk.logprobs, chat=self.chat))
        finish = orjson.dumps(chunk.finish_reason)
        own = {"anew": True} if chunk.anew else {"struck": chunk.struck} if chunk.struck else None
        ours = b',"consort":' + orjson.dumps(own) if own else b""
        return b"".join(
            (
                head,
                text,
                delta,
                b',"logprobs":',
                logprobs,
                b',"finish_reason":',
                finish,
                b"}]",
                ours,
                b"}\n\n",
            )
        )


def whole(
    chunks: Sequence[Chunk],
    *,
    id: str,
    created: int,
    model: str,
    chat: bool,
    usage: Usage,
    receipt: Mapping[str, Any] | None,
) -> bytes:
    """A whole answer."""
    answer = answer_of(chunks)
    calls = joined_calls(chunks)
    choice: dict[str, Any] = {"index": 0, "finish_reason": chunks[-1].finish_reason if chunks else "stop"}
    if chat:
        choice["message"] = {"role": "assistant", "content": answer.text or (None if calls else "")}
        if calls:
            choice["message"]["tool_calls"] = calls
    else:
        choice["text"] = answer.text
    choice["logprobs"] = _logprobs(answer.logprobs, chat=chat)
    body = {
        "id": id,
        "object": _object(chat, stream=False),
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": _usage(usage),
    }
    if receipt is not None:
        body["consort"] = {"receipt": receipt}
    return orjson.dumps(body, default=str)


def error_object(error: ConsortError) -> bytes:
    """OpenAI's error object: what happened, where, what to do, in one message."""
    place = f"{error.where}: " if error.where else ""
    hint = f" ({error.hint})" if error.hint else ""
    of_others = "server_error" if error.http_status >= 500 else "invalid_request_error"
    body = {
        "message": f"{place}{error.what}{hint}",
        "type": TYPES.get(error.http_status, of_others),
        "param": error.where if isinstance(error, ParameterError) else None,
        "code": error.code,
    }
    return orjson.dumps({"error": body})


def joined_calls(chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
    """The tool calls of an answer, their pieces put together."""
    joined: dict[int, dict[str, Any]] = {}
    for piece in (call for chunk in chunks for call in chunk.tool_calls):
        if piece.index in joined:
            joined[piece.index]["function"]["arguments"] += piece.arguments
        else:
            joined[piece.index] = _call(piece, indexed=False)
    return [joined[index] for index in sorted(joined)]


def _call(call: Any, *, indexed: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"index": call.index} if indexed else {}
    function = {"arguments": call.arguments} | ({"name": call.name} if call.name or not indexed else {})
    return (
        body
        | ({"id": call.id, "type": "function"} if call.id or not indexed else {})
        | {"function": function}
    )


def _logprobs(tokens: Sequence[TokenLogprob], *, chat: bool) -> dict[str, Any] | None:
    if not tokens:
        return None
    if not chat:
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
            "text_offset": [],
        }
    return {
        "content": [
            {
                **_token(token.token, token.logprob),
                "top_logprobs": [_token(text, logprob) for text, logprob in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _object(chat: bool, *, stream: bool) -> str:
    if not chat:
        return "text_completion"
    return "chat.completion.chunk" if stream else "chat.completion"
