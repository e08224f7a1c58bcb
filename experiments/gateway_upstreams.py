"""The gateway before an endpoint that fails in every way of `tests.upstream`: through a real `consort serve`.

One gateway has an edge model beside the faulty cloud, one has none; each is asked by every strategy that asks
a cloud for whole answers, streaming and not. Counted: complete answers (the cloud's own, the edge's, or the
edge's after what the cloud had said, to the letter), one well-formed error, and anything else; and how long
the slowest of all took, which had a deadline. A fault lasts: what is tried again fails again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from gateway_arms import TEXT
from gateway_load import CLIENT_CORE, HERE, Arm, ended, free_port, one, post_bytes, start, start_upstream
from provenance import commit, hardware

from tests.upstream import FAULTS, Upstream, answer, upstream

RESULTS = HERE / "results"
DEADLINE_S, STALL_S = 3.0, 0.5
LATE_S = 0.1  # after the deadline, until the client has read what the gateway says then
AT_ONCE = 16
HEALTHY = "answers (no fault)"
BEGUN, WHOLE = "It ", "It opens at nine"
ANSWERS = {WHOLE, TEXT, BEGUN + TEXT}
STRATEGIES = {"with an edge": ("takeover", "cascade", "route", "auto"), "without": ("cloud", "takeover")}
ENDS = ("complete", "one error", "neither")

Faults = dict[str, dict[str, dict[str, float]]]  # fault, kind of client, end: count
Stop = Callable[[], Awaitable[None]]


@dataclass
class Cell:
    """What came of one fault for one kind of client."""

    ends: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    late: int = 0


def start_gateway(folder: Path, cloud_url: str, edge: Arm | None) -> Arm:
    """`consort serve` before the faulty cloud."""
    folder.mkdir()
    port = free_port()
    lines = ["[serve]", f"port = {port}", f"state = {json.dumps(str(folder))}", 'strategy = "takeover"']
    lines += [f"stall_s = {STALL_S}", "max_in_flight = 1000"]
    if edge is not None:
        url = f"http://127.0.0.1:{edge.port}/v1"
        lines += ["[[serve.edges]]", 'name = "near"', 'model = "near"', f'base_url = "{url}"']
    lines += ["[serve.cloud]", 'name = "far"', 'model = "far"', f'base_url = "{cloud_url}"']
    config = folder / "consort.toml"
    config.write_text("\n".join(lines) + "\n")
    return start("ours", port, [sys.executable, "-m", "consort", "serve", str(config)])


async def asked(arm: Arm, strategy: str, *, stream: bool) -> tuple[str, float]:
    """How one request ended, and after how long."""
    parameters = {"deadline_s": DEADLINE_S, "threshold": 2.0, "goal": "quality"}
    turns = [{"role": "user", "content": "when does it open?"}]
    body = {"model": f"consort/{strategy}", "messages": turns, "stream": stream, "consort": parameters}
    reader, writer = await asyncio.open_connection("127.0.0.1", arm.port)
    begin = time.perf_counter()
    try:
        async with asyncio.timeout(DEADLINE_S + 10):
            status, told = await one(reader, writer, post_bytes(arm, json.dumps(body).encode()))
        end = end_of(status, told, stream=stream)
    except (OSError, EOFError, TimeoutError, ValueError):
        end = "neither"
    finally:
        writer.close()
    return end, time.perf_counter() - begin


def end_of(status: int, told: bytes, *, stream: bool) -> str:
    """Which end an answer's bytes are; ValueError where they are no JSON."""
    if not stream or status != 200:
        found = json.loads(told)
        if status != 200:
            return "one error" if status in (502, 504) and is_error(found) else "neither"
        (choice,) = found["choices"]
        complete = choice["finish_reason"] == "stop" and choice["message"]["content"] in ANSWERS
        return "complete" if complete else "neither"
    *lines, done = [line.removeprefix(b"data: ") for line in told.split(b"\n\n") if line]
    events = [json.loads(line) for line in lines]
    if done != b"[DONE]" or not events:
        return "neither"
    failures = [event for event in events if "error" in event]
    finishes = [choice["finish_reason"] for event in events for choice in event.get("choices", ())]
    if failures:
        alone = failures == events[-1:] and is_error(failures[0]) and not any(finishes)
        return "one error" if alone else "neither"
    text = "".join(
        choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ())
    )
    complete = text in ANSWERS and [each for each in finishes if each] == ["stop"]
    return "complete" if complete else "neither"


def is_error(found: dict[str, object]) -> bool:
    """OpenAI's error object, and nothing else."""
    error = found.get("error")
    return found.keys() == {"error"} and isinstance(error, dict) and error.keys() == {
        "message", "type", "param", "code"
    }  # fmt: skip


