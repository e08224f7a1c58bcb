"""A transformers model's weights and shape under llama.cpp's names: Llama, Qwen, GPT-NeoX, GPT-2 and Bloom.

The traps are llama.cpp's layouts: Llama's query and key rows pair neighbours for rotation instead of
halves, GPT-NeoX and Bloom mix queries, keys and values head by head, GPT-2 stores matrices transposed. Does
not quantise and writes no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

from consort.errors import ModelError
from consort.types import FloatArray

Layout: TypeAlias = Callable[[str, FloatArray, Any], FloatArray]

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt_neox": "gptneox",
    "gpt2": "gpt2",
    "bloom": "bloom",
}


def architecture(config: Any, *, where: str) -> str:
    """llama.cpp's name of the model's class; ModelError where there is none here."""
    if config.model_type not in ARCHITECTURES:
        raise ModelError(
            f"GGUF is written for {', '.join(ARCHITECTURES)}, not for {config.model_type}",
            where=where,
            hint="export --format safetensors, then convert with llama.cpp's own convert_hf_to_gguf.py",
        )
    return ARCHITECTURES[config.model_type]


def hyperparameters(config: Any, *, where: str) -> dict[str, int | float | bool]:
    """llama.cpp's keys without the architecture in front."""
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None) or width // heads
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "seq_length", None) or 2048
    found: dict[str, int | float | bool] = {
        "context_length": context,
        "embedding_length": width,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or 4 * width,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
    }
    if hasattr(config, "rms_norm_eps"):
        found["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
        found["attention.key_length"] = found["attention.value_length"] = head_dim
    else:
        epsilons = (getattr(config, name, None) for name in ("layer_norm_eps", "layer_norm_epsilon"))
        found["attention.layer_norm_epsilon"] = next(value for value in epsilons if value is not None)
    rope = getattr(config, "rope_parameters", None)
    if rope:
        if rope.get("rope_type", "default") not in ("default", "llama3"):
            raise ModelError(f"GGUF is not written for rope_type {rope['rope_type']}", where=where)
        found["rope.freq_base"] = rope["rope_theta"]
        found["rope.dimension_count"] = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if config.model_type == "gpt_neox":
        found["use_parallel_residual"] = config.use_parallel_residual
    return found


def tensors(
    module: Any, name_of: Callable[[str], str | None], *, where: str
) -> Iterator[tuple[str, FloatArray]]:
    """Every weight as float32 under llama.cpp's name; `name_of` translates, and is None for unknown names."""
    config = module.config
    layout = _LAYOUTS.get(config.model_type, _as_it_is)
    tied = config.tie_word_embeddings
    head = next(name for name, layer in module.named_modules() if layer is module.get_output_embeddings())
    for name, weight in module.state_dict().items():
        # llama.cpp takes the embedding for a missing head, except for GPT-NeoX
        if tied and name.startswith(f"{head}.") and config.model_type != "gpt_neox":
            continue
        target = name_of(name) or name_of(name.removeprefix("transformer."))
        if target is None:
            raise ModelError(f"GGUF has no place for the weight {name}", where=where)
        array = weight.detach().to(torch.float32).cpu().numpy()
        yield target, np.ascontiguousarray(layout(name, array, config))
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config, rope)


def _as_it_is(name: str, weight: FloatArray, config: Any) -> FloatArray:
    return weight


def _llama(name: str, weight: FloatArray, config: Any) -> FloatArray:
    """Rotation pairs (i, i + half) become neighbours (2i, 2i + 1)."""
    kind = name.split(".")[-2]
    if kind not in ("q_proj", "k_proj"):
        return weight
    heads = config.num_attention_heads if kind == "q_proj" else config.num_key_value_heads
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _mixed_heads(name: str, weight: FloatArray, config: Any) -> FloatArray:
    """[head, (q, k, v), channel] becomes [(q, k, v), head, channel]."""
    if ".query_key_value." not in name:
        return weight
    heads = config.num_attention_heads
    mixed = weight.reshape(heads, 3, weight.shape[0] // heads // 3, *weight.shape[1:])
    return mixed.swapaxes(0, 1).reshape(weight.shape)


def _gpt2(name: str, weight: FloatArray, config: Any) -> FloatArray:
    """GPT-2's Conv1D stores [in, out]."""
    transposed = name.split(".")[-2] in ("c_attn", "c_proj", "c_fc") and weight.ndim == 2
    return weight.T if transposed else weight


_LAYOUTS: dict[str, Layout] = {
    "llama": _llama,
    "gpt_neox": _mixed_heads,
    "bloom": _mixed_heads,
    "gpt2": _gpt2,
}


def _llama3_factors(config: Any, rope: dict[str, Any]) -> FloatArray:
    """What Llama 3.1 divides each rotation's frequency by: long waves by `factor`, short ones by 1."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / head_dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)
