"""Is a speculated answer the cloud's own, bit for bit? And are sampled tokens as likely as the model says?

2,000 answers: Spec-Bench's questions and as many of the suite's device prompts, in another order each time;
temperatures 0, 0.6 and 1.0, chains and trees, drafters of the same tokenizer, of another one, prompt lookup,
and one that says anything at all; on a clock that jumps, over links with jitter that break about every two
seconds. Sixteen answers at a time share the cloud's batch, while `LocalLM.stream` wrote the reference before,
in a batch of its own: so rows stand in other places, beside others, in passes of other widths. A near tie
that float32 decides otherwise would show. The bound is the 95 % upper one of a share (Clopper and Pearson).

    nice -n 10 env OMP_NUM_THREADS=1 CONSORT_DATA=... python experiments/speculation_exact.py [--answers 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from provenance import commit, hardware
from speculation_parts import (
    LEVEL_S,
    RESULTS,
    STEP_S,
    Prompt,
    origin,
    over_wire,
    pace_engine,
    spec_bench,
    speculated,
    suite_prompts,
    zoo_lm,
)

from consort.bench.simulate import Link, virtual_run
from consort.inference.pace import Pace
from consort.inference.prompt_lookup import PromptLookup
from consort.models.decoding.drafters import ModelDrafter
from consort.models.decoding.lm import LocalLM
from consort.models.decoding.sampling import Sampling, choose, float64, log_softmax, token_keys
from consort.models.frames import PARKED_S
from consort.models.verifier import RemoteWriting, Verifier
from consort.types import Draft, Drafter, DraftShape, Request

TEMPERATURES = (0.0, 0.6, 1.0)
TOGETHER = 16
MAX_TOKENS = 64
LINK = Link(rtt_s=0.05, jitter_s=0.01, mean_up_s=2.0, outage_s=0.02)
BENCH, SUITE = "Spec-Bench", "suite"
DRAWS = 4000  # of one token, for each prompt of the chi-square test


@dataclass(slots=True)
class Fixed(Pace):
    """Always drafts, as wide as it is told."""

    width: int = 1

    def begins(self) -> bool:
        return True

    def is_trial(self) -> bool:
        return False

    def pays(self) -> bool:
        return True

    def shape(self, *, ahead: bool = False) -> DraftShape:
        return DraftShape(depth=4 if self.width > 1 else 6, width=self.width, least=0.03, spread=self.spread)


@dataclass(frozen=True, slots=True)
class Answered:
    """A text, its tokens, and what became of its drafts."""

    text: str
    tokens: int
    drafted: int = 0
    accepted: int = 0
    resumed: int = 0


async def references(cloud: LocalLM, requests: Sequence[Request]) -> list[Answered]:
    """Each answer by the cloud alone."""
    gate = asyncio.Semaphore(TOGETHER)

    async def one(request: Request) -> Answered:
        async with gate:
            chunks = [chunk async for chunk in cloud.stream(request)]
        return Answered("".join(chunk.text for chunk in chunks), chunks[-1].usage.completion_tokens)

    return await asyncio.gather(*map(one, requests))


async def drafted(cloud: LocalLM, asked: Sequence[tuple[Request, Drafter | None, int]]) -> list[Answered]:
    """Each answer with its drafter (`None`: the hostile one) and width, sixteen breaking links at a time. The
    device has no edge, so nobody takes its answer over and it waits for its cloud."""
    gate = asyncio.Semaphore(TOGETHER)

    async def one(place: int, request: Request, drafter: Drafter | None, width: int) -> Answered:
        async with gate, over_wire(cloud, LINK, seed=place, resume_s=PARKED_S) as (verifier, _):
            if drafter is None:
                return await besieged(verifier, request, Random(place))
            timed = await speculated(verifier, request, drafter, Fixed(width=width))
            told = timed.told
            return Answered(timed.text, timed.tokens, told["drafted"], told["accepted"], told["resumed"])

    return await asyncio.gather(*(one(place, *each) for place, each in enumerate(asked)))


async def besieged(verifier: Verifier, request: Request, rng: Random) -> Answered:
    """An answer to whose session a hostile device sends whatever it likes."""
    writing = await verifier.write(request)
    assert isinstance(writing, RemoteWriting)
    size, ids, messages = verifier.tokenizer.size, list[int](), 0

    async def attack() -> None:
        nonlocal messages
        while True:
            count = rng.choice((1, 3, 8, 64, 400))
            begins = max(0, len(ids) + rng.randint(-3, 8))
            parents = tuple(rng.randint(-1, place - 1) for place in range(count))
            tokens = tuple(rng.randrange(size) for _ in range(count))
            if ids and rng.random() < 0.3:  # the answer's own tokens, at a wrong place
                tokens = tuple(rng.choice(ids) for _ in range(count))
            if rng.random() < 0.3 and writing._link is not None:
                writing._link.say(writing._number, rng.randbytes(rng.randint(0, 300)))
            else:
                writing.draft(begins, Draft(tokens, parents))
            messages += 1
            await asyncio.sleep(rng.uniform(0.01, 0.12))

    attacking = asyncio.create_task(attack())
    try:
        async for written in writing.written():
            ids += written.ids
    finally:
        attacking.cancel()
        await writing.close()
    raw = b"".join(verifier.tokenizer.token_bytes[token] or b"" for token in ids)
    return Answered(raw.decode(errors="replace"), len(ids), drafted=messages, resumed=writing.resumed)


async def answers(count: int) -> list[dict]:
    cloud = zoo_lm("cloud", answers=TOGETHER)
    pace_engine(cloud, STEP_S)
    models = [zoo_lm(name, sessions=TOGETHER) for name in ("proxy", "edge-llama", "edge-gpt2")]
    for lm in models:
        pace_engine(lm, LEVEL_S)
    drafters: list[tuple[str, Drafter | None]] = [
        *((lm.name, ModelDrafter(lm, cloud.tokenizer)) for lm in models),
        ("prompt-lookup", PromptLookup(cloud.tokenizer)),
        ("hostile", None),
    ]
    questions = [(BENCH, prompt) for prompt in spec_bench(cloud, room=MAX_TOKENS)]
    kinds = ("story", "reply", "rewrite", "extract", "facts")
    devices = [(SUITE, prompt) for prompt in suite_prompts(len(questions), kinds=kinds)]
    arms = [(*drafter, width) for drafter in drafters for width in (1, 3)]
    cells = itertools.cycle(itertools.product(arms, TEMPERATURES))
    plan = []
    for seed, (((name, drafter, width), temperature), (source, prompt)) in enumerate(
        itertools.islice(zip(cells, shuffled(questions + devices), strict=False), count)
    ):
        request = prompt.request(temperature=temperature, seed=seed, max_tokens=MAX_TOKENS)
        plan.append((source, name, drafter, width, replace(request, top_p=0.9 if seed % 4 == 3 else 1.0)))
    print("the cloud alone", file=sys.stderr)
    alone = await references(cloud, [request for *_, request in plan])
    print("with drafts", file=sys.stderr)
    found = await drafted(cloud, [(request, drafter, width) for _, _, drafter, width, request in plan])
    return [
        {
            "source": source,
            "drafter": name,
            "tree": width > 1,
            "temperature": request.temperature,
            "tokens": one.tokens,
            "drafted": other.drafted,
            "accepted": other.accepted,
            "resumed": other.resumed,
            "equal": one.text == other.text and one.tokens == other.tokens,
        }
        for (source, name, _, width, request), one, other in zip(plan, alone, found, strict=True)
    ]


def shuffled(prompts: Sequence[tuple[str, Prompt]]) -> Iterator[tuple[str, Prompt]]:
    """All of them again and again, in another order each time: every drafter, shape and temperature meets
    prompts of either source."""
    rng = Random(0)
    while True:
        yield from rng.sample(prompts, len(prompts))


def frequencies(prompts: int) -> list[dict]:
    """Chi-square of drawn tokens against the model's own probabilities, at fixed prompts."""
    cloud = zoo_lm("cloud", answers=1)
    keys, rows = token_keys(cloud.tokenizer), []
    try:
        for place, prompt in enumerate(suite_prompts(prompts, kinds=("story", "reply"), seed=1)):
            for temperature in (0.6, 1.0):
                session, logits = cloud.hold(prompt.request(temperature=temperature, seed=0))
                logits_V = float64(logits.result()[None])
                session.close()
                samplings = [Sampling(temperature, seed=seed) for seed in range(DRAWS)]
                drawn: list[int] = []
                for begin in range(0, DRAWS, 500):
                    part = samplings[begin : begin + 500]
                    drawn += choose(np.repeat(logits_V, len(part), 0), part, [place] * len(part), keys)
                rows.append(chi_square(np.exp(log_softmax(logits_V[0] / temperature)), np.array(drawn)))
                rows[-1]["temperature"] = temperature
    finally:
        cloud.close()
    return rows


