"""A request in a model's tokens: by its chat template, or the text to continue as it is.

A conversation whose last turn is the assistant's is an answer already begun: it is continued, as a text is.
Does not cut what is too long.
"""

from __future__ import annotations

from typing import Any, Protocol

from consort.align import Vocabulary
from consort.errors import ModelError, RequestError
from consort.models.template import written
from consort.types import Request


class Reader(Protocol):
    """What a prompt is written with."""

    name: str
    tokenizer: Any  # called as a transformers tokenizer is
    vocabulary: Vocabulary

    @property
    def eos_id(self) -> int:
        """The token that ends a text."""
        ...


def prompt_ids(model: Reader, request: Request) -> list[int]:
    """What the model reads before its first token. RequestError where its template cannot write the turns."""
    if request.prompt is not None:
        ids: list[int] = model.tokenizer(request.prompt)["input_ids"]
        return ids or [model.eos_id]  # an empty text begins where another ended
    begun = begun_text(request)
    turns = request.messages[:-1] if begun else request.messages
    try:
        text = written(
            turns,
            model.tokenizer,
            where=model.name,
            what="this conversation",
            without="ask for a text completion",
        )
    except ModelError as error:  # the client's to mend: another conversation may be written
        raise RequestError(error.what, where=error.where, hint=error.hint) from error
    # the ids of a turn and of its beginning stand apart, as where the model has written it itself
    rendered: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return rendered + model.vocabulary.encode(begun)


def begun_text(request: Request) -> str:
    """What is to be continued: the prompt, or the answer that the conversation ends in; else empty."""
    if request.prompt is not None:
        return request.prompt
    last = request.messages[-1] if request.messages else None
    return last.content if last is not None and last.role == "assistant" else ""
