"""The result of a co-tuning run as tables in a terminal of 80 columns or more; `page` writes a browser's."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from consort.bench.metrics import Score
from consort.bench.results import RIGHT, UNREAD, WRONG, RunResult, ShownPrompt, percent, result_lines
from consort.problems import size

PROMPT_LENGTH = 320  # characters shown of a longer prompt: four lines of 80
MOST_NAME = 20  # characters shown of a model's name beside its answers
_COLOURS = {RIGHT: "green", WRONG: "red"}


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
    print_examples(result.examples, console)
    for each in result.shortened:
        console.print(f"{each.party}: {each}", style="yellow", markup=False, highlight=False)
    console.print(
        f"{result.seconds:.0f} s; report and adapters in {result.run_dir}", markup=False, highlight=False
    )


def print_traffic(result: RunResult, console: Console) -> None:
    """Bytes up and down, per device and round."""
    rounds = sorted({one.round for device in result.devices for one in device.traffic})
    table = _table("Bytes sent / received")
    table.add_column("")
    for number in rounds:
        table.add_column(f"round {number + 1}", justify="right")
    table.add_column("total", justify="right")
    for device in result.devices:
        by_round = {
            one.round: f"{size(one.uplink_bytes)} / {size(one.downlink_bytes)}" for one in device.traffic
        }
        total = f"{size(device.uplink_bytes)} / {size(device.downlink_bytes)}"
        table.add_row(escape(device.name), *(by_round.get(number, "–") for number in rounds), total)
    console.print(table)


def print_examples(examples: Sequence[ShownPrompt], console: Console) -> None:
    """A few prompts with every model's answer before and after, one line a model; `report.html` has what is
    cut here."""
    if not examples:
        return
    console.print("Answers before and after", style="bold")
    names = max(len(answer.model) for example in examples for answer in example.answers)
    gap = 2
    width = (console.width - min(names, MOST_NAME) - 2 * gap) // 2
    for example in examples:
        console.print()
        console.print(Text(_cut(_one_line(example.prompt)), style="bold"))
        console.print(Text(f"right answer: {_one_line(example.reference)}", style="dim"))
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
        table.add_column("", no_wrap=True, overflow="ellipsis", max_width=MOST_NAME)
        for heading in ("before", "after"):
            table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=width)
        for answer in example.answers:
            table.add_row(Text(answer.model), _marked(example, answer.before), _marked(example, answer.after))
        console.print(table)
    console.print()


def _marked(example: ShownPrompt, answer: str | None) -> Text:
    if answer is None:
        return Text(UNREAD, style="dim")
    mark = example.mark(answer)
    return Text.assemble((mark, _COLOURS[mark]), f" {_one_line(answer)}")


def _cut(text: str) -> str:
    return text if len(text) <= PROMPT_LENGTH else f"{text[: PROMPT_LENGTH - 1]}…"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _percent_or_dash(score: Score | None) -> str:
    return "–" if score is None else percent(score)


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_style="bold",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        pad_edge=False,
    )