async def counted(arm: Arm, beside: str, *, stream: bool, times: int) -> Cell:
    """Every strategy so many times."""
    cell, room = Cell(), asyncio.Semaphore(AT_ONCE)

    async def once(strategy: str) -> None:
        async with room:
            end, took_s = await asked(arm, strategy, stream=stream)
        cell.ends[end] += 1
        cell.slowest_s = max(cell.slowest_s, took_s)
        cell.late += took_s > DEADLINE_S + LATE_S

    await asyncio.gather(*(once(strategy) for strategy in STRATEGIES[beside] for _ in range(times)))
    return cell


async def measured(gateways: dict[str, Arm], up: Upstream, stop: Stop, times: int) -> Faults:
    """Every fault in turn, at last the one where nobody listens."""
    found: Faults = {}
    scripts = {HEALTHY: answer(BEGUN, "opens at nine"), **FAULTS}
    for fault, script in sorted(scripts.items(), key=lambda item: item[1] is None):
        if script is None:
            await stop()
        else:
            up.scripts = [script]
        for beside, arm in gateways.items():
            for stream in (False, True):
                cell = await counted(arm, beside, stream=stream, times=times)
                told = {end: cell.ends[end] for end in ENDS} | {
                    "slowest_s": cell.slowest_s,
                    "late": cell.late,
                }
                found.setdefault(fault, {})[f"{beside}, {'streamed' if stream else 'whole'}"] = told
    return found


async def run(folder: Path, times: int) -> Faults:
    edge = start_upstream()
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(upstream([]))
        with ended(arms := [edge]):
            gateways: dict[str, Arm] = {}
            for beside, near in (("with an edge", edge), ("without", None)):
                arms.append(started := start_gateway(folder / beside.replace(" ", "-"), up.url, near))
                gateways[beside] = started
            return await measured(gateways, up, stack.aclose, times)


def total(cells: Iterable[dict[str, float]], *ends: str) -> int:
    return sum(int(cell[end]) for cell in cells for end in ends)


def as_markdown(result: dict[str, object]) -> str:
    faults: Faults = result["faults"]  # type: ignore[assignment]
    kinds = list(faults[HEALTHY])
    cells = [cell for row in faults.values() for cell in row.values()]
    edge = [row[kind] for fault, row in faults.items() if fault != HEALTHY for kind in kinds[:2]]
    slowest_s = max(cell["slowest_s"] for cell in cells)
    lines = [
        "# The gateway before an endpoint that fails",
        "",
        f"Commit {result['commit']}, {result['hardware']}.",
        f"Load average {result['load']:.1f}. By chance are only the pauses before a further attempt.",
        "",
        f"{total(cells, *ENDS):,} requests: {total(cells, *ENDS[:2]):,} ended in a complete answer or one",
        f"well-formed error, {total(cells, 'neither')} in anything else; the slowest took {slowest_s:.2f} s,",
        f"with a deadline of {DEADLINE_S:g} s, and {total(cells, 'late')} more than {LATE_S:g} s over it.",
        f"Under faults, with an edge beside the cloud, {total(edge, 'complete'):,} of",
        f"{total(edge, *ENDS):,} had a complete answer. After {STALL_S:g} s of silence the edge goes on.",
        "",
        "Complete answers, errors, anything else:",
        "",
        f"| the cloud | {' | '.join(kinds)} | slowest, s |",
        "|---" * (len(kinds) + 2) + "|",
    ]
    for fault, row in faults.items():
        told = [", ".join(f"{int(cell[end])}" for end in ENDS) for cell in row.values()]
        slowest_s = max(cell["slowest_s"] for cell in row.values())
        lines.append(f"| {fault} | {' | '.join(told)} | {slowest_s:.2f} |")
    asked_by = "; ".join(f"{beside}: {', '.join(names)}" for beside, names in STRATEGIES.items())
    lines += ["", f"{result['times']} requests a strategy ({asked_by}), {AT_ONCE} at once."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=25, help="for each strategy and kind of answer")
    parser.add_argument("--dry", action="store_true", help="write no result")
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(CLIENT_CORE)})
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, object] = {
            "commit": commit(),
            "hardware": hardware(),
            "load": os.getloadavg()[0],
            "times": options.times,
            "deadline_s": DEADLINE_S,
            "faults": asyncio.run(run(Path(folder), options.times)),
        }
    print(as_markdown(result))
    if not options.dry:
        (RESULTS / "gateway_upstreams.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "gateway_upstreams.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
