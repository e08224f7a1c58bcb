"""What happens to an answer when the network, the cloud or the client fails in its middle?

Virtual time, the code that serves: `takeover(speculate(...))` with a bundled edge model behind it. The link
breaks at a random token, with a reset that both ends see, or silently, so that nothing arrives any more; for
good, or for a moment. Measured: the longest wait for a piece of the answer after the fault, and whether the
answer is the cloud's own. Then a cloud that restarts and knows no session, one that stops computing, one with
all sessions taken; ends whose clocks are hours apart, where the link breaks and a device's deadline passes;
and thousands of sessions that are opened, closed, abandoned and broken, with what they leave behind.

    env OMP_NUM_THREADS=1 python experiments/speculation_faults.py [--faults 40] [--sessions 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from provenance import commit, hardware
from speculation_parts import (
    LEVEL_S,
    RESULTS,
    STEP_S,
    Cloud,
    origin,
    over_wire,
    pace_engine,
    streamed,
    suite_prompts,
    two_clocks,
    warm_pace,
    zoo_lm,
)

from consort.bench.simulate import Link, virtual_run
from consort.errors import ConsortError, DeadlineError
from consort.inference.speculative import speculate
from consort.inference.takeover import takeover
from consort.models.decoding.drafters import ModelDrafter
from consort.models.verifier import Verifier
from consort.types import Chunk, Consort, Note, Request

LINK = Link(rtt_s=0.05, jitter_s=0.005)
EDGE_STEP_S = 0.010  # a token of the edge's own model, and its reading of the prompt
LIMIT_S = 0.5
FAULTS = ("reset, for good", "silence, for good", "reset, back after 50 ms", "restart", "the cloud stalls")
STALL_S = 5.0  # the gateway's own default: a model may think
HOURS_APART = (-6, 0, 6)  # the cloud's clock against the device's
DEADLINE_S = 0.5  # of a device that asks and then is gone, shorter than its answer takes
WAVE = 50  # sessions at once


class Scene:
    """A cloud, a proxy that drafts for it, and an edge that goes on."""

    def __init__(self) -> None:
        self.cloud, self.proxy = zoo_lm("cloud"), zoo_lm("proxy")
        self.edge = zoo_lm("edge-llama")

    def pace(self) -> None:
        for lm, step_s in ((self.cloud, STEP_S), (self.proxy, LEVEL_S), (self.edge, EDGE_STEP_S)):
            pace_engine(lm, step_s)

    async def answer(self, verifier: Verifier, request: Request, notes: list[Note], silence_s: float):
        drafter = ModelDrafter(self.proxy, self.cloud.tokenizer)
        strategy = takeover(speculate(lambda cloud: (drafter, warm_pace())), silence_s=silence_s)
        async for chunk in strategy(request, Consort((self.edge,), verifier, note=notes.append)):
            yield chunk


async def fault(scene: Scene, kind: str, number: int, request: Request, *, ahead_s: float = 0.0) -> dict:
    """One answer in whose middle something breaks, by two clocks where the cloud's is ahead."""
    scene.pace()
    rng, loop = Random(number), asyncio.get_running_loop()
    async with over_wire(scene.cloud, LINK, seed=number) as (verifier, _):
        alone = await streamed(verifier, request)
    at_token, chunks = rng.randrange(1, max(2, alone.tokens - 8)), list[Chunk]()
    last_s, gaps_s = None, list[float]()  # since the fault: of the last piece, and between pieces
    notes: list[Note] = []
    async with over_wire(scene.cloud, LINK, seed=number, ahead_s=ahead_s) as (verifier, cloud):
        async for chunk in scene.answer(verifier, request, notes, STALL_S):
            chunks.append(chunk)
            if last_s is not None:
                gaps_s.append(loop.time() - last_s)
                last_s = loop.time()
            written = sum(len(one.text) for one in chunks) / max(1, len(alone.text)) * alone.tokens
            if last_s is None and written >= at_token:
                await asyncio.sleep(rng.uniform(0, STEP_S))
                last_s = loop.time()
                await break_off(kind, cloud, scene)
    text = "".join(chunk.text for chunk in chunks)
    authors = {chunk.model for chunk in chunks if chunk.text}
    taken_over = any(note.strategy == "takeover" for note in notes)
    return {
        "kind": kind,
        "seconds": max(gaps_s, default=None),
        "taken_over": taken_over,
        "marked": taken_over == (scene.edge.name in authors),
        "equal": text == alone.text,
        "finished": bool(chunks and chunks[-1].finish_reason),
    }


