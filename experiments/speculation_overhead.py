"""What does drafting across tokenizers cost? Our loop against transformers' universal assisted generation.

One process, one thread of torch, greedy, the same pair of bundled models with different tokenizers, the same
prompts, CPU seconds of the whole process (`time.process_time`), each prompt by every way in turn; the answers
must be equal. Theirs is `generate(assistant_model=..., tokenizer=..., assistant_tokenizer=...)`, which adapts
its draft length but always drafts. Ours is `speculate` with its engines' threads and event loop, as it serves
a cloud in the same process: it drafts in turn with the cloud, as far as a token is worth what it costs, and
not at all for a while where that does not pay. Beside it the same forbidden to stop drafting, and without
drafts. Its pace is a gateway's after its first `WARM` answers, to prompts that are not counted, so that it
knows what pays; it measures CPU seconds, because they are what is asked (as served: wall time). Then, for
each way, who spent the seconds: both models' forward passes, and the rest.

    nice -n 10 env OMP_NUM_THREADS=1 python experiments/speculation_overhead.py [--prompts 16]
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from provenance import commit, hardware
from speculation_parts import RESULTS, Prompt, bootstrap, origin, speculated, suite_prompts, zoo_lm
from transformers import GenerationConfig

from consort.inference.pace import Pace
from consort.models.decoding.drafters import ModelDrafter
from consort.models.decoding.lm import LocalLM
from consort.models.decoding.prompt import prompt_ids

MAX_TOKENS, WARM = 64, 48
EDGES = ("edge-llama", "edge-gpt2")
OURS = ("served", "always", "alone")
WAYS = {
    "theirs": "universal assisted generation",
    "theirs_alone": "`generate` without an assistant",
    "served": "`speculate` as it serves",
    "always": "the same, always drafting",
    "alone": "the same, without drafts",
}


class Stubborn(Pace):
    """Never stops drafting."""

    def pays(self) -> bool:
        return True


@dataclass(slots=True)
class Spent:
    """CPU seconds of one answer, and of the calls within."""

    text: str
    seconds: float
    cloud_s: float
    edge_s: float
    cloud_calls: int
    edge_calls: int
    told: dict[str, Any]


@contextmanager
def watched(of: Any, name: str) -> Iterator[list[float]]:
    """CPU seconds of each call of a method."""
    seconds, method = list[float](), getattr(of, name)

    @functools.wraps(method)  # `generate` looks at what a module takes
    def timed(*args: Any, **more: Any) -> Any:
        begun_s = time.thread_time()
        try:
            return method(*args, **more)
        finally:
            seconds.append(time.thread_time() - begun_s)

    setattr(of, name, timed)
    try:
        yield seconds
    finally:
        delattr(of, name)


async def spent(
    write: Callable[[], Awaitable[tuple[str, dict[str, Any]]]], cloud: Any, edge: Any, name: str
) -> Spent:
    """What an answer costs whose models compute in a method called `name`."""
    with watched(cloud, name) as cloud_s, watched(edge, name) as edge_s:
        begun_s = time.process_time()
        text, told = await write()
        seconds = time.process_time() - begun_s
    return Spent(text, seconds, sum(cloud_s), sum(edge_s), len(cloud_s), len(edge_s), told)


async def theirs(cloud: LocalLM, edge: LocalLM, prompt: Prompt, *, assisted: bool) -> Spent:
    model, ids = cloud.model, prompt_ids(cloud.model, prompt.request(temperature=0.0, seed=0))
    config = GenerationConfig(
        max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=model.eos_id, pad_token_id=model.eos_id
    )
    given = torch.tensor([ids])
    assistant = {
        "assistant_model": edge.model.module,
        "tokenizer": model.tokenizer,
        "assistant_tokenizer": edge.model.tokenizer,
    }

    async def write() -> tuple[str, dict[str, Any]]:
        with torch.no_grad():
            rows = model.module.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                generation_config=config,
                **(assistant if assisted else {}),
            )
        written = rows[0, len(ids) :].tolist()
        return text_of(
            cloud, written[: written.index(model.eos_id)] if model.eos_id in written else written
        ), {}

    return await spent(write, model.module, edge.model.module, "forward")


def text_of(cloud: LocalLM, ids: Sequence[int]) -> str:
    text = b"".join(cloud.tokenizer.token_bytes[token] or b"" for token in ids).decode(errors="replace")
    return text.removeprefix(" ") if cloud.tokenizer.adds_space else text


async def ours(cloud: LocalLM, edge: LocalLM, prompt: Prompt, pace: Pace) -> Spent:
    drafter = ModelDrafter(edge, cloud.tokenizer)

    async def write() -> tuple[str, dict[str, Any]]:
        request = prompt.request(temperature=0.0, seed=0, max_tokens=MAX_TOKENS)
        timed = await speculated(cloud, request, drafter, pace)  # type: ignore[arg-type]
        return timed.text, timed.told | {"tokens": timed.tokens}

    return await spent(write, cloud._engine._batch.network, edge._engine._batch.network, "read")


async def compare(name: str, prompts: Sequence[Prompt]) -> list[dict[str, Spent]]:
    """Every prompt after the warm-up by every way."""
    cloud, edge = zoo_lm("cloud"), zoo_lm(name)
    clock = time.process_time
    paces = {"served": Pace(clock=clock), "always": Stubborn(clock=clock), "alone": Pace(paused=sys.maxsize)}
    for prompt in prompts[:WARM]:
        for pace in paces.values():
            await ours(cloud, edge, prompt, pace)
    await theirs(cloud, edge, prompts[0], assisted=True)
    found = []
    for place, prompt in enumerate(prompts[WARM:]):
        row = {way: await ours(cloud, edge, prompt, paces[way]) for way in OURS}
        row["theirs"] = await theirs(cloud, edge, prompt, assisted=True)
        row["theirs_alone"] = await theirs(cloud, edge, prompt, assisted=False)
        seconds = {way: round(one.seconds, 3) for way, one in row.items()}
        print(name, place, seconds, row["served"].told, file=sys.stderr, flush=True)
        found.append(row)
    cloud.close()
    edge.close()
    return found


def summary(name: str, rows: Sequence[dict[str, Spent]]) -> dict[str, Any]:
    """Milliseconds a token, and how many times theirs is ours, with 95 % intervals over prompts."""
    tokens = sum(row["alone"].told["tokens"] for row in rows)
    result: dict[str, Any] = {"drafter": name, "answers": len(rows), "tokens": tokens}
    result["equal"] = sum(len({one.text for one in row.values()}) == 1 for row in rows)
    for way in WAYS:
        each = [row[way] for row in rows]
        pairs = [(row["theirs"].seconds, row[way].seconds) for row in rows]
        ratio, low, high = bootstrap(pairs, lambda of: float(of[:, 0].sum() / of[:, 1].sum()))
        total, cloud_s, edge_s = (
            sum(getattr(one, part) for one in each) for part in ("seconds", "cloud_s", "edge_s")
        )
        result[way] = {
            "ms_a_token": 1e3 * total / tokens,
            "cloud_ms_a_token": 1e3 * cloud_s / tokens,
            "edge_ms_a_token": 1e3 * edge_s / tokens,
            "rest_ms_a_token": 1e3 * (total - cloud_s - edge_s) / tokens,
            "tokens_a_pass": tokens / sum(one.cloud_calls for one in each),
            "levels_a_token": sum(one.edge_calls for one in each) / tokens,
            "drafted": sum(one.told.get("drafted", 0) for one in each) / tokens,
            "accepted": sum(one.told.get("accepted", 0) for one in each) / tokens,
            "ratio": ratio,
            "low": low,
            "high": high,
        }
    return result


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Speculation across tokenizers: CPU seconds against universal assisted generation",
        "",
        origin(result),
        "",
        f"Greedy, at most {MAX_TOKENS} tokens; CPU milliseconds a token of the answer, its prompt's reading "
        f"included; the pace has seen {WARM} answers before. Drafted and accepted: tokens of the cloud's, a "
        "token of the answer. The ratio is theirs to this way, of all seconds, with its 95 % interval over "
        "prompts.",
    ]
    for pair in result["pairs"]:
        lines += [
            "",
            f"{pair['drafter']}: {pair['answers']} answers, {pair['tokens']} tokens, {pair['equal']} answers "
            "equal by every way.",
            "",
            "| way | ms a token | cloud's passes | drafter's passes | the rest | tokens a pass "
            "| drafter's passes a token | drafted | accepted | ratio |",
            "|---" * 10 + "|",
        ]
        for way, words in WAYS.items():
            one = pair[way]
            lines.append(
                f"| {words} | {one['ms_a_token']:.2f} | {one['cloud_ms_a_token']:.2f} "
                f"| {one['edge_ms_a_token']:.2f} | {one['rest_ms_a_token']:.2f} | {one['tokens_a_pass']:.2f} "
                f"| {one['levels_a_token']:.2f} | {one['drafted']:.2f} | {one['accepted']:.2f} "
                f"| **{one['ratio']:.2f}** ({one['low']:.2f}, {one['high']:.2f}) |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = suite_prompts(WARM + options.prompts, kinds=("story", "reply", "rewrite", "extract"))
    pairs = [summary(name, asyncio.run(compare(name, prompts))) for name in EDGES]
    result = {"commit": commit(), "hardware": hardware(), "pairs": pairs}
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speculation_overhead.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "speculation_overhead.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
