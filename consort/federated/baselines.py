"""What co-tuning is compared with, in the same frame: same models, rows, steps and loop.

`alone` tunes each SLM on its own labelled rows. `one_directional` lets the frozen proxy teach and learns
nothing back. `centralised` gives privacy up and is the upper bound. `fed_lora` averages one LoRA among
devices that all run the proxy's architecture; `fed_collm` (arXiv 2411.11707) adds mutual distillation with
the LLM on the cloud; `fed_mkt` (arXiv 2406.02224) exchanges top-k logits on the public rows, each side
learning where the other's loss is lower. None is journalled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from consort.config import Config, DeviceConfig, TuneConfig
from consort.federated.aggregate import average_adapters
from consort.federated.packets import encode_adapter, encode_knowledge
from consort.federated.party import PrivateRows
from consort.models.local import LocalModel, load_model
from consort.training.adapters import (
    SHARED,
    lora_parameters,
    read_adapter,
    read_parameters,
    trainable_part,
    use_adapters,
    write_parameters,
)
from consort.training.answers import answered
from consort.training.data import Sample
from consort.training.lessons import BridgeBuilder, Example, Learner
from consort.training.loop import LogRow
from consort.training.mutual import Pool, co_train, knowledge_of, pool_of
from consort.training.proxy import load_proxy
from consort.types import Adapter, FloatArray

Weights = Mapping[str, FloatArray]

# FedMKT's exchange on public rows, kind to it: at the full rate, for half of the steps, an SLM forgets its
# own rows (EM 5.5 against 21.2 alone; docs/LOG.md)
EXCHANGE_SHARE, EXCHANGE_RATE = 0.25, 0.1  # of the SLM's steps; of its learning rate


@dataclass(frozen=True, slots=True)
class Site:
    """A device as a baseline sees it."""

    device: DeviceConfig
    rows: PrivateRows
    seed: int


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a baseline leaves: learned weights by device (of its SLM, or of a shared proxy adapter), of the
    LLM, and traffic."""

    slms: Mapping[str, Weights] = field(default_factory=dict)
    proxies: Mapping[str, Adapter] = field(default_factory=dict)
    llm: Weights | None = None
    uplink_bytes: Mapping[str, int] = field(default_factory=dict)
    downlink_bytes: Mapping[str, int] = field(default_factory=dict)


def alone(config: Config, site: Site) -> tuple[Weights, list[LogRow]]:
    """The SLM on its own labelled rows, for as many steps as co-tuning gives it; and the log."""
    learner = _slm(config, site)
    log = co_train(
        [learner], [pool_of(site.rows.train)], config.tune, steps=_slm_steps(config), seed=site.seed
    )
    return read_parameters(learner.parameters), log


def one_directional(config: Config, site: Site, *, proxy_dir: Path) -> Weights:
    """The proxy as distilled answers and teaches on the device; nothing is ever sent back."""
    proxy = load_model(proxy_dir, runtime=config.runtime, name="proxy")
    return _taught_by(proxy, config, site)


def centralised(config: Config, sites: Sequence[Site], public: Sequence[Sample]) -> Tuned:
    """Every private row in the cloud: the LLM tunes on all of them, then answers and teaches every device's
    inputs."""
    learner = _llm(config)
    private = [sample for site in sites for sample in site.rows.train]
    steps = config.tune.rounds * (config.tune.cloud_steps + config.tune.domain_steps)
    co_train(
        [learner], [pool_of(private, 0.5), pool_of(public, 0.5)], config.tune, steps=steps, seed=config.seed
    )
    slms = {site.device.name: _taught_by(learner.model, config, site) for site in sites}
    return Tuned(slms, llm=read_parameters(learner.parameters))


