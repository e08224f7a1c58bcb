"""A whole run over tiny real models: what it leaves on disk, and that interruptions change nothing of it."""

from __future__ import annotations

import json
import tomllib
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from consort.bench.assemble import RunData
from consort.bench.results import RunResult
from consort.bench.run import run_co_tuning
from consort.bench.served import SERVED, served_here
from consort.bench.spent import SPENT
from consort.cli.tune import run_data
from consort.config import Config, RuntimeConfig
from consort.config_file import load_config
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import RunError
from consort.federated.party import Device, PrivateRows
from consort.gateway.loading import served
from consort.gateway.opening import open_service
from consort.gateway.serve import running
from consort.models.local import load_model
from consort.preflight import load_checked
from consort.training.adapters import DOMAIN, SHARED, lora_parameters, read_adapter, write_parameters
from consort.training.answers import answer
from consort.training.export import Form, export_model
from consort.training.peft_directory import load_adapter
from consort.training.proxy import load_proxy, speak_for_device
from consort.training.tuned import load_tuned
from tests.tunable_consort import COUNTS, write_tunable_consort

CPU = RuntimeConfig(device="cpu")


@dataclass(frozen=True)
class Finished:
    """A run that was not interrupted."""

    config: Config
    data: RunData
    run_dir: Path
    result: RunResult
    told: list[str]
    steps: list[tuple[int, int]]  # finished, planned


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("consort")
    found = load_checked(write_tunable_consort(folder))
    config, data, run_dir = found.config, run_data(found), folder / "run"
    told, steps = list[str](), list[tuple[int, int]]()

    def on_step(finished: int, planned: int) -> None:
        steps.append((finished, planned))

    result = run_co_tuning(config, data, run_dir, resume=False, report=told.append, on_step=on_step)
    return Finished(config, data, run_dir, result, told, steps)


def results_of_all_steps(run_dir: Path) -> dict[str, bytes]:
    kinds = ("*.bin", "journal.jsonl", "metrics.jsonl", "*.safetensors")
    return {
        str(file.relative_to(run_dir)): file.read_bytes() for kind in kinds for file in run_dir.rglob(kind)
    }


def without(result: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in keys}


