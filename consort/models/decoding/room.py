"""Room that the layers of a pass write to in turn, and the views of it that they need: made once, not once a
layer and token, because small models wait for the making. Computes nothing but norms of the residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from consort.models.decoding.parts import Decoder, Norm, RmsNorm


@dataclass(frozen=True, slots=True)
class Room:
    """For B rows of T tokens; N = B * T."""

    shape: tuple[int, int]  # B, T
    residual_ND: Tensor
    negative_ND: Tensor  # what RMSNorm wants beside the residual; empty elsewhere
    doubled_N2D: Tensor  # both
    qkv_NO: Tensor  # heads of queries, keys and values; then views of it
    queries_BHGTD: Tensor  # H keys, each of G queries
    queries_BHQD: Tensor | None  # those of one key one after the other, where they already lie so
    kept_NKD: Tensor  # keys and values
    turned_NHD: Tensor  # queries and keys
    pairs_NHR: Tensor | None  # the same as complex numbers, where they are turned
    up_NI: Tensor  # then its halves where the MLP is gated
    gate_NI: Tensor
    value_NI: Tensor

    def queries(self) -> Tensor:
        """[B, H, G * T, D]: those that share a key one after the other, as more positions of it."""
        return self.queries_BHGTD.flatten(2, 3) if self.queries_BHQD is None else self.queries_BHQD

    def normed(self, norm: Norm) -> Tensor:
        """The residual, normalised."""
        if not isinstance(norm, RmsNorm):
            return norm(self.residual_ND)
        torch.neg(self.residual_ND, out=self.negative_ND)
        return norm.of_doubled(self.doubled_N2D)


def open_room(decoder: Decoder, shape: tuple[int, int]) -> Room:
    """Room for rows of tokens."""
    (rows, width), layer, empty = shape, decoder.layers[0], decoder.embedding_VD.new_empty
    tokens, hidden = rows * width, decoder.embedding_VD.shape[1]
    kv_heads, dim = decoder.kv_heads, decoder.head_dim
    doubled_N2D = empty(tokens, 2 * hidden if isinstance(layer.attention_norm, RmsNorm) else hidden)
    qkv_NO = empty(tokens, layer.qkv.width)
    qkv_NHD = qkv_NO.view(tokens, -1, dim)
    queries_BTHGD = qkv_NHD[:, : decoder.heads].view(rows, width, kv_heads, -1, dim)
    queries_BHGTD = queries_BTHGD.permute(0, 2, 3, 1, 4)
    turned_NHD = qkv_NHD[:, : decoder.heads + kv_heads]
    pairs_NHR = None
    if decoder.rotation_CR is not None:
        pairs_NHR = torch.view_as_complex(turned_NHD.view(tokens, -1, dim // 2, 2))
    up_NI = empty(tokens, layer.up.width)
    gate_NI, value_NI = up_NI.chunk(2, 1) if decoder.gated else (up_NI, up_NI)
    return Room(
        shape=shape,
        residual_ND=doubled_N2D[:, :hidden],
        negative_ND=doubled_N2D[:, hidden:],
        doubled_N2D=doubled_N2D,
        qkv_NO=qkv_NO,
        queries_BHGTD=queries_BHGTD,
        queries_BHQD=queries_BHGTD.flatten(2, 3) if width == 1 else None,
        kept_NKD=qkv_NHD[:, decoder.heads :],
        turned_NHD=turned_NHD,
        pairs_NHR=pairs_NHR,
        up_NI=up_NI,
        gate_NI=gate_NI,
        value_NI=value_NI,
    )
