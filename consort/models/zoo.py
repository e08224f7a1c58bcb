"""The bundled consort: a cloud model, its proxy and four edge models that differ in class and tokenizer.

Trained from scratch by `experiments/pretrain_zoo.py` on the built-in suite's public text. Each is an
ordinary transformers directory for `models.local.load_model`. Does not load or train anything.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from consort.errors import ModelError
from consort.models.gguf.file import is_gguf
from consort.problems import nearest

CLOUD = "cloud"
PROXY = "proxy"
EDGES = ("edge-llama", "edge-qwen2", "edge-neox", "edge-gpt2")  # in the order of the suite's devices
NAMES = (CLOUD, PROXY, *EDGES)
WEIGHTS = Path(__file__).parent / "weights"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def located(model: str) -> str:
    """Where the files of a transformers model lie: `zoo:NAME` is a bundled one, anything else a directory or
    Hub id as it is. ModelError for what is none of these, and for a GGUF file, which is another kind of
    model."""
    if is_gguf(model):
        raise ModelError(
            "a GGUF file answers, and can be neither tuned nor measured",
            where=model,
            hint="name the model that it was made of; `consort chat` and [serve] take GGUF files",
        )
    if model.startswith("zoo:"):
        return str(zoo_dir(model.removeprefix("zoo:")))
    if not os.path.isdir(model) and not _HUB_ID.fullmatch(model):
        place = os.path.isabs(model) or model.startswith((".", "~"))
        raise ModelError(
            "no such directory" if place else "neither a directory nor a Hub id",
            where=model,
            hint="name a local directory, a Hub id as owner/name, or zoo:NAME",
        )
    return model


def zoo_dir(name: str) -> Path:
    """The transformers directory of a bundled model."""
    directory = WEIGHTS / name
    if name not in NAMES or not (directory / "model.safetensors").exists():
        raise ModelError(
            "no such bundled model",
            where=f"zoo:{name}",
            hint="experiments/pretrain_zoo.py trains it" if name in NAMES else _nearest(name),
        )
    return directory


def _nearest(name: str) -> str:
    return nearest(f"zoo:{name}", [f"zoo:{known}" for known in NAMES])
