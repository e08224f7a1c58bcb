"""Hashed n-grams of a text: byte n-grams inside words, and single words with their pairs.

The hashing trick (Weinberger et al., arXiv 0902.2206) without a vocabulary: nothing to download, nothing of a
training text is stored, and an unknown word is never an error. Byte n-grams are hashed by whole-array
arithmetic, because a loop over them costs more than all else in scoring. Does not weigh n-grams by how rare
they are: that is learned, in `gain_model`.
"""

from __future__ import annotations

import re
import zlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Buckets: TypeAlias = NDArray[np.int64]
NUM_BUCKETS = 1 << 16  # of each of the two kinds; at 1,500 prompts about one bucket in five is taken twice
BYTE_LENGTHS = (2, 3, 4, 5)
_MAX_BYTES = 8000  # a longer text is cut in the middle: scoring stays under a millisecond
_WORD = re.compile(r"[^\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: its top bits mix well (Knuth 6.4)
_SPACE = 32


def byte_buckets(text: str) -> tuple[Buckets, NDArray[np.float64]]:
    """Buckets of the byte n-grams that lie inside one word (with the space before and after it), ascending,
    and how often each occurs."""
    spaced = f" {' '.join(_middle_cut(text).lower().split())} ".encode()
    bytes_N = np.frombuffer(spaced, dtype=np.uint8).astype(np.uint64)
    is_space = bytes_N == _SPACE
    spaces_before = np.concatenate([[0], np.cumsum(is_space)])
    found = []
    for length in BYTE_LENGTHS:
        count = bytes_N.size - length + 1
        if count < 1:
            break
        code = np.full(count, length, dtype=np.uint64)
        for offset in range(length):
            code = code * np.uint64(257) + bytes_N[offset : offset + count]
        # a space may open or close the n-gram, but not stand inside it
        inside = spaces_before[length - 1 : length - 1 + count] - spaces_before[1 : count + 1]
        found.append(code[inside == 0])
    codes = np.concatenate(found) if found else np.empty(0, dtype=np.uint64)
    return _counted((codes * _MULTIPLIER >> np.uint64(48)).astype(np.int64))


def word_buckets(text: str) -> tuple[Buckets, NDArray[np.float64]]:
    """Buckets of the words and of the pairs of neighbouring words, ascending, and how often each occurs."""
    words = [word.encode() for word in _WORD.findall(_middle_cut(text).lower())]
    codes = [zlib.crc32(word) for word in words]
    # crc32 continues from a first word's sum, so a pair costs no new string
    codes += [zlib.crc32(b" " + second, code) for code, second in zip(codes, words[1:], strict=False)]
    return _counted(np.asarray(codes, dtype=np.int64) % NUM_BUCKETS)


def _counted(buckets: Buckets) -> tuple[Buckets, NDArray[np.float64]]:
    unique, counts = np.unique(buckets, return_counts=True)
    return unique, counts.astype(np.float64)


def _middle_cut(text: str) -> str:
    return text if len(text) <= _MAX_BYTES else text[: _MAX_BYTES // 2] + " " + text[-_MAX_BYTES // 2 :]
