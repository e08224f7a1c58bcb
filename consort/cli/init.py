"""`consort init`: a commented configuration to edit, or the demo's own. Never overwrites unless told to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from consort.bench.demo import demo_config
from consort.bench.suite import write_suite
from consort.config import Config, DeviceConfig, ModelConfig, ProxyConfig
from consort.config_serve import ServeConfig, ServedModel
from consort.config_template import render_template
from consort.errors import ConfigError

# Models that anyone may download and that fit a laptop; three architectures, three tokenizers.
SAMPLE = Config(
    name="my-consort",
    public="data/public",
    cloud=ModelConfig(model="Qwen/Qwen2.5-1.5B-Instruct"),
    proxy=ProxyConfig(model="Qwen/Qwen2.5-0.5B-Instruct"),
    devices=(
        DeviceConfig(
            name="bank",
            data="data/bank",
            slm=ModelConfig(
                model="HuggingFaceTB/SmolLM2-135M-Instruct", trainable="full", learning_rate=1e-4
            ),
        ),
        DeviceConfig(
            name="clinic",
            data="data/clinic/train.jsonl",
            unlabelled="data/clinic/inputs.jsonl",
            memory_gb=8.0,
            slm=ModelConfig(model="TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
        ),
    ),
    serve=ServeConfig(
        edges=(ServedModel(name="bank", model="HuggingFaceTB/SmolLM2-135M-Instruct"),),
        cloud=ServedModel(name="cloud", model="Qwen/Qwen2.5-1.5B-Instruct"),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument(
        "file", nargs="?", default="consort.toml", help="where to write (default: consort.toml)"
    )
    parser.add_argument(
        "--demo", action="store_true", help="the demo's own configuration, with its data beside it"
    )
    parser.add_argument("--force", action="store_true", help="overwrite what exists")
    parser.epilog = "example: consort init consort.toml"


def run(args: argparse.Namespace) -> int:
    """Write the file; prints its path."""
    file = Path(args.file)
    if file.exists() and not args.force:
        raise ConfigError(
            "already exists", where=str(file), hint="give another name, or --force to overwrite it"
        )
    data = file.parent / "data"  # of the demo
    if args.demo and data.exists() and not args.force:
        what = "is where the demo's data would go, and there is something"
        raise ConfigError(what, where=str(data), hint="write to another folder, or --force to overwrite it")
    file.parent.mkdir(parents=True, exist_ok=True)
    if args.demo:
        write_suite(data)
        text = render_template(
            demo_config(Path(data.name)), title="The demo: bundled models, generated data."
        )
    else:
        text = render_template(SAMPLE, title="A consort: what every key means, with values to change.")
    file.write_text(text, encoding="utf-8")
    print(file)
    print(f"next: edit it, then `consort check {file}`", file=sys.stderr)
    return 0
