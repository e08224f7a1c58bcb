"""`consort eval` on a real tiny model: what it prints, and the errors of a wrong adapter or file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consort.cli import main
from consort.training.adapters import OWN
from consort.training.peft_directory import save_adapter
from tests.tiny_models import tiny, tune_somehow

ROWS = [
    {"instruction": "when", "input": "does the clinic open?", "output": "at nine"},
    {"instruction": "when", "input": "does it close?", "output": "at half past five"},
    {"instruction": "what", "input": "is the limit?", "output": "400 euro"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an adapter for it, another model, and data."""
    root = tmp_path_factory.mktemp("eval")
    model, other = tiny("llama"), tiny("gpt2")
    for name, one in (("model", model), ("other", other)):
        one.module.save_pretrained(root / name)
        one.tokenizer.save_pretrained(root / name)
    tune_somehow(model)
    save_adapter(model, OWN, root / "adapter", base=str(root / "model"))
    (root / "data").mkdir()
    for split in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
        (root / "data" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return root


def evaluated(
    folder: Path, capsys: pytest.CaptureFixture[str], *words: str, model: str = "model"
) -> dict[str, float]:
    arguments = [
        "eval",
        str(folder / model),
        "--data",
        str(folder / "data"),
        "--max-new-tokens",
        "8",
        "--json",
    ]
    assert main([*arguments, "--device", "cpu", *words]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_json_has_every_score_with_its_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(folder, capsys)
    for name in ("rouge_l", "em", "perplexity", "bits_per_byte"):
        assert found[name] >= 0
        assert found[f"{name}_stderr"] >= 0
    assert found["rows"] == 3
    assert found["majority_em"] == pytest.approx(1 / 3)


def test_an_adapter_changes_the_likelihood_and_rows_limits(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = evaluated(folder, capsys, "--rows", "2")
    tuned = evaluated(folder, capsys, "--rows", "2", "--adapter", str(folder / "adapter"))
    assert bare["rows"] == tuned["rows"] == 2
    assert bare["bits_per_byte"] != tuned["bits_per_byte"]


def test_an_adapters_directory_alone_stands_for_its_base_and_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    together = evaluated(folder, capsys, "--adapter", str(folder / "adapter"))
    alone = evaluated(folder, capsys, model="adapter")
    assert {**alone, "model": ""} == {**together, "model": ""}


def test_a_single_file_has_no_majority(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(folder, capsys, "--data", str(folder / "data" / "test.jsonl"))
    assert found["majority_em"] is None


def test_the_table_reads_percent(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(folder / "model"), "--data", str(folder / "data"), "--max-new-tokens", "8"]) == 0
    captured = capsys.readouterr()
    for expected in ("exact match, %", "bits per byte", "perplexity", "commonest"):
        assert expected in captured.out
    assert "answering 3 rows" in captured.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["other", "--adapter", "adapter", "--data", "data"], "another base"),
        (["model", "--adapter", "model", "--data", "data"], "no adapter_config.json"),
        (["adapter", "--adapter", "adapter", "--data", "data"], "is an adapter itself, and another is named"),
        (["model", "--data", "nowhere"], "no such file"),
        (["nowhere", "--data", "data"], "nowhere"),
        (["model", "--data", "data", "--max-new-tokens", "300"], "leaves no room"),
    ],
)
def test_a_mistake_is_one_error_and_exit_code_1(
    words: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [
        str(folder / word) if word in ("model", "other", "adapter", "data", "nowhere") else word
        for word in words
    ]
    assert main(["eval", *paths]) == 1
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""
