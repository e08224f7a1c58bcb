"""An answer already begun is read as its model would have written it; what no template writes is refused."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.errors import RequestError
from consort.models.decoding.lm import LocalLM
from consort.models.decoding.prompt import prompt_ids
from consort.models.local import load_model
from consort.types import Message, Request
from tests.tiny_models import CPU, tiny

MODEL = tiny()
ASKED = (Message("user", "the clinic opens"),)


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=30))
def test_a_begun_answer_follows_the_question_as_its_own_tokens(begun: str) -> None:
    continued = prompt_ids(MODEL, Request((*ASKED, Message("assistant", begun))))
    question = prompt_ids(MODEL, Request(ASKED))
    if begun:
        assert continued == question + MODEL.vocabulary.encode(begun)
    else:
        assert continued[: len(question)] == question


def test_what_was_begun_is_continued_to_the_same_answer() -> None:
    model = load_model("zoo:edge-llama", runtime=CPU)  # one that writes words, whose tokens are read back
    lm = LocalLM(model, answers=1, sessions=0, context_tokens=128)

    def text(request: Request) -> str:
        async def read() -> str:
            return "".join([chunk.text async for chunk in lm.stream(request)])

        return asyncio.run(read())

    try:
        whole = text(Request(ASKED, max_tokens=12))
        written = model.vocabulary.encode(whole)
        for count in (1, 5, len(written) - 1):
            begun = model.vocabulary.decode(written[:count])
            rest = text(Request((*ASKED, Message("assistant", begun)), max_tokens=12 - count))
            assert begun + rest == whole
    finally:
        lm.close()


def test_a_template_that_cannot_write_the_turns_is_a_mistake_of_the_request() -> None:
    model = tiny()
    model.tokenizer.chat_template = "{{ raise_exception('user and assistant must alternate') }}"
    with pytest.raises(RequestError, match="must alternate"):
        prompt_ids(model, Request(ASKED))
    model.tokenizer.chat_template = None
    with pytest.raises(RequestError, match="no chat template"):
        prompt_ids(model, Request(ASKED))
