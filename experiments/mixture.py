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
from mixture_rows import BASE, LLM, PROXY, SLM, Arm, Replay
from provenance import commit, hardware

from consort.bench.demo import demo_config
from consort.bench.metrics import exact_match, rouge_l
from consort.bench.run import run_co_tuning
from consort.bench.served import ADAPTERS, PROXIES
from consort.bench.suite import write_suite
from consort.cli.tune import run_data
from consort.config import Config, DeviceConfig, ModelConfig
from consort.inference.blending import steered
from consort.inference.following import Written, follower
from consort.inference.mixing_weights import (
    Moment,
    fit,
    fixed,
    load_weights,
    save_weights,
)
from consort.inference.mixture import Guide, mix
from consort.inference.white_box import vocabulary_of
from consort.models.decoding.lm import LocalLM
from consort.models.local import LocalModel, load_model
from consort.preflight import examine
from consort.training.adapters import merged, trainable_part
from consort.training.answers import answer
from consort.training.data import Sample, read_samples
from consort.training.lessons import Learner
from consort.training.mutual import co_train, pool_of
from consort.training.tuned import load_tuned
from consort.types import Consort, Request, Strategy, TopK

RESULTS = Path(__file__).parent / "results"
METRICS = ("rouge_l", "em")
LORA = ModelConfig(model="zoo:cloud", lora_rank=16, lora_alpha=32.0, max_tokens=256)
RATE, STEPS = 3e-3, 80  # of the tuned LLM: as many steps as the proxy's domain adapter has learned
WEIGHTS = (0.5, 1.0)
SHARES = (0.5, 0.6, 0.7, 0.8)
SLM_SHARES = (0.5, 0.7, 0.9, 1.0)
TOGETHER_SHARES, EDGE_SHARES = (
    (0.7, 0.8, 0.9, 1.0),
    (0.25, 0.35, 0.45, 0.55, 0.65),
)  # of both guides; and, of that, the SLM's
NEW_TOKENS = 32
TOGETHER = 8
CUT_ROWS = 16  # valid rows on which the error of the cut is measured
RESAMPLES = 10_000
CUT = 64  # tokens of a distribution, as it is served
BEST = "proxy and SLM: mean, one choice for all"  # as `consort/mix` is served


@dataclass(frozen=True)
class Rows:
    train: list[Sample]
    valid: list[Sample]
    test: list[Sample]


def arms(weights: Path | None = None) -> dict[str, Arm]:
    """Every way that is tried; with a file of learned weights, those too."""
    found = {f"tuned {a}": Arm("tuned", fixed(a)) for a in WEIGHTS}
    for kind in ("product", "mean"):
        found |= {f"{kind} {share}": Arm(kind, fixed(share)) for share in SHARES}
        found |= {f"SLM {kind} {share}": Arm(kind, fixed(share), 1.0) for share in SLM_SHARES}
        for share in TOGETHER_SHARES:
            both = {edge: f"both {kind} {share} x {edge}" for edge in EDGE_SHARES}
            found |= {name: Arm(kind, fixed(share), edge) for edge, name in both.items()}
    return found if weights is None else found | {"tuned learned": Arm("tuned", load_weights(weights))}


def families() -> dict[str, tuple[str, list[str]]]:
    """Arms of which one is chosen by valid rows: of each device, of all, or of the other devices."""
    means = [name for name in arms() if name.startswith("both mean")]
    return {
        "tuned, one weight a device": ("each", [f"tuned {a}" for a in WEIGHTS]),
        "tuned, weight 1": ("all", ["tuned 1.0"]),
        "tuned, learned weights": ("all", ["tuned learned"]),
        "product, one share a device": ("each", [f"product {share}" for share in SHARES]),
        "mean, one share a device": ("each", [f"mean {share}" for share in SHARES]),
        "mean, share 0.7": ("all", ["mean 0.7"]),
        "the proxy alone": ("all", ["proxy"]),
        "across tokenizers: mean": ("each", [f"SLM mean {share}" for share in SLM_SHARES[:-1]]),
        "across tokenizers: product": ("each", [f"SLM product {share}" for share in SLM_SHARES[:-1]]),
        "across tokenizers: all weight": ("all", ["SLM mean 1.0"]),
        "the SLM alone": ("all", ["SLM"]),
        "proxy and SLM: product": ("all", [name for name in arms() if name.startswith("both product")]),
        "proxy and SLM: mean, one choice a device": ("each", means),
        "proxy and SLM: mean, chosen on the other devices": ("others", means),
        BEST: ("all", means),
        "any of these, chosen on valid rows": ("each", [*arms(), "tuned learned"]),
    }


