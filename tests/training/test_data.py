"""Rows of JSONL as samples: three shapes, one meaning; and every malformed row named by file and line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.errors import DataError, ModelError
from consort.training.data import Sample, encode, needs_template, prompt_ids, read_samples
from consort.types import Message
from tests.tiny_models import tiny

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def write(path, *rows):
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return path


@given(question=text, answer=text)
def test_messages_and_instructions_mean_the_same(question, answer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    first = read_samples(write(folder / "a.jsonl", json.dumps({"messages": turns})))
    second = read_samples(write(folder / "b.jsonl", json.dumps({"instruction": question, "output": answer})))
    assert first == second == [Sample((Message("user", question),), answer)]


def test_instruction_and_input_are_one_question(tmp_path):
    row = json.dumps({"instruction": "Name the intent.", "input": "my card is gone", "output": "lost card"})
    (sample,) = read_samples(write(tmp_path / "rows.jsonl", row))
    assert sample.prompt == (Message("user", "Name the intent.\nmy card is gone"),)


def test_a_prompt_of_text_needs_no_template_and_messages_do(tmp_path):
    (plain,) = read_samples(write(tmp_path / "rows.jsonl", '{"prompt": "1 + 1 =", "completion": " 2"}'))
    assert plain == Sample("1 + 1 =", " 2")
    assert not needs_template([plain])
    assert needs_template([Sample((Message("user", "hello"),), "hello")])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "must be a JSON object"),
        ('{"question": "?"}', "unknown shape"),
        ('{"prompt": "?"}', '"completion" is missing'),
        ('{"prompt": 3, "completion": ""}', '"prompt" is a int'),
        ('{"messages": [{"role": "user", "content": "?"}]}', "ends with the assistant's"),
        ('{"messages": [{"role": "robot", "content": "?"}]}', "list of {role, content}"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(row, said, tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"prompt": "a", "completion": "b"}', "", row)
    with pytest.raises(DataError, match=r"rows\.jsonl:3: ") as caught:
        read_samples(path)
    assert said in str(caught.value)


def test_a_row_in_another_encoding_is_named_by_file_and_line(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "é"}'.encode("latin-1")
    )
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not UTF-8"):
        read_samples(tmp_path / "rows.jsonl")


def test_several_malformed_rows_are_told_together_three_of_them_by_line(tmp_path):
    path = write(tmp_path / "rows.jsonl", *['{"prompt": 1}'] * 5)
    with pytest.raises(DataError, match="5 malformed rows") as caught:
        read_samples(path)
    assert [f"rows.jsonl:{line}: " in str(caught.value) for line in (1, 2, 3, 4)] == [True, True, True, False]


@pytest.mark.parametrize("template", ["{% for m in", "{{ raise_exception('no') }}", "{{ messages + 1 }}"])
def test_a_template_that_fails_is_one_error_of_ours(template):
    model = tiny("llama")
    model.tokenizer.chat_template = template
    with pytest.raises(ModelError, match="chat template cannot write"):
        prompt_ids(Sample((Message("user", "hello"),), None), model)


def test_an_empty_prompt_is_the_end_of_an_earlier_text():
    model = tiny("llama")
    assert prompt_ids(Sample("", "yes"), model) == [model.eos_id]


def test_an_unlabelled_row_needs_no_answer_and_a_labelled_one_does(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"instruction": "what now?"}')
    assert read_samples(path, labelled=False)[0].answer is None
    with pytest.raises(DataError):
        read_samples(path)


def test_an_empty_or_missing_split_says_so(tmp_path):
    write(tmp_path / "train.jsonl", "")
    with pytest.raises(DataError, match="holds no rows"):
        read_samples(tmp_path, "train")
    with pytest.raises(DataError, match="no such file"):
        read_samples(tmp_path, "test")


def test_a_long_prompt_loses_its_beginning_and_the_answer_nothing():
    model = tiny("llama")
    whole = encode(Sample((Message("user", "the clinic opens at nine " * 9),), "at nine"), model, 256)
    short = encode(Sample((Message("user", "the clinic opens at nine " * 9),), "at nine"), model, 24)
    assert not whole.truncated
    assert short.truncated
    assert short.num_tokens == 24
    assert short.answer_ids == whole.answer_ids
    assert whole.prompt_ids[-len(short.prompt_ids) :] == short.prompt_ids


def test_an_answer_that_fits_no_context_is_an_error_and_not_cut():
    with pytest.raises(DataError, match="does not fit a context of 8"):
        encode(Sample("why?", "the clinic opens at nine " * 9), tiny("llama"), 8)


def test_a_model_without_a_template_says_what_to_do():
    model = tiny("llama")
    model.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="chat_template"):
        prompt_ids(Sample((Message("user", "hello"),), None), model)
