"""What a co-tuning step costs against a plain loop over the same two models with dense logits.

Ours is `co_train([slm, proxy])`: a step of SAML on a device, the SLM learning in full, the proxy by its
shared LoRA. Dense is the loop written below as one would without consort: each model's logits for every
position, cross-entropy on the answers, KL both ways between whole distributions at the aligned rows, carried
over by an index map of the vocabularies; the same rows, weights, optimizer and alignment. Models are fresh,
rows those of the clinic (CONSORT_DATA). Both methods run in turn in one process of one thread; a time is CPU
seconds, the ratio the median of the pairs' ratios, because other work on the machine slows both. Memory is
the peak resident size of a fresh process during training, less its size before: weights are not in it,
gradients and the optimizer's state are. Says nothing of what the models learn.

    python experiments/cost.py [--pairs 7] [--only NAME]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from provenance import commit, hardware, peak_bytes
from tiny_models import TEMPLATE, Architecture, Family, new_model, train_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from consort.align import align_rows, vocab_map
from consort.config import RuntimeConfig, TuneConfig
from consort.training.adapters import SHARED, add_lora, lora_parameters
from consort.training.data import Encoded, Sample, read_samples
from consort.training.lessons import Learner
from consort.training.loop import Schedule
from consort.training.mutual import co_train, pool_of

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CONSORT_DATA", Path(__file__).parents[2] / "shared" / "data"))
SEED, STEPS, TUNE = 0, 3, TuneConfig()  # STEPS of a block, all on one batch
BARS = {"speed_up": 1.5, "memory_ratio": 0.6}


@dataclass(frozen=True)
class Side:
    """One model: its class, and a tokenizer, published or trained here on the rows to this vocabulary."""

    architecture: Architecture
    tokenizer: str
    vocabulary: int


@dataclass(frozen=True)
class Case:
    """Two models of one width and depth; `prompt_weight` is of the proxy's cross-entropy on prompts."""

    name: str
    slm: Side
    proxy: Side
    width: int
    layers: int
    batch_rows: int
    prompt_weight: float = 0.0


REAL = Side("gpt_neox", "gpt-neox", 50_277), Side("llama", "llama2", 32_000)
SMALL = Side("gpt_neox", "byte_bpe", 2048), Side("llama", "sentencepiece_bpe", 4096)
CASES = [
    Case("published tokenizers", *REAL, 256, 4, 12),
    Case("published tokenizers, prompts too", *REAL, 256, 4, 12, TUNE.prompt_weight),
    Case("small tokenizers", *SMALL, 192, 4, 16),
    Case("small tokenizers, prompts too", *SMALL, 192, 4, 16, TUNE.prompt_weight),
]


def learners_of(case: Case) -> list[Learner]:
    """SLM and proxy, fresh, with what learns of them."""
    runtime = RuntimeConfig(device="cpu")
    slm, proxy = (
        new_model(
            name, _tokenizer(side), side.architecture,
            width=case.width, layers=case.layers, seed=SEED, runtime=runtime,
        )
        for name, side in (("slm", case.slm), ("proxy", case.proxy))
    )  # fmt: skip
    add_lora(proxy, SHARED, rank=8, alpha=16.0, seed=SEED)
    for teacher, student in ((slm, proxy), (proxy, slm)):
        vocab_map(teacher.vocabulary, student.vocabulary)  # made once a run, and then cached
    return [
        Learner(slm, dict(slm.module.named_parameters()), 1e-3, kd_weight=TUNE.slm_kd_weight),
        Learner(
            proxy,
            lora_parameters(proxy, SHARED),
            1e-3,
            kd_weight=TUNE.proxy_kd_weight,
            prompt_weight=case.prompt_weight,
        ),
    ]


def _tokenizer(side: Side) -> PreTrainedTokenizerFast:
    file = DATA / "tokenizers" / f"{side.tokenizer}.json"
    if file.exists():
        end = "</s>" if side.tokenizer == "llama2" else "<|endoftext|>"
        return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=end, chat_template=TEMPLATE)
    family: Family = side.tokenizer  # type: ignore[assignment]
    texts = [f"{row.prompt} {row.answer}" for row in _rows()[:1000]]
    return train_tokenizer(family, side.vocabulary, texts)


def _rows() -> list[Sample]:
    return [row for row in read_samples(DATA / "tasks" / "clinic") if len(row.answer or "") < 600]


def batch_of(case: Case, number: int) -> list[Sample]:
    """The rows of one block."""
    rows = _rows()
    chosen = np.random.default_rng([SEED, number]).choice(len(rows), case.batch_rows, replace=False)
    return [rows[index] for index in chosen]


