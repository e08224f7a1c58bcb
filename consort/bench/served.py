"""How a run is served: the configuration in its directory with which its tuned models answer."""

from __future__ import annotations

from dataclasses import replace

from consort.config import Config, ModelConfig
from consort.config_serve import ServedModel

CLOUD = "cloud"  # the LLM's name among the parties
SERVED = "serve.toml"  # in a run's directory
ADAPTERS = "adapters"  # its models, by party's name


def served_here(config: Config) -> Config:
    """The configuration that serves what a run has tuned, read from the run's directory. Models that the
    configuration says how to serve stay as they are."""
    serve = config.serve
    if serve.edges or serve.cloud.model:
        return config
    edges = tuple(_tuned(device.name, device.slm) for device in config.devices)
    return replace(config, serve=replace(serve, edges=edges, cloud=_tuned(CLOUD, config.cloud)))


def _tuned(name: str, model: ModelConfig) -> ServedModel:
    return ServedModel(name=name, model=f"./{ADAPTERS}/{name}", chat_template=model.chat_template)
