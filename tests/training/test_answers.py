"""Answers as further data: what a reader has no room for is left out, and only that."""

from __future__ import annotations

import pytest

from consort.errors import DataError
from consort.training.answers import answered
from consort.training.data import Sample, encode, fits
from tests.tiny_models import byte_level, escaped_spaces, tiny

ASKED = [Sample(f"{number}? ", None) for number in range(6)]


def readable(sample: Sample, reader, max_tokens: int) -> bool:
    try:
        return bool(encode(sample, reader, max_tokens).prompt_ids)
    except DataError:
        return False


@pytest.mark.parametrize("max_tokens", range(1, 14))
def test_a_sample_fits_exactly_where_it_can_be_encoded_with_some_prompt(max_tokens):
    reader = tiny("gpt2", escaped_spaces("unigram", lines_apart=True))
    for answer in ("x", "the clinic opens", "a machine stopped on Sundays"):
        sample = Sample("what is the limit?", answer)
        assert fits(sample, reader, max_tokens) == readable(sample, reader, max_tokens)


def test_an_answer_too_long_for_its_reader_is_left_out_and_no_other():
    writer, reader = tiny("llama", byte_level()), tiny("gpt2", escaped_spaces("unigram", lines_apart=True))
    every = answered(writer, ASKED, max_new_tokens=12, readers=[])
    lengths = sorted(len(reader.vocabulary.spans(sample.answer).ids) for sample in every)
    assert lengths[0] < lengths[-1]
    window = lengths[-1] + 1
    kept = answered(writer, ASKED, max_new_tokens=12, readers=[(writer, 10_000), (reader, window)])
    assert kept == [sample for sample in every if readable(sample, reader, window)]
    assert 0 < len(kept) < len(every)