def fed_lora(
    config: Config, sites: Sequence[Site], *, proxy_dir: Path, public: Sequence[Sample] = ()
) -> Tuned:
    """FedAvg of one LoRA (exact products) on the proxy's architecture; with public rows, FedCoLLM's cloud
    step follows each round."""
    shared = read_adapter(_proxy(config, proxy_dir, None), SHARED)
    uplink, downlink = {site.device.name: 0 for site in sites}, _adapter_bytes(shared, config.tune)
    llm_weights: Weights | None = None
    for round_number in range(config.tune.rounds):
        adapters = [_lora_round(config, site, shared, round_number, proxy_dir) for site in sites]
        for name, adapter in zip(uplink, adapters, strict=True):
            uplink[name] += _adapter_bytes(adapter, config.tune)
        shared = average_adapters(adapters, [len(site.rows.train) for site in sites], previous=shared).adapter
        if public:
            shared, llm_weights = _collm_cloud(config, shared, llm_weights, public, round_number, proxy_dir)
        downlink += _adapter_bytes(shared, config.tune)  # after the last round too: devices keep it
    return Tuned({}, dict.fromkeys(uplink, shared), llm_weights, uplink, dict.fromkeys(uplink, downlink))


def fed_mkt(
    config: Config,
    sites: Sequence[Site],
    public: Sequence[Sample],
    *,
    bridge: BridgeBuilder,
    public_rows: int = 512,
) -> Tuned:
    """Selective mutual knowledge transfer on `public_rows` rows: own rows first, then each side learns where
    it is the worse."""
    tune = config.tune
    rows = list(public[:public_rows])
    # together as many steps as every other arm has
    own_steps = round(tune.mutual_steps * (1 - EXCHANGE_SHARE))
    cloud = _llm(config)
    slms = {site.device.name: _slm(config, site) for site in sites}
    uplink, downlink = dict.fromkeys(slms, 0), dict.fromkeys(slms, 0)
    for round_number in range(tune.rounds):
        seed = config.seed + 1000 * round_number
        taught = {}
        for site in sites:
            learner, name = slms[site.device.name], site.device.name
            co_train(
                [learner],
                [pool_of(site.rows.train)],
                tune,
                steps=own_steps,
                seed=site.seed + seed,
                done=round_number * tune.mutual_steps,
                total=_slm_steps(config),
            )
            taught[name] = knowledge_of(learner, rows, tune)
            uplink[name] += _knowledge_bytes(taught[name])
        own = knowledge_of(cloud, rows, tune)
        # the LLM learns each row from the device whose loss is lowest, where that is below its own
        best = [min(candidates, key=_loss) for candidates in zip(*taught.values(), strict=True)]
        lessons = [
            device if _loss(device) < _loss(mine) else Example(mine.sample)
            for device, mine in zip(best, own, strict=True)
        ]
        co_train([cloud], [Pool(lessons)], tune, steps=tune.cloud_steps, seed=seed, bridge=bridge)
        own = knowledge_of(cloud, rows, tune)
        for name, learner in slms.items():
            downlink[name] += _knowledge_bytes(own)
            lessons = [
                mine if _loss(mine) < _loss(device) else Example(mine.sample)
                for mine, device in zip(own, taught[name], strict=True)
            ]
            co_train(
                [replace(learner, learning_rate=EXCHANGE_RATE * learner.learning_rate)],
                [Pool(lessons)],
                tune,
                steps=tune.mutual_steps - own_steps,
                seed=seed,
                done=round_number * tune.mutual_steps + own_steps,
                total=_slm_steps(config),
                bridge=bridge,
            )
    weights = {name: read_parameters(learner.parameters) for name, learner in slms.items()}
    return Tuned(weights, llm=read_parameters(cloud.parameters), uplink_bytes=uplink, downlink_bytes=downlink)


def _slm_steps(config: Config) -> int:
    return config.tune.rounds * config.tune.mutual_steps


def _slm(config: Config, site: Site) -> Learner:
    settings = site.device.slm
    slm = load_model(
        settings.model, runtime=config.runtime, chat_template=settings.chat_template, name=site.device.name
    )
    learned = trainable_part(slm, settings, seed=site.seed)
    return Learner(
        slm, learned, settings.learning_rate, settings.max_tokens, kd_weight=config.tune.slm_kd_weight
    )


