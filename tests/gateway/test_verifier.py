"""A verifier over a real connection: the same answers and the same distributions, whatever breaks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from consort.errors import BusyError, ConsortError, UpstreamError
from consort.gateway.keys import Key, add_key, revoke_key
from consort.gateway.pool import Pool
from consort.inference.prompt_lookup import PromptLookup
from consort.inference.speculative import speculate
from consort.inference.takeover import takeover
from consort.models.decoding.drafters import ModelDrafter
from consort.models.decoding.lm import LocalLM
from consort.models.drafts import chain
from consort.models.frames import PARKED_S, pack, pack_draft, request_map, token_bits, unpack
from consort.models.remote import Endpoint
from consort.models.remote_writing import RemoteWriting
from consort.models.verifier import Verifier
from consort.types import Consort, Draft, Message, Note, Request
from tests.gateway.live import Live, live
from tests.inference.consorts import says
from tests.inference.test_speculative import eager, slow, text
from tests.tiny_models import tiny

ASKED = Request((Message("user", "the clinic opens at"),), max_tokens=24, temperature=1.0, seed=3)


@asynccontextmanager
async def cloud(
    folder: Path, *, sessions: int = 1, room: int = 3
) -> AsyncIterator[tuple[Live, LocalLM, Verifier]]:
    lm = LocalLM(tiny(), answers=room, sessions=sessions, context_tokens=128)
    async with live(folder, edges=(), cloud=lm, room=room) as here:
        verifier = Verifier(Endpoint("cloud", here.url + "/v1", "llama"))
        try:
            yield here, lm, verifier
        finally:
            await verifier.close()


async def tokens(writing) -> list[int]:
    try:
        return [token async for piece in writing.written() for token in piece.ids]
    finally:
        await writing.close()


def test_the_answer_is_the_local_one_with_drafts_right_wrong_and_mad(tmp_path):
    async def work() -> None:
        rng = random.Random(0)
        async with cloud(tmp_path) as (here, lm, verifier):
            for seed in range(4):
                request = replace(ASKED, seed=seed, temperature=seed / 2)
                alone = await tokens(await lm.write(request))
                writing = await verifier.write(request)
                writing.draft(0, chain(alone[:9]))
                writing.draft(9, chain(alone[9:12]))
                writing.draft(12, Draft((rng.randrange(300),) * 2, (-1, 0)))
                assert await tokens(writing) == alone
                assert writing.prompt_tokens > 0
            assert verifier.tokenizer.sha256 == lm.tokenizer.sha256
            rows = list(here.service.recent)
            assert [row.strategy for row in rows] == ["verify"] * 4
            assert rows[0].completion_tokens == 24

    asyncio.run(work())


def test_the_cloud_writes_no_longer_than_whoever_asked_waits(tmp_path):
    async def work() -> None:
        async with cloud(tmp_path) as (here, lm, verifier):
            slow(lm, 0.1)
            writing = await verifier.write(replace(ASKED, until_s=time.monotonic() + 0.4))
            with pytest.raises(UpstreamError, match="no whole answer in time"):
                await tokens(writing)
            assert [row.outcome for row in here.service.recent] == ["deadline_exceeded"]

    asyncio.run(work())


def test_what_was_read_is_counted_as_if_the_cloud_were_here(tmp_path):
    async def work() -> None:
        async with cloud(tmp_path) as (here, lm, verifier):
            counted = []
            for model in (lm, verifier):
                strategy = speculate(lambda cloud: (PromptLookup(cloud.tokenizer), eager()))
                stream = strategy(ASKED, Consort((), model))
                counted.append([chunk.usage async for chunk in stream][-1])
            assert counted[0] == counted[1]
            assert counted[0] is not None
            assert counted[0].prompt_tokens == here.service.recent[0].prompt_tokens > 0

    asyncio.run(work())


def test_an_answer_survives_connections_that_break(tmp_path):
    async def work() -> None:
        rng = random.Random(1)
        async with cloud(tmp_path) as (_here, lm, verifier):
            alone = await tokens(await lm.write(replace(ASKED, max_tokens=60)))
            for _ in range(5):
                writing, found = await verifier.write(replace(ASKED, max_tokens=60)), []
                async for piece in writing.written():
                    found += piece.ids
                    if rng.random() < 0.2:
                        link = await verifier.link()
                        await link.close()
                await writing.close()
                assert found == alone

    asyncio.run(work())


def test_a_session_that_was_forgotten_is_written_again(tmp_path):
    async def work() -> None:
        async with cloud(tmp_path) as (here, lm, verifier):
            alone = await tokens(await lm.write(ASKED))
            writing = await verifier.write(ASKED)
            found: list[int] = []
            async for piece in writing.written():
                if not found:  # the cloud starts anew
                    for held in list(here.service.pool.answerings.values()):
                        held.listeners = 0
                        await here.service.pool.end(held)
                    await (await verifier.link()).close()
                found += piece.ids
            assert found == alone

    asyncio.run(work())


def test_when_the_cloud_is_gone_the_edge_takes_over(tmp_path):
    async def work() -> None:
        notes: list[Note] = []
        async with cloud(tmp_path) as (here, lm, verifier):
            slow(lm)  # or the answer is there before the cloud is gone
            drafter = ModelDrafter(
                LocalLM(tiny("gpt2"), answers=1, sessions=1, context_tokens=128), lm.tokenizer
            )
            strategy = takeover(speculate(lambda _: (drafter, eager())))
            chunks = []
            request = replace(ASKED, max_tokens=60, temperature=0.0)
            stream = strategy(request, Consort((says("edge", "and so on"),), verifier, notes.append))
            async for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == 2:
                    here.service.pool = None  # no session is opened any more
                    await (await verifier.link()).close()
            assert text(chunks).endswith("and so on")
            assert {note.event for note in notes} == {"broke", "drafted"}
            assert chunks[-1].finish_reason == "stop"

    asyncio.run(work())


def test_a_cache_is_the_same_over_the_network(tmp_path):
    async def work() -> None:
        async with cloud(tmp_path, sessions=2) as (_here, lm, verifier):
            await verifier.connect()

            def compare() -> None:
                (near, first), (far, far_first) = lm.open(ASKED), verifier.open(ASKED)
                pairs = [(first, far_first)]
                pairs += zip(near.extend([7, 8, 9]), far.extend([7, 8, 9]), strict=True)
                near.rewind(2)
                far.rewind(2)
                pairs += zip(near.extend([30]), far.extend([30]), strict=True)
                for one, other in pairs:
                    assert (one.ids == other.ids).all()
                    assert np.allclose(one.logprobs, other.logprobs, atol=1e-5)
                    assert one.rest == pytest.approx(other.rest, abs=1e-9)
                with pytest.raises(ConsortError, match="cannot forget"):
                    far.rewind(50)
                near.close()
                far.close()

            await asyncio.to_thread(compare)
            writing = await verifier.write(ASKED)
            with pytest.raises(BusyError):
                await asyncio.to_thread(lambda: [verifier.open(ASKED) for _ in range(3)])  # two are taken
            assert await tokens(writing)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"open": {}}, "another tokenizer"),
        ({"open": {"messages": []}, "vocabulary": "?"}, "no request for tokens"),
        ({"open": {}, "after": "all"}, "another tokenizer"),
        ({"open": {"messages": []}, "vocabulary": "?", "after": 7}, "no request for tokens"),
        ({"hold": 3}, "another tokenizer"),
        ({"hold": 3, "vocabulary": "?"}, "no request for tokens"),
        ({"extend": [1]}, "no such session"),
        ({"what": 3}, "no such session"),
    ],
)
def test_what_cannot_be_is_refused_and_the_connection_lives(tmp_path, payload, said):
    async def work() -> None:
        async with cloud(tmp_path) as (here, lm, _), aiohttp.ClientSession() as http:
            if payload.get("vocabulary") == "?":
                payload["vocabulary"] = lm.tokenizer.sha256[:16]
            async with http.ws_connect(here.url + "/v1/sessions") as socket:
                for junk in (b"", b"\xc1", b"\x01", pack(1, b"\x00"), pack(5, 3), pack(3, None)):
                    await socket.send_bytes(junk)
                await socket.send_str("text")
                await socket.send_bytes(pack(9, payload))
                heard = [unpack((await socket.receive()).data)]
                while heard[-1][0] != 9:
                    heard.append(unpack((await socket.receive()).data))
                assert said in heard[-1][1]["error"]["message"]
                await socket.send_bytes(pack(0, 77))
                assert unpack((await socket.receive()).data) == (0, 77)
                opening = {"open": request_map(ASKED), "vocabulary": lm.tokenizer.sha256[:16]}
                await socket.send_bytes(pack(4, opening))
                assert unpack((await socket.receive()).data)[1]["prompt_tokens"] > 0
                for _ in range(20):
                    wild = random.Random(0).randbytes(300)
                    await socket.send_bytes(pack(4, wild))
                await socket.send_bytes(pack(4, pack_draft(0, chain([1, 2]), token_bits(lm.tokenizer.size))))
                last: object = None
                while not (isinstance(last, dict) and "finish" in last):
                    last = unpack((await socket.receive()).data)[1]

    asyncio.run(work())


def test_a_full_pool_refuses_and_parked_answers_make_room(tmp_path):
    async def work() -> None:
        async with cloud(tmp_path, room=2) as (_here, lm, verifier):
            long = replace(ASKED, max_tokens=100)
            first, second = await verifier.write(long), await verifier.write(long)
            with pytest.raises(BusyError, match="sessions are taken"):
                await tokens(await verifier.write(long))
            await (await verifier.link()).close()
            await asyncio.sleep(0.05)
            third = await verifier.write(long)
            assert await tokens(third) == await tokens(await lm.write(long))
            await first.close()
            await second.close()

    asyncio.run(work())


def test_nothing_is_left_of_many_answers_whoever_leaves_how(tmp_path):
    async def work() -> None:
        rng = random.Random(2)
        async with cloud(tmp_path) as (here, lm, verifier):
            pool: Pool = here.service.pool
            for _ in range(40):
                writing = await verifier.write(ASKED)
                if rng.random() < 0.7:
                    async for _piece in writing.written():
                        if rng.random() < 0.3:
                            break
                if rng.random() < 0.3:
                    await (await verifier.link()).close()
                await writing.close()
            await tokens(await verifier.write(ASKED))
            await asyncio.sleep(0.1)
            assert len(pool.answerings) <= 3
            assert sum(held.listeners for held in pool.answerings.values()) == 0
            for held in list(pool.answerings.values()):
                await pool.end(held)
            assert not lm._engine._batch.rows

    asyncio.run(work())


def test_a_wrong_key_opens_nothing(tmp_path):
    add_key(tmp_path / "keys.json", Key("edge"))

    async def work() -> None:
        async with cloud(tmp_path) as (here, _lm, verifier):
            with pytest.raises(UpstreamError, match="needs a key"):
                await verifier.write(ASKED)
            async with aiohttp.ClientSession() as http:
                with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                    await http.ws_connect(here.url + "/v1/sessions")

    asyncio.run(work())


def test_each_session_of_an_open_connection_is_asked_for_its_key(tmp_path):
    keys = tmp_path / "keys.json"
    secret = add_key(keys, Key("edge", per_minute=3))
    add_key(keys, Key("other"))

    async def work() -> None:
        async with cloud(tmp_path) as (here, lm, _):
            here.service.door.clock = lambda: 0.0
            verifier = Verifier(Endpoint("cloud", here.url + "/v1", "llama", key=secret))
            await verifier.connect()  # the tokenizer is one request, the connection another
            assert await tokens(await verifier.write(ASKED)) == await tokens(await lm.write(ASKED))
            with pytest.raises(BusyError, match="3 requests a minute"):
                await tokens(await verifier.write(ASKED))
            revoke_key(keys, "edge")
            here.service.door._read_at = -1e9
            with pytest.raises(UpstreamError, match="not known here any more"):
                await tokens(await verifier.write(ASKED))
            await verifier.close()

    asyncio.run(work())


def test_who_came_without_a_key_hears_that_one_is_needed_now(tmp_path):
    async def work() -> None:
        async with cloud(tmp_path) as (here, _lm, verifier):
            await tokens(await verifier.write(ASKED))
            add_key(tmp_path / "keys.json", Key("other"))
            here.service.door._read_at = -1e9
            with pytest.raises(UpstreamError, match="a key is needed here by now"):
                await tokens(await verifier.write(ASKED))

    asyncio.run(work())


def test_a_cloud_that_is_not_there_is_told_in_words():
    async def work() -> None:
        verifier = Verifier(Endpoint("cloud", "http://127.0.0.1:9/v1", "llama"))
        with pytest.raises(UpstreamError, match="cannot be reached: connection refused"):
            await verifier.write(ASKED)
        await verifier.close()

    asyncio.run(work())


def test_an_answer_is_parked_from_when_its_last_listener_left(tmp_path):
    async def work() -> None:
        async with cloud(tmp_path) as (here, lm, verifier):
            alone = await tokens(await lm.write(ASKED))
            slow(lm)
            writing, found = await verifier.write(ASKED), []
            async for piece in writing.written():
                if not found:
                    (held,) = here.service.pool.answerings.values()
                    held.began_s -= 2 * PARKED_S  # an old answer, but somebody listens
                    await (await verifier.link()).close()
                    await asyncio.sleep(0.02)
                    await tokens(await verifier.write(ASKED))
                found += piece.ids
            await writing.close()
            assert found == alone
            assert len(here.service.recent) == 2  # it was not written again

    asyncio.run(work())


def test_a_cache_whose_holder_left_while_it_was_read_is_freed(tmp_path):
    async def work() -> None:
        async with cloud(tmp_path, sessions=1) as (here, lm, _), aiohttp.ClientSession() as http:
            slow(lm, 0.2)
            asked = {"hold": request_map(ASKED), "vocabulary": lm.tokenizer.sha256[:16]}
            async with http.ws_connect(here.url + "/v1/sessions") as socket:
                await socket.send_bytes(pack(1, asked))
                while not lm._engine._held:
                    await asyncio.sleep(0.001)
            async with asyncio.timeout(5):
                while lm._engine._held:
                    await asyncio.sleep(0.01)

    asyncio.run(work())


def test_whoever_closes_what_was_just_opened_leaves_nothing(tmp_path):
    async def work() -> None:
        async with cloud(tmp_path, sessions=2) as (here, lm, _), aiohttp.ClientSession() as http:
            vocabulary = {"vocabulary": lm.tokenizer.sha256[:16]}
            async with http.ws_connect(here.url + "/v1/sessions") as socket:
                for number in range(1, 5):
                    await socket.send_bytes(pack(number, {"hold": request_map(ASKED)} | vocabulary))
                    await socket.send_bytes(pack(number, None))
                    await socket.send_bytes(pack(100 + number, {"open": request_map(ASKED)} | vocabulary))
                    await socket.send_bytes(pack(100 + number, None))
                async with asyncio.timeout(5):
                    while len(here.service.recent) < 4 or lm._engine._held or lm._engine._batch.rows:
                        await asyncio.sleep(0.01)
            assert [row.outcome for row in here.service.recent if row.completion_tokens == 0]
            assert not here.service.pool.answerings

    asyncio.run(work())


def test_all_who_hear_one_answer_hear_it_to_its_end(tmp_path):
    async def work() -> None:
        async with cloud(tmp_path) as (here, lm, verifier):
            alone = await tokens(await lm.write(ASKED))
            slow(lm)
            other = Verifier(Endpoint("cloud", here.url + "/v1", "llama"))
            first, second = await verifier.write(ASKED), RemoteWriting(other, ASKED, [])
            await first._hear_taken()
            second._token = first._token
            await second.ask()
            async with asyncio.timeout(10):
                assert await asyncio.gather(tokens(first), tokens(second)) == [alone, alone]
            assert len(here.service.recent) == 1
            await other.close()

    asyncio.run(work())


def test_a_gateway_that_is_no_verifier_says_so(tmp_path):
    async def work() -> None:
        async with live(tmp_path, cloud=says("large", "well")) as here:
            verifier = Verifier(Endpoint("cloud", here.url + "/v1", "large"))
            with pytest.raises(UpstreamError, match="role cloud"):
                await verifier.connect()
            await verifier.close()

    asyncio.run(work())
