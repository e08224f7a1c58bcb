"""What does drafting across tokenizers cost? Our loop against transformers' universal assisted generation.

One process, one thread, greedy, the same pair of bundled models with different tokenizers, the same prompts,
by CPU seconds (`time.process_time`), each prompt by all methods in turn; the answers must be equal. Ours is
the batch and the drafter that serve, one draft and one pass in turn, as theirs: a short chain, which is best
where a draft costs half a pass. For comparison, `speculate` as it serves, on a virtual clock where a pass of
the large model takes 40 ms and a level of a draft 4 ms: it drafts ahead, on and on, in trees, which buys time
with CPU seconds. Theirs is `generate(assistant_model=..., tokenizer=..., assistant_tokenizer=...)`, which
also adapts its draft length.

    nice -n 10 env OMP_NUM_THREADS=1 python experiments/speculation_overhead.py [--prompts 8]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from provenance import commit, hardware
from speculation_parts import (
    LEVEL_S,
    RESULTS,
    STEP_S,
    Prompt,
    bootstrap,
    origin,
    pace_engine,
    speculated,
    suite_prompts,
    warm_pace,
    zoo_lm,
)
from transformers import GenerationConfig

from consort.bench.simulate import virtual_run
from consort.models.decoding.batch import Row
from consort.models.decoding.drafters import ModelDrafter
from consort.models.decoding.lm import LocalLM
from consort.models.decoding.prompt import prompt_ids
from consort.types import DraftShape

MAX_TOKENS = 64
SHAPE = DraftShape(depth=3, width=1, least=0.3)
EDGES = ("edge-llama", "edge-gpt2")


def theirs(cloud: LocalLM, edge: LocalLM, prompt: Prompt) -> tuple[str, float]:
    model, ids = cloud.model, prompt_ids(cloud.model, prompt.request(temperature=0.0, seed=0))
    config = GenerationConfig(
        max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=model.eos_id, pad_token_id=model.eos_id
    )
    given = torch.tensor([ids])
    begun_s = time.process_time()
    with torch.no_grad():
        rows = model.module.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            generation_config=config,
            assistant_model=edge.model.module,
            tokenizer=model.tokenizer,
            assistant_tokenizer=edge.model.tokenizer,
        )
    seconds = time.process_time() - begun_s
    written = rows[0, len(ids) :].tolist()
    written = written[: written.index(model.eos_id)] if model.eos_id in written else written
    return text_of(cloud, written), seconds


def text_of(cloud: LocalLM, ids: Sequence[int]) -> str:
    text = b"".join(cloud.tokenizer.token_bytes[token] or b"" for token in ids).decode(errors="replace")
    return text.removeprefix(" ") if cloud.tokenizer.adds_space else text


def plain(cloud: LocalLM, prompt: Prompt) -> float:
    """CPU seconds of transformers' own loop without an assistant."""
    ids = torch.tensor([prompt_ids(cloud.model, prompt.request(temperature=0.0, seed=0))])
    config = GenerationConfig(
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        eos_token_id=cloud.model.eos_id,
        pad_token_id=cloud.model.eos_id,
    )
    begun_s = time.process_time()
    with torch.no_grad():
        cloud.model.module.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
    return time.process_time() - begun_s


async def ours(cloud: LocalLM, drafter: ModelDrafter, prompt: Prompt) -> tuple[str, float, int]:
    """The answer, CPU seconds, passes of the large model."""
    request = prompt.request(temperature=0.0, seed=0, max_tokens=MAX_TOKENS)
    ids, batch = prompt_ids(cloud.model, request), cloud._engine._batch
    begun_s, passes = time.process_time(), 0
    row = Row(ids, MAX_TOKENS)
    drafting = await drafter.open(request)
    batch.add(row)
    while row in batch.rows:
        if row.written:
            draft, _ = await drafting.draft(row.written, SHAPE)
            batch.draft(row, len(row.written), draft)
        batch.step(len(ids) + 1)
        passes += 1
    drafting.close()
    written = row.written[:-1] if row.written[-1] == cloud.model.eos_id else row.written
    return text_of(cloud, written), time.process_time() - begun_s, passes