def chi_square(p_V: np.ndarray, drawn: np.ndarray) -> dict:
    """Cells expected fewer than five times are one cell."""
    expected_V, counted_V = p_V * len(drawn), np.bincount(drawn, minlength=len(p_V))
    rare_V = expected_V < 5
    expected = [*expected_V[~rare_V], expected_V[rare_V].sum()]
    counted = [*counted_V[~rare_V], counted_V[rare_V].sum()]
    if expected[-1] < 1:  # too few to count by itself: with the commonest
        most = int(np.argmax(expected))
        expected[most], counted[most] = expected[most] + expected[-1], counted[most] + counted[-1]
        expected, counted = expected[:-1], counted[:-1]
    statistic = sum((c - e) ** 2 / e for c, e in zip(counted, expected, strict=True))
    return {"cells": len(expected), "statistic": statistic, "p": chi_tail(statistic, len(expected) - 1)}


def chi_tail(statistic: float, degrees: int) -> float:
    """The chance of a larger chi-square: the regularised upper incomplete gamma function."""
    if degrees < 1:
        return 1.0
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def upper_bound(failures: int, count: int) -> float:
    """The share that is higher with a chance of 5 % only (Clopper and Pearson), by bisection."""
    low, high = failures / count, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        log_p = np.array(
            [
                float(
                    torch.lgamma(torch.tensor(count + 1.0, dtype=torch.float64))
                    - torch.lgamma(torch.tensor(k + 1.0, dtype=torch.float64))
                    - torch.lgamma(torch.tensor(count - k + 1.0, dtype=torch.float64))
                )
                + k * np.log(middle)
                + (count - k) * np.log1p(-middle)
                for k in range(failures + 1)
            ]
        )
        low, high = (middle, high) if np.exp(log_p).sum() > 0.05 else (low, middle)
    return high


