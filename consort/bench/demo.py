"""The demo's own configuration: the bundled models on the built-in suite. `consort init --demo` writes it."""

from __future__ import annotations

from pathlib import Path

from consort.bench.suite_grammar import DEVICE_DOMAINS
from consort.config import (
    Config,
    DeviceConfig,
    EvalConfig,
    ModelConfig,
    ProxyConfig,
    RuntimeConfig,
    TuneConfig,
)
from consort.models.zoo import CLOUD, EDGES, PROXY

CONTEXT_TOKENS = 256  # the bundled models read no more


def demo_config(data: Path) -> Config:
    """A consort of the bundled models on the suite that `write_suite(data)` wrote."""
    return Config(
        name="demo",
        public=str(data / "public"),
        cloud=ModelConfig(model=f"zoo:{CLOUD}", learning_rate=5e-4, max_tokens=CONTEXT_TOKENS),
        proxy=ProxyConfig(model=f"zoo:{PROXY}", distil_steps=0, learning_rate=4e-3),
        devices=tuple(
            DeviceConfig(
                name=domain,
                data=str(data / "devices" / domain),
                unlabelled=str(data / "devices" / domain / "unlabelled.jsonl"),
                slm=ModelConfig(
                    model=f"zoo:{edge}", trainable="full", learning_rate=2e-3, max_tokens=CONTEXT_TOKENS
                ),
            )
            for domain, edge in zip(DEVICE_DOMAINS, EDGES, strict=True)
        ),
        # two rounds that end in under three minutes on two cores
        tune=TuneConfig(
            rounds=2,
            domain_steps=40,
            mutual_steps=90,
            proxy_share=0.2,
            cloud_steps=10,
            proxy_answers=300,
            answers_share=0.25,
            cloud_kd_weight=0.5,
        ),
        runtime=RuntimeConfig(workers=2),
        eval=EvalConfig(rows=100, max_new_tokens=32, public_rows=100),
    )
