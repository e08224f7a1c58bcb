"""Mixture on the co-tuned demo consort: how much of the gap between the untuned and the tuned LLM does `mix`
close without touching the LLM's weights?

Untuned: zoo:cloud. Tuned, the upper bound: the same with a LoRA trained on the device's own labelled rows,
for as many steps as the proxy's domain adapter. Mixed: the untuned LLM steered by the device's proxy, with
the run's shared adapter and the device's domain adapter, against the bare proxy; and, across tokenizers, by
the device's co-tuned SLM against the bundled one. Weights are chosen on valid rows by Rouge-L; a learned
weight is fitted to the valid rows' answers. Gap closed is (mixed - untuned) / (tuned - untuned) on test rows,
95 % intervals by bootstrap over rows. The error of 64 tokens a distribution is measured against all.

    nice -n 10 env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/mixture.py --run-dir runs/demo

A run directory that is not there is filled first (`consort demo`, four minutes). What was measured is kept in
its folder `mixture`, and not measured again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from provenance import commit, hardware

from consort.bench.demo import demo_config
from consort.bench.metrics import exact_match, rouge_l
from consort.bench.run import run_co_tuning
from consort.bench.suite import write_suite
from consort.cli.tune import run_data
from consort.config import Config, DeviceConfig, ModelConfig
from consort.federated.party import Device, PrivateRows
from consort.inference.blending import steered
from consort.inference.following import Written, follower
from consort.inference.mixing_weights import Kind, Moment, Weight, fit, fixed, save_weights
from consort.inference.mixture import Guides, mix
from consort.inference.white_box import vocabulary_of
from consort.models.decoding.lm import LocalLM
from consort.models.local import LocalModel, load_model
from consort.models.zoo import zoo_dir
from consort.preflight import examine
from consort.training.adapters import (
    DOMAIN,
    SHARED,
    lora_parameters,
    merged,
    read_adapter,
    trainable_part,
    write_parameters,
)
from consort.training.answers import answer
from consort.training.data import Sample, read_samples
from consort.training.lessons import Learner
from consort.training.mutual import co_train, pool_of
from consort.training.peft_directory import load_adapter, save_adapter
from consort.training.proxy import load_proxy
from consort.training.stacking import stack_adapters
from consort.types import Consort, Request, Strategy, TopK

RESULTS = Path(__file__).parent / "results"
METRICS = ("rouge_l", "em")
LORA = ModelConfig(model="zoo:cloud", lora_rank=16, lora_alpha=32.0, max_tokens=256)
RATE, STEPS = 3e-3, 80  # of the tuned LLM: as many steps as the proxy's domain adapter has learned
WEIGHTS = (0.5, 1.0)
SHARES = (0.5, 0.6, 0.7, 0.8)
NEW_TOKENS = 32
TOGETHER = 8
CUT_ROWS = 16  # valid rows on which the error of the cut is measured
RESAMPLES = 10_000
CUT = 64  # tokens of a distribution, as it is served


@dataclass(frozen=True)
class Rows:
    train: list[Sample]
    valid: list[Sample]
    test: list[Sample]


@dataclass(frozen=True)
class Arm:
    """A way to mix: kind, weight, and whether the SLM steers instead of the proxy."""

    kind: Kind
    weight: Weight
    across: bool = False


def arms() -> dict[str, Arm]:
    found = {f"tuned {a}": Arm("tuned", fixed(a)) for a in WEIGHTS}
    for kind in ("product", "mean"):
        found |= {f"{kind} {share}": Arm(kind, fixed(share)) for share in SHARES}
    found |= {f"SLM mean {share}": Arm("mean", fixed(share), across=True) for share in SHARES[1:3]}
    return found


def families() -> dict[str, list[str]]:
    """Arms of which one is chosen, by its valid rows."""
    by_proxy = [name for name in arms() if not name.startswith("SLM")] + ["tuned learned"]
    return {
        "tuned, one weight a device": [f"tuned {a}" for a in WEIGHTS],
        "tuned, weight 1": ["tuned 1.0"],
        "tuned, learned weights": ["tuned learned"],
        "product, one share a device": [f"product {share}" for share in SHARES],
        "mean, one share a device": [f"mean {share}" for share in SHARES],
        "mean, share 0.7": ["mean 0.7"],
        "any of these, chosen on valid rows": by_proxy,
        "the proxy alone": ["proxy"],
        "across tokenizers: mean": [name for name in arms() if name.startswith("SLM mean")],
        "the SLM alone": ["SLM"],
    }


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


def tuned_proxy(config: Config, device: DeviceConfig, rows: Rows, run_dir: Path) -> LocalModel:
    """The device's proxy after the last round: what was broadcast, and the adapter that never left it."""
    number = config.devices.index(device)
    folder = run_dir / "devices" / device.name
    seed = 100 * config.seed + number
    state = Device(
        device, config, PrivateRows(rows.train), proxy_dir=zoo_dir("proxy"), folder=folder, seed=seed
    ).state()
    assert state is not None, "the run is finished"
    carrier = load_model("zoo:proxy", runtime=config.runtime, name="proxy")
    load_adapter(carrier, run_dir / "adapters" / "proxy", name=SHARED)
    shared = read_adapter(carrier, SHARED)
    proxy = load_proxy(zoo_dir("proxy"), config.proxy, config.runtime, shared=shared, seed=config.seed)
    write_parameters(lora_parameters(proxy, DOMAIN), state.domain, where=device.name)
    stack_adapters(proxy, [SHARED, DOMAIN], into="device")
    # as `[serve.proxy] model = "zoo:proxy", adapter = ...` reads it
    save_adapter(proxy, "device", run_dir / "mixture" / f"{device.name}-proxy", base="zoo:proxy")
    return proxy


