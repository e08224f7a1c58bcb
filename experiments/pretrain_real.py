"""The real consortium's base models, from scratch: a cloud LLM on public rows, four edge SLMs on other tasks
only.

    python experiments/pretrain_real.py [--only cloud] [--precision bfloat16]

Deterministic and resumable: each model continues from its checkpoint, and a finished model is not trained
again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import real_data
import tiny_models

from consort.config import RuntimeConfig
from consort.training.data import Sample
from consort.training.pretrain import pack, pretrain


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model from scratch."""

    name: str
    family: tiny_models.Family
    vocabulary: int
    architecture: tiny_models.Architecture
    width: int
    layers: int
    steps: int  # of 16 rows x 256 tokens
    share_of_device_tasks: float  # of the tokens; the edges have never seen a device's task


MODELS = Path(__file__).parent / "real_models"  # in bfloat16 beside the results that were measured on them
CHECKPOINTS = Path("runs/real_models")

RECIPES = (
    Recipe("cloud", "byte_bpe", 4096, "llama", 192, 6, 2400, 0.8),
    Recipe("bank", "byte_bpe", 1024, "llama", 128, 3, 300, 0.0),
    Recipe("restaurant", "sentencepiece_bpe", 2048, "gpt_neox", 128, 3, 300, 0.0),
    Recipe("clinic", "unigram", 1536, "qwen2", 128, 3, 300, 0.0),
    Recipe("assistant", "byte_bpe", 1536, "gpt2", 128, 3, 300, 0.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--only", default="")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    args = parser.parse_args()
    data = real_data.load(seed=0)
    for recipe in RECIPES:
        if (not args.only or args.only == recipe.name) and not (
            args.out / recipe.name / "model.safetensors"
        ).exists():
            train(recipe, data, args.out, RuntimeConfig(device="cpu", precision=args.precision))


def train(recipe: Recipe, data: real_data.RealData, out: Path, runtime: RuntimeConfig) -> None:
    """Tokenizer, weights, log; saved as a transformers directory."""
    samples = mixture(recipe, data)
    started = time.monotonic()
    texts = (f"{sample.prompt[0].content}\n{sample.answer}" for sample in samples)  # type: ignore[union-attr]
    tokenizer = tiny_models.train_tokenizer(recipe.family, recipe.vocabulary, itertools.islice(texts, 30_000))
    model = tiny_models.new_model(
        recipe.name,
        tokenizer,
        recipe.architecture,
        width=recipe.width,
        layers=recipe.layers,
        seed=1,
        runtime=runtime,
    )
    packed = pack(samples, model)
    for folder in (out, CHECKPOINTS):
        folder.mkdir(parents=True, exist_ok=True)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    print(
        f"{recipe.name}: {parameters / 1e6:.2f}M parameters, {packed.ids_NT.numel() / 1e6:.2f}M tokens",
        flush=True,
    )
    log = pretrain(
        model,
        packed,
        steps=recipe.steps,
        seed=1,
        checkpoint=CHECKPOINTS / f"{recipe.name}.checkpoint",
        checkpoint_every=100,
        on_log=lambda row: print(recipe.name, row, round(time.monotonic() - started), "s", flush=True),
    )
    tiny_models.save(model, out / recipe.name)
    (out / f"{recipe.name}.log.json").write_text(json.dumps(log))


def mixture(recipe: Recipe, data: real_data.RealData) -> list[Sample]:
    """About 100,000 rows in a fixed random order, device tasks in the recipe's share (by characters, which is
    near to tokens)."""
    device_rows = [sample for name in real_data.DEVICES for sample in data.public[name]]
    other_rows = [sample for name in real_data.OTHER_TASKS for sample in data.public[name]]
    rng = random.Random(f"mixture {recipe.name}")
    wanted, rows = 6_000_000, []
    for pool, share in (
        (device_rows, recipe.share_of_device_tasks),
        (other_rows, 1 - recipe.share_of_device_tasks),
    ):
        characters = 0
        while characters < wanted * share:
            rng.shuffle(pool)
            for sample in pool:
                rows.append(sample)
                characters += len(sample.prompt[0].content) + len(sample.answer or "")  # type: ignore[union-attr]
    rng.shuffle(rows)
    return rows


if __name__ == "__main__":
    main()
