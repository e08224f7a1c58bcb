"""Streaming is generating: the same text, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from consort.models.decoding.stream import stream_text
from consort.models.local import generate
from tests.tiny_models import byte_level, escaped_spaces, tiny

TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "escaped": lambda: escaped_spaces("bpe", lines_apart=False),
    "unigram": lambda: escaped_spaces("unigram", lines_apart=False),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_streamed_text_is_the_generated_one(kind: str) -> None:
    model = tiny(tokenizer=TOKENIZERS[kind]())
    for prompt in ("the clinic opens", "error 17: é"):
        ids = model.tokenizer(prompt)["input_ids"]
        (expected,) = generate(model, [ids], max_new_tokens=30)
        # random bytes: what is cut in the middle of a character becomes the same mark in both
        assert "".join(stream_text(model, ids, max_new_tokens=30)) == model.vocabulary.decode(expected)


def test_sampling_repeats_with_its_seed_and_changes_with_another() -> None:
    model = tiny()
    ids = model.tokenizer("the clinic opens")["input_ids"]

    def drawn(seed: int) -> str:
        return "".join(stream_text(model, ids, max_new_tokens=20, temperature=5.0, seed=seed))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
