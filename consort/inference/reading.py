"""One model's view of an answer that several write: what others wrote is read in the model's own tokens.

Law: when a reader has looked, its session holds the bytes of the whole answer, whoever wrote them. Others'
text is encoded from the last beginning of a word where one of the model's tokens begins too, so never out of
context; up to there what the model wrote itself stays as it wrote it, behind it tokens are taken back where
the longer text is cut otherwise. Between two looks nothing is asked; a look is one `extend`. Chooses no
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from consort.inference.white_box import vocabulary_of
from consort.types import Request, Session, TokenLM, TopK

_WHITE = b" \t\n\r"


class Reader:
    """An open session and the answer's tokens in it. Used by one thread at a time."""

    def __init__(self, lm: TokenLM, request: Request) -> None:
        self.vocabulary = vocabulary_of(lm)
        self._begun = continues(request)
        self._added_space = not self._begun and self.vocabulary.adds_space
        self._session: Session
        self._session, first = lm.open(request)
        self._ids: list[int] = []
        self._ends = [0]  # bytes of the answer before each id, and after the last; -1: inside what is no cut
        self._sent = 0  # ids that the session holds
        self._tops: list[TopK | None] = [first]  # after so many ids, as far as it was heard
        self.looks, self.tokens_read = 0, 0

    @property
    def ids(self) -> Sequence[int]:
        """The answer in this model's tokens, also those not sent yet."""
        return tuple(self._ids)

    @property
    def starts(self) -> Sequence[int]:
        """The byte of the answer where each token begins, and where the next one will; -1: inside what is no
        cut."""
        return tuple(self._ends)

    @property
    def tops(self) -> Sequence[TopK]:
        """What the model would write in each token's place, and next; once it has looked at a text that it
        read in one piece."""
        return [top for top in self._tops if top is not None]

    def piece(self, token: int) -> bytes:
        """What the token would add to the answer now; empty for the end."""
        piece = self.vocabulary.token_bytes[token] or b""
        return piece.removeprefix(b" ") if self._added_space and not self._ids else piece

    def write(self, token: int) -> bytes:
        """Append a token of the model's own; its bytes."""
        piece = self.piece(token)
        self._append([token], [self._ends[-1] + len(piece)])
        return piece

    def hold(self, ids: Sequence[int]) -> None:
        """Go back to the beginning of the answer and to these tokens of the model's own."""
        same = 0
        while same < min(len(ids), len(self._ids)) and self._ids[same] == ids[same]:
            same += 1
        self._take_back(len(self._ids) - same)
        for token in ids[same:]:
            self.write(token)

    def read(self, answer: bytes) -> None:
        """Take over the whole answer so far, which ends with a whole character."""
        if len(answer) == self._ends[-1]:
            return
        keep = self._last_word(answer)
        ids, ends = self._encoded(answer, keep)
        same = 0
        while same < min(len(ids), len(self._ids) - keep) and self._ids[keep + same] == ids[same]:
            same += 1
        self._take_back(len(self._ids) - keep - same)
        self._append(ids[same:], ends[same:])

    def look(self) -> TopK:
        """What the model would write next."""
        if self._sent < len(self._ids):
            found = self._session.extend(self._ids[self._sent :])
            self.looks += 1
            self.tokens_read += len(self._ids) - self._sent
            self._tops[self._sent + 1 :] = found
            self._sent = len(self._ids)
        top = self._tops[-1]
        assert top is not None, "every id that was sent has been answered"
        return top

    def before_last(self) -> tuple[int, TopK] | None:
        """The last token and what the model would have written in its place, where that was heard."""
        known = self._ids and self._sent == len(self._ids) and self._ends[-2] >= 0
        top = self._tops[-2] if known else None
        return None if top is None else (self._ids[-1], top)

    def replace_last(self, token: int) -> bytes:
        """Put a longer token of the model's own in the last one's place; the bytes it has more."""
        length = self._ends[-1] - self._ends[-2]
        self._take_back(1)
        return self.write(token)[length:]

    def close(self) -> None:
        """Release the session."""
        self._session.close()

    def _append(self, ids: Sequence[int], ends: Sequence[int]) -> None:
        self._ids += ids
        self._ends += ends
        self._tops += [None] * len(ids)

    def _take_back(self, count: int) -> None:
        if count:
            left = len(self._ids) - count
            if self._sent > left:
                self._session.rewind(self._sent - left)
                self._sent = left
            del self._ids[left:], self._ends[left + 1 :], self._tops[left + 1 :]

    def _last_word(self, answer: bytes) -> int:
        """How many ids end before the last beginning of a word that they share with the answer."""
        for count in range(len(self._ids), 0, -1):
            place = self._ends[count]
            if 0 < place < len(answer) and answer[place] in _WHITE and answer[place - 1] not in _WHITE:
                return count
        return 0

    def _encoded(self, answer: bytes, keep: int) -> tuple[list[int], list[int]]:
        """The answer from id `keep` on, encoded, and where each token ends."""
        begin = self._ends[keep]
        text = answer[begin:].decode(errors="replace")
        inside = keep > 0 or self._begun
        ids = self.vocabulary.encode_inside(text) if inside else self.vocabulary.encode(text)
        ends, place = [], begin - (self._added_space and keep == 0)
        for token in ids:
            place += len(self.vocabulary.token_bytes[token] or b"")
            ends.append(place)
        if place != len(answer):  # a tokenizer that rewrites its text: only its end is known
            ends = [-1] * (len(ids) - 1) + [len(answer)] * bool(ids)
        return ids, ends


def continues(request: Request) -> bool:
    """Whether the answer goes on with a text that the request holds, and so is no text of its own."""
    if request.prompt is not None:
        return bool(request.prompt)
    last = request.messages[-1] if request.messages else None
    return last is not None and last.role == "assistant" and bool(last.content)
