"""How alike two short texts are, without a model: byte n-grams, and guards that no n-gram sees.

"not", "17" and "17.5" hardly move a vector of n-grams and turn the meaning: texts that differ in their
negations or numbers are not alike at all. Does not know synonyms; the bound that a threshold must keep is
measured (`inference.cache.measured_threshold`), not believed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consort.inference.ngrams import NUM_BUCKETS, Buckets, byte_buckets

NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
NEGATION = re.compile(
    r"\b(?:not|no|never|none|nothing|without|neither|nor|cannot|un(?:able|less)|except"
    r"|nicht|kein\w*|nie|ohne|pas|jamais|sans|aucun\w*|nunca|sin|ningun\w*|non|mai|senza)\b|n['’]t\b"
)


@dataclass(frozen=True, slots=True)
class Grams:
    """A text's byte n-grams as a vector of length 1: its few buckets that are not 0."""

    buckets: Buckets
    weights: NDArray[np.float64]


def likeness(first: str, second: str) -> float:
    """Between 0 and 1; 1 for texts equal up to case, spaces and final marks, 0 where a guard objects."""
    a, b = plain(first), plain(second)
    if a == b:
        return 1.0
    if guards(a) != guards(b):
        return 0.0
    return min(0.999, float(cosines(grams(a), [grams(b)])[0]))


def plain(text: str) -> str:
    """The text without what does not change its meaning."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", folded).strip(" .!?\n\"'")


def guards(text: str) -> tuple[tuple[str, ...], int]:
    """Numbers in order, and how many negations: alike texts agree in both."""
    return tuple(NUMBER.findall(text)), len(NEGATION.findall(text))


def grams(text: str) -> Grams:
    """How often each n-gram of a text occurs, in proportion."""
    buckets, counts = byte_buckets(text)
    return Grams(buckets, counts / (float(np.linalg.norm(counts)) or 1.0))


def cosines(one: Grams, others: Sequence[Grams]) -> NDArray[np.float64]:
    """Of one text with each of the others, no guard asked: 1 for the same words in any order."""
    if not others:
        return np.empty(0)
    dense = np.zeros(NUM_BUCKETS)
    dense[one.buckets] = one.weights
    # all others at once: a product for each of hundreds costs more than one long one
    products = dense[np.concatenate([other.buckets for other in others])]
    products *= np.concatenate([other.weights for other in others])
    owners = np.repeat(np.arange(len(others)), [other.buckets.size for other in others])
    return np.minimum(1.0, np.bincount(owners, weights=products, minlength=len(others)))
