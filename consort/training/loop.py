"""The one training loop: AdamW, warm-up and cosine, clipping, a log, and a checkpoint to resume from bit for
bit.

What is learned is the caller's: `loss_of(step)` returns a differentiable loss and what to log of it.
Everything random must depend on `step` alone, so that a resumed run repeats the interrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from consort.files import whole_file

LogRow: TypeAlias = dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a peak learning rate and are clipped together."""

    parameters: tuple[nn.Parameter, ...]
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up, cosine decay; the AdamW and clipping constants that small models were measured with
    (docs/LOG.md)."""

    steps: int
    done: int = 0  # steps of earlier calls that belong to the same decay
    total: int = 0  # steps of all such calls together; 0: this call alone
    warmup_share: float = 0.05
    final_share: float = 0.1  # of the peak learning rate, at the last step
    clip_norm: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    log_every: int = 10  # steps

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at this step. Every call warms up, as its optimizer starts anew."""
        warmup = max(1, round(self.warmup_share * self.steps))
        progress = (self.done + step) / max(self.total, self.done + self.steps)
        cosine = self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
        return min(1.0, (step + 1) / warmup) * cosine


def run_steps(
    loss_of: Callable[[int], tuple[Tensor, LogRow]],
    groups: Sequence[Group],
    *,
    schedule: Schedule,
    on_log: Callable[[LogRow], None] = lambda row: None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
) -> list[LogRow]:
    """Minimise for `schedule.steps` steps; returns the logged rows. A checkpoint found at `checkpoint` is
    continued."""
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups],
        betas=schedule.betas,
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    rows: list[LogRow] = []
    first = 0
    if checkpoint is not None and checkpoint.exists():
        first, rows = _restore(checkpoint, groups, optimizer)
    for step in range(first, schedule.steps):
        for group, settings in zip(groups, optimizer.param_groups, strict=True):
            settings["lr"] = group.learning_rate * schedule.factor(step)
        loss, row = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in groups:
            nn.utils.clip_grad_norm_(group.parameters, schedule.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % schedule.log_every == 0 or step == schedule.steps - 1:
            rows.append({"step": step, **row})
            on_log(rows[-1])
        if checkpoint is not None and (step + 1) % checkpoint_every == 0:
            _save(checkpoint, groups, optimizer, step + 1, rows)
    return rows


def _save(
    path: Path, groups: Sequence[Group], optimizer: torch.optim.Optimizer, step: int, rows: list[LogRow]
) -> None:
    state = {
        "parameters": [[parameter.detach() for parameter in group.parameters] for group in groups],
        "optimizer": optimizer.state_dict(),
        "step": step,
        "rows": rows,
    }
    with whole_file(path) as file:
        torch.save(state, file)


def _restore(
    path: Path, groups: Sequence[Group], optimizer: torch.optim.Optimizer
) -> tuple[int, list[LogRow]]:
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for group, saved in zip(groups, state["parameters"], strict=True):
            for parameter, value in zip(group.parameters, saved, strict=True):
                parameter.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), list(state["rows"])
