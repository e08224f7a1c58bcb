"""Between a gateway and its cloud: a connection that fell silent leaves nothing taken, who is busy has not
failed, and what is read over there counts as if it were read here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from consort.config_serve import ServedModel
from consort.errors import BusyError, UnreachableError
from consort.gateway.warming import warm
from consort.inference.metering import Call, Gauge, metered
from consort.inference.prompt_lookup import PromptLookup
from consort.inference.speculative import speculate
from consort.models.link import error_of
from consort.models.remote import Endpoint
from consort.models.simulated import Fault
from consort.models.verifier import Verifier
from consort.types import Consort, Strategy
from tests.gateway.live import CHAT, SMALL, live
from tests.gateway.test_far_sessions import deferred, mixed, small
from tests.gateway.test_verifier import ASKED, cloud, tokens
from tests.inference.consorts import says
from tests.inference.test_speculative import eager, slow

SPECULATED = {"model": "consort/speculate", "max_tokens": 6}


class Relay:
    """A TCP proxy that can lose what its upstream says over the connections there are, and nothing else."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._heard: set[asyncio.Event] = set()  # of each connection: whether its upstream is heard
        self._tasks: set[asyncio.Task[None]] = set()

    def mute(self) -> None:
        """From now on nothing is heard over the present connections."""
        for heard in self._heard:
            heard.clear()

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        heard, always = asyncio.Event(), asyncio.Event()
        heard.set()
        always.set()
        self._heard.add(heard)
        await asyncio.gather(self._carry(reader, far_writer, always), self._carry(far_reader, writer, heard))

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passes: asyncio.Event
    ) -> None:
        try:
            while data := await source.read(1 << 16):
                if passes.is_set():
                    sink.write(data)
        except ConnectionError:
            pass
        sink.close()


