"""OpenAI's request bodies into a Request and what else was asked: parsed once, refused by name.

A key that would change the answer and that nothing here can honour is an error, not silence; keys that only
describe the caller are let pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from consort.errors import ParameterError, RequestError
from consort.gateway.parameters import KINDS, Parameters
from consort.problems import nearest
from consort.types import Message, Request, Tool, ToolCall

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
DESCRIBE = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
    ]
)
# What these mean when they change nothing; any other value is refused.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
    "reasoning_effort": (),
}
KNOWN = frozenset(
    [
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "stream",
        "stream_options",
        "consort",
    ]
)
TOOL_CHOICE = "must be auto, none, required or one of the tools"
KNOWN_IN_CHAT = KNOWN - {"prompt"}
KNOWN_IN_TEXT = KNOWN - {"messages", "tools", "tool_choice", "top_logprobs"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed body. `chat` is the form of the answer: a conversation's, or a text's."""

    model: str
    request: Request
    parameters: Parameters
    chat: bool
    stream: bool = False
    include_usage: bool = False


def parse(body: bytes, *, chat: bool, defaults: Parameters, unsaid: Request) -> Asked:
    """The body of `/v1/chat/completions` or `/v1/completions`; `unsaid` holds what it may leave out.
    ParameterError names the key that is wrong."""
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is no JSON: {error.msg}", hint="send UTF-8 JSON") from None
    if type(raw) is not dict:
        raise RequestError("the body must be a JSON object")
    known = KNOWN_IN_CHAT if chat else KNOWN_IN_TEXT
    if not raw.keys() <= known:
        _check_others(raw, known)
    options = _typed(raw, "stream_options", dict, {}) or {}
    max_tokens = _whole(raw, "max_tokens", unsaid.max_tokens, low=1)
    request = Request(
        _messages(raw) if chat else (),
        max_tokens=_whole(raw, "max_completion_tokens", max_tokens, low=1),
        temperature=_number(raw, "temperature", unsaid.temperature, high=2.0),
        seed=_whole(raw, "seed", unsaid.seed),
        stop=_stops(raw),
        top_p=_number(raw, "top_p", unsaid.top_p, high=1.0),
        top_logprobs=_top_logprobs(raw, chat=chat),
        prompt=None if chat else _prompt(raw),
    )
    if chat and _typed(raw, "tools", list, None):
        request = replace(request, tools=_tools(raw), tool_choice=_tool_choice(raw))
    elif type(raw.get("tool_choice")) not in (type(None), str, dict):
        raise _refused("tool_choice", TOOL_CHOICE)
    given = _typed(raw, "consort", dict, None)
    return Asked(
        _typed(raw, "model", str, "") or "consort",
        request,
        read_parameters(given, defaults) if given else defaults,
        chat,
        bool(_typed(raw, "stream", bool, False)),
        bool(_typed(options, "include_usage", bool, False)),
    )


def read_parameters(given: Mapping[str, Any], defaults: Parameters) -> Parameters:
    """The body's `consort` object over the configured defaults."""
    changes = {}
    for name, value in given.items():
        kind = KINDS.get(name)
        if kind is None:
            raise _refused(f"consort.{name}", "is no parameter", nearest(name, list(KINDS)))
        is_number = kind is float and type(value) in (int, float)
        if type(value) is not kind and not is_number:
            raise _refused(f"consort.{name}", f"must be a {kind.__name__}")
        if name == "redact" and defaults.redact and not value:
            raise _refused("consort.redact", "is switched on here for every request")
        if name == "alike" and value < min(defaults.alike, 1.0):
            raise _refused("consort.alike", "is below what was measured here", "see serve.alike")
        changes[name] = float(value) if is_number else value
    return replace(defaults, **changes).checked()  # type: ignore[arg-type]


def _check_others(raw: Mapping[str, Any], known: frozenset[str]) -> None:
    for name in raw.keys() - known - DESCRIBE:
        if name not in NEUTRAL:
            raise _refused(name, "is no parameter here", nearest(name, sorted(known)))
        value = raw[name]
        # true is 1 to Python and a mistake in JSON
        same = (value == each and (type(value) is bool) == (type(each) is bool) for each in NEUTRAL[name])
        if value is not None and not any(same):
            raise _refused(name, "cannot be honoured here", "leave it out")


def _messages(raw: Mapping[str, Any]) -> tuple[Message, ...]:
    rows = _typed(raw, "messages", list, None)
    if not rows:
        raise _refused("messages", "must be a list of at least one turn")
    return tuple(_message(row, f"messages[{index}]") for index, row in enumerate(rows))


