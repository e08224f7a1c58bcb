"""Laws of connections in memory: the closed form in virtual time, whole messages in order, breaks felt."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.bench.simulate import End, Link, Trace, Wire, connected, sleep_until, virtual_run

HEADER = Link().header_bytes


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def echo(end: End) -> None:
    while True:
        await end.send(await end.receive())


def test_a_ping_and_its_pong_take_the_closed_form_exactly() -> None:
    link = Link(0.05, up_mbit_s=1, down_mbit_s=20)

    async def main() -> tuple[float, float]:
        device, cloud = connected(link)
        await device.send(b"x" * 100)
        await cloud.receive()
        arrived_s = now_s()
        await cloud.send(b"y" * 3000)
        await device.receive()
        return arrived_s, now_s()

    there_s = (100 + HEADER) / 125_000 + 0.025
    assert virtual_run(main()) == (there_s, there_s + (3000 + 3 * HEADER) / 2_500_000 + 0.025)


def test_a_stream_of_tokens_keeps_its_pace_and_comes_half_a_round_trip_late() -> None:
    async def main() -> list[float]:
        device, cloud = connected(Link(0.08, down_mbit_s=1), frame_bytes=4)

        async def write() -> None:
            for token in range(50):
                await sleep_until(0.04 * token)
                await cloud.send(bytes(5))

        writing, seen = asyncio.create_task(write()), []
        for _ in range(50):
            await device.receive()
            seen.append(now_s())
        await writing
        return seen

    late_s = (5 + 4 + HEADER) / 125_000 + 0.04
    assert virtual_run(main()) == pytest.approx([0.04 * token + late_s for token in range(50)])


messages = st.lists(st.tuples(st.floats(0, 0.1), st.binary(max_size=4000)), max_size=40)


@given(messages, st.sampled_from((0.0, 0.01, 0.3)), st.integers())
@settings(max_examples=40)
def test_messages_arrive_whole_once_and_in_order_at_the_same_moments(
    sent: list[tuple[float, bytes]], loss: float, seed: int
) -> None:
    link = Link(0.06, 0.03, Trace((0.2, 0.5, 1.0), (0.5, 0.0, 8.0)), loss=loss)

    async def main() -> list[tuple[float, bytes]]:
        device, cloud = connected(link, seed=seed)

        async def write() -> None:
            for gap_s, message in sent:
                await asyncio.sleep(gap_s)
                await device.send(message)
            device.close()

        writing, seen = asyncio.create_task(write()), []
        for _ in sent:
            message = await cloud.receive()
            seen.append((now_s(), message))
        for _ in range(2):
            with pytest.raises(EOFError):
                await cloud.receive()
        await writing
        return seen

    seen = virtual_run(main())
    assert [message for _, message in seen] == [message for _, message in sent]
    assert seen == virtual_run(main())


def test_a_break_loses_what_is_on_its_way_and_both_ends_feel_it() -> None:
    async def main() -> None:
        wire = Wire(Link(0.1, breaks_s=(0.06,)))
        device, cloud = wire.open()
        await device.send(b"arrives")
        await sleep_until(0.02)
        await device.send(b"is lost")
        assert await cloud.receive() == b"arrives"
        with pytest.raises(ConnectionResetError):
            await cloud.receive()
        assert now_s() == 0.06
        for end in (device, cloud):
            with pytest.raises(ConnectionResetError):
                await end.send(b"too late")

    virtual_run(main())


def test_after_a_break_no_connection_is_made_until_the_outage_is_over() -> None:
    async def main() -> None:
        wire = Wire(Link(0.1, outage_s=2.0))
        serving = asyncio.create_task(serve_two(wire))
        device = await wire.dial()
        assert now_s() == pytest.approx(0.1)
        await device.send(b"one")
        assert await device.receive() == b"one"
        wire.cut()
        with pytest.raises(ConnectionResetError):
            await device.receive()
        await asyncio.sleep(1.9)
        with pytest.raises(ConnectionRefusedError):
            await wire.dial()
        await asyncio.sleep(0.2)
        device = await wire.dial()
        await device.send(b"two")
        assert await device.receive() == b"two"
        await cancelled(serving)

    async def serve_two(wire: Wire) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(until_reset(await wire.accept()))

    async def until_reset(end: End) -> None:
        with pytest.raises(ConnectionResetError):
            await echo(end)

    virtual_run(main())


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_device_that_dials_again_gets_every_answer_in_spite_of_random_breaks() -> None:
    async def main() -> tuple[int, float]:
        wire = Wire(Link(0.05, mean_up_s=0.5, outage_s=0.1), seed=3)
        serving, breaks, answered = asyncio.create_task(serve(wire)), 0, 0
        device = await wire.dial()
        while answered < 100:
            try:
                await device.send(bytes([answered]))
                assert await device.receive() == bytes([answered])
                answered += 1
            except ConnectionResetError:
                breaks += 1
                device = await dial(wire)
        await cancelled(serving)
        return breaks, now_s()

    async def dial(wire: Wire) -> End:
        while True:
            try:
                return await wire.dial()
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)

    async def serve(wire: Wire) -> None:
        while True:
            end = await wire.accept()
            with pytest.raises(ConnectionResetError):
                await echo(end)

    breaks, seconds = virtual_run(main())
    assert breaks > 3
    assert (breaks, seconds) == virtual_run(main())


def test_a_wire_with_random_breaks_and_nothing_connected_does_not_run_for_ever() -> None:
    async def main() -> None:
        wire = Wire(Link(0.02, mean_up_s=1.0))
        device, cloud = wire.open()
        device.close()
        cloud.close()
        await wire.accept()

    with pytest.raises(RuntimeError, match="nothing can happen"):
        virtual_run(main())


def test_messages_and_frames_are_counted_and_headers_are_not() -> None:
    async def main() -> tuple[int, int]:
        wire = Wire(Link(0.01), frame_bytes=6)
        device, cloud = wire.open()
        await device.send(bytes(10))
        await device.send(bytes(20))
        await cloud.send(bytes(5000))
        return wire.up_bytes, wire.down_bytes

    assert virtual_run(main()) == (42, 5006)


def test_sixteen_devices_on_links_of_their_own_do_not_meet() -> None:
    sizes = [Random(device).randrange(1, 5000) for device in range(16)]

    async def alone(num_bytes: int, seed: int) -> float:
        device, cloud = connected(Link(0.04, 0.01, 1, 1), seed=seed)
        await device.send(bytes(num_bytes))
        await cloud.receive()
        return now_s()

    async def together() -> list[float]:
        return await asyncio.gather(*(alone(size, number) for number, size in enumerate(sizes)))

    assert virtual_run(together()) == [virtual_run(alone(size, number)) for number, size in enumerate(sizes)]
