"""A draft in the making: level by level, the paths a larger model will most likely choose.

The drafter scores tokens with the very noise that the answer is drawn with, so its best token is the model's
own choice wherever the two agree on the distribution. Where they are close, several are followed: a tree of
the likeliest paths, grown as in EAGLE-2 (arXiv 2406.16858), each level one pass. Computes no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from consort.models.decoding.sampling import (
    Keys,
    Logits,
    Sampling,
    Scores,
    coupled,
    float64,
    likeliest,
    log_softmax,
)
from consort.types import Draft, DraftShape


@dataclass(slots=True)
class Growing:
    """A draft that grows after a text. `position_of` says at which position of the answer a path's next token
    stands, which decides its noise; `ends` are the tokens that end an answer."""

    shape: DraftShape
    sampling: Sampling
    position_of: Callable[[Sequence[int]], int]
    keys: Keys
    ends: frozenset[int]
    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)  # that the answer goes along the path to a node
    level: list[int] = field(default_factory=lambda: [-1])  # the nodes to be read next
    levels: int = 0
    stopped: bool = False  # nobody waits for more

    def grow(self, logits_LV: Logits) -> bool:
        """Take the distributions after each node of the level; whether another level is wanted."""
        scores_LV = self._scores(logits_LV)
        width = min(self.shape.width, scores_LV.shape[-1])
        found: list[tuple[float, int, int]] = []  # (chance, parent, token)
        for node, logp_V in zip(self.level, log_softmax(scores_LV / self.shape.spread), strict=True):
            if node < 0 or self.ids[node] not in self.ends:
                above = self.chances[node] if node >= 0 else 1.0
                tokens = likeliest(logp_V, width)
                chances = above * np.exp(logp_V[tokens])
                found += zip(chances.tolist(), repeat(node), tokens.tolist(), strict=False)
        found.sort(key=lambda one: -one[0])
        begin = len(self.ids)
        for chance, node, token in found[:width]:
            if chance >= self.shape.least:
                self.ids.append(token)
                self.parents.append(node)
                self.chances.append(chance)
        self.level = list(range(begin, len(self.ids)))
        self.levels += 1
        return bool(self.level) and self.levels < self.shape.depth and not self.stopped

    def path(self, node: int) -> list[int]:
        """Tokens from the root to a node."""
        tokens: list[int] = []
        while node >= 0:
            tokens.append(self.ids[node])
            node = self.parents[node]
        return tokens[::-1]

    def draft(self) -> tuple[Draft, tuple[float, ...]]:
        """The likeliest nodes, each with its chance; a node's parent is never less likely than it."""
        order = sorted(range(len(self.ids)), key=lambda node: -self.chances[node])[: self.shape.nodes]
        kept = sorted(order)
        places = {node: place for place, node in enumerate(kept)} | {-1: -1}
        return (
            Draft(tuple(self.ids[node] for node in kept), tuple(places[self.parents[node]] for node in kept)),
            tuple(self.chances[node] for node in kept),
        )

    def _scores(self, logits_LV: Logits) -> Scores:
        if self.sampling.temperature <= 0:
            return float64(logits_LV)
        positions = [self.position_of(self.path(node)) for node in self.level]
        return coupled(logits_LV, [self.sampling] * len(positions), positions, self.keys)
