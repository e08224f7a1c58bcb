"""The weights of the usual families (Llama, Mistral, Qwen2, Qwen3, GPT-NeoX, GPT-2, Bloom) as one kind of
decoder.

Reads a transformers module with the LoRAs it computes with, and refuses (`None`) whatever the lean network
does not compute, by looking at the configuration and at the layers' classes. Matrices that are joined are
copies in float32, as are those wider than long; the others are shared with the module, until `memory` moves
them. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from consort.models.decoding.parts import Activation, Decoder, Layer, LayerNorm, Linear, RmsNorm

ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
STATIC_ROPES = {"default", "linear", "llama3", "yarn"}  # frequencies that do not depend on the text's length


@torch.no_grad()
def read_decoder(module: Any, positions: int) -> Decoder | None:
    """The module's weights, for texts of up to `positions` tokens; None where a part is not understood."""
    kind = type(module)
    read = FAMILIES.get(kind.__name__)
    if read is None or not kind.__module__.startswith("transformers.models."):
        return None
    if any(_is_strange(layer) for layer in module.modules()):
        return None
    return read(module, positions)


def _is_strange(layer: nn.Module) -> bool:
    """Whether a layer holds weights otherwise than this file reads them: other adapters, other numbers."""
    if isinstance(layer, LoraLayer):
        return bool(getattr(layer, "lora_variant", None)) or _is_strange(layer.get_base_layer())
    if any(not parameter.is_floating_point() for parameter in layer.parameters(recurse=False)):
        return True
    return isinstance(layer, nn.Linear) and type(layer) is not nn.Linear


def _llama(module: Any, positions: int) -> Decoder | None:
    """Llama, Mistral, Qwen2, Qwen3: RMSNorm, rotation, gated MLP, grouped queries."""
    config, trunk = module.config, module.model
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = trunk.layers[0].self_attn.head_dim
    rotation_CR = _rotation(trunk.rotary_emb, positions, head_dim)
    if rotation_CR is None or _slides(config, positions) or config.hidden_act not in ACTIVATIONS:
        return None
    order = _neighbours(head_dim, head_dim)

    def layer(block: Any) -> Layer:
        attention, mlp = block.self_attn, block.mlp
        queries = _by_head(_linear(attention.q_proj), heads, order)
        keys = _by_head(_linear(attention.k_proj), kv_heads, order)
        norm = None
        if hasattr(attention, "q_norm"):
            weights = [attention.q_norm.weight[order]] * heads + [attention.k_norm.weight[order]] * kv_heads
            eps, device = attention.q_norm.variance_epsilon, module.device
            norm = RmsNorm(torch.ones(2 * head_dim, device=device), eps), torch.stack(weights).float()
        return Layer(
            attention_norm=_rms_norm(block.input_layernorm),
            qkv=_joined([queries, keys, _linear(attention.v_proj)]),
            qk_norm=norm,
            out=_linear(attention.o_proj),
            mlp_norm=_rms_norm(block.post_attention_layernorm),
            up=_joined([_linear(mlp.gate_proj), _linear(mlp.up_proj)]),
            down=_linear(mlp.down_proj),
        )

    return Decoder(
        embedding_VD=trunk.embed_tokens.weight.float(),
        layers=tuple(layer(block) for block in trunk.layers),
        final_norm=_rms_norm(trunk.norm),
        head=_linear(module.get_output_embeddings()),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        activation=ACTIVATIONS[config.hidden_act],
        gated=True,
        rotation_CR=rotation_CR,
    )


