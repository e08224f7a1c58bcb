"""report.html: a run on one page that needs no network: result, bars, curves, bytes, answers, configuration.

matplotlib is imported only when a picture is drawn; without it the page has its tables
and says how to get the pictures. Does not measure: all comes from a RunResult and from the run directory.
"""

from __future__ import annotations

import io
import json
import re
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

from consort.bench.metrics import Scores
from consort.bench.page import Picture, page
from consort.bench.results import RunResult
from consort.errors import MissingExtraError, RunError
from consort.files import whole_file

LogRow: TypeAlias = Mapping[str, Any]
_Point: TypeAlias = tuple[str, int, int, float]  # party, round, step, loss
_Stages: TypeAlias = tuple[str, tuple[Scores | None, Scores | None, Scores | None], float]

# readable on white and on black alike; the first three are the stages of a model
_COLOURS = ("#8a929b", "#d9822b", "#2f86d1", "#3fa46a", "#c8524f", "#8e6cc0", "#b0892f", "#4aa3a8")
# stand-ins that the page's own colours replace, so that one picture serves light and dark
_INK, _LINE = "#010203", "#040506"
_LOSSES = {"ce": "cross-entropy", "kl": "divergence from the teacher"}  # logged as <model>/<loss>
_PHASES = {
    "distil": "Distilling the proxy from the cloud model",
    "domain": "Domain-specific tuning of the proxy on each device",
    "mutual": "Mutual learning on each device",
    "cloud": "Mutual learning in the cloud",
    "drafter": "The proxy learning to draft for the cloud model",
    "alone": "Each device's model tuned alone",
}


def write_report(run_dir: Path, result: RunResult) -> Path:
    """Write `report.html` from the result and the config.toml, environment.json, metrics.jsonl beside it."""
    config = _text(run_dir / "config.toml")
    rows = read_metrics(run_dir / "metrics.jsonl")
    note, bars, curves = "", [], []
    try:
        bars, curves = _bars(result), _curves(rows)
    except MissingExtraError as missing:
        note = str(missing)  # a finished run must not lose its page for a picture
    html = page(
        result,
        title=tomllib.loads(config).get("name", run_dir.name),
        bars=bars,
        curves=curves,
        note=note,
        config=config,
        environment=json.loads(_text(run_dir / "environment.json") or "{}"),
    )
    try:
        with whole_file(run_dir / "report.html") as file:
            file.write(html.encode())
    except OSError as error:
        raise RunError(
            f"the report cannot be written: {error.strerror}",
            where=str(run_dir),
            hint="free some space or give another --run-dir",
        ) from error
    return run_dir / "report.html"


def read_metrics(path: Path) -> list[LogRow]:
    """Rows of metrics.jsonl; a last line cut off by a crash is left out."""
    rows = []
    for line in _text(path).splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _bars(result: RunResult) -> list[Picture]:
    models: list[_Stages] = [
        (device.name, (device.zero_shot, device.alone, device.co_tuned), device.majority)
        for device in result.devices
    ]
    models.append((result.cloud.name, (result.cloud.before, None, result.cloud.after), result.cloud.majority))
    return [
        _draw(
            partial(_plot_bars, models=models, metric=metric),
            f"{label} of each model, percent, ± one standard error; the numbers are in the table above.",
            rows=len(models),
        )
        for metric, label in (("rouge_l", "Rouge-L"), ("em", "Exact match"))
    ]


def _plot_bars(axes: Any, *, models: Sequence[_Stages], metric: str) -> None:
    for stage, label in enumerate(("zero-shot", "alone", "co-tuned")):
        known = [
            (row, getattr(scores, metric))
            for row, (_, stages, _) in enumerate(models)
            if (scores := stages[stage])
        ]
        axes.barh(
            [row + 0.27 * (stage - 1) for row, _ in known],
            [100 * score.mean for _, score in known],
            0.25,
            xerr=[100 * score.stderr for _, score in known],
            error_kw={"ecolor": _INK, "elinewidth": 1, "capsize": 2},
            color=_COLOURS[stage],
            label=label,
        )
    if metric == "em":
        rows = range(len(models))
        axes.vlines(
            [100 * majority for _, _, majority in models],
            [row - 0.42 for row in rows],
            [row + 0.42 for row in rows],
            color=_INK,
            linestyle=(0, (2, 1)),
            label="majority",
        )
    axes.set_yticks(range(len(models)), [name for name, _, _ in models])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)


def _curves(rows: Sequence[LogRow]) -> list[Picture]:
    """One picture for each phase, learner and loss, one line a party, rounds end to end."""
    pictures = []
    for phase, heading in _PHASES.items():
        points: dict[tuple[str, str], list[_Point]] = {}
        for row in rows:
            if row.get("phase") == phase:
                for key in row:
                    model, _, loss = key.partition("/")
                    if loss in _LOSSES:
                        learner = "own model" if model == row["party"] else model
                        point = (row["party"], row["round"], row["step"], row[key])
                        points.setdefault((learner, loss), []).append(point)
        for (learner, loss), of_loss in points.items():
            if any(value for *_, value in of_loss):  # without a teacher the divergence is 0 throughout
                name = f"{heading}, {learner}: {_LOSSES[loss]}"
                pictures.append(_draw(partial(_plot_lines, points=of_loss), name))
    return pictures


def _plot_lines(axes: Any, *, points: Sequence[_Point]) -> None:
    offsets, start = {}, 0
    for number in sorted({number for _, number, _, _ in points}):
        steps = [step for _, of, step, _ in points if of == number]
        offsets[number] = start - min(steps)  # some phases count through all rounds
        start += 1 + max(steps) - min(steps)
    for index, party in enumerate(sorted({party for party, *_ in points})):
        line = sorted((offsets[number] + step, value) for of, number, step, value in points if of == party)
        axes.plot(*zip(*line, strict=True), color=_COLOURS[(index + 1) % len(_COLOURS)], label=party)
    for number in list(offsets)[1:]:
        first = min(offsets[number] + step for _, of, step, _ in points if of == number)
        axes.axvline(first, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("steps" if len(offsets) < 2 else "steps; dotted: a new round")
    axes.set_ylabel("nats a token")


def _draw(plot: Callable[[Any], None], caption: str, *, rows: int = 4) -> Picture:
    """Run `plot` on fresh axes, small enough for a phone, and return the SVG in the page's own colours."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "pictures need matplotlib", hint="pip install 'consort-lm[plots]', then run the report again"
        ) from error
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": caption,
        "text.parse_math": False,  # a device may be called $x$
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _LINE,
        "lines.linewidth": 1.5,
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
        ),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # the browser's fonts draw the text: what matplotlib's own font lacks does not matter
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(4.4, 1.4 + 0.42 * rows), layout="constrained")
        axes = figure.subplots()
        plot(axes)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=4,
            frameon=False,
            handlelength=1.2,
            columnspacing=1,
        )
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(_for_the_page(svg.getvalue(), caption), caption)


def _for_the_page(svg: str, caption: str) -> str:
    """Only the svg element, ids made unique on the page, a name for screen readers, colours of the page."""
    prefix = re.sub(r"\W+", "-", caption)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg[svg.index("<svg") :].strip())
    # sized by the page, not in points
    opening = re.compile(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>')
    svg = opening.sub(lambda tag: f'<svg {tag[1]} role="img" aria-label="{escape(caption)}">', svg, count=1)
    return svg.replace(_INK, "currentColor").replace(_LINE, "var(--line)")
