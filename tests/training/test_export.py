"""What is exported computes what the model computed: in PEFT, transformers and llama.cpp."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from consort.errors import ModelError, RunError
from consort.models import zoo
from consort.models.gguf.tokens import BYTE, CONTROL, UNUSED
from consort.models.local import LocalModel, generate, load_model
from consort.training.adapters import OWN
from consort.training.export import export_model, write_gguf
from consort.training.gguf_vocabulary import gguf_vocabulary
from consort.training.peft_directory import load_adapter, merge_adapters, save_adapter
from consort.training.tuned import load_tuned
from tests.tiny_models import ARCHITECTURES, CPU, TEXT, byte_level, escaped_spaces, tiny, tune_somehow

PROMPT = "the machine stopped at nine, what's the limit?"


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(input_ids=torch.arange(1, 60)[None]).logits
    return found


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapter_saved_and_loaded_computes_the_same_here_and_in_peft(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    base = logits(model.module)
    model.module.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    tune_somehow(model)
    tuned = logits(model.module)
    assert not torch.allclose(base, tuned, atol=1e-2)
    save_adapter(model, OWN, tmp_path / "adapter", base=str(tmp_path / "base"))
    again = load_tuned(str(tmp_path / "base"), adapter=tmp_path / "adapter", runtime=CPU)
    assert torch.equal(logits(again.module), tuned)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with_peft = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    assert torch.allclose(logits(with_peft), tuned, atol=1e-5)


def test_merged_weights_compute_what_base_and_adapter_did(tmp_path: Path) -> None:
    model = tiny()
    tune_somehow(model)
    tuned = logits(model.module)
    out = export_model(
        model, tmp_path / "out", form="safetensors", precision="float32", base="base/x", adapter=OWN
    )
    assert torch.allclose(logits(model.module), tuned, atol=1e-4)
    again = load_model(out, runtime=CPU)
    assert torch.equal(logits(again.module), logits(model.module))
    assert again.tokenizer(PROMPT)["input_ids"] == model.tokenizer(PROMPT)["input_ids"]
    assert "base_model: base/x" in (out / "README.md").read_text(encoding="utf-8")
    assert AutoConfig.from_pretrained(out).model_type == "llama"


def test_merging_without_an_adapter_changes_nothing() -> None:
    model = tiny()
    before = logits(model.module)
    merge_adapters(model)
    assert torch.equal(logits(model.module), before)


def test_an_adapter_for_another_base_is_refused_even_where_shapes_agree(tmp_path: Path) -> None:
    model = tiny()
    tune_somehow(model)
    save_adapter(model, OWN, tmp_path / "adapter", base="the/base")
    other = tiny()
    with torch.no_grad():
        next(other.module.parameters())[0, 0] += 1
    with pytest.raises(ModelError, match=r"another base.*\n.*the/base"):
        load_adapter(other, tmp_path / "adapter")


@pytest.mark.parametrize("header", [None, {"format": "pt"}])
def test_an_adapter_of_other_shapes_is_refused_without_a_hash_too(header: Any, tmp_path: Path) -> None:
    model = tiny()
    tune_somehow(model)
    save_adapter(model, OWN, tmp_path, base="the/base")
    weights = tmp_path / "adapter_model.safetensors"
    save_file({name: value[:-1] for name, value in load_file(weights).items()}, weights, metadata=header)
    with pytest.raises(ModelError, match="the model's is"):
        load_adapter(tiny(), tmp_path)


def test_an_adapter_for_another_architecture_is_refused(tmp_path: Path) -> None:
    model = tiny("gpt2")
    tune_somehow(model)
    save_adapter(model, OWN, tmp_path, base="the/base")
    weights = tmp_path / "adapter_model.safetensors"
    save_file(load_file(weights), weights)
    with pytest.raises(ModelError, match="fits no layer"):
        load_adapter(tiny("llama"), tmp_path)


@pytest.mark.parametrize(
    "change", [{"peft_type": "IA3"}, {"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}]
)
def test_other_adapters_than_plain_lora_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    model = tiny()
    tune_somehow(model)
    save_adapter(model, OWN, tmp_path, base="the/base")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match="only plain LoRA"):
        load_adapter(tiny(), tmp_path)


def test_a_directory_that_is_no_adapter_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load_adapter(tiny(), tmp_path)


def test_export_refuses_what_it_would_overwrite_and_what_makes_no_sense(tmp_path: Path) -> None:
    model = tiny()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(RunError, match="not empty"):
        export_model(model, tmp_path / "full", form="safetensors", base="x")
    with pytest.raises(ModelError, match="no adapter"):
        export_model(model, tmp_path / "out", form="peft", base="x")
    with pytest.raises(ModelError, match="q8_0"):
        export_model(model, tmp_path / "out", form="safetensors", precision="q8_0", base="x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    unsupported = tiny(tokenizer=escaped_spaces("bpe", lines_apart=False))
    with pytest.raises(ModelError, match="across line ends"):
        export_model(unsupported, tmp_path / "out", form="gguf", base="x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["float32", "q8_0"])
def test_gguf_holds_every_weight_once_and_a_token_for_every_row(
    name: str, precision: Any, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package writes GGUF: pip install gguf")
    model = tiny(name)
    write_gguf(model, tmp_path / "m.gguf", precision=precision)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name != "rope_freqs.weight")
    held = sum(parameter.numel() for parameter in model.module.parameters())
    tied = model.module.get_output_embeddings().weight.numel() if name == "gpt_neox" else 0
    assert stored == held + tied
    rows = model.module.get_input_embeddings().num_embeddings
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == rows


def test_rows_without_a_token_get_one_that_nobody_writes() -> None:
    tokenizer = byte_level()
    vocabulary = gguf_vocabulary(tokenizer, num_rows=len(tokenizer) + 8, where="tiny")
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens) == len(tokenizer) + 8
    assert vocabulary.types[-8:] == [UNUSED] * 8
    assert vocabulary.types[0] == CONTROL
    assert vocabulary.special_ids == {"eos": 0}
    assert not vocabulary.add_bos


LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    "gpt-2": lambda: byte_level(),
    "starcoder": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "llama-bpe": lambda: byte_level(pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"), use_regex=False),
    "sarvam-moe": lambda: escaped_spaces("bpe", lines_apart=True),
    "default": lambda: escaped_spaces("unigram", lines_apart=False),
}


@pytest.mark.filterwarnings("ignore:.*llama.cpp reads characters a Unigram vocabulary lacks:UserWarning")
@pytest.mark.parametrize("pre", CUTS)
def test_the_way_to_cut_words_is_recognised(pre: str) -> None:
    tokenizer = CUTS[pre]()
    vocabulary = gguf_vocabulary(tokenizer, num_rows=len(tokenizer), where="tiny")
    assert vocabulary.pre == pre
    bytes_ = [text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == BYTE]
    assert len(bytes_) == (0 if vocabulary.model == "gpt2" and pre != "sarvam-moe" else 256)


TEXTS = st.text(st.sampled_from("the clinic's\n\n  9é▁日🙂\t.,"), max_size=40)


@pytest.mark.filterwarnings("ignore:.*llama.cpp reads characters a Unigram vocabulary lacks:UserWarning")
@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_bundled_tokenizer_can_be_written_for_llama_cpp(name: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(zoo.zoo_dir(name))
    vocabulary = gguf_vocabulary(tokenizer, num_rows=len(tokenizer), where=name)
    assert vocabulary.tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


@pytest.mark.filterwarnings("ignore:.*llama.cpp reads characters a Unigram vocabulary lacks:UserWarning")
@pytest.mark.parametrize("name", ["edge-neox", "edge-qwen2"])
@given(text=TEXTS)
@settings(deadline=None)
def test_cuts_that_are_left_out_change_no_token(name: str, text: str) -> None:
    """The tokenizer with llama.cpp's cut in place of its own: lines for "sarvam-moe", none for Unigram."""
    own, theirs = tokenizers_of(name)
    assert theirs.encode(text).ids == own.encode(text).ids


