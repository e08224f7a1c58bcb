"""What a run leaves for whoever finds its adapters: the model card, the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import fields
from pathlib import Path

import consort
from consort.bench.results import Line, RunResult, percent, result_lines
from consort.config import Config
from consort.problems import size

_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "zstandard")


def environment() -> dict[str, str | int]:
    """Versions, machine and commit, for environment.json; what is not installed is left out."""
    found: dict[str, str | int] = {
        "consort": consort.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count() or 0,
    }
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _commit(Path(consort.__file__).parent.parent)
    return found | ({"commit": commit} if commit else {})


def model_card(result: RunResult, config: Config) -> str:
    """README.md of a run's adapters: what they are, how they did, how to make them again. Markdown.

    The card travels with the adapters, so no row of a device is in it.
    """
    bases = dict.fromkeys([config.cloud.model, *(device.slm.model for device in config.devices)])
    return _CARD.format(
        bases="\n".join(f"- {base}" for base in bases if base),
        name=config.name,
        num_devices=len(config.devices),
        version=consort.__version__,
        table="\n".join(_table_row(line) for line in result_lines(result)),
        traffic="\n".join(
            f"- {device.name}: {size(device.uplink_bytes)} sent, {size(device.downlink_bytes)} received"
            for device in result.devices
        ),
        shortened="\n".join(f"- {each.party}: {each}" for each in result.shortened) or "None.",
        rounds=config.tune.rounds,
        settings="\n".join(
            f"- {field.name}: {getattr(config.tune, field.name)}" for field in fields(config.tune)
        ),
        seed=config.seed,
        seconds=f"{result.seconds:.0f}",
    )


_CARD = """---
library_name: peft
tags: [consort, co-tuning, federated]
base_model:
{bases}
---

# {name}

{num_devices} small models and one large one, co-tuned with consort {version} over {rounds} rounds.
Devices sent adapters of the shared proxy only; no text left a device.

## Result

Percent ± standard error on test rows. Gain: against tuning alone (same data, same steps), for the cloud model
against itself before. Majority: exact match of always giving the commonest training answer.

| model | metric | zero-shot | alone | co-tuned | gain | majority |
|---|---|---|---|---|---|---|
{table}

A few test prompts with every model's answers are in the run's own `report.html`, which holds rows of the
devices as they are; this card holds none.

## Training

{settings}
- seed: {seed}

It took {seconds} seconds, and these bytes travelled:

{traffic}

Prompts that lost their beginning to fit a model, where it learned or answered (answers never lose anything):

{shortened}

The whole configuration is in `config.toml`; `consort tune config.toml` repeats the run.

## Limits

Each device's model knows that device's domain and was measured on it alone. The licences and limits of the
base models apply to what was tuned from them.
"""


def _table_row(line: Line) -> str:
    stages = ["–" if score is None else percent(score) for score in (line.before, line.alone, line.after)]
    gain = "–" if line.gain is None else percent(line.gain, signed=True)
    majority = "" if line.majority is None else f"{100 * line.majority:.1f}"
    return f"| {' | '.join((line.who.strip(), line.metric, *stages, gain, majority))} |"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _commit(root: Path) -> str:
    """The commit of the checkout that consort itself runs from; empty where it was installed as a package."""
    if not (root / ".git").exists():
        return ""
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
