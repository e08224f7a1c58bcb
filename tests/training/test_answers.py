"""A model's answers as data: room for the question, and templates that cannot make one up."""

from __future__ import annotations

import pytest

from consort.errors import ConfigError, ModelError
from consort.training.answers import answer, made_up
from consort.training.data import Sample
from tests.tiny_models import tiny


def test_answers_as_long_as_the_context_are_one_error():
    model = tiny("llama")
    for tokens in (model.context_tokens, model.context_tokens + 1):
        with pytest.raises(ConfigError, match="no room for a question"):
            answer(model, [Sample("why? ", None)], max_new_tokens=tokens)


def test_an_empty_question_is_answered_as_the_beginning_of_a_text():
    assert len(answer(tiny("llama"), [Sample("", None), Sample("why? ", None)], max_new_tokens=2)) == 2


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content | upper | length }}\n",
        "{{ messages[0].content * 2 }}\n",
        "{{ messages[0].content }}",
    ],
)
def test_a_template_that_does_not_write_the_question_once_cannot_make_one_up(template):
    model = tiny("llama")
    model.tokenizer.chat_template = template
    with pytest.raises(ModelError, match="does not write a question once"):
        made_up(model, count=1, max_new_tokens=2, seed=0)
