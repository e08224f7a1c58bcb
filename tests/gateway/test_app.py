"""The endpoint as clients see it: streamed equals whole, errors have one form, every end is recorded."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from consort.errors import ConsortError, LimitError
from consort.gateway.keys import Door, Key, add_key, revoke_key
from consort.gateway.ledger import Ledger
from consort.models.remote import Endpoint, Remote
from consort.models.simulated import Fault
from tests.gateway.live import CHAT, LARGE, SMALL, Live, live, text_of
from tests.inference.consorts import says
from tests.upstream import CUT, EVENT_STREAM, HANG, event, framed, refusal, upstream


def run(work: Callable[[Live], Awaitable[Any]], folder: Path, **config: Any) -> Any:
    async def go() -> Any:
        async with live(folder, **config) as here:
            return await asyncio.wait_for(work(here), 15)

    return asyncio.run(go())


def rows(folder: Path) -> list[dict[str, Any]]:
    database = sqlite3.connect(folder / "ledger.sqlite")
    try:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM requests ORDER BY at")]
    finally:
        database.close()


@pytest.mark.parametrize("model", ["consort", "small", "large", "consort/edge", "consort/cloud",
                                   "consort/route", "consort/cascade", "consort/vote", "consort/cache",
                                   "consort/takeover", "consort/auto"])  # fmt: skip
def test_streamed_equals_whole_under_every_name(tmp_path: Path, model: str) -> None:
    async def work(here: Live) -> tuple[Any, Any]:
        return await here.ask(model=model), await here.stream(model=model)

    (status, whole), events = run(work, tmp_path)
    assert status == 200
    assert text_of(events) == whole["choices"][0]["message"]["content"]
    assert events[-1] == "[DONE]"
    assert [e["choices"][0]["finish_reason"] for e in events[:-1]] == [None] * (len(events) - 2) + ["stop"]
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {e["model"] for e in events[:-1]} == {whole["model"]}
    found = rows(tmp_path)
    assert [row["outcome"] for row in found] == ["done", "done"]
    assert [bool(row["streamed"]) for row in found] == [False, True]
    assert found[0]["prompt"] is None
    assert found[0]["answer"] is None


def test_the_openai_client_chats_streams_and_fails_as_it_is_used_to(tmp_path: Path) -> None:
    async def work(here: Live) -> None:
        async with openai.AsyncOpenAI(base_url=f"{here.url}/v1", api_key="none", max_retries=0) as client:
            turns: Any = [{"role": "user", "content": "when?"}]
            whole = await client.chat.completions.create(
                model="consort", messages=turns, logprobs=True, top_logprobs=2
            )
            assert whole.choices[0].message.content == SMALL
            assert whole.usage.completion_tokens == len(SMALL.split())
            assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
            text, usage = "", None
            stream = await client.chat.completions.create(
                model="large", messages=turns, stream=True, stream_options={"include_usage": True}
            )
            async for chunk in stream:
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                usage = chunk.usage or usage
            assert text == LARGE
            assert usage.total_tokens > 0
            plain = await client.completions.create(model="small", prompt="it opens")
            assert plain.choices[0].text == SMALL
            names = [model.id async for model in client.models.list()]
            assert names[:3] == ["small", "large", "consort"]
            assert "consort/cascade" in names
            tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
            called = await client.chat.completions.create(
                model="large", messages=turns, tools=[tool], tool_choice="required"
            )
            assert called.choices[0].finish_reason == "tool_calls"
            assert called.choices[0].message.tool_calls[0].function.name == "look"
            with pytest.raises(openai.NotFoundError, match="did you mean"):
                await client.chat.completions.create(model="consort/cascad", messages=turns)
            with pytest.raises(openai.BadRequestError, match="cannot be honoured"):
                await client.chat.completions.create(model="large", messages=turns, n=3)

    run(work, tmp_path)


def test_a_stream_that_breaks_ends_in_one_error_the_client_understands(tmp_path: Path) -> None:
    async def work(here: Live) -> tuple[Any, tuple[int, Any]]:
        async with openai.AsyncOpenAI(base_url=f"{here.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="large", messages=[{"role": "user", "content": "when?"}], stream=True
            )
            with pytest.raises(openai.APIError):
                async for _ in stream:
                    pass
        return await here.stream(model="large"), await here.ask(model="large")

    events, (status, whole) = run(work, tmp_path, cloud=says("large", LARGE, fault=Fault("break", 2)))
    assert [list(e) == ["error"] for e in events] == [False, False, True, False]
    assert events[2]["error"]["code"] == "upstream_failed"
    assert (status, whole["error"]["code"]) == (502, "upstream_failed")
    assert {row["outcome"] for row in rows(tmp_path)} == {"upstream_failed"}


@pytest.mark.parametrize("stream", [False, True])
def test_every_request_has_a_deadline(tmp_path: Path, stream: bool) -> None:
    async def work(here: Live) -> Any:
        return await here.ask(model="large", stream=stream, consort={"deadline_s": 0.05})

    status, body = run(work, tmp_path, cloud=says("large", LARGE, fault=Fault("stall", 0)))
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")


def test_a_client_s_own_deadline_goes_with_the_question_and_does_not_make_it_another(tmp_path: Path) -> None:
    large = says("large", LARGE)

    async def work(here: Live) -> list[str]:
        answers = []
        for deadline_s in (5, 9):
            asked = {"threshold": 2, "receipt": True, "deadline_s": deadline_s}
            _, body = await here.ask(model="consort/cache", consort=asked)
            answers.append(body["consort"]["receipt"]["notes"][0]["event"])
        return answers

    begun_s = time.monotonic()
    assert run(work, tmp_path, cloud=large) == ["missed", "hit"]
    (request,) = large.calls
    assert request.until_s is not None
    assert begun_s < request.until_s <= time.monotonic() + 5


def test_a_request_that_never_comes_whole_is_given_up(tmp_path: Path) -> None:
    async def work(here: Live) -> bytes:
        address = here.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(address[0], int(address[1]))
        writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{" % CHAT.encode())
        answer = await reader.read()  # and the connection is closed
        writer.close()
        await writer.wait_closed()
        return answer

    assert b" 408 " in run(work, tmp_path, deadline_s=0.05)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_work(tmp_path: Path, stream: bool) -> None:
    slow = says("large", LARGE, fault=Fault("stall", 2))

    async def work(here: Live) -> None:
        asking = asyncio.create_task(here.ask(model="large", stream=stream))
        while not slow.in_flight:
            await asyncio.sleep(0.005)
        asking.cancel()
        async with asyncio.timeout(5):
            while slow.in_flight or here.service.in_flight:
                await asyncio.sleep(0.005)

    run(work, tmp_path, cloud=slow)
    assert [row["outcome"] for row in rows(tmp_path)] == ["client_left"]


def test_a_receipt_says_who_wrote_what_and_is_the_ledgers_row(tmp_path: Path) -> None:
    async def work(here: Live) -> tuple[Any, Any]:
        whole = await here.ask("ü?", model="consort/takeover", consort={"receipt": True})
        return whole, await here.stream("ü?", model="consort/cloud", consort={"receipt": True})

    (_, whole), events = run(
        work, tmp_path, edges=[says("small", LARGE)], cloud=says("large", LARGE, fault=Fault("break", 3))
    )
    told = whole["consort"]["receipt"]
    assert [author for author, _ in told["spans"]] == ["large", "small"]
    assert sum(size for _, size in told["spans"]) == len(LARGE.encode())
    assert [note["event"] for note in told["notes"]] == ["broke"]
    assert told["cloud_bytes"] == 3
    cloud_tokens = len("The clinic opens") // 4  # of a broken answer: estimated
    assert told["cost"] == pytest.approx((1 * 1 + cloud_tokens * 10) / 1e6)
    row = rows(tmp_path)[0]
    assert (row["id"], row["cost"], row["cloud_tokens"]) == (told["id"], told["cost"], cloud_tokens)
    assert orjson.loads(row["spans"]) == told["spans"]
    assert "error" in events[-2]


def test_optimistic_answers_begin_anew_in_the_stream(tmp_path: Path) -> None:
    async def work(here: Live) -> Any:
        return await here.stream(consort={"optimistic": True, "threshold": 2})

    events = run(work, tmp_path)
    assert text_of(events) == LARGE
    assert sum("consort" in e for e in events) == 1
    assert {e["model"] for e in events[:-1]} == {"small", "large"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"role": "user"}]}', "messages[0].content"),
        (b'{"messages": [{"role": "king", "content": "x"}]}', "messages[0].role"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "messages[0].content"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 3}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temprature": 1}', "temprature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', "max_tokens"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stop": [""]}', "stop"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tools": 3}', "tools"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tool_choice": [1]}', "tool_choice"),
        (b'{"messages": [{"role": "user", "content": "x"}], "prompt": "y"}', "prompt"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": true}', "n"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": 1}}',
         "include_usage"),
        (b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json"}}',
         "response_format"),
        (b'{"messages": [{"role": "user", "content": "x"}], "consort": {"treshold": 1}}', "consort.treshold"),
        (b'{"messages": [{"role": "user", "content": "x"}], "consort": {"goal": "x"}}', "consort.goal"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_refused_by_name(tmp_path: Path, body: bytes, param: str | None) -> None:
    async def work(here: Live) -> tuple[int, Any]:
        async with here.http.post(here.url + CHAT, data=body) as response:
            return response.status, orjson.loads(await response.read())

    status, answer = run(work, tmp_path)
    assert status == 400
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == param


def test_what_a_model_cannot_do_is_refused_before_anything_is_said(tmp_path: Path) -> None:
    unable = says("large", LARGE, capabilities=frozenset())

    async def work(here: Live) -> list[tuple[int, Any]]:
        return [
            await here.ask(model="large", logprobs=True),
            await here.ask(model="large", stream=True, logprobs=True),
            await here.post("/v1/completions", model="large", prompt="x"),
        ]

    for status, body in run(work, tmp_path, cloud=unable):
        assert status == 400
        assert "large: this model has no" in body["error"]["message"]
        assert body["error"]["param"] is None  # a model's name is no parameter of the request


def test_private_text_stays_at_the_edge(tmp_path: Path) -> None:
    large = says("large", LARGE)

    async def work(here: Live) -> list[tuple[int, Any]]:
        models = ("consort/auto", "consort/cascade", "consort/cloud", "consort/takeover")
        return [await here.ask(model=m, consort={"private": True, "threshold": 2}) for m in models]

    answers = run(work, tmp_path, cloud=large)
    assert large.calls == []
    assert [status for status, _ in answers] == [200, 200, 400, 400]


@pytest.mark.parametrize("model", ["large", "consort/cloud", "consort/takeover"])
@pytest.mark.parametrize("redact", [False, True])
def test_a_private_request_that_only_the_cloud_could_answer_is_told_so(
    tmp_path: Path, model: str, redact: bool
) -> None:
    large = says("large", LARGE)

    async def work(here: Live) -> tuple[int, Any]:
        return await here.ask(model=model, consort={"private": True, "redact": redact})

    status, body = run(work, tmp_path, cloud=large)
    assert (status, body["error"]["code"]) == (400, "invalid_request")
    assert "a private request stays at the edge" in body["error"]["message"]
    assert "ask consort/edge" in body["error"]["message"]
    assert large.calls == []


def test_a_private_vote_is_decided_among_the_edges_and_the_receipt_says_how(tmp_path: Path) -> None:
    large = says("large", LARGE)
    edges = [says("small", SMALL), says("other", "ask somebody else")]

    async def work(here: Live) -> tuple[int, Any]:
        return await here.ask(model="consort/vote", consort={"private": True, "receipt": True})

    status, body = run(work, tmp_path, cloud=large, edges=edges)
    told = body["consort"]["receipt"]
    assert (status, large.calls, told["cloud_bytes"]) == (200, [], 0)
    assert [note["event"] for note in told["notes"]] == ["kept", "split", "surest"]
    assert body["choices"][0].get("logprobs") is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_cloud_that_is_down_costs_no_second_answer_of_the_edge(tmp_path: Path, stream: bool) -> None:
    small, large = says("small", SMALL), says("large", LARGE, fault=Fault("break"))

    async def work(here: Live) -> None:
        for model in ("consort/cascade", "consort/cache", "consort/auto"):
            more: Any = {"model": model, "consort": {"threshold": 2}}
            told = text_of(await here.stream(**more)) if stream else (await here.ask(**more))[1]
            answer = told if stream else told["choices"][0]["message"]["content"]
            assert answer == SMALL

    run(work, tmp_path, edges=[small], cloud=large)
    assert len(small.calls) == 3
    sides = [[call["side"] for call in orjson.loads(row["calls"])] for row in rows(tmp_path)]
    assert sides == [["edge", "cloud"]] * 3


def test_keys_open_the_door_within_their_limits(tmp_path: Path) -> None:
    secrets = {
        name: add_key(tmp_path / "keys.json", Key(name, budget=budget, per_minute=per_minute))
        for name, budget, per_minute in (("rich", 0, 0), ("poor", 1e-9, 0), ("calm", 0, 2))
    }

    async def work(here: Live) -> list[tuple[int, str]]:
        found = []
        for name in ("rich", "poor", "poor", "calm", "calm", "calm", "nobody", ""):
            secret = secrets.get(name, name)
            scheme = "bearer" if len(found) % 2 else "Bearer"
            headers = {"Authorization": f"{scheme} {secret}"} if secret else {}
            body = {"model": "large", "messages": [{"role": "user", "content": "x"}]}
            async with here.http.post(here.url + CHAT, json=body, headers=headers) as response:
                answer = orjson.loads(await response.read())
                found.append((response.status, answer.get("error", {}).get("code", "")))
        return found

    assert run(work, tmp_path) == [
        (200, ""), (200, ""), (429, "insufficient_quota"), (200, ""), (200, ""),
        (429, "rate_limit_exceeded"), (401, "invalid_api_key"), (401, "invalid_api_key"),
    ]  # fmt: skip
    stored = (tmp_path / "keys.json").read_text()
    assert not any(secret in stored for secret in secrets.values())
    assert {row["key"] for row in rows(tmp_path)} == {"rich", "poor", "calm"}
    revoke_key(tmp_path / "keys.json", "rich")
    assert "rich" not in (tmp_path / "keys.json").read_text()


def test_a_spent_budget_says_when_the_month_ends_and_the_next_begins_anew(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.json", Key("poor", budget=1.0)).encode()
    now = [datetime(2026, 12, 31, 23, 58, tzinfo=UTC)]
    door = Door(tmp_path / "keys.json", spent={"poor": 2.0}, now=lambda: now[0])
    with pytest.raises(LimitError, match="until 2027-01-01") as refused:
        door.enter(b"BEARER " + secret)
    assert refused.value.retry_s == 120
    now[0] += timedelta(minutes=2)
    assert door.enter(b"bearer " + secret).name == "poor"


def test_the_wait_that_is_told_is_that_of_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secrets = add_key(file, Key("poor", budget=1e-9)), add_key(file, Key("calm", per_minute=1))

    async def work(here: Live) -> list[int]:
        found = []
        for secret in secrets:
            headers = {"Authorization": f"Bearer {secret}"}
            body = {"model": "large", "messages": [{"role": "user", "content": "x"}]}
            for _ in range(2):
                async with here.http.post(here.url + CHAT, json=body, headers=headers) as response:
                    await response.read()
            found.append(int(response.headers["retry-after"]))
        return found

    month, moment = run(work, tmp_path)
    now = datetime.now(UTC)  # whole seconds are told, rounded up, so from here they reach the month's end
    assert moment in (59, 60)
    ends = now + timedelta(seconds=month)
    assert (ends.day, ends.month) == (1, now.month % 12 + 1)


@pytest.mark.parametrize("needs_key", [False, True])
def test_the_open_document_names_models_only_where_nobody_needs_a_key(
    tmp_path: Path, needs_key: bool
) -> None:
    if needs_key:
        add_key(tmp_path / "keys.json", Key("a"))

    async def work(here: Live) -> Any:
        async with here.http.get(here.url + "/openapi.json") as response:
            return orjson.loads(await response.read())

    model = run(work, tmp_path)["components"]["schemas"]["Chat"]["properties"]["model"]
    named = model["anyOf"][0]["enum"]
    assert {"consort", "consort/cascade"} <= set(named)
    assert ("large" in named) == (not needs_key)


def test_only_health_and_the_page_are_open_without_a_key(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", Key("a"))

    async def work(here: Live) -> dict[str, int]:
        paths = ("/health", "/", "/v1/models", "/metrics", "/overview", "/api/tags", "/nothing")
        found = {}
        for path in paths:
            async with here.http.get(here.url + path) as response:
                found[path] = response.status
        return found

    statuses = run(work, tmp_path)
    assert statuses == {"/health": 200, "/": 200, "/v1/models": 401, "/metrics": 401, "/overview": 401,
                        "/api/tags": 401, "/nothing": 404}  # fmt: skip


def test_another_method_is_told_which_is_served(tmp_path: Path) -> None:
    async def work(here: Live) -> dict[str, tuple[int, str | None]]:
        found = {}
        for method, path in (
            ("DELETE", "/v1/models"),
            ("GET", CHAT),
            ("PUT", "/api/chat"),
            ("HEAD", "/health"),
        ):
            async with here.http.request(method, here.url + path) as response:
                found[f"{method} {path}"] = response.status, response.headers.get("allow")
                if method == "HEAD":
                    assert response.headers["content-length"] == str(len('{"status":"ok"}'))
        return found

    assert run(work, tmp_path) == {
        "DELETE /v1/models": (405, "GET, HEAD"), f"GET {CHAT}": (405, "POST"),
        "PUT /api/chat": (405, "POST"), "HEAD /health": (200, None),
    }  # fmt: skip


def test_another_sites_page_may_not_ask_unless_it_is_allowed(tmp_path: Path) -> None:
    async def work(here: Live) -> list[tuple[int, str | None]]:
        found = []
        for origin in (here.url, "https://elsewhere.example", "https://friend.example"):
            body = {"messages": [{"role": "user", "content": "x"}]}
            async with here.http.post(here.url + CHAT, json=body, headers={"Origin": origin}) as response:
                found.append((response.status, response.headers.get("access-control-allow-origin")))
        return found

    assert run(work, tmp_path) == [(200, None), (403, None), (403, None)]
    friend = "https://friend.example"
    assert run(work, tmp_path, allow_origin=friend) == [(200, friend), (403, friend), (200, friend)]


def test_the_dashboard_is_one_page_that_loads_nothing_else(tmp_path: Path) -> None:
    async def work(here: Live) -> tuple[str, Any]:
        await here.ask(model="consort/edge")
        async with here.http.get(here.url + "/") as page, here.http.get(here.url + "/overview") as overview:
            return await page.text(), orjson.loads(await overview.read())

    page, now = run(work, tmp_path)
    assert not re.search(r"(src|href)=[\"'](?!data:)|@import|url\(|https?://", page)
    assert (now["requests"], now["edge_share"], now["p50_s"] >= 0) == (1, 1.0, True)
    assert [(model["name"], model["side"], model["state"]) for model in now["models"]] == [
        ("small", "edge", "idle"),
        ("large", "cloud", "idle"),
    ]
    assert now["recent"][0]["spans"] == [["small", len(SMALL)]]


def test_the_dashboard_counts_private_spans_by_kind_and_never_says_them(tmp_path: Path) -> None:
    async def work(here: Live) -> Any:
        for _ in range(2):
            await here.ask("Write to ann.weiss@example.org", model="consort/cloud", consort={"redact": True})
        async with here.http.get(here.url + "/overview") as overview:
            return orjson.loads(await overview.read())

    now = run(work, tmp_path)
    assert now["redactions"] == {"email": 2}
    assert [answer["redactions"] for answer in now["recent"]] == [{"email": 1}] * 2
    assert "weiss" not in str(now)


def test_metrics_speak_opentelemetrys_names_and_hold_no_text(tmp_path: Path) -> None:
    async def work(here: Live) -> str:
        await here.ask("a very secret question", model="consort/cascade", consort={"threshold": 2})
        await here.ask(model="what\n is this")
        async with here.http.get(here.url + "/metrics") as response:
            return await response.text()

    text = run(work, tmp_path)
    assert 'gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="chat"' in text
    assert (
        'gen_ai_client_token_usage_count{gen_ai_token_type="output",gen_ai_response_model="large"} 1' in text
    )
    assert 'consort_decisions_total{strategy="cascade",event="deferred"} 1' in text
    assert "secret" not in text
    assert "what" not in text


def test_an_ollama_client_chats_and_lists(tmp_path: Path) -> None:
    ollama = pytest.importorskip("ollama")

    async def work(here: Live) -> None:
        client = ollama.AsyncClient(here.url)
        turns = [{"role": "user", "content": "when?"}]
        assert (await client.chat("small", turns)).message.content == SMALL
        pieces = [part async for part in await client.chat("large:latest", turns, stream=True)]
        assert "".join(part.message.content for part in pieces) == LARGE
        assert pieces[-1].done
        assert "consort/vote" in [model.model for model in (await client.list()).models]
        assert (await client.show("large")).capabilities == ["completion"]
        assert "consort/mix" not in here.service.names()  # nobody steers here
        with pytest.raises(ollama.ResponseError):
            await client.show("nothing")
        with pytest.raises(ollama.ResponseError):
            await client.chat("nothing", turns)
        await client._client.aclose()

    run(work, tmp_path)


@pytest.mark.parametrize(
    "script",
    [
        [EVENT_STREAM, framed(event("It ")), CUT],
        [EVENT_STREAM, framed(b"data: garbage\n\n"), b"0\r\n\r\n"],
        [EVENT_STREAM, framed(event("ü").replace("ü".encode(), "ü".encode()[:1])), b"0\r\n\r\n"],
        [EVENT_STREAM, framed(event("It ")), HANG],
        refusal(429),
        refusal(500),
        [HANG],
        [CUT],
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_whatever_the_upstream_does_the_client_gets_an_answer_or_one_error(
    tmp_path: Path, script: list[bytes], stream: bool
) -> None:
    async def go() -> None:
        async with upstream(script) as up:
            far = Remote(Endpoint("far", up.url, "m", silence_s=0.1, backoff_s=0.0))
            async with live(tmp_path, cloud=far, edges=[says("small", SMALL)]) as here:
                for model, is_answered in (("far", False), ("consort/takeover", True)):
                    if stream:
                        events = await here.stream(model=model)
                        errors = [e for e in events if "error" in e]
                        assert len(errors) == (not is_answered)
                    else:
                        status, body = await here.ask(model=model)
                        assert status == (200 if is_answered else 502)
                        assert is_answered or body["error"]["code"] == "upstream_failed"

    asyncio.run(go())


def test_a_killed_gateway_loses_no_finished_request(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from consort.gateway.ledger import Ledger, Row\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for n in range(2000):\n"
        "    numbers = (False, 0, 0, 1, 1, 1, 1, 1, .5, 1)\n"
        "    ledger.record(Row(str(n), n, 'k', 'm', 's', 'done', *numbers, (), (), ()))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -9
    ledger = Ledger(tmp_path)
    assert ledger.spent_since(0) == {"k": 1000.0}
    with pytest.raises(ConsortError, match="another gateway"):
        Ledger(tmp_path)
    ledger.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger.lock", "ledger.sqlite"]


def test_text_is_kept_only_where_it_is_asked_for(tmp_path: Path) -> None:
    async def work(here: Live) -> None:
        await here.ask("a secret", model="small")

    run(work, tmp_path, log_text=True)
    assert (rows(tmp_path)[0]["prompt"], rows(tmp_path)[0]["answer"]) == ("user: a secret", SMALL)


def test_too_many_at_once_are_told_to_come_back(tmp_path: Path) -> None:
    async def work(here: Live) -> Any:
        return await here.ask()

    status, body = run(work, tmp_path, max_in_flight=0)
    assert (status, body["error"]["code"]) == (503, "rate_limit_exceeded")
