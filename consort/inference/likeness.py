"""How alike two short texts are, without a model: character trigrams, and guards that no trigram sees.

"not", "17" and "17.5" hardly move a vector of trigrams and turn the meaning: texts that differ in their
negations or numbers are not alike at all. Does not know synonyms; the bound that a threshold must keep is
measured (`inference.cache.measured_threshold`), not believed.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from consort.types import FloatArray

DIMENSIONS = 1024
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
NEGATION = re.compile(
    r"\b(?:not|no|never|none|nothing|without|neither|nor|cannot|un(?:able|less)|except"
    r"|nicht|kein\w*|nie|ohne|pas|jamais|sans|aucun\w*|nunca|sin|ningun\w*|non|mai|senza)\b|n['’]t\b"
)


def likeness(first: str, second: str) -> float:
    """Between 0 and 1; 1 for texts equal up to case, spaces and final marks, 0 where a guard objects."""
    a, b = plain(first), plain(second)
    if a == b:
        return 1.0
    if guards(a) != guards(b):
        return 0.0
    return min(0.999, float(np.dot(trigrams(a), trigrams(b))))


def plain(text: str) -> str:
    """The text without what does not change its meaning."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", folded).strip(" .!?\n\"'")


def guards(text: str) -> tuple[tuple[str, ...], int]:
    """Numbers in order, and how many negations: alike texts agree in both."""
    return tuple(NUMBER.findall(text)), len(NEGATION.findall(text))


def trigrams(text: str) -> FloatArray:
    """Counts of hashed character trigrams, as a unit vector."""
    data = f"  {text} ".encode()
    counts = np.zeros(DIMENSIONS, dtype=np.float32)
    for start in range(len(data) - 2):
        counts[zlib.crc32(data[start : start + 3]) % DIMENSIONS] += 1
    unit: FloatArray = counts / (float(np.linalg.norm(counts)) or 1.0)
    return unit
