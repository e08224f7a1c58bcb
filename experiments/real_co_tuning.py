"""Co-tuning on real data against its comparators and without each of its parts: EM and Rouge-L, three seeds.

    python experiments/pretrain_real.py                       # base models, once
    python experiments/real_co_tuning.py run [--seeds 0 1 2] [--arms co_plms alone ...]
    python experiments/real_co_tuning.py table                # experiments/results/co_tuning.{json,md}

An arm that has a result is not run again, so an interrupted experiment continues. Every arm of a seed has the
same rows, base models and SLM steps. EM and Rouge-L are of greedy answers to 200 test rows a device.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import real_data
import rival_alignment
import tiny_models
from pretrain_real import MODELS
from provenance import commit

from consort.align import Spans, SparseRows, Vocabulary
from consort.bench.metrics import majority_baseline, score_answers
from consort.config import (
    Config,
    DeviceConfig,
    EvalConfig,
    ModelConfig,
    ProxyConfig,
    RuntimeConfig,
    TuneConfig,
)
from consort.federated import baselines
from consort.federated.baselines import Site, Tuned
from consort.federated.cloud import Cloud
from consort.federated.co_plms import Outcome, co_tune
from consort.federated.journal import Journal
from consort.federated.party import Device, PrivateRows, PrivateState
from consort.files import whole_file
from consort.models.local import LocalModel, load_model
from consort.training.adapters import (
    DOMAIN,
    SHARED,
    lora_parameters,
    trainable_part,
    use_adapters,
    write_parameters,
)
from consort.training.answers import answer, made_up
from consort.training.data import Sample
from consort.training.lessons import Bridge
from consort.training.proxy import distil_proxy, load_proxy, speak_for_device

WORK = Path("runs/real_co_tuning")
RESULTS = Path(__file__).parent / "results"
SCORES = RESULTS / "co_tuning"  # one file an arm and seed

TUNE = TuneConfig(
    rounds=2,
    domain_steps=100,
    mutual_steps=150,
    proxy_share=0.6,
    proxy_kd_weight=0.1,
    prompt_weight=0.1,
    cloud_steps=40,
    proxy_answers=1000,
    public_samples=192,
    cloud_kd_weight=0.3,
)
CHANGES: dict[str, Callable[[Config], Config]] = {
    "co_plms": lambda config: config,
    "co_plms_default_share": lambda config: replace(
        config, proxy=replace(config.proxy, domain_share=ProxyConfig().domain_share)
    ),
    # nothing but these rows teaches: whoever speaks about them should not have learned their answers
    "co_plms_labelled": lambda config: _tuned(config, proxy_answers=0, labelled_teacher="distilled"),
    "co_plms_labelled_broadcast": lambda config: _tuned(config, proxy_answers=0),
    "without_dst": lambda config: _tuned(config, domain_steps=0),
    "without_device_saml": lambda config: _tuned(config, slm_kd_weight=0.0, proxy_kd_weight=0.0),
    "without_cloud_saml": lambda config: _tuned(config, cloud_steps=0),
    "without_conditioning": lambda config: _tuned(config, condition_in_token=False),
    "rival_alignment": lambda config: config,
    "update_32_bits": lambda config: _tuned(config, update_bits=32),
    "slm_lora": lambda config: replace(
        config,
        devices=tuple(
            replace(
                device,
                slm=replace(device.slm, trainable="lora", lora_rank=16, lora_alpha=32.0, learning_rate=3e-3),
            )
            for device in config.devices
        ),
    ),
}
OTHERS = (
    "zero_shot",
    "alone",
    "one_directional",
    "one_directional_labelled",
    "centralised",
    "fed_lora",
    "fed_collm",
    "fed_mkt",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[*OTHERS, *CHANGES])
    args = parser.parse_args()
    if args.verb == "run":
        prepare_proxy()
        for seed in args.seeds:
            for arm in args.arms:
                if arm != "zero_shot" or seed == 0:  # nothing is drawn for it
                    run_arm(arm, seed)
    else:
        import co_tuning_table

        co_tuning_table.write(SCORES, RESULTS)


def base_config(seed: int) -> Config:
    """Sizes, steps and rates of every arm; docs/LOG.md says what else was tried."""
    slm = ModelConfig(trainable="full", learning_rate=4e-3, max_tokens=256)
    return Config(
        name="real",
        seed=seed,
        cloud=ModelConfig(
            str(MODELS / "cloud"), "lora", lora_rank=16, lora_alpha=32.0, learning_rate=3e-4, max_tokens=256
        ),
        proxy=ProxyConfig(
            layers=3,
            distil_steps=800,
            distil_learning_rate=2e-3,
            learning_rate=4e-3,
            shared_rank=8,
            domain_rank=8,
            domain_share=1.0,
        ),
        devices=tuple(
            DeviceConfig(name, slm=replace(slm, model=str(MODELS / name))) for name in real_data.DEVICES
        ),
        tune=TUNE,
        runtime=RuntimeConfig(device="cpu"),
        eval=EvalConfig(rows=200, max_new_tokens=48),
    )


def prepare_proxy() -> Path:
    """The proxy of all seeds: the cloud's first, middle and last layers, distilled on the public rows."""
    folder = MODELS / "proxy"
    if not (folder / "model.safetensors").exists():
        config = base_config(seed=0)
        cloud = load_model(config.cloud.model, runtime=config.runtime, name="cloud")
        proxy, _ = distil_proxy(
            cloud,
            config.proxy,
            public_rows(),
            config.tune,
            seed=0,
            on_log=lambda row: print("proxy", row, flush=True),
        )
        tiny_models.save(proxy, folder)
    return folder


