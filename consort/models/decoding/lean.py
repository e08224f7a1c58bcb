"""A decoder of the usual families with little between its kernels: what small models wait for is dispatch.

Queries, keys and values come from one product, a rotation is one complex product in place, every layer of a
pass writes to the same room, keys and values lie in one preallocated cache of slots. float32 on any device.
Does not choose tokens, and reads for one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from consort.models.decoding.layout import Layout, tree_layout
from consort.models.decoding.parts import Decoder, Layer
from consort.models.decoding.room import Room, open_room


@dataclass(frozen=True, slots=True)
class Places:
    """Where a pass over B rows of T tokens reads and writes; N = B * T, L filled positions."""

    slots: slice | Tensor  # a slice where the rows lie side by side in the cache
    write_N: Tensor  # among the slots' positions, one slot after the other
    positions_N: Tensor  # in the texts
    rotation_N1R: Tensor | None
    mask_BHTL: Tensor | None  # added to attention's scores
    causal: bool  # in place of a mask, where every row begins its text
    filled: int  # L
    shape: tuple[int, int]  # B, T


class LeanNetwork:
    """A decoder with a cache of `slots` texts of up to `positions` tokens each."""

    branches = True
    shows_states = False
    states: Tensor | None = None

    def __init__(self, decoder: Decoder, *, slots: int, positions: int) -> None:
        self.decoder, self.slots, self.positions = decoder, slots, positions
        device = decoder.embedding_VD.device
        # one position more, which nobody reads: what pads a short row is written there
        shape = (len(decoder.layers), 2 * decoder.kv_heads, slots, positions + 1, decoder.head_dim)
        self._cache = torch.zeros(shape, dtype=decoder.embedding_VD.dtype, device=device)
        self._flat = self._cache.flatten(2, 3).unbind()  # each layer's, one slot after the other
        # a window that begins p columns before the middle is what a token at position p sees
        self._seen = torch.zeros(2 * positions + 1, dtype=decoder.embedding_VD.dtype, device=device)
        self._seen[positions + 1 :] = -torch.inf
        self._room: Room | None = None

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
            places = self._text_places(slots, starts, width)
        else:
            layout = tree_layout(
                trees, starts=starts, lengths=lengths, end=self.positions, device=self._cache.device
            )
            places = self._tree_places(layout, slots)
        last = None
        if not every and width > 1:
            assert trees is None, "a tree is read for every node"
            ends = [start + length - 1 for start, length in zip(starts, lengths, strict=True)]
            rows_B = self._tensor([row * width + length - 1 for row, length in enumerate(lengths)])
            last = rows_B, self._text_places(slots, ends, 1)
        room = self._pass(self._tensor(rows), places, last)
        x_ND = room.normed(self.decoder.final_norm)
        if every and min(lengths) < width:
            x_ND = x_ND[torch.cat([row * width + torch.arange(n) for row, n in enumerate(lengths)])]
        if self.shows_states:
            self.states = x_ND.clone()  # a later pass computes where they lie
        head = self.decoder.head
        return head.into(x_ND.new_empty(len(x_ND), head.width), x_ND)

    @torch.inference_mode()
    def swap(self, slot: int, other: int, num_tokens: int) -> None:
        """Exchange the first `num_tokens` tokens of two slots."""
        texts = self._cache[:, :, :, :num_tokens]
        texts[:, :, [slot, other]] = texts[:, :, [other, slot]]

    @torch.inference_mode()
    def keep(self, slot: int, start: int, nodes: Sequence[int]) -> None:
        """Let a path through the tree after `start` tokens be the text's next tokens."""
        texts = self._cache[:, :, slot]
        texts[:, :, start : start + len(nodes)] = texts[:, :, [start + node for node in nodes]]

    def _tensor(self, numbers: object) -> Tensor:
        return torch.tensor(numbers, device=self._cache.device)

    def _pass(self, ids_BT: Tensor, places: Places, last: tuple[Tensor, Places] | None) -> Room:
        """Read tokens: the room whose residual has their hidden states before the last norm. If only the
        `last` of each row are asked for, the others go through the last layer no further than the cache."""
        decoder = self.decoder
        room, kept = self._embedded(ids_BT, places), _kept(self._cache, places)
        for layer, cache_HLD, (keys_BHLD, values_BHLD) in zip(decoder.layers, self._flat, kept, strict=True):
            self._remember(layer, cache_HLD, room, places)
            if last is not None and layer is decoder.layers[-1]:
                (rows_B, places), whole = last, room
                room = self._room_for(places.shape)
                ((keys_BHLD, values_BHLD),) = _kept(self._cache[-1:], places)
                room.residual_ND.copy_(whole.residual_ND[rows_B])
                room.qkv_NO.copy_(whole.qkv_NO[rows_B])
            self._answer(layer, keys_BHLD, values_BHLD, room, places)
        return room

    def _room_for(self, shape: tuple[int, int]) -> Room:
        if self._room is None or self._room.shape != shape:
            self._room = open_room(self.decoder, shape)
        return self._room

    def _embedded(self, ids_BT: Tensor, places: Places) -> Room:
        decoder, room = self.decoder, self._room_for(places.shape)
        x_ND = room.residual_ND
        x_ND.copy_(F.embedding(ids_BT.flatten(), decoder.embedding_VD))
        if decoder.positions_CD is not None:
            positions_N = places.positions_N.clamp(max=len(decoder.positions_CD) - 1)
            x_ND.add_(F.embedding(positions_N, decoder.positions_CD))
        if decoder.embedding_norm is not None:
            x_ND.copy_(decoder.embedding_norm(x_ND))
        return room

    def _remember(self, layer: Layer, cache_HLD: Tensor, room: Room, places: Places) -> None:
        """Queries, keys and values, turned by their positions; keys and values into the cache."""
        layer.qkv.into(room.qkv_NO, room.normed(layer.attention_norm))
        if layer.qk_norm is not None:
            norm, weights_HD = layer.qk_norm
            room.turned_NHD.copy_(norm(room.turned_NHD) * weights_HD)
        if room.pairs_NHR is not None and places.rotation_N1R is not None:
            room.pairs_NHR.mul_(places.rotation_N1R)
        cache_HLD.index_copy_(1, places.write_N, room.kept_HND)

    def _answer(
        self, layer: Layer, keys_BHLD: Tensor, values_BHLD: Tensor, room: Room, places: Places
    ) -> None:
        """The rest of the layer, onto the residual."""
        decoder, x_ND, (rows, width) = self.decoder, room.residual_ND, places.shape
        if not isinstance(places.slots, slice):
            keys_BHLD, values_BHLD = keys_BHLD[places.slots], values_BHLD[places.slots]
        # queries that share a key stand one after the other, as more positions of it
        out_BHTD = F.scaled_dot_product_attention(
            room.queries_BHGTD.flatten(2, 3),
            keys_BHLD,
            values_BHLD,
            attn_mask=places.mask_BHTL,
            is_causal=places.causal,
        )
        if width > 1:
            out_BHTD = out_BHTD.reshape(rows, decoder.heads, width, -1).transpose(1, 2)
        beside_ND = room.normed(layer.mlp_norm) if decoder.parallel else None
        layer.out.onto(x_ND, out_BHTD.reshape(rows * width, -1))
        layer.up.into(room.up_NI, room.normed(layer.mlp_norm) if beside_ND is None else beside_ND)
        active_NI = decoder.activation(room.gate_NI)
        layer.down.onto(x_ND, active_NI.mul_(room.value_NI) if decoder.gated else active_NI)

    def _text_places(self, slots: Sequence[int], starts: Sequence[int], width: int) -> Places:
        decoder, rows = self.decoder, len(starts)
        columns_BT = np.minimum(np.add.outer(np.array(starts), np.arange(width)), self.positions)
        filled = min(max(starts) + width, self.positions)
        plain = decoder.slopes_H is None
        causal = plain and decoder.heads == decoder.kv_heads and width > 1 and not any(starts)
        mask_BHTL = None
        if not causal and not (plain and rows == width == 1):
            windows = self._seen.unfold(0, filled, 1)
            begins_N = torch.from_numpy(self.positions - columns_BT.ravel()).to(windows.device)
            mask_BTL = windows.index_select(0, begins_N).view(rows, width, filled)
            mask_BHTL = self._by_head(mask_BTL, torch.arange(filled, device=windows.device))
        columns_BT = torch.from_numpy(columns_BT).to(self._cache.device)
        return self._places(slots, columns_BT, columns_BT, mask_BHTL, causal=causal, filled=filled)

    def _tree_places(self, layout: Layout, slots: Sequence[int]) -> Places:
        mask_BTL = torch.zeros_like(layout.seen_BTL, dtype=self._cache.dtype)
        mask_BHTL = self._by_head(
            mask_BTL.masked_fill_(~layout.seen_BTL, -torch.inf), layout.column_positions_BL[:, None, None]
        )
        return self._places(
            slots, layout.columns_BT, layout.positions_BT, mask_BHTL, causal=False, filled=layout.filled
        )

    def _places(
        self,
        slots: Sequence[int],
        columns_BT: Tensor,
        positions_BT: Tensor,
        mask_BHTL: Tensor | None,
        *,
        causal: bool,
        filled: int,
    ) -> Places:
        slots_B, positions_N = self._tensor(slots), positions_BT.flatten()
        rotation_CR = self.decoder.rotation_CR
        first, end = slots[0], slots[-1] + 1
        return Places(
            slots=slice(first, end) if end - first == len(slots) else slots_B,
            write_N=torch.add(columns_BT, slots_B[:, None], alpha=self.positions + 1).flatten(),
            positions_N=positions_N,
            rotation_N1R=None
            if rotation_CR is None
            else rotation_CR.index_select(0, positions_N).unsqueeze(1),
            mask_BHTL=mask_BHTL,
            causal=causal,
            filled=filled,
            shape=(len(slots), columns_BT.shape[1]),
        )

    def _by_head(self, mask_BTL: Tensor, column_positions: Tensor) -> Tensor:
        """What is added to the scores of each head: the mask, and ALiBi."""
        group = self.decoder.heads // self.decoder.kv_heads
        mask_BHTL = (mask_BTL if group == 1 else mask_BTL.repeat(1, group, 1))[:, None]
        if self.decoder.slopes_H is not None:
            mask_BHTL = mask_BHTL + self.decoder.slopes_H[:, None, None] * column_positions
        return mask_BHTL


def _kept(caches: Tensor, places: Places) -> list[tuple[Tensor, Tensor]]:
    """Each layer's keys and values [B, H, L, D]: the rows', or all slots' where the rows lie apart."""
    slots = places.slots if isinstance(places.slots, slice) else slice(None)
    keys, values = caches[:, :, slots, : places.filled].transpose(1, 2).chunk(2, 2)
    return list(zip(keys.unbind(), values.unbind(), strict=True))
