"""What is listed can answer, what is not is refused, and `consort` means what can: whoever is served."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consort.config import Config, RuntimeConfig
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ConfigError
from consort.gateway.ability import loaded, parties_of, refusal
from consort.gateway.loading import load_lm
from consort.gateway.opening import chosen_strategy, open_service
from consort.gateway.strategies import STRATEGIES
from consort.preflight import examine
from tests.gateway.live import live

CPU = RuntimeConfig(device="cpu")
EDGE = ServedModel(name="edge", model="zoo:edge-llama", answers=2, context_tokens=128)
CLOUD = ServedModel(name="cloud", model="zoo:cloud", answers=2, context_tokens=128)
FAR = ServedModel(name="far", model="m", base_url="http://127.0.0.1:1/v1")
MUTE = replace(FAR, name="mute", logprobs=False)
VERIFIER = replace(FAR, name="verifier", drafted=True)
TUNED = ServedModel(model="zoo:proxy", adapter="somewhere")


def serving(edge: ServedModel | None, cloud: ServedModel | None, **more: Any) -> Config:
    edges = () if edge is None else (edge,)
    return Config(serve=ServeConfig(edges=edges, cloud=cloud or ServedModel(), **more), runtime=CPU)


@pytest.mark.parametrize(
    ("edge", "cloud", "means"),
    [
        (EDGE, CLOUD, "cascade"),
        (EDGE, None, "cascade"),
        (MUTE, None, "route"),
        (MUTE, CLOUD, "route"),
        (None, CLOUD, "cloud"),
        (None, VERIFIER, "cloud"),
    ],
)
def test_where_no_strategy_is_named_consort_means_one_that_can_answer(edge, cloud, means) -> None:
    assert chosen_strategy(serving(edge, cloud)) == means
    assert chosen_strategy(serving(EDGE, CLOUD, role="cloud")) == "cloud"


@pytest.mark.parametrize(("edge", "cloud"), [(EDGE, CLOUD), (EDGE, None), (None, CLOUD)])
def test_a_strategy_is_listed_exactly_where_it_answers(tmp_path: Path, edge, cloud) -> None:
    service = open_service(serving(edge, cloud, strategy="", sessions=1, state=str(tmp_path / "opened")))
    service.ledger.close()

    async def work() -> None:
        async with live(tmp_path) as here:
            for name in ("edges", "cloud", "config", "deferral", "proxy", "needs_logprobs"):
                setattr(here.service, name, getattr(service, name))
            listed = set(here.service.names())
            async with here.http.get(f"{here.url}/api/tags") as response:
                assert {each["name"] for each in (await response.json())["models"]} == listed
            for name in ("consort", *(f"consort/{each}" for each in STRATEGIES)):
                status, body = await here.ask("Name the intent.", model=name, max_tokens=2)
                assert (status == 200) == (name in listed), (name, body)

    asyncio.run(work())
    for lm in service.models:
        lm.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("strategy", [*STRATEGIES, "vot"])
@pytest.mark.parametrize("edge", [EDGE, MUTE, None])
@pytest.mark.parametrize("cloud", [CLOUD, FAR, VERIFIER, None])
def test_check_finds_a_strategy_that_cannot_answer_exactly_where_serving_refuses_it(
    edge, cloud, strategy
) -> None:
    if edge is None and cloud is None:
        return
    for proxy in (ServedModel(), TUNED):
        config = serving(edge, cloud, strategy=strategy, proxy=proxy)
        told = [each for each in examine(config, models=True).problems if each.key == "serve.strategy"]
        if told:
            with pytest.raises(ConfigError, match=re.escape(told[0].what)):
                chosen_strategy(config)
        else:
            assert chosen_strategy(config) == strategy


@pytest.mark.parametrize("model", [EDGE, MUTE, FAR, VERIFIER])
def test_what_a_model_can_do_is_known_before_it_is_loaded(model: ServedModel) -> None:
    lm = load_lm(model, CPU)
    assert parties_of(ServeConfig(), (model,), ServedModel()).edge == loaded(lm)
    if model is EDGE:
        lm.close()  # type: ignore[attr-defined]


def test_the_documented_device_does_not_list_what_needs_an_edge() -> None:
    who = parties_of(ServeConfig(), (), VERIFIER)
    able = {name for name in STRATEGIES if refusal(name, who) is None}
    assert able == {"cloud", "takeover", "speculate", "auto"}