def _gpt_neox(module: Any, positions: int) -> Decoder | None:
    """GPT-NeoX (Pythia): LayerNorm, rotation of a part of each head, mostly attention beside the MLP."""
    config, trunk = module.config, module.gpt_neox
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    rotation_CR = _rotation(trunk.rotary_emb, positions, head_dim)
    if rotation_CR is None or config.hidden_act not in ACTIVATIONS:
        return None
    order = _neighbours(2 * len(trunk.rotary_emb.inv_freq), head_dim)

    def layer(block: Any) -> Layer:
        queries, keys, values = _apart(_linear(block.attention.query_key_value), heads)
        return Layer(
            attention_norm=_layer_norm(block.input_layernorm),
            qkv=_joined([_by_head(queries, heads, order), _by_head(keys, heads, order), values]),
            qk_norm=None,
            out=_linear(block.attention.dense),
            mlp_norm=_layer_norm(block.post_attention_layernorm),
            up=_linear(block.mlp.dense_h_to_4h),
            down=_linear(block.mlp.dense_4h_to_h),
        )

    return Decoder(
        embedding_VD=trunk.embed_in.weight.float(),
        layers=tuple(layer(block) for block in trunk.layers),
        final_norm=_layer_norm(trunk.final_layer_norm),
        head=_linear(module.get_output_embeddings()),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        activation=ACTIVATIONS[config.hidden_act],
        parallel=config.use_parallel_residual,
        rotation_CR=rotation_CR,
    )


def _bloom(module: Any, positions: int) -> Decoder | None:
    """Bloom: LayerNorm, attention biased by distance."""
    config, trunk = module.config, module.transformer
    if config.apply_residual_connection_post_layernorm:
        return None

    def layer(block: Any) -> Layer:
        return Layer(
            attention_norm=_layer_norm(block.input_layernorm),
            qkv=_joined(_apart(_linear(block.self_attention.query_key_value), config.n_head)),
            qk_norm=None,
            out=_linear(block.self_attention.dense),
            mlp_norm=_layer_norm(block.post_attention_layernorm),
            up=_linear(block.mlp.dense_h_to_4h),
            down=_linear(block.mlp.dense_4h_to_h),
        )

    return Decoder(
        embedding_VD=trunk.word_embeddings.weight.float(),
        layers=tuple(layer(block) for block in trunk.h),
        final_norm=_layer_norm(trunk.ln_f),
        head=_linear(module.get_output_embeddings()),
        heads=config.n_head,
        kv_heads=config.n_head,
        head_dim=config.hidden_size // config.n_head,
        activation=ACTIVATIONS["gelu_new"],
        embedding_norm=_layer_norm(trunk.word_embeddings_layernorm),
        slopes_H=_slopes(trunk, config.n_head),
    )


def _gpt2(module: Any, positions: int) -> Decoder | None:
    """GPT-2: LayerNorm, learned positions."""
    config, trunk = module.config, module.transformer
    scaled_otherwise = not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx
    if scaled_otherwise or config.add_cross_attention or config.activation_function not in ACTIVATIONS:
        return None

    def layer(block: Any) -> Layer:
        return Layer(
            attention_norm=_layer_norm(block.ln_1),
            qkv=_linear(block.attn.c_attn),
            qk_norm=None,
            out=_linear(block.attn.c_proj),
            mlp_norm=_layer_norm(block.ln_2),
            up=_linear(block.mlp.c_fc),
            down=_linear(block.mlp.c_proj),
        )

    return Decoder(
        embedding_VD=trunk.wte.weight.float(),
        layers=tuple(layer(block) for block in trunk.h),
        final_norm=_layer_norm(trunk.ln_f),
        head=_linear(module.get_output_embeddings()),
        heads=config.n_head,
        kv_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        activation=ACTIVATIONS[config.activation_function],
        positions_CD=trunk.wpe.weight.float(),
    )


FAMILIES: dict[str, Callable[[Any, int], Decoder | None]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _llama,
    "Qwen2ForCausalLM": _llama,
    "Qwen3ForCausalLM": _llama,
    "GPTNeoXForCausalLM": _gpt_neox,
    "BloomForCausalLM": _bloom,
    "GPT2LMHeadModel": _gpt2,
}


