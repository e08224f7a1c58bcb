"""A bundled model behind the endpoint: it streams with log-probabilities, continues, and stops with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from consort.config import RuntimeConfig
from consort.config_serve import ServedModel
from consort.errors import ModelError, RequestError
from consort.gateway.loading import load_lm
from consort.types import LM
from tests.gateway.live import LARGE, Live, live, text_of
from tests.inference.consorts import user

OWN = ServedModel(name="own", model="zoo:edge-llama", answers=2, context_tokens=128)


@pytest.fixture
def own() -> LM:
    return load_lm(OWN, RuntimeConfig(device="cpu"))


def test_a_bundled_model_answers_streams_and_stops_with_the_endpoint(tmp_path: Path, own: LM) -> None:
    async def work() -> None:
        async with live(tmp_path, edges=[own]) as here:
            await _asked(here)
        with pytest.raises(ModelError, match="was closed"):
            await anext(aiter(own.stream(user())))

    asyncio.run(work())


async def _asked(here: Live) -> None:
    bounds: dict[str, Any] = {"model": "own", "max_tokens": 12}
    events = await here.stream(logprobs=True, top_logprobs=1, **bounds)
    _, whole = await here.ask(logprobs=True, top_logprobs=1, **bounds)
    text = whole["choices"][0]["message"]["content"]
    assert text_of(events) == text
    tokens = whole["choices"][0]["logprobs"]["content"]
    streamed = [
        token
        for event in events[:-1]
        if event["choices"][0].get("logprobs")
        for token in event["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == tokens
    assert len(tokens) == whole["usage"]["completion_tokens"]
    assert all(token["logprob"] <= 0 and token["top_logprobs"] for token in tokens)
    status, refused = await here.ask("word " * 500, **bounds)
    assert (status, "the context is 128" in refused["error"]["message"]) == (400, True)
    for strategy in ("route", "cascade", "vote"):  # what is too long for the edge is the cloud's
        _, deferred = await here.ask("word " * 500, model=f"consort/{strategy}", consort={"threshold": 0})
        assert deferred["choices"][0]["message"]["content"] == LARGE, strategy


def test_a_model_without_a_chat_template_says_so(own: LM) -> None:
    own.model.tokenizer.chat_template = None  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match="no chat template"):
        asyncio.run(anext(aiter(own.stream(user()))))
    own.close()  # type: ignore[attr-defined]