def tuned_llm(config: Config, rows: Rows) -> LocalModel:
    """The upper bound."""
    model = load_model("zoo:cloud", runtime=config.runtime, name="cloud")
    learner = Learner(model, trainable_part(model, LORA, seed=1), RATE, LORA.max_tokens)
    co_train([learner], [pool_of(rows.train)], config.tune, steps=STEPS, seed=5)
    return model


def scored(texts: Sequence[str], rows: Sequence[Sample]) -> tuple[list[float], list[float]]:
    pairs = [(text, row.answer or "") for text, row in zip(texts, rows, strict=True)]
    return [rouge_l(*pair) for pair in pairs], [exact_match(*pair) for pair in pairs]


def asked(row: Sample) -> Request:
    assert not isinstance(row.prompt, str), "the suite asks by messages"
    return Request(row.prompt, max_tokens=NEW_TOKENS)


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

    texts = asyncio.run(everybody())
    tokens = sum(note["tokens"] for note in notes)
    changed = sum(note["changed"] for note in notes)
    weight = sum(note.get("weight", 0.0) * note["tokens"] for note in notes)
    return texts, {"changed": changed / tokens, "weight": weight / tokens}


def moments(llm: LocalLM, guides: Guides, rows: Sequence[Sample]) -> tuple[list[Moment], list[int]]:
    """What is known at every token of the rows' own answers, and the token."""
    found: list[Moment] = []
    tokens: list[int] = []
    vocabulary = vocabulary_of(llm)
    for row in rows:
        ids = [*vocabulary.spans(row.answer or "").ids.tolist(), vocabulary.eos_id]
        voices = [follower(lm, asked(row), vocabulary) for lm in (llm, guides.tuned, guides.base)]
        for position, token in enumerate(ids):
            so_far = Written(tuple(ids[:position]), b"")
            for voice in voices:
                voice.follow(so_far)
            model, plus, minus = (voice.heard(None) for voice in voices)
            assert model is not None, "one tokenizer: nobody is mute"
            assert plus is not None
            assert minus is not None
            found.append(Moment(model, plus, minus, position))
            tokens.append(token)
        for voice in voices:
            voice.close()
    return found, tokens


def cut(top: TopK, count: int) -> TopK:
    kept = top.logprobs[:count]
    return TopK(top.ids[:count], kept, max(0.0, 1.0 - float(np.exp(kept).sum())))


def error_of_cut(whole: Sequence[Moment], size: int) -> dict[str, float]:
    """What 64 tokens a distribution change against all of them, at a = 1 and 2."""
    found: dict[str, float] = {"positions": len(whole)}
    for weight in (1.0, 2.0):
        flips, distances = 0, []
        for moment in whole:
            dense = steered(moment.model, moment.plus, moment.minus, weight=weight, size=size)
            parts = (cut(each, CUT) for each in (moment.model, moment.plus, moment.minus))
            sparse = steered(*parts, weight=weight, size=size)
            flips += int(dense.ids[0]) != int(sparse.ids[0])
            probs = np.zeros(size)
            probs[dense.ids] = np.exp(dense.logprobs)
            probs[sparse.ids] -= np.exp(sparse.logprobs)
            distances.append((np.abs(probs).sum() + sparse.rest) / 2)
        found[f"flips at {weight}"] = flips / len(whole)
        found[f"mean variation at {weight}"] = float(np.mean(distances))
        found[f"largest variation at {weight}"] = float(np.max(distances))
    return found


