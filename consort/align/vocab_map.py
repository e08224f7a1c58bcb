"""From one vocabulary's tokens to another's: the first token of its own encoding of the same bytes.

Never the longest matching token: BPE does not cut by longest match, and a student taught so stops writing
its own words. What cannot be decoded, or would be cut elsewhere, maps to TAIL. Knows no text and no
position.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from consort.files import whole_file

if TYPE_CHECKING:
    from consort.align.vocabulary import Vocabulary
    from consort.types import BoolArray, IntArray

TAIL = -1  # the target has no token for it: the mass joins `rest`
_UNKNOWN = -2  # not looked up yet
_FORMAT = 1  # of the cached files


@dataclass(frozen=True, eq=False)
class VocabMap:
    """Where each token of `source` goes in `target`: `target_ids[id]`, TAIL for nowhere.

    One more entry, TAIL, stands for all ids beyond the source (a head may be padded).
    `remainders` answers for the end of a token whose beginning was read; it learns as it is asked.
    """

    source: Vocabulary = field(repr=False)
    target: Vocabulary = field(repr=False)
    target_ids: IntArray
    lengths: IntArray = field(repr=False)  # bytes of each source token, 0 for ids beyond the source
    opening_spaces: IntArray = field(repr=False)  # 1 for a source token that begins with a space
    _known: IntArray = field(repr=False)  # at a beginning's place, once without and once with a space before

    def first_tokens(self, ids: IntArray) -> IntArray:
        """First target token of each of `ids`, which may be any numbers from 0 on."""
        # of the ways to look up, "wrap" is the quickest; nothing wraps where nothing is beyond the source
        beyond = ids.max(initial=0) >= len(self.target_ids)
        found: IntArray = self.target_ids.take(ids, mode="clip" if beyond else "wrap")
        return found

    def remainders(self, ids: IntArray, bytes_read: IntArray, added: IntArray) -> IntArray:
        """First target token of what is left of each token after `bytes_read`, behind a space where `added`
        is 1.
        """
        size, offsets = len(self._known) // 2, self.source.beginnings.offsets
        places = offsets.take(ids, mode="clip")
        places += bytes_read + (added > 0) * np.int32(size)
        found: IntArray = self._known.take(places, mode="clip")
        if found.min(initial=TAIL) == _UNKNOWN:
            wanted = np.unique(places[found == _UNKNOWN])
            tokens = np.searchsorted(offsets, wanted % size, side="right") - 1
            self._known[wanted] = self._look_up(tokens, wanted % size - offsets[tokens], wanted >= size)
            found = self._known.take(places)
        return found

    def _look_up(self, ids: IntArray, bytes_read: IntArray, spaced: BoolArray) -> IntArray:
        rests = [
            (self.source.token_bytes[index] or b"")[read:]
            for index, read in zip(ids.tolist(), bytes_read.tolist(), strict=True)
        ]
        found = own_first_tokens(
            [b" " * space + rest for space, rest in zip(spaced.tolist(), rests, strict=True)], self.target
        )
        # a target that writes no space before this text (a comma after a bracket) is asked for the text alone
        again = np.flatnonzero((found == TAIL) & spaced)
        found[again] = own_first_tokens([rests[index] for index in again], self.target)
        return found


def vocab_map(source: Vocabulary, target: Vocabulary) -> VocabMap:
    """The map from `source` to `target`: from memory, from disk, or made now.

    Equal vocabularies map to themselves, the end of text to the end of text. Files are kept under
    $CONSORT_CACHE (~/.cache/consort).
    """
    return _cached_map(_Pair(source, target))


def own_first_tokens(texts: Sequence[bytes], target: Vocabulary) -> IntArray:
    """First token of the target's own encoding of each text, TAIL where it does not begin the text."""
    found = np.full(len(texts), TAIL, np.int32)
    readable = [(index, text) for index, raw in enumerate(texts) if (text := _decoded(raw))]
    if target.drops_space:  # it writes " word" only as the first word of a text, so this is asked first
        words = [(index, text) for index, text in readable if text.startswith(" ")]
        firsts = target.first_tokens([text for _, text in words], beginning=True)
        for (index, text), first in zip(words, firsts, strict=True):
            if first is not None and _begins(texts[index], text, first, target):
                found[index] = first
        readable = [(index, text) for index, text in readable if found[index] == TAIL]
    firsts = target.first_tokens([text for _, text in readable])
    refused = []
    for (index, text), first in zip(readable, firsts, strict=True):
        if first is not None and _begins(texts[index], text, first, target):
            found[index] = first
        else:
            refused.append((index, text, first))
    # asked again as the beginning of a text, where the target reads " word" as its first word
    beginnings = target.first_tokens([text for _, text, _ in refused], beginning=True)
    for (index, text, inside), first in zip(refused, beginnings, strict=True):
        # the same token twice: the target writes it with or without a space before it, like a comma
        if (
            first is not None
            and target.token_bytes[first]
            and (first == inside or _begins(texts[index], text, first, target))
        ):
            found[index] = first
    return found


def _begins(raw: bytes, text: str, first: int, target: Vocabulary) -> bool:
    piece = target.token_bytes[first] or text.encode() + b"."  # no text begins with an unknown token
    return raw.startswith(piece) or target.normalise(text).encode().startswith(piece)


def _decoded(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True)
class _Pair:
    """Two vocabularies, compared by what is in them."""

    source: Vocabulary = field(compare=False)
    target: Vocabulary = field(compare=False)
    hashes: tuple[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hashes", (self.source.sha256, self.target.sha256))


@lru_cache(maxsize=64)
def _cached_map(pair: _Pair) -> VocabMap:
    source, target = pair.source, pair.target
    path = _cache_folder() / f"{source.sha256[:24]}-{target.sha256[:24]}-{_FORMAT}.npy"
    target_ids = _load(path, size=source.size + 1, target_size=target.size)
    if target_ids is None:
        target_ids = _made(source, target)
        _store(path, target_ids)
    lengths, offsets = source.lengths, source.beginnings.offsets
    known = np.full((2, int(offsets[-1]) + 1), _UNKNOWN, np.int32)
    known[:, offsets + lengths] = TAIL  # nothing is left of the token
    known[0, offsets] = target_ids
    # the end of text, with a space before it or none
    known[1, offsets[lengths == 0]] = target_ids[lengths == 0]
    spaces = np.array([*((piece or b"").startswith(b" ") for piece in source.token_bytes), False], np.int32)
    return VocabMap(source, target, target_ids, lengths, spaces, known.reshape(-1))


def _made(source: Vocabulary, target: Vocabulary) -> IntArray:
    if source.sha256 == target.sha256:
        return np.append(np.arange(source.size, dtype=np.int32), np.int32(TAIL))
    found = own_first_tokens([piece or b"" for piece in source.token_bytes] + [b""], target)
    if source.eos_id is not None and target.eos_id is not None:
        found[source.eos_id] = target.eos_id
    return found


def _cache_folder() -> Path:
    chosen = os.environ.get("CONSORT_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "consort") / "vocab_maps"


def _load(path: Path, *, size: int, target_size: int) -> IntArray | None:
    try:
        found: IntArray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # absent, or cut short by a crash
        return None
    fits = (
        found.shape == (size,)
        and found.dtype == np.int32
        and found.min() >= TAIL
        and found.max() < target_size
    )
    return found if fits else None


def _store(path: Path, target_ids: IntArray) -> None:
    """Whole or not at all; a cache that cannot be written costs time, not the run."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, contended=True) as file:
            np.save(file, target_ids, allow_pickle=False)
