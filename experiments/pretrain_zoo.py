"""The bundled consort (`consort/models/zoo.py`), born here from generated public text.

    python experiments/pretrain_zoo.py [--only NAME] [--work DIR]   trains what is missing, scores all
    python experiments/pretrain_zoo.py --score                      scores only

The cloud model reads the public skills of every domain for many steps; the edges read other domains,
briefly; the proxy is the cloud's first, middle and last layers, distilled from it. Deterministic, and (but
for the two minutes of distillation) resumable from the checkpoints in `--work`. No private row of the suite
is read. Log: experiments/results/zoo_pretrain.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tiny_models
import torch
from transformers import PreTrainedTokenizerFast

from consort.bench.metrics import exact_match, rouge_l
from consort.bench.suite import Row, Suite, generate_suite, public_rows
from consort.config import ProxyConfig, RuntimeConfig, TuneConfig
from consort.models.local import LocalModel, generate, load_model, wrap_model
from consort.models.zoo import CLOUD, NAMES, PROXY, WEIGHTS
from consort.training.data import Sample, encode, prompt_ids
from consort.training.pretrain import Packed, pretrain
from consort.training.proxy import distil_proxy
from consort.types import Message

RESULTS = Path(__file__).parent / "results" / "zoo_pretrain.jsonl"
RUNTIME = RuntimeConfig(device="cpu", precision="bfloat16")
CONTEXT_TOKENS = 256
BATCH_ROWS = 16


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model of the zoo."""

    name: str
    architecture: tiny_models.Architecture
    family: tiny_models.Family
    vocabulary: int
    width: int
    layers: int
    rows: int  # different public rows
    device_share: float  # of the messages: from the four devices' domains, never their private intents
    steps: int  # of 16 rows: this early, more steps gain more than larger ones
    row_tokens: int = 128  # two samples of common length, or one story; a small vocabulary needs more


