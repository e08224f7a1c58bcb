"""Distillation loss fused with the language-model head: sparse teachers, gradient in the forward pass.

Cross-entropy plus a divergence over K teacher tokens and one tail bucket that holds the rest of the
vocabulary. As in Liger Kernel (arXiv 2410.10989) a chunk's logits become their own gradient in place, so
[tokens, vocabulary] is never stored. Does not align tokenizers, gives no second derivative, and knows no
soft-capping of logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from consort.config import Divergence
from consort.training.divergences import DIVERGENCES

_CHUNK_BYTES = 104 << 20  # of logits in a matrix product: fewer rows run slower, more would pass 128 MB
_SLICE_BYTES = 8 << 20  # of logits in the elementwise stage, which then stays in the cache
_COLUMNS = 16  # the logits buffer has a multiple of this, so cache lines; one at least is padding
_ABSENT = -1e30  # logit of no token; finite, so that a tail without any token makes no NaN


@dataclass(frozen=True, slots=True)
class SparseTargets:
    """A teacher's rows at the temperature of the loss: K tokens, and the probability `rest_N` of all others.

    `probs_NK.sum(1) + rest_N == 1`. The ids of a row are distinct where its probability is above 0; a slot
    of probability 0 is unused and its id is ignored. A row of weight 0 has no teacher: nothing in it is
    read.
    """

    ids_NK: Tensor
    probs_NK: Tensor
    rest_N: Tensor
    weight_N: Tensor


@dataclass(frozen=True, slots=True)
class LossParts:
    """`total` carries the gradient; `cross_entropy` and `divergence`, weighted means in nats, none."""

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor


def fused_loss(
    hidden_ND: Tensor,
    head_VD: Tensor,
    labels_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    label_weight_N: Tensor | None = None,
    targets: SparseTargets | None = None,
    divergence: Divergence = "forward_kl",
    temperature: float = 1.0,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
    chunk_rows: int | None = None,
) -> LossParts:
    """ce_weight * cross-entropy + kd_weight * T^2 * divergence of softmax(logits / T), T the temperature.

    Each part is a mean by its own row weights, and 0 where they sum to 0; a row of weight 0 in both is
    skipped, whatever it holds. Without `label_weight_N` every label counts 1. Differentiable by hidden,
    head and bias. Products run in autocast's type where it is on, the loss in float32 (float64 for float64
    inputs). `chunk_rows` None takes as many as 104 MiB of logits hold. Prefer the two weights to a factor
    on the result: a factor copies the head's gradient.
    """
    assert temperature > 0, temperature
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    if label_weight_N is None:
        label_weight_N = torch.ones_like(labels_N, dtype=dtype)
    if targets is None:
        none_N = torch.zeros_like(labels_N, dtype=dtype)
        targets = SparseTargets(labels_N[:, None][:, :0], none_N[:, None][:, :0], none_N, none_N)
    weight_N2 = torch.stack([label_weight_N.to(dtype), targets.weight_N.to(dtype)], 1)
    rows, idle_N = _rows(labels_N, targets, weight_N2, columns=len(head_VD))
    if bool(idle_N.any()):
        rows, hidden_ND = rows[~idle_N], hidden_ND[~idle_N]
    settings = _Settings(
        divergence=divergence,
        temperature=temperature,
        ce_weight=ce_weight,
        kd_weight=kd_weight,
        chunk_rows=chunk_rows,
        product_type=_product_type(hidden_ND, head_VD),
        with_gradient=torch.is_grad_enabled(),
    )
    return LossParts(*_FusedLoss.apply(hidden_ND, head_VD, bias_V, rows, settings))  # type: ignore[no-untyped-call]


@torch.no_grad()
def top_k_targets(
    logits_NV: Tensor, k: int, *, temperature: float = 1.0, weight_N: Tensor | None = None
) -> SparseTargets:
    """The `k` most likely tokens of each row at `temperature`, and the probability of all others, summed."""
    dtype, columns = torch.promote_types(logits_NV.dtype, torch.float32), logits_NV.shape[1]
    parts = []
    for logits_RV in torch.split(logits_NV, max(1, _SLICE_BYTES // (columns * dtype.itemsize))):
        probs_RV = torch.softmax(logits_RV.to(dtype) / temperature, 1)
        probs_RK, ids_RK = probs_RV.topk(min(k, columns))
        parts.append((ids_RK, probs_RK, probs_RV.scatter_(1, ids_RK, 0.0).sum(1)))
    ids_NK, probs_NK, rest_N = (torch.cat(column) for column in zip(*parts, strict=True))
    return SparseTargets(ids_NK, probs_NK, rest_N, torch.ones_like(rest_N) if weight_N is None else weight_N)


class _FusedLoss(torch.autograd.Function):
    """Chunk by chunk: logits, their gradient in place, the products that carry it to hidden and head."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, rows: _Rows, settings: _Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = [settings.with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        count, columns, dtype = len(hidden_ND), len(head_VD), rows.teacher_RE.dtype
        grad_hidden_ND = torch.empty_like(hidden_ND) if wanted[0] else None
        grad_head_VD = torch.zeros_like(head_VD, dtype=dtype) if wanted[1] else None
        grad_bias_V = torch.zeros_like(head_VD[:, 0], dtype=dtype) if wanted[2] else None
        product_head_VD = head_VD.to(settings.product_type)
        chunk_rows = settings.rows_at_once(count, columns, dtype)
        buffer_CW = head_VD.new_empty(min(chunk_rows, count), _padded(columns), dtype=dtype)
        parts_2 = head_VD.new_zeros(2, dtype=dtype)
        for start in range(0, count, chunk_rows):
            chunk = slice(start, start + chunk_rows)
            hidden_RD = hidden_ND[chunk].to(settings.product_type)
            logits_RW = buffer_CW[: len(hidden_RD)]
            _fill_logits(logits_RW, hidden_RD, product_head_VD, bias_V)
            _to_gradient(logits_RW, rows[chunk], settings, parts_2)
            gradient_RV = logits_RW[:, :columns]
            if grad_bias_V is not None:
                grad_bias_V += gradient_RV.sum(0)
            if any(wanted[:2]):
                gradient_RV = gradient_RV.to(settings.product_type)
            if grad_hidden_ND is not None:
                grad_hidden_ND[chunk] = gradient_RV @ product_head_VD
            if grad_head_VD is not None:
                _add_product(grad_head_VD, gradient_RV.T, hidden_RD)
        ctx.save_for_backward(grad_hidden_ND, _like(grad_head_VD, head_VD), _like(grad_bias_V, bias_V))
        cross_entropy, divergence = parts_2[0], parts_2[1]
        ctx.mark_non_differentiable(cross_entropy, divergence)
        scale = settings.kd_weight * settings.temperature**2
        return settings.ce_weight * cross_entropy + scale * divergence, cross_entropy, divergence

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: our gradient would silently count as a constant
            raise RuntimeError(
                "fused_loss has no second derivative; compute the dense loss for create_graph=True"
            )
        gradients = ctx.saved_tensors
        if bool(grad_total != 1):
            gradients = [None if gradient is None else gradient * grad_total for gradient in gradients]
        return (*gradients, None, None)


