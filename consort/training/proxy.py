"""The proxy (DPM): made small from the cloud model, distilled from it, then given the adapter that travels
and the one that stays.

Distillation is `co_train` beside a frozen cloud model, on public rows only (arXiv 2511.11678, section on
DPMs; arXiv 1503.02531).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from consort.config import ProxyConfig, RuntimeConfig, TuneConfig
from consort.errors import ModelError
from consort.models.local import LocalModel, load_model, wrap_model
from consort.training.adapters import DOMAIN, SHARED, add_lora, use_adapters, write_adapter
from consort.training.data import Sample
from consort.training.lessons import Learner
from consort.training.loop import LogRow
from consort.training.mutual import co_train, pool_of
from consort.training.prune import prune
from consort.types import Adapter


def distil_proxy(
    cloud: LocalModel,
    config: ProxyConfig,
    public: Sequence[Sample],
    options: TuneConfig,
    *,
    seed: int,
    on_log: Callable[[LogRow], None] = lambda row: None,
) -> tuple[LocalModel, list[LogRow]]:
    """A proxy that has learned the cloud's distributions on the public rows, all its weights tuned; and the
    log."""
    if config.model:
        proxy = load_model(config.model, runtime=cloud.runtime, name="proxy")
    else:
        module = prune(
            cloud.module,
            layers=config.layers or max(1, cloud.module.config.num_hidden_layers // 2),
            width=config.width,
        )
        proxy = wrap_model(module, cloud.tokenizer, name="proxy", runtime=cloud.runtime)
    if proxy.vocabulary.sha256 != cloud.vocabulary.sha256:
        raise ModelError(
            "the proxy's tokenizer is not the cloud model's",
            where=config.model,
            hint="give a smaller model of the cloud model's family, or none: the cloud model is then pruned",
        )
    if config.distil_steps == 0:
        return proxy, []
    student = Learner(
        proxy,
        dict(proxy.module.named_parameters()),
        config.distil_learning_rate,
        prompt_weight=config.distil_prompt_weight,
    )
    log = co_train(
        [student, Learner(cloud)],
        [pool_of(public)],
        replace(options, temperature=1.0),
        steps=config.distil_steps,
        seed=seed,
        on_log=on_log,
    )
    return proxy, log


def speak_for_device(proxy: LocalModel, config: ProxyConfig) -> None:
    """Answer as the device's own proxy: under both adapters, the domain's at a share of what it learned.

    Halfway between a tuned model and the one it was tuned from, an answer is often better than at either end
    (WiSE-FT, arXiv 2109.01903): few private rows teach much that holds for these rows only.
    """
    use_adapters(proxy, {SHARED: 1.0, DOMAIN: config.domain_share})


def load_proxy(
    folder: Path,
    config: ProxyConfig,
    runtime: RuntimeConfig,
    *,
    shared: Adapter | None = None,
    seed: int,
    name: str = "proxy",
) -> LocalModel:
    """The distilled proxy under both adapters, the shared one as broadcast (none: fresh, which changes
    nothing)."""
    proxy = load_model(folder, runtime=runtime, name=name)
    # both factors start alike on every device: seeds differ only where data does
    add_lora(proxy, SHARED, rank=config.shared_rank, alpha=2.0 * config.shared_rank, seed=seed)
    add_lora(proxy, DOMAIN, rank=config.domain_rank, alpha=2.0 * config.domain_rank, seed=seed + 1)
    if shared is not None:
        write_adapter(proxy, SHARED, shared)
    use_adapters(proxy, [SHARED, DOMAIN])
    return proxy
