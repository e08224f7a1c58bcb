"""What `[serve]` names is checked with the rest: places, and adapters made for another base."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from consort.cli import main
from consort.config import RuntimeConfig
from consort.errors import ConfigError, ModelError
from consort.models.local import load_model, save_model
from consort.models.zoo import zoo_dir
from consort.preflight import examine_file, load_checked
from consort.preflight.served import files_sha256
from consort.training.adapters import OWN, base_sha256
from consort.training.peft_directory import base_sha256_of, save_adapter
from consort.training.tuned import load_tuned
from tests.tiny_models import tiny, tune_somehow
from tests.tunable_consort import write_tunable_consort

CPU = RuntimeConfig(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consort with a LoRA for its cloud's model, and models that this LoRA is not for."""
    root = tmp_path_factory.mktemp("served")
    write_tunable_consort(root)
    cloud = tiny("llama")
    tune_somehow(cloud)
    save_adapter(cloud, OWN, root / "adapter", base=str(root / "cloud-llm"))
    shutil.copytree(root / "cloud-llm", root / "moved")
    shutil.copytree(root / "cloud-llm", root / "changed")
    save_adapter(cloud, OWN, root / "adapter-of-changed", base=str(root / "changed"))
    retrained = tiny("llama")
    with torch.no_grad():
        next(iter(retrained.module.parameters())).add_(1)
    for name in ("retrained", "changed"):
        save_model(retrained, root / name)
    return root


def told(folder: Path, *overrides: str) -> list[str]:
    found = examine_file(folder / "consort.toml", [f"serve.{override}" for override in overrides])
    return [str(problem) for problem in found.problems if problem.level == "error"]


def refused(folder: Path, model: str) -> bool:
    try:
        load_tuned(str(folder / model), adapter=folder / "adapter", runtime=CPU)
    except ModelError:
        return True
    return False


@pytest.mark.parametrize("model", ["cloud-llm", "moved", "retrained", "bank-slm", "shop-slm", "proxy"])
def test_check_refuses_an_adapter_exactly_where_serving_does(model: str, folder: Path) -> None:
    """Of another size, another architecture, the same shapes with other weights; by any name of its base."""
    found = told(folder, f"cloud.model={folder / model}", f"cloud.adapter={folder / 'adapter'}")
    assert bool(found) == refused(folder, model)
    assert all("made for another base" in line and str(folder / "cloud-llm") in line for line in found)


def test_check_refuses_an_adapter_whose_base_was_changed_in_place(folder: Path) -> None:
    (line,) = told(
        folder, f"cloud.model={folder / 'changed'}", f"cloud.adapter={folder / 'adapter-of-changed'}"
    )
    assert "made for another base" in line
    (line,) = told(folder, f"cloud.model={folder / 'adapter-of-changed'}")
    assert "made for another base" in line


@pytest.mark.parametrize("model", ["cloud-llm", "moved"])
def test_an_adapter_of_its_own_base_is_known_from_files_alone(model: str, folder: Path) -> None:
    weights = sorted((folder / model).glob("*.safetensors"))
    assert files_sha256(weights) == base_sha256_of(folder / "adapter")


@pytest.mark.parametrize("name", ["cloud", "edge-llama", "edge-gpt2", "edge-neox"])
def test_the_files_of_bundled_models_have_the_hash_of_the_model(name: str) -> None:
    weights = sorted(zoo_dir(name).glob("*.safetensors"))
    assert files_sha256(weights) == base_sha256(load_model(f"zoo:{name}", runtime=CPU))


