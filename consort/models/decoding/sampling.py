"""Choosing the next token: the likeliest, or drawn with noise that seed, position and token alone decide.

The draw is argmax(log p + g) with Gumbel noise g (shared-randomness coupling, arXiv 2408.07978): the same
seed gives the same answer whatever else is in the batch, and two models that agree on p choose alike. Noise
hangs on a token's bytes, not on its id, so that it means the same to another tokenizer.

Computed in numpy for whoever made the logits: llama.cpp's side of a consort has no torch.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.align import Vocabulary
from consort.types import Request, TopK

if TYPE_CHECKING:
    from torch import Tensor

Keys: TypeAlias = NDArray[np.uint64]
Scores: TypeAlias = NDArray[np.float64]
Logits: TypeAlias = "NDArray[np.float32] | Tensor"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one answer's tokens are chosen; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0  # the fewest tokens that hold this much probability may be drawn
    seed: int = 0

    @classmethod
    def of(cls, request: Request) -> Sampling:
        """As the request says; without a seed, by one that nobody knows."""
        seed = secrets.randbits(63) if request.seed is None else request.seed
        return cls(request.temperature, request.top_p, seed)


GREEDY = Sampling()


def choose(
    logits_BV: Logits, samplings: Sequence[Sampling], positions: Sequence[int], keys: Keys
) -> list[int]:
    """One token a row; `positions` count the tokens of each answer from 0."""
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    # numpy compares with several numbers at once, torch's processor kernel does not; both take the first
    here = not isinstance(logits_BV, np.ndarray) and logits_BV.is_cpu
    tokens: list[int] = (np.asarray(logits_BV) if here else logits_BV).argmax(-1).tolist()
    if drawn:
        scores_RV = coupled(
            logits_BV[drawn], [samplings[row] for row in drawn], [positions[row] for row in drawn], keys
        )
        for row, token in zip(drawn, scores_RV.argmax(-1).tolist(), strict=True):
            tokens[row] = token
    return tokens


def coupled(logits_RV: Logits, samplings: Sequence[Sampling], positions: Sequence[int], keys: Keys) -> Scores:
    """Scores [R, V] of which the greatest is the token drawn, for rows whose temperature is above 0."""
    scores_RV: Scores = float64(logits_RV) / np.array([[sampling.temperature] for sampling in samplings])
    top_p = np.array([[sampling.top_p] for sampling in samplings])
    if bool((top_p < 1).any()):
        scores_RV = _nucleus(scores_RV, top_p)
    draws = [(sampling.seed, position) for sampling, position in zip(samplings, positions, strict=True)]
    scores_RV += gumbel(draws, keys)
    return scores_RV


def pick(distribution: TopK, sampling: Sampling, position: int, keys: Keys) -> int:
    """One token of those listed: where that is the whole vocabulary, the one that `choose` takes."""
    order = np.argsort(distribution.ids)  # among equals the smallest id is taken
    ids, scores = distribution.ids[order], distribution.logprobs[order].astype(np.float64)
    if sampling.temperature > 0:
        scores = scores / sampling.temperature
        if sampling.top_p < 1:
            scores = _nucleus(scores[None], np.array([[sampling.top_p]]))[0]
        scores = scores + gumbel([(sampling.seed, position)], keys[ids])[0]
    return int(ids[int(scores.argmax())])


def float64(logits: Logits) -> Scores:
    """On the processor, whichever library holds them."""
    return np.asarray(logits if isinstance(logits, np.ndarray) else logits.double().cpu(), np.float64)


def log_softmax(scores: Scores) -> Scores:
    """Log-probabilities in nats along the last axis."""
    lower = scores - scores.max(-1, keepdims=True)
    logp: Scores = lower - np.log(np.exp(lower).sum(-1, keepdims=True))
    return logp


def likeliest(logp_V: Scores, count: int) -> NDArray[np.intp]:
    """Ids of the `count` highest, best first."""
    count = min(count, len(logp_V))
    ids_K = np.argpartition(-logp_V, count - 1)[:count] if count else np.empty(0, np.intp)
    return ids_K[np.lexsort((ids_K, -logp_V[ids_K]))]


def gumbel(draws: Sequence[tuple[int, int]], keys: Keys) -> Scores:
    """Standard Gumbel noise [draws, V], one row for each (seed, position)."""
    begin = np.array([[seed & (2**64 - 1), position] for seed, position in draws], np.uint64)
    mixed = _mix(_mix(begin[:, :1]) ^ begin[:, 1:])
    bits = _mix(_mix(mixed ^ keys))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: Scores = -np.log(-np.log(uniform))
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


def _nucleus(scores_RV: Scores, top_p: Scores) -> Scores:
    """Scores with those outside the nucleus (arXiv 1904.09751) taken out; the likeliest always stays."""
    places_RV = np.argsort(-scores_RV, axis=-1, kind="stable")
    ordered_RV = np.take_along_axis(scores_RV, places_RV, -1)
    probabilities_RV = np.exp(log_softmax(ordered_RV))
    outside_RV = probabilities_RV.cumsum(-1) - probabilities_RV >= top_p
    outside_RV[:, 0] = False
    ordered_RV[outside_RV] = -np.inf
    kept_RV = np.empty_like(scores_RV)
    np.put_along_axis(kept_RV, places_RV, ordered_RV, -1)
    return kept_RV
