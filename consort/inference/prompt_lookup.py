"""A drafter without a model: what followed the same tokens before, in the request or in the answer.

Prompt lookup decoding (Saxena 2023, as in transformers and vLLM): good where answers quote. Free of charge,
and in the answering model's own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from consort.models.drafts import chain, cut
from consort.types import Draft, Drafting, DraftShape, Request, Tokenizer

LONGEST, SHORTEST = 4, 2  # tokens that must have come before
CHANCE = 0.7  # that a token found so is the next; the planner measures what it is


class PromptLookup:
    """`types.Drafter` for a model whose tokens are `tokenizer`'s."""

    name = "prompt-lookup"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def open(self, request: Request) -> Drafting:
        """Read the request."""
        texts = [request.prompt or "", *(message.content for message in request.messages)]
        return _Lookup([token for text in texts for token in self._tokenizer.encode(text)])


class _Lookup:
    def __init__(self, prompt: list[int]) -> None:
        self._prompt = prompt

    async def draft(self, answer: Sequence[int], shape: DraftShape) -> tuple[Draft, tuple[float, ...]]:
        """The continuation of the last place where the longest possible ending stood before."""
        text = [*self._prompt, *answer]
        found = following(text, shape.depth)
        draft = cut(chain(found), nodes=shape.nodes, depth=shape.depth)
        return draft, tuple(CHANCE ** (place + 1) for place in range(len(draft.ids)))

    def stop(self) -> None:
        """There is nothing to stop."""

    def close(self) -> None:
        """There is nothing to free."""


def following(text: Sequence[int], count: int) -> list[int]:
    """Up to `count` tokens that came after the text's ending when it stood there before; empty if never."""
    for length in range(min(LONGEST, len(text) - 1), SHORTEST - 1, -1):
        ending = list(text[-length:])
        for begin in range(len(text) - length - 1, -1, -1):
            if list(text[begin : begin + length]) == ending:
                return list(text[begin + length : begin + length + count])
    return []
