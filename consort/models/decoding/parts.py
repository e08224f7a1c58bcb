"""The parts of a decoder as the lean network computes them, whichever family they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Activation: TypeAlias = Callable[[Tensor], Tensor]
Norm: TypeAlias = "LayerNorm | RmsNorm"

HALVED_ROWS = 3  # with fewer, products wait for each other more than for memory (experiments/decoding.py)


@dataclass(frozen=True, slots=True)
class Halves:
    """A weight in float16, exactly, as FBGEMM lays it out: see `memory`."""

    packed: Any
    unit: float  # a power of two that the numbers are to be multiplied by

    def product(self, x_NI: Tensor) -> Tensor:
        """Rows times the weight over the unit, added up in float32."""
        product_NO: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x_NI, self.packed)
        return product_NO


@dataclass(frozen=True, slots=True)
class Linear:
    """`x @ weight + bias`; weight [in, out]."""

    weight: Tensor
    bias: Tensor | None
    halves: Halves | None = None  # the same weight, for passes over several rows

    def into(self, out_NO: Tensor, x_NI: Tensor) -> Tensor:
        """Rows through the layer, written to `out_NO`."""
        if self.halves is not None and len(x_NI) >= HALVED_ROWS:
            product_NO, unit = self.halves.product(x_NI), self.halves.unit
            if self.bias is None:
                return torch.mul(product_NO, unit, out=out_NO)
            return torch.add(self.bias, product_NO, alpha=unit, out=out_NO)
        if self.bias is None:
            return torch.mm(x_NI, self.weight, out=out_NO)
        return torch.addmm(self.bias, x_NI, self.weight, out=out_NO)

    def onto(self, residual_NO: Tensor, x_NI: Tensor) -> None:
        """The same added to a residual, in place."""
        if self.halves is not None and len(x_NI) >= HALVED_ROWS:
            residual_NO.add_(self.halves.product(x_NI), alpha=self.halves.unit)
        else:
            residual_NO.addmm_(x_NI, self.weight)
        if self.bias is not None:
            residual_NO.add_(self.bias)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Zero mean and unit variance over the last dimension."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Rows, normalised."""
        return torch.layer_norm(x_ND, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Unit mean square over the last dimension D. `twice_2D` is the weight two times over."""

    twice_2D: Tensor
    eps: float

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Rows, normalised."""
        return self.of_doubled(torch.cat((x_ND, x_ND.neg()), -1))

    def of_doubled(self, x_N2D: Tensor) -> Tensor:
        """The same for rows that have their negatives beside them."""
        # LayerNorm of (x, -x): mean 0, variance mean(x^2). One kernel, where rms_norm is five on a CPU.
        normed_N2D = torch.layer_norm(x_N2D, self.twice_2D.shape, self.twice_2D, None, self.eps)
        return normed_N2D[..., : x_N2D.shape[-1] // 2]


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. `qkv` gives the heads of queries, keys and values one after the other; `up` of a gated MLP
    gives gate and value."""

    attention_norm: Norm
    qkv: Linear
    qk_norm: tuple[RmsNorm, Tensor] | None  # of each head, and then each head's weights [H, D]
    out: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder's weights, for C positions."""

    embedding_VD: Tensor
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Linear
    heads: int
    kv_heads: int
    head_dim: int
    activation: Activation
    gated: bool = False
    parallel: bool = False  # attention and MLP both read the block's input
    positions_CD: Tensor | None = None  # learned
    embedding_norm: Norm | None = None
    rotation_CR: Tensor | None = None  # complex: turns pairs of neighbouring numbers in queries and keys
    slopes_H: Tensor | None = None  # attention is biased by the key's position times this (ALiBi)
