"""Streaming is generating: the same tokens and the same text, for every kind of tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from consort.models.local import generate
from consort.training.data import Sample
from consort.training.likelihood import answer_likelihoods
from consort.training.stream import stream_text, stream_tokens
from tests.tiny_models import byte_level, escaped_spaces, tiny

TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "escaped": lambda: escaped_spaces("bpe", lines_apart=False),
    "unigram": lambda: escaped_spaces("unigram", lines_apart=False),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_streamed_tokens_and_text_are_the_generated_ones(kind: str) -> None:
    model = tiny(tokenizer=TOKENIZERS[kind]())
    for prompt in ("the clinic opens", "error 17: é"):
        ids = model.tokenizer(prompt)["input_ids"]
        (expected,) = generate(model, [ids], max_new_tokens=30)
        assert list(stream_tokens(model, ids, max_new_tokens=30)) == expected
        # random bytes: what is cut in the middle of a character becomes the same mark in both
        assert "".join(stream_text(model, ids, max_new_tokens=30)) == model.vocabulary.decode(expected)


def test_sampling_repeats_with_its_seed_and_changes_with_another() -> None:
    model = tiny()
    ids = model.tokenizer("the clinic opens")["input_ids"]

    def drawn(seed: int) -> list[int]:
        return list(stream_tokens(model, ids, max_new_tokens=20, temperature=5.0, seed=seed))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_likelihoods_are_those_of_one_row_at_a_time_and_of_transformers() -> None:
    model = tiny()
    samples = [
        Sample("the clinic", " opens at nine"),
        Sample("", "grüße"),
        Sample("a " * 30, ""),
        Sample("x", "y"),
    ]
    found = answer_likelihoods(model, samples, batch_rows=3)
    alone = [answer_likelihoods(model, [sample]) for sample in samples]
    assert found.log_likelihoods == pytest.approx([one.log_likelihoods[0] for one in alone], rel=1e-5)
    assert found.num_bytes == [14, 7, 0, 1]
    prompt = model.tokenizer("the clinic")["input_ids"]
    answer = [*model.vocabulary.encode(" opens at nine"), model.eos_id]
    ids = torch.tensor([prompt + answer])
    labels = ids.clone()
    labels[0, : len(prompt)] = -100
    with torch.no_grad():
        loss = float(model.module(input_ids=ids, labels=labels).loss)
    assert found.num_tokens[0] == len(answer)
    assert -found.log_likelihoods[0] / len(answer) == pytest.approx(loss, rel=1e-5)


def test_a_uniform_model_gives_every_token_the_same_share() -> None:
    model = tiny()
    with torch.no_grad():
        model.module.get_output_embeddings().weight.zero_()
    rows = model.module.get_input_embeddings().num_embeddings
    found = answer_likelihoods(model, [Sample("the", " clinic")])
    assert found.log_likelihoods[0] == pytest.approx(-found.num_tokens[0] * math.log(rows), rel=1e-5)