def summary(rows: Sequence[dict]) -> dict:
    failures = sum(not row["equal"] for row in rows)
    return {
        "answers": len(rows),
        "tokens": sum(row["tokens"] for row in rows),
        "different": failures,
        "upper_95": upper_bound(failures, len(rows)),
        "resumed": sum(row["resumed"] for row in rows),
        "drafted": sum(row["drafted"] for row in rows),
        "accepted": sum(row["accepted"] for row in rows),
    }


def as_markdown(result: dict) -> str:
    lines = [
        "# Speculation: is every answer the cloud's own?",
        "",
        origin(result),
        "",
        f"Virtual time, {STEP_S * 1000:.0f} ms a step, round"
        f" trip {LINK.rtt_s * 1000:.0f} ± {LINK.jitter_s * 1000:.0f} ms, a break every {LINK.mean_up_s:.0f} s"
        f"; {TOGETHER} answers at once; at most {MAX_TOKENS} tokens; every fourth with top_p 0.9. "
        "Messages, not tokens, are counted as drafted by the hostile device.",
        "",
        "| drafter | shape | answers | tokens | different | 95 % bound | drafted | accepted | resumed |",
        "|---" * 9 + "|",
    ]
    cells = [*result["by_arm"].items(), ("all", result["all"])]
    for name, row in cells:
        drafter, _, shape = name.partition(" ")
        lines.append(
            f"| {drafter} | {shape} | {row['answers']} | {row['tokens']} | {row['different']} "
            f"| {row['upper_95']:.2%} | {row['drafted']} | {row['accepted']} | {row['resumed']} |"
        )
    bench, suite = result["by_source"][BENCH], result["by_source"][SUITE]
    lines += [
        "",
        f"{bench['answers']} of the prompts are Spec-Bench's questions, cut to their first words where the "
        "bundled cloud's context of 256 tokens leaves no room for the answer; the other "
        f"{suite['answers']} are the bundled suite's, as a device would ask. An answer to the first has "
        f"{bench['tokens'] / bench['answers']:.1f} tokens in the mean, one to the others "
        f"{suite['tokens'] / suite['answers']:.1f}: that is how far each was compared.",
    ]
    tests = result["chi_square"]
    lines += [
        "",
        f"Frequencies: {len(tests)} chi-square tests of {DRAWS} draws each against the model's "
        f"probabilities; p below 0.05 in {sum(row['p'] < 0.05 for row in tests)}, least p "
        f"{min(row['p'] for row in tests):.4f}; all together: p {result['chi_square_together']:.3f}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--prompts", type=int, default=20, help="of the chi-square tests")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun_s = time.process_time()
    rows = virtual_run(answers(options.answers))
    names = sorted({(row["drafter"], row["tree"]) for row in rows})
    tests = frequencies(options.prompts)
    freedom = sum(row["cells"] - 1 for row in tests)
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "all": summary(rows),
        "by_arm": {
            f"{name} {'tree' if tree else 'chain'}": summary(
                [row for row in rows if (row["drafter"], row["tree"]) == (name, tree)]
            )
            for name, tree in names
        },
        "by_source": {
            source: summary([row for row in rows if row["source"] == source]) for source in (BENCH, SUITE)
        },
        "by_temperature": {
            str(temperature): summary([row for row in rows if row["temperature"] == temperature])
            for temperature in TEMPERATURES
        },
        "chi_square": tests,
        "chi_square_together": chi_tail(sum(row["statistic"] for row in tests), freedom),
        "cpu_s": time.process_time() - begun_s,
    }
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speculation_exact.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "speculation_exact.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
