"""A consort of tiny real models that a run tunes in seconds: models on disk and rows in memory, or all of it
on disk."""

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
from consort.training.data import Sample
from consort.types import Message
from tests.tiny_models import byte_level, escaped_spaces, tiny

COUNTS = {"train": 6, "valid": 2, "test": 2}  # rows a split on disk


def rows(word: str, count: int = 8) -> list[Sample]:
    return [
        Sample((Message("user", f"{word} {number}?"),), f"{word} {number + 1}") for number in range(count)
    ]


def tunable_config(folder: Path) -> Config:
    """Two devices of other architectures and tokenizers than the cloud's, one tuned in full and one by LoRA;
    with a proxy."""
    for name, model in {
        "cloud-llm": tiny("llama"),
        "proxy": tiny("llama_untied_bias"),
        "bank-slm": tiny("gpt_neox", escaped_spaces("bpe", lines_apart=True)),
        "shop-slm": tiny("gpt2", byte_level(use_regex=False)),
    }.items():
        save_model(model, folder / name)
    slm = ModelConfig(learning_rate=1e-3, lora_rank=2, max_tokens=64)
    return Config(
        cloud=ModelConfig(str(folder / "cloud-llm"), max_tokens=64, lora_rank=2),
        proxy=ProxyConfig(str(folder / "proxy"), distil_steps=0, shared_rank=2, domain_rank=2),
        devices=(
            DeviceConfig("bank", slm=replace(slm, model=str(folder / "bank-slm"), trainable="full")),
            DeviceConfig("shop", slm=replace(slm, model=str(folder / "shop-slm"))),
        ),
        tune=TuneConfig(
            rounds=2,
            domain_steps=1,
            mutual_steps=2,
            cloud_steps=1,
            batch_rows=2,
            top_k=1000,  # all tokens: an untrained teacher's best ones would hold no answer, so teach nothing
            proxy_answers=4,
            public_samples=2,
            drafter_steps=1,
        ),
        runtime=RuntimeConfig(device="cpu"),
        eval=EvalConfig(max_new_tokens=4),
    )


def write_tunable_consort(folder: Path) -> Path:
    """The same with data on disk, further inputs for the bank, and a proxy to be distilled; returns
    consort.toml."""
    config = tunable_config(folder)
    for owner in ("public", "bank", "shop"):
        (folder / owner).mkdir()
        for split, count in COUNTS.items():
            lines = [
                {"prompt": f"{owner} {split} {number}? ", "completion": f"{number + 1}"}
                for number in range(count)
            ]
            _write(folder / owner / f"{split}.jsonl", lines)
    _write(folder / "bank" / "inputs.jsonl", [{"prompt": f"bank, further {number}? "} for number in range(3)])
    bank, shop = (replace(device, data=str(folder / device.name)) for device in config.devices)
    config = replace(
        config,
        public=str(folder / "public"),
        proxy=replace(config.proxy, model="", layers=1, distil_steps=2),
        devices=(replace(bank, unlabelled=str(folder / "bank" / "inputs.jsonl")), shop),
    )
    file = folder / "consort.toml"
    file.write_text(dump_config(config))
    return file


def _write(file: Path, lines: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
