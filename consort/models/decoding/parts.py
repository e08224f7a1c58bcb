"""The parts of a decoder as the lean network computes them, whichever family they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Activation: TypeAlias = Callable[[Tensor], Tensor]
Norm: TypeAlias = "LayerNorm | RmsNorm"

HalfProduct: TypeAlias = Callable[[Tensor, Any], Tensor]
Product: TypeAlias = "Linear | HalfLinear"


@dataclass(frozen=True, slots=True)
class Linear:
    """`x @ weight + bias`; weight [in, out]."""

    weight: Tensor
    bias: Tensor | None

    @property
    def width(self) -> int:
        """Numbers out."""
        return self.weight.shape[1]

    def into(self, out_NO: Tensor, x_NI: Tensor) -> Tensor:
        """Rows through the layer, written to `out_NO`."""
        if self.bias is None:
            return torch.mm(x_NI, self.weight, out=out_NO)
        return torch.addmm(self.bias, x_NI, self.weight, out=out_NO)

    def onto(self, residual_NO: Tensor, x_NI: Tensor) -> None:
        """The same added to a residual, in place."""
        residual_NO.addmm_(x_NI, self.weight)
        if self.bias is not None:
            residual_NO.add_(self.bias)


@dataclass(frozen=True, slots=True)
class HalfLinear:
    """The same with a weight in float16, exactly: see `memory`."""

    multiply: HalfProduct  # rows by the weight over the unit, added up in float32
    packed: Any
    unit: float  # a power of two
    width: int
    bias: Tensor | None

    def into(self, out_NO: Tensor, x_NI: Tensor) -> Tensor:
        """As `Linear`."""
        product_NO = self.multiply(x_NI, self.packed)
        if self.bias is None:
            return torch.mul(product_NO, self.unit, out=out_NO)
        return torch.add(self.bias, product_NO, alpha=self.unit, out=out_NO)

    def onto(self, residual_NO: Tensor, x_NI: Tensor) -> None:
        """As `Linear`."""
        residual_NO.add_(self.multiply(x_NI, self.packed), alpha=self.unit)
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
    qkv: Product
    qk_norm: tuple[RmsNorm, Tensor] | None  # of each head, and then each head's weights [H, D]
    out: Product
    mlp_norm: Norm
    up: Product
    down: Product


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder's weights, for C positions."""

    embedding_VD: Tensor
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Product
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
