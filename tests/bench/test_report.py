"""The report of a run: JSON with the agreed keys, one page that needs nothing else, any text survives."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from consort.bench.card import environment, model_card
from consort.bench.metrics import Score, Scores
from consort.bench.report import read_metrics, write_report
from consort.bench.results import (
    CloudResult,
    DeviceResult,
    ModelAnswer,
    RoundBytes,
    RunResult,
    ShownPrompt,
    result_lines,
)
from consort.bench.terminal import print_result
from consort.config import Config, DeviceConfig, ModelConfig
from consort.errors import RunError
from consort.problems import size
from consort.training.data import Shortened

VOID = {"meta", "link", "br", "hr", "img", "input"}


def scores(rouge_l: float, em: float, *, num_rows: int = 40) -> Scores:
    rng = np.random.default_rng(int(1000 * rouge_l))
    return Scores(
        Score.of(rng.uniform(0, 2 * rouge_l, num_rows).tolist()),
        Score.of((rng.random(num_rows) < em).astype(float).tolist()),
    )


def result_for(run_dir: Path, *, text: str = "What is the limit?", alone: bool = True) -> RunResult:
    traffic = (RoundBytes(0, 1000, 900), RoundBytes(1, 1100, 950))
    devices = tuple(
        DeviceResult(
            name,
            "Llama 0.4M",
            scores(0.1, 0.02),
            scores(0.3, 0.3) if alone else None,
            scores(0.45, 0.5),
            0.1,
            traffic,
        )
        for name in ("bank", "clinic")
    )
    domains = (CloudResult("bank", "Llama 5M", scores(0.4, 0.5), scores(0.45, 0.6), 0.1),)
    cloud = CloudResult("cloud", "Llama 5M", scores(0.4, 0.5), scores(0.45, 0.6), 0.1, domains)
    answers = tuple(ModelAnswer(name, text, "400 euro") for name in ("bank", "clinic", "cloud"))
    shown = (ShownPrompt("bank", text, "400 Euro", answers),)
    return RunResult(
        devices,
        cloud,
        171.3,
        str(run_dir),
        shown,
        (Shortened("bank", "zoo:proxy", "test prompts", 3, 40, 256),),
    )


def write_metrics(run_dir: Path) -> None:
    rows = [
        {
            "phase": phase,
            "party": party,
            "round": number,
            "step": step,
            f"{party if phase == 'mutual' else 'proxy'}/ce": 1 / (step + number),
            "proxy/kl": float("nan"),
        }
        for phase in ("domain", "mutual", "cloud")
        for party in ("bank", "$x$ 银行")
        for number in (1, 2)
        for step in (0, 10, 19)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Nesting(HTMLParser):
    """Fails where tags do not close in order; collects ids, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id":
                self.ids.append(str(value))
            if key in ("src", "href", "xlink:href") and not str(value).startswith("#"):
                self.loads.append(str(value))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(path: Path) -> Nesting:
    parser = Nesting()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def test_json_has_the_agreed_keys_and_shares(tmp_path: Path) -> None:
    printed = json.loads(json.dumps(result_for(tmp_path).to_json()))
    assert {"devices", "cloud", "seconds", "run_dir"} <= printed.keys()
    for device in printed["devices"]:
        assert {"name", "zero_shot", "alone", "co_tuned", "uplink_bytes", "downlink_bytes"} <= device.keys()
        assert device["uplink_bytes"] == 2100
        assert device["downlink_bytes"] == 1850
        for stage in ("zero_shot", "alone", "co_tuned"):
            assert 0 <= device[stage]["rouge_l"] <= 1
            assert 0 <= device[stage]["em"] <= 1
    assert {"rouge_l", "em"} <= printed["cloud"]["before"].keys() & printed["cloud"]["after"].keys()


def test_the_gain_is_the_difference_with_its_paired_error(tmp_path: Path) -> None:
    device = result_for(tmp_path).devices[0]
    assert device.gain is not None
    assert device.alone is not None
    assert device.gain.em.mean == pytest.approx(device.co_tuned.em.mean - device.alone.em.mean)


def test_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    write_metrics(tmp_path)
    (tmp_path / "config.toml").write_text('name = "my run"\n', encoding="utf-8")
    (tmp_path / "environment.json").write_text(json.dumps(environment()), encoding="utf-8")
    page = parsed(write_report(tmp_path, result_for(tmp_path)))
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    assert "my run" in page.text
    assert "银行" in page.text
    assert "$x$" in page.text
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("<svg") == html.count('role="img"') == 2 + 6
    assert "@import" not in html
    assert "url(http" not in html


def test_pictures_are_well_formed_and_wear_the_colours_of_the_page(tmp_path: Path) -> None:
    html = write_report(tmp_path, result_for(tmp_path)).read_text(encoding="utf-8")
    svg = html[html.index("<svg") : html.index("</svg>") + len("</svg>")]
    ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))
    assert "currentColor" in svg
    assert "#010203" not in html