def _to_gradient(logits_RW: Tensor, rows: _Rows, settings: _Settings, parts_2: Tensor) -> None:
    """Turns logits into the total's gradient, in place; adds cross-entropy and divergence to `parts_2`."""
    slice_rows = max(1, _SLICE_BYTES // (logits_RW.shape[1] * logits_RW.element_size()))
    for start in range(0, len(logits_RW), slice_rows):
        cut = slice(start, start + slice_rows)
        parts_2 += _slice_to_gradient(logits_RW[cut], rows[cut], settings)


def _slice_to_gradient(logits_RW: Tensor, rows: _Rows, settings: _Settings) -> Tensor:
    tempered = settings.temperature != 1.0
    ce_scale_R1 = settings.ce_weight * rows.share_R2[:, :1]
    label_logit_R1 = logits_RW.gather(1, rows.labels_R1)
    if tempered:
        probs_RW = logits_RW.clone()
        lse_R1 = _softmax_in_place(probs_RW)
        logits_RW /= settings.temperature
    # 1) K + 1 events: the teacher's tokens, and all others as one, whose logit is their logsumexp
    slots_RK = logits_RW.gather(1, rows.ids_RK)
    logits_RW.scatter_(1, rows.ids_RK, _ABSENT)
    events_RE = torch.cat([slots_RK, _softmax_in_place(logits_RW)], 1)
    teacher_RE = rows.teacher_RE
    if (
        teacher_RE.shape[1] > rows.columns
    ):  # there may be no tail to carry rounding; the temperature moves _ABSENT
        teacher_RE = teacher_RE.masked_fill(events_RE < 1e-6 * _ABSENT, 0.0)
    log_q_RE = torch.log_softmax(events_RE, 1)
    divergence_R1, gradient_RE = DIVERGENCES[settings.divergence](teacher_RE, log_q_RE)
    # 2) the gradient by the events' logits; at temperature 1 cross-entropy has the same events
    gradient_RE *= settings.kd_weight * settings.temperature * rows.share_R2[:, 1:]
    if not tempered:
        lse_R1 = events_RE.amax(1, keepdim=True) - log_q_RE.amax(1, keepdim=True)
        gradient_RE += ce_scale_R1 * log_q_RE.exp()
    # 3) the gradient by the logits: the tail's is shared among its tokens by their softmax
    logits_RW *= gradient_RE[:, -1:]
    logits_RW.scatter_(1, rows.ids_RK, gradient_RE[:, :-1])
    if tempered:
        logits_RW.addcmul_(probs_RW, ce_scale_R1)
    logits_RW.scatter_add_(1, rows.labels_R1, -ce_scale_R1)
    parts_R2 = torch.cat([lse_R1 - label_logit_R1, divergence_R1], 1)
    return (rows.share_R2 * parts_R2).sum(0)


def _softmax_in_place(logits_RW: Tensor) -> Tensor:
    """Softmax of each row in place; returns logsumexp [R, 1], for the largest is 1 / sum(exp(z - max))."""
    largest_R1 = logits_RW.amax(1, keepdim=True)
    torch.softmax(logits_RW, 1, out=logits_RW)
    return largest_R1 - logits_RW.amax(1, keepdim=True).log()


def _fill_logits(logits_RW: Tensor, hidden_RD: Tensor, head_VD: Tensor, bias_V: Tensor | None) -> None:
    logits_RV = logits_RW[:, : len(head_VD)]
    if hidden_RD.dtype == logits_RW.dtype:
        torch.mm(hidden_RD, head_VD.T, out=logits_RV)
    else:
        logits_RV.copy_(hidden_RD @ head_VD.T)
    if bias_V is not None:
        logits_RV += bias_V
    logits_RW[:, len(head_VD) :] = _ABSENT


def _add_product(sum_VD: Tensor, gradient_VR: Tensor, hidden_RD: Tensor) -> None:
    """sum += gradient @ hidden, without a second [V, D] where the product has another type."""
    if hidden_RD.dtype == sum_VD.dtype:
        sum_VD.addmm_(gradient_VR, hidden_RD)
        return
    block = max(1, _SLICE_BYTES // (hidden_RD.shape[1] * hidden_RD.element_size()))
    for start in range(0, len(sum_VD), block):
        sum_VD[start : start + block] += gradient_VR[start : start + block] @ hidden_RD


@dataclass(frozen=True, slots=True)
class _Settings:
    divergence: Divergence
    temperature: float
    ce_weight: float
    kd_weight: float
    chunk_rows: int | None
    product_type: torch.dtype
    with_gradient: bool

    def rows_at_once(self, rows: int, columns: int, dtype: torch.dtype) -> int:
        """Rows a matrix product, in equal chunks: a small last one would read the whole head for little."""
        if self.chunk_rows is not None:
            return self.chunk_rows
        copy_bytes = 0 if self.product_type == dtype else self.product_type.itemsize
        most = max(1, _CHUNK_BYTES // (_padded(columns) * (dtype.itemsize + copy_bytes)))
        return math.ceil(rows / math.ceil(rows / most)) if rows else 1


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is wanted of each row. A label without weight and an unused slot point at the padding."""

    labels_R1: Tensor
    ids_RK: Tensor
    teacher_RE: Tensor  # E = K + 1 events: the slots, then the tail
    share_R2: Tensor  # the row's share of the sum of weights, for cross-entropy and for the divergence
    columns: int

    def __getitem__(self, part: slice | Tensor) -> _Rows:
        if isinstance(part, slice) and part.start == 0 and part.stop >= len(self.labels_R1):
            return self  # the everyday case; five views a step are 1 % of it
        kept = (self.labels_R1[part], self.ids_RK[part], self.teacher_RE[part], self.share_R2[part])
        return _Rows(*kept, self.columns)


def _rows(
    labels_N: Tensor, targets: SparseTargets, weight_N2: Tensor, *, columns: int
) -> tuple[_Rows, Tensor]:
    """The rows, cleared of whatever has no weight, and which of them are without any."""
    idle_N2, dtype = weight_N2 <= 0, weight_N2.dtype
    unlabelled_N1, untaught_N1 = idle_N2[:, :1], idle_N2[:, 1:]
    unused_NK = untaught_N1 | (targets.probs_NK <= 0)
    probs_NK = targets.probs_NK.to(dtype).masked_fill(unused_NK, 0.0)
    rest_N1 = targets.rest_N[:, None].to(dtype).masked_fill(untaught_N1, 1.0)
    rows = _Rows(
        labels_N[:, None].masked_fill(unlabelled_N1, columns),
        targets.ids_NK.long().masked_fill(unused_NK, columns),
        torch.cat([probs_NK, rest_N1], 1),
        weight_N2 / weight_N2.sum(0).clamp(min=torch.finfo(dtype).tiny),
        columns,
    )
    return rows, idle_N2.all(1)


def _padded(columns: int) -> int:
    return (columns // _COLUMNS + 1) * _COLUMNS


def _like(tensor: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if tensor is None or other is None else tensor.to(other.dtype)


def _product_type(hidden_ND: Tensor, head_VD: Tensor) -> torch.dtype:
    """As torch.matmul would choose: autocast's type where it is on, which leaves float64 alone."""
    dtype, device_type = torch.promote_types(hidden_ND.dtype, head_VD.dtype), hidden_ND.device.type
    if torch.is_autocast_enabled(device_type) and dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return dtype
