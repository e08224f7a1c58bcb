"""Likelihoods of answers: rows together are as each alone, and as transformers counts them."""

from __future__ import annotations

import math

import pytest
import torch

from consort.training.data import Sample
from consort.training.likelihood import answer_likelihoods
from tests.tiny_models import tiny


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
