"""A decoder of the usual families with little between its kernels: what small models wait for is dispatch.

Queries, keys and values come from one product, a rotation is one complex product in place, keys and values
lie side by side in one preallocated cache of slots. float32 on any device. Does not choose tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from consort.models.decoding.layout import Layout, tree_layout
from consort.models.decoding.parts import Decoder, Layer


@dataclass(frozen=True, slots=True)
class Places:
    """Where a pass over B rows of T tokens reads and writes; N = B * T, L filled positions."""

    slots: slice | Tensor  # a slice where the rows lie side by side in the cache
    write_N: Tensor  # among the slots' positions, one slot after the other
    rotation_N1R: Tensor | None
    mask_BHTL: Tensor | None  # added to attention's scores
    causal: bool  # in place of a mask, where every row begins its text
    filled: int  # L
    rows: int  # B
    tokens: int  # N


class LeanNetwork:
    """A decoder with a cache of `slots` texts of up to `positions` tokens each."""

    branches = True
    shows_states = False
    states: Tensor | None = None

    def __init__(self, decoder: Decoder, *, slots: int, positions: int) -> None:
        self.decoder, self.slots, self.positions = decoder, slots, positions
        device = decoder.embedding_VD.device
        # one position more, which nobody reads: what pads a short row is written there
        shape = (slots, positions + 1, 2 * decoder.kv_heads, decoder.head_dim)
        self._cache = torch.zeros(
            len(decoder.layers), *shape, dtype=decoder.embedding_VD.dtype, device=device
        )
        self._flat = self._cache.flatten(1, 2).unbind()  # each layer's, one slot after the other
        self._columns = torch.arange(positions + 1, device=device)

    @torch.inference_mode()
    def read(
        self,
        rows: Sequence[Sequence[int]],
        *,
        slots: Sequence[int],
        starts: Sequence[int],
        every: bool,
        trees: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """As `batch.Network` says."""
        lengths = [len(row) for row in rows]
        width = max(lengths)
        if min(lengths) < width:
            rows = [[*row, *[0] * (width - len(row))] for row in rows]
        if trees is None:
            positions_BT = self._tensor(starts)[:, None]
            if width > 1:
                positions_BT = (positions_BT + self._columns[:width]).clamp_(max=self.positions)
            places = self._text_places(positions_BT, slots, starts)
        else:
            layout = tree_layout(
                trees, starts=starts, lengths=lengths, end=self.positions, device=self._columns.device
            )
            positions_BT, places = layout.positions_BT, self._tree_places(layout, slots)
        x_ND = self._hidden(self._tensor(rows), positions_BT, places)
        if every and min(lengths) < width:
            x_ND = x_ND[(self._columns[:width] < self._tensor(lengths)[:, None]).flatten()]
        elif not every and width > 1:
            x_ND = x_ND[self._tensor([row * width + length - 1 for row, length in enumerate(lengths)])]
        states_ND = self.decoder.final_norm(x_ND)
        if self.shows_states:
            self.states = states_ND.clone()  # a later pass may compute where they lie
        return self.decoder.head(states_ND)

    @torch.inference_mode()
    def swap(self, slot: int, other: int, num_tokens: int) -> None:
        """Exchange the first `num_tokens` tokens of two slots."""
        texts = self._cache[:, :, :num_tokens]
        texts[:, [slot, other]] = texts[:, [other, slot]]

    @torch.inference_mode()
    def keep(self, slot: int, start: int, nodes: Sequence[int]) -> None:
        """Let a path through the tree after `start` tokens be the text's next tokens."""
        texts = self._cache[:, slot]
        texts[:, start : start + len(nodes)] = texts[:, [start + node for node in nodes]]

    def _tensor(self, numbers: object) -> Tensor:
        return torch.tensor(numbers, device=self._columns.device)

    def _hidden(self, ids_BT: Tensor, positions_BT: Tensor, places: Places) -> Tensor:
        """Hidden states [N, D] before the last norm."""
        decoder = self.decoder
        x_ND = F.embedding(ids_BT.flatten(), decoder.embedding_VD)
        if decoder.positions_CD is not None:
            learned_ND = F.embedding(
                positions_BT.flatten().clamp(max=len(decoder.positions_CD) - 1), decoder.positions_CD
            )
            x_ND = x_ND + learned_ND
        if decoder.embedding_norm is not None:
            x_ND = decoder.embedding_norm(x_ND)
        side_by_side = isinstance(places.slots, slice)
        filled = self._cache[:, places.slots if side_by_side else slice(None), : places.filled].unbind()
        for layer, flat, kept_BLHD in zip(decoder.layers, self._flat, filled, strict=True):
            qkv_NHD = self._qkv(layer, x_ND, places)
            flat.index_copy_(0, places.write_N, qkv_NHD[:, decoder.heads :])
            attended_ND = self._attend(
                qkv_NHD[:, : decoder.heads], kept_BLHD if side_by_side else kept_BLHD[places.slots], places
            )
            y_ND = layer.out.onto(x_ND, attended_ND)
            up_NI = layer.up(layer.mlp_norm(x_ND if decoder.parallel else y_ND))
            if decoder.gated:
                gate_NI, up_NI = up_NI.chunk(2, 1)
                x_ND = layer.down.onto(y_ND, decoder.activation(gate_NI).mul_(up_NI))
            else:
                x_ND = layer.down.onto(y_ND, decoder.activation(up_NI))
        return x_ND

    def _text_places(self, places_BT: Tensor, slots: Sequence[int], starts: Sequence[int]) -> Places:
        decoder, (rows, width) = self.decoder, places_BT.shape
        filled = min(max(starts) + width, self.positions)
        alike = decoder.heads == decoder.kv_heads and decoder.slopes_H is None
        causal = alike and width > 1 and not any(starts)
        mask_BHTL = None
        if not causal and not (alike and rows == width == 1):
            seen_BTL = self._columns[:filled] <= places_BT[:, :, None]
            mask_BHTL = self._mask(seen_BTL, self._columns[:filled])
        return self._places(places_BT, places_BT, slots, mask_BHTL, causal=causal, filled=filled)

    def _tree_places(self, layout: Layout, slots: Sequence[int]) -> Places:
        mask_BHTL = self._mask(layout.seen_BTL, layout.column_positions_BL[:, None, None])
        return self._places(
            layout.columns_BT, layout.positions_BT, slots, mask_BHTL, causal=False, filled=layout.filled
        )

    def _places(
        self,
        columns_BT: Tensor,
        positions_BT: Tensor,
        slots: Sequence[int],
        mask_BHTL: Tensor | None,
        *,
        causal: bool,
        filled: int,
    ) -> Places:
        rotation, slots_B, (rows, width) = self.decoder.rotation_CR, self._tensor(slots), columns_BT.shape
        first, end = slots[0], slots[-1] + 1
        return Places(
            slots=slice(first, end) if end - first == rows else slots_B,
            write_N=(slots_B[:, None] * (self.positions + 1) + columns_BT).flatten(),
            rotation_N1R=None if rotation is None else rotation[positions_BT.reshape(-1, 1)],
            mask_BHTL=mask_BHTL,
            causal=causal,
            filled=filled,
            rows=rows,
            tokens=rows * width,
        )

    def _mask(self, seen_BTL: Tensor, column_positions: Tensor) -> Tensor:
        """What is added to the scores of each head: nothing where a column is seen, but for ALiBi."""
        decoder = self.decoder
        mask_BTL = torch.zeros(seen_BTL.shape, dtype=decoder.embedding_VD.dtype, device=seen_BTL.device)
        mask_BTL = mask_BTL.masked_fill_(~seen_BTL, -torch.inf)
        mask_BHTL = mask_BTL.repeat(1, decoder.heads // decoder.kv_heads, 1)[:, None]
        if decoder.slopes_H is not None:
            mask_BHTL = mask_BHTL + decoder.slopes_H[:, None, None] * column_positions
        return mask_BHTL

    def _qkv(self, layer: Layer, x_ND: Tensor, places: Places) -> Tensor:
        """Heads of queries, keys and values, turned by their positions."""
        dim, turned = self.decoder.head_dim, self.decoder.heads + self.decoder.kv_heads
        qkv_ND = layer.qkv(layer.attention_norm(x_ND))
        qkv_NHD = qkv_ND.view(places.tokens, -1, dim)
        if layer.qk_norm is not None:
            norm, weights_HD = layer.qk_norm
            qkv_NHD[:, :turned] = norm(qkv_NHD[:, :turned]) * weights_HD
        if places.rotation_N1R is not None:
            pairs_NHR = torch.view_as_complex(qkv_ND.view(places.tokens, -1, dim // 2, 2))
            pairs_NHR[:, :turned].mul_(places.rotation_N1R)
        return qkv_NHD

    def _attend(self, queries_NHD: Tensor, kept_BLHD: Tensor, places: Places) -> Tensor:
        decoder, rows = self.decoder, places.rows
        keys_BHLD, values_BHLD = kept_BLHD.transpose(1, 2).chunk(2, 1)
        width = places.tokens // rows
        group = decoder.heads // decoder.kv_heads
        if group == 1:
            queries_BHTD = queries_NHD.view(rows, width, decoder.heads, -1).transpose(1, 2)
        else:  # queries that share a key stand one after the other, as more positions of it
            grouped = queries_NHD.view(rows, width, decoder.kv_heads, group, -1).permute(0, 2, 3, 1, 4)
            queries_BHTD = grouped.flatten(2, 3)
        out_BHTD = F.scaled_dot_product_attention(
            queries_BHTD, keys_BHLD, values_BHLD, attn_mask=places.mask_BHTL, is_causal=places.causal
        )
        if group > 1:
            out_BHTD = out_BHTD.reshape(rows, decoder.heads, width, -1)
        return out_BHTD.transpose(1, 2).reshape(places.tokens, -1)
