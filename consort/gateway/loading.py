"""A served model's section into an LM: the one place that knows where models come from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from consort.config import Config, ModelConfig, RuntimeConfig
from consort.config_serve import ServedModel
from consort.errors import ConfigError
from consort.inference.mixture import Guide
from consort.models import zoo
from consort.models.gguf.file import SUFFIX, is_gguf
from consort.types import LM, DraftedLM, Drafter

if TYPE_CHECKING:
    from consort.align import Vocabulary

if TYPE_CHECKING:
    from consort.models.decoding.lm import Decodable

SPARE = 1  # sessions that a hang-up may still hold when the next answer begins
BUNDLED_EDGES = tuple(ServedModel(name=name, model=f"zoo:{name}") for name in zoo.EDGES)
BUNDLED_CLOUD = ServedModel(name="cloud", model=f"zoo:{zoo.CLOUD}")
BUNDLED_PROXY = ServedModel(name="proxy", model=f"zoo:{zoo.PROXY}")


def served(config: Config) -> tuple[tuple[ServedModel, ...], ServedModel]:
    """The devices' models and the cloud's: those of `[serve]`, else the file's own, else the bundled. In the
    cloud's role, the cloud's alone."""
    edges, cloud = config.serve.edges, config.serve.cloud
    if not edges and not cloud.is_given:
        edges = tuple(_own(device.name, device.slm) for device in config.devices)
        cloud = _own("cloud", config.cloud)
    if not edges and not cloud.is_given:
        edges, cloud = BUNDLED_EDGES, BUNDLED_CLOUD
    _check_given(edges, cloud)
    named = [_named(each, "edge") for each in edges]
    named += [_named(cloud, "cloud")] if cloud.is_given else []
    twice = [name for name in {each.name for each in named} if sum(e.name == name for e in named) > 1]
    if twice or any(each.name.startswith("consort") for each in named):
        what = f'two served models are called "{twice[0]}"' if twice else "no model may be called consort"
        raise ConfigError(what, where="serve", hint="give each a name of its own: name = ...")
    if config.serve.role == "gateway":
        return tuple(named[: len(edges)]), named[-1] if cloud.is_given else ServedModel()
    if not cloud.model or cloud.base_url:
        raise ConfigError(
            "the cloud's role needs a model that runs here", where="serve.cloud", hint='model = "..."'
        )
    return (), named[-1]


def load_proxy(config: Config) -> LM | None:
    """The device's proxy, which drafts for the cloud and foresees it; the bundled consort brings its own, any
    other names one or has none."""
    serve, proxy = config.serve, config.serve.proxy
    if proxy.base_url:
        raise ConfigError("the proxy runs here", where="serve.proxy", hint="name a model, no base_url")
    if serve.role == "cloud" or (not proxy.model and served(config)[1] != BUNDLED_CLOUD):
        return None
    chosen = replace(_named(proxy) if proxy.model else BUNDLED_PROXY, answers=1)
    return load_lm(chosen, config.runtime, sessions=serve.sessions + SPARE)


def load_lm(
    model: ServedModel,
    runtime: RuntimeConfig,
    *,
    sessions: int = 0,
    shows_states: bool = False,
    is_alone: bool = False,
) -> LM:
    """An endpoint where there is a base_url, else a model on this machine, with room for `sessions`, which
    show hidden states where that is asked for. `is_alone`: nobody goes on where its connection breaks, which
    is waited for then."""
    if not model.base_url:
        from consort.models.decoding.lm import LocalLM

        return LocalLM(
            load_here(model, runtime),
            answers=model.answers,
            sessions=sessions,
            context_tokens=model.context_tokens,
            shows_states=shows_states,
        )
    from consort.models.remote import EVERYTHING, Endpoint, Remote

    key = os.environ.get(model.key_env, "") if model.key_env else ""
    if model.key_env and not key:
        hint = f"export {model.key_env}=..., or remove key_env"
        raise ConfigError(f"the variable {model.key_env} is not set", where=model.name, hint=hint)
    able = EVERYTHING if model.logprobs else EVERYTHING - {"logprobs"}
    endpoint = Endpoint(
        model.name, model.base_url, model.model, key, silence_s=model.silence_s, capabilities=able
    )
    if not model.drafted:
        return Remote(endpoint)
    from consort.models.frames import PARKED_S
    from consort.models.verifier import Verifier

    return Verifier(endpoint, resume_s=PARKED_S) if is_alone else Verifier(endpoint)


def load_here(model: ServedModel, runtime: RuntimeConfig) -> Decodable:
    """A model that runs on this machine: transformers', with its adapter, or llama.cpp's."""
    return _load_gguf(model, runtime) if is_gguf(model.model) else _load_local(model, runtime)


def drafter_of(proxy: LM | None, cloud: DraftedLM) -> Drafter:
    """The proxy as a drafter for the cloud; without one, what stood in the text before."""
    if proxy is None:
        from consort.inference.prompt_lookup import PromptLookup

        return PromptLookup(cloud.tokenizer)
    from consort.models.decoding.drafters import ModelDrafter
    from consort.models.decoding.lm import LocalLM

    assert isinstance(proxy, LocalLM), "a proxy runs here"
    return ModelDrafter(proxy, cast("Vocabulary", cloud.tokenizer))


def _own(name: str, model: ModelConfig) -> ServedModel:
    return ServedModel(name=name, model=model.model, chat_template=model.chat_template)


def load_guides(config: Config, proxy: LM | None, edges: Sequence[LM]) -> tuple[Guide, ...]:
    """Who steers a mixture: the proxy with its adapter and without, and the first edge where it can be read;
    nobody where no tuned proxy is served."""
    model = config.serve.proxy
    if proxy is None or not model.adapter:
        return ()
    base = replace(_named(model), adapter="", answers=1, name=f"{proxy.name}-base")
    guide = Guide(proxy, load_lm(base, config.runtime, sessions=config.serve.sessions))
    return guide, *(Guide(edge) for edge in edges[:1] if hasattr(edge, "open"))


def _load_local(model: ServedModel, runtime: RuntimeConfig) -> Decodable:
    # torch is loaded here and nowhere before: a gateway before endpoints or GGUF files does without it
    from consort.training.tuned import load_tuned

    adapter = Path(model.adapter) if model.adapter else None
    loaded = load_tuned(model.model, adapter=adapter, runtime=runtime, chat_template=model.chat_template)
    loaded.name = model.name or loaded.name
    return loaded


def _load_gguf(model: ServedModel, runtime: RuntimeConfig) -> Decodable:
    if model.adapter:
        hint = "consort export MODEL OUT --format gguf --adapter DIR merges it"
        raise ConfigError(
            "an adapter cannot be put on a GGUF file", where=model.name or model.model, hint=hint
        )
    from consort.models.gguf.model import load_gguf

    return load_gguf(model.model, runtime=runtime, chat_template=model.chat_template, name=model.name)


def _check_given(edges: Sequence[ServedModel], cloud: ServedModel) -> None:
    """ConfigError for an edge that names no model, and for an endpoint that must be told which one."""
    named = {f"serve.edges.{index}": edge for index, edge in enumerate(edges)}
    for where, model in (named | {"serve.cloud": cloud}).items():
        if model.base_url and not model.model and not model.drafted:
            what = f"which model of {model.base_url} is not said"
            hint = 'model = "...", its name over there; before a `consort serve --role cloud`: drafted = true'
            raise ConfigError(what, where=where, hint=hint)
        if where in named and not model.is_given:
            raise ConfigError("no model is given", where=where, hint='model = "..."')


def _named(model: ServedModel, otherwise: str = "") -> ServedModel:
    name = model.name or model.model.removeprefix("zoo:").rstrip("/").rpartition("/")[2] or otherwise
    if not model.name and is_gguf(name):
        name = name[: -len(SUFFIX)]
    return replace(model, name=name)
