"""The small consort that `crash.py` interrupts: a cloud model and three devices, untrained, on suite rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tiny_models import Architecture, Family, new_model, train_tokenizer

from consort.bench.suite import generate_suite
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

DEVICES: dict[str, tuple[Family, Architecture]] = {
    "bank": ("byte_bpe", "gpt_neox"),
    "clinic": ("sentencepiece_bpe", "qwen2"),
    "factory": ("unigram", "gpt2"),
}
ROUNDS, TRAIN_ROWS = 2, 48


def write_consort(folder: Path) -> Path:
    """Models, rows and configuration in this folder; returns the configuration's file."""
    suite, runtime = generate_suite(), RuntimeConfig(device="cpu")
    texts = [f"{row.instruction} {row.input} {row.output}" for row in suite.public["train"][:600]]
    sources = {"public": suite.public} | {name: suite.devices[name] for name in DEVICES}
    for name, splits in sources.items():
        (folder / name).mkdir()
        for split, count in (("train", TRAIN_ROWS), ("test", 6), ("unlabelled", 24)):
            lines = [json.dumps(row.to_json()) + "\n" for row in splits.get(split, ())[:count]]
            (folder / name / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    models: dict[str, tuple[Family, Architecture]] = {"cloud": ("byte_bpe", "llama"), **DEVICES}
    for seed, (name, (family, architecture)) in enumerate(models.items()):
        tokenizer = train_tokenizer(family, 600, texts)
        layers = 4 if name == "cloud" else 2
        model = new_model(name, tokenizer, architecture, width=64, layers=layers, seed=seed, runtime=runtime)
        save_model(model, folder / f"{name}-model")
    slm = ModelConfig(trainable="full", learning_rate=1e-3, max_tokens=256)
    config = Config(
        name="crash",
        public=str(folder / "public"),
        cloud=ModelConfig(str(folder / "cloud-model"), lora_rank=4, learning_rate=1e-3, max_tokens=256),
        proxy=ProxyConfig(distil_steps=20, shared_rank=4, domain_rank=4),
        devices=tuple(
            DeviceConfig(
                name,
                data=str(folder / name),
                unlabelled=str(folder / name / "unlabelled.jsonl"),
                slm=replace(slm, model=str(folder / f"{name}-model")),
            )
            for name in DEVICES
        ),
        tune=TuneConfig(
            rounds=ROUNDS, domain_steps=8, mutual_steps=16, cloud_steps=10, batch_rows=8, public_samples=6
        ),
        runtime=runtime,
        eval=EvalConfig(rows=6, max_new_tokens=12, public_rows=6),
    )
    file = folder / "consort.toml"
    file.write_text(dump_config(config), encoding="utf-8")
    return file
