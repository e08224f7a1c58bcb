"""Conversations between a device and the cloud, to measure a network by: the same code in virtual and in real
time. Computation is a wait of stated length; what is measured is seconds of the running loop's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from consort.bench.simulate import sleep_until

TOKEN_BYTES = 5
TOKEN_S = 0.040  # the cloud's step
DRAFT_S = 0.004  # the device's step
GAMMA = 4  # ids a draft
ID_BYTES = 2
BULK_BYTES = 200_000
HELLO = b"hello"


class Channel(Protocol):
    """Whole messages in order, each way."""

    async def send(self, message: bytes) -> None: ...
    async def receive(self) -> bytes: ...


Device = Callable[[Channel], Awaitable[list[float]]]  # returns what it measured, seconds
Cloud = Callable[[Channel], Awaitable[None]]


async def ping_device(channel: Channel) -> list[float]:
    """Twelve questions of 100 bytes, each answered by 1,000: the seconds of each."""
    seen = []
    for _ in range(12):
        begun_s = _now_s()
        await channel.send(bytes(100))
        await channel.receive()
        seen.append(_now_s() - begun_s)
    return seen


async def ping_cloud(channel: Channel) -> None:
    for _ in range(12):
        await channel.receive()
        await channel.send(bytes(1000))


async def tokens_device(channel: Channel) -> list[float]:
    """A prompt, then fifty frames, one a step of the cloud: the seconds until the last of them."""
    begun_s = _now_s()
    await channel.send(bytes(200))
    for _ in range(50):
        await channel.receive()
    return [_now_s() - begun_s]


async def tokens_cloud(channel: Channel) -> None:
    await channel.receive()
    begun_s = _now_s()
    for token in range(50):
        await sleep_until(begun_s + (token + 1) * TOKEN_S)
        await channel.send(bytes(TOKEN_BYTES))


async def bulk_device(channel: Channel) -> list[float]:
    """200 kB asked for and received: the seconds until its last byte."""
    begun_s = _now_s()
    await channel.send(bytes(100))
    await channel.receive()
    return [_now_s() - begun_s]


async def bulk_cloud(channel: Channel) -> None:
    await channel.receive()
    await channel.send(bytes(BULK_BYTES))


async def verify_device(channel: Channel) -> list[float]:
    """Ten rounds of speculation, four ids drafted, sent, verified in one step, answered: seconds of each."""
    seen = []
    for _ in range(10):
        begun_s = _now_s()
        await sleep_until(begun_s + GAMMA * DRAFT_S)
        await channel.send(bytes(GAMMA * ID_BYTES))
        await channel.receive()
        seen.append(_now_s() - begun_s)
    return seen


async def verify_cloud(channel: Channel) -> None:
    for _ in range(10):
        await channel.receive()
        await sleep_until(_now_s() + TOKEN_S)
        await channel.send(bytes(TOKEN_BYTES))


CASES: dict[str, tuple[Device, Cloud]] = {
    "ping": (ping_device, ping_cloud),
    "tokens": (tokens_device, tokens_cloud),
    "bulk": (bulk_device, bulk_cloud),
    "draft and verify": (verify_device, verify_cloud),
}


async def device(channel: Channel) -> dict[str, list[float]]:
    """Every case in turn; what was measured by the case's name."""
    await channel.send(HELLO)
    await channel.receive()
    return {name: await ask(channel) for name, (ask, _) in CASES.items()}


async def cloud(channel: Channel) -> None:
    """The other end of `device`."""
    await channel.receive()
    await channel.send(HELLO)
    for _, answer in CASES.values():
        await answer(channel)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
