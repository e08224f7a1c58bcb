"""The fused sparse distillation loss against the dense one: time, memory, gradient error.

Dense is what a plain trainer writes: one [tokens, vocabulary] matrix of logits, F.cross_entropy and
F.kl_div against a dense teacher (an input, so its memory is not counted). Both methods run in turn in one
process of one thread; a time is CPU seconds, the ratio the median of the pairs' ratios, because other work
on the machine slows both. Memory is the peak resident size of a fresh process during forward and backward,
less its size before (inputs are in memory then), less the gradients of hidden and head, which both methods
return. Does not train a model.

    python experiments/loss.py [--pairs 5] [--skip-large]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.multiprocessing
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from provenance import commit, hardware, peak_bytes
from torch import Tensor

from consort.training.losses import SparseTargets, fused_loss, top_k_targets

RESULTS = Path(__file__).parent / "results"
SEED = 0


@dataclass(frozen=True)
class Case:
    """One problem size. A frozen head is LoRA; a learning head is full training or tied embeddings."""

    rows: int
    vocabulary: int
    width: int
    k: int
    temperature: float = 1.0
    head_learns: bool = True
    autocast: bool = False


LARGE = [Case(512, 152_064, 896, 128, warm, learns) for warm in (1.0, 2.0) for learns in (True, False)]
LARGE.append(Case(512, 152_064, 896, 128, 1.0, True, autocast=True))
EVERYDAY = [  # the largest first: it warms the allocator, whose page faults else count against dense
    Case(rows, vocabulary, width, 24, temperature)
    for rows, vocabulary, width in ((300, 4096, 256), (200, 4096, 192), (300, 2048, 128), (200, 1024, 128),
                                    (100, 1024, 128), (200, 512, 128), (100, 512, 128))
    for temperature in (1.0, 2.0)
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
        torch.randn(case.vocabulary, case.width, generator=rng)
        .mul_(case.width**-0.5)
        .requires_grad_(case.head_learns),
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
    """CPU seconds of one forward and backward pass."""
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
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure_memory, case, method, inputs_of(case)).result()


def _measure_memory(case: Case, method: str, inputs: Inputs) -> float:
    torch.set_num_threads(1)
    small = Case(8, 256, 16, 4, case.temperature, autocast=case.autocast)
    step(method, inputs_of(small), small)  # loads the kernels
    for tensor in (inputs.hidden_ND, inputs.head_VD, inputs.teacher_NV):
        assert torch.isfinite(tensor.detach().sum())  # touches every page
    peak = peak_bytes(lambda: step(method, inputs, case))
    gradients = [tensor.grad for tensor in (inputs.hidden_ND, inputs.head_VD) if tensor.grad is not None]
    returned = sum(gradient.nbytes for gradient in gradients)
    return (peak - returned) / 1e6


def gradient_error() -> float:
    """Largest relative error of the fused gradients in float64, with a teacher of the whole vocabulary."""
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


def as_markdown(result: dict) -> str:
    about_bfloat16 = (
        "With bf16 products it holds, for both, a bf16 copy of the head (272 MB)."
        if any(row["autocast"] for row in result["cases"])
        else "Products of bf16 were not measured: this processor has none."
    )
    lines = [
        "# Fused distillation loss against the dense one",
        "",
        f"Forward and backward. Commit {result['commit']}; {result['hardware']}; seed {result['seed']}. "
        f"float64 gradients differ by at most {result['float64_gradient_error']:.1e} (relative).",
        "Time: CPU, median. Speed-up: dense / fused, median over pairs (lowest, highest). "
        "MB: peak beyond the inputs and the returned gradients. " + about_bfloat16,
        "",
        "| tokens | vocabulary | width | k | T | head | product "
        "| dense | fused | speed-up | dense MB | fused MB |",
        "|---" * 12 + "|",
    ]
    for row in result["cases"]:
        unit, scale = ("s", 1) if row["dense_s"] > 0.5 else ("ms", 1000)
        memory = [f"{row[name]:.0f}" if name in row else "" for name in ("dense_mb", "fused_mb")]
        cells = [
            *(str(row[name]) for name in ("rows", "vocabulary", "width", "k", "temperature")),
            "learns" if row["head_learns"] else "frozen",
            "bf16" if row["autocast"] else "float32",
            *(f"{row[name] * scale:.2f} {unit}" for name in ("dense_s", "fused_s")),
            f"{row['speed_up']:.2f} ({row['speed_up_min']:.2f}, {row['speed_up_max']:.2f})",
            *memory,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def multiplies_bfloat16() -> bool:
    """Whether this processor has products of bfloat16; imitated ones are a hundred times as slow."""
    return "bf16" in Path("/proc/cpuinfo").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pairs", type=int, default=5, help="runs a large case (a small one: 40 times as many)"
    )
    parser.add_argument("--skip-large", action="store_true", help="only the everyday sizes; writes no result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [{**asdict(case), **time_pairs(case, 40 * options.pairs)} for case in EVERYDAY]
    large = [case for case in LARGE if multiplies_bfloat16() or not case.autocast]
    for case in [] if options.skip_large else large:
        print(f"measuring {case}", file=sys.stderr)
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
