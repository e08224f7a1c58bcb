"""`consort export` on a real tiny model: every form can be loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest

from consort.cli import main
from consort.training.adapters import OWN
from consort.training.peft_directory import save_adapter
from consort.training.tuned import load_tuned
from tests.tiny_models import CPU, tiny, tune_somehow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    model = tiny()
    model.module.save_pretrained(root / "model")
    model.tokenizer.save_pretrained(root / "model")
    tune_somehow(model)
    save_adapter(model, OWN, root / "adapter", base=str(root / "model"))
    return root


@pytest.mark.parametrize("named", ["model and adapter", "adapter"])
@pytest.mark.parametrize("form", ["peft", "safetensors", "gguf"])
def test_every_form_is_written_with_a_card_and_named_on_stdout(
    form: str, named: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    what = [str(folder / "model"), str(out), "--adapter", str(folder / "adapter")]
    if named == "adapter":
        what = [str(folder / "adapter"), str(out)]
    words = ["export", *what, "--format", form]
    assert main(words) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written.exists()
    assert str(folder / "model") in (out / "README.md").read_text(encoding="utf-8")
    if form == "peft":
        load_tuned(str(folder / "model"), adapter=written, runtime=CPU)
    elif form == "safetensors":
        load_tuned(str(written), adapter=None, runtime=CPU)
    else:
        assert written.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "peft"], "no adapter to write"),
        (["--format", "safetensors", "--precision", "q8_0"], "q8_0 is a precision of GGUF"),
        (["--format", "gguf", "--adapter", "nowhere"], "no adapter_config.json"),
    ],
)
def test_what_makes_no_sense_is_one_error_and_writes_nothing(
    words: list[str], told: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(folder / "model"), str(tmp_path / "out"), *words]) == 1
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
