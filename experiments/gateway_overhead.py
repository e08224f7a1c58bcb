"""What the gateway costs: requests and streams a second, and the time it adds, beside others in one run.

Before one upstream on loopback that answers at once stand, each one worker pinned to one core: the upstream
itself, a bare pass-through (Starlette and aiohttp), ours with everything on (a key, ledger, metrics, the
cascade, a receipt) and, where `--litellm` names its program, the LiteLLM proxy. Rounds alternate between
them, so that a busy machine is busy for all. Processor time an answer is reported beside the rates: it does
not depend on who else computes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gateway_arms import CHUNKS, TEXT
from provenance import commit, hardware

RESULTS = Path(__file__).parent / "results"
HERE = Path(__file__).parent
SEED = 0  # nothing is random; the report's form wants it


@dataclass
class Arm:
    name: str
    port: int
    process: subprocess.Popen[bytes]
    headers: str = ""
    model: str = "far"
    samples: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, value: float) -> None:
        self.samples.setdefault(what, []).append(value)

    def cpu_s(self) -> float:
        """Processor time of the arm so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def request_bytes(arm: Arm, *, stream: bool) -> bytes:
    receipt = {"consort": {"receipt": True}} if arm.name == "ours" else {}
    turns = [{"role": "user", "content": "When does the clinic open on Sundays, and whom do I call?"}]
    body = json.dumps({"model": arm.model, "messages": turns, "stream": stream, **receipt}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{arm.headers}\r\n"
    )
    return head.encode() + body


async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bytes) -> bytes:
    """Ask on an open connection; returns the body, its chunks joined."""
    writer.write(asked)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200"), head[:200]
    if b"content-length:" in head:
        return await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
    parts = []
    while size := int((await reader.readline()).strip(), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readline()
    return b"".join(parts)


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


def check(body: bytes, *, stream: bool) -> None:
    """No chunk lost or reordered."""
    if not stream:
        assert json.loads(body)["choices"][0]["message"]["content"] == TEXT, body[:300]
        return
    events = [line[6:] for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    said = [choice["delta"].get("content") or "" for e in events for choice in json.loads(e)["choices"]]
    assert "".join(said) == TEXT, body[:300]
    assert body.rstrip().endswith(b"data: [DONE]"), body[-100:]


async def many_streams(arm: Arm, *, streams: int) -> float:
    """So many streams at once, every one complete and in order; returns the seconds they took."""
    asked = request_bytes(arm, stream=True)
    begin = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", arm.port)
        check(await one(reader, writer, asked), stream=True)
        writer.close()

    await asyncio.gather(*(client() for _ in range(streams)))
    return time.perf_counter() - begin


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


@contextlib.contextmanager
def started(options: argparse.Namespace, folder: Path) -> Iterator[list[Arm]]:
    """Every arm, listening; all end with the block."""
    upstream = free_port()
    script = str(HERE / "gateway_arms.py")
    arms = [start("upstream", upstream, [sys.executable, script, "upstream", str(upstream)])]
    try:
        for name in ("bare", "ours"):
            port = free_port()
            arms.append(
                start(name, port, [sys.executable, script, name, str(port), str(upstream), str(folder)])
            )
        arms[-1].model = "consort"
        arms[-1].headers = f"Authorization: Bearer {(folder / 'key').read_text()}\r\n"
        if options.litellm:
            arms.append(start_litellm(options.litellm, upstream, folder))
        yield arms
    finally:
        for arm in arms:
            arm.process.terminate()
            arm.process.wait(20)


def start(name: str, port: int, command: list[str], wait_s: float = 60) -> Arm:
    """One pinned process, up to where it listens."""
    pinned = ["taskset", "-c", "0" if name == "upstream" else "1", *command]
    arm = Arm(name, port, subprocess.Popen(pinned, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return arm
        if arm.process.poll() is not None:
            raise SystemExit(f"{name} ended: {arm.process.stderr.read().decode()[-2000:]}")  # type: ignore[union-attr]
        time.sleep(0.1)
    raise SystemExit(f"{name} does not listen")


def start_litellm(program: str, upstream: int, folder: Path) -> Arm:
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: far\n    litellm_params:\n      model: openai/far\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: none\n"
        "general_settings:\n  master_key: sk-0123456789abcdef0123456789abcdef\n"
    )
    port = free_port()
    arm = start("litellm", port, [program, "--config", str(config), "--port", str(port)], wait_s=180)
    arm.headers = "Authorization: Bearer sk-0123456789abcdef0123456789abcdef\r\n"
    return arm


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def summary(arms: list[Arm]) -> dict[str, dict[str, float]]:
    return {arm.name: {what: statistics.median(v) for what, v in arm.samples.items()} for arm in arms}


def as_markdown(result: dict[str, object]) -> str:
    arms: dict[str, dict[str, float]] = result["arms"]  # type: ignore[assignment]
    ours, upstream = arms["ours"], arms["upstream"]
    added = [ours[f"{kind}_p50_ms"] - upstream[f"{kind}_p50_ms"] for kind in ("requests", "streams")]
    lines = [
        "# What the gateway costs",
        "",
        f"Commit {result['commit']}, {result['hardware']}; one worker pinned to one core, 8 connections,",
        f"{CHUNKS} chunks a stream; medians of {result['rounds']} alternating rounds. CPU: processor time of",
        "the server an answer.",
        "",
        "| | requests/s | CPU ms | p50 alone, ms | streams/s | CPU ms | p50 alone, ms |",
        "|---|---|---|---|---|---|---|",
        *(_line(name, row) for name, row in arms.items()),
        "",
        f"Added at p50, alone: {added[0]:.2f} ms a request, {added[1]:.2f} ms a stream.",
        f"500 streams at once, thrice: none lost or reordered, {result['many_s']:.1f} s; resident memory",
        f"{result['resident_mb_before']:.0f} MB before all, {result['resident_mb_after']:.0f} MB after.",
    ]
    if lite := arms.get("litellm"):
        times = [ours[f"{kind}_per_s"] / lite[f"{kind}_per_s"] for kind in ("requests", "streams")]
        lines.append(f"Against LiteLLM: {times[0]:.1f} times its requests/s, {times[1]:.1f} its streams/s.")
    return "\n".join(lines) + "\n"


def _line(name: str, row: dict[str, float]) -> str:
    cells = [name]
    for kind in ("requests", "streams"):
        cells += [
            f"{row[f'{kind}_per_s']:,.0f}",
            f"{row[f'{kind}_cpu_ms']:.2f}",
            f"{row[f'{kind}_p50_ms']:.2f}",
        ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--litellm", default="", metavar="PROGRAM", help="`litellm` of another environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--dry", action="store_true", help="write no result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started(options, Path(folder)) as arms:
        ours = next(arm for arm in arms if arm.name == "ours")
        before = ours.resident_mb()
        measure(arms, options)
        many_s = statistics.median(asyncio.run(many_streams(ours, streams=500)) for _ in range(3))
        result: dict[str, object] = {
            "commit": commit(),
            "hardware": hardware(),
            "seed": SEED,
            "rounds": options.rounds,
            "arms": summary(arms),
            "samples": {arm.name: arm.samples for arm in arms},
            "many_s": many_s,
            "resident_mb_before": before,
            "resident_mb_after": ours.resident_mb(),
        }
    print(as_markdown(result))
    if not options.dry:
        (RESULTS / "gateway_overhead.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "gateway_overhead.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
