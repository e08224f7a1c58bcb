"""What the gateway costs: requests and streams a second, and the time it adds, beside others in one run.

Before one upstream on loopback that answers at once stand, each one worker pinned to one core: the upstream
itself, a bare pass-through (Starlette and aiohttp), ours with everything on (a key, ledger, metrics, the
cascade, a receipt) and the LiteLLM proxy, from PyPI in an environment of its own that the first run makes
(some minutes, 1 GB). Rounds alternate between them, so that a busy machine is busy for all. Processor time an
answer is reported beside the rates: it depends less on who else computes.

Needs Linux, two cores, `taskset`, starlette and aiohttp; for figures worth printing, nothing else running.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway_arms import CHUNKS, PAUSE_S
from gateway_load import (
    CLIENT_CORE,
    HERE,
    Arm,
    check,
    ended,
    free_port,
    one,
    request_bytes,
    start,
    start_ours,
    start_upstream,
)
from provenance import commit, hardware

RESULTS = HERE / "results"
SEED = 0  # nothing is random; the report's form wants it
ENVIRONMENT = Path.home() / ".cache" / "consort-experiments" / "litellm"
MASTER_KEY = "sk-0123456789abcdef0123456789abcdef"
STREAMS = 500


async def rate(arm: Arm, *, stream: bool, connections: int, seconds: float) -> tuple[float, list[float]]:
    """Answers a second over so many connections, and each one's time."""
    asked, times = request_bytes(arm, stream=stream), list[float]()
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", arm.port)
        while (begin := time.perf_counter()) < end:
            check(await one(reader, writer, asked), stream=stream)
            times.append(time.perf_counter() - begin)
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    return len(times) / (time.perf_counter() - begin), times


async def many_streams(arm: Arm) -> tuple[float, int]:
    """So many streams at once of a model that takes its time, every one complete and in order; returns the
    seconds they took and how many had begun before the first ended."""
    asked = request_bytes(arm, stream=True, model="slow")
    begun, begun_before_an_end = 0, 0
    begin = time.perf_counter()

    async def client() -> None:
        nonlocal begun, begun_before_an_end
        reader, writer = await asyncio.open_connection("127.0.0.1", arm.port)
        writer.write(asked)
        first = await reader.readuntil(b"data: ")
        begun += 1
        rest = await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        begun_before_an_end = begun_before_an_end or begun
        check((200, dechunked((first + rest).partition(b"\r\n\r\n")[2])), stream=True)
        writer.close()

    await asyncio.gather(*(client() for _ in range(STREAMS)))
    return time.perf_counter() - begin, begun_before_an_end


def dechunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return b"".join(parts)


def measure(arms: list[Arm], options: argparse.Namespace) -> None:
    for arm in arms:  # what is done once, at the first request, is not what is asked here
        for stream in (False, True):
            asyncio.run(rate(arm, stream=stream, connections=8, seconds=options.seconds))
    for _ in range(options.rounds):
        for arm in arms:
            for stream in (False, True):
                kind = "streams" if stream else "requests"
                cpu = arm.cpu_s()
                per_s, times = asyncio.run(rate(arm, stream=stream, connections=8, seconds=options.seconds))
                arm.note(f"{kind}_per_s", per_s)
                arm.note(f"{kind}_cpu_ms", (arm.cpu_s() - cpu) / len(times) * 1000)
                _, alone = asyncio.run(rate(arm, stream=stream, connections=1, seconds=options.seconds / 2))
                arm.note(f"{kind}_p50_ms", statistics.median(alone) * 1000)


@contextmanager
def started(options: argparse.Namespace, folder: Path) -> Iterator[list[Arm]]:
    """Every arm, listening; all end with the block."""
    arms = [start_upstream()]
    with ended(arms):
        upstream, port = arms[0], free_port()
        script = str(HERE / "gateway_arms.py")
        arms.append(start("bare", port, [sys.executable, script, "bare", str(port), str(upstream.port)]))
        arms.append(start_ours(folder, upstream))
        if not options.without_litellm:
            arms.append(start_litellm(options.litellm or litellm(), upstream, folder))
        yield arms


