"""Fused sparse distillation loss against the dense one: time, memory and gradient error, forward and backward.

Dense is what a plain trainer writes: one [tokens, vocabulary] matrix of logits, F.cross_entropy and F.kl_div against a
dense teacher (an input, so its memory is not counted). Both methods run in turn in one process, and the ratio is the
median of the pairs' ratios, because other work on the machine slows both. Memory is the peak resident size of a fresh
process during forward and backward, less its size before (inputs are in memory then), less the gradients of hidden and
head, which both methods return. Does not train a model.

    python experiments/loss.py [--pairs 5] [--skip-large]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.multiprocessing
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from consort.training.losses import SparseTargets, fused_loss, top_k_targets

RESULTS = Path(__file__).parent / "results"
SEED = 0


@dataclass(frozen=True)
class Case:
    """One problem size. A frozen head is LoRA training; a learning head is full training or tied embeddings."""

    rows: int
    vocabulary: int
    width: int
    k: int
    temperature: float = 1.0
    head_learns: bool = True
    autocast: bool = False


LARGE = [
    Case(512, 152_064, 896, 128, temperature, learns)
    for temperature in (1.0, 2.0)
    for learns in (True, False)
]
LARGE.append(Case(512, 152_064, 896, 128, 1.0, True, autocast=True))
EVERYDAY = [
    Case(rows, vocabulary, width, 24, temperature)
    for rows, vocabulary, width, temperature in (
        (100, 512, 128, 1.0), (100, 1024, 128, 1.0), (200, 1024, 128, 1.0), (200, 4096, 192, 1.0),
        (300, 2048, 128, 1.0), (300, 4096, 256, 1.0), (200, 1024, 128, 2.0), (300, 4096, 256, 2.0),
    )
]  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    hidden_ND: Tensor
    head_VD: Tensor
    labels_N: Tensor
    teacher_NV: Tensor
    targets: SparseTargets


def inputs_of(case: Case) -> Inputs:
    rng = torch.Generator().manual_seed(SEED)
    teacher_NV = 3 * torch.randn(case.rows, case.vocabulary, generator=rng)
    targets = top_k_targets(teacher_NV, case.k, temperature=case.temperature)
    return Inputs(
        torch.randn(case.rows, case.width, generator=rng).requires_grad_(),
        (case.width**-0.5 * torch.randn(case.vocabulary, case.width, generator=rng)).requires_grad_(
            case.head_learns
        ),
        torch.randint(case.vocabulary, (case.rows,), generator=rng),
        teacher_NV.div_(case.temperature).softmax(1),
        targets,
    )


def dense(inputs: Inputs, case: Case) -> Tensor:
    logits_NV = inputs.hidden_ND @ inputs.head_VD.T
    log_q_NV = F.log_softmax(logits_NV / case.temperature, 1)
    divergence = F.kl_div(log_q_NV, inputs.teacher_NV, reduction="batchmean")
    return F.cross_entropy(logits_NV, inputs.labels_N) + case.temperature**2 * divergence


def fused(inputs: Inputs, case: Case) -> Tensor:
    return fused_loss(
        inputs.hidden_ND,
        inputs.head_VD,
        inputs.labels_N,
        targets=inputs.targets,
        temperature=case.temperature,
    ).total


METHODS = {"dense": dense, "fused": fused}


def step(method: str, inputs: Inputs, case: Case) -> float:
    """Seconds of one forward and backward pass."""
    inputs.hidden_ND.grad = inputs.head_VD.grad = None
    start = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.autocast):
        loss = METHODS[method](inputs, case)
    loss.backward()
    return time.process_time() - start


def time_pairs(case: Case, pairs: int) -> dict[str, float]:
    inputs = inputs_of(case)
    for method in METHODS:
        step(method, inputs, case)
    runs = [{method: step(method, inputs, case) for method in METHODS} for _ in range(pairs)]
    ratios = [run["dense"] / run["fused"] for run in runs]
    return {
        "dense_s": statistics.median(run["dense"] for run in runs),
        "fused_s": statistics.median(run["fused"] for run in runs),
        "speed_up": statistics.median(ratios),
        "speed_up_min": min(ratios),
        "speed_up_max": max(ratios),
        "pairs": pairs,
    }


def extra_megabytes(case: Case, method: str) -> float:
    """Peak memory of one pass beyond the inputs and the gradients it returns, in a process of its own, in MB.

    The inputs come through shared memory: what making them had freed would hide as much of the peak.
    """
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_memory, (case, method, inputs_of(case)))


def _measure_memory(case: Case, method: str, inputs: Inputs) -> float:
    torch.set_num_threads(1)
    step(
        method, inputs_of(Case(8, 256, 16, 4, case.temperature, autocast=case.autocast)), case
    )  # loads the kernels
    for tensor in (inputs.hidden_ND, inputs.head_VD, inputs.teacher_NV):
        assert torch.isfinite(tensor.detach().sum())  # touches every page
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts at the present size
    before = _resident_bytes("VmRSS")
    step(method, inputs, case)
    returned = [
        tensor.grad.nbytes for tensor in (inputs.hidden_ND, inputs.head_VD) if tensor.grad is not None
    ]
    return (_resident_bytes("VmHWM") - before - sum(returned)) / 1e6


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def gradient_error() -> float:
    """Largest relative error of the fused gradients in float64, where the teacher keeps the whole vocabulary."""
    case = Case(24, 512, 32, 512, temperature=2.0)
    rounded = inputs_of(case)
    logits_NV = rounded.teacher_NV.double().log()
    inputs = Inputs(
        *(tensor.detach().double().requires_grad_() for tensor in (rounded.hidden_ND, rounded.head_VD)),
        rounded.labels_N,
        logits_NV.softmax(1),
        top_k_targets(logits_NV, 512),
    )
    parameters = [inputs.hidden_ND, inputs.head_VD]
    wanted, found = (torch.autograd.grad(METHODS[method](inputs, case), parameters) for method in METHODS)
    return max(float((f - w).norm() / w.norm()) for f, w in zip(found, wanted, strict=True))


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return f"{name}, {os.cpu_count()} cores, 1 thread used, torch {torch.__version__}"


def commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return asked.stdout.strip() or "none"


def as_markdown(result: dict) -> str:
    lines = [
        "# Fused distillation loss against the dense one",
        "",
        f"Forward and backward. Commit {result['commit']}; {result['hardware']}; seed {result['seed']}. "
        f"float64 gradients differ by at most {result['float64_gradient_error']:.1e} (relative).",
        "MB: peak beyond the inputs and the returned gradients. Speed-up: median of dense / fused over pairs (lowest, highest).",
        "",
        "| tokens | vocabulary | width | k | T | head | product | dense | fused | speed-up | dense MB | fused MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["cases"]:
        unit, scale = ("s", 1) if row["dense_s"] > 0.5 else ("ms", 1000)
        memory = [f"{row[name]:.0f}" if name in row else "" for name in ("dense_mb", "fused_mb")]
        lines.append(
            f"| {row['rows']} | {row['vocabulary']} | {row['width']} | {row['k']} | {row['temperature']:g} "
            f"| {'learns' if row['head_learns'] else 'frozen'} | {'bf16' if row['autocast'] else 'float32'} "
            f"| {row['dense_s'] * scale:.2f} {unit} | {row['fused_s'] * scale:.2f} {unit} "
            f"| {row['speed_up']:.2f} ({row['speed_up_min']:.2f}, {row['speed_up_max']:.2f}) | {' | '.join(memory)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pairs", type=int, default=5, help="pairs of runs a large case (40 times as many for a small one)"
    )
    parser.add_argument("--skip-large", action="store_true", help="only the everyday sizes; writes no result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [{**asdict(case), **time_pairs(case, 40 * options.pairs)} for case in EVERYDAY]
    for case in [] if options.skip_large else LARGE:
        memory = {f"{method}_mb": extra_megabytes(case, method) for method in METHODS}
        cases.append({**asdict(case), **memory, **time_pairs(case, options.pairs)})
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "seed": SEED,
        "float64_gradient_error": gradient_error(),
        "cases": cases,
    }
    print(as_markdown(result))
    if not options.skip_large:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "loss.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "loss.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
