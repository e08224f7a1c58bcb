"""`consort calibrate` and `consort bench` on the command line: results on stdout, one error a mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from consort.cli import main
from consort.gateway.labels import Label
from consort.gateway.ledger import Ledger
from consort.inference.cache_measured import load_likeness
from consort.inference.calibration import Calibration
from consort.inference.evidence import Evidence, features
from consort.inference.gain_file import load_scorer


@pytest.fixture
def outcomes(tmp_path: Path) -> Path:
    rows = []
    for index in range(160):
        hard = index % 4 == 0
        prompt = f"{'Prove the theorem' if hard else 'Say hello'} number {index}"
        answer = f"2 + {index} = {index + 2 + hard}\n#### {index + 2 + hard}"
        scores = {"edge": float(not hard), "cloud": float(index % 40 != 1)}
        rows.append(json.dumps({"prompt": prompt, "scores": scores, "answers": {"edge": answer}}))
    path = tmp_path / "outcomes.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_calibrate_learns_keeps_a_goal_and_stores_it(
    outcomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = tmp_path / "scorer.safetensors"
    goal = ["--goal", "quality >= 0.8 of cloud", "--out", str(scorer)]
    assert main(["calibrate", str(outcomes), *goal, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["small"], told["large"], told["when"]) == ("edge", "cloud", "after")
    assert told["apgr"][0] > 0.8
    assert told["goals"]["kept"]
    stored = load_scorer(scorer)
    assert stored.calibration is not None
    assert stored.calibration.threshold == told["goals"]["threshold"]
    assert stored.scores.size == told["judged"] == 80
    assert main(["calibrate", str(outcomes), *goal, "--when", "before"]) == 0
    shown = capsys.readouterr().out
    assert "deciding before the answer" in shown
    assert "ask cloud where the probability that edge suffices is below 0." in shown


@pytest.mark.parametrize(
    ("threshold", "words"),
    [(0.0, "never ask cloud"), (2.0, "always ask cloud"), (0.25, "edge suffices is below 0.2500")],
)
def test_a_threshold_at_its_ends_is_said_in_words(threshold: float, words: str) -> None:
    found = Calibration(("g",), 0.95, threshold, True, 0.5, 0.5, 1.0, None, 10)
    assert words in found.rule("edge", "cloud")
    assert "2.0" not in found.rule()


def test_calibrate_says_when_nothing_can_be_promised(
    outcomes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(outcomes), "--goal", "quality >= 0.999"]) == 0
    shown = capsys.readouterr().out
    assert "no threshold could be certified" in shown
    assert "everything goes to the cloud" in shown


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--goal", "quality > nice"], "not a goal"),
        (["--price", "clod=1", "--goal", "cost <= 1 EUR/month"], 'did you mean "cloud"'),
        (["--price", "cloud=cheap"], "is not a price"),
        (["--small", "edgy"], 'did you mean "edge"'),
        (["--goal", "cost <= 1 EUR/month"], "what the models cost"),
        (["--confidence", "2", "--goal", "quality >= 0.5"], "no confidence"),
    ],
)
def test_mistakes_are_one_error(
    words: list[str], what: str, outcomes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(outcomes), *words]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert what in shown.err


def test_bench_compares_and_draws(outcomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "pareto.png"
    words = ["bench", str(outcomes), "--folds", "2", "--cloud-share", "0.25", "--picture", str(picture)]
    prices = ["--price", "edge=0.001", "--price", "cloud=0.01"]
    assert main([*words, *prices, "--json"]) == 0
    rows = {row["strategy"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == {"edge", "cloud", "random", "route", "cascade, checks only", "cascade"}
    assert rows["route"]["quality"] > rows["random"]["quality"]
    assert rows["route"]["edge_share"] == pytest.approx(0.75)
    assert rows["edge"]["eur_per_request"] == pytest.approx(0.001)
    assert picture.stat().st_size > 1000
    assert main(["bench", str(outcomes), "--folds", "2"]) == 0
    assert "APGR" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--folds", "1"], ["--cloud-share", "2"], ["--large", "none"]])
def test_bench_refuses_what_cannot_be_meant(
    words: list[str], outcomes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(outcomes), *words]) == 1
    assert "error:" in capsys.readouterr().err


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger with 160 labels and no text: every fourth question is one that the edge gets wrong."""
    written = Ledger(tmp_path / "state")
    for index in range(160):
        hard = index % 4 == 0
        prompt = f"{'Prove the theorem' if hard else 'Say hello'} number {index}"
        answer = f"2 + {index} = {index + 2 + hard}\n#### {index + 2 + hard}"
        known = Evidence(prompt, answer)
        taken = {"prompt_tokens": 9, "completion_tokens": 9, "answer_s": 0.1, "cost": 0.001}
        label = Label(str(index), float(index), "done", "cloud", 0.001, 1.0, "edge", "cloud", float(not hard))
        features_of = {group: features(known, group) for group in known.groups}
        written.record(replace(label, features=features_of, small_call=taken, large_call=taken))
    written.close()
    return tmp_path / "state"


def test_calibrate_learns_from_a_ledgers_labels_without_a_text(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = tmp_path / "scorer.safetensors"
    goal = ["--goal", "quality >= 0.8 of cloud", "--goal", "cost <= 1 EUR/request", "--out", str(scorer)]
    assert main(["calibrate", "--ledger", str(ledger), *goal, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["small"], told["large"], told["when"]) == ("edge", "cloud", "after")
    assert told["apgr"][0] > 0.8
    model = load_scorer(scorer).model
    assert model.texts == {}
    assert model.groups == ("surface", "checks")
    # what was learned from features alone judges texts, as the gateway has them
    right = Evidence("Say hello number 9", "2 + 9 = 11\n#### 11")
    wrong = Evidence("Prove the theorem number 9", "2 + 9 = 12\n#### 12")
    assert model.gain(right) < model.gain(wrong)
    assert main(["calibrate", "--ledger", str(ledger), "--when", "before", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["when"] == "before"


def test_a_ledger_that_cannot_be_learned_from_says_what_to_do(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path / "empty").close()
    for words, what in (
        (["--ledger", str(tmp_path / "empty")], "serve.shadow_share"),
        (["--ledger", str(tmp_path / "nowhere")], "no ledger here"),
        (["--ledger", str(ledger), "--small", "edge"], "has its own two models"),
        (["--ledger", str(ledger), "--cache"], "serve.log_text"),
        ([], "either a file of outcomes or --ledger"),
    ):
        assert main(["calibrate", *words]) == 1
        assert what in capsys.readouterr().err


def test_the_caches_likeness_is_measured_and_written_only_when_it_is_certain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, out = tmp_path / "questions.jsonl", tmp_path / "alike.json"
    things = [letter * 9 for letter in "abcdef"]
    asked = [(f"where is the {things[i % 6]} {i // 6 * 'o'}", f"at {things[i % 6]}") for i in range(120)]
    rows = [{"prompt": question, "answer": answer} for question, answer in asked]
    questions.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ["calibrate", str(questions), "--cache", "--out", str(out)]
    assert main([*words, "--max-error", "0.1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["certified"]
    assert load_likeness(out).threshold == told["threshold"] < 1
    out.unlink()
    assert main([*words, "--max-error", "0.001"]) == 0
    assert "only the same question counts" in capsys.readouterr().out
    assert not out.exists()
    questions.write_text('{"prompt": "x"}', encoding="utf-8")
    assert main(words) == 1
    assert "questions.jsonl:1" in capsys.readouterr().err
    assert main([*words, "--max-error", "2"]) == 1
