"""The report's HTML: tables, examples and the frame around the pictures. Draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from consort.bench.metrics import Score
from consort.bench.results import (
    RIGHT,
    UNREAD,
    Line,
    RunResult,
    ShownPrompt,
    mean_scores,
    percent,
    result_lines,
)
from consort.problems import counted, size


@dataclass(frozen=True, slots=True)
class Picture:
    """An inline SVG with what it shows, for the caption and for who cannot see it."""

    svg: str
    caption: str


def page(
    result: RunResult,
    *,
    title: str,
    bars: Sequence[Picture],
    curves: Sequence[Picture],
    note: str,
    config: str,
    environment: Mapping[str, object],
) -> str:
    """The whole document; `note` replaces missing pictures."""
    css = files("consort.bench").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        _section("Result", _result_table(result) + _pictures(bars, note)),
        _section("Bytes", _traffic_table(result)),
        _section("Answers", _ANSWERS + "".join(map(_example, result.examples))) if result.examples else "",
        _section("Shortened prompts", _shortened(result)),
        _section("Learning curves", _pictures(curves, note or "No training step was logged.")),
        _section("How it was run", _details("Configuration", config) + _environment(environment)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} – consort</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n{_summary(result)}</header>\n<main>\n"
        + "".join(sections)
        + "</main>\n</body>\n</html>\n"
    )


def _summary(result: RunResult) -> str:
    co_tuned = mean_scores([device.co_tuned for device in result.devices])
    zero_shot = mean_scores([device.zero_shot for device in result.devices])
    alone = [device.alone for device in result.devices if device.alone is not None]
    stages = [("zero-shot", zero_shot)]
    if len(alone) == len(result.devices):
        stages.append(("tuned alone", mean_scores(alone)))
    stages.append(("co-tuned", co_tuned))
    sentences = [
        f"{label}: " + ", ".join(f"{name} {percent(getattr(scores, metric))}" for name, scores in stages)
        for metric, label in (("em", "Exact match"), ("rouge_l", "Rouge-L"))
    ]
    total = sum(device.uplink_bytes + device.downlink_bytes for device in result.devices)
    devices = counted(len(result.devices), "device")
    return (
        f'<p class="quiet">{devices} and one cloud model, {counted(round(result.seconds), "second")}, '
        f"{size(total)} sent in all.</p>\n<p>Mean over the devices, in percent. "
        + ". ".join(map(escape, sentences))
        + ".</p>\n"
    )


def _section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}</section>\n"


def _table(caption: str, heads: Sequence[str], rows: Sequence[str], *, text_heads: Sequence[str] = ()) -> str:
    cells = "".join(
        f'<th scope="col"{" class=text" if head in text_heads else ""}>{escape(head)}</th>' for head in heads
    )
    return (
        f'<div class="scroll"><table>\n<caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{cells}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table></div>\n"
    )


def _result_table(result: RunResult) -> str:
    return _table(
        "Percent ± standard error over test rows. Gain: co-tuned minus alone, for the cloud after minus "
        "before, paired row by row. Majority: exact match of always giving the commonest training answer.",
        ("Model", "Metric", "zero-shot", "alone", "co-tuned", "gain", "majority"),
        [_result_row(line) for line in result_lines(result)],
        text_heads=("Metric",),
    )


def _result_row(line: Line) -> str:
    first = line.majority is None
    who = (
        f'<th scope="rowgroup" rowspan="2">{escape(line.who.strip())}<small>{escape(line.model)}</small></th>'
        if first
        else ""
    )
    stages = [line.before, line.alone, line.after]
    best = max(score.mean for score in stages if score is not None)
    cells = "".join(_score_cell(score, best=score is not None and score.mean == best) for score in stages)
    gain = _score_cell(line.gain, signed=True)
    majority = "" if line.majority is None else f"{100 * line.majority:.1f}"
    return (
        f'<tr{" class=first" if first else ""}>{who}<td class="text">{line.metric}</td>{cells}{gain}'
        f"<td>{majority}</td></tr>\n"
    )


def _score_cell(score: Score | None, *, best: bool = False, signed: bool = False) -> str:
    if score is None:
        return "<td>–</td>"
    mean, stderr = percent(score, signed=signed).split("±")
    return f"<td{' class=best' if best else ''}>{mean} <small>±{stderr}</small></td>"


def _traffic_table(result: RunResult) -> str:
    rounds = sorted({one.round for device in result.devices for one in device.traffic})
    rows = []
    for device in result.devices:
        by_round = {one.round: (one.uplink_bytes, one.downlink_bytes) for one in device.traffic}
        cells = [by_round.get(number) for number in rounds] + [(device.uplink_bytes, device.downlink_bytes)]
        texts = ["–" if cell is None else f"{size(cell[0])} / {size(cell[1])}" for cell in cells]
        rows.append(_named_row(device.name, "".join(f"<td>{text}</td>" for text in texts)))
    return _table(
        "Sent / received by each device, as it travelled: compressed, with headers and checksums.",
        ("Device", *(f"round {number + 1}" for number in rounds), "total"),
        rows,
    )


_ANSWERS = (
    '<p class="quiet">Of each of the first devices one test prompt: the first that co-tuning set right, else '
    "the first of all. Chosen to show a change, they prove nothing; the table above measures.</p>\n"
)


def _example(example: ShownPrompt) -> str:
    rows = [
        _named_row(answer.model, _answer_cell(answer.before, example) + _answer_cell(answer.after, example))
        for answer in example.answers
    ]
    table = _table(
        f"Of {example.device}. Right answer: {example.reference}",
        ("Model", "before", "after"),
        rows,
        text_heads=("before", "after"),
    )
    return f"<article>\n<h3>{escape(example.prompt)}</h3>\n{table}</article>\n"


def _shortened(result: RunResult) -> str:
    if not result.shortened:
        return '<p class="quiet">None: every prompt and its answer fit the models that read them.</p>\n'
    rows = [
        _named_row(
            each.party,
            f'<td class="text">{escape(each.reader)}</td><td class="text">{each.kind}</td>'
            f"<td>{each.rows} of {each.of}</td><td>{each.max_tokens}</td>",
        )
        for each in result.shortened
    ]
    return _table(
        "Longer than a model reads: prompt and answer where it learned, the prompt where it answered. "
        "Prompts lost their beginning, answers nothing.",
        ("Whose rows", "read by", "which", "shortened", "longest, tokens"),
        rows,
        text_heads=("read by", "which"),
    )


def _named_row(name: str, cells: str) -> str:
    return f'<tr class="first"><th scope="row">{escape(name)}</th>{cells}</tr>\n'


def _answer_cell(answer: str | None, example: ShownPrompt) -> str:
    if answer is None:
        return f'<td class="text"><small>{UNREAD}</small></td>'
    mark = example.mark(answer)
    return f'<td class="text{" right" if mark == RIGHT else ""}"><b>{mark}</b> {escape(answer)}</td>'


def _pictures(pictures: Sequence[Picture], note: str) -> str:
    if not pictures:
        return f'<p class="quiet">{escape(note)}</p>\n' if note else ""
    figures = "".join(
        f"<figure>{picture.svg}<figcaption>{escape(picture.caption)}</figcaption></figure>\n"
        for picture in pictures
    )
    return f'<div class="pictures">\n{figures}</div>\n'


def _details(heading: str, text: str) -> str:
    return (
        f"<details>\n<summary>{escape(heading)}</summary>\n<pre>{escape(text)}</pre>\n</details>\n"
        if text
        else ""
    )


def _environment(environment: Mapping[str, object]) -> str:
    return _details("Environment", "\n".join(f"{key} = {value}" for key, value in environment.items()))
