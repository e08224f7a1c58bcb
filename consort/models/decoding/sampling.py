"""Choosing the next token: the likeliest, or drawn with noise that seed, position and token alone decide.

The draw is argmax(log p + g) with Gumbel noise g (shared-randomness coupling, arXiv 2408.07978): the same
seed gives the same answer whatever else is in the batch, and two models that agree on p choose alike. Noise
hangs on a token's bytes, not on its id, so that it means the same to another tokenizer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consort.align import Vocabulary

Keys: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one answer's tokens are chosen; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0  # the fewest tokens that hold this much probability may be drawn
    seed: int = 0


GREEDY = Sampling()


def choose(
    logits_BV: Tensor, samplings: Sequence[Sampling], positions: Sequence[int], keys: Keys
) -> list[int]:
    """One token a row; `positions` count the tokens of each answer from 0."""
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    tokens: list[int] = logits_BV.argmax(-1).tolist()
    if drawn:
        scores_RV = coupled(
            logits_BV[drawn], [samplings[row] for row in drawn], [positions[row] for row in drawn], keys
        )
        for row, token in zip(drawn, scores_RV.argmax(-1).tolist(), strict=True):
            tokens[row] = token
    return tokens


def coupled(logits_RV: Tensor, samplings: Sequence[Sampling], positions: Sequence[int], keys: Keys) -> Tensor:
    """Scores [R, V] of which the greatest is the token drawn, for rows whose temperature is above 0."""
    temperatures = torch.tensor([[sampling.temperature] for sampling in samplings], dtype=torch.float64)
    scores_RV = logits_RV.double().cpu() / temperatures
    top_p = torch.tensor([[sampling.top_p] for sampling in samplings], dtype=torch.float64)
    if bool((top_p < 1).any()):
        scores_RV = _nucleus(scores_RV, top_p)
    draws = [(sampling.seed, position) for sampling, position in zip(samplings, positions, strict=True)]
    return scores_RV + torch.from_numpy(gumbel(draws, keys))


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


def _mix(bits: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): each bit in decides each bit out."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _nucleus(scores_RV: Tensor, top_p: Tensor) -> Tensor:
    """Scores with those outside the nucleus (arXiv 1904.09751) taken out; the likeliest always stays."""
    ordered_RV, places_RV = scores_RV.sort(stable=True, dim=-1, descending=True)
    probabilities_RV = ordered_RV.softmax(-1)
    before_RV = probabilities_RV.cumsum(-1) - probabilities_RV
    outside_RV = torch.zeros_like(scores_RV, dtype=torch.bool).scatter(-1, places_RV, before_RV >= top_p)
    outside_RV.scatter_(-1, places_RV[:, :1], False)
    return scores_RV.masked_fill(outside_RV, -torch.inf)