def public_rows() -> list[Sample]:
    """Device tasks' public rows and as many of the other tasks, interleaved by a fixed shuffle."""
    data = real_data.load(seed=0)
    rows = [sample for name in real_data.DEVICES for sample in data.public[name]]
    rows += [sample for name in real_data.OTHER_TASKS for sample in data.public[name][:1000]]
    rows = [row for row in rows if len(row.answer or "") < 500]  # some others would fill the models' context
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[index] for index in order]


def run_arm(arm: str, seed: int) -> None:
    """One arm with one seed; its scores go to a file of their own."""
    file = SCORES / f"{arm}-{seed}.json"
    if file.exists():
        return
    started = time.monotonic()
    config = base_config(seed)
    data = real_data.load(seed)
    if arm in CHANGES:
        config = CHANGES[arm](config)
        tuned, extra = _co_plms(arm, config, data)
    else:
        tuned, extra = _other(arm, config, data), {}
    result = measure(config, data, tuned, llm=arm == "zero_shot" or bool(tuned.llm)) | extra
    result |= {
        "arm": arm,
        "seed": seed,
        "commit": commit(),
        "seconds": round(time.monotonic() - started, 1),
        "uplink_bytes": dict(tuned.uplink_bytes),
        "downlink_bytes": dict(tuned.downlink_bytes),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as written:
        written.write((json.dumps(result, indent=1) + "\n").encode())
    means = {
        name: (round(100 * device["em"], 1), round(100 * device["rouge_l"], 1))
        for name, device in result["devices"].items()
    }
    cloud = {name: round(100 * scores["em"], 1) for name, scores in result.get("cloud", {}).items()}
    print(f"{arm} seed {seed}: {means} cloud {cloud} {result['seconds']} s", flush=True)


def measure(config: Config, data: real_data.RealData, tuned: Tuned, *, llm: bool) -> dict[str, Any]:
    """Scores of every device's model on its own test rows; and of the LLM, where the arm has one of its own,
    on all of them, on the lacked domains and elsewhere."""
    devices = {}
    for device in config.devices:
        rows = data.devices[device.name]
        model = device_model(config, device, tuned)
        devices[device.name] = _scores(model, rows.test, config) | {
            "majority": majority_baseline(
                [row.answer or "" for row in rows.train], [row.answer or "" for row in rows.test]
            )
        }
    if not llm:
        return {"devices": devices}
    cloud = load_model(config.cloud.model, runtime=config.runtime, name="cloud")
    if tuned.llm:
        write_parameters(trainable_part(cloud, config.cloud, seed=config.seed), tuned.llm, where="cloud")
    sets = {name: rows.test for name, rows in data.devices.items()} | {
        "lacked": data.lacked,
        "elsewhere": data.public_test,
    }
    return {
        "devices": devices,
        "cloud": {name: _scores(cloud, rows, config) for name, rows in sets.items()},
    }


@dataclass(frozen=True)
class CoTuned:
    """What a run of Co-PLMs leaves: the cloud, every message, and the devices' own states."""

    cloud: Cloud
    outcome: Outcome
    states: dict[str, PrivateState | None]


def run_co_plms(arm: str, config: Config, data: real_data.RealData) -> CoTuned:
    """One run; a finished one is read from its journal."""
    proxy_dir, work = prepare_proxy(), WORK / f"{arm}-{config.seed}"
    bridge = rival_bridge if arm == "rival_alignment" else None
    devices = [
        Device(
            site.device,
            config,
            site.rows,
            proxy_dir=proxy_dir,
            folder=work / "devices" / site.device.name,
            seed=site.seed,
            bridge=bridge,
        )
        for site in _sites(config, data)
    ]
    with Journal.open(work, fingerprint=repr(config), resume=True) as journal:
        cloud = Cloud(config, public_rows(), proxy_dir=proxy_dir)
        outcome = co_tune(
            cloud, devices, config.tune, journal=journal, seed=config.seed, report=lambda line: None
        )
    return CoTuned(cloud, outcome, {device.name: device.state() for device in devices})


def _co_plms(arm: str, config: Config, data: real_data.RealData) -> tuple[Tuned, dict[str, Any]]:
    proxy_dir, run = prepare_proxy(), run_co_plms(arm, config, data)
    outcome, states = run.outcome, run.states
    up, down = dict.fromkeys(data.devices, 0), dict.fromkeys(data.devices, 0)
    for message in outcome.traffic:
        assert not message.left_out, message
        up[message.party] += message.uplink_bytes
        down[message.party] += message.downlink_bytes
    tuned = Tuned(
        {name: state.slm for name, state in states.items() if state}, {}, outcome.cloud.llm or None, up, down
    )
    shared = run.cloud.decode(outcome.cloud.broadcast)
    proxies = {}
    for name, state in states.items():
        proxy = load_proxy(proxy_dir, config.proxy, config.runtime, shared=shared, seed=config.seed)
        if state:
            write_parameters(lora_parameters(proxy, DOMAIN), state.domain, where=name)
        speak_for_device(proxy, config.proxy)
        proxies[name] = _scores(proxy, data.devices[name].test, config)
    last = len(outcome.cloud.broadcast)  # only who serves the proxy needs it
    return tuned, {
        "proxies": proxies,
        "proxies_downlink_bytes": {name: size + last for name, size in down.items()},
        "memorised": _memorised(config, data, shared),
    }


def _memorised(config: Config, data: real_data.RealData, shared: Any) -> dict[str, float]:
    """Share of the prompts the final proxy makes up that are, word for word, some device's private prompt."""
    proxy = load_proxy(MODELS / "proxy", config.proxy, config.runtime, shared=shared, seed=config.seed)
    use_adapters(proxy, [SHARED])
    written = [sample.prompt for sample in made_up(proxy, count=256, max_new_tokens=96, seed=7)]
    private = {row.prompt for device in data.devices.values() for row in [*device.train, *device.unlabelled]}
    return {"prompts": len(written), "private": sum(prompt in private for prompt in written)}


def _other(arm: str, config: Config, data: real_data.RealData) -> Tuned:
    sites, proxy_dir, public = _sites(config, data), prepare_proxy(), public_rows()
    labelled = _tuned(config, proxy_answers=0)
    if arm == "zero_shot":
        return Tuned()
    if arm == "alone":
        return Tuned({site.device.name: baselines.alone(config, site)[0] for site in sites})
    if arm == "one_directional":
        return Tuned(
            {site.device.name: baselines.one_directional(config, site, proxy_dir=proxy_dir) for site in sites}
        )
    if arm == "one_directional_labelled":
        return Tuned(
            {
                site.device.name: baselines.one_directional(labelled, site, proxy_dir=proxy_dir)
                for site in sites
            }
        )
    if arm == "centralised":
        return baselines.centralised(config, sites, public)
    if arm == "fed_lora":
        return baselines.fed_lora(config, sites, proxy_dir=proxy_dir)
    if arm == "fed_collm":
        return baselines.fed_lora(config, sites, proxy_dir=proxy_dir, public=public)
    assert arm == "fed_mkt", f"no arm named {arm}"
    return baselines.fed_mkt(config, sites, public, bridge=rival_bridge)


def _sites(config: Config, data: real_data.RealData) -> list[Site]:
    return [
        Site(
            device,
            PrivateRows(data.devices[device.name].train, data.devices[device.name].unlabelled),
            seed=100 * config.seed + number,
        )
        for number, device in enumerate(config.devices)
    ]


def rival_bridge(teacher: Vocabulary, student: Vocabulary) -> Bridge:
    """Edit-distance alignment and a longest-prefix map, as published elsewhere."""

    def cross(rows: SparseRows, source: Spans, target: Spans) -> SparseRows:
        return rival_alignment.transfer(rows, source, target, teacher, student)

    return cross


def device_model(config: Config, device: DeviceConfig, tuned: Tuned) -> LocalModel:
    if device.name in tuned.proxies:
        proxy = load_proxy(
            MODELS / "proxy",
            config.proxy,
            config.runtime,
            shared=tuned.proxies[device.name],
            seed=config.seed,
        )
        use_adapters(proxy, [SHARED])
        return proxy
    slm = load_model(device.slm.model, runtime=config.runtime, name=device.name)
    if device.name in tuned.slms:
        learned = trainable_part(slm, device.slm, seed=0)
        write_parameters(learned, tuned.slms[device.name], where=device.name)
    return slm


def _scores(model: LocalModel, rows: Sequence[Sample], config: Config) -> dict[str, float]:
    texts = answer(model, rows, max_new_tokens=config.eval.max_new_tokens)
    return score_answers(texts, [row.answer or "" for row in rows]).to_json()


def _tuned(config: Config, **changes: Any) -> Config:
    return replace(config, tune=replace(config.tune, **changes))


if __name__ == "__main__":
    main()
