"""Where the tokens of one pass stand: in the cache, in their texts, and what each of them sees.

Texts are rows that grow at their end. A tree of drafts grows after a text's end as well, but its branches
stand side by side: a node sees the text, its ancestors and itself (SpecInfer, arXiv 2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consort.models.drafts import depths


@dataclass(frozen=True, slots=True)
class Layout:
    """B rows of T tokens, of which short ones are padded; L columns of the cache are looked at."""

    columns_BT: Tensor  # of the cache, where each token is stored
    positions_BT: Tensor  # in its text
    seen_BTL: Tensor  # bool
    column_positions_BL: Tensor  # in the text, of what a column holds
    filled: int  # L


def tree_layout(
    trees: Sequence[Sequence[int]],
    *,
    starts: Sequence[int],
    lengths: Sequence[int],
    end: int,
    device: torch.device,
) -> Layout:
    """Rows whose last tokens are trees. `trees` are all nodes' parents in each row; the last `lengths` of
    them are read now, the others are in the cache already. `starts` are the texts' ends, from which nodes lie
    side by side. What pads a row goes to the column `end`, which nobody reads."""
    width, filled = max(lengths), min(end, max(s + len(t) for s, t in zip(starts, trees, strict=True)))
    shape = (len(trees), width)
    columns_BT = np.full(shape, end)
    positions_BT = np.zeros(shape, np.int64)
    seen_BTL = np.zeros((*shape, filled), bool)
    seen_BTL[:, :, 0] = True  # what pads a row must see something
    column_positions_BL = np.tile(np.arange(filled), (len(trees), 1))
    for row, (parents, start, length) in enumerate(zip(trees, starts, lengths, strict=True)):
        deep = np.array(depths(parents))
        column_positions_BL[row, start : start + len(deep)] = start + deep
        columns_BT[row, :length] = start + np.arange(len(parents) - length, len(parents))
        positions_BT[row, :length] = start + deep[-length:]
        seen_BTL[row, :length, :start] = True
        seen_BTL[row, :length, start : start + len(deep)] = ancestors(parents)[-length:]
    return Layout(
        torch.from_numpy(columns_BT).to(device),
        torch.from_numpy(positions_BT).to(device),
        torch.from_numpy(seen_BTL).to(device),
        torch.from_numpy(column_positions_BL).to(device),
        filled,
    )


def ancestors(parents: Sequence[int]) -> NDArray[np.bool_]:
    """[nodes, nodes]: whether a node is the other's ancestor, or itself."""
    above = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            above[node] |= above[parent]
    return above
