"""`consort tune` as a person meets it: the result as one line of JSON, and mistakes told before training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from consort.cli import main
from tests.tunable_consort import write_tunable_consort


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tunable_consort(tmp_path_factory.mktemp("consort"))


def test_the_last_line_is_the_result_and_progress_goes_elsewhere(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    words = ["tune", str(file), "--set", "tune.rounds=1", "--run-dir", str(run_dir)]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])
    assert found.keys() == {"devices", "cloud", "seconds", "run_dir"}
    for device in found["devices"]:
        stages = {"zero_shot", "alone", "co_tuned"}
        assert {"name", "uplink_bytes", "downlink_bytes"} | stages <= device.keys()
        assert all({"rouge_l", "em"} <= device[stage].keys() for stage in stages)
    assert {"before", "after"} <= found["cloud"].keys()
    assert found == json.loads((run_dir / "result.json").read_text())
    assert "round 1: bank" in captured.err
    assert "round 1: bank" not in captured.out
    # 2) and a finished run is not begun anew by mistake
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.err.count("error:") == 1
    assert "--resume" in captured.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "tune.ruonds=2"], 'did you mean "rounds"'),
        (["--set", "devices.shop.name=bank"], 'both named "bank"'),
        (["--set", "devices.bank.data=nowhere"], "no such file or directory"),
        (["--set", "cloud.model=./nowhere"], "no such directory"),
        (["--set", "devices.bank.memory_gb=0.001"], "0.001 GB"),
        (["--set", "cloud.max_tokens=8", "--set", "tune.rounds=0"], "must be at least 1"),
    ],
)
def test_a_mistake_is_one_error_before_anything_is_written(
    words: list[str], told: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(file), "--run-dir", str(tmp_path / "run"), *words]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("error:") == 1
    assert told in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (tmp_path / "run").exists()


def test_a_damaged_row_is_named_by_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_tunable_consort(tmp_path)
    with (tmp_path / "shop" / "train.jsonl").open("a") as rows:
        rows.write('{"prompt": "and then\n')
    assert main(["tune", str(file), "--run-dir", str(tmp_path / "run")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("error:") == 1
    assert "shop/train.jsonl:7" in captured.err
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_written_is_one_error(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["tune", str(file), "--run-dir", str(tmp_path / "file" / "run")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("error:") == 1
    assert "cannot write the run directory" in captured.err
    assert captured.out == ""


def test_too_little_memory_is_one_error_before_training_unless_it_is_to_be_ignored(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=50e6))
    (tmp_path / "file").write_text("")
    words = ["tune", str(file), "--run-dir", str(tmp_path / "file" / "run")]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert told.count("error:") == 1
    assert f"{file}: too little memory for this run: about 0.4 GB needed, 0.1 GB available" in told
    assert main([*words, "--ignore-memory"]) == 1
    assert "cannot write the run directory" in capsys.readouterr().err
    little = ["--set", "devices.bank.memory_gb=0.1"]
    assert main([*words, *little]) == 1
    assert 'device "bank" has 0.1 GB' in capsys.readouterr().err
    assert main([*words, *little, "--ignore-memory"]) == 1
    assert "cannot write the run directory" in capsys.readouterr().err
    assert main(["demo", "--run-dir", str(tmp_path / "demo")]) == 1
    assert "the demo: too little memory" in capsys.readouterr().err