async def break_off(kind: str, cloud: Cloud, scene: Scene) -> None:
    if kind.startswith("reset, for good"):
        cloud.refuse = True
        cloud.wire.cut()
    elif kind.startswith("silence"):
        cloud.dark = True
    elif kind.startswith("reset"):
        cloud.refuse = True
        cloud.wire.cut()
        asyncio.get_running_loop().call_later(0.05, setattr, cloud, "refuse", False)
    elif kind == "restart":
        cloud.wire.cut()
        await cloud.restart()
    else:
        scene.cloud._engine.step_s = 1e6


async def full(scene: Scene, request: Request) -> dict:
    """All sessions taken: the edge answers, and when one is free again the cloud does."""
    scene.pace()
    notes: list[Note] = []
    async with over_wire(scene.cloud, LINK, room=2) as (verifier, cloud):
        held = [await verifier.write(request) for _ in range(2)]
        begun_s = asyncio.get_running_loop().time()
        chunks = [chunk async for chunk in scene.answer(verifier, request, notes, STALL_S)]
        refused_s = asyncio.get_running_loop().time() - begun_s
        for writing in held:
            await writing.close()
        await asyncio.sleep(1.0)
        after = await streamed(verifier, request)
    return {
        "by_edge": {chunk.model for chunk in chunks if chunk.text} == {scene.edge.name},
        "seconds": refused_s,
        "free_again": after.tokens > 0,
        "sessions_left": len(cloud.pool.answerings),
    }


async def apart(scene: Scene, hours: int, number: int, request: Request) -> dict:
    """Clocks hours apart: an answer over a link that breaks for a moment, which has a minute left, and one
    whose device waits `DEADLINE_S` and is gone: the device's seconds until the cloud ends it."""
    loop, ahead_s = asyncio.get_running_loop(), 3600.0 * hours
    with two_clocks():
        asked = replace(request, until_s=loop.time() + 60)
        row = await fault(scene, "reset, back after 50 ms", number, asked, ahead_s=ahead_s)
        scene.pace()
        async with over_wire(scene.cloud, LINK, seed=number, ahead_s=ahead_s) as (verifier, cloud):
            begun_s = loop.time()
            await verifier.write(replace(request, until_s=begun_s + DEADLINE_S))
            while not cloud.pool.answerings:
                await asyncio.sleep(0.001)
            (answering,) = cloud.pool.answerings.values()
            cloud.dark = True
            while not answering.ended:
                await asyncio.sleep(0.001)
            ended_s = loop.time() - begun_s
    in_time = isinstance(answering.error, DeadlineError)
    return {**row, "kind": f"{hours:+d} h", "ended_s": ended_s if in_time else None}


