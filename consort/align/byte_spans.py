"""Where each token stands in the bytes of its text, also where the tokenizer rewrites or drops characters.

The library's offsets count characters, lose combining marks and give the whole character to each of its
bytes. Here a place is believed only where the token's bytes, or the tokenizer's own normaliser, prove it.
Compares no tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from consort.types import BoolArray, IntArray

_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[ord("A") : ord("Z") + 1] += 32
_IS_SPACE = np.isin(np.arange(256), list(b" \t\n\r\v\f"))
_WIDEST = 8  # groups read as one before a proof is given up


@dataclass(frozen=True, slots=True)
class Spans:
    """Tokens of one text and the bytes [start, end) of `text.encode()` that each has read.

    Tokens that share an indivisible piece (two tokens made of one normalised character) have overlapping
    spans: no row between them is a cut. `added` counts a token's bytes that stand for no byte of the text
    (the space that SentencePiece puts before the first word); it is -1 where the token's bytes are not the
    text's own.
    """

    ids: IntArray
    starts: IntArray
    ends: IntArray
    added: IntArray


def locate(
    text: str,
    ids: Sequence[int],
    *,
    token_bytes: Sequence[bytes | None],
    offsets: Callable[[], Sequence[tuple[int, int]]],
    surface: Callable[[int], bytes | None],
    normalise: Callable[[str], str],
) -> Spans:
    """Spans of `ids` in `text`. The tokenizer's own offsets (in characters) are asked only in doubt."""
    ids_T = np.asarray(ids, np.int32)
    pieces = [token_bytes[index] for index in ids]
    joined, raw = b"".join(piece or b"" for piece in pieces), text.encode()
    lengths = np.fromiter((len(piece or b"") for piece in pieces), np.int32, len(pieces))
    surplus = len(joined) - len(raw)
    if surplus in (0, 1) and joined == b" " * surplus + raw and None not in pieces:
        ends = np.cumsum(lengths, dtype=np.int32) - np.int32(surplus)
        starts = np.maximum(ends - lengths, 0)
        return Spans(ids_T, starts, ends, (lengths - (ends - starts)).astype(np.int8))
    groups = _Groups.of(np.asarray(offsets(), np.int32).reshape(-1, 2), text)
    spans, exact = _place(ids_T, groups, joined=joined, raw=raw, lengths=lengths)
    pieces = [surface(place) if piece is None else piece for place, piece in enumerate(pieces)]
    done = 0
    for group in np.flatnonzero(~exact).tolist():
        if group >= done:
            done, end = _prove(text, group, groups, pieces=pieces, exact=exact, normalise=normalise)
            tokens = slice(groups.first[group], groups.first[done])
            spans.starts[tokens] = groups.place[groups.begin[group]]
            spans.ends[tokens], spans.added[tokens] = groups.place[end], -1
    return spans


@dataclass(frozen=True, slots=True)
class _Groups:
    """Runs of tokens whose offsets overlap: tokens first[g]:first[g+1], characters begin[g]:end[g]."""

    first: IntArray
    begin: IntArray
    end: IntArray
    place: IntArray  # byte place of each character, and of the end of the text

    @staticmethod
    def of(offsets: IntArray, text: str) -> _Groups:
        reach = np.maximum.accumulate(offsets[:, 1])
        first = np.flatnonzero(np.append(True, offsets[1:, 0] >= reach[:-1])[: len(offsets)])
        code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        width = 1 + (code > 0x7F).astype(np.int32) + (code > 0x7FF) + (code > 0xFFFF)
        place = np.append(np.int32(0), np.cumsum(width, dtype=np.int32))
        bounds = np.append(first, len(offsets))
        return _Groups(bounds, offsets[first, 0], reach[bounds[1:] - 1], place)


def _place(
    ids: IntArray, groups: _Groups, *, joined: bytes, raw: bytes, lengths: IntArray
) -> tuple[Spans, BoolArray]:
    """Spans by counting the bytes of each group back from its end, and which groups those bytes bear out.

    Bytes agree up to the case of ASCII letters; a leading space may also be another white byte, or no byte
    at all.
    """
    read = np.append(np.int32(0), np.cumsum(lengths, dtype=np.int32))  # bytes of `joined` before token t
    end_G = groups.place[groups.end]
    floor_G = np.append(np.int32(0), end_G[:-1])
    # 1) compare each byte of the tokens with the byte of the text where it would stand
    group_N = np.repeat(np.arange(len(end_G)), np.diff(read[groups.first]))
    where_N: IntArray = end_G[group_N] - read[groups.first[group_N + 1]] + np.arange(len(joined))
    token_N = np.frombuffer(joined, np.uint8)
    text_N = np.frombuffer(raw, np.uint8).take(where_N, mode="clip") if raw else token_N
    missing_N = where_N < floor_G[group_N]
    same_N = ~missing_N & ((text_N == token_N) | (_LOWER[text_N] == token_N))
    lead_N = (np.arange(len(joined)) == read[groups.first[group_N]]) & (token_N == ord(" "))
    same_N |= lead_N & np.where(missing_N, where_N == floor_G[group_N] - 1, _IS_SPACE[text_N])
    # 2) a group stands if all its bytes do, and every token has some
    exact_G = np.ones(len(end_G), bool)
    exact_G[group_N[~same_N]] = False
    group_T = np.repeat(np.arange(len(end_G)), np.diff(groups.first))
    exact_G[group_T[lengths == 0]] = False
    ends = end_G[group_T] - (read[groups.first[group_T + 1]] - read[1:])
    starts = np.maximum(ends - lengths, floor_G[group_T])
    return Spans(ids, starts, ends, (lengths - (ends - starts)).astype(np.int8)), exact_G


def _prove(
    text: str,
    group: int,
    groups: _Groups,
    *,
    pieces: Sequence[bytes | None],
    exact: BoolArray,
    normalise: Callable[[str], str],
) -> tuple[int, int]:
    """The group after, and the character after, the shortest piece of text that normalises to these tokens.

    Marks that were composed into the last character lie behind its offset, so both ends are tried. An
    unknown token shows no bytes: its offset is believed if the next token that shows some, or else the end
    of the text, is where it should be.
    """
    last_group, begin = len(groups.end), groups.begin[group]
    tokens: list[bytes | None] = []
    for after in range(group + 1, min(group + _WIDEST, last_group) + 1):
        tokens += pieces[groups.first[after - 1] : groups.first[after]]
        near = int(groups.end[after - 1])
        gap = text[near : groups.begin[after] if after < last_group else len(text)]
        far = near + (len(gap.split(maxsplit=1)[0]) if gap.strip() and not gap[0].isspace() else 0)
        if None in tokens:
            known = (exact[g] for g in range(after, last_group) if pieces[groups.first[g]] is not None)
            if next(known, not text[groups.end[-1] :].strip()):
                return after, far
            continue
        written = _bare(b"".join(piece or b"" for piece in tokens).decode(errors="replace"))
        for end in (near, far):
            if _bare(normalise(text[begin:end])) == written:
                return after, end
    return last_group, len(text)


def _bare(text: str) -> str:
    return "".join(text.replace("▁", " ").split())
