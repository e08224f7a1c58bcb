"""Rows of different lengths through a model, those of like length together: padding costs as much as text.

Real batches are a quarter to two thirds padding. Does not pack rows into one: that needs attention kernels
which CPUs do not have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from consort.models.local import LocalModel
from consort.types import IntArray

_WORTH = 16  # a further pass must save this part of the positions; on a CPU it costs less (docs/LOG.md)


def states_of(model: LocalModel, ids: Sequence[IntArray]) -> tuple[Tensor, IntArray]:
    """Hidden states [M, D] of all rows in one line, padding among them, and where in it each row begins."""
    lengths = np.array([len(row_ids) for row_ids in ids])
    order = np.argsort(lengths, kind="stable")
    begins, states, positions = np.zeros(len(ids), dtype=np.int64), [], 0
    for group in _alike(order, lengths, least_saved=max(1, lengths.max() * len(ids) // _WORTH)):
        ids_BT = np.full((len(group), lengths[group].max()), model.eos_id)
        for place, number in enumerate(group):
            ids_BT[place, : lengths[number]] = ids[number]
        begins[group] = positions + ids_BT.shape[1] * np.arange(len(group))
        positions += ids_BT.size
        states.append(model.hidden(torch.from_numpy(ids_BT).to(model.device)).flatten(0, 1))
    return torch.cat(states), begins


def _alike(order: IntArray, lengths: IntArray, *, least_saved: int) -> list[IntArray]:
    """Rows, shortest first, in groups; each cut saves at least so many positions."""
    sorted_lengths = lengths[order]
    saved = np.arange(1, len(order)) * (sorted_lengths[-1] - sorted_lengths[:-1])
    if saved.max(initial=0) < least_saved:
        return [order]
    cut = 1 + int(saved.argmax())
    parts = (order[:cut], order[cut:])
    return [group for part in parts for group in _alike(part, lengths, least_saved=least_saved)]
