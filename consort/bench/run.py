"""A whole co-tuning run: distil, measure, tune alone, co-tune, measure, write the run directory.

Every step is in the journal, so `--resume` repeats none of them. Training itself is in `training` and
`federated`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from consort.bench.assemble import PUBLIC, Answers, RunData, run_result
from consort.bench.card import environment, model_card
from consort.bench.inputs import input_hashes
from consort.bench.kept import keep_models, keep_proxies, keep_text, load_party
from consort.bench.report import write_report
from consort.bench.results import RunResult, ShownPrompt
from consort.bench.served import CLOUD, PROXY, SERVED, own_proxy, served_here
from consort.bench.shown import ask, choose, shown
from consort.bench.spent import SPENT, Spent
from consort.config import Config, DeviceConfig, ModelConfig
from consort.config_file import dump_config, fingerprint
from consort.errors import RunError
from consort.federated.baselines import Site, alone
from consort.federated.cloud import Cloud
from consort.federated.co_plms import Outcome, co_tune, num_drawn
from consort.federated.journal import Compute, Entry, Journal, Step
from consort.federated.party import Device, PrivateRows, PrivateState
from consort.federated.workers import side_by_side
from consort.models.local import save_model
from consort.models.zoo import located
from consort.training.answers import answer
from consort.training.data import Sample
from consort.training.proxy import distil_proxy
from consort.types import FloatArray

Weights = Mapping[str, FloatArray]
OnStep = Callable[[int, int], None]  # told how many steps are finished, and of how many

APART, SHOWN = "tuned-alone", "shown"  # kinds of steps


class Run:
    """One run directory and the steps that fill it."""

    def __init__(
        self,
        config: Config,
        data: RunData,
        run_dir: Path,
        journal: Journal,
        compute: Compute,
        report: Callable[[str], None],
        spent: Spent,
    ) -> None:
        self.config, self.data, self.run_dir = config, data, run_dir
        self.journal, self.compute, self.spent = journal, compute, spent
        self._say = report

    def report(self, line: str) -> None:
        """Tell the person; between two lines is what a kill makes the time forget."""
        self.spent.keep()
        self._say(line)

    def execute(self) -> RunResult:
        """All steps in order; the result is also on disk when this returns."""
        proxy_dir = self._proxy_dir()
        self.report("every device tunes alone, every model is measured as it is")
        first = self._done(self._alone() | self._asking("before", {}, {}))
        apart = {name: load_tensors(first[f"{APART}/{name}"].payload) for name in self.data.devices}
        outcome, states = self._co_tune(proxy_dir)
        weights = {name: state.slm if state else {} for name, state in states.items()}
        self.report("measuring every model after co-tuning")
        last = self._done(
            self._asking("after", weights, outcome.cloud.llm) | self._asking("alone", apart, None)
        )
        before, cloud_before = self._told(first, "before")
        alone, _ = self._told(last, "alone")
        after, cloud_after = self._told(last, "after")
        answers = Answers(before, alone, after, cloud_before, cloud_after)
        result = run_result(
            self.config,
            self.data,
            answers,
            outcome.traffic,
            self._shown(answers, weights),
            seconds=self.spent.seconds,
            run_dir=self.run_dir,
        )
        self._keep(result, outcome, states, proxy_dir)
        return result

    def _proxy_dir(self) -> Path:
        """The proxy's directory: distilled here, or as configured."""
        proxy, folder = self.config.proxy, self.run_dir / PROXY
        if not own_proxy(self.config):
            return Path(located(proxy.model))

        def work() -> Entry:
            self.report(f"distilling the proxy from the cloud model: {proxy.distil_steps} steps")
            cloud = load_party(self.config, CLOUD, self.config.cloud, {})
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

    def _done(self, steps: Mapping[str, Step]) -> dict[str, Entry]:
        """Steps of which none needs another, side by side: the more at once, the less a worker waits."""

        def on_new(key: str, entry: Entry) -> None:
            kind, _, name = key.partition("/")
            if kind == APART:
                self.report(f"{name} has tuned alone")

        return self.journal.once_each(steps, self.compute, on_new=on_new)

    def _alone(self) -> dict[str, Step]:
        """Every SLM tuned on its own rows."""
        return {
            f"{APART}/{device.name}": partial(
                _tuned_alone,
                self.config,
                Site(device, self._private(device), self._seed(number)),
            )
            for number, device in enumerate(self.config.devices)
        }

    def _co_tune(self, proxy_dir: Path) -> tuple[Outcome, dict[str, PrivateState | None]]:
        config = self.config
        devices = [
            Device(
                device,
                config,
                self._private(device),
                proxy_dir=proxy_dir,
                folder=self.run_dir / "devices" / device.name,
                seed=self._seed(number),
            )
            for number, device in enumerate(config.devices)
        ]
        outcome = co_tune(
            Cloud(config, self.data.public_train, proxy_dir=proxy_dir),
            devices,
            config.tune,
            journal=self.journal,
            seed=config.seed,
            compute=self.compute,
            report=self.report,
        )
        return outcome, {device.name: device.state() for device in devices}

    def _asking(self, when: str, slms: Mapping[str, Weights], llm: Weights | None) -> dict[str, Step]:
        """Every device's SLM on its own test rows; and first, as it takes longest, the LLM, unless None, on
        every device's and the public ones."""
        config, rows = self.config, self.data.devices
        asked = {name: each.test for name, each in rows.items()} | {PUBLIC: self.data.public_test}
        steps: dict[str, Step] = {}
        if llm is not None:
            sets = {name: samples for name, samples in asked.items() if samples}
            steps[f"{when}/{CLOUD}"] = partial(_answered, config, CLOUD, config.cloud, llm, sets)
        for device in config.devices:
            name, weights = device.name, slms.get(device.name, {})
            steps[f"{when}/{name}"] = partial(
                _answered, config, name, device.slm, weights, {name: asked[name]}
            )
        return steps

    def _told(
        self, entries: Mapping[str, Entry], when: str
    ) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The devices' own answers by device, and the LLM's by set."""

        def answers(party: str) -> dict[str, list[str]]:
            entry = entries.get(f"{when}/{party}")
            return json.loads(entry.payload) if entry else {}

        return {name: answers(name)[name] for name in self.data.devices}, answers(CLOUD)

    def _shown(self, answers: Answers, slms: Mapping[str, Weights]) -> list[ShownPrompt]:
        """Some prompts with the answers of every model; the LLM was asked all of them."""
        chosen = choose(self.data, answers)
        prompts = [self.data.devices[each.device].test[each.row] for each in chosen]
        steps = {
            f"{SHOWN}/{device.name}": partial(
                ask, self.config, device.name, device.slm, slms[device.name], prompts
            )
            for device in self.config.devices
        }
        told = {key.partition("/")[2]: json.loads(entry.payload) for key, entry in self._done(steps).items()}
        return shown(self.data, chosen, answers, told)

    def _private(self, device: DeviceConfig) -> PrivateRows:
        rows = self.data.devices[device.name]
        return PrivateRows(rows.train, rows.unlabelled)

    def _seed(self, number: int) -> int:
        return 100 * self.config.seed + number

    def _keep(
        self,
        result: RunResult,
        outcome: Outcome,
        states: Mapping[str, PrivateState | None],
        proxy_dir: Path,
    ) -> None:
        """Models, how to serve them, card and page: what a person takes from a run."""
        config, run_dir = self.config, self.run_dir
        cloud = Cloud(config, self.data.public_train, proxy_dir=proxy_dir)
        keep_models(config, run_dir, llm=outcome.cloud.llm, states=states)
        shared, drafter = cloud.decode(outcome.cloud.broadcast), cloud.decode(outcome.drafter)
        keep_proxies(config, run_dir, proxy_dir, shared=shared, drafter=drafter, states=states)
        keep_text(run_dir / SERVED, dump_config(served_here(config)))
        keep_text(run_dir / "README.md", model_card(result, config))
        keep_text(run_dir / "result.json", json.dumps(result.to_json()) + "\n")
        write_report(run_dir, result)


def planned_steps(config: Config) -> int:
    """How many steps the journal of a whole run holds."""
    devices = len(config.devices)
    measured = (devices + 1) + devices + (devices + 1) + devices  # before, alone, after, and what is shown
    rounds = config.tune.rounds * (num_drawn(devices, config.tune.participation) + 1)
    return own_proxy(config) + devices + 1 + rounds + (config.tune.drafter_steps > 0) + measured


def run_co_tuning(
    config: Config,
    data: RunData,
    run_dir: Path,
    *,
    resume: bool,
    report: Callable[[str], None],
    on_step: OnStep = lambda finished, planned: None,
) -> RunResult:
    """Fill a new run directory, or finish one with `resume`. RunError if it cannot be written."""
    with (
        Journal.open(
            run_dir, fingerprint=fingerprint(config), inputs=input_hashes(config, data), resume=resume
        ) as journal,
        side_by_side(config.runtime.workers) as compute,
    ):
        planned = planned_steps(config)
        journal.on_record = lambda: on_step(journal.finished, planned)
        spent = Spent(run_dir / "journal" / SPENT, resume=resume)
        try:
            keep_text(run_dir / "config.toml", dump_config(config))
            keep_text(run_dir / "environment.json", json.dumps(environment(), indent=2) + "\n")
            return Run(config, data, run_dir, journal, compute, report, spent).execute()
        except (OSError, SafetensorError) as error:  # safetensors has its own word for a full disk
            raise RunError(
                f"cannot be written: {getattr(error, 'strerror', None) or error}",
                where=str(getattr(error, "filename", None) or run_dir),
                hint="finished steps are kept: free some space, then run again with --resume",
            ) from error
        finally:
            spent.keep()


def _tuned_alone(config: Config, site: Site) -> Entry:
    weights, log = alone(config, site)
    rows = tuple({"phase": "alone", "round": 0, "party": site.device.name, **row} for row in log)
    return Entry(save_tensors(dict(weights)), {}, rows)


def _answered(
    config: Config, name: str, settings: ModelConfig, weights: Weights, sets: Mapping[str, Sequence[Sample]]
) -> Entry:
    model = load_party(config, name, settings, weights)
    tokens = config.eval.max_new_tokens
    texts = {asked: answer(model, rows, max_new_tokens=tokens) for asked, rows in sets.items()}
    return Entry(json.dumps(texts).encode())
