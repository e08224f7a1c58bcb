"""Tokens as pieces of text while they are written: whole characters only, and nothing of a stop sequence.

However the text is cut into tokens, the joined pieces are the decoded answer up to the stop sequence that is
complete first. Does not choose tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from consort.align import Vocabulary
from consort.types import TokenLogprob


class TextWriter:
    """One answer's text. `beginning`: the answer is a text of its own, so the space that encoding puts before
    a first word is left out."""

    def __init__(self, vocabulary: Vocabulary, *, stop: Sequence[str], beginning: bool) -> None:
        self._pieces, self._stop = vocabulary.token_bytes, [text for text in stop if text]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = beginning and vocabulary.adds_space
        self._held = ""  # decoded, and perhaps the beginning of a stop sequence
        self._shown = 0  # characters given out
        self._logprobs: list[tuple[int, TokenLogprob]] = []  # with the place where each token's text begins
        self.stopped = False

    def write(self, token: int, logprob: TokenLogprob | None = None) -> tuple[str, tuple[TokenLogprob, ...]]:
        """The text that is certain now, perhaps none, and the log-probabilities of its tokens."""
        return self.write_bytes(self._pieces[token] or b"", logprob)

    def write_bytes(
        self, piece: bytes, logprob: TokenLogprob | None = None
    ) -> tuple[str, tuple[TokenLogprob, ...]]:
        """The same for a token of another vocabulary, by its bytes."""
        if self._strip and piece:
            piece, self._strip = piece.removeprefix(b" "), False
        if logprob is not None:
            self._logprobs.append((self._shown + len(self._held), logprob))
        return self._released(self._decoder.decode(piece), last=False)

    @property
    def held(self) -> int:
        """Characters that are decoded and not yet certain."""
        return len(self._held)

    def end(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What was held back when the answer ended without a stop sequence."""
        return self._released(self._decoder.decode(b"", final=True), last=True)

    def _released(self, text: str, *, last: bool) -> tuple[str, tuple[TokenLogprob, ...]]:
        self._held += text
        ends = [(place + len(stop), place) for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            certain = min(ends)[1]
        else:
            certain = len(self._held) if last else len(self._held) - self._doubtful()
        shown, self._held = self._held[:certain], self._held[certain:]
        self._shown += len(shown)
        count = len(self._logprobs) if last else sum(place < self._shown for place, _ in self._logprobs)
        released, self._logprobs = self._logprobs[:count], self._logprobs[count:]
        return shown, tuple(logprob for _, logprob in released)

    def _doubtful(self) -> int:
        """Characters at the end that begin a stop sequence."""
        lengths = (
            length
            for stop in self._stop
            for length in range(min(len(stop) - 1, len(self._held)), 0, -1)
            if self._held.endswith(stop[:length])
        )
        return max(lengths, default=0)
