"""The parts of a decoder as the lean network computes them, whichever family they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Activation: TypeAlias = Callable[[Tensor], Tensor]
Norm: TypeAlias = "LayerNorm | RmsNorm"


@dataclass(frozen=True, slots=True)
class Linear:
    """`x @ weight + bias`; weight [in, out]."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Rows through the layer."""
        if self.bias is None:
            return torch.mm(x_ND, self.weight)
        return torch.addmm(self.bias, x_ND, self.weight)

    def onto(self, residual_ND: Tensor, x_ND: Tensor) -> Tensor:
        """The same added to a residual."""
        total_ND = torch.addmm(residual_ND, x_ND, self.weight)
        return total_ND if self.bias is None else total_ND.add_(self.bias)


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
        # LayerNorm of (x, -x): mean 0, variance mean(x^2). One kernel, where rms_norm is five on a CPU.
        both = torch.cat((x_ND, x_ND.neg()), -1)
        return torch.layer_norm(both, self.twice_2D.shape, self.twice_2D, None, self.eps)[
            ..., : x_ND.shape[-1]
        ]


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
