"""Ollama's `/api/chat`, `/api/tags` and `/api/show`, so that its clients find the consort where they
expect a server.

Only chatting and listing: models are not pulled, pushed or made here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson

from consort.errors import ParameterError, RequestError, UnknownModelError
from consort.gateway.openai_request import Asked, parse
from consort.gateway.parameters import Parameters
from consort.gateway.service import Service
from consort.types import Request

OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
}
DROPPED = ("keep_alive", "options", "think", "truncate", "shift")


def parse_chat(body: bytes, *, defaults: Parameters, unsaid: Request) -> Asked:
    """The body of `/api/chat`, by way of OpenAI's: one place knows what a request may hold."""
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is no JSON: {error.msg}") from None
    if type(raw) is not dict or not raw.get("model"):
        raise ParameterError("must be an object that names a model", where="model")
    if raw.get("format"):
        raise ParameterError("cannot be honoured here", where="format", hint="leave it out")
    options = raw.get("options") or {}
    if type(options) is not dict:
        raise ParameterError("must be an object", where="options")
    taken: dict[str, Any] = {name: value for name, value in raw.items() if name not in (*DROPPED, "format")}
    for theirs, ours in OPTIONS.items():
        if options.get(theirs) is not None and not (theirs == "num_predict" and options[theirs] == -1):
            taken[ours] = options[theirs]
    model = raw["model"]
    taken["model"] = model.removesuffix(":latest") if type(model) is str else model
    taken["stream"] = raw.get("stream", True)
    taken["messages"] = _turns(raw.get("messages"))
    if not taken.get("tools"):
        taken.pop("tools", None)
    return parse(orjson.dumps(taken), chat=True, defaults=defaults, unsaid=unsaid)


def tags(service: Service) -> dict[str, Any]:
    """Every name a client may ask for."""
    since = datetime.fromtimestamp(service.started_s, UTC).isoformat()
    details = {"format": "consort", "family": "consort", "parameter_size": "", "quantization_level": ""}
    return {
        "models": [
            {"name": name, "model": name, "modified_at": since, "size": 0, "digest": "", "details": details}
            for name in service.names()
        ]
    }


def show(service: Service, body: bytes) -> dict[str, Any]:
    """What a client asks of one name before it chats. UnknownModelError for a name not served."""
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is no JSON: {error.msg}") from None
    name = str((raw.get("model") or raw.get("name") or "") if type(raw) is dict else "")
    name = name.removesuffix(":latest")
    found = next((each for each in tags(service)["models"] if each["name"] == name), None)
    if found is None:
        raise UnknownModelError(f"no model is called {name[:100]!r}", hint="see /api/tags")
    return {
        "modelfile": "",
        "template": "",
        "details": found["details"],
        "model_info": {"general.architecture": "consort"},
        "capabilities": ["completion"],
        "modified_at": found["modified_at"],
    }


def _turns(rows: Any) -> Any:
    """Ollama's turns as OpenAI's: calls get ids and their arguments as text."""
    if type(rows) is not list:
        return rows
    turns = []
    for row in rows:
        if type(row) is not dict:
            raise ParameterError("must be a list of turns", where="messages")
        if row.get("images"):
            raise ParameterError("these models read text only", where="messages.images")
        turn = {name: row[name] for name in ("role", "content") if name in row}
        calls = row.get("tool_calls") or []
        if type(calls) is not list:
            raise ParameterError("must be a list", where="messages.tool_calls")
        if calls:
            turn["tool_calls"] = [_call(index, call) for index, call in enumerate(calls)]
        turns.append(turn)
    return turns


def _call(index: int, call: Any) -> dict[str, Any]:
    try:
        function = call["function"]
        arguments = orjson.dumps(function.get("arguments") or {}).decode()
        return {"id": f"call_{index}", "function": {"name": function["name"], "arguments": arguments}}
    except (KeyError, TypeError, AttributeError):
        raise ParameterError("must hold a function with a name", where="messages.tool_calls") from None
