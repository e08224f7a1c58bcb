"""A whole co-tuning run: distil, measure, tune alone, co-tune, measure, write the run directory.

Every step is in the journal, so `--resume` repeats none of them. Training itself is in `training` and
`federated`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from consort.bench.assemble import Answers, RunData, run_result
from consort.bench.card import environment, model_card
from consort.bench.report import write_report
from consort.bench.results import RunResult
from consort.config import Config, DeviceConfig
from consort.config_file import dump_config
from consort.errors import RunError
from consort.federated.baselines import Site, alone
from consort.federated.cloud import Cloud, CloudState
from consort.federated.co_plms import Outcome, co_tune
from consort.federated.journal import Entry, Journal
from consort.federated.party import Device, PrivateRows
from consort.models.local import LocalModel, load_model, save_model
from consort.training.adapters import OWN, SHARED, trainable_part, use_adapters, write_parameters
from consort.training.answers import answer
from consort.training.data import Sample
from consort.training.peft_directory import save_adapter
from consort.training.proxy import distil_proxy, load_proxy
from consort.types import FloatArray

Weights = Mapping[str, FloatArray]


class Run:
    """One run directory and the steps that fill it."""

    def __init__(
        self, config: Config, data: RunData, run_dir: Path, journal: Journal, report: Callable[[str], None]
    ) -> None:
        self.config, self.data, self.run_dir, self.journal, self.report = (
            config,
            data,
            run_dir,
            journal,
            report,
        )
        self.started = time.monotonic()

    def execute(self) -> RunResult:
        """All steps in order; the result is also on disk when this returns."""
        proxy_dir = self._proxy_dir()
        self.report("measuring every model before tuning")
        before = {device.name: self._slm_answers(device, None, "before") for device in self.config.devices}
        cloud_before = self._cloud_answers(None, "before")
        apart = {}
        for number, device in enumerate(self.config.devices):
            self.report(f"{device.name} tunes alone")
            apart[device.name] = self._slm_answers(device, self._alone(device, number), "alone")
        outcome, weights = self._co_tune(proxy_dir)
        self.report("measuring every model after co-tuning")
        after = {
            device.name: self._slm_answers(device, weights[device.name], "after")
            for device in self.config.devices
        }
        answers = Answers(before, apart, after, cloud_before, self._cloud_answers(outcome.cloud, "after"))
        seconds = time.monotonic() - self.started
        result = run_result(
            self.config, self.data, answers, outcome.traffic, seconds=seconds, run_dir=self.run_dir
        )
        self._keep(outcome, weights, proxy_dir, result)
        return result

    def _proxy_dir(self) -> Path:
        """The proxy's directory: distilled here, or as configured."""
        proxy, folder = self.config.proxy, self.run_dir / "proxy"
        if proxy.model and proxy.distil_steps == 0:
            return Path(proxy.model)

        def work() -> Entry:
            self.report(f"distilling the proxy from the cloud model: {proxy.distil_steps} steps")
            cloud = load_model(self.config.cloud.model, runtime=self.config.runtime, name="cloud")
            distilled, log = distil_proxy(
                cloud, proxy, self.data.public_train, self.config.tune, seed=self.config.seed
            )
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            save_model(distilled, unfinished)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unfinished, folder)
            return Entry(
                b"", {}, tuple({"phase": "distil", "round": 0, "party": "proxy", **row} for row in log)
            )

        self.journal.once("proxy", work)
        return folder

    def _alone(self, device: DeviceConfig, number: int) -> Weights:
        site = Site(device, self._private(device), seed=self._seed(number))

        def work() -> Entry:
            weights, log = alone(self.config, site)
            rows = tuple({"phase": "alone", "round": 0, "party": device.name, **row} for row in log)
            return Entry(save_tensors(dict(weights)), {}, rows)

        weights: Weights = load_tensors(self.journal.once(f"tuned-alone/{device.name}", work).payload)
        return weights

    def _co_tune(self, proxy_dir: Path) -> tuple[Outcome, dict[str, Weights]]:
        config = self.config
        with ExitStack() as journals:
            devices = [
                Device(
                    device,
                    config,
                    self._private(device),
                    proxy_dir=proxy_dir,
                    journal=journals.enter_context(self._device_journal(device)),
                    seed=self._seed(number),
                )
                for number, device in enumerate(config.devices)
            ]
            cloud = Cloud(config, self.data.public_train, proxy_dir=proxy_dir)
            outcome = co_tune(
                cloud, devices, config.tune, journal=self.journal, seed=config.seed, report=self.report
            )
            states = {device.name: device.state() for device in devices}
        return outcome, {name: state.slm if state else {} for name, state in states.items()}

    def _device_journal(self, device: DeviceConfig) -> Journal:
        folder = self.run_dir / "devices" / device.name
        return Journal.open(folder, fingerprint=fingerprint(self.config), resume=True)

    def _slm_answers(self, device: DeviceConfig, weights: Weights | None, when: str) -> list[str]:
        rows = self.data.devices[device.name].test
        return self._answers(f"{when}/{device.name}", lambda: self._slm(device, weights), rows)

    def _cloud_answers(self, state: CloudState | None, when: str) -> dict[str, list[str]]:
        """On every device's test rows, and on public rows that nobody trained on."""
        sets = {name: rows.test for name, rows in self.data.devices.items()} | {
            "public": self.data.public_test
        }
        llm: list[LocalModel] = []  # loaded once, if any of the answers is missing

        def loaded() -> LocalModel:
            if not llm:
                llm.append(self._llm(state))
            return llm[0]

        return {
            name: self._answers(f"{when}/cloud/{name}", loaded, rows) for name, rows in sets.items() if rows
        }

    def _answers(self, key: str, model: Callable[[], LocalModel], rows: Sequence[Sample]) -> list[str]:
        def work() -> Entry:
            return Entry(
                json.dumps(answer(model(), rows, max_new_tokens=self.config.eval.max_new_tokens)).encode()
            )

        texts: list[str] = json.loads(self.journal.once(key, work).payload)
        return texts

    def _slm(self, device: DeviceConfig, weights: Weights | None) -> LocalModel:
        slm = load_model(
            device.slm.model,
            runtime=self.config.runtime,
            chat_template=device.slm.chat_template,
            name=device.name,
        )
        if weights:
            write_parameters(trainable_part(slm, device.slm, seed=0), weights, where=device.name)
        return slm

    def _llm(self, state: CloudState | None) -> LocalModel:
        cloud = self.config.cloud
        llm = load_model(
            cloud.model, runtime=self.config.runtime, chat_template=cloud.chat_template, name="cloud"
        )
        if state is not None and state.llm:
            write_parameters(trainable_part(llm, cloud, seed=0), state.llm, where="cloud")
        return llm

    def _private(self, device: DeviceConfig) -> PrivateRows:
        rows = self.data.devices[device.name]
        return PrivateRows(rows.train, rows.unlabelled)

    def _seed(self, number: int) -> int:
        return 100 * self.config.seed + number

    def _keep(
        self, outcome: Outcome, weights: Mapping[str, Weights], proxy_dir: Path, result: RunResult
    ) -> None:
        """Adapters, card and page: what a person takes from a run."""
        folder = self.run_dir / "adapters"
        proxy = load_proxy(
            proxy_dir,
            self.config.proxy,
            self.config.runtime,
            shared=Cloud(self.config, self.data.public_train, proxy_dir=proxy_dir).decode(
                outcome.cloud.broadcast
            ),
            seed=self.config.seed,
        )
        use_adapters(proxy, [SHARED])
        save_adapter(proxy, SHARED, folder / "proxy", base=str(proxy_dir))
        models = [(self._llm(outcome.cloud), self.config.cloud)]
        models += [(self._slm(device, weights[device.name]), device.slm) for device in self.config.devices]
        for model, config in models:
            if config.trainable == "lora" and OWN in getattr(model.module, "peft_config", {}):
                save_adapter(model, OWN, folder / model.name, base=config.model)
            else:
                save_model(model, folder / model.name)
        _keep_text(self.run_dir / "README.md", model_card(result, self.config))
        _keep_text(self.run_dir / "result.json", json.dumps(result.to_json()) + "\n")
        write_report(self.run_dir, result)


def run_co_tuning(
    config: Config, data: RunData, run_dir: Path, *, resume: bool, report: Callable[[str], None]
) -> RunResult:
    """Fill a new run directory, or finish one with `resume`. RunError if it cannot be written."""
    with Journal.open(run_dir, fingerprint=fingerprint(config), resume=resume) as journal:
        try:
            _keep_text(run_dir / "config.toml", dump_config(config))
            _keep_text(run_dir / "environment.json", json.dumps(environment(), indent=2) + "\n")
            return Run(config, data, run_dir, journal, report).execute()
        except (OSError, SafetensorError) as error:  # safetensors has its own word for a full disk
            raise RunError(
                f"cannot be written: {getattr(error, 'strerror', None) or error}",
                where=str(getattr(error, "filename", None) or run_dir),
                hint="finished steps are kept: free some space, then run again with --resume",
            ) from error


def fingerprint(config: Config) -> str:
    """Hash of everything that decides a run's numbers."""
    return hashlib.sha256(dump_config(config).encode()).hexdigest()[:16]


def _keep_text(file: Path, text: str) -> None:
    """Replace the file whole or not at all: on a full disk the old one is not lost."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)
