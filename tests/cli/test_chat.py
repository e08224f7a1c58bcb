"""`consort chat` on a real tiny model: once, through a pipe, and as a conversation."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from consort.cli import main
from consort.models.local import generate, load_model
from consort.training.data import Sample, prompt_ids
from consort.training.export import write_gguf
from consort.types import Message
from tests.tiny_models import CPU, tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    model = tiny()
    model.module.save_pretrained(root)
    model.tokenizer.save_pretrained(root)
    return root


class Terminal(io.StringIO):
    """Standard input that a person types into."""

    def isatty(self) -> bool:
        return True


def expected(directory: Path, *turns: Message) -> str:
    model = load_model(directory, runtime=CPU)
    ids = prompt_ids(Sample(turns, None), model)
    return model.vocabulary.decode(generate(model, [ids], max_new_tokens=8)[0])


def words(directory: Path, *more: str) -> list[str]:
    return ["chat", str(directory), *more, "--max-new-tokens", "8", "--device", "cpu"]


def test_a_prompt_is_answered_once_to_stdout_alone(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(directory, "the clinic")) == 0
    assert capsys.readouterr().out == expected(directory, Message("user", "the clinic")) + "\n"


def test_a_prompt_may_stand_after_an_option(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(directory, "--seed", "3", "the clinic")) == 0
    assert capsys.readouterr().out == expected(directory, Message("user", "the clinic")) + "\n"


def test_a_pipe_is_answered_like_a_prompt(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the clinic\n"))
    assert main(words(directory)) == 0
    assert capsys.readouterr().out == expected(directory, Message("user", "the clinic")) + "\n"


def test_a_conversation_remembers_until_it_is_told_to_forget(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    typed: Iterator[str] = iter(["the clinic", "and then?", "/new", "the clinic"])

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert main(words(directory, "--system", "be brief")) == 0
    system, asked = Message("system", "be brief"), Message("user", "the clinic")
    first = expected(directory, system, asked)
    second = expected(directory, system, asked, Message("assistant", first), Message("user", "and then?"))
    assert capsys.readouterr().out == f"{first}\n{second}\n{first}\n"


def test_a_gguf_file_answers_as_the_model_it_was_made_of_and_without_torch(
    directory: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed (pip install llama-cpp-python)")
    file = tmp_path / "tiny.gguf"
    write_gguf(load_model(directory, runtime=CPU), file, precision="float32")
    code = (
        "import sys; from consort.cli import main;"
        f"code = main({['chat', str(file), 'the clinic', '--max-new-tokens', '8', '--device', 'cpu']!r});"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout == expected(directory, Message("user", "the clinic")) + "\n"


@pytest.mark.parametrize(
    "verb", [["eval", "x.gguf", "--data", "y"], ["export", "x.gguf", "z", "--format", "peft"]]
)
def test_verbs_that_need_the_weights_in_torch_say_so_of_a_gguf_file(
    verb: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    assert main([str(data) if word == "y" else word for word in verb]) == 1
    assert "name the model that it was made of" in capsys.readouterr().err


def test_a_tokenizer_without_bytes_is_one_error_that_names_the_model(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(directory, tmp_path / "words")
    tokenizer = Tokenizer(models.WordLevel({"open": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words" / "tokenizer.json"))
    assert main(["chat", str(tmp_path / "words"), "x"]) == 1
    assert capsys.readouterr().err.startswith("error: words: this tokenizer cannot be mapped to bytes")


def test_a_limit_beyond_the_context_is_one_error(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(directory), "x", "--max-new-tokens", "256"]) == 1
    assert "leaves no room" in capsys.readouterr().err


@pytest.mark.parametrize("drafter", ["", "prompt-lookup"])
def test_a_drafter_changes_nothing_and_is_told_of(
    drafter: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled = ["--temperature", "1.5", "--seed", "3"]
    assert main([*words(directory, "the clinic"), *sampled]) == 0
    alone = capsys.readouterr().out
    assert main([*words(directory, "the clinic"), *sampled, "--drafter", drafter or str(directory)]) == 0
    found = capsys.readouterr()
    assert found.out == alone
    assert f"{drafter or directory.name} drafted " in found.err
    assert "are in the answer" in found.err


def test_a_long_conversation_loses_its_oldest_turns(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    typed = iter(["the clinic opens at nine " * 5] * 6)

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert main(words(directory, "--system", "be brief")) == 0
    assert len(capsys.readouterr().out.strip("\n").split("\n")) >= 6
