"""Loading and generating: the saved tokenizer comes back, and a batch answers like its rows one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from consort.errors import ModelError
from consort.models.local import generate, load_model, save_model
from tests.tiny_models import ARCHITECTURES, CPU, byte_level, escaped_spaces, tiny

TEXT = "grüße,  what's   the daily limit?\nerror 17"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox", "gpt2", "bloom"])
@pytest.mark.parametrize("family", ["byte_level", "bpe", "unigram"])
def test_a_saved_model_comes_back_with_its_own_tokenizer(architecture, family, tmp_path):
    tokenizer = byte_level() if family == "byte_level" else escaped_spaces(family, lines_apart=True)
    model = tiny(architecture, tokenizer)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, runtime=CPU)
    assert loaded.vocabulary.encode(TEXT) == model.vocabulary.encode(TEXT)
    assert loaded.vocabulary.decode(loaded.vocabulary.encode(TEXT)) == TEXT
    assert loaded.vocabulary.sha256 == model.vocabulary.sha256


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_batch_of_prompts_is_answered_as_each_alone(architecture):
    model = tiny(architecture)
    prompts = [
        model.vocabulary.encode(text) for text in ("the clinic opens", "error", "what's the daily limit of")
    ]
    together = generate(model, prompts, max_new_tokens=6)
    assert together == [generate(model, [prompt], max_new_tokens=6)[0] for prompt in prompts]


def test_a_directory_without_a_model_says_what_to_give(tmp_path):
    with pytest.raises(ModelError, match="no such directory"):
        load_model(tmp_path / "nothing", runtime=CPU)


def test_a_models_own_generation_settings_colour_no_answer():
    model = tiny("llama")
    prompts = [model.vocabulary.encode("the clinic opens at")]
    plain = generate(model, prompts, max_new_tokens=12)
    drawn = generate(model, prompts, max_new_tokens=12, temperature=1.0, seed=3)
    model.module.generation_config.repetition_penalty = 9.0
    model.module.generation_config.top_k = 1
    assert generate(model, prompts, max_new_tokens=12) == plain
    assert generate(model, prompts, max_new_tokens=12, temperature=1.0, seed=3) == drawn
    assert drawn != plain


def test_next_to_no_probability_leaves_the_likeliest_token_alone():
    model = tiny("gpt2")
    prompts = [model.vocabulary.encode(text) for text in ("error", "what's the daily limit of")]
    greedy = generate(model, prompts, max_new_tokens=8)
    assert generate(model, prompts, max_new_tokens=8, temperature=1.0, top_p=1e-6, seed=5) == greedy


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
def test_a_full_disk_is_the_system_s_error_whichever_library_meets_it(tmp_path, file):
    (tmp_path / file).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_model(tiny(), tmp_path)
