"""Does drafting on the device pay over this network? 400 tokens, streamed by the cloud or drafted four at a
time, in virtual time: the device takes 4 ms a token, the cloud 40 ms a pass, and a drafted token is kept with
probability 0.85. Nothing is drafted ahead here, so it pays on near links only.
"""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from consort.bench.simulate import End, Link, connected, virtual_run

TOKENS, DRAFT_S, PASS_S, KEPT = 400, 0.004, 0.040, 0.85


async def stream(device: End, cloud: End) -> None:
    """The cloud writes alone, a token a pass."""

    async def write() -> None:
        await cloud.receive()
        for _ in range(TOKENS):
            await asyncio.sleep(PASS_S)
            await cloud.send(b"token")

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        await device.send(b"prompt")
        for _ in range(TOKENS):
            await device.receive()


async def speculate(device: End, cloud: End) -> None:
    """The device drafts, the cloud keeps what it would have written and adds a token."""
    rng = Random(0)

    async def verify() -> None:
        while (await cloud.receive()) != b"done":
            await asyncio.sleep(PASS_S)
            kept = next((count for count in range(4) if rng.random() > KEPT), 4)
            await cloud.send(bytes([kept]))

    async with asyncio.TaskGroup() as group:
        group.create_task(verify())
        written = 0
        while written < TOKENS:
            await asyncio.sleep(4 * DRAFT_S)
            await device.send(b"8 bytes.")
            written += (await device.receive())[0] + 1  # what was kept, and the cloud's own next token
        await device.send(b"done")


async def seconds(answer: Callable[[End, End], Awaitable[None]], link: Link) -> float:
    """Until the whole answer has arrived."""
    device, cloud = connected(link)
    await answer(device, cloud)
    return asyncio.get_running_loop().time()


for rtt_ms in (20, 50, 100, 200):
    link = Link(rtt_s=rtt_ms / 1000, up_mbit_s=1, down_mbit_s=20)
    streamed, speculated = (virtual_run(seconds(answer, link)) for answer in (stream, speculate))
    times = streamed / speculated
    print(f"{rtt_ms:3} ms: streamed {streamed:.3f} s, drafted {speculated:.3f} s, {times:.2f} times")
