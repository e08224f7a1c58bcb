"""What is private never reaches the cloud's socket, and the answer has it again, however it is streamed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from consort.models.remote import Endpoint, Remote
from tests.gateway.live import Live, live, text_of
from tests.inference.consorts import says
from tests.upstream import Upstream, answer, upstream

CARD = "4111 1111 1111 1111"
QUESTION = f"My card is {CARD}, is it blocked?"
ANSWER = f"Yes, {CARD} is blocked."
SAID = answer("Yes, [CA", "RD", "_1", "] is blocked.")


def through(folder: Path, work: Any, **config: Any) -> tuple[Any, Upstream]:
    async def go() -> tuple[Any, Upstream]:
        async with upstream(SAID) as up:
            cloud = Remote(Endpoint("large", up.url, "m", "key"))
            async with live(folder, cloud=cloud, threshold=2.0, **config) as here:
                return await asyncio.wait_for(work(here), 15), up

    return asyncio.run(go())


@pytest.mark.parametrize("model", ["large", "consort/cloud", "consort/route", "consort/cascade",
                                   "consort/cache", "consort/takeover"])  # fmt: skip
@pytest.mark.parametrize("configured", [True, False])
def test_a_card_number_stays_here_and_comes_back_in_the_stream(
    tmp_path: Path, model: str, configured: bool
) -> None:
    asked = {"receipt": True} | ({} if configured else {"redact": True})

    async def work(here: Live) -> tuple[Any, Any, Any]:
        events = await here.stream(QUESTION, model=model, consort=asked)
        _, whole = await here.ask(QUESTION, model=model, consort=asked)
        return events, whole, here.service.recent[0]

    (events, whole, row), up = through(tmp_path, work, redact=configured)
    assert text_of(events) == whole["choices"][0]["message"]["content"] == ANSWER
    assert up.requests
    bodies = [request.partition(b"\r\n\r\n")[2] for request in up.requests]  # a port may read 4111 too
    assert not any(CARD.encode() in body or b"4111" in body for body in bodies)
    assert b"[CARD_1]" in up.requests[0]
    assert row.redactions == {"card": 1}
    assert whole["consort"]["receipt"]["redactions"] == {"card": 1}


def test_what_stays_at_the_edge_is_left_as_it_is(tmp_path: Path) -> None:
    edge = says("small", "no")

    async def work(here: Live) -> None:
        await here.ask(QUESTION, model="consort/edge")
        await here.ask(QUESTION, model="small")
        await here.ask(QUESTION, model="consort/cascade", consort={"private": True})

    _, up = through(tmp_path, work, redact=True, edges=[edge])
    assert [request.messages[0].content for request in edge.calls] == [QUESTION] * 3
    assert not up.requests


def test_a_request_cannot_switch_off_what_is_configured(tmp_path: Path) -> None:
    async def work(here: Live) -> tuple[int, Any]:
        return await here.ask(QUESTION, model="large", consort={"redact": False})

    ((status, body), up) = through(tmp_path, work, redact=True)
    assert (status, body["error"]["param"]) == (400, "consort.redact")
    assert not up.requests
