"""A model known by its files alone: tokenizer, chat template, shapes, and the memory that tuning it takes.

Reads JSON and safetensors headers; loads no weight, imports no framework. For a Hub id only the small files
are fetched (HF_HUB_OFFLINE is honoured).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from consort.errors import ModelError
from consort.models.hub import check_hub
from consort.models.zoo import located

SMALL_FILES = ["*.json", "*.jinja"]
NOT_ADAPTED = ("embed", "wte", "wpe", "lm_head")  # input and output layers, which "all-linear" leaves out
FLOAT32_BYTES = 4
# Weight, gradient and Adam's two moments, all float32.
LEARNED_BYTES = 4 * FLOAT32_BYTES
# Numbers kept for the backward pass for each input and output of a linear layer. Measured peaks of float32
# steps: in full 1.5 (GPT-NeoX), 1.7 (Llama), 2.7 (GPT-2); by LoRA 2.3 to 2.7 (Llama): a pair adds a branch.
KEPT_IN_FULL = 2.0
KEPT_BY_LORA = 2.7
ASSUMED_CONTEXT = 2048  # tokens, of a model that does not say what it was made for
RUNTIME_BYTES = 400e6  # Python with torch and transformers imported


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model's folder says; `name` is how a person names it. `shapes` is empty where the weights are
    not at hand."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def tokenizer(self) -> Path:
        """The fast tokenizer's file, which may be missing."""
        return self.folder / "tokenizer.json"

    @property
    def context_tokens(self) -> int:
        """Longest input the model was made for; 0 where it does not say."""
        names = ("max_position_embeddings", "n_positions", "seq_length")
        return next((int(self.config[name]) for name in names if self.config.get(name)), 0)

    @property
    def parameters(self) -> int:
        """Weights in all; 0 where the weights are not at hand."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def layers(self) -> int:
        """Layers of the trunk; 0 where the configuration does not say."""
        return int(self.config.get("num_hidden_layers") or self.config.get("n_layer") or 0)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that tuning one model in float32 takes, forecast to about a third."""

    frozen_bytes: float
    learned_bytes: float
    activation_bytes: float

    @property
    def total_bytes(self) -> float:
        """Everything but the runtime itself."""
        return self.frozen_bytes + self.learned_bytes + self.activation_bytes


def read_model_files(model: str) -> ModelFiles:
    """A local directory, Hub id or `zoo:NAME`; ModelError says what is missing."""
    place = located(model)
    if os.path.isdir(place):
        folder = Path(place)
        shapes = _local_shapes(folder)
    else:
        check_hub(model)
        folder, shapes = _hub_folder(model)
    if not (folder / "config.json").exists():
        raise ModelError("holds no config.json", where=model, hint="a transformers directory is needed")
    return ModelFiles(model, folder, _json(folder / "config.json"), shapes)


def tuning_footprint(
    files: ModelFiles, *, full: bool, rank: int, targets: str, batch_rows: int, max_tokens: int
) -> Footprint:
    """Memory to tune the model in full, or by LoRA of this rank, on batches of this size."""
    learned = files.parameters if full else lora_parameters(files.shapes, rank=rank, targets=targets)
    frozen = 0 if full else files.parameters
    tokens = batch_rows * min(max_tokens, files.context_tokens or max_tokens)
    kept = (KEPT_IN_FULL if full else KEPT_BY_LORA) * sum(
        sum(shape) for shape in _linears(files.shapes).values()
    )
    return Footprint(
        frozen_bytes=frozen * FLOAT32_BYTES,
        learned_bytes=learned * LEARNED_BYTES,
        activation_bytes=tokens * kept * FLOAT32_BYTES,
    )


def lora_parameters(shapes: Mapping[str, tuple[int, ...]], *, rank: int, targets: str) -> int:
    """Parameters of LoRA pairs on "all-linear" or on the modules named in `targets`, separated by commas."""
    linears = _linears(shapes)
    if targets != "all-linear":
        wanted = {target.strip() for target in targets.split(",")}
        linears = {name: shape for name, shape in linears.items() if name.split(".")[-2] in wanted}
    return sum(rank * sum(shape) for shape in linears.values())


def _linears(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The linear layers of the trunk, by the name of their weight."""
    return {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and not any(word in name for word in NOT_ADAPTED)
    }


def _local_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                names = tensors.keys()
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except SafetensorError as error:
            raise ModelError("not a safetensors file, or cut short", where=str(file)) from error
    return shapes


def _hub_folder(model: str) -> tuple[Path, dict[str, tuple[int, ...]]]:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(model, allow_patterns=SMALL_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"cannot be fetched: {str(error).splitlines()[0]}",
            where=model,
            hint="give a local transformers directory, or a Hub id that is cached or can be downloaded",
        ) from error
    shapes = _local_shapes(folder)
    if not shapes:
        try:
            metadata = huggingface_hub.get_safetensors_metadata(model)
        except (HfHubHTTPError, OSError, ValueError):
            return folder, {}  # the forecast then says that it does not know
        for file in metadata.files_metadata.values():
            shapes |= {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    return folder, shapes


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"not valid JSON: {error}", where=str(file)) from None
    if not isinstance(content, dict):
        raise ModelError("must hold a JSON object", where=str(file))
    return content
