"""`consort/mix` behind the endpoint: a served proxy with its adapter steers, with the first edge where it can
be read; the receipt says how much each."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from consort.config import Config, RuntimeConfig
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import UpstreamError
from consort.gateway.loading import load_guides, load_lm, load_proxy
from consort.inference.mixture import Guide
from consort.types import LM, Message, Request
from tests.gateway.live import CHAT, SMALL, Live, live, text_of
from tests.inference.test_mixture import breaking
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
    calls = {call["model"]: call for call in receipt["calls"]}
    assert calls.keys() == {"cloud", "proxy"}
    assert all(call["outcome"] == "done" and call["counted"] for call in receipt["calls"])
    # alone it read and wrote as much; mixing, the token that ends an answer was asked for too
    read, wrote = plain["usage"]["prompt_tokens"], calls["cloud"]["completion_tokens"]
    assert calls["cloud"]["prompt_tokens"] == read == same["usage"]["prompt_tokens"]
    assert wrote == note["tokens"] == same["usage"]["completion_tokens"] == receipt["cloud_tokens"]
    assert wrote - plain["usage"]["completion_tokens"] == (plain["choices"][0]["finish_reason"] == "stop")
    assert receipt["edge_tokens"] == calls["proxy"]["completion_tokens"] == wrote
    _, least = await here.ask(model="consort/mix", max_tokens=1)
    assert least["usage"]["completion_tokens"] == 1
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


def test_where_all_sessions_are_taken_the_client_may_try_again_and_pays_nothing(
    tmp_path: Path, guides: tuple[Guide, ...]
) -> None:
    cloud = load_lm(CLOUD, CPU, sessions=1)

    async def work() -> None:
        async with live(tmp_path, edges=(), cloud=cloud, guides=(Guide(guides[0].tuned),)) as here:
            here.service.prices = {"cloud": ServedModel(price_in=1.0, price_out=10.0)}
            request = Request((Message("user", "when?"),))
            session, _ = await asyncio.to_thread(cloud.open, request)  # type: ignore[attr-defined]
            body = {"model": "consort/mix", "messages": [{"role": "user", "content": "when?"}]}
            async with here.http.post(here.url + CHAT, json=body) as response:
                refused = (await response.json())["error"]
                assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert refused["code"] == "rate_limit_exceeded"
            session.close()
            status, _ = await here.ask(model="consort/mix", max_tokens=2)
            assert status == 200
            free, paid = here.service.recent
            assert (free.outcome, free.cost, free.prompt_tokens) == ("rate_limit_exceeded", 0.0, 0)
            assert paid.cost > 0

    asyncio.run(work())


@pytest.mark.parametrize("after", [0, 3])
def test_where_the_cloud_is_lost_the_edge_goes_on(
    tmp_path: Path, guides: tuple[Guide, ...], after: int
) -> None:
    cloud = load_lm(CLOUD, CPU, sessions=1)
    lost = breaking(cloud, after, UpstreamError("cannot be reached again", where="cloud"))

    async def work() -> None:
        async with live(tmp_path, cloud=lost, guides=(Guide(guides[0].tuned),)) as here:
            status, found = await here.ask(
                model="consort/mix", max_tokens=12, consort={"receipt": True, "mix_weight": 0}
            )
            (choice,), receipt = found["choices"], found["consort"]["receipt"]
            assert (status, choice["finish_reason"]) == (200, "stop")
            assert receipt["spans"][-1][0] == "small"
            assert [(note["strategy"], note["event"]) for note in receipt["notes"]] == [
                ("mix", "mixed"),
                ("takeover", "broke"),
            ]
            assert choice["message"]["content"].endswith(SMALL)
            mixed, continued = receipt["notes"][0]["tokens"], len(SMALL.split())
            assert found["usage"]["completion_tokens"] == mixed + continued
            asked = receipt["calls"][0 if mixed else -1]["prompt_tokens"]  # by whom it was begun
            assert found["usage"]["prompt_tokens"] == asked
            assert receipt["cost"] <= receipt["cost_all_cloud"]

    asyncio.run(work())


def test_the_proxy_and_the_edge_steer_together_each_by_its_share(
    tmp_path: Path, guides: tuple[Guide, ...]
) -> None:
    cloud = load_lm(CLOUD, CPU, sessions=2)
    edge = load_lm(ServedModel(name="edge", model="zoo:edge-qwen2", context_tokens=96), CPU, sessions=2)
    (proxy,) = guides

    async def work() -> None:
        async with live(tmp_path, edges=(edge,), cloud=cloud, guides=(proxy, Guide(edge))) as here:
            asked = {"model": "consort/mix", "max_tokens": 6}
            _, found = await here.ask(consort={"receipt": True}, **asked)
            (note,) = found["consort"]["receipt"]["notes"]
            both = here.service.config.mix_weight
            of_edge = both * here.service.config.mix_edge_share
            assert note["weight"] == pytest.approx(both)
            assert note["weight of edge"] == pytest.approx(of_edge, abs=1e-4)
            assert note["weight of proxy"] == pytest.approx(both - of_edge, abs=1e-4)
            _, found = await here.ask(consort={"receipt": True, "mix_edge_share": 0}, **asked)
            (note,) = found["consort"]["receipt"]["notes"]
            assert "weight of edge" not in note
            assert note["weight of proxy"] == pytest.approx(both)
            # of the edge nobody knows what it was before its tuning: the proxy steers alone
            _, found = await here.ask(consort={"receipt": True, "mix_kind": "tuned"}, **asked)
            assert "weight of edge" not in found["consort"]["receipt"]["notes"][0]
            status, refused = await here.ask(consort={"mix_edge_share": 1.5}, **asked)
            assert (status, "between 0 and 1" in refused["error"]["message"]) == (400, True)

    asyncio.run(work())


def test_what_is_served_steers_by_the_proxy_and_the_first_edge_if_it_can_be_read(
    guides: tuple[Guide, ...],
) -> None:
    edge = load_lm(ServedModel(name="edge", model="zoo:edge-qwen2", context_tokens=96), CPU, sessions=1)
    far = load_lm(ServedModel(name="far", model="edge", base_url="http://127.0.0.1:9/v1"), CPU)
    named = ServedModel(model="zoo:proxy", adapter="somewhere", context_tokens=96)
    config = Config(serve=ServeConfig(proxy=named, sessions=1), runtime=CPU)
    (tuned,) = guides
    assert [guide.tuned.name for guide in load_guides(config, tuned.tuned, (edge, far))] == ["proxy", "edge"]
    assert [guide.tuned.name for guide in load_guides(config, tuned.tuned, (far, edge))] == ["proxy"]


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
