"""What can be wrong with a configuration's values alone: ranges, names, what must be given."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consort.config import (
    Config,
    DeviceConfig,
    EvalConfig,
    ModelConfig,
    ProxyConfig,
    RuntimeConfig,
    TuneConfig,
)
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ModelError
from consort.models.zoo import located
from consort.problems import Problem, shown

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED_NAMES = frozenset({"cloud", "proxy", "shared", "public"})  # folders of a run directory
TORCH_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers a field may hold: from `low` (or `above` it) to `high`."""

    low: float = -math.inf
    above: float = -math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and value > self.above

    def __str__(self) -> str:
        start = f"above {self.above:g}" if self.above > self.low else f"at least {self.low:g}"
        return start + (f" and at most {self.high:g}" if self.high < math.inf else "")


COUNT, COUNT_OR_NONE = Range(low=1), Range(low=0)
POSITIVE, NOT_NEGATIVE = Range(above=0), Range(low=0)

RANGES: dict[type, dict[str, Range]] = {
    Config: {"seed": COUNT_OR_NONE},
    ModelConfig: {
        "lora_rank": COUNT,
        "lora_alpha": POSITIVE,
        "learning_rate": POSITIVE,
        "max_tokens": Range(low=8),  # a prompt, an answer and its end
    },
    ProxyConfig: {
        "layers": COUNT_OR_NONE,
        "width": Range(above=0, high=1),
        "distil_steps": COUNT_OR_NONE,
        "distil_learning_rate": POSITIVE,
        "distil_prompt_weight": NOT_NEGATIVE,
        "cloud_learning_rate": POSITIVE,
        "learning_rate": POSITIVE,
        "shared_rank": COUNT,
        "domain_rank": COUNT,
        "domain_share": Range(low=0, high=1),
    },
    DeviceConfig: {"memory_gb": NOT_NEGATIVE},
    TuneConfig: {
        "rounds": COUNT,
        "domain_steps": COUNT_OR_NONE,
        "mutual_steps": COUNT_OR_NONE,
        "cloud_steps": COUNT_OR_NONE,
        "batch_rows": COUNT,
        "temperature": POSITIVE,
        "slm_kd_weight": NOT_NEGATIVE,
        "proxy_kd_weight": NOT_NEGATIVE,
        "proxy_share": Range(low=0, high=1),
        "cloud_kd_weight": NOT_NEGATIVE,
        "prompt_weight": NOT_NEGATIVE,
        "doubt": NOT_NEGATIVE,
        "top_k": COUNT,
        "proxy_answers": COUNT_OR_NONE,
        "answers_share": Range(low=0, high=1),
        "participation": Range(above=0, high=1),
        "max_update_norm": NOT_NEGATIVE,
        "outlier_ratio": NOT_NEGATIVE,
        "public_samples": COUNT_OR_NONE,
        "samples_share": Range(low=0, high=1),
        "drafter_steps": COUNT_OR_NONE,
    },
    RuntimeConfig: {"threads": COUNT, "workers": COUNT},
    ServeConfig: {
        "port": Range(low=0, high=65535),
        "threshold": Range(low=0, high=1),
        "share": Range(low=0, high=1),
        "llm_share": Range(low=0, high=1),
        "drift_alarm_rate": Range(low=0, high=0.5),
        "shadow_share": Range(low=0, high=1),
        "shadow_budget": NOT_NEGATIVE,
        "mix_weight": NOT_NEGATIVE,
        "mix_edge_share": Range(low=0, high=1),
        "mix_half_life": POSITIVE,
        "sessions": COUNT,
        "stall_s": POSITIVE,
        "deadline_s": POSITIVE,
        "max_tokens": COUNT,
        "temperature": Range(low=0, high=2),
        "max_in_flight": COUNT,
        "max_body_kb": COUNT,
    },
    ServedModel: {
        "answers": COUNT,
        "context_tokens": COUNT,
        "price_in": NOT_NEGATIVE,
        "price_out": NOT_NEGATIVE,
        "silence_s": POSITIVE,
    },
    EvalConfig: {"rows": COUNT_OR_NONE, "max_new_tokens": COUNT, "public_rows": COUNT_OR_NONE},
}


