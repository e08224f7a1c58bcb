"""How a decoder's weights lie in memory, for which a small batch waits longer than for arithmetic.

In half the bytes, where half precision holds every weight of a matrix exactly: models are often published in
bfloat16, and times a power of two those are float16 numbers too. FBGEMM keeps them laid out, widens them as
it multiplies and adds up in float32, so a product is rounded as in float32. That is for x86 processors, and
weights tuned in float32 stay as they are: side by side, so that Linux may give them large pages, and a
processor finds them without looking up an address every 4 kB. Does not quantise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consort.models.decoding.parts import Decoder, HalfLinear, HalfProduct, Linear, Product

# of a decoder; fewer in float32 stay in a processor's own cache, where there is nothing to be gained
MANY_WEIGHTS = 1_000_000
MOST_WEIGHTS = 100_000_000  # of more, copies would cost memory that nobody has counted on


def arranged(decoder: Decoder) -> Decoder:
    """The same weights on a processor where they are read sooner."""
    if not decoder.embedding_VD.is_cpu or sum(map(_weights, _products(decoder))) > MOST_WEIGHTS:
        return decoder
    if torch.backends.quantized.engine in ("x86", "fbgemm"):
        decoder = _each(decoder, _halved)
    left = sum(map(_weights, _products(decoder)))
    if left < MANY_WEIGHTS:
        return decoder
    # numpy, unlike torch, asks for large pages
    memory, begins = torch.from_numpy(np.empty(left, np.float32)), 0

    def moved(linear: Product) -> Product:
        nonlocal begins
        if not isinstance(linear, Linear):
            return linear
        weight_IO, begin = linear.weight, begins
        begins += weight_IO.numel()
        by_column = not weight_IO.is_contiguous()
        shape = weight_IO.t().shape if by_column else weight_IO.shape
        place = memory[begin:begins].view(shape)
        moved_IO = place.t() if by_column else place
        return replace(linear, weight=moved_IO.copy_(weight_IO))

    return _each(decoder, moved)


def _products(decoder: Decoder) -> list[Product]:
    products = [decoder.head]
    for layer in decoder.layers:
        products += [layer.qkv, layer.out, layer.up, layer.down]
    return products


def _weights(product: Product) -> int:
    """Numbers in float32."""
    return product.weight.numel() if isinstance(product, Linear) else 0


def _each(decoder: Decoder, change: Callable[[Product], Product]) -> Decoder:
    layers = tuple(
        replace(
            layer,
            qkv=change(layer.qkv),
            out=change(layer.out),
            up=change(layer.up),
            down=change(layer.down),
        )
        for layer in decoder.layers
    )
    return replace(decoder, layers=layers, head=change(decoder.head))


def _halved(linear: Product) -> Product:
    if not isinstance(linear, Linear):
        return linear
    weight_OI = linear.weight.t()
    # the greatest weight just below 2^15: what is 2^32 times smaller is still exact
    unit = 2.0 ** (int(torch.frexp(weight_OI.abs().max()).exponent) - 15)
    scaled_OI = (weight_OI / unit).contiguous()
    if not torch.equal(scaled_OI.half().float(), scaled_OI):
        return linear
    multiply, packed = _packed(scaled_OI)
    return HalfLinear(multiply, packed, unit, width=linear.width, bias=linear.bias)


def _packed(weight_OI: Tensor) -> tuple[HalfProduct, Any]:
    """The weight as FBGEMM lays it out, and what multiplies rows by it."""
    with warnings.catch_warnings():
        # torch means to remove the first way; in the second each call waits 14 us before it begins
        warnings.simplefilter("ignore")
        try:
            packed = torch.fbgemm_pack_gemm_matrix_fp16(weight_OI)
            _multiplied(weight_OI.new_zeros(1, weight_OI.shape[1]), packed)
        except (AttributeError, TypeError):  # a torch that has it no more, or had it otherwise
            linear_dynamic: HalfProduct = torch.ops.quantized.linear_dynamic_fp16.default
            return linear_dynamic, torch.ops.quantized.linear_prepack_fp16(weight_OI, None)
    return _multiplied, packed


def _multiplied(x_NI: Tensor, packed: Tensor) -> Tensor:
    return torch.fbgemm_linear_fp16_weight_fp32_activation(x_NI, packed, None)
