"""Whatever a model does, under every strategy a client gets one whole answer or one well-formed error."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from consort.gateway.strategies import STRATEGIES
from consort.models.remote import Endpoint, Remote
from tests.gateway.live import LARGE, SMALL, Live, live, text_of
from tests.inference.consorts import says
from tests.upstream import CUT, FAULTS, upstream

# These refuse models whose tokens they cannot read, as all are here.
OF_TOKENS = {"speculate", "defer", "mix"}


@contextlib.asynccontextmanager
async def faulty(script: list[bytes] | None, name: str) -> AsyncIterator[Remote]:
    async with upstream(script or [CUT]) as up:
        url = up.url
        if script is None:
            with socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        yield Remote(Endpoint(name, url, "m", silence_s=0.1, attempts=2, backoff_s=0.0))


async def whole_or_error(here: Live, model: str) -> None:
    """One whole answer, or one error of OpenAI's form with a status of ours to tell of others."""
    status, body = await here.ask(model=model, consort={"deadline_s": 5})
    if status == 200:
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["content"]
    else:
        assert status in (502, 504)
        assert body["error"].keys() == {"message", "type", "param", "code"}


async def stream_or_error(here: Live, model: str) -> None:
    """A stream that is whole, or has one error at its end; or an error before it."""
    events: list[Any] = await here.stream(model=model, consort={"deadline_s": 5})
    errors = [each for each in events if "error" in each]
    assert len(errors) <= 1
    if events[-1] != "[DONE]":
        assert events == errors  # before its first event a failure is an HTTP error
        return
    if errors:
        assert events[-2] is errors[0]
        return
    assert [e["choices"][0]["finish_reason"] for e in events[:-1]].count("stop") == 1
    assert text_of(events)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_every_strategy_answers_or_fails_in_one_piece(tmp_path: Path, fault: str, side: str) -> None:
    async def work() -> None:
        async with faulty(FAULTS[fault], "broken") as broken:
            edges = [broken, says("second", SMALL)] if side == "edge" else [says("small", SMALL)]
            cloud = broken if side == "cloud" else says("large", LARGE)
            async with live(tmp_path, edges=edges, cloud=cloud, threshold=0.9, stall_s=1.0) as here:
                names = ["broken", *(f"consort/{name}" for name in STRATEGIES.keys() - OF_TOKENS)]
                async with asyncio.timeout(30):
                    await asyncio.gather(
                        *(whole_or_error(here, name) for name in names),
                        *(stream_or_error(here, name) for name in names),
                    )
                assert here.service.in_flight == 0

    asyncio.run(work())
