"""A model that reads along while another writes: a session kept where the answer is, and what it would say
next in the writer's tokens.

With the writer's tokenizer it reads the same ids. With another (`across`) it reads its own encoding of the
answer so far, taken back and read anew where further text changes it: no fragment is encoded out of its
context. Masses are kept: what cannot be carried over is in `rest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from consort.align import Vocabulary, vocab_map
from consort.inference.across import Across
from consort.inference.white_box import vocabulary_of
from consort.types import Request, Session, TokenLM, TopK


@dataclass(frozen=True, slots=True)
class Written:
    """An answer so far, in the writer's tokens; `text` is what they stand for, behind the text that the
    request had begun."""

    ids: Sequence[int]
    text: bytes


class Follower(Protocol):
    """A reader of another's answer; one call at a time, and each may wait for the model."""

    def follow(self, written: Written) -> None:
        """Read on up to there."""
        ...

    def heard(self, among: Sequence[TopK]) -> TopK | None:
        """What it would say next, in the writer's tokens, where those who have them would say `among`; None
        where it cannot tell."""
        ...

    def close(self) -> None:
        """Release the session."""
        ...


def follower(lm: TokenLM, request: Request, writer: Vocabulary) -> Follower:
    """Open a session that follows an answer to this request; waits for the model."""
    own = vocabulary_of(lm)
    if own.sha256 == writer.sha256:
        return _Same(*lm.open(request))
    return Across(*lm.open(_without_begun(request)), mapping=vocab_map(own, writer))


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

    def heard(self, among: Sequence[TopK]) -> TopK:
        return self._next

    def close(self) -> None:
        self._session.close()
