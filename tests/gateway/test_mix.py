"""`consort/mix` behind the endpoint: a served proxy with its adapter steers, the receipt says how much."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from consort.config import Config, RuntimeConfig
from consort.config_serve import ServeConfig, ServedModel
from consort.gateway.loading import load_guides, load_lm, load_proxy
from consort.inference.mixture import Guide
from consort.types import LM
from tests.gateway.live import Live, live, text_of
from tests.tiny_models import tune_somehow

CPU = RuntimeConfig(device="cpu")
CLOUD = ServedModel(name="cloud", model="zoo:cloud", answers=1, context_tokens=96)


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Guide, ...]:
    from consort.models.local import load_model
    from consort.training.adapters import OWN
    from consort.training.peft_directory import save_adapter

    adapter = tmp_path_factory.mktemp("adapter")
    proxy = load_model("zoo:proxy", runtime=CPU, name="proxy")
    tune_somehow(proxy)
    save_adapter(proxy, OWN, adapter, base="zoo:proxy")
    named = ServedModel(model="zoo:proxy", adapter=str(adapter), context_tokens=96)
    config = Config(serve=ServeConfig(proxy=named, sessions=2), runtime=CPU)
    found = load_guides(config, load_proxy(config), ())
    (guide,) = found
    assert guide.base is not None
    assert (guide.tuned.name, guide.base.name) == ("proxy", "proxy-base")
    return found


def test_without_an_adapter_there_is_nothing_to_steer_by() -> None:
    assert load_guides(Config(), None, ()) == ()
    bare = Config(serve=ServeConfig(proxy=ServedModel(model="zoo:proxy")), runtime=CPU)
    assert load_guides(bare, load_proxy(bare), ()) == ()


def test_the_endpoint_mixes_and_its_receipt_says_how_much(tmp_path: Path, guides: tuple[Guide, ...]) -> None:
    cloud = load_lm(CLOUD, CPU, sessions=2)

    async def work() -> None:
        async with live(tmp_path, cloud=cloud, guides=guides) as here:
            await _mixed(here, cloud)

    asyncio.run(work())


async def _mixed(here: Live, cloud: LM) -> None:
    asked = {"max_tokens": 8, "temperature": 1.0, "seed": 3}
    _, plain = await here.ask(model="cloud", **asked)
    _, same = await here.ask(model="consort/mix", consort={"mix_weight": 0, "receipt": True}, **asked)
    text = plain["choices"][0]["message"]["content"]
    assert same["choices"][0]["message"]["content"] == text
    assert same["model"] == "cloud"
    receipt = same["consort"]["receipt"]
    (note,) = receipt["notes"]
    assert (note["strategy"], note["changed"], note["weight"]) == ("mix", 0, 0.0)
    (call,) = receipt["calls"]
    assert (call["model"], call["outcome"]) == ("cloud", "done")
    assert call["completion_tokens"] in (note["tokens"], note["tokens"] - 1)  # the last one is not read
    events = await here.stream(model="consort/mix", consort={"mix_weight": 2, "receipt": True}, **asked)
    assert {event["model"] for event in events if event != "[DONE]"} <= {"cloud", "proxy", "consort/mix"}
    assert text_of(events) != text
    for wrong, words in (
        ({"mix_kind": "magic"}, "must be one of tuned"),
        ({"mix_schedule": "learned"}, "no learned weights"),
        ({"mix_half_life": 0}, "more than 0"),
    ):
        status, refused = await here.ask(model="consort/mix", consort=wrong)
        assert (status, words in refused["error"]["message"]) == (400, True)
    here.service.guides = ()
    status, refused = await here.ask(model="consort/mix")
    assert (status, "no tuned proxy" in refused["error"]["message"]) == (400, True)


def test_another_tokenizer_may_steer_at_the_endpoint(tmp_path: Path) -> None:
    cloud = load_lm(replace(CLOUD, answers=1), CPU, sessions=1)
    edge = load_lm(ServedModel(name="edge", model="zoo:edge-qwen2", context_tokens=96), CPU, sessions=1)

    async def work() -> None:
        async with live(tmp_path, cloud=cloud, guides=(Guide(edge),)) as here:
            status, found = await here.ask(
                model="consort/mix", max_tokens=6, consort={"mix_kind": "product", "mix_weight": 1}
            )
            assert (status, bool(found["choices"][0]["message"]["content"])) == (200, True)

    asyncio.run(work())