def test_the_run_directory_holds_what_a_person_looks_for(finished: Finished) -> None:
    run_dir = finished.run_dir
    assert tomllib.loads((run_dir / "config.toml").read_text())["tune"]["mutual_steps"] == 2
    assert json.loads((run_dir / "environment.json").read_text())["torch"]
    assert "# consort" in (run_dir / "README.md").read_text()
    page = (run_dir / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    for curve in (
        "Distilling the proxy",
        "Domain-specific",
        "Mutual learning on",
        "in the cloud",
        "alone, own",
    ):
        assert curve in page
    assert json.loads((run_dir / "result.json").read_text()) == finished.result.to_json()


def test_the_metrics_have_every_phase_of_every_party_once(finished: Finished) -> None:
    rows = [json.loads(line) for line in (finished.run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = [(row["phase"], row["round"], row["party"], row["step"]) for row in rows]
    assert len(set(logged)) == len(logged)
    assert {(phase, party) for phase, _, party, _ in logged} == {
        ("distil", "proxy"),
        *((phase, device) for phase in ("alone", "domain", "mutual") for device in ("bank", "shop")),
        ("cloud", "cloud"),
        ("drafter", "cloud"),
    }
    assert {number for phase, number, _, _ in logged if phase == "mutual"} == {0, 1}


def test_the_json_has_the_promised_keys(finished: Finished) -> None:
    found = finished.result.to_json()
    assert found.keys() == {"devices", "cloud", "seconds", "run_dir"}
    assert [device["name"] for device in found["devices"]] == ["bank", "shop"]
    for device in found["devices"]:
        for stage in ("zero_shot", "alone", "co_tuned"):
            assert {"rouge_l", "em"} <= device[stage].keys()
        assert device["uplink_bytes"] > 0
        assert device["downlink_bytes"] > 0
    assert {"rouge_l", "em"} <= found["cloud"]["before"].keys() & found["cloud"]["after"].keys()
    assert found["run_dir"] == str(finished.run_dir)


def test_every_model_answers_every_shown_prompt_before_and_after(finished: Finished) -> None:
    config, result = finished.config, finished.result
    assert [example.device for example in result.examples] == ["bank", "shop"]
    page = (finished.run_dir / "report.html").read_text()
    card = (finished.run_dir / "README.md").read_text()
    for example in result.examples:
        assert [said.model for said in example.answers] == ["bank", "shop", "cloud"]
        assert example.prompt.strip() in page
        assert example.prompt.strip() not in card
        rows = finished.data.devices[example.device].test
        (sample,) = (row for row in rows if row.prompt == example.prompt)
        for name, settings in (("bank", config.devices[0].slm), ("shop", config.devices[1].slm)):
            said = next(said for said in example.answers if said.model == name)
            for model, found in (
                (settings.model, said.before),
                (finished.run_dir / "adapters" / name, said.after),
            ):
                loaded = load_tuned(str(model), adapter=None, runtime=CPU)
                assert answer(loaded, [sample], max_new_tokens=4) == [found]


def test_measured_are_the_test_rows_and_no_others(finished: Finished) -> None:
    assert [device.co_tuned.em.n for device in finished.result.devices] == [COUNTS["test"]] * 2
    assert finished.result.cloud.after.em.n == 2 * COUNTS["test"]


def test_the_tuned_models_load_again_and_answer_otherwise_than_before(finished: Finished) -> None:
    ids = torch.arange(4, 12)[None]
    adapters = finished.run_dir / "adapters"
    before, after = (load_model(path, runtime=CPU) for path in (bank_model(finished), adapters / "bank"))
    assert not torch.equal(before.hidden(ids), after.hidden(ids))
    for owner, base in (
        ("shop", finished.config.devices[1].slm.model),
        ("cloud", finished.config.cloud.model),
    ):
        model = load_model(base, runtime=CPU)
        untouched = model.hidden(ids)
        load_adapter(model, adapters / owner)
        assert not torch.equal(untouched, model.hidden(ids))
    for learned in ("proxy", "drafter"):
        load_adapter(load_model(finished.run_dir / "proxy", runtime=CPU), adapters / learned)


def test_the_proxy_that_was_taught_to_draft_is_served_where_there_is_one(finished: Finished) -> None:
    config = finished.config
    untaught = replace(config, tune=replace(config.tune, drafter_steps=0))
    assert served_here(config).serve.proxy.adapter == "./adapters/drafter"
    assert served_here(untaught).serve.proxy.adapter == "./adapters/proxy"


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_what_is_exported_of_a_model_tuned_in_full_names_what_it_was_tuned_from(
    form: Form, finished: Finished, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="the gguf package writes GGUF: pip install gguf")
    folder = str(finished.run_dir / "adapters" / "bank")
    model = load_tuned(folder, adapter=None, runtime=CPU)
    export_model(model, tmp_path / "out", form=form, precision="float16", base=folder)
    assert f"base_model: {bank_model(finished)}\n" in (tmp_path / "out" / "README.md").read_text()


def test_the_served_proxy_drafts_and_steers(finished: Finished, tmp_path: Path) -> None:
    config = load_config(finished.run_dir / SERVED, [f"serve.state={tmp_path}"])
    asked = {"messages": [{"role": "user", "content": "when?"}], "max_tokens": 8, "seed": 1, "temperature": 1}
    with running(open_service(config)) as url:

        def told(model: str) -> Any:
            body = json.dumps(asked | {"model": model, "consort": {"receipt": True}}).encode()
            request = urllib.request.Request(f"{url}/chat/completions", body)
            with urllib.request.urlopen(request) as response:
                return json.loads(response.read())

        cloud, drafted = told("consort/cloud"), told("consort/speculate")
        assert drafted["choices"][0]["message"] == cloud["choices"][0]["message"]
        assert drafted["consort"]["receipt"]["notes"][0]["drafter"] == "proxy"
        mixed = told("consort/mix")["consort"]["receipt"]["notes"][0]
        guides = {value.removeprefix("weight of ") for value in mixed if value.startswith("weight of ")}
        assert guides == {"proxy", config.serve.edges[0].name}
        assert mixed["weight"] == pytest.approx(config.serve.mix_weight)


def test_a_device_s_proxy_is_kept_as_it_was_there(finished: Finished) -> None:
    config, run_dir = finished.config, finished.run_dir
    ids = torch.arange(4, 12)[None]
    shared_alone = load_model(run_dir / "proxy", runtime=CPU)
    load_adapter(shared_alone, run_dir / "adapters" / "proxy", name=SHARED)
    shared = read_adapter(shared_alone, SHARED)
    for number, device in enumerate(config.devices):
        kept = load_model(run_dir / "proxy", runtime=CPU)
        load_adapter(kept, run_dir / "proxies" / device.name)
        there = load_proxy(run_dir / "proxy", config.proxy, CPU, shared=shared, seed=config.seed)
        state = Device(
            device,
            config,
            PrivateRows(finished.data.devices[device.name].train),
            proxy_dir=run_dir / "proxy",
            folder=run_dir / "devices" / device.name,
            seed=100 * config.seed + number,
        ).state()
        assert state is not None
        write_parameters(lora_parameters(there, DOMAIN), state.domain, where=device.name)
        speak_for_device(there, config.proxy)
        assert torch.allclose(kept.hidden(ids), there.hidden(ids), atol=1e-5)
        assert not torch.allclose(kept.hidden(ids), shared_alone.hidden(ids), atol=1e-5)


def test_the_run_says_how_to_serve_what_it_tuned(finished: Finished) -> None:
    edges, cloud = served(load_config(finished.run_dir / SERVED))
    assert [each.name for each in (*edges, cloud)] == ["bank", "shop", "cloud"]
    for each in (*edges, cloud):
        assert Path(each.model).samefile(finished.run_dir / "adapters" / each.name)
        load_tuned(each.model, adapter=None, runtime=CPU, chat_template=each.chat_template)
    remote = ServeConfig(cloud=ServedModel(name="far", model="m", base_url="http://x/v1"))
    own = replace(finished.config, serve=remote)
    assert served_here(own) == own


def bank_model(finished: Finished) -> str:
    return finished.config.devices[0].slm.model


def test_every_step_is_told_and_how_many_there_will_be(finished: Finished) -> None:
    planned = len(finished.steps)
    assert finished.steps == [(number, planned) for number in range(1, planned + 1)]


def test_resuming_a_finished_run_repeats_no_step(finished: Finished) -> None:
    before, told = results_of_all_steps(finished.run_dir), list[str]()
    again = run_co_tuning(finished.config, finished.data, finished.run_dir, resume=True, report=told.append)
    assert results_of_all_steps(finished.run_dir) == before
    assert without(again.to_json(), "seconds") == without(finished.result.to_json(), "seconds")
    assert again.seconds > finished.result.seconds  # the time already spent counts
    assert not [line for line in told if line.startswith(("distilling", "round 1: bank"))]


def test_a_run_interrupted_again_and_again_ends_in_the_same_bytes(finished: Finished, tmp_path: Path) -> None:
    def run(report: Callable[[str], None]) -> RunResult:
        return run_co_tuning(finished.config, finished.data, tmp_path / "run", resume=True, report=report)

    for last_words in (
        "bank has tuned alone",
        "round 1: bank is done",
        "round 2: cloud",
        "measuring every model after",
    ):

        def stop(line: str, at: str = last_words) -> None:
            if line.startswith(at):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(stop)
    spent = float((tmp_path / "run" / "journal" / SPENT).read_text())
    result = run(lambda line: None)
    assert result.seconds > spent
    assert results_of_all_steps(tmp_path / "run") == results_of_all_steps(finished.run_dir)
    assert without(result.to_json(), "seconds", "run_dir") == without(
        finished.result.to_json(), "seconds", "run_dir"
    )


def test_two_processes_end_in_the_same_models_as_one(finished: Finished, tmp_path: Path) -> None:
    two = replace(finished.config, runtime=replace(finished.config.runtime, workers=2))
    told = list[str]()
    result = run_co_tuning(two, finished.data, tmp_path / "run", resume=False, report=told.append)
    steps, others = results_of_all_steps(tmp_path / "run"), results_of_all_steps(finished.run_dir)
    in_order = {name for name in steps if name.endswith(".jsonl")}  # of finishing, so not the same each time
    assert {name: steps[name] for name in steps.keys() - in_order} == {
        name: others[name] for name in others.keys() - in_order
    }
    assert sorted((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == sorted(
        (finished.run_dir / "metrics.jsonl").read_text().splitlines()
    )
    assert result.devices == finished.result.devices
    again = run_co_tuning(finished.config, finished.data, tmp_path / "run", resume=True, report=told.append)
    assert again.cloud == result.cloud


def test_finished_steps_are_not_mixed_with_another_configuration_nor_begun_anew(finished: Finished) -> None:
    other = replace(finished.config, seed=1)
    with pytest.raises(RunError, match="belong to configuration"):
        run_co_tuning(other, finished.data, finished.run_dir, resume=True, report=finished.told.append)
    with pytest.raises(RunError, match="--resume"):
        run_co_tuning(
            finished.config, finished.data, finished.run_dir, resume=False, report=finished.told.append
        )


def changed_rows(finished: Finished, folder: Path) -> tuple[Config, RunData]:
    bank = finished.data.devices["bank"]
    first, *others = bank.train
    bank = replace(bank, train=[replace(first, answer=f"not {first.answer}"), *others])
    return finished.config, replace(finished.data, devices={**finished.data.devices, "bank": bank})


def changed_weights(finished: Finished, folder: Path) -> tuple[Config, RunData]:
    file = Path(bank_model(finished)) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return finished.config, finished.data


@pytest.mark.parametrize(
    ("change", "named"), [(changed_rows, "bank's training rows"), (changed_weights, "bank's model")]
)
def test_finished_steps_are_not_continued_on_other_rows_or_weights_and_the_changed_ones_are_named(
    finished: Finished, tmp_path: Path, change: Callable[[Finished, Path], tuple[Config, RunData]], named: str
) -> None:
    model = Path(bank_model(finished)) / "model.safetensors"
    original, before = model.read_bytes(), results_of_all_steps(finished.run_dir)
    try:
        config, data = change(finished, tmp_path)
        with pytest.raises(RunError, match="other inputs") as caught:
            run_co_tuning(config, data, finished.run_dir, resume=True, report=finished.told.append)
    finally:
        model.write_bytes(original)
    assert named in str(caught.value)
    assert str(caught.value).count(" (") == 1  # and nothing else
    assert results_of_all_steps(finished.run_dir) == before


def test_a_run_directory_that_cannot_be_made_is_an_error_of_ours(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the run directory"):
        run_co_tuning(finished.config, finished.data, tmp_path / "file" / "run", resume=False, report=print)
