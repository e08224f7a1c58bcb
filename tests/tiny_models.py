"""Real language models of every supported class and tokenizer family, untrained, a few thousand weights."""

from __future__ import annotations

import json
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BloomForCausalLM,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from consort.config import RuntimeConfig
from consort.models.local import LocalModel, wrap_model
from consort.training.adapters import OWN, add_lora, lora_parameters

CPU = RuntimeConfig(device="cpu")
TEXT = [
    "the clinic opens at nine and closes at half past five, except on Sundays",
    "error 17: a machine stopped\nplease call the shift leader at once",
    "what's the daily limit of the blue card? 400 euro, we're told",
    "grüße aus Köln",
] * 3
END = "<|end|>"
SIZES = {
    "vocab_size": 0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.3,
}
GATED = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ARCHITECTURES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, GATED),
    "llama_untied_bias": (LlamaForCausalLM, GATED | {"tie_word_embeddings": False, "attention_bias": True}),
    "llama3_rope": (LlamaForCausalLM, GATED | {"rope_parameters": LLAMA3}),
    "qwen2": (Qwen2ForCausalLM, GATED),
    "qwen3": (Qwen3ForCausalLM, GATED | {"head_dim": 32}),
    "gpt_neox": (
        GPTNeoXForCausalLM,
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "gpt2": (GPT2LMHeadModel, {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "bloom": (BloomForCausalLM, {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
}


def byte_level(*before: Any, use_regex: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, level]) if before else level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return fast(tokenizer)


def escaped_spaces(model: str, *, lines_apart: bool) -> PreTrainedTokenizerFast:
    """SentencePiece-like: spaces are ▁, unknown characters fall back to bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    if model == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=[END, *bytes_], unk_token=END, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token=END))
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[END, *bytes_], show_progress=False)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    cut = pre_tokenizers.Split("▁", "merged_with_next")
    lines = pre_tokenizers.Split("\n", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, cut]) if lines_apart else cut
    tokenizer.train_from_iterator(TEXT, trainer)
    state = json.loads(tokenizer.to_str())
    state["model"]["byte_fallback"] = True
    state["added_tokens"] = state["added_tokens"][:1]
    state["pre_tokenizer"] = json.loads(cut.__getstate__())
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return fast(tokenizer)


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=AddedToken(END, normalized=False, special=True),
        chat_template="{% for m in messages %}{{ m.content }}\n{% endfor %}",
    )


def tiny(name: str = "llama", tokenizer: PreTrainedTokenizerFast | None = None) -> LocalModel:
    tokenizer = tokenizer or byte_level()
    kind, settings = ARCHITECTURES[name]
    torch.manual_seed(0)
    # rows beyond the tokenizer, as real models have
    module = kind(kind.config_class(**(SIZES | settings | {"vocab_size": len(tokenizer) + 8})))
    with torch.no_grad():
        for parameter_name, parameter in module.named_parameters():
            if parameter_name.endswith(".bias"):
                parameter.normal_(std=0.3)
        module.get_output_embeddings().weight[len(tokenizer) :] = 0
    return wrap_model(module, tokenizer, name=name, runtime=CPU)


def tune_somehow(model: LocalModel) -> None:
    add_lora(model, OWN, rank=3, alpha=6.0, seed=1)
    for parameter in lora_parameters(model, OWN).values():
        with torch.no_grad():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
