"""Co-tune a cloud model and two devices on JSONL of one's own, from Python, and read the result.

The rows are made up on the spot: put your own files in their place, and Hub ids or directories in place of
the bundled models. `python examples/co_tune.py FOLDER` keeps everything in FOLDER. A run worth reporting
takes more rows and steps; the defaults are a start.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from consort.bench.results import percent
from consort.bench.run import run_co_tuning
from consort.cli.tune import run_data
from consort.config import (
    Config,
    DeviceConfig,
    EvalConfig,
    ModelConfig,
    ProxyConfig,
    RuntimeConfig,
    TuneConfig,
)
from consort.models.zoo import zoo_dir
from consort.preflight import examine
from consort.problems import raise_errors, size

CITIES = ("Lyon", "Porto", "Graz", "Cork", "Turku", "Ghent", "Basel", "Split")
ROWS = 40


def main(folder: Path) -> None:
    """Write data, describe the run, look for mistakes, run, read."""
    for owner, thing in {"public": "office", "bank": "branch", "shop": "store"}.items():
        write_rows(folder / f"{owner}.jsonl", thing)

    # 1) what `consort.toml` would say; everything left out keeps its default
    config = Config(
        name="own-rows",
        public=str(folder / "public.jsonl"),
        cloud=ModelConfig(str(zoo_dir("cloud")), learning_rate=1e-3, max_tokens=256),
        proxy=ProxyConfig(str(zoo_dir("proxy")), distil_steps=0),  # it is distilled already
        devices=(
            DeviceConfig("bank", data=str(folder / "bank.jsonl"), slm=small_model("edge-neox")),
            DeviceConfig("shop", data=str(folder / "shop.jsonl"), slm=small_model("edge-gpt2")),
        ),
        tune=TuneConfig(rounds=1, domain_steps=4, mutual_steps=8, cloud_steps=2, batch_rows=8),
        runtime=RuntimeConfig(device="cpu"),
        eval=EvalConfig(rows=4, max_new_tokens=16, public_rows=4),
    )

    # 2) all mistakes at once, before any model is loaded; the rows come back read
    found = examine(config)
    for problem in found.problems:
        print(f"{problem.level}: {problem}")
    raise_errors(found.problems)

    # 3) the run; with resume=True it goes on where a killed one stood
    result = run_co_tuning(
        config,
        run_data(found),
        folder / "run",
        resume=False,
        report=lambda line: print(f"  {line}"),
    )

    # 4) the result: also in run/result.json, and for reading in run/report.html
    for device in result.devices:
        before, after = percent(device.zero_shot.rouge_l), percent(device.co_tuned.rouge_l)
        print(
            f"{device.name} ({device.model}): Rouge-L {before} -> {after}, {size(device.uplink_bytes)} sent"
        )
    print(f"cloud: Rouge-L {percent(result.cloud.before.rouge_l)} -> {percent(result.cloud.after.rouge_l)}")
    print(f"models and adapters: {folder / 'run' / 'adapters'}")


def write_rows(file: Path, thing: str) -> None:
    """Questions and answers, one JSON object a line."""
    cities = [CITIES[number % len(CITIES)] for number in range(ROWS)]
    rows = [
        {"instruction": f"Where is {thing} {number}?", "output": f"In {city}."}
        for number, city in enumerate(cities)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def small_model(name: str) -> ModelConfig:
    """A device's own model, tuned in full as small ones should be."""
    return ModelConfig(str(zoo_dir(name)), trainable="full", learning_rate=2e-3, max_tokens=256)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="consort-")))
