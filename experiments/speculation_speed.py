"""How much sooner does a speculated answer come than the cloud's own stream, over the same network?

Virtual time: the code that serves, its engine's passes taking 40 ms in the cloud and 4 ms a level on the
device. `speculate` with the bundled proxy against the bundled cloud alone, over one connection of the same
protocol; from the request to the last token. Answers are the same (checked), so each prompt gives a pair; the
speed-up is the ratio of all seconds, its interval from resampled prompts. The pace lives as long as the
connection, as in the gateway; its very first tokens, written without drafts once in a gateway's life, are
taken as done. Settings were chosen on the suite's first prompts, and others are shown.

    env OMP_NUM_THREADS=1 python experiments/speculation_speed.py [--prompts 24] [--traces 12]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from random import Random

import torch
from provenance import commit, hardware
from speculation_parts import (
    DATA,
    LEVEL_S,
    RESULTS,
    STEP_S,
    Prompt,
    Timed,
    bootstrap,
    origin,
    over_wire,
    pace_engine,
    spec_bench,
    speculated,
    streamed,
    suite_prompts,
    warm_pace,
    zoo_lm,
)

from consort.bench.simulate import Link, trace_link, virtual_run
from consort.inference.pace import Pace
from consort.models.decoding.batch import Row
from consort.models.decoding.drafters import ModelDrafter
from consort.models.decoding.lm import LocalLM
from consort.models.decoding.prompt import prompt_ids
from consort.types import Draft, Drafter, Drafting, DraftShape, Request

ROUND_TRIPS_S = {0.02: 2.4, 0.05: 2.0, 0.1: 1.6}  # and the speed-up that each must reach
TEMPERATURES = (0.0, 1.0)
KINDS = ("story", "reply", "rewrite", "extract")  # what the proxy is accepted in
ACCEPTED = 0.8
MAX_TOKENS = 96
DEVICES = 16
JITTER = 0.1  # of the round trip
TUNED = 8  # prompts of each kind that settings were chosen on
PATIENCE_S = 120.0  # a trace's link may carry nothing for a while, with drafts and without


class Useless:
    """A drafter that is as slow as another and always wrong."""

    name = "useless"

    def __init__(self, size: int) -> None:
        self._size = size

    async def open(self, request: Request) -> Drafting:
        return _Guesses(self._size, Random(request.seed))


class _Guesses:
    def __init__(self, size: int, rng: Random) -> None:
        self._size, self._rng = size, rng

    async def draft(self, answer: Sequence[int], shape: DraftShape) -> tuple[Draft, tuple[float, ...]]:
        await asyncio.sleep(shape.depth * LEVEL_S)
        ids = tuple(self._rng.randrange(self._size) for _ in range(shape.depth))
        return Draft(ids, tuple(range(-1, shape.depth - 1))), tuple(0.9**n for n in range(1, shape.depth + 1))

    def stop(self) -> None:
        """It does not hear."""

    def close(self) -> None:
        """It holds nothing."""


class Bench:
    """The models, and the answers of the cloud alone that were timed before."""

    def __init__(self) -> None:
        self.cloud, self.proxy = zoo_lm("cloud"), zoo_lm("proxy")

    async def pairs(
        self,
        link: Link,
        prompts: Sequence[Prompt],
        temperature: float,
        drafter: Drafter | None = None,
        pace: Pace | None = None,
        first: int = 0,
    ) -> list[dict]:
        """Each prompt answered twice, over one connection."""
        for lm, step_s in ((self.cloud, STEP_S), (self.proxy, LEVEL_S)):
            pace_engine(lm, step_s)
        drafter = drafter or ModelDrafter(self.proxy, self.cloud.tokenizer)
        pace, rows = pace or warm_pace(), []
        async with over_wire(self.cloud, link, resume_s=PATIENCE_S) as (verifier, _):
            for seed, prompt in enumerate(prompts, first):
                request = prompt.request(temperature=temperature, seed=seed, max_tokens=MAX_TOKENS)
                alone = await streamed(verifier, request)
                one = await speculated(verifier, request, drafter, pace)
                assert alone.text == one.text, "speculation changed an answer"
                rows.append(row_of(prompt, alone, one))
        return rows


def row_of(prompt: Prompt, alone: Timed, one: Timed) -> dict:
    told = one.told
    return {
        "kind": prompt.kind,
        "tokens": one.tokens,
        "alone_s": alone.seconds,
        "one_s": one.seconds,
        **{name: told[name] for name in ("pieces", "drafted", "accepted", "acceptance", "off")},
    }


def speed_up(rows: Sequence[dict]) -> dict:
    """Ratio of all seconds, with its interval, and the worst answer."""
    seconds = [(row["alone_s"], row["one_s"]) for row in rows]
    ratio, low, high = bootstrap(seconds, lambda of: float(of[:, 0].sum() / of[:, 1].sum()))
    return {
        "answers": len(rows),
        "tokens": statistics.mean(row["tokens"] for row in rows),
        "speed_up": ratio,
        "low": low,
        "high": high,
        "worst": min(one / other for one, other in seconds),
        "tokens_a_piece": sum(row["tokens"] for row in rows) / sum(row["pieces"] for row in rows),
        "drafted_a_token": sum(row["drafted"] for row in rows) / sum(row["tokens"] for row in rows),
        "acceptance": statistics.mean(row["acceptance"] for row in rows),
    }


def constant(bench: Bench, prompts: Sequence[Prompt]) -> list[dict]:
    found = []
    for temperature in TEMPERATURES:
        for rtt_s, bar in ROUND_TRIPS_S.items():
            jitter_s = rtt_s * JITTER
            rows = virtual_run(bench.pairs(Link(rtt_s, jitter_s, 20.0, 20.0), prompts, temperature))
            for name, some in (
                ("stories", [row for row in rows if row["kind"] == "story"]),
                ("short answers", [row for row in rows if row["kind"] != "story"]),
            ):
                cell = {"temperature": temperature, "rtt_s": rtt_s, "jitter_s": jitter_s, "bar": bar}
                found.append({**cell, "kind": name, **speed_up(some)})
                print(found[-1], file=sys.stderr, flush=True)
    return found


def on_traces(bench: Bench, prompts: Sequence[Prompt], count: int) -> list[dict]:
    """Real bandwidth, begun at random moments, 50 ms, up a quarter of down; a good and a useless drafter."""
    folder, rng = DATA / "traces" / "bandwidth", Random(0)
    kinds = [sorted(folder.glob(f"{kind}_*")) for kind in ("3g", "puffer", "5g")]
    useless, found = Useless(bench.cloud.tokenizer.size), []
    for number in range(count):
        path = rng.choice(kinds[number % len(kinds)])
        link = trace_link(path, rtt_s=0.05, start_s=rng.uniform(0, 300), up_share=0.25, jitter_s=0.01)
        for name, drafter in (("proxy", None), ("useless", useless)):
            rows = virtual_run(bench.pairs(link, prompts, 0.0, drafter))
            found.append({"trace": path.name, "drafter": name, **speed_up(rows)})
            print(found[-1], file=sys.stderr, flush=True)
    return found


def capacity(bench: Bench, prompts: Sequence[Prompt]) -> dict:
    """Sixteen devices, each of which asks again when it has its answer: answers a second of one verifier,
    whose pass over all of them takes as long as over one."""

    async def fleet(*, drafting: bool) -> tuple[float, float]:
        cloud = zoo_lm("cloud", answers=DEVICES)
        pace_engine(cloud, STEP_S)
        loop, begun_cpu_s = asyncio.get_running_loop(), time.process_time()

        async def device(number: int) -> None:
            proxy = LocalLM(bench.proxy.model, answers=1, sessions=1)
            pace_engine(proxy, LEVEL_S)
            drafter, pace = ModelDrafter(proxy, cloud.tokenizer), warm_pace()
            async with over_wire(cloud, Link(0.05, 0.01, 20.0, 20.0), seed=number) as (verifier, _):
                for seed, prompt in enumerate(prompts[number::DEVICES]):
                    request = prompt.request(temperature=0.6, seed=seed, max_tokens=MAX_TOKENS)
                    await (
                        speculated(verifier, request, drafter, pace)
                        if drafting
                        else streamed(verifier, request)
                    )

        await asyncio.gather(*map(device, range(DEVICES)))
        return len(prompts) / loop.time(), time.process_time() - begun_cpu_s

    plain, drafted = virtual_run(fleet(drafting=False)), virtual_run(fleet(drafting=True))
    return {
        "devices": DEVICES,
        "answers": len(prompts),
        "streaming_a_s": plain[0],
        "speculating_a_s": drafted[0],
        "ratio": drafted[0] / plain[0],
    }


def verifier_cpu(bench: Bench) -> dict:
    """CPU seconds of the real batch: a pass over sixteen rows that write, without drafts and with eight nodes
    each, of the bundled cloud."""
    cloud = zoo_lm("cloud", answers=DEVICES)
    batch, prompt = cloud._engine._batch, suite_prompts(1, kinds=("story",))[0]
    ids = prompt_ids(cloud.model, prompt.request(temperature=0.0, seed=0))
    rows = [Row(list(ids), 120) for _ in range(DEVICES)]
    for row in rows:
        batch.add(row)
    while batch.writing < DEVICES:
        batch.step(4096)
    found: dict[int, list[float]] = {nodes: [] for nodes in (0, 8, 16)}
    for _ in range(10):
        for nodes, seconds in found.items():
            for row in batch.rows:
                row.draft = Draft((0,) * nodes, tuple(max(-1, node - 2) for node in range(nodes)))
            begun_s = time.process_time()
            batch.step(1)
            seconds.append(time.process_time() - begun_s)
    cloud.close()
    return {str(nodes): 1e3 * statistics.median(seconds) for nodes, seconds in found.items()}


def hopeless(bench: Bench) -> dict:
    """Spec-Bench's questions, which the bundled models do not understand: what the off-switch is for."""
    prompts = list(spec_bench(bench.cloud, room=MAX_TOKENS))[::20]
    return speed_up(virtual_run(bench.pairs(Link(0.05, 0.01, 20.0, 20.0), prompts, 1.0)))


