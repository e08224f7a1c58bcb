"""From the answers of a run's models to its result: scores, gains, traffic. Runs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from consort.bench.metrics import Scores, majority_baseline, score_answers
from consort.bench.results import CloudResult, DeviceResult, RoundBytes, RunResult, ShownPrompt
from consort.config import Config, DeviceConfig
from consort.federated.co_plms import Traffic
from consort.training.data import Sample, Shortened

PUBLIC = "public"  # the name of the rows that no device owns


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """One device's rows, as a run uses them."""

    train: list[Sample]
    unlabelled: list[Sample]
    test: list[Sample]


@dataclass(frozen=True, slots=True)
class RunData:
    """All rows of a run, and which of them are too long for a model."""

    public_train: list[Sample]
    public_test: list[Sample]
    devices: Mapping[str, DeviceRows]
    shortened: tuple[Shortened, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """Every model's answers to test rows: devices by name; the cloud by device, and to the public rows."""

    before: Mapping[str, list[str]]
    alone: Mapping[str, list[str]]
    after: Mapping[str, list[str]]
    cloud_before: Mapping[str, list[str]]
    cloud_after: Mapping[str, list[str]]


def run_result(
    config: Config,
    data: RunData,
    answers: Answers,
    traffic: Sequence[Traffic],
    examples: Sequence[ShownPrompt],
    *,
    seconds: float,
    run_dir: Path,
) -> RunResult:
    """The whole result of a run."""
    devices = tuple(_device(device, data, answers, traffic) for device in config.devices)
    cloud = _cloud(config, data, answers)
    return RunResult(devices, cloud, seconds, str(run_dir), tuple(examples), data.shortened)


def _device(
    device: DeviceConfig, data: RunData, answers: Answers, traffic: Sequence[Traffic]
) -> DeviceResult:
    name, rows = device.name, data.devices[device.name]
    messages = tuple(
        RoundBytes(each.round_number, each.uplink_bytes, each.downlink_bytes)
        for each in traffic
        if each.party == name
    )
    return DeviceResult(
        name,
        Path(device.slm.model).name.removeprefix("zoo:"),
        _scores(answers.before[name], rows.test),
        _scores(answers.alone[name], rows.test),
        _scores(answers.after[name], rows.test),
        _majority(rows.train, rows.test),
        messages,
    )


def _cloud(config: Config, data: RunData, answers: Answers) -> CloudResult:
    """The LLM on all devices' test rows together, and set by set."""
    sets = {name: (rows.train, rows.test) for name, rows in data.devices.items()}
    train = [sample for rows, _ in sets.values() for sample in rows]
    test = [sample for _, rows in sets.values() for sample in rows]
    before = [text for name in sets for text in answers.cloud_before[name]]
    after = [text for name in sets for text in answers.cloud_after[name]]
    if data.public_test:
        sets[PUBLIC] = (data.public_train, data.public_test)
    domains = tuple(
        CloudResult(
            name,
            "",
            _scores(answers.cloud_before[name], held_out),
            _scores(answers.cloud_after[name], held_out),
            _majority(learned, held_out),
        )
        for name, (learned, held_out) in sets.items()
    )
    model = Path(config.cloud.model).name.removeprefix("zoo:")
    return CloudResult(
        "cloud", model, _scores(before, test), _scores(after, test), _majority(train, test), domains
    )


def _scores(answers: Sequence[str], rows: Sequence[Sample]) -> Scores:
    return score_answers(answers, [row.answer or "" for row in rows])


def _majority(learned: Sequence[Sample], rows: Sequence[Sample]) -> float:
    return majority_baseline([row.answer or "" for row in learned], [row.answer or "" for row in rows])
