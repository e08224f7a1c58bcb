"""Whatever bytes arrive, a request is read or refused by name: never another error."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.errors import RequestError
from consort.gateway.ollama import parse_chat
from consort.gateway.openai_answer import error_object
from consort.gateway.openai_request import DESCRIBE, KNOWN, NEUTRAL, Asked, parse
from consort.gateway.parameters import Parameters
from consort.models.openai_stream import chat_body
from consort.types import Request

UNSAID = Request((), max_tokens=9)

words = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
function = st.fixed_dictionaries(
    {}, optional={"name": st.text(max_size=5) | json_values, "parameters": json_values}
)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "developer", "king"])},
        optional={
            "content": st.text(max_size=9) | json_values,
            "tool_calls": st.lists(st.fixed_dictionaries({"function": function}), max_size=2) | json_values,
            "tool_call_id": json_values,
            "images": json_values,
        },
    ),
    max_size=3,
)
names = sorted(KNOWN | DESCRIBE | set(NEUTRAL) | {"options", "format", "nonsense"})
bodies = st.fixed_dictionaries(
    {"model": st.just("consort") | json_values, "messages": turns | json_values},
    optional={name: json_values for name in names if name not in ("model", "messages")}
    | {"tools": st.lists(st.fixed_dictionaries({"function": function}), max_size=2) | json_values},
)


def read(body: bytes, form: str) -> Asked | None:
    try:
        if form == "ollama":
            return parse_chat(body, defaults=Parameters(), unsaid=UNSAID)
        return parse(body, chat=form == "chat", defaults=Parameters(), unsaid=UNSAID)
    except RequestError as refused:
        told = orjson.loads(error_object(refused))["error"]
    assert told["type"] == "invalid_request_error"
    return None


@settings(max_examples=200, deadline=None)
@given(body=bodies, form=st.sampled_from(["chat", "text", "ollama"]))
def test_any_object_is_read_or_refused(body: dict[str, Any], form: str) -> None:
    asked = read(orjson.dumps(body), form)
    if asked is not None and form != "text":
        chat_body(asked.request, "m")  # what was read can be sent on


@settings(deadline=None)
@given(body=st.binary(max_size=40), form=st.sampled_from(["chat", "text", "ollama"]))
def test_any_bytes_are_read_or_refused(body: bytes, form: str) -> None:
    read(body, form)


def test_what_is_read_is_what_was_asked() -> None:
    parts = [{"type": "text", "text": text} for text in ("be", " brief")]
    body = {
        "model": "m",
        "messages": [{"role": "developer", "content": parts}],
        "max_completion_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "seed": -3,
        "stop": "x",
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "me",
        "n": 1,
        "consort": {"threshold": 1, "receipt": True},
    }  # fmt: skip
    asked = parse(orjson.dumps(body), chat=True, defaults=Parameters(), unsaid=UNSAID)
    request = asked.request
    assert (request.messages[0].role, request.messages[0].content) == ("system", "be brief")
    assert (request.max_tokens, request.temperature, request.top_p, request.seed) == (7, 0.0, 0.5, -3)
    assert (request.stop, request.top_logprobs) == (("x",), 2)
    assert (asked.stream, asked.include_usage) == (True, True)
    assert (asked.parameters.threshold, asked.parameters.receipt) == (1.0, True)
