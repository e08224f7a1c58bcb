"""A consort of tiny real models with data and configuration on disk, which a run tunes in seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from consort.config import (
    Config,
    DeviceConfig,
    EvalConfig,
    ModelConfig,
    ProxyConfig,
    RuntimeConfig,
    TuneConfig,
)
from consort.config_file import dump_config
from consort.models.local import save_model
from tests.tiny_models import escaped_spaces, tiny

COUNTS = {"train": 6, "valid": 2, "test": 2}  # rows a split


def write_tunable_consort(folder: Path) -> Path:
    """Two devices of two architectures and tokenizers, one with unlabelled inputs; returns consort.toml."""
    for name, model in {
        "cloud": tiny("llama"),
        "bank-slm": tiny("gpt_neox", escaped_spaces("bpe", lines_apart=True)),
        "shop-slm": tiny("gpt2"),
    }.items():
        save_model(model, folder / name)
    for owner in ("public", "bank", "shop"):
        (folder / owner).mkdir()
        for split, count in COUNTS.items():
            rows = [{"prompt": f"{owner} {split} {n}? ", "completion": f"{n + 1}"} for n in range(count)]
            (folder / owner / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"prompt": f"bank, further {number}? "} for number in range(3)]
    (folder / "bank" / "inputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    slm = ModelConfig(trainable="full", learning_rate=1e-3, max_tokens=64)
    config = Config(
        public=str(folder / "public"),
        cloud=ModelConfig(str(folder / "cloud"), max_tokens=64, lora_rank=2),
        proxy=ProxyConfig(layers=1, distil_steps=2, shared_rank=2, domain_rank=2),
        devices=(
            DeviceConfig(
                "bank",
                data=str(folder / "bank"),
                unlabelled=str(folder / "bank" / "inputs.jsonl"),
                slm=replace(slm, model=str(folder / "bank-slm")),
            ),
            DeviceConfig(
                "shop",
                data=str(folder / "shop"),
                slm=ModelConfig(str(folder / "shop-slm"), lora_rank=2, max_tokens=64),
            ),
        ),
        tune=TuneConfig(rounds=2, domain_steps=1, mutual_steps=2, cloud_steps=1, batch_rows=2),
        runtime=RuntimeConfig(device="cpu"),
        eval=EvalConfig(max_new_tokens=4),
    )
    file = folder / "consort.toml"
    file.write_text(dump_config(config))
    return file
