"""OpenAI's wire from a client's side: requests to bytes, lines of a stream to chunks. Sends nothing.

Read from bytes to values in one step: a character cut in half by the network is whole again before anything
is decoded, and one that never was whole is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from consort.types import Chunk, FinishReason, Message, Request, TokenLogprob, ToolCall, Usage

FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class NotAnAnswerError(Exception):
    """Bytes that are no answer; the message says why, and never quotes them."""


def chat_body(request: Request, model: str) -> bytes:
    """The body of `/chat/completions`."""
    body: dict[str, Any] = {"model": model, "messages": [_turn(message) for message in request.messages]}
    if request.top_logprobs is not None:
        body["logprobs"] = True
        if request.top_logprobs:
            body["top_logprobs"] = request.top_logprobs
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": orjson.Fragment(tool.parameters),
                },
            }
            for tool in request.tools
        ]
        named = request.tool_choice not in ("auto", "none", "required")
        body["tool_choice"] = (
            {"type": "function", "function": {"name": request.tool_choice}} if named else request.tool_choice
        )
    return _body(request, body)


def text_body(request: Request, model: str) -> bytes:
    """The body of `/completions`."""
    body: dict[str, Any] = {"model": model, "prompt": request.prompt}
    if request.top_logprobs is not None:
        body["logprobs"] = request.top_logprobs
    return _body(request, body)


def _body(request: Request, body: dict[str, Any]) -> bytes:
    body |= {"max_tokens": request.max_tokens, "temperature": request.temperature, "stream": True}
    body["stream_options"] = {"include_usage": True}
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = request.stop
    if request.top_p != 1.0:
        body["top_p"] = request.top_p
    return orjson.dumps(body)


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def lines_of(received: bytes) -> tuple[list[bytes], bytes, bool]:
    """The data of every whole line, the line not yet whole, and whether the stream said that it is done."""
    lines = received.split(b"\n")
    rest = lines.pop()
    data: list[bytes] = []
    for line in lines:
        if line.startswith(b"data:"):  # anything else is a comment, an event's name or the line between two
            line = line[5:].strip()
            if line == b"[DONE]":
                return data, b"", True
            data.append(line)
    return data, rest, False


def chunks_of(lines: Iterable[bytes], author: str) -> Iterator[Chunk]:
    """The events of some lines; text that came in one piece goes on in one piece. NotAnAnswerError at a line
    that is none, after what came before it."""
    texts: list[str] = []
    try:
        for line in lines:
            event = _event(line)
            text = _bare_text(event)
            if text is not None:
                texts.append(text)
                continue
            if texts:
                yield Chunk("".join(texts), author)
                texts = []
            yield _chunk(event, author)
    except NotAnAnswerError:
        if text := "".join(texts):
            yield Chunk(text, author)
        raise
    if text := "".join(texts):
        yield Chunk(text, author)


def chunk_of(data: bytes, author: str) -> Chunk:
    """One event, or an answer that came whole. NotAnAnswerError where it is neither."""
    return _chunk(_event(data), author)


def _event(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        raise NotAnAnswerError("what is no JSON") from None


def _bare_text(event: Any) -> str | None:
    """The text of an event that holds nothing else, as nearly every one does; None for any other."""
    try:
        (choice,) = event["choices"]
        delta = choice["delta"]
        if event.get("usage") or choice["finish_reason"] or choice.get("logprobs") or "tool_calls" in delta:
            return None
        text = delta["content"]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return text if type(text) is str else None


def _chunk(event: Any, author: str) -> Chunk:
    try:
        choices, counted = event.get("choices"), event.get("usage")
        if choices is None:
            raise NotAnAnswerError("an error" if "error" in event else "an event without choices")
        usage = _usage(counted) if counted else None
        if not choices:
            return Chunk("", author, None, usage)
        choice = choices[0]
        said = choice.get("delta") or choice.get("message")
        reason = choice.get("finish_reason")
        finish = FINISH.get(reason, "stop") if reason else None
        text = _text((said.get("content") if said else choice.get("text")) or "")
        return Chunk(text, author, finish, usage, _logprobs(choice), _calls(said) if said else ())
    except (AttributeError, KeyError, TypeError, IndexError, ValueError):
        raise NotAnAnswerError("JSON of another form") from None


def ended_by(chunk: Chunk, last: Chunk) -> Chunk:
    """The chunk that ends an answer, with what still came beside it."""
    return Chunk(
        last.text + chunk.text if last.text or chunk.text else "",
        last.model,
        last.finish_reason,
        chunk.usage or last.usage,
        last.logprobs + chunk.logprobs,
        last.tool_calls + chunk.tool_calls,
    )


def _usage(counted: Any) -> Usage | None:
    """What was counted; an answer is no worse for tokens that were not."""
    tokens = counted.get("prompt_tokens"), counted.get("completion_tokens")
    if not all(type(each) is int and each >= 0 for each in tokens):
        return None
    return Usage(*tokens)


def _logprobs(choice: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    found = choice.get("logprobs")
    if not found:
        return ()
    if "tokens" in found:  # the form of /completions
        tops = found.get("top_logprobs") or [None] * len(found["tokens"])
        return tuple(
            TokenLogprob(
                _text(token),
                _logprob(logprob or 0.0),
                tuple((text, _logprob(each)) for text, each in (top or {}).items()),
            )
            for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
        )
    return tuple(
        TokenLogprob(
            _text(each["token"]),
            _logprob(each["logprob"]),
            tuple((_text(top["token"]), _logprob(top["logprob"])) for top in each.get("top_logprobs") or ()),
        )
        for each in found.get("content") or ()
    )


def _calls(said: dict[str, Any]) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(
            call["index"] if type(call.get("index")) is int else position,
            _text(call.get("id") or ""),
            _text((function := call.get("function") or {}).get("name") or ""),
            _text(function.get("arguments") or ""),
        )
        for position, call in enumerate(said.get("tool_calls") or ())
    )


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _logprob(value: object) -> float:
    if type(value) is not float and type(value) is not int:
        raise TypeError
    return min(float(value), 0.0)  # no probability is above one, whatever an endpoint says