def litellm() -> str:
    """The program of LiteLLM's proxy, installed where it is not."""
    program = ENVIRONMENT / "bin" / "litellm"
    if not program.exists():
        print(f"installing litellm[proxy] into {ENVIRONMENT}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        pip = [str(ENVIRONMENT / "bin" / "pip"), "install", "--quiet", "litellm[proxy]"]
        subprocess.run(pip, check=True)
    return str(program)


def start_litellm(program: str, upstream: Arm, folder: Path) -> Arm:
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: far\n    litellm_params:\n      model: openai/far\n"
        f"      api_base: http://127.0.0.1:{upstream.port}/v1\n      api_key: none\n"
        f"general_settings:\n  master_key: {MASTER_KEY}\n"
    )
    port = free_port()
    arm = start("litellm", port, [program, "--config", str(config), "--port", str(port)], wait_s=300)
    arm.headers = f"Authorization: Bearer {MASTER_KEY}\r\n"
    return arm


def version_of(program: str) -> str:
    code = "import importlib.metadata; print(importlib.metadata.version('litellm'))"
    asked = subprocess.run(
        [str(Path(program).with_name("python")), "-c", code], capture_output=True, text=True
    )
    return asked.stdout.strip()


def summary(arms: list[Arm]) -> dict[str, dict[str, float]]:
    return {arm.name: {what: statistics.median(v) for what, v in arm.samples.items()} for arm in arms}


def as_markdown(result: dict[str, object]) -> str:
    arms: dict[str, dict[str, float]] = result["arms"]  # type: ignore[assignment]
    ours, upstream = arms["ours"], arms["upstream"]
    added = [ours[f"{kind}_p50_ms"] - upstream[f"{kind}_p50_ms"] for kind in ("requests", "streams")]
    lines = [
        "# What the gateway costs",
        "",
        f"Commit {result['commit']}, {result['hardware']}, Python {result['python']}.",
        f"One worker pinned to one core, 8 connections, {CHUNKS} chunks a stream; medians of",
        f"{result['rounds']} alternating rounds. CPU: processor time of the server an answer. Load average",
        f"{result['load_before']:.1f} before the run, {result['load_after']:.1f} after it.",
        "",
        "| | requests/s | CPU ms | p50 alone, ms | streams/s | CPU ms | p50 alone, ms |",
        "|---|---|---|---|---|---|---|",
        *(_line(name, row) for name, row in arms.items()),
        "",
        f"Added at p50, alone: {added[0]:.2f} ms a request, {added[1]:.2f} ms a stream.",
        f"{STREAMS} streams at once of a model that takes {CHUNKS * PAUSE_S:.1f} s, thrice: none lost or",
        f"reordered, {result['at_once']} had begun before the first ended, all ended after",
        f"{result['many_s']:.1f} s.",
    ]
    if lite := arms.get("litellm"):
        times = [ours[f"{kind}_per_s"] / lite[f"{kind}_per_s"] for kind in ("requests", "streams")]
        cpu = [lite[f"{kind}_cpu_ms"] / ours[f"{kind}_cpu_ms"] for kind in ("requests", "streams")]
        lines += [
            f"Against LiteLLM {result['litellm']}: {times[0]:.1f} times its requests/s and",
            f"{times[1]:.1f} times its streams/s; {cpu[0]:.1f} and {cpu[1]:.1f} times less processor time.",
        ]
    return "\n".join(lines) + "\n"


def _line(name: str, row: dict[str, float]) -> str:
    cells = [name]
    for kind in ("requests", "streams"):
        rates, cpu, alone = (row[f"{kind}_{what}"] for what in ("per_s", "cpu_ms", "p50_ms"))
        cells += [f"{rates:,.0f}", f"{cpu:.2f}", f"{alone:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--litellm", default="", metavar="PROGRAM", help="`litellm` of an environment at hand"
    )
    parser.add_argument("--without-litellm", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--dry", action="store_true", help="write no result")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    os.sched_setaffinity(0, {int(CLIENT_CORE)})
    with tempfile.TemporaryDirectory() as folder, started(options, Path(folder)) as arms:
        measure(arms, options)
        ours = next(arm for arm in arms if arm.name == "ours")
        many = [asyncio.run(many_streams(ours)) for _ in range(3)]
        result: dict[str, object] = {
            "commit": commit(),
            "hardware": hardware(),
            "python": platform.python_version(),
            "seed": SEED,
            "load_before": load_before,
            "load_after": os.getloadavg()[0],
            "rounds": options.rounds,
            "litellm": "" if options.without_litellm else version_of(options.litellm or litellm()),
            "arms": summary(arms),
            "samples": {arm.name: arm.samples for arm in arms},
            "many_s": statistics.median(seconds for seconds, _ in many),
            "at_once": min(begun for _, begun in many),
        }
    print(as_markdown(result))
    if not options.dry:
        (RESULTS / "gateway_overhead.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "gateway_overhead.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
