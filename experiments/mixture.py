"""Mixture on the co-tuned demo consort: how much of the gap between the untuned and the tuned LLM does `mix`
close without touching the LLM's weights?

Untuned: zoo:cloud. Tuned, the upper bound: the same with a LoRA trained on the device's own labelled rows,
for as many steps as the proxy's domain adapter. Mixed: the untuned LLM steered by the device's proxy, with
the run's shared adapter and the device's domain adapter, against the bare proxy; across tokenizers, by the
device's co-tuned SLM; and by both. Weights and shares are chosen on valid rows by Rouge-L, for each device or
once for all; or once for each device on the others' valid rows. A learned weight is fitted to the valid rows'
answers. Gap closed is (mixed - untuned) / (tuned - untuned) on test rows, 95 % intervals by bootstrap over
rows. The error of 64 tokens a distribution is measured against all.

    nice -n 10 env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/mixture.py --run-dir runs/demo

A run directory that is not there is filled first (`consort demo`, four minutes). What was measured is kept in
its folder `mixture`, and not measured again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mixture_cut import cut_and_learned
from mixture_rows import BASE, LLM, NEW_TOKENS, PROXY, SLM, Arm, Replay, asked
from mixture_table import BEST, CUT, METRICS, arms, chosen, families, page, summary
from provenance import commit, hardware

from consort.bench.demo import demo_config
from consort.bench.metrics import exact_match, rouge_l
from consort.bench.run import run_co_tuning
from consort.bench.served import ADAPTERS, PROXIES
from consort.bench.suite import write_suite
from consort.cli.tune import run_data
from consort.config import Config, DeviceConfig, ModelConfig
from consort.inference.mixture import Guide, mix
from consort.models.decoding.lm import LocalLM
from consort.models.local import LocalModel, load_model
from consort.preflight import examine
from consort.training.adapters import merged, trainable_part
from consort.training.answers import answer
from consort.training.data import Sample, read_samples
from consort.training.lessons import Learner
from consort.training.mutual import co_train, pool_of
from consort.training.tuned import load_tuned
from consort.types import Consort, Strategy

RESULTS = Path(__file__).parent / "results"
LORA = ModelConfig(model="zoo:cloud", lora_rank=16, lora_alpha=32.0, max_tokens=256)
RATE, STEPS = 3e-3, 80  # of the tuned LLM: as many steps as the proxy's domain adapter has learned
TOGETHER = 8


@dataclass(frozen=True)
class Rows:
    train: list[Sample]
    valid: list[Sample]
    test: list[Sample]


def prepared(run_dir: Path) -> Config:
    """The demo's run, made where it is missing."""
    config = demo_config(run_dir / "suite")
    config = replace(config, runtime=replace(config.runtime, workers=1))
    if not (run_dir / "result.json").exists():
        write_suite(run_dir / "suite")
        data = run_data(examine(config))
        resume = (run_dir / "config.toml").exists()
        run_co_tuning(config, data, run_dir, resume=resume, report=lambda line: print(line, file=sys.stderr))
    return config


def tuned_llm(config: Config, rows: Rows) -> LocalModel:
    """The upper bound."""
    model = load_model("zoo:cloud", runtime=config.runtime, name="cloud")
    learner = Learner(model, trainable_part(model, LORA, seed=1), RATE, LORA.max_tokens)
    co_train([learner], [pool_of(rows.train)], config.tune, steps=STEPS, seed=5)
    return model


def scores(texts: Sequence[str], rows: Sequence[Sample]) -> dict[str, Any]:
    pairs = [(text, row.answer or "") for text, row in zip(texts, rows, strict=True)]
    return {
        "texts": list(texts),
        "rouge_l": [rouge_l(*pair) for pair in pairs],
        "em": [exact_match(*pair) for pair in pairs],
    }


def written(strategy: Strategy, llm: LocalLM, rows: Sequence[Sample]) -> tuple[list[str], dict[str, float]]:
    """Answers, and the share of their tokens that mixing changed."""
    notes: list[Mapping[str, Any]] = []

    async def one(row: Sample, room: asyncio.Semaphore) -> str:
        async with room:
            consort = Consort((), llm, lambda note: notes.append(note.values))
            return "".join([chunk.text async for chunk in strategy(asked(row), consort)])

    async def everybody() -> list[str]:
        room = asyncio.Semaphore(TOGETHER)
        return await asyncio.gather(*(one(row, room) for row in rows))

    began = time.process_time()
    texts = asyncio.run(everybody())
    took = time.process_time() - began
    tokens = sum(note["tokens"] for note in notes)
    changed = sum(note["changed"] for note in notes)
    weight = sum(note.get("weight", 0.0) * note["tokens"] for note in notes)
    return texts, {"changed": changed / tokens, "weight": weight / tokens, "cpu_ms": 1000 * took / tokens}


