"""Speculation's network in virtual time: whatever breaks there, answers are the cloud's own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from speculation_parts import LEVEL_S, STEP_S, over_wire, pace_engine, speculated, streamed, warm_pace, zoo_lm

from consort.bench.simulate import Link, virtual_run
from consort.models.decoding.drafters import ModelDrafter
from consort.types import Message, Request

ASKED = Request((Message("user", "Which counter deals with the Lantern loan?"),), max_tokens=24, seed=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_over_a_breaking_link_is_the_cloud_s(temperature: float) -> None:
    request = replace(ASKED, temperature=temperature)

    async def both() -> None:
        cloud, edge = zoo_lm("edge-gpt2", answers=2), zoo_lm("edge-gpt2")
        pace_engine(cloud, STEP_S)
        pace_engine(edge, LEVEL_S)
        alone = "".join([chunk.text async for chunk in cloud.stream(request)])
        link = Link(rtt_s=0.05, mean_up_s=0.3, outage_s=0.02)
        async with over_wire(cloud, link, seed=3) as (verifier, _):
            drafter = ModelDrafter(edge, cloud.tokenizer)
            found = await speculated(verifier, request, drafter, warm_pace())
        assert found.text == alone
        assert found.told["accepted"] > 0
        cloud.close()
        edge.close()

    virtual_run(both())


@pytest.mark.parametrize("rtt_s", [0.05, 0.15, 0.3])
def test_an_answer_that_is_cut_once_goes_on_whatever_the_round_trip(rtt_s: float) -> None:
    async def both() -> None:
        cloud = zoo_lm("edge-gpt2", answers=2)
        pace_engine(cloud, STEP_S)
        alone = "".join([chunk.text async for chunk in cloud.stream(ASKED)])
        async with over_wire(cloud, Link(rtt_s=rtt_s), seed=3) as (verifier, far):
            asyncio.get_running_loop().call_later(rtt_s + 0.1, far.wire.cut)  # of its .24 s
            found = await streamed(verifier, ASKED)
        assert found.text == alone
        assert found.told["resumed"] == 1
        cloud.close()

    virtual_run(both())
