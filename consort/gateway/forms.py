"""The two ways an answer looks: OpenAI's events and objects, Ollama's lines."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson

from consort.errors import ConsortError
from consort.gateway.exchange import Exchange
from consort.gateway.openai_answer import DONE, Events, error_object, joined_calls, whole
from consort.types import Chunk


class OpenAI:
    """Server-sent events, ended by [DONE]."""

    content_type = b"text/event-stream; charset=utf-8"

    def __init__(self, exchange: Exchange) -> None:
        self._events = Events(exchange.id, int(exchange.at), exchange.asked.chat)

    def event(self, chunk: Chunk) -> bytes:
        """One chunk."""
        return self._events.event(chunk)

    def end(self, exchange: Exchange, told: dict[str, Any] | None) -> bytes:
        """Usage and receipt where they were asked for, and the end."""
        usage = exchange.counted() if exchange.asked.include_usage else None
        return self._events.last(exchange.author(), usage, told) + DONE

    def failed(self, error: ConsortError) -> bytes:
        """The error object as an event, and the end."""
        return b"data: " + error_object(error) + b"\n\n" + DONE

    def whole(self, chunks: tuple[Chunk, ...], exchange: Exchange, told: dict[str, Any] | None) -> bytes:
        """One object."""
        return whole(
            chunks,
            id=exchange.id,
            created=int(exchange.at),
            model=exchange.author(),
            chat=exchange.asked.chat,
            usage=exchange.counted(),
            receipt=told,
        )


class Ollama:
    """A JSON object a line, the last with `done`."""

    content_type = b"application/x-ndjson"

    def __init__(self, exchange: Exchange) -> None:
        self._created = datetime.fromtimestamp(exchange.at, UTC).isoformat().replace("+00:00", "Z")
        self._finish = "stop"

    def event(self, chunk: Chunk) -> bytes:
        """One chunk; its calls whole, as Ollama's clients expect them."""
        if chunk.finish_reason:
            self._finish = chunk.finish_reason
        if not chunk.text and not chunk.tool_calls:
            return b""
        return orjson.dumps(self._line(chunk.model, chunk.text, (chunk,), done=False)) + b"\n"

    def end(self, exchange: Exchange, told: dict[str, Any] | None) -> bytes:
        """The line that ends the answer."""
        return orjson.dumps(self._last(exchange, "", (), told)) + b"\n"

    def failed(self, error: ConsortError) -> bytes:
        """Ollama's error, a text."""
        return orjson.dumps({"error": str(error)}) + b"\n"

    def whole(self, chunks: tuple[Chunk, ...], exchange: Exchange, told: dict[str, Any] | None) -> bytes:
        """One object."""
        self._finish = chunks[-1].finish_reason or "stop" if chunks else "stop"
        return orjson.dumps(self._last(exchange, "".join(chunk.text for chunk in chunks), chunks, told))

    def _last(
        self, exchange: Exchange, text: str, chunks: tuple[Chunk, ...], told: dict[str, Any] | None
    ) -> dict[str, Any]:
        usage = exchange.counted()
        assert exchange.row is not None
        total_ns = int(exchange.row.latency_s * 1e9)
        return self._line(exchange.author(), text, chunks, done=True) | {
            "done_reason": "length" if self._finish == "length" else "stop",
            "total_duration": total_ns,
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": int((exchange.row.first_s or 0) * 1e9),
            "eval_count": usage.completion_tokens,
            "eval_duration": total_ns - int((exchange.row.first_s or 0) * 1e9),
        } | ({"consort": {"receipt": told}} if told else {})  # fmt: skip

    def _line(self, model: str, text: str, chunks: tuple[Chunk, ...], *, done: bool) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls := joined_calls(chunks):
            message["tool_calls"] = [
                {
                    "function": {
                        "name": c["function"]["name"],
                        "arguments": _arguments(c["function"]["arguments"]),
                    }
                }
                for c in calls
            ]
        return {"model": model, "created_at": self._created, "message": message, "done": done}


def _arguments(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
