"""Noise that seed, position and token alone decide, and the choice it makes from a distribution cut to K.

The draw is argmax(log p + g) with Gumbel noise g (shared-randomness coupling, arXiv 2408.07978): the same
seed gives the same answer whatever else is in the batch, and two models that agree on p choose alike. Noise
hangs on a token's bytes, not on its id, so that it means the same to another tokenizer. Arrays only:
`sampling` chooses from tensors.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.align import Vocabulary
from consort.types import TopK

Keys: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one answer's tokens are chosen; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0  # the fewest tokens that hold this much probability may be drawn
    seed: int = 0


GREEDY = Sampling()


def pick(distribution: TopK, sampling: Sampling, position: int, keys: Keys) -> int:
    """One token of those listed: where that is the whole vocabulary, the one that `sampling.choose` takes.
    `position` counts the answer's tokens from 0."""
    order = np.argsort(distribution.ids)  # among equals the smallest id is taken
    ids, scores = distribution.ids[order], distribution.logprobs[order].astype(np.float64)
    if sampling.temperature > 0:
        scores = scores / sampling.temperature
        if sampling.top_p < 1:
            scores[~_in_nucleus(scores, sampling.top_p)] = -np.inf
        scores += gumbel([(sampling.seed, position)], keys[ids])[0]
    return int(ids[int(scores.argmax())])


def gumbel(draws: Sequence[tuple[int, int]], keys: Keys) -> NDArray[np.float64]:
    """Standard Gumbel noise [draws, V], one row for each (seed, position)."""
    begin = np.array([[seed & (2**64 - 1), position] for seed, position in draws], np.uint64)
    mixed = _mix(_mix(begin[:, :1]) ^ begin[:, 1:])
    bits = _mix(_mix(mixed ^ keys))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def apart(seed: int, index: int) -> int:
    """A seed of its own for one of several rows that share a seed."""
    numbers = np.array([[seed & (2**64 - 1), index]], np.uint64)
    return int(_mix(_mix(numbers[:, :1]) ^ numbers[:, 1:])[0, 0])


@lru_cache(maxsize=16)
def token_keys(vocabulary: Vocabulary) -> Keys:
    """A number for each token, from its bytes; tokens of the same bytes are told apart by their order."""
    seen: Counter[bytes] = Counter()
    keys = np.empty(vocabulary.size, np.uint64)
    for index, piece in enumerate(vocabulary.token_bytes):
        ending = index == vocabulary.eos_id
        name = b"end" if ending else b"special" if piece is None else b"text:" + piece
        digest = hashlib.blake2b(name + b"\0%d" % seen[name], digest_size=8).digest()
        keys[index] = int.from_bytes(digest, "little")
        seen[name] += 1
    return keys


def _in_nucleus(scores: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """Which tokens are in the nucleus (arXiv 1904.09751); the likeliest always is."""
    order = np.argsort(-scores, kind="stable")
    probabilities = np.exp(scores[order] - scores[order[0]])
    probabilities /= probabilities.sum()
    inside = np.zeros(len(scores), bool)
    inside[order] = probabilities.cumsum() - probabilities < top_p
    inside[order[0]] = True
    return inside


def _mix(bits: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): each bit in decides each bit out."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
