"""Which tokens of a vocabulary begin with the same bytes: in the order of their bytes they are neighbours.

Knows bytes only, and no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from consort.types import BoolArray, IntArray


@dataclass(frozen=True, eq=False)
class Beginnings:
    """Tokens that begin with the first `length` bytes of a token have the ranks from `first` to before
    `first + count` at the place `offsets[token] + length`.
    """

    ranks: IntArray  # [tokens + 1]: of each token in the order of bytes; -1 for ids beyond the vocabulary
    offsets: IntArray  # [tokens + 1]
    first: IntArray
    count: np.ndarray[tuple[int], np.dtype[np.uint32]]

    @staticmethod
    def of(token_bytes: Sequence[bytes | None]) -> Beginnings:
        """Made in one pass over the bytes: the first of all tokens, then the second, and so on."""
        pieces = [piece or b"" for piece in token_bytes]
        order = np.array(sorted(range(len(pieces)), key=pieces.__getitem__), np.int64)
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        starts, offsets = (np.append(0, np.cumsum(lengths + extra)).astype(np.int32) for extra in (0, 1))
        text = np.frombuffer(b"".join(pieces), np.uint8)
        first, count = np.zeros(int(offsets[-1]) + 1, np.int32), np.zeros(int(offsets[-1]) + 1, np.uint32)
        rank, alike = np.arange(len(order)), np.ones(len(order), bool)
        for length in range(1, int(lengths.max(initial=0)) + 1):
            # the tokens of at least this length, and whether each still begins like the one before it
            long = lengths[order[rank]] >= length
            rank, alike = rank[long], alike[long]
            byte = text[starts[order[rank]] + length - 1]
            alike[1:] &= (byte[1:] == byte[:-1]) & (np.diff(rank) == 1)
            alike[0] = False
            begins = np.flatnonzero(~alike)
            group = np.cumsum(~alike) - 1
            places = offsets[order[rank]] + length
            first[places] = rank[begins][group]
            count[places] = np.diff(np.append(begins, len(rank)))[group]
        ranks = np.full(len(order) + 1, -1, np.int32)
        ranks[order] = np.arange(len(order))
        return Beginnings(ranks, offsets, first, count)

    def alike(self, ids_QK: IntArray, token_Q: IntArray, bytes_Q: IntArray) -> BoolArray:
        """Which tokens begin with the first `bytes_Q` bytes (one at least) of the token of their row."""
        place_Q = self.offsets[token_Q] + bytes_Q
        rank_QK = self.ranks.take(ids_QK, mode="clip")
        rank_QK -= self.first.take(place_Q, mode="clip")[:, None]
        alike_QK: BoolArray = rank_QK.view(np.uint32) < self.count.take(place_Q, mode="clip")[:, None]
        return alike_QK
