"""A whole consort of tiny models and data on disk, to be spoilt one part at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = [
    "open an account for me please",
    "the clinic opens at nine",
    "a machine stopped: error 17",
    "grüße, 你好",
]
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
CONFIG = """\
public = "public"
[runtime]
device = "cpu"
[cloud]
model = "cloud"
max_tokens = 64
[proxy]
model = "proxy"
[[devices]]
name = "bank"
data = "bank"
memory_gb = 8
slm.model = "edge"
slm.max_tokens = 64
[[devices]]
name = "clinic"
data = "clinic"
unlabelled = "clinic/inputs.jsonl"
slm.model = "edge"
slm.max_tokens = 64
[eval]
max_new_tokens = 8
"""


def write_model(folder: Path, *, vocabulary: int, template: str = TEMPLATE) -> None:
    """A transformers directory of an untrained model: config, fast tokenizer, weights of two layers."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=["<eos>"])
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<eos>", "chat_template": template})
    )
    config = {"num_hidden_layers": 2, "hidden_size": 8, "max_position_embeddings": 64, "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    layers = {
        f"model.layers.{layer}.mlp.{name}.weight": np.zeros(shape, np.float32)
        for layer in range(2)
        for name, shape in [("up_proj", (32, 8)), ("down_proj", (8, 32))]
    }
    save_file(
        {"model.embed_tokens.weight": np.zeros((vocabulary, 8), np.float32)} | layers,
        folder / "model.safetensors",
    )


def write_rows(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@dataclass(frozen=True)
class Consort:
    """A configuration in a folder of its own, with nothing wrong."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "consort.toml"

    def replace(self, old: str, new: str) -> None:
        """Edit the configuration."""
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new, 1))


@pytest.fixture
def consort(tmp_path: Path) -> Consort:
    for name, vocabulary in [("cloud", 300), ("edge", 280)]:
        write_model(tmp_path / name, vocabulary=vocabulary)
    write_model(tmp_path / "proxy", vocabulary=300)
    for owner in ("public", "bank", "clinic"):
        for split in ("train", "valid", "test"):
            rows = [{"instruction": f"{split} {i}", "input": TEXT[i], "output": "yes"} for i in range(3)]
            write_rows(tmp_path / owner / f"{split}.jsonl", rows)
    write_rows(tmp_path / "clinic" / "inputs.jsonl", [{"instruction": "more", "input": "who?"}])
    (tmp_path / "consort.toml").write_text(CONFIG)
    return Consort(tmp_path)