def value_problems(config: Config) -> Iterator[Problem]:
    """Every value that cannot be meant, and what a run needs and is not given."""
    yield from range_problems(config)
    if config.proxy.model:
        yield from _place_problem(config.proxy.model, "proxy.model")
    yield from _model_problems(config.cloud, "cloud")
    if not config.public:
        yield _problem("public", "no public data is given", "name a directory with train/valid/test.jsonl")
    yield from _device_problems(config.devices)


def range_problems(config: Config) -> Iterator[Problem]:
    """Every value that cannot be meant, whatever the configuration is for."""
    for prefix, table in _tables(config):
        for name, allowed in RANGES.get(type(table), {}).items():
            value = getattr(table, name)
            if value not in allowed:
                yield _problem(f"{prefix}{name}", f"must be {allowed}, not {shown(value)}")
    if not TORCH_DEVICE.fullmatch(config.runtime.device):
        what = f"no torch device is called {shown(config.runtime.device)}"
        yield _problem("runtime.device", what, 'use "auto", "cpu", "cuda", "cuda:1" or "mps"')
    if "gliner" in config.serve.detectors and not config.serve.gliner_model:
        yield _problem(
            "serve.detectors", "GLiNER needs a model", "serve.gliner_model names its directory or Hub id"
        )


def _device_problems(devices: tuple[DeviceConfig, ...]) -> Iterator[Problem]:
    if not devices:
        yield _problem(
            "devices", "no device is given", "add a [[devices]] section with name, data and slm.model"
        )
    first: dict[str, int] = {}
    for index, device in enumerate(devices):
        key, name = f"devices.{index}", device.name
        if not name:
            yield _problem(f"{key}.name", f"device {index + 1} has no name")
        elif not NAME.fullmatch(name):
            hint = "use letters, digits, dot, dash and underscore: it becomes a folder's name"
            yield _problem(f"{key}.name", f"{shown(name)} cannot name a device", hint)
        elif name.casefold() in RESERVED_NAMES:
            yield _problem(
                f"{key}.name", f"{shown(name)} is kept for the cloud's own side", "choose another name"
            )
        elif first.setdefault(name.casefold(), index) != index:  # a folder's name may ignore case
            other = first[name.casefold()] + 1
            what = f"devices {other} and {index + 1} are both named {shown(name)}"
            yield _problem(f"{key}.name", what, "give each a name of its own: it becomes a folder's name")
        if not device.data:
            what = f"device {shown(name)} has no data"
            yield _problem(
                f"{key}.data", what, "name a directory with train/valid/test.jsonl, or a JSONL file"
            )
        yield from _model_problems(device.slm, f"{key}.slm")


def _model_problems(model: ModelConfig, key: str) -> Iterator[Problem]:
    if model.model:
        yield from _place_problem(model.model, f"{key}.model")
    else:
        yield _problem(f"{key}.model", "no model is given", "name a local directory or a Hub id")
    if model.chat_template and not os.path.isfile(model.chat_template):
        yield _problem(f"{key}.chat_template", f"no such file: {model.chat_template}", "name a Jinja file")


def _place_problem(model: str, key: str) -> Iterator[Problem]:
    try:
        place = located(model)
    except ModelError as error:
        yield _problem(key, f"{error.what}: {model}", error.hint)
        return
    if os.path.isdir(place) and not (Path(place) / "config.json").is_file():
        yield _problem(key, f"{model} holds no config.json", "a transformers directory is needed")


def _tables(table: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dataclass of the configuration with the dotted prefix of its keys."""
    yield prefix, table
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if dataclasses.is_dataclass(value):
            yield from _tables(value, f"{prefix}{field.name}.")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for index, row in enumerate(value):
                yield from _tables(row, f"{prefix}{field.name}.{index}.")


def _problem(key: str, what: str, hint: str = "") -> Problem:
    return Problem(key, what, hint, key)