async def compare(name: str, prompts: Sequence[Prompt]) -> list[dict]:
    cloud, edge = zoo_lm("cloud"), zoo_lm(name)
    pace_engine(cloud, STEP_S)
    pace_engine(edge, LEVEL_S)
    drafter, pace, rows = ModelDrafter(edge, cloud.tokenizer), warm_pace(), []
    for place, prompt in enumerate([prompts[0], *prompts]):  # the first one twice: it warms up
        request = prompt.request(temperature=0.0, seed=0, max_tokens=MAX_TOKENS)
        text, their_s = theirs(cloud, edge, prompt)
        begun_s = time.process_time()
        ahead = await speculated(cloud, request, drafter, pace)
        ahead_s = time.process_time() - begun_s
        our_text, our_s, passes = await ours(cloud, drafter, prompt)
        row = {
            "tokens": ahead.tokens,
            "their_s": their_s,
            "our_s": our_s,
            "ahead_s": ahead_s,
            "plain_s": plain(cloud, prompt),
            "equal": text == our_text == ahead.text,
            "passes": passes,
            "acceptance": ahead.told["acceptance"],
        }
        print(row, file=sys.stderr, flush=True)
        if place:
            rows.append(row)
    return rows


def summary(name: str, rows: Sequence[dict]) -> dict:
    seconds = [(row["their_s"], row["our_s"]) for row in rows]
    ratio, low, high = bootstrap(seconds, lambda of: float(of[:, 0].sum() / of[:, 1].sum()))
    tokens = sum(row["tokens"] for row in rows)
    return {
        "drafter": name,
        "answers": len(rows),
        "tokens": tokens,
        "equal": sum(row["equal"] for row in rows),
        "their_ms_a_token": 1e3 * sum(row["their_s"] for row in rows) / tokens,
        "our_ms_a_token": 1e3 * sum(row["our_s"] for row in rows) / tokens,
        "ahead_ms_a_token": 1e3 * sum(row["ahead_s"] for row in rows) / tokens,
        "plain_ms_a_token": 1e3 * sum(row["plain_s"] for row in rows) / tokens,
        "tokens_a_pass": tokens / sum(row["passes"] for row in rows),
        "acceptance": statistics.mean(row["acceptance"] for row in rows),
        "ratio": ratio,
        "low": low,
        "high": high,
    }


def as_markdown(result: dict) -> str:
    lines = [
        "# Speculation across tokenizers: CPU seconds against universal assisted generation",
        "",
        origin(result),
        "",
        f"Greedy, at most {MAX_TOKENS} tokens; CPU milliseconds "
        "a token; the ratio of all seconds with its 95 % interval over prompts.",
        "",
        "| drafter | answers | equal | theirs | theirs alone | ahead | ours | tokens a pass | ratio |",
        "|---" * 9 + "|",
    ]
    for row in result["pairs"]:
        lines.append(
            f"| {row['drafter']} | {row['answers']} | {row['equal']} | {row['their_ms_a_token']:.1f} "
            f"| {row['plain_ms_a_token']:.1f} | {row['ahead_ms_a_token']:.1f} "
            f"| {row['our_ms_a_token']:.1f} | {row['tokens_a_pass']:.2f} "
            f"| **{row['ratio']:.1f}** ({row['low']:.1f}, {row['high']:.1f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = suite_prompts(options.prompts, kinds=("story", "reply", "rewrite", "extract"))
    pairs = [summary(name, virtual_run(compare(name, prompts))) for name in EDGES]
    result = {"commit": commit(), "hardware": hardware(), "pairs": pairs}
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speculation_overhead.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "speculation_overhead.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
