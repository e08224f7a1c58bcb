"""How a run is served: the configuration in its directory with which its tuned models answer."""

from __future__ import annotations

from dataclasses import replace

from consort.config import Config, ModelConfig
from consort.config_serve import CONFIDENCE, ServedModel

CLOUD = "cloud"  # the LLM's name among the parties
SERVED = "serve.toml"  # in a run's directory
ADAPTERS = "adapters"  # its models, by party's name
PROXY = "proxy"  # the proxy: in a run's directory where it was distilled there, in `adapters` what it learned
DRAFTER = "drafter"  # in `adapters`: a copy of the proxy's that the LLM has taught to draft for it
PROXIES = "proxies"  # what each device's copy of it learned, by device's name


def own_proxy(config: Config) -> bool:
    """Whether a run distils its proxy itself."""
    return not config.proxy.model or config.proxy.distil_steps > 0


def served_here(config: Config) -> Config:
    """The configuration that serves what a run has tuned, read from the run's directory. Models that the
    configuration says how to serve stay as they are. The proxy, or its copy that was taught to draft, drafts
    and steers; it judges where it is asked
    to (`serve.scorer`), for its threshold is not confidence's."""
    serve = config.serve
    if serve.edges or serve.cloud.model:
        return config
    edges = tuple(_tuned(device.name, device.slm) for device in config.devices)
    model = f"./{PROXY}" if own_proxy(config) else config.proxy.model
    learned = DRAFTER if config.tune.drafter_steps else PROXY
    own = ServedModel(name=PROXY, model=model, adapter=f"./{ADAPTERS}/{learned}")
    proxy = serve.proxy if serve.proxy.model else own
    cloud = _tuned(CLOUD, config.cloud)
    serve = replace(serve, edges=edges, cloud=cloud, proxy=proxy, scorer=serve.scorer or CONFIDENCE)
    return replace(config, serve=serve)


def _tuned(name: str, model: ModelConfig) -> ServedModel:
    return ServedModel(name=name, model=f"./{ADAPTERS}/{name}", chat_template=model.chat_template)