@asynccontextmanager
async def relayed(url: str) -> AsyncIterator[tuple[Relay, Verifier]]:
    relay = Relay(int(url.rpartition(":")[2]))
    server = await asyncio.start_server(relay.welcome, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    verifier = Verifier(Endpoint("cloud", f"http://127.0.0.1:{port}/v1", "llama"))
    try:
        yield relay, verifier
    finally:
        await verifier.close()
        server.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


def test_a_cache_behind_a_silent_connection_is_free_for_the_one_in_its_place(tmp_path: Path) -> None:
    async def work() -> None:
        async with cloud(tmp_path, sessions=1) as (here, lm, _), relayed(here.url) as (relay, verifier):
            await verifier.connect()
            session, _ = await asyncio.to_thread(verifier.open, ASKED)
            expected = (await asyncio.to_thread(session.extend, [7, 8]))[-1].ids[0]
            session.rewind(1)
            relay.mute()
            assert (await asyncio.to_thread(session.extend, [8]))[-1].ids[0] == expected  # one fits
            session.close()
            await until(lambda: not lm._engine._held)

    asyncio.run(work())


def test_an_answer_behind_a_silent_connection_goes_on_and_is_heard_once(tmp_path: Path) -> None:
    async def work() -> None:
        async with cloud(tmp_path, room=1) as (here, lm, _), relayed(here.url) as (relay, verifier):
            alone = await tokens(await lm.write(ASKED))
            slow(lm, 0.05)
            writing = await verifier.write(ASKED)
            found: list[int] = []
            async with asyncio.timeout(10):
                async for piece in writing.written():
                    if not found:
                        relay.mute()
                    found += piece.ids
            assert found == alone
            assert writing.resumed == 1  # type: ignore[attr-defined]
            await writing.close()
            await until(lambda: not any(each.listeners for each in here.service.pool.answerings.values()))  # type: ignore[union-attr]

    asyncio.run(work())


def test_who_is_busy_far_away_is_busy_here_and_has_not_failed(tmp_path: Path) -> None:
    async def work() -> None:
        async with cloud(tmp_path / "far", room=1) as (_, lm, verifier):
            slow(lm, 0.05)
            held = await verifier.write(replace(ASKED, max_tokens=100))
            await held._hear_taken()  # type: ignore[attr-defined]
            async with live(tmp_path / "alone", edges=(), cloud=verifier) as alone:
                body = {"messages": [{"role": "user", "content": "when?"}], **SPECULATED}
                async with alone.http.post(alone.url + CHAT, json=body) as response:
                    refused = (await response.json())["error"]
                    assert (response.status, response.headers["retry-after"]) == (503, "1")
                assert "all 1 sessions are taken" in refused["message"]
                assert refused["code"] == BusyError.code
                gauge = alone.service.gauge(verifier)
                assert (gauge.requests, gauge.failures) == (1, 0)
            async with live(tmp_path / "edge", cloud=verifier) as edge:
                held = await verifier.write(replace(ASKED, max_tokens=100))
                await held._hear_taken()  # type: ignore[attr-defined]
                status, told = await edge.ask(**SPECULATED, consort={"receipt": True})
                assert status == 200
                assert SMALL.startswith(told["choices"][0]["message"]["content"])
                notes = told["consort"]["receipt"]["notes"]
                (note,) = [note for note in notes if note["strategy"] == "takeover"]
                assert (note["event"], note["code"]) == ("busy", BusyError.code)
                await held.close()

    asyncio.run(work())


def test_when_to_come_back_is_the_cloud_s_word() -> None:
    refused = error_of({"code": BusyError.code, "message": "all taken", "retry_s": 7}, "cloud")
    assert isinstance(refused, BusyError)
    assert refused.retry_s == 7


@pytest.mark.parametrize("way", [deferred, mixed])
def test_what_a_far_cloud_reads_is_counted_by_its_own_tokens(
    tmp_path: Path, way: Callable[[], Strategy]
) -> None:
    async def counted(lm: object) -> tuple[int, ...]:
        calls: list[Call] = []
        consort = Consort((small("gpt2", "edge"),), metered(lm, "cloud", Gauge(), calls))  # type: ignore[arg-type]
        async for _ in way()(replace(ASKED, temperature=0.0), consort):
            pass
        (call,) = calls
        assert call.counted
        return call.prompt_tokens, call.request_tokens, call.completion_tokens

    async def work() -> None:
        async with cloud(tmp_path, sessions=3) as (_, lm, verifier):
            assert await counted(verifier) == await counted(lm)

    asyncio.run(work())


def test_a_cloud_that_refuses_the_connection_was_sent_nothing() -> None:
    async def work() -> None:
        verifier, calls, gauge = Verifier(Endpoint("cloud", "http://127.0.0.1:9/v1", "llama")), [], Gauge()
        consort = Consort((), metered(verifier, "cloud", gauge, calls))
        with pytest.raises(UnreachableError, match="connection refused"):
            await anext(speculate(lambda lm: (PromptLookup(lm.tokenizer), eager()))(ASKED, consort))  # type: ignore[arg-type]
        (call,) = calls
        assert (call.sent_bytes, call.prompt_tokens, call.completion_tokens) == (0, 0, 0)
        assert gauge.failures == 1
        await verifier.close()

    asyncio.run(work())


def test_each_edge_that_runs_here_has_written_before_the_first_request(tmp_path: Path) -> None:
    own, unable, far = says("own", SMALL), says("unable", SMALL, fault=Fault("break")), says("far", SMALL)

    async def work() -> None:
        async with live(tmp_path, edges=(unable, own, far)) as here:
            here.service.prices = {
                "unable": ServedModel(name="unable", model="unable"),
                "own": ServedModel(name="own", model="own"),
                "far": ServedModel(name="far", model="far", base_url="http://far/v1"),
            }
            await warm(here.service)
            assert [len(each.calls) for each in (unable, own, far)] == [1, 1, 0]
            assert own.calls[0].max_tokens == 1
            assert not here.service.recent
            assert not here.service.gauges

    asyncio.run(work())