def measured(config: Config, device: DeviceConfig, run_dir: Path) -> dict[str, Any]:
    """Every arm on one device's valid and test rows."""
    data = Path(device.data)
    rows = Rows(*(read_samples(data, split) for split in ("train", "valid", "test")))
    proxy, base = tuned_proxy(config, device, rows, run_dir), load_model("zoo:proxy", runtime=config.runtime)
    slm = load_model(run_dir / "adapters" / device.name, runtime=config.runtime, name=device.name)
    slm_base = load_model(device.slm.model, runtime=config.runtime, name=f"{device.name}-base")
    cloud = load_model("zoo:cloud", runtime=config.runtime, name="cloud")
    upper = tuned_llm(config, rows)
    found: dict[str, Any] = {"valid": {}, "test": {}}

    def put(name: str, split: str, texts: Sequence[str], **more: float) -> None:
        rouge, em = scored(texts, getattr(rows, split))
        found[split][name] = {"rouge_l": rouge, "em": em, **more}

    for name, model in (
        ("untuned", cloud), ("tuned", upper), ("proxy", proxy), ("base proxy", base), ("SLM", slm),
        ("base SLM", slm_base),
    ):  # fmt: skip
        for split in ("valid", "test"):
            with merged(model):
                put(name, split, answer(model, getattr(rows, split), max_new_tokens=NEW_TOKENS))
    everything = {"answers": 1, "sessions": TOGETHER, "context_tokens": 256, "alternatives": CUT}
    whole = everything | {"alternatives": 10**6, "sessions": 1}
    opened = [LocalLM(model, **whole) for model in (cloud, proxy, base)]
    told, _ = moments(opened[0], Guides(opened[1], opened[2]), rows.valid[:CUT_ROWS])
    found["cut"] = error_of_cut(told, cloud.vocabulary.size)
    for lm in opened:
        lm.close()
    lms = [LocalLM(model, **everything) for model in (cloud, proxy, base, slm, slm_base)]
    llm, guides, across = lms[0], Guides(lms[1], lms[2]), Guides(lms[3], lms[4])
    told, tokens = moments(llm, guides, rows.valid)
    learned = fit(told, tokens, size=cloud.vocabulary.size)
    save_weights(learned, run_dir / "mixture" / f"{device.name}.weights.json")
    tried = arms() | {"tuned learned": Arm("tuned", learned)}

    def try_out(names: Sequence[str], split: str) -> None:
        for name in names:
            arm = tried[name]
            strategy = mix(across if arm.across else guides, kind=arm.kind, weight=arm.weight)
            texts, more = written(strategy, llm, getattr(rows, split))
            put(name, split, texts, **more)
            means = (np.mean(found[split][name][metric]) for metric in METRICS)
            print(device.name, split, name, *(f"{mean:.3f}" for mean in means), file=sys.stderr, flush=True)

    try_out(list(tried), "valid")
    picked = (chosen({device.name: found}, members)[device.name] for members in families().values())
    try_out([name for name in dict.fromkeys(picked) if name in tried], "test")
    for lm in lms:
        lm.close()
    return found


def chosen(devices: Mapping[str, dict], names: Sequence[str]) -> dict[str, str]:
    """Each device's arm with the best valid Rouge-L, exact match where that ties."""

    def valid(device: str, name: str) -> tuple[float, float]:
        scores = devices[device]["valid"][name]
        return float(np.mean(scores["rouge_l"])), float(np.mean(scores["em"]))

    return {device: max(names, key=lambda name: valid(device, name)) for device in devices}


def gap(devices: Mapping[str, dict], picked: Mapping[str, str], metric: str) -> dict[str, Any]:
    """The share of the gap that is closed: each device's, and of the means over devices."""
    rng = np.random.default_rng(0)
    scores = {
        name: np.array([found["test"][arm][metric] for arm in ("untuned", "tuned", picked[name])])
        for name, found in devices.items()
    }
    draws = {
        name: values[:, rng.integers(values.shape[1], size=(RESAMPLES, values.shape[1]))].mean(-1)
        for name, values in scores.items()
    }
    result = {name: _share(values.mean(-1), draws[name]) for name, values in scores.items()}
    mean = np.mean([values.mean(-1) for values in scores.values()], axis=0)
    return result | {"mean": _share(mean, np.mean(list(draws.values()), axis=0))}


