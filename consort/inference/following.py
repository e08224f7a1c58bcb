"""A model that reads along while another writes: a session kept where the answer is, and what it would say
next in the writer's tokens.

With the writer's tokenizer it reads the same ids. With another it reads its own encoding of the answer so
far, taken back and read anew where further text changes it: no fragment is encoded out of its context. Online
nobody knows yet how the text goes on, so what `align.transfer` reads off the whole text is weighed here by
probabilities: the follower's last token may be whole, or the beginning of a longer one (arXiv 2410.09303, its
cover of prompts cut off after one token); and a token shorter than the writer's is shared out among those
that begin with it, as the writer would. Masses are kept: what cannot be carried over is in `rest`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from consort.align import TAIL, VocabMap, Vocabulary, vocab_map
from consort.inference.blending import listed, log_probability
from consort.inference.white_box import vocabulary_of
from consort.types import Request, Session, TokenLM, TopK

_LAST_BYTES = b"\xff" * 8  # behind every text: no UTF-8 has such a byte


@dataclass(frozen=True, slots=True)
class Written:
    """An answer so far, in the writer's tokens; `text` is what they stand for, behind the text that the
    request had begun."""

    ids: Sequence[int]
    text: bytes


class Follower(Protocol):
    """A reader of another's answer; one call at a time."""

    def follow(self, written: Written) -> None:
        """Read on up to there; waits for the model."""
        ...

    def heard(self, writer: TopK | None) -> TopK | None:
        """What it would say next, in the writer's tokens, where the writer would say `writer` (None: it is
        the writer); None where it cannot tell."""
        ...

    def close(self) -> None:
        """Release the session."""
        ...


def follower(lm: TokenLM, request: Request, writer: Vocabulary) -> Follower:
    """Open a session that follows an answer to this request; waits for the model."""
    own = vocabulary_of(lm)
    if own.sha256 == writer.sha256:
        return _Same(*lm.open(request))
    return _Across(*lm.open(_without_begun(request)), mapping=vocab_map(own, writer))


def _without_begun(request: Request) -> Request:
    """The text to be continued is left out: together with the answer it may be cut elsewhere."""
    if request.prompt is not None:
        return replace(request, prompt="")
    begun = bool(request.messages) and request.messages[-1].role == "assistant"
    return replace(request, messages=request.messages[:-1]) if begun else request


class _Same:
    """A follower with the writer's tokenizer."""

    def __init__(self, session: Session, first: TopK) -> None:
        self._session, self._next, self._num_read = session, first, 0

    def follow(self, written: Written) -> None:
        unread = written.ids[self._num_read :]
        if unread:
            self._next = self._session.extend(unread)[-1]
            self._num_read = len(written.ids)

    def heard(self, writer: TopK | None) -> TopK | None:
        return self._next

    def close(self) -> None:
        self._session.close()


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    """The next token is from this row, and `read` bytes of it are written already."""

    row: TopK
    read: bytes
    opening: bool  # it opens the text, where its tokenizer may put a space before the first word
    share_of_rest: bool  # whether what the row did not list may be meant too


