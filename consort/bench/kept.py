"""What a run leaves of its models, as PEFT directories or whole: the devices', the cloud's, and the proxies.

A proxy is kept as it travels, which drafts best, and for each device with what never left it, which answers
and judges best there. Does not say how they are served (`served`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from consort.bench.served import ADAPTERS, CLOUD, DRAFTER, PROXIES, PROXY, own_proxy
from consort.config import Config, ModelConfig
from consort.federated.party import PrivateState
from consort.files import whole_file
from consort.models.local import LocalModel, load_model
from consort.training.adapters import (
    DOMAIN,
    OWN,
    SHARED,
    lora_parameters,
    trainable_part,
    write_parameters,
)
from consort.training.peft_directory import save_adapter
from consort.training.proxy import load_proxy, speak_for_device
from consort.training.stacking import stack_adapters
from consort.training.tuned import save_tuned
from consort.types import Adapter, FloatArray

States = Mapping[str, PrivateState | None]  # by device; None before its first finished round


def load_party(
    config: Config, name: str, settings: ModelConfig, learned: Mapping[str, FloatArray]
) -> LocalModel:
    """A party's model as configured, with what it has learned."""
    model = load_model(
        settings.model, runtime=config.runtime, chat_template=settings.chat_template, name=name
    )
    learn(model, settings, learned)
    return model


def learn(model: LocalModel, settings: ModelConfig, learned: Mapping[str, FloatArray]) -> None:
    """Give a party's bare model what it has learned; nothing leaves it as it is."""
    if learned:
        write_parameters(trainable_part(model, settings, seed=0), learned, where=model.name)


def keep_models(config: Config, run_dir: Path, *, llm: Mapping[str, FloatArray], states: States) -> None:
    """The devices' models and the cloud's, each in `adapters/NAME`."""
    tuned = [(CLOUD, config.cloud, llm)]
    for device in config.devices:
        state = states[device.name]
        tuned.append((device.name, device.slm, state.slm if state else {}))
    for name, settings, learned in tuned:
        model = load_party(config, name, settings, learned)
        if settings.trainable == "lora" and OWN in getattr(model.module, "peft_config", {}):
            save_adapter(model, OWN, run_dir / ADAPTERS / name, base=settings.model)
        else:
            save_tuned(model, run_dir / ADAPTERS / name, base=settings.model)


def keep_proxies(
    config: Config, run_dir: Path, proxy_dir: Path, *, shared: Adapter, drafter: Adapter, states: States
) -> None:
    """The proxy's adapter as it travels in `adapters/proxy`, its copy that was taught to draft, if any, in
    `adapters/drafter`, and each device's own in `proxies/NAME`."""
    base = str(proxy_dir.absolute()) if own_proxy(config) else config.proxy.model

    def loaded(adapter: Adapter) -> LocalModel:
        return load_proxy(proxy_dir, config.proxy, config.runtime, shared=adapter, seed=config.seed)

    save_adapter(loaded(shared), SHARED, run_dir / ADAPTERS / PROXY, base=base)
    if config.tune.drafter_steps:
        save_adapter(loaded(drafter), SHARED, run_dir / ADAPTERS / DRAFTER, base=base)
    for name, state in states.items():
        proxy = loaded(shared)
        if state is not None:
            write_parameters(lora_parameters(proxy, DOMAIN), state.domain, where=name)
        speak_for_device(proxy, config.proxy)
        stack_adapters(proxy, [SHARED, DOMAIN], into=OWN)
        save_adapter(proxy, OWN, run_dir / PROXIES / name, base=base)


def keep_text(file: Path, text: str) -> None:
    """Replace the file whole or not at all: on a full disk the old one is not lost."""
    with whole_file(file) as whole:
        whole.write(text.encode())
