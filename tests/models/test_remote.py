"""A remote model gives a complete answer or one of our errors, whatever the endpoint does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.errors import RequestError, UpstreamError
from consort.models.openai_stream import NotAnAnswerError, chunk_of, chunks_of, lines_of
from consort.models.remote import Endpoint, Remote
from consort.types import Chunk, Message, Request, Tool, Usage
from tests.upstream import CUT, EVENT_STREAM, HANG, Upstream, answer, event, framed, refusal, upstream

KEY = "sk-very-secret-0123456789"
ASKED = Request((Message("user", "when does it open?"),))


async def ask(up_url: str, request: Request = ASKED, *, silence_s: float = 5.0) -> list[Chunk]:
    lm = Remote(Endpoint("far", up_url, "m", KEY, silence_s=silence_s, backoff_s=0.0))
    try:
        return [chunk async for chunk in lm.stream(request)]
    finally:
        await lm.close()


def asked_of(
    *scripts: Sequence[bytes], request: Request = ASKED, silence_s: float = 5.0
) -> tuple[list[Chunk], Upstream]:
    async def run() -> tuple[list[Chunk], Upstream]:
        async with upstream(*scripts) as up:
            return await ask(up.url, request, silence_s=silence_s), up

    return asyncio.run(run())


def failure_of(*scripts: Sequence[bytes], silence_s: float = 5.0) -> UpstreamError:
    async def run() -> UpstreamError:
        async with upstream(*scripts) as up:
            with pytest.raises(UpstreamError) as caught:
                await ask(up.url, silence_s=silence_s)
            return caught.value

    return asyncio.run(run())


def test_an_answer_arrives_in_order_with_its_usage_under_our_name() -> None:
    chunks, _ = asked_of(answer("It ", "opens ", "at nine"))
    assert "".join(c.text for c in chunks) == "It opens at nine"
    assert {c.model for c in chunks} == {"far"}
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].usage == Usage(7, 3)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), texts=st.lists(st.text(alphabet='aü€😀\n "\\', max_size=5), min_size=1, max_size=4))
def test_every_cut_of_the_bytes_gives_the_same_lines(data: st.DataObject, texts: list[str]) -> None:
    whole = b"".join(event(text) for text in texts) + b"data: [DONE]\n\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    rest, read = b"", ""
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        lines, rest, _ = lines_of(rest + whole[start:end])
        read += "".join(chunk_of(line, "far").text for line in lines)
    assert read == "".join(texts)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
logprobs = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("content", "tokens", "token_logprobs", "top_logprobs"), anything)
    | {"content": st.lists(st.fixed_dictionaries({"token": anything, "logprob": anything},
                                                 optional={"top_logprobs": anything}), max_size=2) | anything}
)  # fmt: skip
calls = st.lists(
    st.fixed_dictionaries(
        {}, optional={"index": anything, "id": anything, "function": anything
                      | st.fixed_dictionaries({}, optional={"name": anything, "arguments": anything})}),
    max_size=2,
)  # fmt: skip
said = st.fixed_dictionaries({}, optional={"content": anything, "tool_calls": calls | anything})
choices = st.lists(
    st.fixed_dictionaries({}, optional={"delta": said | anything, "text": anything, "message": said,
                                        "finish_reason": anything, "logprobs": logprobs | anything}),
    max_size=2,
)  # fmt: skip
usages = st.fixed_dictionaries({"prompt_tokens": anything, "completion_tokens": anything})
events = st.fixed_dictionaries({}, optional={"choices": choices | anything, "usage": usages | anything})


@settings(max_examples=400, deadline=None)
@given(event=events | anything)
def test_any_event_is_a_chunk_of_the_right_types_or_no_answer(event: object) -> None:
    line = orjson.dumps(event)
    try:
        chunk, together = chunk_of(line, "far"), list(chunks_of([line], "far"))
    except NotAnAnswerError:
        with pytest.raises(NotAnAnswerError):
            list(chunks_of([line], "far"))
        return
    assert together == [chunk] or (not together and not chunk.text)
    assert type(chunk.text) is str
    if chunk.usage is not None:
        assert type(chunk.usage.prompt_tokens) is type(chunk.usage.completion_tokens) is int
    for token in chunk.logprobs:
        assert type(token.token) is str
        assert all(type(text) is str for text, _ in token.top)
        assert all(type(each) is float and each <= 0 for each in (token.logprob, *(p for _, p in token.top)))
    for call in chunk.tool_calls:
        assert type(call.index) is int
        assert all(type(text) is str for text in (call.id, call.name, call.arguments))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again_and_then_told_of(status: int) -> None:
    chunks, up = asked_of(refusal(status), refusal(status), answer("yes"))
    assert "".join(c.text for c in chunks) == "yes"
    assert len(up.requests) == 3
    assert str(status) in failure_of(refusal(status)).what


@pytest.mark.parametrize(
    "script",
    [
        [EVENT_STREAM, framed(event("It ")), CUT],
        [EVENT_STREAM, framed(event("It ")), b"0\r\n\r\n"],
        [EVENT_STREAM, framed(b"data: garbage\n\n"), b"0\r\n\r\n"],
        [EVENT_STREAM, framed(b'data: {"choices": 7}\n\n'), b"0\r\n\r\n"],
        [EVENT_STREAM, framed(b'data: {"choices":[{"delta":{"content":{}}}]}\n\n'), b"0\r\n\r\n"],
        [EVENT_STREAM, framed(b'data: [1]\n\n'), b"0\r\n\r\n"],
        [EVENT_STREAM, framed(event("ü").replace("ü".encode(), "ü".encode()[:1])), b"0\r\n\r\n"],
        [EVENT_STREAM, framed(b'data: {"error": {"message": "no memory"}}\n\n'), b"0\r\n\r\n"],
        [EVENT_STREAM, b"not chunked at all\r\n\r\n", CUT],
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\n<html"],
        [b"SSH-2.0-OpenSSH\r\n", CUT],
        [CUT],
        refusal(404),
        refusal(307),
    ],
)  # fmt: skip
def test_whatever_is_no_answer_is_one_error_that_names_the_model(script: list[bytes]) -> None:
    assert failure_of(script).where == "far"


@given(texts=st.lists(st.text(), max_size=4), wrong=st.sampled_from([b"}{", b'{"error": {}}', b'"\xc3"']))
def test_text_that_came_together_with_an_error_is_delivered_before_it(texts: list[str], wrong: bytes) -> None:
    lines, *_ = lines_of(b"".join(event(text) for text in texts) + b"data: %s\n\n" % wrong)
    read: list[str] = []
    with pytest.raises(NotAnAnswerError):
        read.extend(chunk.text for chunk in chunks_of(lines, "far"))
    assert "".join(read) == "".join(texts)


FINISHED = [EVENT_STREAM, framed(event("at nine")), framed(event("", "stop"))]


@pytest.mark.parametrize(
    "after", [[CUT], [HANG], [framed(b"data: }{\n\n"), b"0\r\n\r\n"], [b"not chunked\r\n\r\n", CUT]]
)
def test_an_answer_that_is_whole_stays_whole_whatever_follows(after: list[bytes]) -> None:
    chunks, _ = asked_of([*FINISHED, *after], silence_s=0.05)
    assert ("".join(c.text for c in chunks), chunks[-1].finish_reason) == ("at nine", "stop")


@pytest.mark.parametrize("script", [[HANG], [EVENT_STREAM, framed(event("It ")), HANG]])
def test_silence_is_an_error(script: list[bytes]) -> None:
    assert failure_of(script, silence_s=0.05).code == "upstream_failed"


def test_a_broken_stream_is_never_asked_again() -> None:
    async def run() -> int:
        async with upstream([EVENT_STREAM, framed(event("It ")), CUT]) as up:
            with pytest.raises(UpstreamError):
                await ask(up.url)
            return len(up.requests)

    assert asyncio.run(run()) == 1


def test_no_key_reaches_an_error() -> None:
    said = b'{"error": {"message": "Incorrect API key provided: %s"}}' % KEY.encode()
    errors = [failure_of(refusal(401, said)), failure_of(refusal(500, said))]
    with pytest.raises(RequestError) as refused:
        asked_of(refusal(400, said))
    assert not any(KEY in f"{error}{error!r}{error.hint}" for error in [*errors, refused.value])
    assert KEY not in repr(Endpoint("far", "http://x", "m", KEY))


def test_a_connection_is_used_again() -> None:
    async def run() -> int:
        async with upstream(answer("yes")) as up:
            lm = Remote(Endpoint("far", up.url, "m"))
            for _ in range(5):
                assert "".join([c.text async for c in lm.stream(ASKED)]) == "yes"
            await lm.close()
            return up.connections

    assert asyncio.run(run()) == 1


def test_leaving_early_frees_the_endpoint() -> None:
    async def run() -> None:
        async with upstream([EVENT_STREAM, framed(event("It ")), HANG]) as up:
            lm = Remote(Endpoint("far", up.url, "m"))
            stream = lm.stream(ASKED)
            assert (await anext(stream)).text == "It "
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await asyncio.wait_for(up.left.wait(), 5)
            await lm.close()

    asyncio.run(run())


def test_tools_and_logprobs_travel_both_ways() -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
    lines = [
        {"choices": [{"delta": {"content": "x"}, "logprobs": {"content": [
            {"token": "x", "logprob": -0.5, "top_logprobs": [{"token": "y", "logprob": -1.0}]}]}}]},
        {"choices": [{"delta": {"tool_calls": [call]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
    ]  # fmt: skip
    script = [
        EVENT_STREAM,
        *(framed(b"data: " + orjson.dumps(line) + b"\n\n") for line in lines),
        b"0\r\n\r\n",
    ]
    request = Request(
        ASKED.messages, top_logprobs=1, tools=(Tool("look", "sees", '{"type":"object"}'),), tool_choice="look"
    )
    chunks, up = asked_of(script, request=request)
    assert chunks[0].logprobs[0].top == (("y", -1.0),)
    assert chunks[1].tool_calls[0].arguments == '{"a":1}'
    assert chunks[-1].finish_reason == "tool_calls"
    sent = orjson.loads(up.requests[0].partition(b"\r\n\r\n")[2])
    assert sent["tools"][0]["function"]["parameters"] == {"type": "object"}
    assert sent["tool_choice"]["function"]["name"] == "look"
    assert sent["top_logprobs"] == 1


def test_an_endpoint_that_cannot_stream_answers_whole() -> None:
    body = b'{"choices":[{"message":{"content":"at nine"},"finish_reason":"stop"}]}'
    chunks, _ = asked_of(refusal(200, body))
    assert [(c.text, c.finish_reason) for c in chunks] == [("at nine", "stop")]
