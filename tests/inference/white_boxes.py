"""Small real models for token-level collaboration, and a record of what their sessions hold."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from consort.errors import UpstreamError
from consort.models.decoding.lm import LocalLM
from consort.types import Chunk, Request, Session, TopK
from tests.tiny_models import byte_level, escaped_spaces, tiny


@dataclass
class Watched:
    """A model whose sessions are written down; after `fails_after` extends they fail, or fall silent."""

    lm: LocalLM
    fails_after: int | None = None
    silent_s: float = 0.0
    held: list[int] = field(default_factory=list)  # ids of the latest session
    extends: int = 0
    open_sessions: int = 0

    def __post_init__(self) -> None:
        self.name, self.tokenizer, self.capabilities = self.lm.name, self.lm.tokenizer, self.lm.capabilities

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return self.lm.stream(request)

    def open(self, request: Request) -> tuple[Session, TopK]:
        session, top = self.lm.open(request)
        self.held, self.open_sessions = [], self.open_sessions + 1
        return _WatchedSession(self, session), top


@dataclass
class _WatchedSession:
    watched: Watched
    session: Session

    def extend(self, ids: Sequence[int]) -> list[TopK]:
        watched = self.watched
        watched.extends += 1
        if watched.fails_after is not None and watched.extends > watched.fails_after:
            if not watched.silent_s:
                raise UpstreamError("the line is cut", where=watched.name)
            time.sleep(watched.silent_s)
        watched.held += ids
        return self.session.extend(ids)

    def rewind(self, num_tokens: int) -> None:
        assert 0 < num_tokens <= len(self.watched.held)
        del self.watched.held[len(self.watched.held) - num_tokens :]
        self.session.rewind(num_tokens)

    def close(self) -> None:
        self.watched.open_sessions -= 1
        self.session.close()


def models() -> dict[str, LocalLM]:
    """Three tokenizer families, each model untrained in its own way."""
    made = {
        "bytes": tiny("llama"),
        "other bytes": tiny("qwen2", byte_level(use_regex=False)),
        "pieces": tiny("gpt2", escaped_spaces("bpe", lines_apart=False)),
        "unigram": tiny("gpt_neox", escaped_spaces("unigram", lines_apart=True)),
    }
    opened = {}
    for name, model in made.items():
        model.name = name
        opened[name] = LocalLM(model, answers=2, sessions=2, context_tokens=200, alternatives=400)
    return opened
