"""A GGUF file's tokenizer is the model's own: whole, from beside it, or built from llama.cpp's lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers

from consort.align import Vocabulary
from consort.errors import ModelError
from consort.models.gguf.file import Metadata, read_metadata
from consort.models.gguf.tokens import REGEX_NAMES, WHOLE_JSON, read_tokenizer
from consort.models.local import LocalModel, load_model
from consort.training.export import write_gguf
from tests.tiny_models import CPU, TEXT, byte_level, escaped_spaces, tiny

pytest.importorskip("gguf", reason="the gguf package writes GGUF: pip install gguf")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*llama.cpp reads characters a Unigram vocabulary lacks:UserWarning"
)

LLAMA3, QWEN2 = (Regex(regex) for regex in REGEX_NAMES)
KINDS = {
    "gpt-2": byte_level,
    "starcoder": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "llama-bpe": lambda: byte_level(pre_tokenizers.Split(LLAMA3, "isolated"), use_regex=False),
    "qwen2": lambda: byte_level(pre_tokenizers.Split(QWEN2, "isolated"), use_regex=False),
    "merges over text": lambda: escaped_spaces("bpe", lines_apart=True),
    "unigram": lambda: escaped_spaces("unigram", lines_apart=False),
}
TEXTS = (*TEXT[:4], "", "two  spaces, 12345\n\n  indented and what's more", "a")


def written(model: LocalModel, folder: Path) -> tuple[Path, Metadata]:
    file = folder / "m.gguf"
    write_gguf(model, file, precision="float32")
    return file, read_metadata(file)


def check_built(model: LocalModel, folder: Path, texts: tuple[str, ...]) -> None:
    """Without the whole JSON: the same bytes behind each id, the same cuts."""
    file, metadata = written(model, folder)
    del metadata[WHOLE_JSON]
    stored = read_tokenizer(metadata, file)
    built = Vocabulary.of(stored)
    assert not stored.whole
    assert built.token_bytes == model.vocabulary.token_bytes
    assert (built.eos_id, built.adds_space) == (model.eos_id, model.vocabulary.adds_space)
    for text in texts:
        assert built.encode(text) == model.vocabulary.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_lists_give_the_tokens_their_bytes_and_cut_as_the_tokenizer_does(kind: str, tmp_path: Path) -> None:
    check_built(tiny(tokenizer=KINDS[kind]()), tmp_path, TEXTS)


def test_the_lists_of_a_real_sentencepiece_model_cut_as_its_tokenizer(
    shared_data: Path, tmp_path: Path
) -> None:
    checkpoint = shared_data / "checkpoints" / "stories260K"
    if not checkpoint.exists():
        pytest.skip(f"no checkpoint at {checkpoint}; set CONSORT_DATA")
    check_built(load_model(checkpoint, runtime=CPU), tmp_path, (*TEXTS, "né 你好 🙂"))


def test_a_file_that_holds_its_tokenizer_whole_or_has_it_beside_is_known_by_the_same_hash(
    tmp_path: Path,
) -> None:
    model = tiny()
    file, metadata = written(model, tmp_path)
    assert Vocabulary.of(read_tokenizer(metadata, file)).sha256 == model.vocabulary.sha256
    del metadata[WHOLE_JSON]
    model.tokenizer.save_pretrained(tmp_path)
    stored = read_tokenizer(metadata, file)
    assert stored.whole
    assert Vocabulary.of(stored).sha256 == model.vocabulary.sha256


def test_what_no_lists_can_say_is_refused_with_a_way_out(tmp_path: Path) -> None:
    file, metadata = written(tiny(), tmp_path)
    del metadata[WHOLE_JSON]
    with pytest.raises(ModelError, match=r"(?s)kind 'rwkv'.*tokenizer\.json"):
        read_tokenizer(metadata | {"tokenizer.ggml.model": "rwkv"}, file)
    with pytest.raises(ModelError, match="names no end"):
        read_tokenizer(metadata | {"tokenizer.ggml.eos_token_id": 10**6}, file)
    del metadata["tokenizer.ggml.merges"]
    with pytest.raises(ModelError, match="lists are broken"):
        read_tokenizer(metadata, file)
