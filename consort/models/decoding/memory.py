"""How a decoder's weights lie in memory, for which a small batch waits longer than for arithmetic.

Side by side, so that Linux may give them large pages: a processor finds them without looking up an address
every 4 kB. And, for passes over several rows, once more in half the bytes, where half precision holds every
weight of a matrix exactly: models are often published in bfloat16, and times a power of two those are float16
numbers too. FBGEMM keeps them laid out, widens them as it multiplies and adds up in float32, so a product is
rounded as in float32. That is for x86 processors, and weights tuned in float32 stay as they are. Does not
quantise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from consort.models.decoding.parts import Decoder, Halves, Linear

# of a decoder; fewer stay in a processor's own cache, where there is nothing to be gained
MANY_WEIGHTS = 1_000_000
MOST_WEIGHTS = 100_000_000  # of more, copies would cost memory that nobody has counted on


def arranged(decoder: Decoder) -> Decoder:
    """The same weights on a processor where they are read sooner."""
    linears = [decoder.head]
    for layer in decoder.layers:
        linears += [layer.qkv, layer.out, layer.up, layer.down]
    weights = sum(linear.weight.numel() for linear in linears)
    if not (MANY_WEIGHTS <= weights <= MOST_WEIGHTS and decoder.head.weight.is_cpu):
        return decoder
    # numpy, unlike torch, asks for large pages
    memory = torch.from_numpy(np.empty(weights, np.float32))
    begins = 0

    def moved(linear: Linear) -> Linear:
        nonlocal begins
        weight_IO, begin = linear.weight, begins
        begins += weight_IO.numel()
        by_column = not weight_IO.is_contiguous()
        shape = weight_IO.t().shape if by_column else weight_IO.shape
        place = memory[begin:begins].view(shape)
        moved_IO = place.t() if by_column else place
        return replace(linear, weight=moved_IO.copy_(weight_IO))

    decoder = _each(decoder, moved)
    return _each(decoder, _halved) if torch.backends.quantized.engine in ("x86", "fbgemm") else decoder


def _each(decoder: Decoder, change: Callable[[Linear], Linear]) -> Decoder:
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


def _halved(linear: Linear) -> Linear:
    weight_OI = linear.weight.t()
    # the greatest weight just below 2^15: what is 2^32 times smaller is still exact
    unit = 2.0 ** (int(torch.frexp(weight_OI.abs().max()).exponent) - 15)
    scaled_OI = weight_OI / unit
    if not torch.equal(scaled_OI.half().float(), scaled_OI):
        return linear
    packed = torch.ops.quantized.linear_prepack_fp16(scaled_OI.contiguous(), None)
    return replace(linear, halves=Halves(packed, unit))