def _message(row: Any, where: str) -> Message:
    if type(row) is not dict or (role := ROLES.get(str(row.get("role")))) is None:
        raise _refused(f"{where}.role", f"must be one of {', '.join(ROLES)}")
    content = row.get("content")
    calls = row.get("tool_calls")
    if type(content) is not str:
        content = _parts(content, where) if content is not None else ""
    if not content and row.get("content") is None and not calls:
        raise _refused(f"{where}.content", "is missing")
    if not calls and role != "tool":
        return Message(role, content)  # type: ignore[arg-type]
    answered = row.get("tool_call_id", "")
    if type(answered) is not str:
        raise _refused(f"{where}.tool_call_id", "must be text")
    return Message(role, content, _calls(calls, where), answered)  # type: ignore[arg-type]


def _parts(content: Any, where: str) -> str:
    if type(content) is not list:
        raise _refused(f"{where}.content", "must be text or a list of parts")
    texts = []
    for part in content:
        if type(part) is not dict or part.get("type") != "text" or type(part.get("text")) is not str:
            raise _refused(f"{where}.content", "holds a part that is no text", "these models read text only")
        texts.append(part["text"])
    return "".join(texts)


def _calls(rows: Any, where: str) -> tuple[ToolCall, ...]:
    try:
        return tuple(
            ToolCall(
                index, _text(row["id"]), _text(row["function"]["name"]), _text(row["function"]["arguments"])
            )
            for index, row in enumerate(rows or ())
        )
    except (KeyError, TypeError):
        raise _refused(f"{where}.tool_calls", "must hold id, function.name and function.arguments") from None


def _tools(raw: Mapping[str, Any]) -> tuple[Tool, ...]:
    try:
        return tuple(
            Tool(
                _text((function := row["function"])["name"]),
                _text(function.get("description") or ""),
                orjson.dumps(function.get("parameters") or {}).decode(),
            )
            for row in raw["tools"]
        )
    except (KeyError, TypeError, AttributeError):
        raise _refused("tools", "must be a list of functions with a name") from None


def _tool_choice(raw: Mapping[str, Any]) -> str:
    choice: Any = raw.get("tool_choice") or "auto"
    if choice in ("auto", "none", "required"):
        return str(choice)
    try:
        name = choice["function"]["name"]
        if name in [row["function"]["name"] for row in raw["tools"]]:
            return str(name)
    except (KeyError, TypeError):
        pass
    raise _refused("tool_choice", TOOL_CHOICE)


def _prompt(raw: Mapping[str, Any]) -> str:
    prompt = raw.get("prompt")
    if type(prompt) is list and len(prompt) == 1:
        prompt = prompt[0]
    if type(prompt) is not str:
        raise _refused("prompt", "must be one text", "send one request a prompt")
    return prompt


def _stops(raw: Mapping[str, Any]) -> tuple[str, ...]:
    stop = raw.get("stop")
    stops: Any = () if stop is None else (stop,) if type(stop) is str else stop
    if type(stops) not in (tuple, list) or len(stops) > 4 or any(type(s) is not str or not s for s in stops):
        raise _refused("stop", "must be a text or up to four")
    return tuple(stops)


def _top_logprobs(raw: Mapping[str, Any], *, chat: bool) -> int | None:
    count: int | None
    if not chat:
        count = _whole(raw, "logprobs", None, low=0, high=20)
        return count
    wanted = _typed(raw, "logprobs", bool, False)
    count = _whole(raw, "top_logprobs", 0, low=0, high=20)
    if count and not wanted:
        raise _refused("top_logprobs", "needs logprobs = true")
    return count if wanted else None


def _whole(
    raw: Mapping[str, Any], name: str, default: Any, *, low: int = -(2**63), high: int = 2**63 - 1
) -> Any:
    value = raw.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        bounds = f" from {low} to {high}" if high < 2**62 else f" of at least {low}" if low > -(2**62) else ""
        raise _refused(name, f"must be a whole number{bounds}")
    return value


def _number(raw: Mapping[str, Any], name: str, default: float, *, high: float) -> float:
    value = raw.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not 0 <= value <= high:
        raise _refused(name, f"must be a number from 0 to {high:g}")
    return float(value)


def _typed(raw: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = raw.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        words = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
        raise _refused(name, f"must be {words[kind]}")
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _refused(name: str, what: str, hint: str = "") -> ParameterError:
    return ParameterError(what, where=name, hint=hint)
