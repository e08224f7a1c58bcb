"""A proxy's first weights: some layers and feed-forward neurons of a larger transformers model, copied.

Depth: layers at even distances, the first and the last among them. Width: the feed-forward neurons of largest
weight norm times outgoing weight norm (compare Minitron, arXiv 2407.14679, which takes activations).
Attention, hidden size and vocabulary stay. Does not train: a pruned model is of use only after distillation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from consort.errors import ModelError

_PER_LAYER_KEYS = ("layer_types", "no_rope_layers")  # lists in a configuration, with one entry a layer


def prune(module: nn.Module, *, layers: int, width: float = 1.0) -> nn.Module:
    """A fresh model of the same class with `layers` of the layers and `width` of each feed-forward's neurons.

    Keeping everything gives the same model bit for bit. Errors: ModelError for an unknown
    architecture or size.
    """
    family = _family_of(module)
    _check_sizes(module, family, layers=layers, width=width)
    blocks = _blocks(module, family)
    kept_layers = _even(len(blocks), layers)
    scores = _neuron_scores([blocks[index] for index in kept_layers], family)
    kept_neurons = max(1, round(width * scores[0].numel()))
    # sorted, because keeping all must keep their order
    neurons = [score.topk(kept_neurons).indices.sort().values for score in scores]
    pruned = _empty_model(module, family, kept_layers=kept_layers, neurons=kept_neurons)
    _copy_weights(module, pruned, family, kept_layers=kept_layers, neurons=neurons)
    return pruned.train(module.training)


@dataclass(frozen=True, slots=True)
class _Family:
    """Where an architecture keeps its layers, and in a layer its feed-forward part."""

    layers: str
    up: tuple[str, ...]
    down: str
    width_key: str  # of the configuration; empty: the width is not configurable


_FAMILIES = (
    _Family(
        "model.layers", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "intermediate_size"
    ),  # Llama, Qwen
    _Family("gpt_neox.layers", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", "intermediate_size"),
    _Family("transformer.h", ("mlp.c_fc",), "mlp.c_proj", "n_inner"),  # GPT-2
    _Family("transformer.h", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", ""),  # Bloom
)


def _family_of(module: nn.Module) -> _Family:
    names = {name for name, _ in module.named_modules()} if isinstance(module, PreTrainedModel) else set()
    for family in _FAMILIES:
        if all(f"{family.layers}.0.{part}" in names for part in (*family.up, family.down)):
            return family
    raise ModelError(
        "this architecture cannot be pruned",
        where=type(module).__name__,
        hint="set proxy.model to a small model with the cloud model's tokenizer; Llama, Mistral, Qwen2, "
        "Qwen3, GPT-NeoX, GPT-2 and Bloom classes can be pruned, with their adapters merged",
    )


def _check_sizes(module: nn.Module, family: _Family, *, layers: int, width: float) -> None:
    name, available = type(module).__name__, len(_blocks(module, family))
    if not 1 <= layers <= available:
        hint = f"set proxy.layers between 1 and {available}"
        raise ModelError(f"cannot keep {layers} of {available} layers", where=name, hint=hint)
    if not 0 < width <= 1:
        hint = "set proxy.width above 0 and at most 1"
        raise ModelError(f"cannot keep a share of {width:g} of the width", where=name, hint=hint)
    if width < 1 and not family.width_key:
        hint = "set proxy.width = 1 and choose fewer proxy.layers"
        raise ModelError("the feed-forward width of this class is fixed", where=name, hint=hint)


def _blocks(module: nn.Module, family: _Family) -> list[nn.Module]:
    return list(module.get_submodule(family.layers).children())


def _even(available: int, kept: int) -> list[int]:
    """0 and the last layer, the others at even distances; a single one is the first."""
    return [round(index * (available - 1) / max(1, kept - 1)) for index in range(kept)]


def _neuron_scores(blocks: Sequence[nn.Module], family: _Family) -> list[Tensor]:
    """For each block, how much each feed-forward neuron brings in times how much of it goes out."""
    downs = [block.get_submodule(family.down) for block in blocks]
    axes = [1 - _neuron_axis(down, outgoing=True) for down in downs]
    outgoing = [_weight(down).norm(dim=axis) for down, axis in zip(downs, axes, strict=True)]
    return [_weight_norms(block, family) * norms for block, norms in zip(blocks, outgoing, strict=True)]


@torch.no_grad()
def _weight_norms(block: nn.Module, family: _Family) -> Tensor:
    ups = [block.get_submodule(name) for name in family.up]
    norms = [_weight(up).norm(dim=1 - _neuron_axis(up, outgoing=False)) for up in ups]
    return torch.stack(norms).prod(0)


def _weight(linear: nn.Module) -> Tensor:
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.detach().float()


def _neuron_axis(linear: nn.Module, *, outgoing: bool) -> int:
    """The weight's axis of feed-forward neurons: nn.Linear stores [out, in], GPT-2's Conv1D [in, out]."""
    return int(outgoing) if isinstance(linear, nn.Linear) else int(not outgoing)


def _empty_model(
    module: nn.Module, family: _Family, *, kept_layers: Sequence[int], neurons: int
) -> nn.Module:
    config: Any = copy.deepcopy(module.config)
    config.num_hidden_layers = len(kept_layers)
    if family.width_key:
        setattr(config, family.width_key, neurons)
    for key in _PER_LAYER_KEYS:
        if getattr(config, key, None) is not None:
            setattr(config, key, [getattr(config, key)[index] for index in kept_layers])
    with torch.random.fork_rng(
        devices=[]
    ):  # its random weights are replaced: the caller's random stream goes on
        pruned: nn.Module = type(module)(config)
    if hasattr(module, "generation_config"):
        pruned.generation_config = copy.deepcopy(module.generation_config)
    return pruned


@torch.no_grad()
def _copy_weights(
    module: nn.Module,
    pruned: nn.Module,
    family: _Family,
    *,
    kept_layers: Sequence[int],
    neurons: Sequence[Tensor],
) -> None:
    """Fills `pruned`, each tensor in the type and on the device of the one it was cut from."""
    sources = dict(module.named_parameters(remove_duplicate=False)) | dict(
        module.named_buffers(remove_duplicate=False)
    )
    tensors = [*pruned.named_parameters(), *pruned.named_buffers()]  # tied weights come once, and stay tied
    for name, tensor in tensors:
        if not name.startswith(family.layers + "."):
            tensor.data = sources[name].detach().clone()
            continue
        number, part = name.removeprefix(family.layers + ".").split(".", 1)
        source = sources[f"{family.layers}.{kept_layers[int(number)]}.{part}"]
        owner_name, kind = part.rsplit(".", 1)
        axis = _cut_axis(pruned.get_submodule(family.layers).get_submodule(number), family, owner_name, kind)
        tensor.data = source.clone() if axis is None else source.index_select(axis, neurons[int(number)])


def _cut_axis(block: nn.Module, family: _Family, owner_name: str, kind: str) -> int | None:
    """The axis of feed-forward neurons of one tensor of a layer, None where it has none."""
    outgoing = owner_name == family.down
    if owner_name not in (*family.up, family.down) or (outgoing and kind == "bias"):
        return None
    return 0 if kind == "bias" else _neuron_axis(block.get_submodule(owner_name), outgoing=outgoing)