RECIPES = (
    Recipe("cloud", "llama", "byte_bpe", 2048, 192, 6, 115_000, 0.5, 3600),
    Recipe("edge-llama", "llama", "byte_bpe", 768, 96, 3, 20_000, 0.05, 4000, 192),
    Recipe("edge-qwen2", "qwen2", "unigram", 1024, 96, 3, 20_000, 0.05, 4000, 192),
    Recipe("edge-neox", "gpt_neox", "sentencepiece_bpe", 1024, 96, 3, 20_000, 0.05, 3000, 192),
    Recipe("edge-gpt2", "gpt2", "byte_bpe", 1024, 96, 3, 20_000, 0.05, 4000, 192),
)
# the proxy: every second layer of the cloud, then its distributions on public rows
DISTILLED_FROM, DISTIL_ROWS = "cloud", 20_000
DISTIL = ProxyConfig(layers=3, distil_steps=500, distil_learning_rate=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", choices=("", *NAMES))
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"), help="checkpoints")
    parser.add_argument("--score", action="store_true", help="train nothing")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    RESULTS.parent.mkdir(exist_ok=True)
    suite = generate_suite()
    for recipe in RECIPES:
        if args.only in ("", recipe.name):
            if not args.score and not (WEIGHTS / recipe.name / "model.safetensors").exists():
                train(recipe, suite, args.work)
            score(load_model(WEIGHTS / recipe.name, runtime=RUNTIME), suite)
    if args.only in ("", PROXY):
        if not args.score and not (WEIGHTS / PROXY / "model.safetensors").exists():
            distil(suite)
        score(load_model(WEIGHTS / PROXY, runtime=RUNTIME), suite)


def train(recipe: Recipe, suite: Suite, work: Path) -> None:
    """Tokenizer and weights of one model, saved where the package finds them."""
    seed = 1000 + RECIPES.index(recipe)
    rows = corpus(recipe.rows, suite, seed=seed, device_share=recipe.device_share)
    tokenizer = tokenizer_of(recipe, rows)
    torch.manual_seed(1)
    module = tiny_models.build_model(
        recipe.architecture,
        vocabulary=len(tokenizer),
        width=recipe.width,
        layers=recipe.layers,
        context=CONTEXT_TOKENS,
    )
    model = wrap_model(module, tokenizer, name=recipe.name, runtime=RUNTIME)
    packed = pack_whole([sample_of(row) for row in rows], model, recipe.row_tokens)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    log(
        {
            "event": "start",
            **asdict(recipe),
            "parameters": parameters,
            "tokens": int((packed.weight_NT > 0).sum()),
        }
    )
    started = time.monotonic()

    def on_log(row: dict[str, float | int | str]) -> None:
        if int(row["step"]) % 100 == 0:
            tokens = (int(row["step"]) + 1) * BATCH_ROWS * recipe.row_tokens
            log(
                {
                    "event": "step",
                    "name": recipe.name,
                    **row,
                    "tokens": tokens,
                    "s": round(time.monotonic() - started),
                }
            )

    checkpoint = work / f"{recipe.name}.checkpoint"
    eager = module.base_model.forward
    module.base_model.forward = torch.compile(eager)  # a fifth less time
    pretrain(
        model,
        packed,
        steps=recipe.steps,
        batch_rows=BATCH_ROWS,
        seed=1,
        checkpoint=checkpoint,
        checkpoint_every=200,
        on_log=on_log,
    )
    module.base_model.forward = eager
    tiny_models.save(model, WEIGHTS / recipe.name)


def distil(suite: Suite) -> None:
    """The proxy, out of the finished cloud model."""
    cloud = load_model(WEIGHTS / DISTILLED_FROM, runtime=RUNTIME, name=CLOUD)
    rows = corpus(DISTIL_ROWS, suite, seed=1000 + len(RECIPES), device_share=0.5)
    samples = [sample_of(row) for row in rows]
    log({"event": "start", "name": PROXY, "rows": len(rows), "distil": asdict(DISTIL)})

    def on_log(row: dict[str, float | int | str]) -> None:
        if int(row["step"]) % 100 == 0:
            log({"event": "step", "name": PROXY, **row})

    proxy, _ = distil_proxy(cloud, DISTIL, samples, TuneConfig(), seed=1, on_log=on_log)
    tiny_models.save(proxy, WEIGHTS / PROXY)


def pack_whole(samples: list[Sample], model: LocalModel, row_tokens: int) -> Packed:
    """Rows that begin with a sample's beginning and cut none: what does not fit the row opens the next one.

    A sample cut off from its prompt teaches a tiny model to guess where it should copy.
    """
    rows: list[tuple[list[int], list[float]]] = []
    for sample in samples:
        encoded = encode(sample, model, row_tokens)
        if not rows or len(rows[-1][0]) + encoded.num_tokens > row_tokens + 1:
            rows.append(([], []))
        ids, weights = rows[-1]
        ids += [*encoded.prompt_ids, *encoded.answer_ids]
        weights += [0.3] * len(encoded.prompt_ids) + [1.0] * len(encoded.answer_ids)
    ids_NT = torch.full((len(rows), row_tokens + 1), model.eos_id)
    weight_NT = torch.zeros(len(rows), row_tokens)
    for index, (ids, weights) in enumerate(rows):
        ids_NT[index, : len(ids)] = torch.tensor(ids)
        weight_NT[index, : len(ids) - 1] = torch.tensor(weights[1:])
    return Packed(ids_NT, weight_NT)


def corpus(num_rows: int, suite: Suite, *, seed: int, device_share: float) -> list[Row]:
    """Public rows of this seed; no input of the suite's held-out or device splits."""
    splits = [
        suite.public["valid"],
        suite.public["test"],
        *(rows for device in suite.devices.values() for rows in device.values()),
    ]
    avoid = {row.input for rows in splits for row in rows if row.skill != "facts"}
    return list(public_rows(num_rows, seed=seed, device_share=device_share, avoid=avoid))


def tokenizer_of(recipe: Recipe, rows: list[Row]) -> PreTrainedTokenizerFast:
    """The recipe's own tokenizer, trained on its first 20,000 rows."""
    # line by line, so that no token but the end of a line reaches over it
    texts = (
        part
        for row in rows[:20_000]
        for part in (f"user: {row.instruction}\n", f"{row.input}\n", "assistant:\n", row.output)
    )
    return tiny_models.train_tokenizer(recipe.family, recipe.vocabulary, texts)


def score(model: LocalModel, suite: Suite) -> None:
    """Log bits per byte on held-out public text, and how well each device's test rows are answered."""
    log(
        {
            "event": "bits_per_byte",
            "name": model.name,
            "value": round(bits_per_byte(model, suite.public["test"]), 4),
        }
    )
    for device, splits in suite.devices.items():
        rows = splits["test"]
        ids = generate(model, [prompt_ids(sample_of(row), model) for row in rows], max_new_tokens=64)
        answers = [model.vocabulary.decode(answer) for answer in ids]
        skills = {}
        for skill in sorted({row.skill for row in rows}):
            marks = [
                exact_match(answer, row.output or "")
                for answer, row in zip(answers, rows, strict=True)
                if row.skill == skill
            ]
            skills[skill] = round(sum(marks) / len(marks), 3)
        em = sum(
            exact_match(answer, row.output or "") for answer, row in zip(answers, rows, strict=True)
        ) / len(rows)
        rouge = sum(
            rouge_l(answer, row.output or "") for answer, row in zip(answers, rows, strict=True)
        ) / len(rows)
        log(
            {
                "event": "zero_shot",
                "name": model.name,
                "device": device,
                "em": round(em, 3),
                "rouge_l": round(rouge, 3),
                **skills,
            }
        )


@torch.no_grad()
def bits_per_byte(model: LocalModel, rows: tuple[Row, ...]) -> float:
    """Of the answers given their prompts, the end of each answer included."""
    nats, count = 0.0, 0
    for row in rows:
        encoded = encode(sample_of(row), model, model.context_tokens)
        ids = torch.tensor([[*encoded.prompt_ids, *encoded.answer_ids]])
        weight, bias = model.head()
        hidden = model.hidden(ids[:, :-1])[0, len(encoded.prompt_ids) - 1 :].float()
        logp = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
        nats -= float(logp.gather(1, torch.tensor(encoded.answer_ids)[:, None]).sum())
        count += len((row.output or "").encode())
    return nats / count / 0.6931471805599453


def sample_of(row: Row) -> Sample:
    """A row as a prompt and its answer."""
    return Sample((Message("user", f"{row.instruction}\n{row.input}"),), row.output)


def log(row: dict[str, object]) -> None:
    """Append to the result file and show it."""
    line = json.dumps(row)
    print(line, flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