def _linear(layer: Any) -> Linear:
    """A layer's weight as it computes: with the LoRAs in use, [in, out]."""
    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    weight, bias = base.weight.detach().float(), base.bias
    if isinstance(layer, LoraLayer) and not layer.disable_adapters:
        for name in layer.active_adapters:
            if name in layer.lora_A and name not in layer.merged_adapters:
                weight = weight + layer.get_delta_weight(name)
    weight_IO = weight if isinstance(base, Conv1D) else weight.t()
    return Linear(_laid_out(weight_IO), None if bias is None else bias.detach().float())


def _laid_out(weight_IO: Tensor) -> Tensor:
    """The same weights with the longer side running through memory: a product with one row, which waits for
    memory, is up to three times as quick so (experiments/decoding.py)."""
    wide = weight_IO.shape[1] > weight_IO.shape[0]
    return weight_IO.contiguous() if wide else weight_IO.t().contiguous().t()


def _joined(parts: Sequence[Linear]) -> Linear:
    """Several layers of the same input as one."""
    weight = _laid_out(torch.cat([part.weight for part in parts], 1))
    biases = [
        part.weight.new_zeros(part.weight.shape[1]) if part.bias is None else part.bias for part in parts
    ]
    return Linear(weight, None if all(part.bias is None for part in parts) else torch.cat(biases))


def _apart(qkv: Linear, heads: int) -> list[Linear]:
    """Queries, keys and values of a layer that gives them head by head."""
    width = qkv.weight.shape[0]
    weights = qkv.weight.reshape(width, heads, 3, -1)
    biases = None if qkv.bias is None else qkv.bias.view(heads, 3, -1)
    return [
        Linear(weights[:, :, part].flatten(1), None if biases is None else biases[:, part].flatten())
        for part in range(3)
    ]


def _by_head(layer: Linear, heads: int, order: list[int]) -> Linear:
    """The layer with each head's numbers in another order."""
    weight = layer.weight.reshape(len(layer.weight), heads, -1)[:, :, order].flatten(1)
    return Linear(weight, None if layer.bias is None else layer.bias.view(heads, -1)[:, order].flatten())


def _neighbours(turned: int, head_dim: int) -> list[int]:
    """The order in which numbers that are turned together (i and i + turned / 2) are neighbours."""
    half = turned // 2
    return [i + side for i in range(half) for side in (0, half)] + list(range(turned, head_dim))


def _rotation(rotary: Any, positions: int, head_dim: int) -> Tensor | None:
    """Factors e^(i * angle) [positions + 1, head_dim / 2], 1 where a head is not turned; None where they
    depend on the text's length."""
    if rotary.rope_type not in STATIC_ROPES or head_dim % 2:
        return None
    places = torch.arange(positions + 1, device=rotary.inv_freq.device)[:, None].float()
    angles = places * rotary.inv_freq.float()
    scale = rotary.attention_scaling
    turned = torch.complex(angles.cos() * scale, angles.sin() * scale)
    return F.pad(turned, (0, head_dim // 2 - turned.shape[1]), value=1.0)


def _slides(config: Any, positions: int) -> bool:
    """Whether some layer sees less than the whole text."""
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return True
    window = getattr(config, "sliding_window", None)
    return config.model_type == "mistral" and window is not None and window < positions


def _slopes(trunk: Any, heads: int) -> Tensor:
    """ALiBi's slopes as the module makes them: its bias at position 1."""
    ones = torch.ones(1, 2, device=trunk.word_embeddings.weight.device)
    slopes: Tensor = trunk.build_alibi_tensor(ones, heads, torch.float32)[:, 0, 1]
    return slopes


def _layer_norm(norm: Any) -> LayerNorm:
    return LayerNorm(norm.weight.detach().float(), norm.bias.detach().float(), norm.eps)


def _rms_norm(norm: Any) -> RmsNorm:
    return RmsNorm(norm.weight.detach().float().repeat(2), norm.variance_epsilon)