async def many(count: int) -> dict:
    """Sessions opened, finished, abandoned in the middle, and broken, in waves."""
    model, rng = zoo_lm("edge-llama", answers=WAVE), Random(0)
    pace_engine(model, STEP_S)
    rows, waves = [], max(1, count // WAVE)
    prompts = suite_prompts(WAVE, kinds=("intent",))

    async with over_wire(model, Link(rtt_s=0.02), room=2 * WAVE) as (verifier, cloud):

        async def one(place: int) -> None:
            request = prompts[place].request(temperature=0.0, seed=place, max_tokens=4)
            fate = rng.choice(("finished", "abandoned", "cancelled"))
            try:
                async with asyncio.timeout(0.03 if fate == "cancelled" else None):
                    writing = await verifier.write(request)
                    try:
                        async for _ in writing.written():
                            if fate == "abandoned":
                                break
                    finally:
                        await writing.close()
            except (TimeoutError, ConsortError):
                pass

        for wave in range(waves):
            if wave % 4 == 3:  # a break falls into this one
                asyncio.get_running_loop().call_later(rng.uniform(0.02, 0.15), cloud.wire.cut)
            await asyncio.gather(*map(one, range(WAVE)))
            if wave % max(1, waves // 10) == 0 or wave == waves - 1:
                await asyncio.sleep(1.0)
                gc.collect()
                rows.append(
                    {
                        "sessions": (wave + 1) * WAVE,
                        "resident_mb": resident_mb(),
                        "tasks": len(asyncio.all_tasks()),
                        "answerings": sum(not one.ended for one in cloud.pool.answerings.values()),
                        "slots": len(model._engine._batch.rows) + len(model._engine._listeners),
                        "heard": len(verifier._link._heard) if verifier._link else 0,
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
    return {"rows": rows}


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def summary(kind: str, rows: list[dict]) -> dict:
    waits = sorted(row["seconds"] for row in rows if row["seconds"] is not None)
    return {
        "kind": kind,
        "answers": len(rows),
        "finished": sum(row["finished"] for row in rows),
        "taken_over": sum(row["taken_over"] for row in rows),
        "marked": sum(row["marked"] for row in rows),
        "equal": sum(row["equal"] for row in rows),
        "median_s": statistics.median(waits),
        "worst_s": waits[-1],
        "within": sum(wait <= LIMIT_S for wait in waits),
    }


def as_markdown(result: dict) -> str:
    lines = [
        "# Speculation: faults",
        "",
        origin(result),
        "",
        f"Virtual time: cloud {STEP_S * 1000:.0f} ms a pass, "
        f"edge {EDGE_STEP_S * 1000:.0f} ms, round trip {LINK.rtt_s * 1000:.0f} ms. Seconds: the longest "
        "wait for a piece of the answer after the fault.",
        "",
        "| fault | answers | finished | by the edge | spans right | equal | median | worst | in 0.5 s |",
        "|---" * 9 + "|",
    ]
    for row in result["faults"]:
        lines.append(
            f"| {row['kind']} | {row['answers']} | {row['finished']} | {row['taken_over']} | {row['marked']} "
            f"| {row['equal']} | {row['median_s'] * 1000:.0f} ms | {row['worst_s'] * 1000:.0f} ms "
            f"| {row['within']} |"
        )
    lines += [
        "",
        "The cloud's clock against the device's: answers with a minute left over a link that is back after "
        f"50 ms, and answers whose device waits {DEADLINE_S * 1000:.0f} ms and is gone: when the cloud ends "
        "them, by the device's clock.",
        "",
        "| clock | answers | finished | by the edge | equal | worst | ended by deadline | ended, worst |",
        "|---" * 8 + "|",
        *(
            f"| {row['kind']} | {row['answers']} | {row['finished']} | {row['taken_over']} | {row['equal']} "
            f"| {row['worst_s'] * 1000:.0f} ms | {row['ended']} | {row['ended_worst_s'] * 1000:.0f} ms |"
            for row in result["clocks"]
        ),
    ]
    full_row, rows = result["full"], result["many"]["rows"]
    lines += [
        "",
        f"All sessions taken: the edge answers alone: {full_row['by_edge']}, whole after "
        f"{full_row['seconds']:.2f} s; the cloud again as soon as one is free: {full_row['free_again']}.",
        "",
        "Sessions opened, finished, abandoned, cancelled and broken:",
        "",
        "| sessions so far | resident MB | tasks | answers under way | slots held | sessions heard |",
        "|---" * 6 + "|",
        *(
            f"| {row['sessions']} | {row['resident_mb']:.0f} | {row['tasks']} | {row['answerings']} "
            f"| {row['slots']} | {row['heard']} |"
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=40, help="answers of each kind of fault")
    parser.add_argument("--sessions", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun_s, scene = time.process_time(), Scene()
    prompts = suite_prompts(options.faults, kinds=("story",))
    found = []
    for kind in FAULTS:
        rows = [
            virtual_run(fault(scene, kind, number, prompt.request(temperature=0.6, seed=number)))
            for number, prompt in enumerate(prompts)
        ]
        found.append(summary(kind, rows))
        print(found[-1], file=sys.stderr, flush=True)
    clocks = []
    for hours in HOURS_APART:
        rows = [
            virtual_run(apart(scene, hours, number, prompt.request(temperature=0.6, seed=number)))
            for number, prompt in enumerate(prompts)
        ]
        ended_s = [row["ended_s"] for row in rows if row["ended_s"] is not None]
        told = {"ended": len(ended_s), "ended_worst_s": max(ended_s, default=float("nan"))}
        clocks.append({**summary(rows[0]["kind"], rows), **told})
        print(clocks[-1], file=sys.stderr, flush=True)
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "faults": found,
        "clocks": clocks,
        "full": virtual_run(full(scene, prompts[0].request(temperature=0.6, seed=0))),
        "many": virtual_run(many(options.sessions)),
        "cpu_s": time.process_time() - begun_s,
    }
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speculation_faults.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "speculation_faults.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
