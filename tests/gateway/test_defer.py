"""`consort/defer` behind the endpoint: two bundled models write one answer; black boxes are refused in words;
the proxy judges without the cloud."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from consort.config import Config, RuntimeConfig
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ConfigError
from consort.gateway.app import close
from consort.gateway.deferring import deferral_of, shows_states
from consort.gateway.judging import judges
from consort.gateway.loading import load_lm, load_proxy
from consort.gateway.opening import open_service
from consort.inference.proxy import proxy_agreement
from consort.inference.token_file import save_token_need
from consort.inference.token_fit import fit_token_need
from consort.inference.white_box import states_of, vocabulary_of
from consort.types import LM, Answer, Message, Request
from tests.gateway.live import live
from tests.inference.test_token_model import lessons
from tests.inference.test_token_states import with_states

EDGE = ServedModel(name="edge", model="zoo:edge-llama", answers=1, context_tokens=128)
CLOUD = ServedModel(name="cloud", model="zoo:cloud", answers=1, context_tokens=128)
FAR = ServedModel(name="far", model="far", base_url="http://127.0.0.1:9/v1")
CPU = RuntimeConfig(device="cpu")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[LM, LM]]:
    models = load_lm(EDGE, CPU, sessions=2), load_lm(CLOUD, CPU, sessions=2)
    yield models
    for lm in models:
        lm.close()  # type: ignore[attr-defined]


def test_two_models_write_one_answer_and_the_receipt_says_how_much(tmp_path: Path, served) -> None:
    edge, cloud = served
    config = ServeConfig(llm_share=0.4)

    async def work() -> None:
        async with live(tmp_path, edges=[edge], cloud=cloud) as here:
            here.service.deferral = deferral_of(config, [edge, cloud], has_cloud=True, sessions=2)
            asked = {"model": "consort/defer", "max_tokens": 16, "consort": {"receipt": True}}
            answers = [await here.ask("When do you open?", **asked) for _ in range(3)]
            for status, body in answers:
                assert status == 200
                told = body["consort"]["receipt"]
                (note,) = told["notes"]
                assert note["strategy"] == "defer"
                assert note["goal"] == 0.4
                assert 0 < note["tokens"] <= 16
                by_side = {call["side"]: call for call in told["calls"]}
                assert ("cloud" in by_side) == (note["cloud_tokens"] > 0)
                assert all(call["outcome"] == "done" for call in told["calls"])
            assert any(body["consort"]["receipt"]["cloud_tokens"] for _, body in answers)
            # what is private stays at the edge, and what nobody here can do is refused in words
            _, kept = await here.ask("and you?", **asked | {"consort": {"receipt": True, "private": True}})
            assert kept["consort"]["receipt"]["cloud_bytes"] == 0
            here.service.deferral = deferral_of(config, [edge, load_lm(FAR, CPU)], has_cloud=True, sessions=2)
            status, refused = await here.ask("and now?", **asked)
            assert (status, "distributions can be read" in refused["error"]["message"]) == (400, True)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("change", "cloud", "sessions", "words"),
    [
        ({}, FAR, 2, "distributions can be read"),
        ({}, CLOUD, 0, "without sessions"),
        ({}, None, 2, "a cloud model"),
        ({"llm_share": 1.5}, CLOUD, 2, "between 0 and 1"),
        ({"token_scorer": "no-such-file"}, CLOUD, 2, "no such token scorer"),
    ],
)
def test_what_cannot_defer_is_told_before_anything_listens(served, change, cloud, sessions, words) -> None:
    config = ServeConfig(strategy="defer", **change)
    models = [served[0], load_lm(FAR, CPU) if cloud == FAR else served[1]]
    with pytest.raises(ConfigError, match=words):
        deferral_of(config, models, has_cloud=cloud is not None, sessions=sessions)


def test_a_scorer_that_reads_states_is_served_with_the_model_it_learned_from(tmp_path: Path, served) -> None:
    """Told before anything listens where the edge shows no states, or other weights' states."""
    cloud, seeing = load_lm(CLOUD, CPU, sessions=2), load_lm(EDGE, CPU, sessions=2, shows_states=True)
    file = tmp_path / "scorer"
    config = ServeConfig(strategy="defer", token_scorer=str(file), llm_share=0.5)
    assert shows_states(config)
    assert not shows_states(ServeConfig())

    taught = with_states(lessons(20), 0, width=96)
    elsewhere = fit_token_need(taught, vocabulary_of(seeing), states_sha256="elsewhere")
    assert elsewhere.states is not None
    save_token_need(elsewhere, file)
    for edge, words in ((served[0], "shows none"), (seeing, "weights elsewhere, and the edge")):
        with pytest.raises(ConfigError, match=words):
            deferral_of(config, [edge, cloud], has_cloud=True, sessions=2)
    own = replace(elsewhere.states, sha256=states_of(seeing))
    save_token_need(replace(elsewhere, states=own), file)

    async def work() -> None:
        async with live(tmp_path, edges=[seeing], cloud=cloud) as here:
            here.service.deferral = deferral_of(config, [seeing, cloud], has_cloud=True, sessions=2)
            status, body = await here.ask(model="consort/defer", max_tokens=16, consort={"receipt": True})
            assert (status, body["consort"]["receipt"]["notes"][0]["event"]) == (200, "written")
        # and `consort serve` opens its edge so that it shows them
        state = str(tmp_path / "state")
        serve = replace(config, edges=(EDGE,), cloud=CLOUD, state=state, sessions=1)
        await close(open_service(Config(serve=serve, runtime=CPU)))

    asyncio.run(work())


def test_the_proxy_reads_an_answer_and_a_likelier_one_scores_higher() -> None:
    """The answer that the proxy writes itself, against noise: in every measure."""
    edge = load_lm(EDGE, CPU, sessions=1)
    serve = ServeConfig(proxy=ServedModel(model="zoo:proxy", answers=1, context_tokens=160))
    proxy = load_proxy(Config(serve=serve, runtime=CPU))
    assert proxy is not None
    request = Request((Message("user", "Name the intent of this message to the bank.\n\nHi"),), max_tokens=24)

    async def work() -> None:
        own = "".join([chunk.text async for chunk in proxy.stream(request)])
        hear = proxy_agreement(proxy, edge)
        liked, disliked, before = [
            await hear(request, answer)
            for answer in (Answer(own, "edge"), Answer("zq zq 77 qqq", "edge"), None)
        ]
        assert (liked.share, liked.likeness) == (1.0, 1.0)
        assert disliked.share < 0.5
        assert disliked.nats_per_byte > liked.nats_per_byte
        assert disliked.least < liked.least
        assert 0 <= before.share <= 1
        judging = judges(serve, proxy)
        assert (judging.name, judging.needs_logprobs, judging.watch) == ("proxy", False, None)
        scores = [await judging.after(request, Answer(text, "edge")) for text in (own, "zq zq 77 qqq", "")]
        assert 1 >= scores[0] > scores[1] > scores[2] == 0

    asyncio.run(work())
    for lm in (proxy, edge):
        lm.close()  # type: ignore[attr-defined]
