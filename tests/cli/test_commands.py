"""The command line as a person meets it: what it prints, where, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from consort import __version__, cli
from consort.cli import VERBS, main
from consort.config_file import load_config
from consort.models import zoo
from tests.tiny_consort import Consort


def test_help_lists_every_verb_and_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert all(verb in text for verb in VERBS)
    assert "begin here" in text


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"consort {__version__}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    assert f"example: consort {verb}" in capsys.readouterr().out


def test_nothing_said_prints_the_help_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert "begin here" in captured.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["chekc"], 'no verb "chekc"; did you mean "check"?'),
        (["--debug"], "a verb is missing"),
        (["check", "--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_a_command_that_cannot_be_read_leaves_with_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("budget_at", range(3))
@pytest.mark.parametrize("state_at", range(3))
def test_options_may_stand_anywhere_between_what_has_no_name(
    budget_at: int, state_at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[list[str]] = [[], [], []]
    words[budget_at] += ["--budget", "3"]
    words[state_at] += ["--state", str(tmp_path)]
    assert main(["keys", *words[0], "add", *words[1], "laptop", *words[2]]) == 0
    capsys.readouterr()
    assert main(["keys", "list", "--state", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("laptop  budget 3")


def test_an_error_is_one_line_on_stderr_and_leaves_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path / "none.toml")]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith(f"error: {tmp_path}/none.toml: no such file")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_the_traceback_given_before_or_after_the_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    words = ["check", str(tmp_path / "none.toml")]
    assert main(["--debug", *words] if before else [*words, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_leaves_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert main(["check"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_the_systems_own_refusal_is_told_in_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["init", str(tmp_path / "file" / "consort.toml")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'}: File exists\n"


def test_init_writes_a_configuration_that_reads_and_never_overwrites_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "consort.toml"
    assert main(["init", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert [device.name for device in load_config(file).devices] == ["bank", "clinic"]
    file.write_text("seed = 7\n")
    assert main(["init", str(file)]) == 1
    assert "--force" in capsys.readouterr().err
    assert file.read_text() == "seed = 7\n"
    assert main(["init", str(file), "--force"]) == 0
    assert "[cloud]" in file.read_text()


@pytest.mark.skipif(not (zoo.WEIGHTS / zoo.CLOUD).exists(), reason="the bundled models are not there yet")
def test_the_demos_own_configuration_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "consort.toml"
    assert main(["init", "--demo", str(file)]) == 0
    capsys.readouterr()
    assert str(tmp_path) not in file.read_text()  # the folder may be moved
    (tmp_path / "moved").mkdir()
    for part in ("consort.toml", "data"):
        (tmp_path / part).rename(tmp_path / "moved" / part)
    code = main(["check", str(tmp_path / "moved" / "consort.toml")])
    told = capsys.readouterr().out
    assert code == 0, told
    assert told.startswith("OK "), told  # and no warning before it


def test_the_demo_s_data_overwrite_nobody_s(tmp_path, capsys):
    own = tmp_path / "data" / "bank.jsonl"
    own.parent.mkdir()
    own.write_text("mine")
    assert main(["init", "--demo", str(tmp_path / "consort.toml")]) == 1
    assert "--force" in capsys.readouterr().err
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["bank.jsonl"]


def test_check_prints_ok_and_what_it_saw(consort: Consort, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(consort.file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"OK {consort.file}: 2 devices, 2 rounds")
    assert "train 3, valid 3, test 3, unlabelled 1" in out
    assert main(["check", str(consort.file), "--set", "tune.rounds=1"]) == 0
    assert "2 devices, 1 round\n" in capsys.readouterr().out


def test_check_prints_all_mistakes_and_leaves_with_1(
    consort: Consort, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(consort.file), "--set", "tune.rounds=0", "--set", "cloud.modle=x"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "2 mistakes" in captured.err


def test_check_json_is_one_line(consort: Consort, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(consort.file), "--json", "--set", "tune.rounds=0"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert not result["ok"]
    assert result["problems"][0]["key"] == "tune.rounds"
    assert result["rows"]["devices.1.unlabelled"] == {"train": 1}


def test_check_without_models_needs_none(consort: Consort, capsys: pytest.CaptureFixture[str]) -> None:
    (consort.folder / "edge" / "tokenizer.json").write_text("{")
    assert main(["check", str(consort.file), "--no-models"]) == 0
    assert main(["check", str(consort.file)]) == 1


def test_doctor_json_lists_findings(consort: Consort, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", str(consort.file), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert {"name", "state", "detail", "repair"} == set(result["findings"][0])
    assert result["ok"] == all(finding["state"] != "fail" for finding in result["findings"])


def test_doctor_honours_no_color(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["doctor", "--run-dir", str(tmp_path)])
    assert "\x1b[3" not in capsys.readouterr().out


def test_the_module_runs_as_the_script_does() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "consort", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == f"consort {__version__}"
