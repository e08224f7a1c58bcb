"""LoRAs as PEFT directories: adapter_config.json and adapter_model.safetensors, which PEFT reads too.

The hash of the base travels in the safetensors header, so that an adapter on another base is refused even
where the shapes agree. Other kinds of adapters than plain LoRA are refused. Does not merge; `export` does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.numpy import save

from consort.errors import ModelError
from consort.models.local import LocalModel
from consort.training.adapters import OWN, base_sha256, lora_parameters, read_adapter, write_parameters

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."  # PEFT's name for the wrapped model


def save_adapter(model: LocalModel, name: str, directory: Path, *, base: str) -> None:
    """Write one of the model's LoRAs; `base` is the Hub id or directory that it belongs to."""
    adapter = read_adapter(model, name)
    settings: LoraConfig = model.module.peft_config[name]
    config = {key: _plain(value) for key, value in settings.to_dict().items()}
    config |= {"base_model_name_or_path": base, "task_type": "CAUSAL_LM", "inference_mode": True}
    tensors = {f"{_PREFIX}{key}.weight": value for key, value in adapter.tensors.items()}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    packed = save(tensors, metadata={"format": "pt", "base_sha256": adapter.base_sha256})
    (directory / WEIGHTS).write_bytes(_reproducible(packed))


def named_base(directory: Path) -> str:
    """The Hub id, directory or `zoo:NAME` that an adapter names as its base; empty where it names none."""
    return str(_read_config(directory).base_model_name_or_path or "")


def base_of(directory: Path) -> str:
    """As `named_base`; ModelError where none is named."""
    base = named_base(directory)
    if not base:
        raise ModelError(
            "this adapter does not name its base",
            where=str(directory),
            hint="name the base model, and this directory as its adapter",
        )
    return base


def base_sha256_of(directory: Path) -> str:
    """The hash of the base that an adapter was made for; empty where another tool has written it."""
    with safe_open(directory / WEIGHTS, framework="np") as stored:
        return str((stored.metadata() or {}).get("base_sha256", ""))


def target_shapes(directory: Path) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer that an adapter is put on, by the layer's name."""
    sizes: dict[str, dict[str, int]] = {}
    with safe_open(directory / WEIGHTS, framework="np") as stored:
        for key in stored.keys():  # noqa: SIM118
            layer, _, half = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
            rows, columns = stored.get_slice(key).get_shape()
            sizes.setdefault(layer, {})[half] = rows if half == "lora_B" else columns
    return {layer: (found["lora_B"], found["lora_A"]) for layer, found in sizes.items()}


def load_adapter(model: LocalModel, directory: Path, *, name: str = OWN) -> None:
    """Put the LoRA of a PEFT directory on the model and use it; ModelError if it belongs to another base."""
    where = str(directory)
    settings = _read_config(directory)
    expected = base_sha256_of(directory)
    with safe_open(directory / WEIGHTS, framework="np") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    if expected and expected != base_sha256(model):
        raise ModelError(
            f"this adapter was made for another base than {model.name}",
            where=where,
            hint=f"its base: {settings.base_model_name_or_path or 'not named'}",
        )
    try:
        inject_adapter_in_model(settings, model.module, adapter_name=name)
    except ValueError as error:  # PEFT found none of the target modules
        raise ModelError(
            f"this adapter fits no layer of {model.name}",
            where=where,
            hint=f"its base: {settings.base_model_name_or_path or 'not named'}",
        ) from error
    model.module.requires_grad_(False)
    values = {key.removeprefix(_PREFIX).removesuffix(".weight"): value for key, value in tensors.items()}
    write_parameters(lora_parameters(model, name), values, where=where)


@torch.no_grad()
def merge_adapters(model: LocalModel) -> None:
    """Make the LoRAs in use part of the model's weights, and take them off."""
    layers = [(path, layer) for path, layer in model.module.named_modules() if isinstance(layer, LoraLayer)]
    for path, layer in layers:
        layer.merge(safe_merge=True)
        parent, _, child = path.rpartition(".")
        setattr(model.module.get_submodule(parent), child, layer.get_base_layer())
    if layers:
        del model.module.peft_config


def _reproducible(packed: bytes) -> bytes:
    """The same safetensors with its metadata in order: the library shuffles it at every call."""
    length = int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(ordered) <= length, "the same entries without padding"
    return packed[:8] + ordered.ljust(length) + packed[8 + length :]


def _read_config(directory: Path) -> LoraConfig:
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).exists():
            raise ModelError(
                f"no {file} there",
                where=str(directory),
                hint="give a PEFT directory; a model tuned in full is a model of its own, without an adapter",
            )
    try:
        stored = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{CONFIG} is not JSON", where=str(directory)) from error
    plain = (
        stored.get("peft_type") == "LORA"
        and not stored.get("use_dora")
        and stored.get("bias", "none") == "none"
    )
    if not plain or stored.get("modules_to_save"):
        raise ModelError(
            "only plain LoRA adapters are read",
            where=str(directory),
            hint="merge it into its base with PEFT (merge_and_unload) and give the merged model",
        )
    known = LoraConfig().to_dict().keys()
    return LoraConfig(**{key: value for key, value in stored.items() if key in known})


def _plain(value: Any) -> Any:
    """PEFT keeps target modules as a set and types as enums."""
    if isinstance(value, set):
        return sorted(value)
    return value.value if hasattr(value, "value") else value
