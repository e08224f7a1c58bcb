"""Two models at one answer, token by token: each proposes, one writes, both read. Does not decide who.

The small model looks before every token. The large one reads what is unread, in one `extend`, only where it
is asked. If the small model stopped inside a word, the large one goes on from the tokens it would have used
itself: its last token is exchanged for a longer one that begins with the same bytes, where it would rather
have written that (conditioning, as in `align`). Whoever wrote half a character writes the other half.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from consort.inference.evidence import question_of
from consort.inference.reading import Reader
from consort.inference.token_need import Look, doubt
from consort.models.decoding.sampling import Sampling, pick, token_keys
from consort.types import Request, TopK


@dataclass(frozen=True, slots=True)
class Choice:
    """The token a model would write. `longer`: it takes the place of the last one, which it begins with."""

    token: int
    top: TopK
    longer: bool = False


class Duet:
    """An answer under way. `native`: both write the same vocabulary's tokens, which are handed over as they
    are. A reader is used by one thread at a time."""

    def __init__(self, request: Request, *, native: bool) -> None:
        self._sampling, self._native = Sampling.of(request), native
        self._question = question_of(request)
        self.answer = bytearray()
        self.tokens = 0
        self.large_tokens = 0
        self._written: list[int] = []  # ids, each in its writer's tokens
        self._half = codecs.getincrementaldecoder("utf-8")("replace")
        self._last_doubt = self._doubt_sum = 0.0  # of the small model, whoever then wrote
        self._since_large = 0

    @property
    def whole(self) -> bool:
        """Whether the answer ends with a whole character, so that anybody can go on."""
        return not self._half.getstate()[0]

    def look(self, small: Reader) -> tuple[Look, Choice]:
        """What the small model would write, and what is known about it."""
        self._catch_up(small)
        top = small.look()
        token = self._drawn(small, top)
        ends = token == small.vocabulary.eos_id
        mean = self._doubt_sum / self.tokens if self.tokens else 0.0
        look = Look(
            top,
            token,
            None if ends else small.piece(token),
            position=self.tokens,
            since_large=self._since_large,
            doubt_before=self._last_doubt,
            mean_doubt=mean,
            question=self._question,
        )
        self._last_doubt = doubt(look)
        self._doubt_sum += self._last_doubt
        return look, Choice(token, top)

    def asked(self, large: Reader) -> Choice:
        """What the large model would write: one round trip at most. Changes nothing but the reader."""
        self._catch_up(large)
        after = large.look()
        before = large.before_last() if self._since_large and not self._native else None
        if before is not None:
            token, top = before
            pieces = large.vocabulary.token_bytes
            begin = pieces[token] or b""
            alike = [(pieces[index] or b"").startswith(begin) for index in top.ids.tolist()]
            if begin and any(alike):
                longer = self._drawn(large, TopK(top.ids[alike], top.logprobs[alike], top.rest))
                if pieces[longer] != begin:
                    return Choice(longer, top, longer=True)
        return Choice(self._drawn(large, after), after)

    def write(self, writer: Reader, choice: Choice, *, large: bool) -> bytes | None:
        """The writer's choice becomes part of the answer; None where it is the end."""
        self.large_tokens += large
        self._since_large = 0 if large else self._since_large + 1
        self.tokens += 1
        if choice.token == writer.vocabulary.eos_id:
            return None
        piece = writer.replace_last(choice.token) if choice.longer else writer.write(choice.token)
        self._written.append(choice.token)
        self.answer += piece
        self._half.decode(piece)
        return piece

    def _drawn(self, reader: Reader, top: TopK) -> int:
        """With the project's noise: where one model writes every token, its own answer with that seed. Of the
        probability beyond what is listed nothing is drawn."""
        return pick(top, self._sampling, self.tokens, token_keys(reader.vocabulary))

    def _catch_up(self, reader: Reader) -> None:
        if self._native:
            for token in self._written[len(reader.ids) :]:
                reader.write(token)
        else:
            reader.read(bytes(self.answer))