# ---- ours, and the plain loop


def ours(learners: Sequence[Learner], samples: Sequence[Sample], steps: int) -> dict[str, float]:
    """Steps of `co_train`, every one on all these samples. The first step's losses."""
    options = TuneConfig(batch_rows=len(samples))
    return co_train(learners, [pool_of(samples)], options, steps=steps, seed=SEED)[0]


def dense(learners: Sequence[Learner], samples: Sequence[Sample], steps: int) -> dict[str, float]:
    """The same steps with whole logits."""
    schedule = Schedule(steps)
    parameters = [list(learner.parameters.values()) for learner in learners]
    for parameter in (each for part in parameters for each in part):
        parameter.requires_grad_(True)
    groups = [
        {"params": part, "lr": learner.learning_rate}
        for part, learner in zip(parameters, learners, strict=True)
    ]
    optimizer = torch.optim.AdamW(
        groups, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True
    )
    first: dict[str, float] = {}
    for step in range(steps):
        for learner, settings in zip(learners, optimizer.param_groups, strict=True):
            settings["lr"] = learner.learning_rate * schedule.factor(step)
        loss, losses = dense_loss(learners, samples)
        loss.backward()
        for part in parameters:
            nn.utils.clip_grad_norm_(part, schedule.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        first = first or losses
    return first


def dense_loss(learners: Sequence[Learner], samples: Sequence[Sample]) -> tuple[Tensor, dict[str, float]]:
    """Both models' cross-entropy and KL to the other."""
    encoded = [[learner.encode(sample) for sample in samples] for learner in learners]
    padded = [_padded(learner, rows) for learner, rows in zip(learners, encoded, strict=True)]
    logits = [
        learner.model.module(ids_BT).logits for learner, (ids_BT, _) in zip(learners, padded, strict=True)
    ]
    widths = [ids_BT.shape[1] for ids_BT, _ in padded]
    shared = [_shared_rows(pair, widths, number) for number, pair in enumerate(zip(*encoded, strict=True))]
    total, losses = torch.zeros(()), {}
    for own, learner in enumerate(learners):
        other = 1 - own
        labels_BT, weight_BT = padded[own][0][:, 1:], padded[own][1][:, 1:]
        nats_N = F.cross_entropy(logits[own][:, :-1].flatten(0, 1), labels_BT.flatten(), reduction="none")
        cross_entropy = (nats_N * weight_BT.flatten()).sum() / weight_BT.sum()
        # the teacher's whole distribution, each token's mass at the student's token
        rows_P, teacher_rows_P = (torch.cat([pair[side] for pair in shared]) for side in (own, other))
        teacher_PV = logits[other].detach().flatten(0, 1)[teacher_rows_P].softmax(1)
        place_V = _places(learners[other], learner, teacher_PV.shape[1])
        target_PV = torch.zeros(len(rows_P), logits[own].shape[2] + 1).index_add_(1, place_V, teacher_PV)
        student_PV = logits[own].flatten(0, 1)[rows_P].log_softmax(1)
        divergence = F.kl_div(student_PV, target_PV[:, :-1], reduction="batchmean")
        total = total + cross_entropy + learner.kd_weight * divergence
        losses |= {
            f"{learner.model.name}/ce": cross_entropy.item(), f"{learner.model.name}/kl": divergence.item()
        }  # fmt: skip
    return total, losses


def _padded(learner: Learner, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Ids, and the weight of each as a label: 1 in answers."""
    width = max(row.num_tokens for row in rows)
    ids_BT = torch.full((len(rows), width), learner.model.eos_id)
    weight_BT = torch.zeros(len(rows), width)
    for number, row in enumerate(rows):
        ids_BT[number, : row.num_tokens] = torch.tensor([*row.prompt_ids, *row.answer_ids])
        weight_BT[number, : len(row.prompt_ids)] = learner.prompt_weight
        weight_BT[number, len(row.prompt_ids) : row.num_tokens] = 1.0
    return ids_BT, weight_BT


def _shared_rows(pair: Sequence[Encoded], widths: Sequence[int], number: int) -> list[Tensor]:
    """Where, in each model's flattened batch, both have read the same bytes of this answer."""
    aligned = align_rows(pair[0].spans, pair[1].spans)
    return [
        torch.from_numpy(rows.astype(np.int64)) + number * width + len(row.prompt_ids) - 1
        for rows, row, width in zip((aligned.source, aligned.target), pair, widths, strict=True)
    ]


def _places(teacher: Learner, student: Learner, columns: int) -> Tensor:
    """The student's token of each of the teacher's; one place behind the last for those it has not."""
    mapping = vocab_map(teacher.model.vocabulary, student.model.vocabulary)
    places = mapping.target_ids.take(np.arange(columns), mode="clip")  # the last entry: ids beyond the map
    nowhere = len(student.model.head()[0])
    return torch.from_numpy(np.where(places < 0, nowhere, places).astype(np.int64))


METHODS = {"dense": dense, "ours": ours}


# ---- measuring


def time_pairs(case: Case, pairs: int) -> dict:
    """Medians over pairs of blocks, each of both methods on one batch."""
    losses = {name: method(learners_of(case), batch_of(case, 0), 1) for name, method in METHODS.items()}
    learners, runs, tokens = learners_of(case), [], []
    for number in range(1, pairs + 1):
        samples = batch_of(case, number)
        tokens.append(sum(learner.encode(sample).num_tokens for learner in learners for sample in samples))
        run = {}
        for name in sorted(METHODS, reverse=bool(number % 2)):
            started = time.process_time()
            METHODS[name](learners, samples, STEPS)
            run[name] = (time.process_time() - started) / STEPS
        runs.append(run)
    ratios = [run["dense"] / run["ours"] for run in runs]
    return {
        "tokens": statistics.mean(tokens),
        **{f"{name}_s": statistics.median(run[name] for run in runs) for name in METHODS},
        "speed_up": statistics.median(ratios),
        "speed_up_min": min(ratios),
        "speed_up_max": max(ratios),
        "first_losses": losses,
    }


def peak_megabytes(case: Case, method: str) -> float:
    """Peak memory of a few steps beyond the loaded models and rows, in a process of its own."""
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure_memory, case, method).result()


def _measure_memory(case: Case, method: str) -> float:
    torch.set_num_threads(1)
    learners, samples = learners_of(case), batch_of(case, 0)
    METHODS[method](learners, samples[:1], 1)  # loads the kernels; encodes nothing of the others
    return peak_bytes(lambda: METHODS[method](learners, samples, STEPS)) / 1e6


def measure(case: Case, pairs: int) -> dict:
    """One line of the table."""
    print(f"measuring {case.name}", file=sys.stderr)
    memory = {f"{method}_mb": peak_megabytes(case, method) for method in METHODS}
    timed = time_pairs(case, pairs)
    return {**asdict(case), **memory, "memory_ratio": memory["ours_mb"] / memory["dense_mb"], **timed}


def as_markdown(result: dict) -> str:
    """The result as a page."""
    lines = [
        "# A co-tuning step against a plain loop with dense logits",
        "",
        f"`experiments/cost.py`; commit {result['commit']}; {result['hardware']}; seed {SEED}; load while "
        f"measuring {result['load']:.1f}. Tokens: of both models, a step, no padding. Step: CPU seconds, "
        "median. Speed-up: dense / ours, median over pairs (lowest, highest). MB: peak in training beyond "
        f"the weights. Wanted: at least {BARS['speed_up']}x, at most {BARS['memory_ratio']}x.",
        "",
        "| models | vocabularies | width, layers | rows | tokens | dense step | our step | speed-up "
        "| dense MB | our MB | memory |",
        "|---" * 11 + "|",
    ]
    for row in result["cases"]:
        cells = [
            row["name"],
            f"{row['slm']['vocabulary']:,} / {row['proxy']['vocabulary']:,}",
            f"{row['width']}, {row['layers']}",
            str(row["batch_rows"]),
            f"{row['tokens']:,.0f}",
            *(f"{row[f'{method}_s']:.3f} s" for method in METHODS),
            f"**{row['speed_up']:.2f}x** ({row['speed_up_min']:.2f}, {row['speed_up_max']:.2f})",
            *(f"{row[f'{method}_mb']:.0f}" for method in METHODS),
            f"**{row['memory_ratio']:.2f}x**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Losses of the first step (nats; ours counts the tail as one event, and reads more rows):",
        "",
    ]
    for row in result["cases"]:
        said = [
            f"{name} {', '.join(f'{key} {value:.3f}' for key, value in losses.items() if key != 'step')}"
            for name, losses in row["first_losses"].items()
        ]
        lines.append(f"- {row['name']}: {'; '.join(said)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help=f"blocks of {STEPS} steps of each method")
    parser.add_argument("--only", help="one case by name; writes no result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [case for case in CASES if options.only in (None, case.name)]
    cases = [measure(case, options.pairs) for case in chosen]
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "seed": SEED,
        "load": os.getloadavg()[0],
        "cases": cases,
    }
    print(as_markdown(result))
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "cost.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "cost.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
