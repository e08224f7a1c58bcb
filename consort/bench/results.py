"""The result of a co-tuning run as data, as JSON and as tables in the terminal. Does not measure or plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consort.bench.metrics import Score, Scores, paired_difference


@dataclass(frozen=True, slots=True)
class RoundBytes:
    """What one device sent and received in one round."""

    round: int
    uplink_bytes: int
    downlink_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """One device's model before, tuned alone (same data, same steps) and co-tuned, on its own test rows."""

    name: str
    model: str  # for a reader: architecture and size
    zero_shot: Scores
    alone: Scores | None  # None: the comparator was not run
    co_tuned: Scores
    majority: float  # exact match of the most frequent training answer
    traffic: tuple[RoundBytes, ...] = ()

    @property
    def uplink_bytes(self) -> int:
        """Bytes sent over all rounds."""
        return sum(traffic.uplink_bytes for traffic in self.traffic)

    @property
    def downlink_bytes(self) -> int:
        """Bytes received over all rounds."""
        return sum(traffic.downlink_bytes for traffic in self.traffic)

    @property
    def gain(self) -> Scores | None:
        """Co-tuned minus alone, paired row by row; None without rows to pair."""
        return None if self.alone is None else _paired(self.co_tuned, self.alone)


@dataclass(frozen=True, slots=True)
class CloudResult:
    """The cloud model on rows of one domain, or of all, before and after."""

    name: str
    model: str
    before: Scores
    after: Scores
    majority: float
    domains: tuple[CloudResult, ...] = ()  # the same, domain by domain

    @property
    def gain(self) -> Scores | None:
        """After minus before, paired row by row; None without rows to pair."""
        return _paired(self.after, self.before)


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What one model said to an example's prompt."""

    model: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A prompt from the test rows, its right answer, and everybody's answers."""

    prompt: str
    reference: str
    answers: tuple[ModelAnswer, ...]


@dataclass(frozen=True, slots=True)
class RunResult:
    """Everything a finished run reports."""

    devices: tuple[DeviceResult, ...]
    cloud: CloudResult
    seconds: float
    run_dir: str
    examples: tuple[ShownPrompt, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints: scores are shares, every one with its standard error."""
        return {
            "devices": [_device_json(device) for device in self.devices],
            "cloud": _cloud_json(self.cloud),
            "seconds": round(self.seconds, 1),
            "run_dir": self.run_dir,
        }


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The plain mean over devices; the standard error is that of independent devices' means."""
    return Scores(*(_mean([getattr(each, metric) for each in scores]) for metric in ("rouge_l", "em")))


def percent(score: Score, *, signed: bool = False) -> str:
    """A share as a person reads it: 58.5±3.1."""
    return f"{100 * score.mean:{'+' if signed else ''}.1f}±{100 * score.stderr:.1f}"


def size(num_bytes: float) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the result table: one model, one metric."""

    who: str
    model: str
    metric: str
    before: Score
    alone: Score | None
    after: Score
    gain: Score | None  # a device against "alone", the cloud against itself before
    majority: float | None  # for exact match only


def result_lines(result: RunResult) -> list[Line]:
    """The result table, the same for terminal, report and model card: two lines a device, then the cloud."""
    lines = []
    for device in result.devices:
        stages = (device.zero_shot, device.alone, device.co_tuned)
        lines += _lines(device.name, device.model, stages, device.gain, device.majority)
    cloud = result.cloud
    for part in (cloud, *cloud.domains):
        who, model = (part.name, part.model) if part is cloud else (f"  on {part.name}", "")
        lines += _lines(who, model, (part.before, None, part.after), part.gain, part.majority)
    return lines


def print_result(result: RunResult, console: Console) -> None:
    """The result as one table, the bytes, then the examples; fits 80 columns."""
    table = _table("Percent ± standard error")
    for heading in ("", " ", "zero-shot", "alone", "co-tuned", "gain", "majority"):
        table.add_column(heading, justify="right" if heading.strip() else "left", no_wrap=bool(heading))
    for line in result_lines(result):
        cells = [_percent_or_dash(line.before), _percent_or_dash(line.alone), _percent_or_dash(line.after)]
        gain = "–" if line.gain is None else percent(line.gain, signed=True)
        first, last = (line.who, "") if line.majority is None else (line.model, f"{100 * line.majority:.1f}")
        table.add_row(escape(first), line.metric, *cells, gain, last, end_section=line.majority is not None)
    console.print(table)
    print_traffic(result, console)
    for example in result.examples:
        print_example(example, console)
    console.print(
        f"{result.seconds:.0f} s; report and adapters in {result.run_dir}", markup=False, highlight=False
    )


def print_traffic(result: RunResult, console: Console) -> None:
    """Bytes up and down, per device and round."""
    rounds = sorted({one.round for device in result.devices for one in device.traffic})
    table = _table("Bytes sent / received")
    table.add_column("")
    for number in rounds:
        table.add_column(f"round {number}", justify="right")
    table.add_column("total", justify="right")
    for device in result.devices:
        by_round = {
            one.round: f"{size(one.uplink_bytes)} / {size(one.downlink_bytes)}" for one in device.traffic
        }
        total = f"{size(device.uplink_bytes)} / {size(device.downlink_bytes)}"
        table.add_row(escape(device.name), *(by_round.get(number, "–") for number in rounds), total)
    console.print(table)


def print_example(example: ShownPrompt, console: Console) -> None:
    """A prompt with every model's answer before and after."""
    table = _table(escape(example.prompt))
    table.caption = escape(f"right answer: {example.reference}")
    for heading in ("", "before", "after"):
        table.add_column(heading, overflow="fold")
    for answer in example.answers:
        table.add_row(escape(answer.model), escape(answer.before), escape(answer.after))
    console.print(table)


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_style="bold",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        pad_edge=False,
    )


