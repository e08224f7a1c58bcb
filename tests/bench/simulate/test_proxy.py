"""The shaping proxy on real connections: the same bytes come out, breaks are felt, nothing arrives early.

No test asks that anything be quick: what the model says is the least that is waited for."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from random import Random

import pytest

from consort.bench.simulate import Link, Shaper, Trace, precise_run, shaped_proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def answer_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends what it reads, until the client ends; then ends too."""
    try:
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def shaped(link: Link) -> AsyncIterator[Shaper]:
    server = await asyncio.start_server(answer_back, "127.0.0.1", 0)
    shaper = Shaper(link, server.sockets[0].getsockname()[:2], seed=1)
    await shaper.start()
    try:
        yield shaper
    finally:
        await shaper.close()
        server.close()
        await server.wait_closed()


async def dial(shaper: Shaper) -> Streams:
    return await asyncio.open_connection("127.0.0.1", shaper.port)


@pytest.mark.parametrize(
    "link",
    [
        Link(),
        Link(0.002, 0.001, 50, 50, loss=0.0),
        Link(0.001, 0, Trace((0.01, 0.02), (80.0, 0.0)), 80, loss=0.002),
    ],
)
def test_every_byte_comes_back_unchanged_however_it_was_cut(link: Link) -> None:
    sent = Random(0).randbytes(300_000)

    async def main() -> tuple[bytes, Shaper]:
        async with shaped(link) as shaper:
            reader, writer = await dial(shaper)

            async def write() -> None:
                rng, rest = Random(1), sent
                while rest:
                    size = rng.randrange(1, 40_000)
                    writer.write(rest[:size])
                    await writer.drain()
                    rest = rest[size:]
                writer.write_eof()

            writing = asyncio.create_task(write())
            received = await reader.read(-1)
            await writing
            writer.close()
            return received, shaper

    received, shaper = precise_run(main())
    assert received == sent
    assert shaper.read_bytes == {"up": len(sent), "down": len(sent)}


def test_nothing_comes_back_before_the_link_allows() -> None:
    link = Link(0.02, up_mbit_s=1.0, down_mbit_s=2.0)

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        async with shaped(link) as shaper:
            begun_s = loop.time()
            reader, writer = await dial(shaper)
            writer.write(bytes(1000))
            await reader.readexactly(1000)
            first_s, begun_s = loop.time() - begun_s, loop.time()
            writer.write(bytes(1000))
            await reader.readexactly(1000)
            writer.close()
            return first_s, loop.time() - begun_s

    first_s, second_s = precise_run(main())
    least_s = 0.02 + 1052 / 125_000 + 1052 / 250_000
    assert second_s >= least_s - 1e-4
    assert first_s >= least_s + 0.02 - 1e-4  # the handshake


def test_connections_and_order_stay_when_the_link_becomes_another() -> None:
    sent = Random(2).randbytes(20_000)

    async def main() -> bytes:
        async with shaped(Link(0.04, up_mbit_s=2.0)) as shaper:
            reader, writer = await dial(shaper)
            writer.write(sent[:10_000])
            while not shaper.read_bytes["up"]:
                await asyncio.sleep(0.001)
            shaper.reshape(Link())
            writer.write(sent[10_000:])
            received = await reader.readexactly(len(sent))
            writer.close()
            return received

    assert precise_run(main()) == sent


def test_a_cut_resets_the_client_and_the_next_connection_works() -> None:
    async def main() -> None:
        async with shaped(Link(0.002)) as shaper:
            reader, writer = await dial(shaper)
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            shaper.cut()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()
            reader, writer = await dial(shaper)
            writer.write(b"two")
            assert await reader.readexactly(3) == b"two"
            writer.close()

    precise_run(main())


def test_a_client_that_hangs_up_is_felt_by_the_server_and_leaves_nothing_behind() -> None:
    ended: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(await reader.read(-1))
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(listen, "127.0.0.1", 0)
        shaper = Shaper(Link(0.002), server.sockets[0].getsockname()[:2])
        await shaper.start()
        for _ in range(20):
            _, writer = await dial(shaper)
            writer.write(b"leaves")
            writer.close()
            await writer.wait_closed()
        while len(ended) < 20 or shaper.num_connections:
            await asyncio.sleep(0.001)
        await shaper.close()
        server.close()

    precise_run(main())
    assert ended == [b"leaves"] * 20


def test_a_planned_break_comes_by_itself_and_an_outage_follows() -> None:
    async def main() -> None:
        async with shaped(Link(breaks_s=(0.05,), outage_s=math.inf)) as shaper:
            for _ in range(2):  # broken the first time, refused the second
                reader, writer = await dial(shaper)
                with pytest.raises(ConnectionResetError):
                    await reader.readexactly(1)
                writer.close()

    precise_run(main())


def test_a_server_that_is_not_there_resets_the_client() -> None:
    async def main() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            nobody = free.getsockname()[:2]
        shaper = Shaper(Link(), nobody)
        await shaper.start()
        reader, writer = await dial(shaper)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        await shaper.close()

    precise_run(main())


@contextmanager
def answering() -> Iterator[int]:
    """A server on a thread: sends back what it reads, one connection at a time."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    try:
                        while data := connection.recv(1000):
                            connection.sendall(data)
                    except ConnectionError:
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_proxy_in_its_own_process_obeys_and_ends_with_its_block() -> None:
    trace = Trace((0.01, 0.03), (10.0, 5.0), "made up")
    with (
        answering() as port,
        shaped_proxy(Link(0.01, breaks_s=(500.0,)), port) as proxy,
        socket.create_connection((proxy.host, proxy.port)) as client,
    ):
        client.sendall(b"hello")
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        assert proxy.traffic() == (5, 5)
        proxy.reshape(Link(up_mbit_s=trace))
        client.sendall(b"again")
        assert client.recv(5, socket.MSG_WAITALL) == b"again"
        assert proxy.traffic() == (10, 10)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.process.poll() is not None
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((proxy.host, proxy.port))
