"""Language models as drafters: one that shares the other's tokenizer, or any other by way of text.

The proxy that co-tuning made is the first kind: it was distilled from the very model it drafts for. The
kind writes text in its own tokens, and the other tokenizer cuts the whole answer anew together with it, so no
fragment is encoded out of its context. Verifies nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from consort.align import Vocabulary
from consort.models.decoding.drafting import Growing
from consort.models.decoding.lm import LocalLM, LocalSession
from consort.models.decoding.prompt import begun_text
from consort.models.decoding.sampling import Sampling, token_keys
from consort.models.drafts import NOTHING
from consort.types import Draft, Drafting, DraftShape, Request


class ModelDrafter:
    """A local model that drafts for a model whose tokens are `vocabulary`'s (`types.Drafter`)."""

    def __init__(self, lm: LocalLM, vocabulary: Vocabulary) -> None:
        self.name, self._lm, self._vocabulary = lm.name, lm, vocabulary

    async def open(self, request: Request) -> Drafting:
        """Read the request. The noise that its answer is drawn with hangs on `request.seed`."""
        session, read = self._lm.hold(request)
        try:
            await asyncio.wrap_future(read)
        except BaseException:  # also where nobody waits for drafts any more
            session.close()
            raise
        sampling = Sampling.of(request)
        own, other, ends = self._lm.tokenizer, self._vocabulary, self._lm.model.end_ids
        if own.sha256 == other.sha256:
            return SameTokens(session, other, sampling, ends)
        beginning = not begun_text(request)
        return OtherTokens(session, own, other, sampling, ends, beginning=beginning)


class _Session:
    """A drafter's session, and the draft that grows in it."""

    def __init__(self, session: LocalSession, sampling: Sampling, ends: frozenset[int]) -> None:
        self._session, self._sampling, self._ends = session, sampling, ends
        self._growing: Growing | None = None

    async def _grown(
        self,
        answer: Sequence[int],
        shape: DraftShape,
        position_of: Callable[[Sequence[int]], int],
        vocabulary: Vocabulary,
    ) -> Growing:
        growing = Growing(shape, self._sampling, position_of, token_keys(vocabulary), self._ends)
        self._growing = growing
        return await asyncio.wrap_future(self._session.draft(answer, growing))

    def stop(self) -> None:
        """End the draft under way with what there is."""
        if self._growing is not None:
            self._growing.stopped = True

    def close(self) -> None:
        """Free the session."""
        self.stop()
        self._session.close()


class SameTokens(_Session):
    """Drafts of a model that shares the other's tokenizer."""

    def __init__(
        self, session: LocalSession, vocabulary: Vocabulary, sampling: Sampling, ends: frozenset[int]
    ) -> None:
        super().__init__(session, sampling, ends)
        self._vocabulary = vocabulary

    async def draft(self, answer: Sequence[int], shape: DraftShape) -> tuple[Draft, tuple[float, ...]]:
        """As `types.Drafting` says."""
        growing = await self._grown(answer, shape, lambda path: len(answer) + len(path), self._vocabulary)
        return growing.draft()


class OtherTokens(_Session):
    """Drafts of a model with a tokenizer of its own (`own`) for one that reads `other` tokens."""

    def __init__(
        self,
        session: LocalSession,
        own: Vocabulary,
        other: Vocabulary,
        sampling: Sampling,
        ends: frozenset[int],
        *,
        beginning: bool,
    ) -> None:
        super().__init__(session, sampling, ends)
        self._own, self._other, self._beginning = own, other, beginning

    async def draft(self, answer: Sequence[int], shape: DraftShape) -> tuple[Draft, tuple[float, ...]]:
        """As `types.Drafting` says. Nothing after half a character, or where the text's own encoding has no
        cut at the answer's end."""
        text = self._text(self._other, answer)
        if text is None:
            return NOTHING, ()

        written = list(answer)

        def position_of(path: Sequence[int]) -> int:
            continued = self._continued(written, text, path)
            return len(answer) + len(continued or ())

        own_ids = self._own.encode(text, beginning=self._beginning) if text else []
        growing = await self._grown(own_ids, shape, position_of, self._own)
        return self._recut(growing, written, text)

    def _recut(self, growing: Growing, answer: list[int], text: str) -> tuple[Draft, tuple[float, ...]]:
        """Each path of the draft in the other's tokens, joined where they begin alike."""
        ids: list[int] = []
        parents: list[int] = []
        chances: list[float] = []
        places: dict[tuple[int, int], int] = {}  # (parent, token) to node
        leaves = set(range(len(growing.ids))) - set(growing.parents)
        for leaf in sorted(leaves, key=lambda node: -growing.chances[node]):
            path, ended = growing.path(leaf), growing.ids[leaf] in growing.ends
            tokens = self._continued(answer, text, path[:-1] if ended else path) or []
            if ended and self._other.eos_id is not None:
                tokens.append(self._other.eos_id)
            elif len(tokens) > 1:
                tokens.pop()  # what follows may belong to the same token
            node = -1
            for token in tokens:
                if (node, token) not in places:
                    places[node, token] = len(ids)
                    ids.append(token)
                    parents.append(node)
                    chances.append(growing.chances[leaf])
                node = places[node, token]
        return Draft(tuple(ids), tuple(parents)), tuple(chances)

    def _continued(self, answer: list[int], text: str, path: Sequence[int]) -> list[int] | None:
        """The other's tokens of what a path adds to the text; None if they are not cut off from it."""
        pieces = [self._own.token_bytes[token] or b"" for token in path]
        added = b"".join(pieces)
        if not text and self._beginning and self._own.adds_space:
            added = added.removeprefix(b" ")
        whole = text + _decodable(added)
        if whole == text:
            return []
        ids = self._other.encode(whole)
        if ids[: len(answer)] == answer:  # what is written is cut as the text's own encoding cuts it
            return ids[len(answer) :]
        end = len(text.encode())
        spans = self._other.spans(whole)
        if not len(spans.ids):
            return None
        begins = [place for place, start in enumerate(spans.starts.tolist()) if start >= end]
        if not begins or spans.starts[begins[0]] != end:
            return None
        return [int(token) for token in spans.ids[begins[0] :]]

    def _text(self, vocabulary: Vocabulary, ids: Sequence[int]) -> str | None:
        raw = b"".join(vocabulary.token_bytes[token] or b"" for token in ids)
        if self._beginning and vocabulary.adds_space:
            raw = raw.removeprefix(b" ")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return None


def _decodable(raw: bytes) -> str:
    """The text that bytes begin with: up to half a character, or to what is none."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return raw[: error.start].decode()
