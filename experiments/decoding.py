"""Our decode loop against transformers' `generate` on the bundled models: one thread, CPU, float32.

Alone: the same prompts one at a time, greedy, both methods in turn on each prompt; speed-up is the median of
the prompts' ratios of CPU seconds, and the tokens must be equal. Both times hold the reading of the prompt.
Beside it the two parts: up to the first token, and each token after it (answers of two tokens and more).
Long: the same prompts, answers of 100 tokens each, as generation is usually measured: `generate` may not
choose the end token, our loop takes no notice of it, so only lengths are the same.
Together: one answer at a time against eight at once in the batch, by CPU seconds, weights and cache ready.
Served: the same eight asked of `LocalLM` as eight streams at once, event loop and text included. Evaluation:
128 prompts answered by `local.generate` against transformers' padded batch. The end token is ignored for
long answers and where speed is measured "together", so that answers have the same length; nothing else is.

    nice -n 19 env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/decoding.py [--prompts 16]
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from provenance import commit, hardware
from transformers import GenerationConfig

from consort.bench.suite import Row as SuiteRow
from consort.bench.suite import generate_suite
from consort.config import RuntimeConfig
from consort.models.decoding.batch import Batch, Row
from consort.models.decoding.lm import LocalLM
from consort.models.decoding.network import open_network
from consort.models.local import LocalModel, generate, load_model
from consort.models.zoo import NAMES
from consort.training.data import Sample, prompt_ids
from consort.types import Message, Request

RESULTS = Path(__file__).parent / "results"
NEW_TOKENS = 48
LONG = 100  # tokens of each answer where the end token is ignored
TOGETHER = 8


def cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def theirs(
    model: LocalModel, prompts: Sequence[Sequence[int]], tokens: int = NEW_TOKENS, at_least: int = 0
) -> list[list[int]]:
    """transformers' generate, padded on the left."""
    width = max(map(len, prompts))
    padded = torch.tensor([[model.eos_id] * (width - len(ids)) + list(ids) for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    config = GenerationConfig(
        max_new_tokens=tokens,
        min_new_tokens=at_least,
        do_sample=False,
        eos_token_id=model.eos_id,
        pad_token_id=model.eos_id,
    )
    rows = model.module.generate(input_ids=padded, attention_mask=mask, generation_config=config)
    written = rows[:, width:].tolist()
    return [ids[: ids.index(model.eos_id)] if model.eos_id in ids else ids for ids in written]


def alone(model: LocalModel, prompts: Sequence[Sequence[int]]) -> dict[str, float | int]:
    network = open_network(model, slots=1, positions=model.context_tokens)

    def ours(ids: Sequence[int], tokens: int = NEW_TOKENS) -> list[int]:
        batch, row = Batch(network, model.vocabulary), Row(list(ids), tokens)
        batch.add(row)
        while batch.rows:
            batch.step(len(ids))
        return row.written[:-1] if row.written[-1] == model.eos_id else row.written

    for _ in range(2):
        ours(prompts[0])
        theirs(model, prompts[:1])
    ratios, reading, writing, rates, equal = [], [], [], [], 0
    for ids in prompts:
        answers: list[list[int]] = []
        seconds = (
            cpu_s(lambda ids=ids, into=answers: into.append(theirs(model, [ids])[0])),
            cpu_s(lambda ids=ids, into=answers: into.append(ours(ids))),
        )
        equal += answers[0] == answers[1]
        ratios.append(seconds[0] / seconds[1])
        first = cpu_s(lambda ids=ids: theirs(model, [ids], 1)), cpu_s(lambda ids=ids: ours(ids, 1))
        reading.append(first[0] / first[1])
        if answers[1]:
            writing.append((seconds[0] - first[0]) / (seconds[1] - first[1]))
        rates.append((len(answers[1]) / seconds[0], len(answers[1]) / seconds[1]))
    return {
        "prompts": len(prompts),
        "equal": equal,
        "theirs_tokens_s": statistics.median(rate for rate, _ in rates),
        "ours_tokens_s": statistics.median(rate for _, rate in rates),
        "speed_up": statistics.median(ratios),
        "speed_up_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "reading_speed_up": statistics.median(reading),
        "writing_speed_up": statistics.median(writing),
    }


def long(model: LocalModel, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    free = endless(model)
    network = open_network(free, slots=1, positions=free.context_tokens)

    def ours(ids: Sequence[int]) -> int:
        batch, row = Batch(network, free.vocabulary), Row(list(ids), LONG)
        batch.add(row)
        while batch.rows:
            batch.step(len(ids))
        return len(row.written)

    rates = []
    for ids in [prompts[0], *prompts]:
        counts: list[int] = []
        seconds = (
            cpu_s(lambda ids=ids, into=counts: into.append(len(theirs(model, [ids], LONG, LONG)[0]))),
            cpu_s(lambda ids=ids, into=counts: into.append(ours(ids))),
        )
        assert counts == [LONG, LONG]
        rates.append((LONG / seconds[0], LONG / seconds[1]))
    rates = rates[1:]  # the first warms up
    ratios = [own / their for their, own in rates]
    return {
        "theirs_tokens_s": statistics.median(their for their, _ in rates),
        "ours_tokens_s": statistics.median(own for _, own in rates),
        "speed_up": statistics.median(ratios),
        "speed_up_quartiles": statistics.quantiles(ratios, n=4)[::2],
    }


def endless(model: LocalModel) -> LocalModel:
    """The same model, whose answers end at their length only."""
    vocabulary = dataclasses.replace(model.vocabulary, eos_id=None)
    return dataclasses.replace(model, vocabulary=vocabulary)


def together(model: LocalModel, prompts: Sequence[Sequence[int]], pairs: int) -> dict[str, float]:
    model = endless(model)
    network = open_network(model, slots=TOGETHER, positions=model.context_tokens)

    def rate(count: int) -> float:
        """Tokens a CPU second of `count` answers at once, prompts read."""
        batch = Batch(network, model.vocabulary)
        for ids in prompts[:count]:
            batch.add(Row(list(ids), LONG))
        while batch.writing < count:
            batch.step(4096)
        start, written = time.process_time(), 0
        while batch.rows:
            written += len(batch.step(1)[0])
        return written / (time.process_time() - start)

    runs = [(rate(1), rate(TOGETHER)) for _ in range(pairs)]
    return {
        "one_tokens_s": statistics.median(one for one, _ in runs),
        "eight_tokens_s": statistics.median(eight for _, eight in runs),
        "factor": statistics.median(eight / one for one, eight in runs),
    }


def served(model: LocalModel, texts: Sequence[str], pairs: int) -> dict[str, float]:
    lm = LocalLM(endless(model), answers=TOGETHER, sessions=0)

    async def ask(count: int) -> int:
        async def one(text: str) -> int:
            async for chunk in lm.stream(Request((Message("user", text),), max_tokens=LONG)):
                usage = chunk.usage
            return usage.completion_tokens

        return sum(await asyncio.gather(*map(one, texts[:count])))

    def rate(count: int) -> float:
        start = time.process_time()
        return asyncio.run(ask(count)) / (time.process_time() - start)

    try:
        runs = [(rate(1), rate(TOGETHER)) for _ in range(pairs)]
    finally:
        lm.close()
    return {
        "one_tokens_s": statistics.median(one for one, _ in runs),
        "eight_tokens_s": statistics.median(eight for _, eight in runs),
        "factor": statistics.median(eight / one for one, eight in runs),
    }


def evaluation(model: LocalModel, prompts: Sequence[Sequence[int]], pairs: int) -> dict[str, float | int]:
    runs, equal = [], len(prompts)
    for _ in range(pairs):
        answers: list[list[list[int]]] = []
        runs.append(
            (
                cpu_s(lambda into=answers: into.append(theirs(model, prompts))),
                cpu_s(lambda into=answers: into.append(generate(model, prompts, max_new_tokens=NEW_TOKENS))),
            )
        )
        equal = min(equal, sum(one == other for one, other in zip(*answers, strict=True)))
    return {
        "prompts": len(prompts),
        "equal": equal,
        "theirs_s": statistics.median(one for one, _ in runs),
        "ours_s": statistics.median(other for _, other in runs),
        "speed_up": statistics.median(one / other for one, other in runs),
    }


def measure(name: str, rows: Sequence[SuiteRow], prompts: int, pairs: int) -> dict[str, object]:
    model = load_model(f"zoo:{name}", runtime=RuntimeConfig(device="cpu"))
    texts = [f"{row.instruction}\n{row.input}" for row in rows]
    room = model.context_tokens - LONG
    ids = [prompt_ids(Sample((Message("user", text),), None), model)[-room:] for text in texts]
    short = [text for text, tokens in zip(texts, ids, strict=True) if len(tokens) < room]
    return {
        "model": name,
        "alone": alone(model, ids[:prompts]),
        "long": long(model, ids[:prompts]),
        "together": together(model, ids, pairs),
        "served": served(model, short, pairs),
        "evaluation": evaluation(model, ids, max(1, pairs // 2)),
    }


def as_markdown(result: dict) -> str:
    lines = [
        "# Decoding: our loop against transformers' generate",
        "",
        f"Commit {result['commit']}; {result['hardware']}; load {result['load']:.1f}. Greedy, float32, CPU "
        f"seconds, medians. Alone: {NEW_TOKENS} tokens at most, with the reading of the prompt (quartiles of "
        f"the speed-up), and to the first token and after it. Long: {LONG} tokens each, the end token "
        f"suppressed, tokens a second with the reading of the prompt. Eight: {LONG} tokens each, in the "
        "batch, and as streams of `LocalLM`.",
        "",
        "| model | generate, tokens/s | ours, tokens/s | speed-up | first token, later tokens | equal "
        "| long: generate, ours | speed-up "
        "| eight at once / one | as streams "
        "| 128 prompts: generate, ours | speed-up | equal |",
        "|---" * 13 + "|",
    ]
    for row in result["models"]:
        one, far, many, batch = row["alone"], row["long"], row["together"], row["evaluation"]
        low, high = one["speed_up_quartiles"]
        far_low, far_high = far["speed_up_quartiles"]
        cells = [
            row["model"],
            f"{one['theirs_tokens_s']:.0f}",
            f"{one['ours_tokens_s']:.0f}",
            f"{one['speed_up']:.1f} ({low:.1f}, {high:.1f})",
            f"{one['reading_speed_up']:.1f}, {one['writing_speed_up']:.1f}",
            f"{one['equal']} of {one['prompts']}",
            f"{far['theirs_tokens_s']:.0f}, {far['ours_tokens_s']:.0f}",
            f"{far['speed_up']:.1f} ({far_low:.1f}, {far_high:.1f})",
            f"{many['factor']:.1f} ({many['eight_tokens_s']:.0f} tokens/s)",
            f"{row['served']['factor']:.1f} ({row['served']['eight_tokens_s']:.0f})",
            f"{batch['theirs_s']:.2f} s, {batch['ours_s']:.2f} s",
            f"{batch['speed_up']:.1f}",
            f"{batch['equal']} of {batch['prompts']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=16, help="answered one at a time")
    parser.add_argument("--pairs", type=int, default=5, help="repetitions of everything else")
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = generate_suite().public["test"][:128]
    models = []
    for name in options.models:
        print(f"measuring {name}", file=sys.stderr)
        models.append(measure(name, rows, options.prompts, options.pairs))
    load = Path("/proc/loadavg").read_text().split()[0]
    result = {"commit": commit(), "hardware": hardware(), "load": float(load), "models": models}
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "decoding.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "decoding.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
