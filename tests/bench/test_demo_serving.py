"""The demo's questions to the bundled models behind the real endpoint: receipts add up, and how they look."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from consort.bench.demo import demo_config
from consort.bench.demo_serving import QUESTIONS, Served, print_served, serve_and_ask
from consort.bench.suite_grammar import DEVICE_DOMAINS


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> list[Served]:
    folder = tmp_path_factory.mktemp("demo")
    config = demo_config(folder / "suite")
    return serve_and_ask(
        replace(config, serve=replace(config.serve, state=str(folder / "state"))), device=DEVICE_DOMAINS[0]
    )


def test_five_questions_have_answers_and_receipts_that_add_up(served: list[Served]) -> None:
    assert [one.model for one in served] == [model for _, model, _ in QUESTIONS]
    assert len({one.question for one in served}) == 5
    for one in served:
        assert one.receipt["outcome"] == "done"
        written = [(author, len(text.encode())) for author, text in one.spans]
        assert written == [tuple(span) for span in one.receipt["spans"]]
        assert one.receipt["latency_s"] > 0
        assert one.to_json()["answer"] == one.answer


def test_what_stays_at_the_edge_sends_nothing_and_what_is_redacted_is_counted(served: list[Served]) -> None:
    by_model = {one.model: one.receipt for one in served}
    assert by_model["consort/edge"]["cloud_bytes"] == by_model["consort/auto"]["cloud_bytes"] == 0
    assert by_model["consort/speculate"]["cloud_bytes"] > 0
    assert by_model["consort/cascade"]["redactions"] == {"person": 1}


def test_each_author_has_a_colour_and_each_receipt_a_line(served: list[Served]) -> None:
    text = StringIO()
    print_served(
        served, Console(file=text, force_terminal=True, width=200, no_color=False, color_system="standard")
    )
    shown = text.getvalue()
    authors = {author for one in served for author, _ in one.spans}
    assert len({colour for colour in ("[30;42m", "[30;43m", "[30;44m") if colour in shown}) >= min(
        3, len(authors)
    )
    for one in served:
        (line,) = [line for line in shown.splitlines() if f"{one.model}: " in line]
        assert "to cloud" in line
        assert " ms" in line