def test_the_line_of_the_adapter_is_named(folder: Path) -> None:
    file = folder / "consort.toml"
    text = file.read_text()
    own = f'[serve.cloud]\nmodel = "{folder / "shop-slm"}"\nadapter = "{folder / "adapter"}"\n'
    file.with_name("served.toml").write_text(text[: text.index("[serve]")] + own)
    (problem,) = examine_file(file.with_name("served.toml")).problems
    line = (text[: text.index("[serve]")] + own).splitlines().index(f'adapter = "{folder / "adapter"}"') + 1
    assert problem.where == f"{file.with_name('served.toml')}:{line}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cloud.model=./nowhere"], "no such directory"),
        (["cloud.model=zoo:clout"], "no such bundled model"),
        (["cloud.model=nowhere.gguf"], "nowhere.gguf: no such file"),
        (["proxy.model={}/proxy", "proxy.adapter={}/proxy"], "no adapter_config.json there"),
        (
            ["proxy.model={}/adapter", "proxy.adapter={}/adapter"],
            "this is an adapter itself, and another is named",
        ),
        (["cloud.model={}/proxy", "cloud.chat_template={}/none.jinja"], "none.jinja"),
    ],
)
def test_what_cannot_be_served_is_one_error(overrides: list[str], words: str, folder: Path) -> None:
    (line,) = told(folder, *(override.format(folder) for override in overrides))
    assert words in line


def test_an_endpoint_is_not_looked_for_here(folder: Path) -> None:
    assert told(folder, "cloud.model=gpt-far", "cloud.base_url=https://example.org/v1") == []


SERVED = """[serve]
port = 8801
[serve.cloud]
model = "zoo:cloud"
[[serve.edges]]
name = "phone"
model = "zoo:edge-llama"
"""


@pytest.mark.parametrize(
    "text", [SERVED, "[serve]\nport = 8801\n", f"seed = 1\n{SERVED}[runtime]\nthreads = 1\n"]
)
def test_a_file_that_names_no_run_misses_nothing_of_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text(text)
    found = examine_file(tmp_path / "edge.toml")
    assert (found.problems, found.serves_only) == ((), True)
    with pytest.raises(ConfigError, match="names no run"):
        load_checked(tmp_path / "edge.toml")


def test_what_is_wrong_in_such_a_file_is_told_alone(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text(SERVED.replace("8801", "-1").replace("edge-llama", "edge-lama"))
    port, edge = examine_file(tmp_path / "edge.toml").problems
    assert port.where.endswith("edge.toml:2")
    assert edge.where.endswith("edge.toml:7")


def test_every_mistake_of_what_is_served_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    wrong = ("port = 70000", 'strategy = "vot"', 'detectors = ["gliner"]', "threshold = 7", 'goal = "fast"')
    (tmp_path / "edge.toml").write_text(SERVED.replace("port = 8801", "\n".join(wrong)))
    found = {
        problem.where.rpartition(":")[2]: problem for problem in examine_file(tmp_path / "edge.toml").problems
    }
    assert set(found) == {"2", "3", "4", "5", "6"}
    assert 'did you mean "vote"?' in str(found["3"])
    assert "needs a model" in str(found["4"])
    (tmp_path / "edge.toml").write_text(
        SERVED.replace("port = 8801", 'strategy = "mix"\ndetectors = ["gline"]')
    )
    finder, strategy = examine_file(tmp_path / "edge.toml").problems
    assert 'did you mean "gliner"?' in str(finder)
    assert (strategy.where, "no tuned proxy" in strategy.what) == (f"{tmp_path / 'edge.toml'}:2", True)


@pytest.mark.parametrize("more", ['public = "data"\n', "[tune]\nrounds = 1\n"])
def test_a_file_with_anything_of_a_run_is_a_runs(more: str, tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text(f"{more}{SERVED}")
    assert {"cloud.model", "devices"} <= {
        problem.key for problem in examine_file(tmp_path / "edge.toml").problems
    }


def test_check_tells_who_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "edge.toml").write_text(SERVED)
    assert main(["check", str(tmp_path / "edge.toml")]) == 0
    told = capsys.readouterr().out
    assert "serves, and names no run" in told
    assert "edge: zoo:edge-llama" in told
    (tmp_path / "edge.toml").write_text("[serve]\nport = 8801\n")
    assert main(["check", str(tmp_path / "edge.toml")]) == 0
    assert "cloud: zoo:cloud" in capsys.readouterr().out