@settings(max_examples=8, deadline=None)
@given(text=st.text(max_size=60))
def test_no_answer_breaks_the_page_or_the_terminal(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    result = result_for(run_dir, text=f"<script>[/b]{text}</td>")
    page = parsed(write_report(run_dir, result))
    assert "<script>[/b]" in page.text
    assert "script" not in page.open
    with (run_dir / "terminal.txt").open("w", encoding="utf-8", errors="replace") as terminal:
        print_result(result, Console(file=terminal, width=80))
    assert "<script>[/b]" in (run_dir / "terminal.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("alone", [True, False])
def test_terminal_table_fits_80_columns_without_cutting_numbers(tmp_path: Path, *, alone: bool) -> None:
    with (tmp_path / "terminal.txt").open("w", encoding="utf-8") as terminal:
        print_result(result_for(tmp_path, alone=alone), Console(file=terminal, width=80))
    lines = (tmp_path / "terminal.txt").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("width", [80, 120])
def test_every_answer_is_one_line_marked_right_or_wrong_also_without_colour(
    tmp_path: Path, width: int
) -> None:
    result = result_for(tmp_path)
    said = [
        ModelAnswer("bank", "never " * 40, "400  euro"),
        ModelAnswer("a-device-of-a-long-name-indeed", "银行 " * 40, None),
        ModelAnswer("cloud", "", "four\nhundred"),
    ]
    shown = ShownPrompt("bank", "What\nis it? " * 200, "400 euro", tuple(said))
    with (tmp_path / "terminal.txt").open("w", encoding="utf-8") as terminal:
        console = Console(file=terminal, width=width, color_system=None)
        print_result(dataclasses.replace(result, examples=(shown,)), console)
    lines = (tmp_path / "terminal.txt").read_text(encoding="utf-8").splitlines()
    assert max(map(cell_len, lines)) <= width
    asked = lines[lines.index("right answer: 400 euro") - 1]
    assert asked.endswith("…")
    bank, other, cloud = lines[lines.index("right answer: 400 euro") + 2 :][:3]
    assert re.fullmatch(r"bank +✗ never never .*… +✓ 400 euro *", bank)
    assert re.fullmatch(r"a-device-of-a-long-… +✗ 银行 .*… +– cannot read it *", other)
    assert re.fullmatch(r"cloud +✗ +✗ four hundred *", cloud)


def test_prompts_that_lost_their_beginning_are_told_wherever_the_run_is(tmp_path: Path) -> None:
    result = result_for(tmp_path)
    (told,) = result.to_json()["devices"][0]["shortened_prompts"]
    assert (told["reader"], told["kind"]) == ("zoo:proxy", "test prompts")
    assert (told["rows"], told["of"], told["max_tokens"]) == (3, 40, 256)
    assert result.to_json()["devices"][1]["shortened_prompts"] == []
    page = parsed(write_report(tmp_path, result)).text
    assert "zoo:proxytest prompts3 of 40256" in page.replace("\n", "")
    line = "bank: 3 of 40 test prompts are longer than 256 tokens for zoo:proxy"
    assert f"- {line}" in model_card(result, Config())
    with (tmp_path / "terminal.txt").open("w", encoding="utf-8") as terminal:
        print_result(result, Console(file=terminal, width=120))
    assert line in (tmp_path / "terminal.txt").read_text(encoding="utf-8")
    none = dataclasses.replace(result, shortened=())
    assert "fit the models that read them" in parsed(write_report(tmp_path, none)).text


def test_a_model_called_as_its_owner_is_named_once(tmp_path: Path) -> None:
    result = result_for(tmp_path)
    named = dataclasses.replace(result, cloud=dataclasses.replace(result.cloud, model="cloud"))
    page = parsed(write_report(tmp_path, named)).text
    assert "cloudRouge-L" in page
    assert "cloudLlama 5M" in parsed(write_report(tmp_path, result)).text
    assert [line.model for line in result_lines(named) if line.who == "cloud"] == ["", ""]


def test_the_card_that_travels_holds_no_row_of_a_device_and_says_where_they_are(tmp_path: Path) -> None:
    result = result_for(tmp_path, text="Is my account 4711 blocked?")
    card = model_card(result, Config())
    (shown,) = result.examples
    for private in (shown.prompt, shown.reference, *(said.after or "" for said in shown.answers)):
        assert private not in card
        assert private in parsed(write_report(tmp_path, result)).text
    assert "report.html" in card


def test_a_comparator_that_was_not_run_is_a_dash_not_a_zero(tmp_path: Path) -> None:
    result = result_for(tmp_path, alone=False)
    assert result.to_json()["devices"][0]["alone"] is None
    assert "tuned alone" not in parsed(write_report(tmp_path, result)).text.split("Result")[0]


def test_without_matplotlib_the_page_says_how_to_get_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = parsed(write_report(tmp_path, result_for(tmp_path)))
    assert "consort-lm[plots]" in page.text
    assert "co-tuned" in page.text


def test_a_log_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    write_metrics(tmp_path)
    whole = read_metrics(tmp_path / "metrics.jsonl")
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"phase": "cloud", "par')
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == len(whole)


def test_a_report_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write_report(tmp_path, result_for(tmp_path))


def test_model_card_names_bases_and_carries_the_table(tmp_path: Path) -> None:
    devices = (DeviceConfig(name="bank", slm=ModelConfig(model="base/slm")),)
    card = model_card(result_for(tmp_path), Config(cloud=ModelConfig(model="base/llm"), devices=devices))
    assert card.startswith("---\n")
    for expected in ("- base/llm", "- base/slm", "| bank | EM |", "| cloud | Rouge-L |", "majority"):
        assert expected in card


def test_environment_is_json_and_names_the_versions() -> None:
    found = json.loads(json.dumps(environment()))
    assert {"consort", "python", "cpu", "numpy"} <= found.keys()


@given(st.integers(0, 10**13))
def test_sizes_are_short(num_bytes: int) -> None:
    assert len(size(num_bytes)) <= 10
