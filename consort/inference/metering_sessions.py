"""What sessions of a model take, measured round the model as `metering` does with its streams.

A look is a token written; what was read beside it is counted as prompt. Bytes are the request's text and
about four for each token sent later.
"""

from __future__ import annotations

from collections.abc import Sequence

from consort.align import Vocabulary
from consort.errors import ConsortError
from consort.inference.metering import BYTES_PER_TOKEN, Call, Metered, sent_bytes
from consort.types import Request, Session, TopK


class MeteredTokenLM(Metered):
    """A model whose streams and sessions are written down; otherwise the same model."""

    __slots__ = ()

    @property
    def tokenizer(self) -> Vocabulary:
        """The model's own."""
        tokenizer: Vocabulary = self._lm.tokenizer  # type: ignore[attr-defined]
        return tokenizer

    def open(self, request: Request) -> tuple[Session, TopK]:
        """A session of the model's own."""
        size = sent_bytes(request)
        call = Call(self.name, self._side, size, self._clock(), prompt_tokens=-(-size // BYTES_PER_TOKEN))
        call.counted = True
        self._calls.append(call)
        self._gauge.requests += 1
        try:
            session, top = self._lm.open(request)  # type: ignore[attr-defined]
        except ConsortError as error:
            self._failed(call, error)
            raise
        self._gauge.in_flight += 1
        call.first_s = self._clock() - call.began_s
        return _MeteredSession(self, session, call), top

    def extended(self, call: Call, num_tokens: int) -> None:
        """So many tokens were sent and one distribution came back that counts."""
        call.sent_bytes += BYTES_PER_TOKEN * num_tokens
        call.prompt_tokens += max(0, num_tokens - 1)
        call.completion_tokens += 1

    def closed(self, call: Call) -> None:
        """The session is over."""
        self._gauge.in_flight -= 1
        call.answer_s = self._clock() - call.began_s
        if call.outcome == "left":
            call.outcome = "done"
            self._gauge.failures_in_row = 0

    def _failed(self, call: Call, error: ConsortError) -> None:
        call.outcome = error.code
        self._gauge.failures += 1
        self._gauge.failures_in_row += 1
        self._gauge.last_failure_s = self._clock()


class _MeteredSession:
    """A session and its call."""

    def __init__(self, lm: MeteredTokenLM, session: Session, call: Call) -> None:
        self._lm, self._session, self._call = lm, session, call

    def extend(self, ids: Sequence[int]) -> list[TopK]:
        """As the session."""
        try:
            tops = self._session.extend(ids)
        except ConsortError as error:
            self._lm._failed(self._call, error)
            raise
        self._lm.extended(self._call, len(ids))
        return tops

    def rewind(self, num_tokens: int) -> None:
        """As the session."""
        self._session.rewind(num_tokens)

    def close(self) -> None:
        """As the session."""
        self._lm.closed(self._call)
        self._session.close()
