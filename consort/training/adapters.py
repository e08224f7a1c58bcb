"""The part of a model that learns: a LoRA (arXiv 2106.09685, through PEFT) or every weight; read and written
as arrays.

A model may carry several LoRAs at once, whose updates add up: the proxy has one that travels and one that
stays. Does not merge or export; `training.export` does.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from consort.config import ModelConfig
from consort.errors import ModelError
from consort.models.local import LocalModel, weights_sha256
from consort.types import Adapter, FloatArray

OWN = "own"  # a model's own LoRA, which never leaves its owner
SHARED = "shared"  # the proxy's LoRA that travels
DOMAIN = "domain"  # the proxy's LoRA that never leaves its device


def add_lora(
    model: LocalModel, name: str, *, rank: int, alpha: float, targets: str = "all-linear", seed: int
) -> None:
    """Put a LoRA on the linear layers (all but the head, or those whose names end in one of `targets`). It
    begins as zero."""
    linear = {
        path.rsplit(".", 1)[-1]
        for path, layer in model.module.named_modules()
        if isinstance(layer, nn.Linear | Conv1D | LoraLayer)
        and layer is not model.module.get_output_embeddings()
        if not any(part in ("lora_A", "lora_B", "base_layer") for part in path.split("."))
    }
    chosen = linear if targets == "all-linear" else {target.strip() for target in targets.split(",")}
    if unknown := chosen - linear:
        raise ModelError(
            f"has no linear layer named {', '.join(sorted(unknown))}",
            where=model.name,
            hint="lora_targets may name: " + ", ".join(sorted(linear)),
        )
    transposed = any(isinstance(layer, Conv1D) for layer in model.module.modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(chosen),
        lora_dropout=0.0,
        fan_in_fan_out=transposed,  # type: ignore[call-arg]
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(fan_in_fan_out|Already found a `peft_config`).*")
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.module, adapter_name=name)
    model.module.requires_grad_(False)


def use_adapters(model: LocalModel, names: Sequence[str] | Mapping[str, float]) -> None:
    """Compute with exactly these LoRAs, each whole or at the given share of what it learned; with none, the
    bare base answers."""
    shares = names if isinstance(names, Mapping) else dict.fromkeys(names, 1.0)
    for layer in _lora_layers(model).values():
        present = [name for name in shares if name in layer.lora_A]
        for name in present:
            layer.set_scale(name, shares[name])
        layer.enable_adapters(bool(present))
        if present:
            layer.set_adapter(present)
    model.module.requires_grad_(False)


@contextlib.contextmanager
def merged(model: LocalModel) -> Iterator[None]:
    """Compute with the LoRAs in use folded into the weights, for many tokens without a gradient; the weights
    come back bit for bit. Needs memory for a second copy of the adapted layers.
    """
    layers = [layer for layer in _lora_layers(model).values() if not layer.disable_adapters]
    weights = [layer.get_base_layer().weight for layer in layers]
    before = [weight.detach().clone() for weight in weights]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        for layer, weight, value in zip(layers, weights, before, strict=True):
            layer.unmerge()
            weight.data.copy_(value)  # adding and taking away again would leave rounding


def lora_parameters(model: LocalModel, name: str) -> dict[str, nn.Parameter]:
    """The weights of one LoRA, `<module>.lora_A` [rank, in] and `<module>.lora_B` [out, rank]."""
    parameters = {}
    for path, layer in _lora_layers(model).items():
        if name in layer.lora_A:
            parameters[f"{path}.lora_A"] = layer.lora_A[name].weight
            parameters[f"{path}.lora_B"] = layer.lora_B[name].weight
    assert parameters, f"{model.name} carries no LoRA named {name}"
    return parameters


def trainable_part(model: LocalModel, config: ModelConfig, *, seed: int) -> dict[str, nn.Parameter]:
    """What the configuration lets this model learn, by name: a fresh LoRA named `own`, or all weights."""
    if config.trainable == "full":
        return dict(model.module.named_parameters())
    add_lora(
        model, OWN, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets, seed=seed
    )
    return lora_parameters(model, OWN)


def read_parameters(parameters: Mapping[str, nn.Parameter]) -> dict[str, FloatArray]:
    """Values as float32 arrays, copied."""
    return {name: parameter.detach().float().cpu().numpy().copy() for name, parameter in parameters.items()}


@torch.no_grad()
def write_parameters(
    parameters: Mapping[str, nn.Parameter], values: Mapping[str, FloatArray], *, where: str
) -> None:
    """Overwrite the parameters; ModelError if the names or shapes are those of another model."""
    if parameters.keys() != values.keys():
        odd = sorted(parameters.keys() ^ values.keys())
        raise ModelError(f"the weights do not fit this model; first difference: {odd[0]}", where=where)
    for name, parameter in parameters.items():
        if tuple(parameter.shape) != values[name].shape:
            raise ModelError(
                f"{name} is {values[name].shape}, the model's is {tuple(parameter.shape)}", where=where
            )
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values[name])))


def read_adapter(model: LocalModel, name: str) -> Adapter:
    """One LoRA as it travels."""
    scaling = next(layer.scaling[name] for layer in _lora_layers(model).values() if name in layer.scaling)
    return Adapter(read_parameters(lora_parameters(model, name)), float(scaling), base_sha256(model))


def write_adapter(model: LocalModel, name: str, adapter: Adapter) -> None:
    """Overwrite a LoRA of the same shape; ModelError if it was made for another base."""
    if adapter.base_sha256 != base_sha256(model):
        raise ModelError(
            f"the adapter belongs to base {adapter.base_sha256[:12]}, this is {base_sha256(model)[:12]}",
            where=model.name,
            hint="every device must hold the proxy that the cloud distilled",
        )
    write_parameters(lora_parameters(model, name), adapter.tensors, where=model.name)


def base_sha256(model: LocalModel) -> str:
    """Hash of the frozen base: names, shapes and values of every weight that is not a LoRA's. Computed once a
    model."""
    if model.base_sha256 is None:
        model.base_sha256 = weights_sha256(
            (name.replace(".base_layer", ""), parameter)
            for name, parameter in sorted(model.module.named_parameters())
            if ".lora_" not in name
        )
    return model.base_sha256


def _lora_layers(model: LocalModel) -> dict[str, Any]:
    return {path: layer for path, layer in model.module.named_modules() if isinstance(layer, LoraLayer)}
