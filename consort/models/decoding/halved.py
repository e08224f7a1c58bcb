"""Weights once more in half the bytes, where half precision holds every one of them exactly.

A batch waits for its weights to come from memory and to be laid out. Models are often published in bfloat16:
times a power of two, their weights are float16 numbers too. FBGEMM keeps them laid out, widens them as it
multiplies and adds up in float32, so a product is rounded as in float32. On x86 processors only; weights that
were tuned in float32 stay as they are. Does not quantise.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from consort.models.decoding.parts import Decoder, Halves, Linear

# of a decoder; fewer stay in a processor's own cache, where calling FBGEMM costs more than it saves
HALVED_WEIGHTS = 1_000_000


def halved(decoder: Decoder) -> Decoder:
    """The decoder with its weights in both forms, where that is possible and pays."""
    linears = [decoder.head]
    for layer in decoder.layers:
        linears += [layer.qkv, layer.out, layer.up, layer.down]
    on_x86 = decoder.head.weight.is_cpu and torch.backends.quantized.engine in ("x86", "fbgemm")
    if not on_x86 or sum(linear.weight.numel() for linear in linears) < HALVED_WEIGHTS:
        return decoder
    layers = tuple(
        replace(
            layer,
            qkv=_halved(layer.qkv),
            out=_halved(layer.out),
            up=_halved(layer.up),
            down=_halved(layer.down),
        )
        for layer in decoder.layers
    )
    return replace(decoder, layers=layers, head=_halved(decoder.head))


def _halved(linear: Linear) -> Linear:
    weight_OI = linear.weight.t()
    # the greatest weight just below 2^15: what is 2^32 times smaller is still exact
    unit = 2.0 ** (int(torch.frexp(weight_OI.abs().max()).exponent) - 15)
    scaled_OI = weight_OI / unit
    if not torch.equal(scaled_OI.half().float(), scaled_OI):
        return linear
    packed = torch.ops.quantized.linear_prepack_fp16(scaled_OI.contiguous(), None)
    return replace(linear, halves=Halves(packed, unit))
