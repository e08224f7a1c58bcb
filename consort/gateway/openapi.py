"""The endpoint in OpenAPI's words, served at `/openapi.json`: what may be asked, what may be answered.

For programs that generate clients or tests; a test holds it to the parser's own tables. Says nothing of
single models but their names: whether one has tools or log-probabilities, it answers when it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from consort import __version__
from consort.gateway.openai_request import DESCRIBE, NEUTRAL, ROLES
from consort.gateway.parameters import LEAST_DEADLINE_S, WORDS, Parameters

Schema = dict[str, Any]
ANY: Schema = {}
BIGGEST = 2**63 - 1
JSON = "application/json"
FAILURES = {
    400: "The request cannot be meant; `param` names where.",
    401: "A key is needed, or this one is not known.",
    403: "A page of another site asks.",
    404: "No such model, or nothing is served here.",
    405: "Another method is served here.",
    408: "The request did not come whole in time.",
    413: "The request is too large.",
    429: "More than the key's requests or money.",
    500: "The gateway failed.",
    502: "A model that should have answered did not.",
    503: "Too many requests at once.",
    504: "The request's time was over before its answer.",
}


def description(names: Sequence[str], *, sessions: bool = False) -> Schema:
    """The whole document; `names`: what `model` may say, as far as the reader may know; with what a server of
    sessions shows. Their WebSocket is beyond OpenAPI's words."""
    tokenizer = _shown("The vocabulary that drafts are written in", JSON, {"type": "object"})
    return {
        "openapi": "3.1.0",
        "info": {"title": "consort", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": {
            "/v1/chat/completions": _asked("Chat", "ChatAnswer", "text/event-stream"),
            "/v1/completions": _asked("Text", "TextAnswer", "text/event-stream"),
            "/api/chat": _asked("OllamaChat", "OllamaAnswer", "application/x-ndjson"),
            "/v1/models": _shown("Every model and strategy", JSON, _object(data=_some(_ref("Model")))),
            "/v1/models/{model}": _shown("One of them", JSON, _ref("Model"), "model"),
            "/api/tags": _shown("The same for Ollama's clients", JSON, _object(models=_some(ANY))),
            "/metrics": _shown("Prometheus text", "text/plain", {"type": "string"}),
            "/overview": _shown("What the dashboard shows", JSON, {"type": "object"}),
            "/api/version": _open("For Ollama's clients", JSON, _object(version=_text())),
            "/health": _open("Whether it serves", JSON, _object(status={"const": "ok"})),
            "/openapi.json": _open("This document", JSON, {"type": "object"}),
            "/": _open("The dashboard", "text/html", {"type": "string"}),
        }
        | ({"/v1/tokenizer": tokenizer} if sessions else {}),
        "components": {
            "schemas": _requests(names) | _answers(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


# ---- paths


def _asked(request: str, answer: str, stream: str) -> Schema:
    shapes = {JSON: {"schema": _ref(answer)}, stream: {"schema": ANY}}
    answered: Schema = {"200": {"description": "The answer, whole or as a stream.", "content": shapes}}
    return {
        "post": {
            "requestBody": {"required": True, "content": {JSON: {"schema": _ref(request)}}},
            "responses": answered | _failures(400, 401, 403, 404, 408, 413, 429, 500, 502, 503, 504),
            "security": [{"key": []}],
        }
    }


def _open(what: str, kind: str, schema: Schema) -> Schema:
    """What is shown to everybody."""
    shown = {"description": what, "content": {kind: {"schema": schema}}}
    return {"get": {"summary": what, "responses": {"200": shown}, "security": []}}


def _shown(what: str, kind: str, schema: Schema, *parameters: str) -> Schema:
    """What is shown to who has a key."""
    told = _open(what, kind, schema)
    told["get"]["responses"] |= _failures(401, 403, 404, 429)
    told["get"]["security"] = [{"key": []}]
    told["get"]["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": _text(1)} for name in parameters
    ]
    return told


def _failures(*statuses: int) -> Schema:
    return {
        str(status): {"description": FAILURES[status], "content": {JSON: {"schema": _ref("Error")}}}
        for status in statuses
    }


# ---- what is asked


def _requests(names: Sequence[str]) -> Schema:
    flag: Schema = {"type": ["boolean", "null"]}
    role: Schema = {"enum": list(ROLES)}
    common: Schema = {
        "model": {"anyOf": [{"enum": [*names, None]}, _text()], "default": "consort"},
        "max_tokens": _or_null(_whole(1)),
        "max_completion_tokens": _or_null(_whole(1)),
        "temperature": _or_null(_number(2)),
        "top_p": _or_null(_number(1)),
        "seed": _or_null(_whole(-BIGGEST - 1)),
        "stop": _or_null({"anyOf": [_text(1), _list(_text(1)) | {"maxItems": 4}]}),
        "stream": flag,
        "stream_options": {"type": ["object", "null"], "properties": {"include_usage": flag}},
        "consort": _or_null(_ref("Parameters")),
    }
    common |= dict.fromkeys(sorted(DESCRIBE), ANY)
    common |= {name: {"enum": [*values, None]} for name, values in NEUTRAL.items()}
    tools = _or_null(_list(_ref("Tool")))
    chat: Schema = {
        "messages": _some(_ref("Turn")),
        "logprobs": flag,
        "top_logprobs": _or_null(_whole(0, 20)),
        "tools": tools,
        "tool_choice": {"type": ["string", "object", "null"]},
    }
    text: Schema = {
        "prompt": {"anyOf": [_text(), _one(_text())]},
        "logprobs": _or_null(_whole(0, 20)),
    }
    ollama: Schema = {
        "model": {"anyOf": [{"enum": list(names)}, _text(1)]},
        "messages": _some(_object(role=role, content=_text())),
        "stream": flag,
        "options": {"type": ["object", "null"]},
        "tools": tools,
        "consort": _or_null(_ref("Parameters")),
    }
    call = _object(id=_text(), function=_object(name=_text(), arguments=_text()))
    content = {"anyOf": [_text(), _list(_object(type={"const": "text"}, text=_text()))]}
    return {
        "Chat": _closed(common | chat, "messages"),
        "Text": _closed(common | text, "prompt"),
        "OllamaChat": {"type": "object", "properties": ollama, "required": ["model", "messages"]},
        "Turn": {"anyOf": [_ref("Said"), _ref("Called")]},
        "Said": _object(role=role, content=content),
        "Called": _object(role=role, tool_calls=_some(call)),
        "Tool": _object(function=_object(name=_text())),
        "Parameters": _closed({field.name: _parameter(field) for field in fields(Parameters)}),
    }


def _parameter(field: Field[Any]) -> Schema:
    if field.name in WORDS:
        return {"enum": list(WORDS[field.name]), "default": field.default}
    if isinstance(field.default, bool):
        return {"type": "boolean", "default": field.default}
    least = LEAST_DEADLINE_S if field.name == "deadline_s" else 0
    return {"type": "number", "minimum": least, "default": field.default}


# ---- what answers


def _answers() -> Schema:
    finish: Schema = {"enum": ["stop", "length", "tool_calls"]}
    message = _object(role={"const": "assistant"}, content={"type": ["string", "null"]})
    answer = {
        "id": _text(),
        "created": _whole(0),
        "model": _text(),
        "usage": _object(prompt_tokens=_whole(0), completion_tokens=_whole(0), total_tokens=_whole(0)),
    }
    failure = _object(message=_text(), type=_text(), code=_text())
    return {
        "ChatAnswer": _object(**answer, choices=_one(_object(message=message, finish_reason=finish))),
        "TextAnswer": _object(**answer, choices=_one(_object(text=_text(), finish_reason=finish))),
        "OllamaAnswer": _object(model=_text(), message=message, done={"const": True}),
        "Model": _object(id=_text(), object={"const": "model"}, created=_whole(0), owned_by=_text()),
        "Error": {"anyOf": [_object(error=failure), _object(error=_text())]},  # the second is Ollama's
    }


# ---- words of JSON Schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _closed(properties: Schema, *required: str) -> Schema:
    """An object with these properties and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _some(items: Schema) -> Schema:
    return _list(items) | {"minItems": 1}


def _one(items: Schema) -> Schema:
    return _some(items) | {"maxItems": 1}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _text(least: int = 0) -> Schema:
    return {"type": "string", "minLength": least}


def _whole(least: int, most: int = BIGGEST) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def _number(most: float) -> Schema:
    return {"type": "number", "minimum": 0, "maximum": most}