def prepared(run_dir: Path) -> Config:
    """The demo's run, made where it is missing."""
    config = demo_config(run_dir / "suite")
    config = replace(config, runtime=replace(config.runtime, workers=1))
    if not (run_dir / "result.json").exists():
        write_suite(run_dir / "suite")
        data = run_data(config, examine(config).rows)
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

    began = time.process_time()
    texts = asyncio.run(everybody())
    took = time.process_time() - began
    tokens = sum(note["tokens"] for note in notes)
    changed = sum(note["changed"] for note in notes)
    weight = sum(note.get("weight", 0.0) * note["tokens"] for note in notes)
    return texts, {"changed": changed / tokens, "weight": weight / tokens, "cpu_ms": 1000 * took / tokens}


def moments(
    llm: LocalLM, proxy: LocalLM, base: LocalLM, rows: Sequence[Sample]
) -> tuple[list[Moment], list[int]]:
    """What is known at every token of the rows' own answers, and the token."""
    found: list[Moment] = []
    tokens: list[int] = []
    vocabulary = vocabulary_of(llm)
    for row in rows:
        ids = [*vocabulary.spans(row.answer or "").ids.tolist(), vocabulary.eos_id]
        voices = [follower(lm, asked(row), vocabulary) for lm in (llm, proxy, base)]
        for position, token in enumerate(ids):
            so_far = Written(tuple(ids[:position]), b"")
            for voice in voices:
                voice.follow(so_far)
            model, plus, minus = (voice.heard(()) for voice in voices)
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


def cut_and_learned(bench: Bench, file: Path) -> dict[str, float]:
    """The error of the cut; and weights learned from valid rows, written to `file`."""
    size = bench.models[LLM].vocabulary.size
    whole = {"answers": 0, "sessions": 1, "context_tokens": 256, "alternatives": 10**6}
    lms = [LocalLM(bench.models[name], **whole) for name in (LLM, PROXY, BASE)]
    told, _ = moments(*lms, bench.rows.valid[:CUT_ROWS])
    for lm in lms:
        lm.close()
    valid = moments(*(bench.lms[name] for name in (LLM, PROXY, BASE)), bench.rows.valid)
    save_weights(fit(*valid, size=size), file)
    return error_of_cut(told, size)


def valid_rows(config: Config, device: DeviceConfig, run_dir: Path) -> dict[str, Any]:
    """Every arm on one device's valid rows, and the models alone on all; what is known is kept."""
    file = run_dir / "mixture" / f"{device.name}.json"
    if file.exists():
        return json.loads(file.read_text())
    found: dict[str, Any] = {"valid": {}, "test": {}}
    with opened(config, device, run_dir, upper=True) as bench:
        for split in found:
            found[split] |= {name: bench.alone(name, split) for name in bench.models}
        found["cut"] = cut_and_learned(bench, file.with_suffix(".weights.json"))
        found["valid"] |= bench.mixed(arms(file.with_suffix(".weights.json")), "valid")
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


def chosen(devices: Mapping[str, dict], by: str, names: Sequence[str]) -> dict[str, str]:
    """Each device's arm with the best valid Rouge-L, exact match where that ties: of its own rows, of all
    devices' or of the other devices'."""

    def valid(judges: Sequence[str], name: str) -> tuple[float, ...]:
        scores = [devices[judge]["valid"][name] for judge in judges]
        return tuple(float(np.mean([np.mean(each[metric]) for each in scores])) for metric in METRICS)

    def judges(device: str) -> list[str]:
        return [each for each in devices if by == "all" or (each == device) == (by == "each")]

    return {device: max(names, key=lambda name: valid(judges(device), name)) for device in devices}


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
    for family, (by, members) in families().items():
        picked = chosen(devices, by, members)
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
        "valid rows a device. 95 % intervals by bootstrap over rows; one co-tuning run, so none over seeds.",
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
        lines.append(
            f"| {family} | {' | '.join(cells)} | {', '.join(dict.fromkeys(each['picked'].values()))} |"
        )
    lines += ["", f"By device, {BEST}: untuned → mixed, of tuned.", ""]
    lines += ["| device | Rouge-L | gap closed, % | EM | gap closed, % |", "|---|---|---|---|---|"]
    for name in devices:
        by_metric = [result[BEST][metric][name] for metric in METRICS]
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
    best = next(iter(result[BEST]["picked"].values()))
    served = [each["served"] for each in devices.values()]
    replayed = [each["test"][best] for each in devices.values()]
    pairs = [zip(a["texts"], b["texts"], strict=True) for a, b in zip(served, replayed, strict=True)]
    same = np.mean([a == b for each in pairs for a, b in each])
    changed, took = (np.mean([each[key] for each in served]) for key in ("changed", "cpu_ms"))
    told = " and ".join(f"{100 * np.mean([np.mean(each[m]) for each in served]):.1f}" for m in METRICS)
    lines += [
        "",
        f"Arms are replayed over remembered distributions. {best} by `mix` itself: {told},",
        f"{100 * same:.1f} % of the answers the same; {100 * changed:.1f} % of the tokens are others than the "
        f"LLM's own choice; a token takes {took:.1f} ms of CPU.",
    ]
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
