"""What can be wrong with the models a configuration names, known from their files alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from consort.align import Vocabulary
from consort.config import Config, ModelConfig
from consort.errors import ModelError
from consort.models.footprint import RUNTIME_BYTES, Footprint, ModelFiles, read_model_files, tuning_footprint
from consort.preflight.data import Rows
from consort.preflight.reading import Lengths, reading_problems
from consort.preflight.served import served_problems
from consort.problems import Problem

GIGA = 1e9
NO_END = "the tokenizer has no end-of-sequence token"


@dataclass(frozen=True, slots=True)
class Known:
    """A model's files and vocabulary, as far as they could be read."""

    files: ModelFiles
    vocabulary: Vocabulary | None


@dataclass(slots=True)
class ModelSurvey:
    """Each configured model by its key, and what is wrong."""

    config: Config
    rows: Mapping[str, Rows]
    known: dict[str, Known] = field(default_factory=dict)
    found: list[Problem] = field(default_factory=list)
    lengths: Lengths = field(default_factory=Lengths)


def survey_models(config: Config, rows: Mapping[str, Rows]) -> ModelSurvey:
    """Read every model's small files and check them against the data and against each other."""
    survey = ModelSurvey(config, rows)
    named = {"cloud.model": config.cloud.model, "proxy.model": config.proxy.model}
    named |= {f"devices.{index}.slm.model": device.slm.model for index, device in enumerate(config.devices)}
    for key, model in named.items():
        if model:
            _read(survey, key, model)
    _check_proxy(survey)
    files = {key: each.files for key, each in survey.known.items()}
    survey.found += reading_problems(config, rows, files, survey.lengths)
    for index in range(len(config.devices)):
        _check_memory(survey, index)
    survey.found += served_problems(config)
    return survey


def forecast_device(survey: ModelSurvey, index: int) -> Footprint | None:
    """Memory that device `index` needs for its model and the proxy; None where a size is unknown."""
    slm = survey.known.get(f"devices.{index}.slm.model")
    proxy = forecast_proxy(survey)
    if slm is None or not slm.files.parameters or proxy is None:
        return None
    own = _footprint(survey, slm.files, survey.config.devices[index].slm)
    return Footprint(
        own.frozen_bytes + proxy.frozen_bytes,
        own.learned_bytes + proxy.learned_bytes,
        own.activation_bytes + proxy.activation_bytes,
    )


def forecast_cloud(survey: ModelSurvey) -> Footprint | None:
    """Memory that the cloud model needs while it is tuned; None where its size is unknown."""
    cloud = survey.known.get("cloud.model")
    if cloud is None or not cloud.files.parameters:
        return None
    return _footprint(survey, cloud.files, survey.config.cloud)


def forecast_proxy(survey: ModelSurvey) -> Footprint | None:
    """Memory of the proxy and both its adapters: by its own files, or by what it keeps of the cloud."""
    config = survey.config
    known = survey.known.get("proxy.model" if config.proxy.model else "cloud.model")
    if known is None or not known.files.parameters:
        return None
    files = known.files if config.proxy.model else _pruned(known.files, config)
    rank = config.proxy.shared_rank + config.proxy.domain_rank
    return _footprint(survey, files, replace(config.cloud, trainable="lora", lora_rank=rank))


def _footprint(survey: ModelSurvey, files: ModelFiles, model: ModelConfig) -> Footprint:
    return tuning_footprint(
        files,
        full=model.trainable == "full",
        rank=model.lora_rank,
        targets=model.lora_targets,
        batch_rows=survey.config.tune.batch_rows,
        max_tokens=model.max_tokens,
    )


def _pruned(files: ModelFiles, config: Config) -> ModelFiles:
    """The cloud model with as many layers as the proxy keeps; a narrower feed-forward counts as whole."""
    kept = config.proxy.layers or max(1, files.layers // 2)
    dropped = {f".{layer}." for layer in range(kept, files.layers)}
    shapes = {
        name: shape for name, shape in files.shapes.items() if not any(part in name for part in dropped)
    }
    return replace(files, shapes=shapes)


def _read(survey: ModelSurvey, key: str, model: str) -> None:
    try:
        files = read_model_files(model)
    except ModelError as error:
        survey.found.append(Problem(key, f"{error.where}: {error.what}", error.hint, key))
        return
    vocabulary = None
    if files.tokenizer.exists():
        try:
            vocabulary = Vocabulary.of(files.tokenizer)
            if vocabulary.eos_id is None:
                raise ModelError(NO_END, hint="set eos_token in tokenizer_config.json")
        except ModelError as error:
            survey.found.append(Problem(key, f"{model}: {error.what}", error.hint, key))
    else:
        what = f"{model} has no tokenizer.json; its tokenizer is only checked when the run loads it"
        survey.found.append(Problem(key, what, key=key, level="warning"))
    survey.known[key] = Known(files, vocabulary)
    if (
        key == "cloud.model"
        and not survey.config.proxy.model
        and survey.config.proxy.layers > files.layers > 0
    ):
        what = (
            f"{model} has {files.layers} layers; the proxy cannot keep {survey.config.proxy.layers} of them"
        )
        survey.found.append(Problem("proxy.layers", what, key="proxy.layers"))


def _check_proxy(survey: ModelSurvey) -> None:
    cloud, proxy = survey.known.get("cloud.model"), survey.known.get("proxy.model")
    if not (cloud and proxy and cloud.vocabulary and proxy.vocabulary):
        return
    if cloud.vocabulary.sha256 != proxy.vocabulary.sha256:
        what = f"the proxy's tokenizer ({proxy.files.name}) is not the cloud's ({cloud.files.name})"
        hint = "leave proxy.model empty to prune it from the cloud model, or name a model with its tokenizer"
        survey.found.append(Problem("proxy.model", what, hint, "proxy.model"))


def _check_memory(survey: ModelSurvey, index: int) -> None:
    device = survey.config.devices[index]
    forecast = forecast_device(survey, index)
    if not device.memory_gb or forecast is None:
        return
    needed = (forecast.total_bytes + RUNTIME_BYTES) / GIGA
    if needed > device.memory_gb:
        key = f"devices.{index}.memory_gb"
        has = f'device "{device.name}" has {device.memory_gb:g} GB'
        hint = "use a smaller model, LoRA in place of full, fewer batch_rows or fewer max_tokens"
        survey.found.append(
            Problem(key, f"{has}; its model and the proxy need about {needed:.1f}", hint, key)
        )
