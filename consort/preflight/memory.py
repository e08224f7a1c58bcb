"""What memory a run takes, forecast from the models' files and the rows' lengths, against what there is.

The forecast is right to about a third, so only what exceeds the memory by more than that is refused, on this
machine and on a device with `memory_gb` alike. It knows nothing of a container's own limit, and counts no
swap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from consort.config import ModelConfig
from consort.errors import ConfigError
from consort.models.footprint import RUNTIME_BYTES, Footprint, ModelFiles, tuning_footprint
from consort.problems import Problem

if TYPE_CHECKING:
    from consort.preflight import Preflight
    from consort.preflight.models import ModelSurvey

GIGA = 1e9
UNSURE = 4 / 3  # a run may take so much less than its forecast
SMALLER = 'smaller models, trainable = "lora", or fewer tune.batch_rows, max_tokens or runtime.workers'
ALL_THE_SAME = "--ignore-memory begins all the same"


@dataclass(frozen=True, slots=True)
class Offer:
    """Memory for a run, and where it is."""

    offered_bytes: float
    place: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run needs, and what there is."""

    needed_bytes: float
    offer: Offer

    @property
    def fits(self) -> bool:
        """Whether it probably does."""
        return self.needed_bytes <= self.offer.offered_bytes

    @property
    def hopeless(self) -> bool:
        """Whether it does not even where the forecast is a third too high."""
        return self.needed_bytes > UNSURE * self.offer.offered_bytes

    def __str__(self) -> str:
        needed, offered = self.needed_bytes / GIGA, self.offer.offered_bytes / GIGA
        return f"about {needed:.1f} GB needed, {offered:.1f} GB {self.offer.place}"


def require_memory(found: Preflight, offer: Offer, *, where: str) -> None:
    """ConfigError if the run cannot fit; nothing is said where a model's size is unknown."""
    needed = forecast_run(found)
    if needed is not None and (forecast := Forecast(needed, offer)).hopeless:
        raise ConfigError(
            f"too little memory for this run: {forecast}", where=where, hint=f"use {SMALLER}; {ALL_THE_SAME}"
        )


def device_problems(survey: ModelSurvey) -> Iterator[Problem]:
    """Devices whose `memory_gb` is less than their model and the proxy take: refused as a run here is, and a
    warning where the forecast may be wrong."""
    for index, device in enumerate(survey.config.devices):
        footprint = forecast_device(survey, index)
        if not device.memory_gb or footprint is None:
            continue
        forecast = Forecast(footprint.total_bytes + RUNTIME_BYTES, Offer(device.memory_gb * GIGA, "there"))
        if forecast.fits:
            continue
        yield Problem(
            key := f"devices.{index}.memory_gb",
            f'device "{device.name}" has {device.memory_gb:g} GB; its model and the proxy need about '
            f"{forecast.needed_bytes / GIGA:.1f} GB",
            "use a smaller model, LoRA in place of full, fewer batch_rows or fewer max_tokens"
            + (f"; {ALL_THE_SAME}" if forecast.hopeless else ""),
            key,
            "error" if forecast.hopeless else "warning",
        )


def memory_here(device: str) -> Offer:
    """Of the graphics card that this process would compute on, else what this machine has available."""
    from consort.models.local import card_bytes

    on_card = card_bytes(device)
    return Offer(on_card, "on the card") if on_card else available_memory()


def available_memory() -> Offer:
    """What this machine can give without swapping."""
    import psutil

    return Offer(psutil.virtual_memory().available, "available")


def forecast_run(found: Preflight) -> float | None:
    """Bytes at the most demanding moment of a run on this machine; None where a model's size is unknown."""
    assert found.models is not None, "the models were looked at"
    survey, config = found.models, found.config
    cloud = forecast_cloud(survey)
    devices = [forecast_device(survey, index) for index in range(len(config.devices))]
    known = [device for device in devices if device is not None]
    if cloud is None or len(known) < len(devices) or not known:
        return None
    # every process computes one step at a time; the one that keeps the journal takes the cloud's steps
    workers = min(config.runtime.workers, len(known))
    at_devices = sum(sorted(device.total_bytes for device in known)[-workers:])
    processes = 1 if config.runtime.workers == 1 else 1 + config.runtime.workers
    return max(cloud.total_bytes, at_devices) + _carried(known) + processes * RUNTIME_BYTES


def forecast_device(survey: ModelSurvey, index: int) -> Footprint | None:
    """Memory that device `index` needs for its model and the proxy; None where a size is unknown."""
    return _with_proxy(survey, f"devices.{index}.slm", survey.config.devices[index].slm)


def forecast_cloud(survey: ModelSurvey) -> Footprint | None:
    """Memory that the cloud's model and the proxy need while they teach each other; None where a size is
    unknown."""
    return _with_proxy(survey, "cloud", survey.config.cloud)


def _with_proxy(survey: ModelSurvey, key: str, settings: ModelConfig) -> Footprint | None:
    config = survey.config
    own = survey.known.get(f"{key}.model")
    proxy = survey.known.get("proxy.model" if config.proxy.model else "cloud.model")
    if own is None or not own.files.parameters or proxy is None or not proxy.files.parameters:
        return None
    longest = survey.lengths.longest.get(f"{key}.max_tokens") or settings.max_tokens
    settings = replace(settings, max_tokens=min(settings.max_tokens, longest))
    files = proxy.files if config.proxy.model else _pruned(proxy.files, survey)
    rank = config.proxy.shared_rank + config.proxy.domain_rank
    adapters = replace(settings, trainable="lora", lora_rank=rank, lora_targets="all-linear")
    parts = [_footprint(survey, own.files, settings), _footprint(survey, files, adapters)]
    return Footprint(
        sum(part.frozen_bytes for part in parts),
        sum(part.learned_bytes for part in parts),
        sum(part.activation_bytes for part in parts),
    )


def _footprint(survey: ModelSurvey, files: ModelFiles, model: ModelConfig) -> Footprint:
    return tuning_footprint(
        files,
        full=model.trainable == "full",
        rank=model.lora_rank,
        targets=model.lora_targets,
        batch_rows=survey.config.tune.batch_rows,
        max_tokens=model.max_tokens,
    )


def _carried(devices: Sequence[Footprint]) -> float:
    """What the devices learned, carried between steps as arrays: alone and together, a quarter each of what
    weights take that learn."""
    return sum(device.learned_bytes for device in devices) / 2


def _pruned(files: ModelFiles, survey: ModelSurvey) -> ModelFiles:
    """The cloud model with as many layers as the proxy keeps; a narrower feed-forward counts as whole."""
    kept = survey.config.proxy.layers or max(1, files.layers // 2)
    dropped = {f".{layer}." for layer in range(kept, files.layers)}
    shapes = {
        name: shape for name, shape in files.shapes.items() if not any(part in name for part in dropped)
    }
    return replace(files, shapes=shapes)