@functools.cache
def tokenizers_of(name: str) -> tuple[Tokenizer, Tokenizer]:
    own = Tokenizer.from_file(str(zoo.zoo_dir(name) / "tokenizer.json"))
    written = gguf_vocabulary(
        PreTrainedTokenizerFast(tokenizer_object=own), num_rows=own.get_vocab_size(), where=name
    )
    theirs = Tokenizer.from_str(own.to_str())
    lines = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    theirs.pre_tokenizer = {"sarvam-moe": lines, "default": pre_tokenizers.Sequence([])}[written.pre]
    return own, theirs


def test_a_cut_that_a_token_reaches_across_is_refused() -> None:
    tokenizer = escaped_spaces("bpe", lines_apart=False)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    assert any("\n" in token and token != "\n" for token in state["model"]["vocab"])
    lines = pre_tokenizers.Split("\n", "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = lines
    with pytest.raises(ModelError, match="cannot cut the text"):
        gguf_vocabulary(tokenizer, num_rows=len(tokenizer), where="tiny")


def test_words_cut_in_an_unknown_way_are_refused() -> None:
    unknown = byte_level(pre_tokenizers.Punctuation())
    with pytest.raises(ModelError, match="no name for the way"):
        gguf_vocabulary(unknown, num_rows=len(unknown), where="tiny")


def test_a_class_without_gguf_is_refused_with_a_way_out(tmp_path: Path) -> None:
    model = tiny()
    model.module.config.model_type = "mamba"
    with pytest.raises(ModelError, match="convert_hf_to_gguf"):
        write_gguf(model, tmp_path / "m.gguf", precision="float32")


def llama_cpp_tokens(file: Path, prompt: str, *, count: int) -> tuple[list[int], list[int]]:
    """llama.cpp's tokens of the prompt and its greedy continuation."""
    llama_cpp = pytest.importorskip(
        "llama_cpp",
        reason="llama.cpp is not installed (pip install llama-cpp-python builds it from source)",
    )
    engine = llama_cpp.Llama(
        str(file), verbose=False, n_ctx=256, n_threads=1, type_k=0, type_v=0
    )  # float32 cache
    prompt_ids = engine.tokenize(prompt.encode(), add_bos=False, special=False)
    written: list[int] = []
    for token in engine.generate(prompt_ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        written.append(token)
        if len(written) == count or token == engine.token_eos():
            break
    engine.close()
    return prompt_ids, written


def check_against_llama_cpp(model: LocalModel, file: Path, prompt: str) -> None:
    ids = model.tokenizer(prompt)["input_ids"]
    (expected,) = generate(model, [ids], max_new_tokens=24)
    read, written = llama_cpp_tokens(file, prompt, count=24)
    assert read == ids
    assert [token for token in written if token != model.eos_id] == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_llama_cpp_writes_the_same_tokens_for_every_architecture(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    tune_somehow(model)
    file = export_model(model, tmp_path / "out", form="gguf", precision="float32", base="x", adapter=OWN)
    check_against_llama_cpp(model, file, PROMPT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*llama.cpp reads characters a Unigram vocabulary lacks:UserWarning")
@pytest.mark.parametrize("pre", CUTS)
def test_llama_cpp_reads_the_same_tokens_for_every_tokenizer(pre: str, tmp_path: Path) -> None:
    model = tiny(tokenizer=CUTS[pre]())
    file = export_model(model, tmp_path / "out", form="gguf", precision="float32", base="x")
    texts = (*TEXT[:4], "two  spaces, 12345 and a tail \n\n  indented", "né 你好 🙂")
    if pre == "default":  # characters that a Unigram vocabulary lacks are unknown to llama.cpp
        texts = tuple("".join(char for char in text if char in "".join(TEXT)) for text in texts)
    for text in texts:
        read, _ = llama_cpp_tokens(file, text, count=1)
        assert read == model.tokenizer(text)["input_ids"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*llama.cpp reads characters a Unigram vocabulary lacks:UserWarning")
@pytest.mark.parametrize("name", zoo.NAMES)
def test_llama_cpp_continues_every_bundled_model_as_transformers_does(name: str, tmp_path: Path) -> None:
    model = load_model(f"zoo:{name}", runtime=CPU)
    file = export_model(model, tmp_path / "out", form="gguf", precision="float32", base=f"zoo:{name}")
    check_against_llama_cpp(model, file, "user: Name the intent.\nMy card  is gone\nassistant:\n")


@pytest.mark.slow
def test_llama_cpp_continues_a_real_sentencepiece_model_as_transformers_does(tmp_path: Path) -> None:
    data = Path(os.environ.get("CONSORT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    checkpoint = data / "checkpoints" / "stories260K"
    if not checkpoint.exists():
        pytest.skip(f"no checkpoint at {checkpoint}; set CONSORT_DATA")
    model = load_model(checkpoint, runtime=CPU)
    file = export_model(model, tmp_path / "out", form="gguf", precision="float32", base="stories260K")
    for prompt in ("Once upon a time, there was", "Lily's 2 dogs 🙂 ran", "The  cat"):
        check_against_llama_cpp(model, file, prompt)
