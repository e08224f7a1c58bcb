"""A simulated model is always the same model."""

from __future__ import annotations

import asyncio

import pytest

from consort.errors import UpstreamError
from consort.models.simulated import Fault, Simulated, pieces
from consort.types import Chunk, Request
from tests.inference.consorts import user


def ask(lm: Simulated, request: Request) -> list[Chunk]:
    async def run() -> list[Chunk]:
        return [chunk async for chunk in lm.stream(request)]

    return asyncio.run(run())


def test_the_same_request_gives_the_same_chunks_and_another_seed_others() -> None:
    first, again = (ask(Simulated("a", seed=1), user("hello", top_logprobs=2)) for _ in range(2))
    assert first == again
    assert first != ask(Simulated("a", seed=2), user("hello", top_logprobs=2))


def test_a_limit_and_a_stop_sequence_end_the_answer() -> None:
    lm = Simulated("a", answer=lambda request: "one two three four")
    cut = ask(lm, user("x", max_tokens=2))
    assert "".join(c.text for c in cut) == "one two"
    assert cut[-1].finish_reason == "length"
    stopped = ask(lm, user("x", stop=(" three",)))
    assert "".join(c.text for c in stopped) == "one two"
    assert stopped[-1].finish_reason == "stop"


def test_pace_is_an_argument() -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    ask(Simulated("a", answer=lambda r: "one two three", first_token_s=3, token_s=1, sleep=sleep), user("x"))
    assert waited == [3, 1, 1]


def test_a_fault_comes_after_so_many_tokens() -> None:
    lm = Simulated("a", answer=lambda r: "one two three", fault=Fault("break", 2))
    seen: list[str] = []

    async def run() -> None:
        async for chunk in lm.stream(user("x")):
            seen.append(chunk.text)

    with pytest.raises(UpstreamError):
        asyncio.run(run())
    assert seen == ["one", " two"]
    assert lm.in_flight == 0


def test_pieces_join_to_the_text() -> None:
    for text in ("", " ", "a  b ", "one two"):
        assert "".join(pieces(text)) == text
