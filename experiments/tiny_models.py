"""Tokenizers and language models small enough to be trained from scratch here: four tokenizer families, five
architectures.

Used by the recipe of the bundled zoo and by the experiments on real data. Only sizes are chosen here, no
training is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from consort.config import RuntimeConfig
from consort.models.local import LocalModel, wrap_model

Family = Literal["byte_bpe", "sentencepiece_bpe", "unigram"]
Architecture = Literal["llama", "qwen2", "gpt_neox", "gpt2", "bloom"]

END, PAD = "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)


def train_tokenizer(family: Family, vocabulary: int, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of this family that loses no byte: byte-level, or with byte fallback."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    special = [END, PAD]
    if family == "byte_bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        marks = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        if family == "sentencepiece_bpe":
            tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token=END))
            trainer = trainers.BpeTrainer(
                vocab_size=vocabulary,
                special_tokens=[*special, *byte_tokens],
                show_progress=False,
                max_token_length=16,
            )
        else:
            tokenizer = Tokenizer(models.Unigram())
            trainer = trainers.UnigramTrainer(
                vocab_size=vocabulary,
                special_tokens=[*special, *byte_tokens],
                unk_token=END,
                show_progress=False,
            )
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        # llama.cpp never joins across a line's end, so neither do these: their models can be exported to GGUF
        lines = pre_tokenizers.Split("\n", "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [lines, pre_tokenizers.Split("▁", "merged_with_next")]
        )
        tokenizer.decoder = marks
    tokenizer.train_from_iterator(texts, trainer)
    if family == "unigram":
        tokenizer = _with_byte_fallback(tokenizer)
    if family != "byte_bpe":
        # the byte tokens are vocabulary, not markup: they must not be found inside a text or skipped when
        # decoding
        tokenizer = _only_special(tokenizer, special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=AddedToken(END, normalized=False, special=True),
        pad_token=AddedToken(PAD, normalized=False, special=True),
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    architecture: Architecture, *, vocabulary: int, width: int, layers: int, context: int = 512
) -> PreTrainedModel:
    """A fresh model with tied embeddings, two (GPT-NeoX, GPT-2, Bloom: four) heads per 64 channels."""
    shared = {
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    heads = max(2, width // 32)
    gated = {
        "hidden_size": width,
        "intermediate_size": round(width * 8 / 3 / 32) * 32,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": context,
    }
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**gated, **shared))
    if architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**gated, **shared))
    if architecture == "gpt_neox":
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                max_position_embeddings=context,
                **shared,
            )
        )
    if architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                n_positions=context,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **shared,
            )
        )
    return BloomForCausalLM(
        BloomConfig(hidden_size=width, n_layer=layers, n_head=heads, seq_length=context, **shared)
    )


def new_model(
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    architecture: Architecture,
    *,
    width: int,
    layers: int,
    seed: int,
    runtime: RuntimeConfig,
) -> LocalModel:
    """`build_model` under this tokenizer, its weights drawn from `seed`."""
    torch.manual_seed(seed)
    module = build_model(architecture, vocabulary=len(tokenizer), width=width, layers=layers)
    return wrap_model(module, tokenizer, name=name, runtime=runtime)


def _with_byte_fallback(tokenizer: Tokenizer) -> Tokenizer:
    import json

    state = json.loads(tokenizer.to_str())
    state["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(state))


def _only_special(tokenizer: Tokenizer, special: list[str]) -> Tokenizer:
    import json

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(state))


def save(model: LocalModel, directory: Path) -> None:
    """An ordinary transformers directory with bfloat16 weights."""
    model.module.generation_config = GenerationConfig(
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=model.eos_id,
        pad_token_id=model.tokenizer.pad_token_id,
    )
    model.module.to(torch.bfloat16).save_pretrained(directory)
    model.tokenizer.save_pretrained(directory)
