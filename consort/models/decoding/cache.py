"""Keys and values of the texts in a network's slots: where a pass writes them, and how attention reads them.

Side by side for each slot and head, so that one product goes over all of a pass, and a sum over values is a
look-up in a table (`embedding_bag`), which asks memory for the next rows while it adds. Does not know masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from consort.models.decoding.parts import Decoder


@dataclass(frozen=True, slots=True)
class Sums:
    """How several rows of one token each add up values."""

    rows_M: Tensor  # of the values' table, all that a head adds up and then those of the next
    begins_H: Tensor  # among them


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a pass over B rows of T tokens writes and reads; N = B * T."""

    write_NK: Tensor  # rows of a layer's table, for K keys and values of each token
    apart_B: Tensor | None  # slots, where they do not lie side by side
    kept: list[tuple[Tensor, Tensor]]  # each layer's keys and values, in the shape that it takes them
    sums: Sums | None


class Cache:
    """Room for `slots` texts of up to `positions` tokens each."""

    def __init__(self, decoder: Decoder, *, slots: int, positions: int) -> None:
        self._group = decoder.heads // decoder.kv_heads
        # one position more, which nobody reads: what pads a short row is written there
        shape = (len(decoder.layers), 2, slots, decoder.kv_heads, positions + 1, decoder.head_dim)
        embedding_VD = decoder.embedding_VD
        self._texts = torch.zeros(shape, dtype=embedding_VD.dtype, device=embedding_VD.device)
        self._rows = self._texts.flatten(1, 4).unbind()
        self._values = self._texts[:, 1].flatten(1, 3).unbind()
        begins = torch.arange(0, len(self._rows[0]), positions + 1, device=embedding_VD.device)
        begins_S2H = begins.view(2, slots, decoder.kv_heads).transpose(0, 1)
        self._begins_S1K = begins_S2H.reshape(slots, 1, 2 * decoder.kv_heads)
        own_SH = self._begins_S1K[:, 0, : decoder.kv_heads].repeat_interleave(self._group, 1)
        self._begins_SH1 = own_SH.unsqueeze(2).contiguous()
        self._every_L = torch.arange(positions + 1, device=embedding_VD.device)

    def columns(self, slots: Sequence[int], columns_BT: Tensor, filled: int) -> Columns:
        """For tokens at `columns_BT` of the slots, that see no further than `filled`."""
        (rows, width), first, end = columns_BT.shape, slots[0], slots[-1] + 1
        columns_BT1 = columns_BT.unsqueeze(2)
        if end - first > len(slots):
            apart_B = torch.tensor(slots, device=self._texts.device)
            write_BTK = self._begins_S1K[apart_B] + columns_BT1
            return Columns(write_BTK.flatten(0, 1), apart_B, self._views(slice(None), filled), None)
        beside = slice(first, end)
        write_NK = (self._begins_S1K[beside] + columns_BT1).flatten(0, 1)
        if width > 1 or rows == 1:
            return Columns(write_NK, None, self._views(beside, filled), None)
        keys = self._texts[:, 0, beside, :, :filled].flatten(1, 2).transpose(2, 3).unbind()
        rows_M = (self._begins_SH1[beside] + self._every_L[:filled]).flatten()
        begins_H = torch.arange(0, len(rows_M), filled, device=rows_M.device)
        return Columns(write_NK, None, list(zip(keys, self._values, strict=True)), Sums(rows_M, begins_H))

    def _views(self, slots: slice, filled: int) -> list[tuple[Tensor, Tensor]]:
        views = iter(self._texts[:, :, slots, :, :filled].flatten(0, 1).unbind())
        return list(zip(views, views, strict=True))

    def write(self, layer: int, columns: Columns, kept_NKD: Tensor) -> None:
        """Keep the keys and values of a pass."""
        self._rows[layer].index_put_((columns.write_NK,), kept_NKD)

    def answers(
        self, layer: int, columns: Columns, queries_BHQD: Tensor, bias_BHQL: Tensor | None, *, causal: bool
    ) -> Tensor:
        """What each token's queries find [N, heads * D]. Queries that share a key stand one after the other,
        as more positions of it. The bias is added to the scores; `causal` in place of one."""
        rows, heads, _, dim = queries_BHQD.shape
        keys, values = columns.kept[layer]
        if columns.sums is None:
            if columns.apart_B is not None:
                keys, values = keys[columns.apart_B], values[columns.apart_B]
            out_BHQD = F.scaled_dot_product_attention(
                queries_BHQD, keys, values, attn_mask=bias_BHQL, is_causal=causal
            )
            if queries_BHQD.shape[2] > self._group:
                out_BHQD = out_BHQD.reshape(rows, heads * self._group, -1, dim).transpose(1, 2)
            return out_BHQD.reshape(-1, heads * self._group * dim)
        assert bias_BHQL is not None
        queries = queries_BHQD.reshape(rows * heads, -1, dim)
        scores = torch.baddbmm(bias_BHQL.flatten(0, 1), queries, keys, alpha=dim**-0.5)
        weights_M, sums = torch.softmax(scores, -1).view(-1), columns.sums
        found = torch.embedding_bag(values, sums.rows_M, sums.begins_H, False, 0, False, weights_M)[0]
        return found.view(rows, -1)

    def swap(self, slot: int, other: int, num_tokens: int) -> None:
        """Exchange the first `num_tokens` tokens of two slots."""
        texts = self._texts[:, :, :, :, :num_tokens]
        texts[:, :, [slot, other]] = texts[:, :, [other, slot]]

    def move(self, slot: int, start: int, columns: Sequence[int]) -> None:
        """Put tokens in other columns side by side, from `start` on."""
        texts = self._texts[:, :, slot]
        texts[..., start : start + len(columns), :] = texts[..., list(columns), :]
