"""The gateway under `kill -9`, clients that hang up, and guesses at a key: against a real `consort serve`.

Killed: sixteen clients ask as fast as they can, the process is killed in the middle, and the ledger, opened
again, must hold every request whose answer had arrived. Hung up: a client leaves in the middle of an answer;
how long until nothing of it is in flight? Wrong keys: alike to a true one up to the last character, or not at
all; the difference of their times, with a 95 % interval by bootstrap, in the process and over the network.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sqlite3
import statistics
import string
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
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

from consort.errors import AccessError
from consort.gateway.keys import Door
from consort.gateway.ledger import Ledger

RESULTS = HERE / "results"
SEED = 0
ID = re.compile(rb"chatcmpl-[0-9a-f]{32}")
VARIANTS = 50
LETTERS = string.ascii_letters + string.digits + "-_"
GUESSES = ("nothing alike", "first character wrong", "last character wrong")


# ---- killed


async def until_killed(arm: Arm, seconds: float, finished: list[str]) -> None:
    """Ask without pause, kill the server after so long; `finished` takes what had arrived whole."""

    async def client(stream: bool) -> None:
        asked = request_bytes(arm, stream=stream)
        reader, writer = await asyncio.open_connection("127.0.0.1", arm.port)
        try:
            while True:
                answered = await one(reader, writer, asked)
                check(answered, stream=stream)
                found = ID.search(answered[1])
                assert found
                finished.append(found.group().decode())
        except (OSError, EOFError):
            writer.close()

    clients = [asyncio.create_task(client(bool(number % 2))) for number in range(16)]
    await asyncio.sleep(seconds)
    arm.process.kill()
    await asyncio.gather(*clients)


def killed(upstream: Arm, folder: Path, *, times: int) -> dict[str, object]:
    finished: list[str] = []
    rng = random.Random(SEED)
    for _ in range(times):
        ours = start_ours(folder, upstream)
        asyncio.run(until_killed(ours, rng.uniform(0.3, 1.5), finished))
        ours.process.wait(20)
    Ledger(folder).close()  # takes in what the last one left
    database = sqlite3.connect(folder / "ledger.sqlite")
    held = {name for (name,) in database.execute("SELECT id FROM requests")}
    (state,) = database.execute("PRAGMA integrity_check").fetchone()
    database.close()
    return {"kills": times, "finished": len(finished), "lost": len(set(finished) - held), "ledger": state}


# ---- hung up


async def hung_up(arm: Arm, *, times: int) -> dict[str, dict[str, float]]:
    """Milliseconds from a client's leaving to the gateway's word that nothing is in flight."""
    found: dict[str, dict[str, float]] = {}
    asked_for = f"GET /overview HTTP/1.1\r\nHost: 127.0.0.1\r\n{arm.headers}\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", arm.port)

    async def in_flight() -> int:
        return int(json.loads((await one(reader, writer, asked_for))[1])["in_flight"])

    for kind, stream in (("stream", True), ("whole", False)):
        taken = []
        for _ in range(times):
            _, leaver = await asyncio.open_connection("127.0.0.1", arm.port)
            leaver.write(request_bytes(arm, stream=stream, model="slow"))
            while not await in_flight():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            begin = time.perf_counter()
            leaver.close()
            while await in_flight():
                pass
            taken.append((time.perf_counter() - begin) * 1000)
        found[kind] = {"p50_ms": statistics.median(taken), "max_ms": max(taken)}
    writer.close()
    return found


# ---- wrong keys


def guesses(secret: str) -> dict[str, list[str]]:
    """Many guesses of each kind: what one of them costs by chance, in a hash table, is not what is asked."""
    rng = random.Random(SEED)

    def other(letter: str) -> str:
        return rng.choice([each for each in LETTERS if each != letter])

    return {
        GUESSES[0]: ["".join(map(other, secret)) for _ in range(VARIANTS)],
        GUESSES[1]: [other(secret[0]) + secret[1:] for _ in range(VARIANTS)],
        GUESSES[2]: [secret[:-1] + other(secret[-1]) for _ in range(VARIANTS)],
    }


def in_random_order(secret: str, times: int) -> list[tuple[str, str]]:
    """(kind, guess), each kind so often."""
    order = [(kind, each[n % VARIANTS]) for kind, each in guesses(secret).items() for n in range(times)]
    random.Random(SEED).shuffle(order)
    return order


def timed_inside(folder: Path, secret: str, *, times: int) -> dict[str, list[float]]:
    door = Door(folder / "keys.json", required=True)
    taken: dict[str, list[float]] = {kind: [] for kind in GUESSES}
    for kind, guess in in_random_order(secret, times):
        header = f"Bearer {guess}".encode()
        begin = time.perf_counter_ns()
        try:
            door.enter(header)
        except AccessError:
            taken[kind].append((time.perf_counter_ns() - begin) / 1000)
    assert all(len(each) == times for each in taken.values()), "a guess was let in"
    return taken


async def timed_outside(arm: Arm, secret: str, *, times: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {kind: [] for kind in GUESSES}
    reader, writer = await asyncio.open_connection("127.0.0.1", arm.port)
    for kind, guess in in_random_order(secret, times):
        asked = post_bytes(replace(arm, headers=f"Authorization: Bearer {guess}\r\n"), b"{}")
        begin = time.perf_counter()
        status, _ = await one(reader, writer, asked)
        taken[kind].append((time.perf_counter() - begin) * 1e6)
        assert status == 401
    writer.close()
    return taken


def differences(taken: dict[str, list[float]]) -> dict[str, list[float]]:
    """Medians' differences from a key without likeness, microseconds, with the interval's bounds."""
    rng = np.random.default_rng(SEED)

    def medians(kind: str) -> np.ndarray:
        values = np.array(taken[kind])
        return np.median(values[rng.integers(len(values), size=(400, len(values)))], axis=1)

    found = {}
    for kind in GUESSES[1:]:
        drawn = medians(kind) - medians(GUESSES[0])
        middle = statistics.median(taken[kind]) - statistics.median(taken[GUESSES[0]])
        found[kind] = [middle, *map(float, np.quantile(drawn, [0.025, 0.975]))]
    return {"median": [statistics.median(taken[GUESSES[0]])]} | found


def as_markdown(result: dict[str, object]) -> str:
    kills: dict[str, object] = result["killed"]  # type: ignore[assignment]
    left: dict[str, dict[str, float]] = result["hung_up"]  # type: ignore[assignment]
    lines = [
        "# The gateway under faults",
        "",
        f"Commit {result['commit']}, {result['hardware']}.",
        f"Seed {SEED}, load average {result['load']:.1f}.",
        "",
        f"`kill -9`, {kills['kills']} times in the middle of full load: {kills['finished']:,} answers had",
        f"arrived, {kills['lost']} of them are not in the ledger; SQLite's check of it: {kills['ledger']}.",
        "",
        "| a client leaves in the middle of | freed at p50, ms | at most, ms |",
        "|---|---|---|",
        *(f"| {kind} | {row['p50_ms']:.1f} | {row['max_ms']:.1f} |" for kind, row in left.items()),
        "",
        f"{result['leavings']} of each; the time holds the question that asks for it, over and over.",
        "",
        "| a wrong key is refused | median, us | against no likeness | its 95 % interval |",
        "|---|---|---|---|",
    ]
    for where in ("inside", "outside"):
        rows: dict[str, list[float]] = result[where]  # type: ignore[assignment]
        lines.append(f"| {where}: {GUESSES[0]} | {rows['median'][0]:.2f} | | |")
        for kind in GUESSES[1:]:
            more, low, high = rows[kind]
            lines.append(f"| {where}: {kind} | | {more:+.3f} | {low:+.3f} to {high:+.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--leavings", type=int, default=100)
    parser.add_argument("--guesses", type=int, default=4000, help="of each kind; inside five times as many")
    parser.add_argument("--dry", action="store_true", help="write no result")
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(CLIENT_CORE)})
    upstream = start_upstream()
    with tempfile.TemporaryDirectory() as folder, ended(arms := [upstream]):
        state = Path(folder) / "state"
        kills = killed(upstream, state, times=options.kills)
        arms.append(ours := start_ours(state, upstream))
        secret = (state / "secret").read_text()
        result: dict[str, object] = {
            "commit": commit(),
            "hardware": hardware(),
            "seed": SEED,
            "load": os.getloadavg()[0],
            "killed": kills,
            "leavings": options.leavings,
            "hung_up": asyncio.run(hung_up(ours, times=options.leavings)),
            "inside": differences(timed_inside(state, secret, times=5 * options.guesses)),
            "outside": differences(asyncio.run(timed_outside(ours, secret, times=options.guesses))),
        }
    print(as_markdown(result))
    if not options.dry:
        (RESULTS / "gateway_faults.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "gateway_faults.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