def as_markdown(result: dict) -> str:
    lines = [
        "# Speculation over a network: how much sooner?",
        "",
        origin(result),
        "",
        f"Virtual time: cloud {STEP_S * 1000:.0f} ms a pass, "
        f"drafter {LEVEL_S * 1000:.0f} ms a level, 20 Mbit/s; bundled cloud and proxy. Speed-up over the "
        "cloud's stream over the same connection, with 95 % intervals over prompts; the bar is what was to "
        "be reached.",
        "",
        "| temperature | round trip | answers | n, tokens | acceptance | tokens a piece | drafted a token "
        "| speed-up | worst answer | bar |",
        "|---" * 10 + "|",
    ]
    for row in result["constant"]:
        lines.append(
            f"| {row['temperature']} | {row['rtt_s'] * 1000:.0f} ± {row['jitter_s'] * 1000:.0f} ms "
            f"| {row['kind']} | {row['answers']}, {row['tokens']:.0f} | {row['acceptance']:.2f} "
            f"| {row['tokens_a_piece']:.2f} | {row['drafted_a_token']:.1f} | **{row['speed_up']:.2f}** "
            f"({row['low']:.2f}, {row['high']:.2f}) | {row['worst']:.2f} | {row['bar']} |"
        )
    if "capacity" in result:
        fleet, cpu = result["capacity"], result["verifier_cpu_ms"]
        lines += [
            "",
            f"{fleet['devices']} devices at 50 ± 10 ms, temperature 0.6: {fleet['speculating_a_s']:.2f} "
            f"answers a second, {fleet['streaming_a_s']:.2f} streaming: **{fleet['ratio']:.2f}** times. "
            f"A pass of the bundled cloud over 16 rows takes {cpu['0']:.1f} ms of CPU, {cpu['8']:.1f} with 8 "
            f"nodes each, {cpu['16']:.1f} with 16.",
        ]
    if "hopeless" in result:
        none = result["hopeless"]
        lines += [
            "",
            f"Spec-Bench, temperature 1 (acceptance {none['acceptance']:.2f}, {none['tokens']:.0f} tokens): "
            f"{none['speed_up']:.2f} ({none['low']:.2f}, {none['high']:.2f}); worst {none['worst']:.2f}.",
        ]
    if "traces" in result:
        lines += [
            "",
            "Real traces of bandwidth at 50 ± 10 ms:",
            "",
            "| trace | drafter | speed-up | worst answer |",
            "|---" * 4 + "|",
        ]
        for row in result["traces"]:
            interval = f"{row['speed_up']:.2f} ({row['low']:.2f}, {row['high']:.2f})"
            lines.append(f"| {row['trace']} | {row['drafter']} | {interval} | {row['worst']:.2f} |")
    return "\n".join(lines) + "\n"


def write(result: dict) -> None:
    """After each part: what was measured stays when the rest is stopped."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speculation_speed.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "speculation_speed.md").write_text(as_markdown(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24, help="half of them stories")
    parser.add_argument("--traces", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench, half = Bench(), options.prompts // 2
    stories = suite_prompts(TUNED + half, kinds=("story",))[TUNED:]
    others = suite_prompts(TUNED + half, kinds=KINDS[1:])[TUNED:]
    prompts = [each for pair in zip(stories, others, strict=False) for each in pair]
    result: dict = {"commit": commit(), "hardware": hardware()}
    parts = {
        "constant": lambda: constant(bench, prompts),
        "traces": lambda: on_traces(bench, prompts[:4], options.traces),
        "hopeless": lambda: hopeless(bench),
        "verifier_cpu_ms": lambda: verifier_cpu(bench),
        "capacity": lambda: capacity(bench, suite_prompts(2 * DEVICES + TUNED, kinds=KINDS)[TUNED:]),
    }
    for name, measure in parts.items():
        result[name] = measure()
        write(result)
    print(as_markdown(result))


if __name__ == "__main__":
    main()
