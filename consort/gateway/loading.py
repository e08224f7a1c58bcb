"""A served model's section into an LM: the one place that knows where models come from."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from consort.config import Config, ModelConfig, RuntimeConfig
from consort.config_serve import ServedModel
from consort.errors import ConfigError
from consort.models import zoo
from consort.types import LM

BUNDLED_EDGES = tuple(ServedModel(name=name, model=f"zoo:{name}") for name in zoo.EDGES)
BUNDLED_CLOUD = ServedModel(name="cloud", model=f"zoo:{zoo.CLOUD}")


def served(config: Config) -> tuple[tuple[ServedModel, ...], ServedModel]:
    """The devices' models and the cloud's: those of `[serve]`, else the file's own, else the bundled."""
    edges, cloud = config.serve.edges, config.serve.cloud
    if not edges and not cloud.model:
        edges = tuple(_own(device.name, device.slm) for device in config.devices)
        cloud = _own("cloud", config.cloud)
    if not edges and not cloud.model:
        edges, cloud = BUNDLED_EDGES, BUNDLED_CLOUD
    named = [_named(each) for each in (*edges, *((cloud,) if cloud.model else ()))]
    twice = [name for name in {each.name for each in named} if sum(e.name == name for e in named) > 1]
    if twice or any(each.name.startswith("consort") for each in named):
        what = f'two served models are called "{twice[0]}"' if twice else "no model may be called consort"
        raise ConfigError(what, where="serve", hint="give each a name of its own: name = ...")
    return tuple(named[: len(edges)]), named[-1] if cloud.model else ServedModel()


def load_lm(model: ServedModel, runtime: RuntimeConfig) -> LM:
    """An endpoint where there is a base_url, else a model on this machine."""
    if not model.base_url:
        return _load_local(model, runtime)
    from consort.models.remote import EVERYTHING, Endpoint, Remote

    key = os.environ.get(model.key_env, "") if model.key_env else ""
    if model.key_env and not key:
        hint = f"export {model.key_env}=..., or remove key_env"
        raise ConfigError(f"the variable {model.key_env} is not set", where=model.name, hint=hint)
    able = EVERYTHING if model.logprobs else EVERYTHING - {"logprobs"}
    return Remote(
        Endpoint(model.name, model.base_url, model.model, key, silence_s=model.silence_s, capabilities=able)
    )


def _own(name: str, model: ModelConfig) -> ServedModel:
    return ServedModel(name=name, model=model.model, chat_template=model.chat_template)


def _load_local(model: ServedModel, runtime: RuntimeConfig) -> LM:
    # torch is loaded here and nowhere before: a gateway before endpoints does without it
    from consort.models.decoding.lm import LocalLM
    from consort.training.tuned import load_tuned

    adapter = Path(model.adapter) if model.adapter else None
    loaded = load_tuned(model.model, adapter=adapter, runtime=runtime, chat_template=model.chat_template)
    loaded.name = model.name
    # no strategy here reads distributions: no memory is taken for sessions
    return LocalLM(loaded, answers=model.answers, sessions=0, context_tokens=model.context_tokens)


def _named(model: ServedModel) -> ServedModel:
    name = model.name or model.model.removeprefix("zoo:").rstrip("/").rpartition("/")[2]
    return replace(model, name=name)
