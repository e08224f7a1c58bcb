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

from consort.models.decoding.cache import Cache, Columns
from consort.models.decoding.layout import Layout, tree_layout
from consort.models.decoding.parts import Decoder, Layer
from consort.models.decoding.room import Room, open_room


@dataclass(frozen=True, slots=True)
class Places:
    """Where a pass over B rows of T tokens reads and writes; N = B * T, L filled positions."""

    columns: Columns  # of the cache
    positions_N: Tensor  # in the texts
    rotation_N1R: Tensor | None
    mask_BHTL: Tensor | None  # added to attention's scores
    causal: bool  # in place of a mask, where every row begins its text
    shape: tuple[int, int]  # B, T


class LeanNetwork:
    """A decoder with a cache of `slots` texts of up to `positions` tokens each."""

    branches = True
    shows_states = False
    states: Tensor | None = None

    def __init__(self, decoder: Decoder, *, slots: int, positions: int) -> None:
        self.decoder, self.slots, self.positions = decoder, slots, positions
        self._device = decoder.embedding_VD.device
        self._cache = Cache(decoder, slots=slots, positions=positions)
        # a window that begins p columns before the middle is what a token at position p sees
        self._seen = torch.zeros(2 * positions + 1, dtype=decoder.embedding_VD.dtype, device=self._device)
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
                trees, starts=starts, lengths=lengths, end=self.positions, device=self._device
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
        """As `batch.Network` says."""
        self._cache.swap(slot, other, num_tokens)

    @torch.inference_mode()
    def keep(self, slot: int, start: int, nodes: Sequence[int]) -> None:
        """As `batch.Network` says."""
        self._cache.move(slot, start, [start + node for node in nodes])

    def _tensor(self, numbers: object) -> Tensor:
        return torch.tensor(numbers, device=self._device)

    def _pass(self, ids_BT: Tensor, places: Places, last: tuple[Tensor, Places] | None) -> Room:
        """Read tokens: the room whose residual has their hidden states before the last norm. If only the
        `last` of each row are asked for, the others go through the last layer no further than the cache."""
        layers, room = self.decoder.layers, self._embedded(ids_BT, places)
        for index, layer in enumerate(layers):
            self._remember(index, layer, room, places)
            if last is not None and index == len(layers) - 1:
                (rows_B, places), whole = last, room
                room = self._room_for(places.shape)
                room.residual_ND.copy_(whole.residual_ND[rows_B])
                room.qkv_NO.copy_(whole.qkv_NO[rows_B])
            self._answer(index, layer, room, places)
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

    def _remember(self, index: int, layer: Layer, room: Room, places: Places) -> None:
        """Queries, keys and values, turned by their positions; keys and values into the cache."""
        layer.qkv.into(room.qkv_NO, room.normed(layer.attention_norm))
        if layer.qk_norm is not None:
            norm, weights_HD = layer.qk_norm
            room.turned_NHD.copy_(norm(room.turned_NHD) * weights_HD)
        if room.pairs_NHR is not None and places.rotation_N1R is not None:
            room.pairs_NHR.mul_(places.rotation_N1R)
        self._cache.write(index, places.columns, room.kept_NKD)

    def _answer(self, index: int, layer: Layer, room: Room, places: Places) -> None:
        """The rest of the layer, onto the residual."""
        decoder, x_ND = self.decoder, room.residual_ND
        found_NO = self._cache.answers(
            index, places.columns, room.queries(), places.mask_BHTL, causal=places.causal
        )
        beside_ND = room.normed(layer.mlp_norm) if decoder.parallel else None
        layer.out.onto(x_ND, found_NO)
        layer.up.into(room.up_NI, room.normed(layer.mlp_norm) if beside_ND is None else beside_ND)
        active_NI = decoder.activation(room.gate_NI)
        layer.down.onto(x_ND, active_NI.mul_(room.value_NI) if decoder.gated else active_NI)

    def _text_places(self, slots: Sequence[int], starts: Sequence[int], width: int) -> Places:
        decoder, rows = self.decoder, len(starts)
        starts_B1 = np.array(starts)[:, None]
        places_BT = starts_B1 if width == 1 else np.minimum(starts_B1 + np.arange(width), self.positions)
        filled = min(max(starts) + width, self.positions)
        plain = decoder.slopes_H is None
        causal = plain and decoder.heads == decoder.kv_heads and width > 1 and not any(starts)
        mask_BHTL = None
        if not causal and not (plain and rows == width == 1):
            masks = self._masks(width)
            begins_N = torch.from_numpy(np.repeat(self.positions - places_BT, masks, 0).ravel())
            mask_NL = self._seen.unfold(0, filled, 1).index_select(0, begins_N.to(self._device))
            mask_BHTL = self._biased(mask_NL.view(rows, masks, width, filled), None)
        columns_BT = torch.from_numpy(places_BT).to(self._device)
        return self._places(slots, columns_BT, columns_BT, mask_BHTL, causal=causal, filled=filled)

    def _tree_places(self, layout: Layout, slots: Sequence[int]) -> Places:
        mask_BTL = torch.zeros_like(layout.seen_BTL, dtype=self._seen.dtype)
        mask_BTL.masked_fill_(~layout.seen_BTL, -torch.inf)
        mask_BHTL = mask_BTL[:, None].expand(-1, self._masks(mask_BTL.shape[1]), -1, -1)
        mask_BHTL = self._biased(mask_BHTL, layout.column_positions_BL[:, None, None])
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
        positions_N, rotation_CR = positions_BT.flatten(), self.decoder.rotation_CR
        rows, width = columns_BT.shape
        return Places(
            columns=self._cache.columns(slots, columns_BT, filled),
            positions_N=positions_N,
            rotation_N1R=None
            if rotation_CR is None
            else rotation_CR.index_select(0, positions_N).unsqueeze(1),
            mask_BHTL=mask_BHTL,
            causal=causal,
            shape=(rows, width),
        )

    def _masks(self, width: int) -> int:
        """Masks of a row: one for each head, or, where they are large, for each query of a key."""
        decoder = self.decoder
        return decoder.heads if width == 1 else decoder.heads // decoder.kv_heads

    def _biased(self, mask_BHTL: Tensor, column_positions: Tensor | None) -> Tensor:
        """What is added to the scores: the masks, and ALiBi by the columns' positions, if other than their
        places; queries that share a key one after the other, as more positions of it."""
        decoder = self.decoder
        if decoder.slopes_H is not None:
            if column_positions is None:
                column_positions = torch.arange(mask_BHTL.shape[-1], device=self._device)
            mask_BHTL = mask_BHTL + decoder.slopes_H[:, None, None] * column_positions
        if decoder.heads == decoder.kv_heads:
            return mask_BHTL
        rows, masks, width, filled = mask_BHTL.shape
        group = decoder.heads // decoder.kv_heads
        return mask_BHTL.reshape(rows, masks // group, group * width, filled)