@dataclass(frozen=True)
class Bench:
    """One device's models, and those that are mixed opened for it."""

    rows: Rows
    models: Mapping[str, LocalModel]
    lms: Mapping[str, LocalLM]

    def alone(self, name: str, split: str) -> dict[str, Any]:
        rows = getattr(self.rows, split)
        with merged(self.models[name]):
            return scores(answer(self.models[name], rows, max_new_tokens=NEW_TOKENS), rows)

    def mixed(self, arms: Mapping[str, Arm], split: str) -> dict[str, dict[str, Any]]:
        """Every arm's answers, replayed."""
        rows = getattr(self.rows, split)
        found: dict[str, list[tuple[str, int, int]]] = {name: [] for name in arms}
        for row in rows:
            replay = Replay(self.lms, asked(row))
            for name, arm in arms.items():
                found[name].append(replay.answer(arm))
            replay.close()
        return {name: _scored(answers, rows) for name, answers in found.items()}

    def served(self, arm: Arm, split: str) -> dict[str, Any]:
        """The same by the strategy itself, and what a token takes."""
        rows = getattr(self.rows, split)
        proxy = Guide(self.lms[PROXY], self.lms[BASE], share=1 - arm.edge_share)
        guides = [proxy, Guide(self.lms[SLM], share=arm.edge_share)]
        strategy = mix(guides, kind=arm.kind, weight=arm.weight)
        texts, more = written(strategy, self.lms[LLM], rows)
        return scores(texts, rows) | more


def _scored(answers: Sequence[tuple[str, int, int]], rows: Sequence[Sample]) -> dict[str, Any]:
    texts, tokens, changed = zip(*answers, strict=True)
    return scores(texts, rows) | {"changed": sum(changed) / sum(tokens)}


@contextmanager
def opened(config: Config, device: DeviceConfig, run_dir: Path, *, upper: bool) -> Iterator[Bench]:
    """With the tuned LLM, where that is asked for."""
    data = Path(device.data)
    rows = Rows(*(read_samples(data, split) for split in ("train", "valid", "test")))
    adapter = run_dir / PROXIES / device.name
    models = {
        LLM: load_model("zoo:cloud", runtime=config.runtime, name="cloud"),
        PROXY: load_tuned("zoo:proxy", adapter=adapter, runtime=config.runtime, chat_template=""),
        BASE: load_model("zoo:proxy", runtime=config.runtime),
        SLM: load_model(run_dir / ADAPTERS / device.name, runtime=config.runtime, name=device.name),
        "base SLM": load_model(device.slm.model, runtime=config.runtime),
    }
    if upper:
        models["tuned"] = tuned_llm(config, rows)
    room = {"answers": 0, "sessions": TOGETHER, "context_tokens": 256, "alternatives": CUT}
    lms = {name: LocalLM(models[name], **room) for name in (LLM, PROXY, BASE, SLM)}
    try:
        yield Bench(rows, models, lms)
    finally:
        for lm in lms.values():
            lm.close()


def valid_rows(config: Config, device: DeviceConfig, run_dir: Path) -> dict[str, Any]:
    """Every arm on one device's valid rows, and the models alone on all; what is known is kept."""
    file = run_dir / "mixture" / f"{device.name}.json"
    if file.exists():
        return json.loads(file.read_text())
    found: dict[str, Any] = {"valid": {}, "test": {}}
    with opened(config, device, run_dir, upper=True) as bench:
        for split in found:
            found[split] |= {name: bench.alone(name, split) for name in bench.models}
        weights = file.with_suffix(".weights.json")
        found["cut"] = cut_and_learned(bench.models, bench.lms, bench.rows.valid, weights)
        found["valid"] |= bench.mixed(arms(weights), "valid")
    file.write_text(json.dumps(found))
    print(f"{device.name}: valid rows", file=sys.stderr, flush=True)
    return found


def test_rows(config: Config, device: DeviceConfig, run_dir: Path, found: dict, names: Sequence[str]) -> None:
    """The arms of `names` on one device's test rows; the first by the strategy itself too."""
    file = run_dir / "mixture" / f"{device.name}.json"
    if all(name in found["test"] for name in names):
        return
    known = arms(file.with_suffix(".weights.json"))
    with opened(config, device, run_dir, upper=False) as bench:
        found["test"] |= bench.mixed({name: known[name] for name in names if name in known}, "test")
        found["served"] = bench.served(known[names[0]], "test")
    file.write_text(json.dumps(found))
    print(f"{device.name}: test rows", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs/mixture"))
    parser.add_argument("--devices", type=int, default=4, help="the first so many")
    args = parser.parse_args()
    config = prepared(args.run_dir)
    folder = args.run_dir / "mixture"
    folder.mkdir(exist_ok=True)
    chosen_devices = config.devices[: args.devices]
    devices = {device.name: valid_rows(config, device, args.run_dir) for device in chosen_devices}
    for device in chosen_devices:
        picked = {name: chosen(devices, *family)[device.name] for name, family in families().items()}
        names = list(dict.fromkeys([picked[BEST], *picked.values()]))
        test_rows(config, device, args.run_dir, devices[device.name], names)
    found = {"commit": commit(), "hardware": hardware(), "summary": summary(devices), "devices": devices}
    text = page(found)
    for each in devices.values():
        for one in (*each["valid"].values(), *each["test"].values(), each["served"]):
            del one["texts"]
            one |= {metric: round(float(np.mean(one[metric])), 5) for metric in METRICS}
    (RESULTS / "mixture.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "mixture.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
