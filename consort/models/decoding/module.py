"""Any causal language model that transformers loads, behind the same two words as the lean network.

Where the module takes positions and a mask from outside, its rows share passes and a preallocated cache.
Every other module (windows, recurrences, biases by distance) reads row by row with its own cache, and a text
that was cut back is read again. Slower than `lean` on small models; large ones wait for arithmetic anyway.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from consort.models.decoding.layout import tree_layout
from consort.models.drafts import is_chain

if TYPE_CHECKING:
    from consort.models.local import LocalModel


def takes_slots(module: Any) -> bool:
    """Whether the module computes rows at positions of our choosing, with a cache and a mask of ours."""
    layers = DynamicCache(config=module.config).layers
    return (
        module._can_compile_fullgraph  # transformers' word for "works with a static cache"
        and "position_ids" in inspect.signature(module.forward).parameters
        and not getattr(module.config, "alibi", False)
        and all(type(layer) is DynamicLayer for layer in layers)
    )


class SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values [slots, H, positions, D], of which a pass reads and writes some rows."""

    is_initialized: bool

    def __init__(self, slots: int, positions: int) -> None:
        super().__init__()
        self.slots, self.positions = slots, positions
        self.slots_B, self.columns_BT, self.filled = torch.tensor([0]), torch.tensor([[0]]), 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write at the pass's places; returns what its rows hold."""
        if not self.is_initialized:
            self.keys, self.values = (
                states.new_zeros(self.slots, states.shape[1], self.positions, states.shape[3])
                for states in (key_states, value_states)
            )
            self.is_initialized = True
        held = []
        for cache, states in ((self.keys, key_states), (self.values, value_states)):
            cache.transpose(1, 2)[self.slots_B[:, None], self.columns_BT] = states.transpose(1, 2).to(
                cache.dtype
            )
            held.append(cache[:, :, : self.filled][self.slots_B])
        return held[0], held[1]

    def get_seq_length(self) -> int:
        """Where a module that was given positions still asks: the longest row's."""
        return self.filled - self.columns_BT.shape[1]


def _unpadded(values_BTX: Tensor, lengths: Sequence[int], *, every: bool) -> Tensor:
    """What belongs to each row's last token, or to every one, in float32."""
    if not every:
        last_B = torch.tensor(lengths, device=values_BTX.device) - 1
        return values_BTX[torch.arange(len(lengths), device=values_BTX.device), last_B].float()
    return torch.cat([row[:length] for row, length in zip(values_BTX.float(), lengths, strict=True)])


class SlotNetwork:
    """A module whose rows share passes, with a cache of `slots` texts of up to `positions` tokens each."""

    branches = True
    shows_states = False
    states: Tensor | None = None

    def __init__(self, model: LocalModel, *, slots: int, positions: int) -> None:
        self.model, self.slots, self.positions = model, slots, positions
        # one position more, which nobody reads: what pads a short row is written there
        count = len(DynamicCache(config=model.module.config).layers)
        self._layers = [SlotLayer(slots, positions + 1) for _ in range(count)]
        self._cache = Cache(layers=self._layers)
        self._columns = torch.arange(positions + 1, device=model.device)

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
        device = self.model.device
        ids_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        if trees is None:
            starts_B1 = torch.tensor(starts, device=device)[:, None]
            columns_BT = (starts_B1 + self._columns[:width]).clamp_(max=self.positions)
            filled = min(max(starts) + width, self.positions)
            positions_BT, seen_BTL = columns_BT, self._columns[:filled] <= columns_BT[:, :, None]
        else:
            layout = tree_layout(trees, starts=starts, lengths=lengths, end=self.positions, device=device)
            columns_BT, positions_BT = layout.columns_BT, layout.positions_BT
            seen_BTL, filled = layout.seen_BTL, layout.filled
        for layer in self._layers:
            layer.slots_B, layer.columns_BT, layer.filled = (
                torch.tensor(slots, device=device),
                columns_BT,
                filled,
            )
        mask_BTL = torch.zeros(seen_BTL.shape, dtype=self.model.module.dtype, device=device)
        with self.model.autocast():
            output = self.model.module(
                input_ids=ids_BT,
                attention_mask=mask_BTL.masked_fill_(~seen_BTL, torch.finfo(mask_BTL.dtype).min)[:, None],
                position_ids=positions_BT.clamp(max=self.positions - 1),
                past_key_values=self._cache,
                use_cache=True,
                output_hidden_states=self.shows_states,
            )
        if self.shows_states:
            self.states = _unpadded(output.hidden_states[-1], lengths, every=every)
        return _unpadded(output.logits, lengths, every=every)

    @torch.inference_mode()
    def swap(self, slot: int, other: int, num_tokens: int) -> None:
        """As `batch.Network` says."""
        for layer in self._layers:
            for cache in (layer.keys, layer.values):
                if cache is not None:
                    cache[[slot, other], :, :num_tokens] = cache[[other, slot], :, :num_tokens]

    @torch.inference_mode()
    def keep(self, slot: int, start: int, nodes: Sequence[int]) -> None:
        """As `batch.Network` says."""
        columns = [start + node for node in nodes]
        for layer in self._layers:
            for cache in (layer.keys, layer.values):
                cache[slot, :, start : start + len(nodes)] = cache[slot, :, columns]


class RowNetwork:
    """A module that reads one row at a time, with whatever cache it brings. Reads trees only if they are
    chains."""

    branches = False
    shows_states = False
    states: Tensor | None = None

    def __init__(self, model: LocalModel, *, slots: int, positions: int) -> None:
        self.model, self.slots, self.positions = model, slots, positions
        self._texts: list[list[int]] = [[] for _ in range(slots)]
        self._caches: list[Any] = [None] * slots

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
        assert trees is None or all(map(is_chain, trees))
        parts, states = [], []
        for index, (row, slot, start) in enumerate(zip(rows, slots, starts, strict=True)):
            held = len(trees[index]) - len(row) if trees else 0
            output = self._append(slot, start + held, row)
            wanted = slice(-len(row) if every else -1, None)
            parts.append(output.logits[0, wanted])
            if self.shows_states:
                states.append(output.hidden_states[-1][0, wanted])
        if self.shows_states:
            self.states = torch.cat(states).float()
        return torch.cat(parts).float()

    def swap(self, slot: int, other: int, num_tokens: int) -> None:
        """As `batch.Network` says."""
        for held in (self._texts, self._caches):
            held[slot], held[other] = held[other], held[slot]

    def keep(self, slot: int, start: int, nodes: Sequence[int]) -> None:
        """As `batch.Network` says: a chain lies where it belongs."""

    def _append(self, slot: int, start: int, row: Sequence[int]) -> Any:
        text, cache = self._texts[slot], self._caches[slot]
        if cache is None or start != len(
            text
        ):  # begun, cut back, or a module without a cache: from the start
            text, cache, unread = text[:start], None, [*text[:start], *row]
        else:
            unread = list(row)
        with self.model.autocast():
            output = self.model.module(
                input_ids=torch.tensor([unread], device=self.model.device),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=self.shows_states,
            )
        self._texts[slot] = [*text, *row]
        self._caches[slot] = getattr(output, "past_key_values", None)
        return output
