"""Language models from scratch: samples packed into rows of equal length, cross-entropy on every token.

For models small enough to be born on a laptop: the bundled zoo and the experiments. Not a recipe for large
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from consort.models.local import LocalModel
from consort.training.data import Sample, encode
from consort.training.loop import Group, LogRow, Schedule, run_steps


@dataclass(frozen=True, slots=True)
class Packed:
    """Samples end to end, cut into rows: `ids_NT` with one token more than is predicted, and the weight of
    each prediction."""

    ids_NT: Tensor
    weight_NT: Tensor


def pack(
    samples: Sequence[Sample], model: LocalModel, *, row_tokens: int = 256, prompt_weight: float = 0.3
) -> Packed:
    """Rows of `row_tokens` + 1 ids; a prompt's tokens weigh less than an answer's. A last, unfilled row is
    dropped."""
    ids: list[int] = [model.eos_id]
    weights: list[float] = [1.0]
    for sample in samples:
        encoded = encode(sample, model, max_tokens=model.context_tokens)
        ids += [*encoded.prompt_ids, *encoded.answer_ids]
        weights += [prompt_weight] * len(encoded.prompt_ids) + [1.0] * len(encoded.answer_ids)
    rows = (len(ids) - 1) // row_tokens
    assert rows > 0, "too little text for one row"
    starts = torch.arange(rows)[:, None] * row_tokens
    window = starts + torch.arange(row_tokens + 1)[None, :]
    return Packed(torch.tensor(ids)[window], torch.tensor(weights)[window[:, 1:]])


def pretrain(
    model: LocalModel,
    packed: Packed,
    *,
    steps: int,
    batch_rows: int = 16,
    learning_rate: float = 2.5e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    on_log: Callable[[LogRow], None] = lambda row: None,
) -> list[LogRow]:
    """Train every weight for `steps` batches, each epoch in a new order; deterministic, resumable. Returns
    the log."""
    module = model.module.requires_grad_(True).train()

    def loss_of(step: int) -> tuple[Tensor, LogRow]:
        rows = _batch_rows(len(packed.ids_NT), batch_rows, step, seed)
        ids = packed.ids_NT[rows].to(model.device)
        weight = packed.weight_NT[rows].to(model.device)
        weights_VD, bias_V = model.head()
        with model.autocast():
            logits = nn.functional.linear(model.hidden(ids[:, :-1]), weights_VD, bias_V)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        loss = (losses * weight.flatten()).sum() / weight.sum()
        return loss, {"loss": float(loss.detach())}

    groups = [Group(tuple(module.parameters()), learning_rate)]
    log = run_steps(
        loss_of,
        groups,
        schedule=Schedule(steps),
        on_log=on_log,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
    )
    module.eval().requires_grad_(False)
    return log


def _batch_rows(total: int, batch: int, step: int, seed: int) -> Tensor:
    """Row numbers of a batch: a fresh permutation an epoch, drawn from (seed, epoch) alone."""
    per_epoch = max(1, total // batch)
    epoch, index = divmod(step, per_epoch)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return order[index * batch : (index + 1) * batch]
