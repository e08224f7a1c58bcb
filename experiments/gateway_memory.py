"""Is the gateway's memory flat? A moderate mixed load for ten minutes and more, and a line through its size.

Whole answers, streams, answers from the cache, clients that hang up in the middle, bodies that are refused,
models that do not exist and wrong keys. The resident size of `consort serve` is read every two seconds; after
the warm-up, the slope is that of half-minute means, with a 95 % interval by the t-distribution (means of half
a minute are nearly independent of each other, single readings are not).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from gateway_load import (
    CLIENT_CORE,
    HERE,
    Arm,
    check,
    ended,
    one,
    post_bytes,
    request_bytes,
    start_ours,
    start_upstream,
)
from provenance import commit, hardware
from scipy import stats

RESULTS = HERE / "results"
SEED = 0
EVERY_S = 2.0
BLOCK_S = 30.0
KINDS = ("whole", "stream", "cached", "left", "refused", "unknown", "stranger")


async def load(arm: Arm, counts: Counter[str], *, per_s: float, end: float) -> None:
    """Requests of every kind at random times, so many a second on average."""
    rng, running = random.Random(SEED), set[asyncio.Task[None]]()
    while time.monotonic() < end:
        task = asyncio.create_task(ask(arm, rng.choice(KINDS), rng.randrange(10_000), counts))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(rng.expovariate(per_s))
    await asyncio.gather(*running)


async def ask(arm: Arm, kind: str, number: int, counts: Counter[str]) -> None:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", arm.port)
    text = f"Question {number}: when does the clinic open?"
    try:
        if kind in ("whole", "stream"):
            stream = kind == "stream"
            check(await one(reader, writer, request_bytes(arm, stream=stream, text=text)), stream=stream)
        elif kind == "cached":
            asked = request_bytes(arm, stream=False, model="consort/cache", text=text)
            check(await one(reader, writer, asked), stream=False)
        elif kind == "left":
            writer.write(request_bytes(arm, stream=True, model="slow", text=text))
            await reader.readuntil(b"data: ")
        else:
            wrong = {
                "refused": post_bytes(arm, b'{"messages": "?"}'),
                "unknown": request_bytes(arm, stream=False, model=f"model-{number}"),
                "stranger": request_bytes(
                    replace(arm, headers=f"Authorization: Bearer {number}\r\n"), stream=False
                ),
            }
            status, body = await one(reader, writer, wrong[kind])
            assert status == {"refused": 400, "unknown": 404, "stranger": 401}[kind], body[:200]
        counts[kind] += 1
    finally:
        writer.close()


async def watch(arm: Arm, readings: list[tuple[float, float]], *, end: float) -> None:
    begin = time.monotonic()
    while time.monotonic() < end:
        readings.append((time.monotonic() - begin, arm.resident_mb()))
        await asyncio.sleep(EVERY_S)


def slope(readings: list[tuple[float, float]], *, after_s: float) -> tuple[float, float, float]:
    """MB an hour, and the bounds of its 95 % interval."""
    blocks: dict[int, list[tuple[float, float]]] = {}
    for at, size in readings:
        if at >= after_s:
            blocks.setdefault(int(at // BLOCK_S), []).append((at, size))
    times = [statistics.fmean(at for at, _ in block) / 3600 for block in blocks.values()]
    fitted = stats.linregress(
        times, [statistics.fmean(size for _, size in block) for block in blocks.values()]
    )
    half = float(stats.t.ppf(0.975, len(times) - 2)) * fitted.stderr
    return fitted.slope, fitted.slope - half, fitted.slope + half


def as_markdown(result: dict[str, object]) -> str:
    per_hour, low, high = result["mb_an_hour"]  # type: ignore[misc]
    counts: dict[str, int] = result["counts"]  # type: ignore[assignment]
    return "\n".join(
        [
            "# Is the gateway's memory flat?",
            "",
            f"Commit {result['commit']}, {result['hardware']}.",
            f"Seed {SEED}, load average {result['load']:.1f}.",
            f"{result['minutes']:.0f} minutes of `consort serve`, {sum(counts.values()):,} requests:",
            ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items())) + ".",
            "",
            f"Resident size: {result['first_mb']:.1f} MB before the first request,",
            f"{result['warm_mb']:.1f} MB after {result['warm_up_s']:.0f} s,",
            f"{result['last_mb']:.1f} MB at the end.",
            f"Slope after that warm-up: {per_hour:+.2f} MB an hour, 95 % interval {low:+.2f} to {high:+.2f};",
            f"a request more costs {result['bytes_a_request']:+.1f} bytes.",
        ]
    ) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--warm-up-s", type=float, default=180.0, help="not part of the line")
    parser.add_argument("--per-s", type=float, default=60.0, help="requests")
    parser.add_argument("--dry", action="store_true", help="write no result")
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(CLIENT_CORE)})
    readings: list[tuple[float, float]] = []
    counts: Counter[str] = Counter()
    upstream = start_upstream()
    with tempfile.TemporaryDirectory() as folder, ended(arms := [upstream]):
        arms.append(ours := start_ours(Path(folder) / "state", upstream))
        first_mb, end = ours.resident_mb(), time.monotonic() + options.minutes * 60

        async def run() -> None:
            await asyncio.gather(
                load(ours, counts, per_s=options.per_s, end=end), watch(ours, readings, end=end)
            )

        asyncio.run(run())
    per_hour = slope(readings, after_s=options.warm_up_s)
    warm_mb = next(size for at, size in readings if at >= options.warm_up_s)
    result: dict[str, object] = {
        "commit": commit(),
        "hardware": hardware(),
        "seed": SEED,
        "load": os.getloadavg()[1],
        "minutes": options.minutes,
        "warm_up_s": options.warm_up_s,
        "counts": dict(counts),
        "first_mb": first_mb,
        "warm_mb": warm_mb,
        "last_mb": readings[-1][1],
        "mb_an_hour": per_hour,
        "bytes_a_request": per_hour[0] * 1024**2 / 3600 / (sum(counts.values()) / options.minutes / 60),
        "readings": [(round(at, 1), round(size, 2)) for at, size in readings],
    }
    print(as_markdown(result))
    if not options.dry:
        (RESULTS / "gateway_memory.json").write_text(json.dumps(result) + "\n")
        (RESULTS / "gateway_memory.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
