"""A request in a model's tokens: by its chat template, or the text to continue as it is.

A conversation whose last turn is the assistant's is an answer already begun: it is continued, as a text is.
Does not cut what is too long.
"""

from __future__ import annotations

from jinja2 import TemplateError

from consort.errors import RequestError
from consort.models.local import LocalModel
from consort.types import Request


def prompt_ids(model: LocalModel, request: Request) -> list[int]:
    """What the model reads before its first token. RequestError where its template cannot write the turns."""
    if request.prompt is not None:
        ids: list[int] = model.tokenizer(request.prompt)["input_ids"]
        return ids or [model.eos_id]  # an empty text begins where another ended
    turns = [{"role": message.role, "content": message.content} for message in request.messages]
    begun = begun_text(request)
    if begun:
        turns.pop()
    # the ids of a turn and of its beginning stand apart, as where the model has written it itself
    rendered: list[int] = model.tokenizer(_written(model, turns), add_special_tokens=False)["input_ids"]
    return rendered + model.vocabulary.encode(begun)


def begun_text(request: Request) -> str:
    """What is to be continued: the prompt, or the answer that the conversation ends in; else empty."""
    if request.prompt is not None:
        return request.prompt
    last = request.messages[-1] if request.messages else None
    return last.content if last is not None and last.role == "assistant" else ""


def _written(model: LocalModel, turns: list[dict[str, str]]) -> str:
    if not model.tokenizer.chat_template:
        raise RequestError(
            "this model has no chat template",
            where=model.name,
            hint="set chat_template to a Jinja file, or ask for a text completion",
        )
    try:
        text: str = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        hint = "its template may want turns of user and assistant in alternation, or no system turn"
        raise RequestError(
            f"its chat template cannot write this conversation: {error}", where=model.name, hint=hint
        ) from error
    return text