def _llm(config: Config) -> Learner:
    settings = config.cloud
    llm = load_model(
        settings.model, runtime=config.runtime, chat_template=settings.chat_template, name="cloud"
    )
    learned = trainable_part(llm, settings, seed=config.seed)
    return Learner(
        llm, learned, settings.learning_rate, settings.max_tokens, kd_weight=config.tune.cloud_kd_weight
    )


def _taught_by(teacher: LocalModel, config: Config, site: Site) -> Weights:
    tune = config.tune
    learner = _slm(config, site)
    pools = [pool_of(site.rows.train)]
    asked = site.rows.unlabelled[: tune.proxy_answers]
    if asked and tune.answers_share > 0:
        answers = answered(
            teacher,
            asked,
            max_new_tokens=config.eval.max_new_tokens,
            readers=[(learner.model, learner.max_tokens), (teacher, config.cloud.max_tokens)],
        )
        pools = [pool_of(site.rows.train, 1 - tune.answers_share), pool_of(answers, tune.answers_share)]
    frozen = Learner(teacher, max_tokens=config.cloud.max_tokens)
    co_train([learner, frozen], pools, tune, steps=_slm_steps(config), seed=site.seed)
    return read_parameters(learner.parameters)


def _proxy(config: Config, proxy_dir: Path, shared: Adapter | None) -> LocalModel:
    proxy = load_proxy(proxy_dir, config.proxy, config.runtime, shared=shared, seed=config.seed)
    use_adapters(proxy, [SHARED])
    return proxy


def _lora_round(config: Config, site: Site, shared: Adapter, round_number: int, proxy_dir: Path) -> Adapter:
    proxy = _proxy(config, proxy_dir, shared)
    learner = Learner(
        proxy, lora_parameters(proxy, SHARED), config.proxy.learning_rate, config.cloud.max_tokens
    )
    co_train(
        [learner],
        [pool_of(site.rows.train)],
        config.tune,
        steps=config.tune.mutual_steps,
        seed=site.seed + 1000 * round_number,
        done=round_number * config.tune.mutual_steps,
        total=_slm_steps(config),
    )
    return read_adapter(proxy, SHARED)


def _collm_cloud(
    config: Config,
    shared: Adapter,
    weights: Weights | None,
    public: Sequence[Sample],
    round_number: int,
    proxy_dir: Path,
) -> tuple[Adapter, Weights]:
    llm = _llm(config)
    if weights is not None:
        write_parameters(llm.parameters, weights, where="cloud")
    proxy = _proxy(config, proxy_dir, shared)
    learners = [
        llm,
        Learner(
            proxy, lora_parameters(proxy, SHARED), config.proxy.cloud_learning_rate, config.cloud.max_tokens
        ),
    ]
    seed = config.seed + 1000 * round_number + 500
    co_train(learners, [pool_of(public)], config.tune, steps=config.tune.cloud_steps, seed=seed)
    return read_adapter(proxy, SHARED), read_parameters(llm.parameters)


def _loss(example: Example) -> float:
    """Nats a byte that the example's knowledge gives to its answer, so that losses of different tokenizers
    compare."""
    assert example.knowledge is not None
    rows, spans = example.knowledge.rows, example.knowledge.spans
    hit = rows.ids[: len(spans.ids)] == np.asarray(spans.ids)[:, None]
    probability = np.where(hit, rows.probs[: len(spans.ids)], 0).sum(axis=1)
    return float(
        -np.log(np.maximum(probability, 1e-4)).sum() / max(1, len((example.sample.answer or "").encode()))
    )


def _adapter_bytes(adapter: Adapter, tune: TuneConfig) -> int:
    """Of one packet, in as many bits as ours: what is sent is compared. The values themselves stay exact."""
    return len(encode_adapter(adapter, bits=tune.update_bits)[0])


def _knowledge_bytes(taught: Sequence[Example]) -> int:
    """As our packets carry it, which is many times smaller than the float32 logits as published."""
    rows = {str(number): example.knowledge.rows for number, example in enumerate(taught) if example.knowledge}
    vocabulary = taught[0].knowledge.vocabulary  # type: ignore[union-attr]
    return len(encode_knowledge(rows, tokenizer_sha256=vocabulary.sha256))
