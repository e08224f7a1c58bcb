"""However its bytes are cut, an answer is read whole or refused; only a safe connection is used again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.models.connections import HEAD_BYTES, ROOM_BYTES, BrokenError, Connection, Pool, unreached
from tests.upstream import CUT, EVENT_STREAM, HANG, Upstream, framed, refusal, upstream

LOOPS = [asyncio.run, uvloop.run]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def pool(url: str, *, silence_s: float = 5.0) -> AsyncIterator[Pool]:
    opened = Pool(url, key="k", connect_s=5.0, silence_s=silence_s)
    yield opened
    opened.close()


async def body_of(here: Pool) -> bytes:
    connection = await here.post("/x", b"{}")
    try:
        return await connection.all(1 << 20)
    finally:
        connection.release()


def bodies(*scripts: Sequence[bytes], asked: int = 1, silence_s: float = 5.0) -> tuple[list[bytes], Upstream]:
    async def run() -> tuple[list[bytes], Upstream]:
        async with upstream(*scripts) as up, pool(up.url, silence_s=silence_s) as here:
            return [await body_of(here) for _ in range(asked)], up

    return asyncio.run(run())


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    parts=st.lists(st.binary(min_size=1, max_size=9), max_size=4),
    is_chunked=st.booleans(),
    goes_on_first=st.booleans(),
)
def test_every_cut_of_an_answer_gives_the_same_body(
    data: st.DataObject, parts: list[bytes], is_chunked: bool, goes_on_first: bool
) -> None:
    whole = b"".join(parts)
    told = (
        CHUNKED + b"".join(map(framed, parts)) + b"0\r\n\r\n" if is_chunked else b"".join(refusal(200, whole))
    )
    told = b"HTTP/1.1 100 Continue\r\n\r\n" + told if goes_on_first else told
    cuts = sorted(data.draw(st.lists(st.integers(0, len(told)), max_size=5)))
    script = [told[start:end] for start, end in zip([0, *cuts], [*cuts, len(told)], strict=True)]
    found, up = bodies(script, asked=2)
    assert found == [whole, whole]
    assert up.connections == 1


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    found, up = bodies([b"HTTP/1.1 200 OK\r\n\r\n", b"all of it", CUT], asked=2)
    assert found == [b"all of it"] * 2
    assert up.connections == 2


@pytest.mark.parametrize(
    "script",
    [
        [CUT],
        [b"nonsense\r\n\r\n", CUT],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", CUT],
        [CHUNKED + framed(b"half"), CUT],
        [CHUNKED + b"zz\r\n", HANG],
        [b"HTTP/1.1 200 OK\r\nX: " + b"x" * (HEAD_BYTES + 9), HANG],
        [b"HTTP/1.1 100 Continue\r\n\r\n", CUT],
    ],
)
@pytest.mark.parametrize("run", LOOPS)
def test_what_is_no_whole_answer_is_refused(script: list[bytes], run: Callable[[Any], Any]) -> None:
    async def work() -> None:
        async with upstream(script) as up, pool(up.url) as here:
            with pytest.raises(BrokenError):
                await body_of(here)

    run(work())


def test_an_answer_larger_than_asked_for_is_refused() -> None:
    with pytest.raises(BrokenError, match="without an end"):
        bodies([CHUNKED, *[framed(b"x" * (1 << 18))] * 8, HANG])


def test_a_connection_that_was_closed_while_idle_costs_no_request() -> None:
    """The server closes after each answer without having said so."""
    found, up = bodies([*refusal(200, b"yes"), CUT], asked=3)
    assert found == [b"yes"] * 3
    assert (len(up.requests), up.connections) == (3, 3)


def test_bytes_that_nobody_asked_for_never_become_the_next_answer() -> None:
    smuggled = b"".join(refusal(200, b"evil"))
    found, _ = bodies([b"".join(refusal(200, b"first")) + smuggled], refusal(200, b"second"), asked=2)
    assert found == [b"first", b"second"]


def test_a_connection_left_in_the_middle_is_closed_and_not_used_again() -> None:
    async def work() -> None:
        half = [EVENT_STREAM, framed(b"a"), HANG]
        async with upstream(half, refusal(200, b"b")) as up, pool(up.url) as here:
            connection = await here.post("/x", b"{}")
            assert await connection.some() == b"a"
            connection.release()
            await asyncio.wait_for(up.left.wait(), 5)
            assert await body_of(here) == b"b"

    asyncio.run(work())


@pytest.mark.parametrize("run", LOOPS)
def test_who_does_not_read_holds_the_sender_back(run: Callable[[Any], Any]) -> None:
    """What is kept of an answer that nobody takes is bounded, and taking it goes on with the rest."""
    size, part = 64 * ROOM_BYTES, framed(b"x" * ROOM_BYTES)

    async def held_of(connection: Connection) -> int:
        held = -1
        while (now := sum(map(len, connection._parts))) != held:
            held = now
            await asyncio.sleep(0.05)
        return held

    async def work() -> None:
        async with upstream([CHUNKED, *[part] * 64, b"0\r\n\r\n"]) as up, pool(up.url) as here:
            connection = await here.post("/x", b"{}")
            assert await held_of(connection) < 4 * ROOM_BYTES
            assert len(await connection.all(size)) == size

    run(work())


@pytest.mark.parametrize(
    "url",
    ["ftp://x/v1", "http:///v1", "http://x/v1\r\nEvil: 1", "", "http://x:port/v1", "http://me:word@x/v1"],
)
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - one error for all of them
        Pool(url, key="", connect_s=1.0, silence_s=1.0)


def test_a_key_never_begins_another_header() -> None:
    with pytest.raises(ValueError, match="no key"):
        Pool("http://x/v1", key="k\r\nEvil: 1", connect_s=1.0, silence_s=1.0)


def test_silence_is_bounded_before_and_in_an_answer() -> None:
    for script in ([HANG], [CHUNKED + framed(b"a"), HANG]):
        with pytest.raises(TimeoutError):
            bodies(script, silence_s=0.05)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "did not answer in time"),
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"),
            "cannot be reached: connection refused",
        ),
        (socket.gaierror(socket.EAI_NONAME, "?"), "cannot be reached: no address is known for its name"),
        (ssl.SSLCertVerificationError(1, "?"), "cannot be reached: nobody vouches for its certificate"),
        (ssl.SSLError(1, "?"), "cannot be reached: it speaks no TLS"),
        (aiohttp.ServerDisconnectedError(), "cannot be reached"),
        (OSError("Multiple exceptions"), "cannot be reached"),
        (BrokenError("nonsense"), "cannot be reached"),
    ],
)
def test_why_nothing_was_answered_is_said_in_words(error: Exception, said: str) -> None:
    assert unreached(error) == said