def _share(means: np.ndarray, draws: np.ndarray) -> dict[str, Any]:
    untuned, upper, mixed = means
    lower = draws[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (draws[2] - lower) / (draws[1] - lower)
    # where tuning gained nothing in a draw there is no gap to close
    ends = np.percentile(shares[draws[1] > lower], [2.5, 97.5]) if (draws[1] > lower).any() else [np.nan] * 2
    return {
        "untuned": float(untuned),
        "tuned": float(upper),
        "mixed": float(mixed),
        "closed": float((mixed - untuned) / (upper - untuned)),
        "interval": [float(end) for end in ends],
    }


def summary(devices: Mapping[str, dict]) -> dict[str, Any]:
    """By family of arms: what was chosen on valid rows, and the gap it closes on test rows."""
    found = {}
    for family, members in families().items():
        picked = chosen(devices, members)
        found[family] = {"picked": picked} | {metric: gap(devices, picked, metric) for metric in METRICS}
    return found


def page(found: dict[str, Any]) -> str:
    devices, result = found["devices"], found["summary"]
    one = next(iter(devices.values()))
    counts = [len(one[split]["untuned"]["em"]) for split in ("test", "valid")]
    lines = [
        "# Mixture: the gap between the untuned and the tuned LLM, closed without touching its weights",
        "",
        f"Commit {found['commit']}; {found['hardware']}; demo consort of seed 0, "
        f"measured: {', '.join(devices)}. {counts[0]} test rows a device; weights chosen on {counts[1]} "
        "valid rows. 95 % intervals by bootstrap over rows; one co-tuning run, so none over seeds.",
        "",
        "| mixture | Rouge-L | gap closed, % | EM | gap closed, % | chosen |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(result.values()))
    for name, key, share in (("untuned LLM", "untuned", 0), ("LLM tuned on the device's rows", "tuned", 100)):
        rouge, em = (100 * first[metric]["mean"][key] for metric in METRICS)
        lines.append(f"| {name} | {rouge:.1f} | {share} | {em:.1f} | {share} | |")
    for family, each in result.items():
        cells = [f"{100 * each[m]['mean']['mixed']:.1f} | {_percent(each[m]['mean'])}" for m in METRICS]
        lines.append(f"| {family} | {' | '.join(cells)} | {', '.join(each['picked'].values())} |")
    lines += ["", "By device, one weight chosen on valid rows: untuned → mixed, of tuned.", ""]
    lines += ["| device | Rouge-L | gap closed, % | EM | gap closed, % |", "|---|---|---|---|---|"]
    for name in devices:
        by_metric = [result["tuned, one weight a device"][metric][name] for metric in METRICS]
        cells = [
            f"{100 * each['untuned']:.1f} → {100 * each['mixed']:.1f} of {100 * each['tuned']:.1f} | "
            f"{_percent(each)}"
            for each in by_metric
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    positions = sum(each["cut"]["positions"] for each in devices.values())
    lines += ["", f"Cut to {CUT} tokens a distribution, against all, over {positions} positions:"]
    for weight in ("1.0", "2.0"):
        flips = sum(each["cut"][f"flips at {weight}"] * each["cut"]["positions"] for each in devices.values())
        variation = np.mean([each["cut"][f"mean variation at {weight}"] for each in devices.values()])
        lines.append(
            f"at weight {weight}, {flips:.0f} likeliest tokens differ, mean variation {variation:.1e}."
        )
    changed = 100 * np.mean([each["test"]["tuned 1.0"]["changed"] for each in devices.values()])
    lines += ["", f"At weight 1, {changed:.1f} % of the tokens are others than the LLM's own choice."]
    return "\n".join(lines) + "\n"


def _percent(one: dict[str, Any]) -> str:
    low, high = (100 * end for end in one["interval"])
    return f"{100 * one['closed']:.0f} ({low:.0f} to {high:.0f})"


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
    devices = {}
    for device in config.devices[: args.devices]:
        file = folder / f"{device.name}.json"
        if not file.exists():
            file.write_text(json.dumps(measured(config, device, args.run_dir)))
        devices[device.name] = json.loads(file.read_text())
    found = {"commit": commit(), "hardware": hardware(), "summary": summary(devices), "devices": devices}
    text = page(found)
    for scores in (scores for each in devices.values() for split in ("valid", "test")
                   for scores in each[split].values()):  # fmt: skip
        scores |= {metric: round(float(np.mean(scores[metric])), 5) for metric in METRICS}
    (RESULTS / "mixture.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "mixture.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
