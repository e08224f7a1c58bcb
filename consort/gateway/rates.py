"""How many tokens the cloud makes of a text, learned from what it counted: for answers that it did not write.

The edge's tokens are others, and a cloud behind an endpoint shows no tokenizer. An estimate: bytes per token
of all requests and of all answers so far, in this process.
"""

from __future__ import annotations

from dataclasses import dataclass

from consort.inference.metering import Call
from consort.types import Usage


@dataclass(slots=True)
class Rates:
    """Bytes and tokens that the cloud has read and written."""

    read_bytes: int = 0
    read_tokens: int = 0
    written_bytes: int = 0
    written_tokens: int = 0

    def observe(self, call: Call, request_bytes: int, answer_bytes: int) -> None:
        """One counted answer of the cloud; 0 bytes where its text is not known."""
        self.read_bytes += request_bytes
        self.read_tokens += call.prompt_tokens
        if answer_bytes:
            self.written_bytes += answer_bytes
            self.written_tokens += call.completion_tokens

    def estimated(self, request_bytes: int, answer_bytes: int) -> Usage | None:
        """The tokens of a request and its answer; None before the cloud has counted any."""
        if not (self.read_bytes and self.written_bytes):
            return None
        prompt_tokens = round(request_bytes * self.read_tokens / self.read_bytes)
        return Usage(prompt_tokens, round(answer_bytes * self.written_tokens / self.written_bytes))
