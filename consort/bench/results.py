"""The result of a co-tuning run as data, as JSON and as the lines of its table. Does not measure or print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from consort.bench.metrics import Score, Scores, exact_match, paired_difference
from consort.training.data import Shortened

RIGHT, WRONG = "✓", "✗"
UNREAD = "– cannot read it"  # in the place of an answer


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
    model: str  # as the configuration names it, without folders
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
    """What one model said to an example's prompt; None where it cannot read it."""

    model: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A prompt from a device's test rows, its right answer, and everybody's answers."""

    device: str
    prompt: str
    reference: str
    answers: tuple[ModelAnswer, ...]

    def mark(self, answer: str) -> str:
        """For the right answer, and for a wrong one."""
        return RIGHT if exact_match(answer, self.reference) else WRONG


@dataclass(frozen=True, slots=True)
class RunResult:
    """Everything a finished run reports."""

    devices: tuple[DeviceResult, ...]
    cloud: CloudResult
    seconds: float
    run_dir: str
    examples: tuple[ShownPrompt, ...] = ()
    shortened: tuple[Shortened, ...] = ()  # prompts that lost their beginning

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints: scores are shares, every one with its standard error."""
        return {
            "devices": [_device_json(device) | self._shortened_json(device.name) for device in self.devices],
            "cloud": _cloud_json(self.cloud) | self._shortened_json(self.cloud.name),
            "seconds": round(self.seconds, 1),
            "run_dir": self.run_dir,
        }

    def _shortened_json(self, party: str) -> dict[str, Any]:
        return {"shortened_prompts": [asdict(each) for each in self.shortened if each.party == party]}


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The plain mean over devices; the standard error is that of independent devices' means."""
    return Scores(*(_mean([getattr(each, metric) for each in scores]) for metric in ("rouge_l", "em")))


def percent(score: Score, *, signed: bool = False) -> str:
    """A share as a person reads it: 58.5±3.1."""
    return f"{100 * score.mean:{'+' if signed else ''}.1f}±{100 * score.stderr:.1f}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the result table: one model, one metric."""

    who: str
    model: str  # empty where it is called as its owner
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


def _lines(
    who: str, model: str, stages: tuple[Scores, Scores | None, Scores], gain: Scores | None, majority: float
) -> list[Line]:
    before, alone, after = stages
    return [
        Line(
            who,
            "" if model == who else model,
            label,
            getattr(before, metric),
            None if alone is None else getattr(alone, metric),
            getattr(after, metric),
            None if gain is None else getattr(gain, metric),
            majority if metric == "em" else None,
        )
        for metric, label in (("rouge_l", "Rouge-L"), ("em", "EM"))
    ]


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
