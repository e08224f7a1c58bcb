"""Strategies that read a model's distributions, before a model far away: what they write is what they would
write with the model here, whatever breaks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from consort.bench.simulate import Link
from consort.bench.simulate.proxy import Shaper
from consort.config import Config
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ConfigError, RequestError, UpstreamError
from consort.gateway.app import close
from consort.gateway.keys import Key, add_key
from consort.gateway.opening import open_service
from consort.inference.deferral import defer
from consort.inference.mixing_weights import fixed
from consort.inference.mixture import Guide, mix
from consort.inference.share import Share
from consort.inference.token_need import doubt
from consort.models.decoding.lm import LocalLM
from consort.models.local import save_model
from consort.models.remote import Endpoint
from consort.models.verifier import Verifier
from consort.training.adapters import OWN, add_lora
from consort.training.peft_directory import save_adapter
from consort.types import Chunk, Consort, Message, Note, Request, Strategy
from tests.gateway.live import Live, live
from tests.inference.test_speculative import slow, text
from tests.tiny_models import escaped_spaces, tiny

ASKED = Request((Message("user", "the clinic opens at"),), max_tokens=20)
EVEN = [index / 100 for index in range(101)]


@asynccontextmanager
async def far(folder: Path, **config: float) -> AsyncIterator[tuple[LocalLM, Verifier, Live]]:
    """A model here, and the same one over the network, from that gateway."""
    lm = LocalLM(tiny(), answers=1, sessions=3, context_tokens=128)
    async with live(folder, edges=(), cloud=lm, room=2, **config) as here:
        verifier = Verifier(Endpoint("cloud", here.url + "/v1", "llama"))
        try:
            yield lm, verifier, here
        finally:
            await verifier.close()


def deferred() -> Strategy:
    return defer(doubt, Share(0.5, EVEN))


def mixed() -> Strategy:
    tuned, base = (small(kind, name) for kind, name in (("gpt2", "tuned"), ("qwen2", "base")))
    return mix((Guide(tuned, base),), kind="tuned", weight=fixed(0.8))


def small(kind: str, name: str) -> LocalLM:
    model = tiny(kind, escaped_spaces("bpe", lines_apart=False))
    model.name = name
    return LocalLM(model, answers=1, sessions=2, context_tokens=128)


async def answered(strategy: Strategy, request: Request, cloud: object) -> list[Chunk]:
    consort = Consort((small("gpt2", "edge"),), cloud)  # type: ignore[arg-type]
    return [chunk async for chunk in strategy(request, consort)]


@pytest.mark.parametrize("way", [deferred, mixed])
def test_the_answer_is_the_same_as_with_the_model_here(tmp_path, way):
    async def work() -> None:
        async with far(tmp_path) as (lm, verifier, _):
            for seed, temperature in enumerate((0.0, 1.0, 1.0)):
                request = replace(ASKED, seed=seed, temperature=temperature)
                near = await answered(way(), request, lm)
                assert text(await answered(way(), request, verifier)) == text(near)

    asyncio.run(work())


@pytest.mark.parametrize("way", [deferred, mixed])
def test_connections_that_break_change_nothing(tmp_path, way):
    async def work() -> None:
        rng = random.Random(0)
        async with far(tmp_path) as (lm, verifier, _):
            request = replace(ASKED, seed=1, temperature=1.0)
            near = await answered(way(), request, lm)
            found, broken = [], 0
            async for chunk in way()(request, Consort((small("gpt2", "edge"),), verifier)):
                found.append(chunk)
                if rng.random() < 0.4:
                    broken += 1
                    await (await verifier.link()).close()
            assert broken > 1
            assert text(found) == text(near)
            async with asyncio.timeout(5):
                while lm._engine._held:  # the caches of broken connections too
                    await asyncio.sleep(0.01)

    asyncio.run(work())


@pytest.mark.parametrize("rtt_s", [0.05, 0.1])
def test_a_connection_cut_far_away_changes_nothing(tmp_path, rtt_s):
    """Whatever the round trip, of which opening a connection and a cache anew takes several."""

    async def over(shaper: Shaper, way: Strategy, request: Request) -> list[Chunk]:
        verifier = Verifier(Endpoint("cloud", f"http://127.0.0.1:{shaper.port}/v1", "llama"))
        found, rng = [], random.Random(0)
        try:
            async for chunk in way(request, Consort((small("gpt2", "edge"),), verifier)):
                if len(found) % 2:
                    asyncio.get_running_loop().call_later(rng.uniform(0, rtt_s), shaper.cut)
                found.append(chunk)
        finally:
            await verifier.close()
        return found

    async def work() -> None:
        request = replace(ASKED, seed=1, temperature=1.0, max_tokens=7)
        async with far(tmp_path) as (lm, _verifier, here):
            port = int(here.url.rpartition(":")[2])
            near = [text(await answered(way(), request, lm)) for way in (deferred, mixed)]
            shapers = [Shaper(Link(rtt_s=rtt_s), ("127.0.0.1", port)) for _ in near]
            await asyncio.gather(*(shaper.start() for shaper in shapers))
            ways = zip(shapers, (deferred(), mixed()), strict=True)
            found = await asyncio.gather(*(over(shaper, way, request) for shaper, way in ways))
            assert [text(each) for each in found] == near
            await asyncio.gather(*(shaper.close() for shaper in shapers))

    asyncio.run(work())


def test_a_model_that_reads_slowly_is_waited_for_when_its_connection_is_back(tmp_path):
    async def work() -> None:
        async with far(tmp_path) as (lm, verifier, _):
            await verifier.connect()
            session, _top = await asyncio.to_thread(verifier.open, ASKED)
            await asyncio.to_thread(session.extend, [7, 8, 9])
            expected = (await asyncio.to_thread(session.extend, [10]))[-1].ids[0]
            session.rewind(1)
            slow(lm, verifier.resume_s)  # so reading the question and the answer anew takes longer
            await (await verifier.link()).close()
            assert (await asyncio.to_thread(session.extend, [10]))[-1].ids[0] == expected
            session.close()

    asyncio.run(work())


def test_what_is_read_along_is_written_down_where_it_is_read(tmp_path):
    async def work() -> None:
        async with far(tmp_path) as (_, verifier, here):
            await answered(deferred(), ASKED, verifier)
            await verifier.close()
            async with asyncio.timeout(5):
                while not here.service.recent:
                    await asyncio.sleep(0.01)
            (row,) = here.service.recent
            assert (row.strategy, row.outcome, row.notes[0]["event"]) == ("verify", "done", "read")
            assert row.prompt_tokens > 0
            assert 0 < row.completion_tokens <= ASKED.max_tokens

    asyncio.run(work())


def test_what_a_key_may_spend_ends_what_it_reads_along(tmp_path):
    secret = add_key(tmp_path / "keys.json", Key("edge", budget=35e-6))  # three tokens and a half

    async def work() -> None:
        async with far(tmp_path) as (_, _open, here):
            here.service.prices = {"llama": ServedModel(price_in=0.0, price_out=10.0)}
            verifier = Verifier(Endpoint("cloud", here.url + "/v1", "llama", key=secret))
            await verifier.connect()
            session, _top = await asyncio.to_thread(verifier.open, ASKED)
            for _turn in range(3):
                await asyncio.to_thread(session.extend, [7])
            with pytest.raises(UpstreamError, match="budget for the month"):
                await asyncio.to_thread(session.extend, [7])
            session.close()
            await verifier.close()

    asyncio.run(work())


def test_a_cache_is_held_until_its_deadline(tmp_path):
    async def work() -> None:
        async with far(tmp_path, deadline_s=0.3) as (lm, verifier, here):
            await verifier.connect()
            session, _top = await asyncio.to_thread(verifier.open, ASKED)
            async with asyncio.timeout(5):
                while lm._engine._held:
                    await asyncio.sleep(0.01)
            with pytest.raises(RequestError, match="no such session"):
                await asyncio.to_thread(session.extend, [7])
            assert len(here.service.recent) == 1

    asyncio.run(work())


def test_a_cache_is_held_no_longer_than_whoever_asked_waits(tmp_path):
    """A client's own deadline, which is shorter than the cloud's; the device may have gone without a word."""

    async def work() -> None:
        async with far(tmp_path) as (lm, verifier, here):
            await verifier.connect()
            until_s = time.monotonic() + 0.3
            await asyncio.to_thread(verifier.open, replace(ASKED, until_s=until_s))
            assert lm._engine._held
            async with asyncio.timeout(5):
                while lm._engine._held:
                    await asyncio.sleep(0.01)
            assert time.monotonic() >= until_s
            assert len(here.service.recent) == 1

    asyncio.run(work())


def test_a_slow_model_behind_an_idle_connection_is_waited_for(tmp_path):
    async def work() -> None:
        async with far(tmp_path) as (lm, verifier, _):
            slow(lm, 0.3)  # longer than a connection may be silent
            await verifier.connect()
            link = await verifier.link()
            await asyncio.sleep(0.5)
            session, _top = await asyncio.to_thread(verifier.open, ASKED)
            await asyncio.sleep(0.5)
            assert len(await asyncio.to_thread(session.extend, [7, 8])) == 2
            session.close()
            assert await verifier.link() is link

    asyncio.run(work())


def test_a_context_that_is_full_ends_the_answer_there_as_here(tmp_path):
    async def work() -> None:
        async with far(tmp_path) as (lm, verifier, _):
            asked = Request((Message("user", "the clinic opens at " * 11),), max_tokens=500)
            reasons = set()
            for seed in range(4):
                request = replace(asked, temperature=1.0, seed=seed)
                near, far_ = [await answered(mixed(), request, cloud) for cloud in (lm, verifier)]
                assert text(near) == text(far_)
                assert near[-1].finish_reason == far_[-1].finish_reason
                reasons.add(near[-1].finish_reason)
            assert "length" in reasons

    asyncio.run(work())


def test_where_no_cloud_can_be_reached_the_edge_answers_alone():
    async def work() -> None:
        notes: list[Note] = []
        verifier = Verifier(Endpoint("cloud", "http://127.0.0.1:9/v1", "llama"))
        edge = small("gpt2", "edge")
        stream = deferred()(ASKED, Consort((edge,), verifier, notes.append))
        found = [chunk async for chunk in stream]
        assert text(found) == text([chunk async for chunk in edge.stream(ASKED)])
        assert [note.event for note in notes] == ["cloud_failed"]
        await verifier.close()

    asyncio.run(work())


def test_a_cloud_that_changed_its_tokenizer_is_asked_for_it_again(tmp_path):
    async def work() -> None:
        async with far(tmp_path) as (lm, verifier, _):
            await verifier.connect()
            verifier.tokenizer = tiny("gpt2", escaped_spaces("bpe", lines_apart=False)).vocabulary
            with pytest.raises(UpstreamError, match="another tokenizer"):
                await asyncio.to_thread(verifier.open, ASKED)
            await verifier.connect()
            assert verifier.tokenizer.sha256 == lm.tokenizer.sha256
            session, _ = await asyncio.to_thread(verifier.open, ASKED)
            session.close()

    asyncio.run(work())


def tiny_proxy(folder: Path) -> ServedModel:
    """A proxy with an adapter that it learned, as a run leaves them."""
    proxy = tiny()
    add_lora(proxy, OWN, rank=2, alpha=4.0, seed=0)
    save_adapter(proxy, OWN, folder / "adapter", base=str(folder / "proxy"))
    save_model(tiny(), folder / "proxy")
    return ServedModel(name="proxy", model=str(folder / "proxy"), adapter=str(folder / "adapter"))


@pytest.mark.parametrize("drafted", [True, False])
@pytest.mark.parametrize("strategy", ["defer", "mix"])
def test_only_a_cloud_that_shows_its_distributions_is_read_along(tmp_path, strategy, drafted):
    cloud = ServedModel(name="cloud", model="llama", base_url="http://127.0.0.1:9/v1", drafted=drafted)
    edges = (ServedModel(name="edge", model="zoo:edge-llama"),)
    proxy = tiny_proxy(tmp_path)
    serve = ServeConfig(strategy=strategy, edges=edges, cloud=cloud, proxy=proxy, state=str(tmp_path))
    if drafted:
        asyncio.run(close(open_service(Config(serve=serve))))
    else:
        with pytest.raises(ConfigError, match="distributions can be read"):
            open_service(Config(serve=serve))
