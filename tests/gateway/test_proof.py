"""A receipt proves an answer of speculation, shows where another differs, and says what proves nothing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consort.cli import main
from consort.config import RuntimeConfig
from consort.config_serve import ServedModel
from consort.gateway.loading import load_lm
from consort.models.local import load_model
from consort.training.export import write_gguf
from tests.gateway.live import live

ASKED = {
    "model": "consort/speculate",
    "messages": [{"role": "user", "content": "When does the clinic open?"}],
    "max_tokens": 16,
    "temperature": 0.8,
    "top_p": 0.9,
    "seed": 7,
    "stop": ["never said"],
    "consort": {"receipt": True},
}
DECIDES = {"model": "consort/cloud", "max_tokens": 5, "temperature": 0, "top_p": 1, "seed": 8}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return answered(tmp_path_factory.mktemp("proof"), ServedModel("cloud", "zoo:cloud"))


def answered(folder: Path, model: ServedModel) -> tuple[Path, Path]:
    """The files of a request and of this cloud's answer to it."""
    cloud = load_lm(replace(model, answers=2, context_tokens=128), RuntimeConfig(device="cpu"))

    async def work() -> Any:
        async with live(folder, cloud=cloud) as here:
            status, body = await here.post(**ASKED)
            assert status == 200, body
            return body

    request, answer = folder / "request.json", folder / "answer.json"
    request.write_text(json.dumps(ASKED))
    answer.write_text(json.dumps(asyncio.run(work())))
    return request, answer


def test_an_answer_is_proved(files, capsys):
    assert main(["verify-receipt", *map(str, files), "--model", "zoo:cloud"]) == 0
    assert capsys.readouterr().out.startswith("identical: cloud alone writes the same, with seed ")


def test_another_answer_and_another_model_are_told_apart(files, tmp_path, capsys):
    request, answer = files
    said = json.loads(answer.read_text())
    said["choices"][0]["message"]["content"] += "!"
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(said))
    assert main(["verify-receipt", str(request), str(forged), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["differs_at"] == told["characters"] - 1
    assert main(["verify-receipt", str(request), str(answer), "--model", "zoo:edge-llama"]) == 1
    assert "different from character" in capsys.readouterr().err


@pytest.mark.parametrize("name", DECIDES)
def test_a_receipt_proves_nothing_for_a_request_that_says_otherwise(files, tmp_path, capsys, name):
    """And one that leaves it to the gateway is told it by the receipt."""
    _, answer = files
    request = tmp_path / "request.json"
    request.write_text(json.dumps(ASKED | {name: DECIDES[name]}))
    assert main(["verify-receipt", str(request), str(answer)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{name} is {DECIDES[name]}" in told.err.replace(".0 in", " in")
    assert main(["verify-receipt", str(request), str(answer), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["same"]
    assert len(found["conflicts"]) == 1
    request.write_text(json.dumps({key: value for key, value in ASKED.items() if key != name}))
    assert main(["verify-receipt", str(request), str(answer)]) == 0


def test_an_answer_that_goes_on_where_the_request_says_stop_is_not_the_models(files, tmp_path, capsys):
    _, answer = files
    text = json.loads(answer.read_text())["choices"][0]["message"]["content"]
    request = tmp_path / "request.json"
    request.write_text(json.dumps(ASKED | {"stop": text[4:8]}))
    assert main(["verify-receipt", str(request), str(answer)]) == 1
    assert "different from character" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: body["consort"]["receipt"]["notes"][0].pop("seed"), "this receipt is damaged"),
        (lambda body: body.pop("consort"), "no receipt"),
        (lambda body: body["consort"]["receipt"].update(notes=[]), "by speculate"),
        (lambda body: body["consort"]["receipt"]["notes"].append({"strategy": "takeover"}), "takeover"),
    ],
)
def test_what_proves_nothing_is_told(files, tmp_path, capsys, change, said):
    request, answer = files
    body = json.loads(answer.read_text())
    change(body)
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(body))
    assert main(["verify-receipt", str(request), str(changed)]) == 1
    assert said in capsys.readouterr().err
    changed.write_text("no")
    assert main(["verify-receipt", str(request), str(changed)]) == 1
    assert "no JSON" in capsys.readouterr().err


def test_what_a_chat_template_of_its_own_was_served_with_is_proved_with_it(tmp_path, capsys):
    template = tmp_path / "own.jinja"
    template.write_text("{% for turn in messages %}{{ turn.content }} It{% endfor %}")
    files = answered(tmp_path, ServedModel("cloud", "zoo:cloud", chat_template=str(template)))
    asked = ["verify-receipt", *map(str, files), "--model", "zoo:cloud"]
    assert main([*asked, "--chat-template", str(template)]) == 0
    assert main(asked) == 1
    assert "different from character" in capsys.readouterr().err


def test_an_answer_of_a_gguf_file_is_proved_with_that_file(tmp_path, capsys):
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed (pip install llama-cpp-python)")
    file = tmp_path / "large.gguf"
    write_gguf(load_model("zoo:cloud", runtime=RuntimeConfig(device="cpu")), file, precision="float32")
    files = answered(tmp_path, ServedModel("cloud", str(file)))
    assert main(["verify-receipt", *map(str, files), "--model", str(file)]) == 0
    assert capsys.readouterr().out.startswith("identical: large alone writes the same")
    assert main(["verify-receipt", *map(str, files), "--model", str(file), "--adapter", str(tmp_path)]) == 1
    assert "an adapter cannot be put on a GGUF file" in capsys.readouterr().err
