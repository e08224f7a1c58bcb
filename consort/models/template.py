"""A conversation as the text that a model reads, by its tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consort.errors import ModelError
from consort.types import Message


def written(turns: Sequence[Message], tokenizer: Any, *, where: str, what: str, without: str) -> str:
    """The turns, up to where the answer begins. ModelError where the template cannot write `what`; where
    there is none, it says how to do `without`."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        hint = f"set chat_template (a command's --chat-template) to a Jinja file, or {without}"
        raise ModelError("this model has no chat template", where=where, hint=hint)
    plain = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise ModelError(
            f"its chat template cannot write {what}: {error}",
            where=where,
            hint="mend the template, or set chat_template to another Jinja file; some want turns of user and "
            "assistant in alternation, or no system turn",
        ) from error
    return text
