"""What can be wrong with the models a configuration names, known from their files alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from consort.align import Vocabulary
from consort.config import Config
from consort.errors import ModelError
from consort.models.footprint import ModelFiles, read_model_files
from consort.preflight.data import Rows
from consort.preflight.reading import Lengths, reading_problems
from consort.preflight.served import served_problems
from consort.problems import Problem

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
    survey.found += served_problems(config)
    return survey


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
