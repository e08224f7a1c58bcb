"""Money and bytes of a request: what was not answered costs nothing, what was not sent is no byte, and the
cloud alone is what the comparison says."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from consort.config import RuntimeConfig
from consort.config_serve import ServedModel
from consort.gateway.loading import load_lm
from consort.gateway.rates import Rates
from consort.inference.metering import Call
from consort.models.remote import Endpoint, Remote
from consort.types import Usage
from tests.gateway.live import Live, live
from tests.inference.consorts import says

LARGE = ServedModel(name="large", model="zoo:cloud", answers=1, context_tokens=64)


def recorded(here: Live) -> dict[str, Any]:
    row = here.service.recent[-1]
    return {name: getattr(row, name) for name in ("outcome", "cloud_bytes", "cost", "cost_all_cloud")}


def test_a_cloud_that_is_not_there_costs_nothing_and_was_sent_nothing(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        cloud = Remote(Endpoint("large", url, "m", attempts=2, backoff_s=0.0))

        async def work() -> None:
            async with live(tmp_path, cloud=cloud) as here:
                status, _ = await here.ask("when do you open?", model="consort/cloud")
                assert status == 502
                assert recorded(here) == {
                    "outcome": "upstream_failed",
                    "cloud_bytes": 0,
                    "cost": 0.0,
                    "cost_all_cloud": 0.0,
                }

        asyncio.run(work())


def test_a_prompt_that_a_model_here_refuses_costs_nothing(tmp_path: Path) -> None:
    cloud = load_lm(LARGE, RuntimeConfig(device="cpu"))

    async def work() -> None:
        async with live(tmp_path, cloud=cloud) as here:
            status, _ = await here.ask("open " * 500, model="large")
            assert status == 400
            row = recorded(here)
            assert (row["cloud_bytes"], row["cost"], row["cost_all_cloud"]) == (0, 0.0, 0.0)

    asyncio.run(work())


def test_an_answer_kept_at_the_edge_is_compared_in_the_clouds_own_tokens(tmp_path: Path) -> None:
    async def work() -> None:
        edges, cloud = [says("small", "a b c d e f")], says("large", "abcde f")  # they count words
        async with live(tmp_path, edges=edges, cloud=cloud) as here:
            await here.ask("when do you open", model="small")
            assert recorded(here)["cost_all_cloud"] == pytest.approx((4 * 1 + 6 * 10) / 1e6)  # nothing known
            await here.ask("when do you open", model="large")
            assert recorded(here)["cost_all_cloud"] == pytest.approx(recorded(here)["cost"])
            await here.ask("when do you open", model="small")
            words = 4 + round(11 / (7 / 2)) * 10
            assert recorded(here)["cost_all_cloud"] == pytest.approx(words / 1e6)

    asyncio.run(work())


def test_nothing_is_estimated_before_the_cloud_has_counted() -> None:
    rates = Rates()
    assert rates.estimated(10, 10) is None
    rates.observe(Call("large", "cloud", 40, 0.0, prompt_tokens=10, completion_tokens=7), 40, 0)
    assert rates.estimated(10, 10) is None
    rates.observe(Call("large", "cloud", 40, 0.0, prompt_tokens=10, completion_tokens=5), 40, 10)
    assert rates.estimated(20, 30) == Usage(5, 15)