def _lines(
    who: str, model: str, stages: tuple[Scores, Scores | None, Scores], gain: Scores | None, majority: float
) -> list[Line]:
    before, alone, after = stages
    return [
        Line(
            who,
            model,
            label,
            getattr(before, metric),
            None if alone is None else getattr(alone, metric),
            getattr(after, metric),
            None if gain is None else getattr(gain, metric),
            majority if metric == "em" else None,
        )
        for metric, label in (("rouge_l", "Rouge-L"), ("em", "EM"))
    ]


def _percent_or_dash(score: Score | None) -> str:
    return "–" if score is None else percent(score)


def _paired(ours: Scores, theirs: Scores) -> Scores | None:
    if not ours.em.rows or len(ours.em.rows) != len(theirs.em.rows):
        return None
    return Scores(
        paired_difference(ours.rouge_l.rows, theirs.rouge_l.rows),
        paired_difference(ours.em.rows, theirs.em.rows),
    )


def _mean(scores: Sequence[Score]) -> Score:
    stderr = sum(score.stderr**2 for score in scores) ** 0.5 / len(scores)
    return Score(sum(score.mean for score in scores) / len(scores), stderr, sum(score.n for score in scores))


def _device_json(device: DeviceResult) -> dict[str, Any]:
    return {
        "name": device.name,
        "model": device.model,
        "zero_shot": device.zero_shot.to_json(),
        "alone": None if device.alone is None else device.alone.to_json(),
        "co_tuned": device.co_tuned.to_json(),
        "gain": None if device.gain is None else device.gain.to_json(),
        "majority_em": device.majority,
        "uplink_bytes": device.uplink_bytes,
        "downlink_bytes": device.downlink_bytes,
        "rounds": [
            {"round": one.round, "uplink_bytes": one.uplink_bytes, "downlink_bytes": one.downlink_bytes}
            for one in device.traffic
        ],
    }


def _cloud_json(cloud: CloudResult) -> dict[str, Any]:
    return {
        "name": cloud.name,
        "model": cloud.model,
        "before": cloud.before.to_json(),
        "after": cloud.after.to_json(),
        "majority_em": cloud.majority,
        "domains": [_cloud_json(domain) for domain in cloud.domains],
    }