class _Across:
    """A follower with a tokenizer of its own."""

    def __init__(self, session: Session, first: TopK, *, mapping: VocabMap) -> None:
        self._session, self._map, self._own = session, mapping, mapping.source
        self._ids: list[int] = []
        self._rows = [first]  # after each of them
        self._text = b""
        self._last, self._end = 0, 0  # where its last token begins and ends in the text

    def follow(self, written: Written) -> None:
        text = _whole_characters(written.text)
        spans = self._own.spans(text)
        ids: list[int] = spans.ids.tolist()
        kept = next((i for i, (a, b) in enumerate(zip(self._ids, ids, strict=False)) if a != b),
                    min(len(ids), len(self._ids)))  # fmt: skip
        self._session.rewind(len(self._ids) - kept)
        del self._ids[kept:], self._rows[kept + 1 :]
        self._rows += self._session.extend(ids[kept:])
        self._ids, self._text = ids, written.text
        self._last, self._end = (int(spans.starts[-1]), int(spans.ends[-1])) if ids else (0, 0)

    def heard(self, writer: TopK | None) -> TopK | None:
        assert writer is not None, "who writes has the writer's tokenizer"
        shares = _Shares(writer, self._map.target, opening=not self._text)
        ids: list[int] = []
        masses: list[float] = []
        total = 0.0
        for hypothesis, weight in self._hypotheses():
            carried = list(self._carried(hypothesis, shares))
            if carried or not hypothesis.read:
                total += weight
                ids += [token for token, _ in carried]
                masses += [weight * mass for _, mass in carried]
        if not ids:
            return None
        return listed(np.array(ids), np.array(masses) / total)

    def close(self) -> None:
        self._session.close()

    def _hypotheses(self) -> Iterator[tuple[_Hypothesis, float]]:
        """Where its next token begins: behind its last one, or, if that was only a beginning, where that
        did."""
        count = len(self._ids)
        behind = _Hypothesis(self._rows[count], self._text[self._end :], not count, share_of_rest=True)
        if not count:
            yield behind, 1.0
            return
        before = self._rows[count - 1]
        longer = _Hypothesis(before, self._text[self._last :], count == 1, share_of_rest=False)
        yield behind, float(np.exp(log_probability(before, self._ids[-1], self._own.size)))
        begun = np.array([bool(rest) for rest in self._rests(longer)])
        if begun.any():
            yield longer, float(np.exp(before.logprobs[begun]).sum())

    def _rests(self, hypothesis: _Hypothesis) -> list[bytes]:
        """What each token of the row adds to what is read: nothing where it does not begin so."""
        spaced = hypothesis.opening and self._own.adds_space
        rests = []
        for index in hypothesis.row.ids.tolist():
            piece = (self._own.token_bytes[index] if index < self._own.size else None) or b""
            piece = piece.removeprefix(b" ") if spaced else piece
            rests.append(piece[len(hypothesis.read) :] if piece.startswith(hypothesis.read) else b"")
        return rests

    def _carried(self, hypothesis: _Hypothesis, shares: _Shares) -> Iterator[tuple[int, float]]:
        """Tokens of the writer and their masses, which sum to at most 1."""
        row, read = hypothesis.row, hypothesis.read
        rests = self._rests(hypothesis)
        masses = np.exp(row.logprobs)
        goes_on = np.array([bool(rest) for rest in rests])
        if not read:
            goes_on |= row.ids == self._own.eos_id
        elif goes_on.any():  # of what begins like the text, as if nothing else had been possible
            masses = masses / masses[goes_on].sum() * (1.0 - row.rest * hypothesis.share_of_rest)
        places = np.flatnonzero(goes_on)
        lengths = self._map.lengths.take(row.ids[places], mode="clip")
        left = np.array([len(rests[place]) for place in places.tolist()], lengths.dtype)
        spaces = np.full(len(places), int(shares.opening_space), np.int32)
        firsts = self._map.remainders(row.ids[places].astype(np.int32), lengths - left, spaces)
        for place, first in zip(places.tolist(), firsts.tolist(), strict=True):
            yield from shares.among(rests[place], first, float(masses[place]))


class _Shares:
    """How the mass of a text is shared among the writer's tokens that the text may be, or begin."""

    def __init__(self, writer: TopK, vocabulary: Vocabulary, *, opening: bool) -> None:
        self.opening_space = opening and vocabulary.adds_space
        self._writer, self._size = writer, vocabulary.size
        pieces = []
        for index, logprob in zip(writer.ids.tolist(), writer.logprobs.tolist(), strict=True):
            piece = vocabulary.token_bytes[index] or b""
            pieces.append((piece.removeprefix(b" ") if self.opening_space else piece, index, logprob))
        pieces.sort()
        self._pieces = [piece for piece, _, _ in pieces]
        self._ids = [index for _, index, _ in pieces]
        self._masses = np.exp([logprob for _, _, logprob in pieces])

    def among(self, text: bytes, first: int, mass: float) -> Iterator[tuple[int, float]]:
        """`first`, the writer's own first token of the text, and its likely tokens that begin with it."""
        longer = slice(bisect_right(self._pieces, text), bisect_left(self._pieces, text + _LAST_BYTES))
        if not text or longer.start >= longer.stop:
            if first != TAIL:
                yield first, mass
            return
        own = 0.0 if first == TAIL else float(np.exp(log_probability(self._writer, first, self._size)))
        total = own + float(self._masses[longer].sum())
        if own:
            yield first, mass * own / total
        for index, part in zip(self._ids[longer], self._masses[longer].tolist(), strict=True):
            yield index, mass * part / total


def _whole_characters(text: bytes) -> str:
    """Up to the first byte that is not, or not yet, part of a character."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start].decode()
