"""What a model with a tokenizer of its own would say next, in the tokens of another that writes.

Its own tokens cut the text elsewhere, so what it thinks of one of the writer's tokens is the probability that
its text begins with the answer so far and that token's bytes, over the probability that it begins with the
answer so far. Such a probability is a sum over the places where the last of its tokens may have begun (the
cover of arXiv 2410.09303, cut off after a few), each a chain of its own tokens, for which it reads ahead and
takes back again. Weighed are the tokens that are likely to whoever has the writer's tokenizer, and the
writer's own first tokens of what this model finds likely; of them the longest that the text may begin with is
the one meant, as a tokenizer would cut it. The rest of the mass stays `rest`. Chooses no tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from consort.align import TAIL, VocabMap, Vocabulary
from consort.inference.blending import listed, log_probability
from consort.types import BoolArray, IntArray, Session, TopK

if TYPE_CHECKING:
    from consort.inference.following import Written

# measured on the demo consort (docs/LOG.md, "Mixture across tokenizers")
WEIGHED, LEAST = 12, 1e-3  # likeliest tokens of each distribution that are weighed, and how likely at least
OWN_WEIGHED, OWN_LEAST = 6, 1e-2  # and of its own
COVERED = 8  # places where the last of its tokens may have begun
_LAST_BYTES = b"\xff" * 8  # behind every text: no UTF-8 has such a byte
_WHITE = (b" ", b"\t", b"\n", b"\r")


class Across:
    """A follower (see `following`) with a tokenizer of its own, which holds its encoding of the answer."""

    def __init__(self, session: Session, first: TopK, *, mapping: VocabMap) -> None:
        self._session, self._map = session, mapping
        self._own, self._writer = mapping.source, mapping.target
        self._order = _in_order(self._own)
        # the session's ids, the distribution after each of them, and how likely it was to come so far
        self._held: list[int] = []
        self._rows = [first]
        self._chances = [0.0]
        self._text = b""
        self._ids: list[int] = []  # its own encoding of the text
        self._places = [0]  # where each begins, and where the last one ends

    def follow(self, written: Written) -> None:
        """Read the answer up to there."""
        self._text = written.text
        self._ids, self._places = self._encoded(written.text)
        self._read(self._ids)

    def heard(self, among: Sequence[TopK]) -> TopK | None:
        """What it would say next, where others would say `among`; None where it cannot tell. Reads ahead, and
        so waits for the model."""
        here = self._log_mass(self._ids, self._places, self._text)
        if not np.isfinite(here):
            return None  # the answer ends in what it never writes
        begun: dict[bytes, int] = {}
        for token in self._weighed(among):
            begun.setdefault(self._piece(token), token)
        begun.pop(b"", None)
        end = self._end_mass(here)
        cuts = sorted((*self._encoded_on(piece), piece) for piece in begun)  # so each branch is read once
        masses = {
            piece: float(np.exp(min(0.0, self._log_mass(ids, places, self._text + piece) - here)))
            for ids, places, piece in cuts
        }
        found = {begun[piece]: mass for piece, mass in _longest(masses).items()}
        if self._writer.eos_id is not None:
            found[self._writer.eos_id] = end
        if not any(found.values()):
            return None
        total = max(1.0, sum(found.values()))  # cut lists and other cuts of one text leave small errors
        return listed(np.array(list(found)), np.array(list(found.values())) / total)

    def close(self) -> None:
        """Release the session."""
        self._session.close()

    def _weighed(self, among: Sequence[TopK]) -> Iterator[int]:
        """The writer's tokens that are asked about."""
        for each in among:
            likely = np.flatnonzero(each.logprobs >= np.log(LEAST))[:WEIGHED]
            yield from each.ids[likely].tolist()
        opening = not self._text and self._writer.adds_space
        for place, read in self._begun(self._ids, self._places, self._text, behind=True):
            row, bytes_read = self._rows[place], np.int32(len(read))
            meant = np.flatnonzero(self._begins(row, read) & (row.logprobs >= np.log(OWN_LEAST)))
            ids = row.ids[meant[:OWN_WEIGHED]].astype(np.int32)
            yield from self._first_tokens(ids[self._map.lengths.take(ids) > bytes_read], bytes_read, opening)

    def _first_tokens(self, ids: IntArray, bytes_read: np.int32, opening: bool) -> Iterator[int]:
        """The writer's own first tokens of what is left of these; amid a character, its next byte."""
        found = self._map.remainders(ids, np.full_like(ids, bytes_read), np.full_like(ids, opening))
        bytes_alone = _byte_tokens(self._writer)
        for index, first in zip(ids.tolist(), found.tolist(), strict=True):
            rest = (self._own.token_bytes[index] or b"")[bytes_read : bytes_read + 1]
            if first != TAIL or rest in bytes_alone:
                yield first if first != TAIL else bytes_alone[rest]

    def _piece(self, token: int) -> bytes:
        piece = self._writer.token_bytes[token] or b""
        return piece.removeprefix(b" ") if not self._text and self._writer.adds_space else piece

    def _encoded(self, text: bytes) -> tuple[list[int], list[int]]:
        """Its own encoding, and where each token begins and the last one ends."""
        spans = self._own.spans(_whole_characters(text))
        ids, places = spans.ids.tolist(), [*spans.starts.tolist(), 0]
        places[-1] = int(spans.ends[-1]) if ids else 0
        return self._spelled(text, ids, places)

    def _spelled(self, text: bytes, ids: list[int], places: list[int]) -> tuple[list[int], list[int]]:
        """With the bytes of a character that is not whole yet, where it has tokens for them."""
        alone = _byte_tokens(self._own)
        rest = [text[place : place + 1] for place in range(places[-1], len(text))]
        if all(byte in alone for byte in rest):
            ids = [*ids, *(alone[byte] for byte in rest)]
            places = [*places, *range(places[-1] + 1, len(text) + 1)]
        return ids, places

    def _encoded_on(self, piece: bytes) -> tuple[list[int], list[int]]:
        """The same of the text and `piece`: new from the last word on, where that is enough."""
        text = self._text + piece
        whole = len(_whole_characters(text).encode())
        word = self._last_word()
        if word:
            kept, more = self._ids[:word], text[self._places[word] : whole]
            ids = self._own.encode_inside(more.decode())
            pieces = [self._own.token_bytes[index] or b"" for index in ids]
            if b"".join(pieces) == more:
                ends = np.cumsum([self._places[word], *map(len, pieces)])
                return self._spelled(text, kept + ids, self._places[:word] + ends.tolist())
        return self._encoded(text)

    def _last_word(self) -> int:
        """The last of its tokens that begins with white space behind something else; 0: none."""
        for index in range(len(self._ids) - 1, 0, -1):
            place = self._places[index]
            if self._text[place : place + 1] in _WHITE and self._text[place - 1 : place] not in _WHITE:
                return index
        return 0

    def _log_mass(self, ids: list[int], places: list[int], text: bytes) -> float:
        """Log-probability that its answer begins with this text, of which `ids` are its own encoding."""
        if not text:
            return 0.0
        behind = places[-1] < len(text)  # bytes of a character that is not whole yet
        self._read(ids if behind else ids[:-1])
        log_masses = [-np.inf]
        for place, read in self._begun(ids, places, text, behind=behind):
            row = self._rows[place]
            mass = float(np.exp(row.logprobs[self._begins(row, read)]).sum())
            if not mass and place == len(ids) - 1:  # unlisted, or written otherwise than it is read
                mass = float(np.exp(log_probability(row, ids[-1], self._own.size)))
            if mass:
                log_masses.append(
                    self._chances[place] + np.log(mass)
                )  # a long answer's own is below any float
        return float(np.logaddexp.reduce(log_masses))

    def _begun(
        self, ids: list[int], places: list[int], text: bytes, *, behind: bool
    ) -> Iterator[tuple[int, bytes]]:
        """Where the token that the text ends in may have begun, and what of it is read; `behind` the last one
        too. A space that its tokenizer puts before the first word was read as well."""
        last = len(ids) if behind else len(ids) - 1
        for place in range(last, max(-1, last - COVERED), -1):
            yield place, b" " * (not place and self._own.adds_space) + text[places[place] :]

    def _begins(self, row: TopK, read: bytes) -> BoolArray:
        """Which of a row's tokens begin with these bytes."""
        first = bisect_left(self._order, read)
        beyond = bisect_left(self._order, read + _LAST_BYTES)
        if first == beyond:
            return np.zeros(len(row.ids), bool)
        ranks = self._own.beginnings.ranks.take(row.ids, mode="clip")
        begins: BoolArray = (ranks >= first) & (ranks < beyond)
        return begins

    def _end_mass(self, here: float) -> float:
        end = self._own.eos_id
        if end is None or self._places[-1] < len(self._text):
            return 0.0
        ends = log_probability(self._rows[len(self._ids)], end, self._own.size)
        return float(np.exp(min(0.0, self._chances[len(self._ids)] + ends - here)))

    def _read(self, ids: Sequence[int]) -> None:
        """Hold these ids, or more that begin so."""
        kept = next((i for i, (a, b) in enumerate(zip(self._held, ids, strict=False)) if a != b),
                    min(len(ids), len(self._held)))  # fmt: skip
        if kept == len(ids):
            return
        if kept < len(self._held):
            self._session.rewind(len(self._held) - kept)
            del self._held[kept:], self._rows[kept + 1 :], self._chances[kept + 1 :]
        rows = self._session.extend(ids[kept:])
        for index, row in zip(ids[kept:], rows, strict=True):
            chance = log_probability(self._rows[-1], index, self._own.size)
            self._chances.append(self._chances[-1] + chance)
            self._held.append(index)
            self._rows.append(row)


def _longest(masses: Mapping[bytes, float]) -> dict[bytes, float]:
    """Each text's mass without that of the longer ones that begin with it."""
    found: dict[bytes, float] = {}
    open_texts: list[bytes] = []  # each begins with the one before
    for text in sorted(masses):
        while open_texts and not text.startswith(open_texts[-1]):
            open_texts.pop()
        if open_texts:
            found[open_texts[-1]] -= masses[text]
        found[text] = masses[text]
        open_texts.append(text)
    return {text: max(0.0, mass) for text, mass in found.items()}


def _whole_characters(text: bytes) -> str:
    """Up to the first byte that is not, or not yet, part of a character."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start].decode()


@lru_cache(maxsize=16)
def _in_order(vocabulary: Vocabulary) -> list[bytes]:
    """Its tokens' bytes as `Beginnings` ranks them."""
    return sorted(piece or b"" for piece in vocabulary.token_bytes)


@lru_cache(maxsize=16)
def _byte_tokens(vocabulary: Vocabulary) -> dict[bytes, int]:
    """Its tokens of one byte."""
    pieces = enumerate(vocabulary.token_bytes)
    return {piece: index for index, piece in pieces if piece is not None and len(piece) == 1}
