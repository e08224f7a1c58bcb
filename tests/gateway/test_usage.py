"""Tokens and money of answers that several wrote: what a client is told it got is what it got, by every
strategy and wherever the cloud breaks off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from consort.models.simulated import Fault
from consort.types import Capability, Chunk, Request
from tests.gateway.live import Live, live, text_of
from tests.inference.consorts import says

# Simulated models make a token of every word; here each ends in a full stop, to be counted wherever one
# answer is cut and the next begins, and has four characters, as a token of a broken stream is taken to have.
ASKED = "when do you open on sunday?"
SMALL, LARGE = "at. me. it. is. in. on.", "so. we. go. at. 9h. or. on. Su. up. to. 6h."
WRITTEN = LARGE.count(".")
BY_CLOUD = ["takeover", "route", "cascade", "vote", "cache", "auto"]
NEVER_KEPT = {"threshold": 2.0, "goal": "quality", "stall_s": 0.1, "receipt": True}


class Uncounted:
    """An edge that counts no tokens, as some endpoints do."""

    name, capabilities = "small", frozenset[Capability]({"logprobs"})

    def __init__(self, text: str) -> None:
        self._text = text

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        async for chunk in says("small", self._text).stream(request):
            yield replace(chunk, usage=None)


class Cut:
    """A cloud that fails after so many tokens as the question ends in."""

    name, capabilities = "large", frozenset[Capability]()

    def __init__(self, kind: Literal["break", "stall"]) -> None:
        self._kind = kind

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        after = int(request.messages[0].content.split()[-1])
        return says("large", LARGE, fault=Fault(self._kind, after)).stream(request)


async def asked(here: Live, strategy: str, *, cut: int, stream: bool, **more: Any) -> tuple[str, Any, Any]:
    """Text, usage and receipt of an answer."""
    body = {"model": f"consort/{strategy}", "consort": {**NEVER_KEPT, **more}}
    if not stream:
        _, found = await here.ask(f"{ASKED} {cut}", **body)
        return found["choices"][0]["message"]["content"], found["usage"], found["consort"]["receipt"]
    *events, last, _ = await here.stream(f"{ASKED} {cut}", stream_options={"include_usage": True}, **body)
    return text_of(events), last["usage"], last["consort"]["receipt"]


@pytest.mark.parametrize("strategy", BY_CLOUD)
@pytest.mark.parametrize("kind", ["break", "stall"])
@pytest.mark.parametrize("edge_says", [SMALL, LARGE], ids=["goes on", "repeats"])
def test_usage_is_the_tokens_of_the_delivered_text_wherever_the_cloud_is_cut(
    tmp_path: Path, strategy: str, kind: Any, edge_says: str
) -> None:
    async def one(here: Live, cut: int, *, stream: bool, **more: Any) -> None:
        text, usage, receipt = await asked(here, strategy, cut=cut, stream=stream, **more)
        read, written = receipt["prompt_tokens"], receipt["completion_tokens"]
        assert usage == {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        assert written == text.count(".")
        # the request as whoever began counts it; of a cloud that was cut off, characters by four
        counted, estimated = len(ASKED.split()) + 1, -(-len(f"{ASKED} {cut}") // 4)
        assert counted != estimated
        began = {author for author, _ in receipt["spans"][:1]}
        assert read == (estimated if began == {"large"} and cut < WRITTEN else counted)
        assert receipt["cost"] <= receipt["cost_all_cloud"]

    async def work() -> None:
        edges = [says("small", edge_says), says("second", "no. ye. oh.")]
        async with live(tmp_path, edges=edges, cloud=Cut(kind), stall_s=0.1) as here:
            asking = [
                one(here, cut, stream=stream, optimistic=optimistic)
                for cut in (0, 1, WRITTEN // 2, WRITTEN - 1, WRITTEN + 1)
                for stream in (False, True)
                for optimistic in (False, True)
            ]
            async with asyncio.timeout(30):
                await asyncio.gather(*asking)

    asyncio.run(work())


@pytest.mark.parametrize("strategy", ["cascade", "cloud"])
def test_what_the_cloud_alone_wrote_costs_what_the_cloud_alone_costs(tmp_path: Path, strategy: str) -> None:
    async def work() -> None:
        async with live(tmp_path, edges=[says("small", SMALL)], cloud=Cut("break")) as here:
            for stream in (False, True):
                *_, receipt = await asked(here, strategy, cut=WRITTEN + 1, stream=stream)
                assert receipt["cost"] == receipt["cost_all_cloud"] > 0

    asyncio.run(work())


@pytest.mark.parametrize("strategy", BY_CLOUD)
@pytest.mark.parametrize("cut", [0, WRITTEN // 2])
def test_what_nobody_counted_is_estimated_once(tmp_path: Path, strategy: str, cut: int) -> None:
    async def work() -> None:
        async with live(tmp_path, edges=[Uncounted(SMALL)], cloud=Cut("stall"), stall_s=0.1) as here:
            for stream in (False, True):
                text, usage, _ = await asked(here, strategy, cut=cut, stream=stream)
                # the event that ends an answer may count as one more
                assert usage["completion_tokens"] - text.count(".") in (0, 1)
                assert usage["prompt_tokens"] == -(-len(f"{ASKED} {cut}") // 4)

    asyncio.run(work())


@pytest.mark.parametrize("strategy", ["takeover", "cascade", "auto"])
def test_a_cloud_that_never_began_costs_nothing(tmp_path: Path, strategy: str) -> None:
    async def work() -> None:
        async with live(tmp_path, edges=[says("small", SMALL)], cloud=Cut("stall"), stall_s=0.1) as here:
            text, _, receipt = await asked(here, strategy, cut=0, stream=False)
            assert (text, receipt["cost"], receipt["cloud_tokens"]) == (SMALL, 0.0, 0)
            (call,) = [call for call in receipt["calls"] if call["side"] == "cloud"]
            assert (call["outcome"], call["prompt_tokens"], call["completion_tokens"]) == ("stalled", 0, 0)
            assert receipt["cloud_bytes"] > 0  # it was sent the question all the same

    asyncio.run(work())


@pytest.mark.parametrize("cut", [0, 1])
def test_auto_takes_a_cloud_that_hangs_for_one_that_is_down(tmp_path: Path, cut: int) -> None:
    async def work() -> None:
        async with live(tmp_path, edges=[says("small", SMALL)], cloud=Cut("stall"), stall_s=0.1) as here:
            for _ in range(4):
                text, _, receipt = await asked(here, "auto", cut=cut, stream=False)
                assert text.endswith(SMALL)
            assert receipt["notes"][0]["reason"] == "cloud_down"
            gauge = here.service.gauges["large"]
            assert (gauge.failures, gauge.failures_in_row, gauge.requests) == (3, 3, 3)

    asyncio.run(work())


def test_a_client_of_less_patience_than_is_configured_does_not_take_the_cloud_from_others(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        async with live(tmp_path, edges=[says("small", SMALL)], cloud=Cut("stall"), stall_s=60.0) as here:
            for _ in range(4):
                *_, receipt = await asked(here, "auto", cut=0, stream=False)
            assert receipt["notes"][0]["reason"] == "quality"
            assert here.service.gauges["large"].failures == 0

    asyncio.run(work())
