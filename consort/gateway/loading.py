"""A served model's section into an LM: the one place that knows where models come from."""

from __future__ import annotations

import os
from dataclasses import replace

from consort.config import Config, RuntimeConfig
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
        edges = tuple(ServedModel(name=device.name, model=device.slm.model) for device in config.devices)
        cloud = ServedModel(name="cloud", model=config.cloud.model)
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
        from consort.gateway.local_answers import open_local

        return open_local(model, runtime)
    from consort.models.remote import Endpoint, Remote

    key = os.environ.get(model.key_env, "") if model.key_env else ""
    if model.key_env and not key:
        hint = f"export {model.key_env}=..., or remove key_env"
        raise ConfigError(f"the variable {model.key_env} is not set", where=model.name, hint=hint)
    return Remote(Endpoint(model.name, model.base_url, model.model, key, silence_s=model.silence_s))


def _named(model: ServedModel) -> ServedModel:
    name = model.name or model.model.removeprefix("zoo:").rstrip("/").rpartition("/")[2]
    return replace(model, name=name)
