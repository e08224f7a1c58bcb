"""From a configuration to a listening endpoint. The only file that imports the web server."""

from __future__ import annotations

import ipaddress
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from consort.config import Config
from consort.config_serve import ServeConfig
from consort.errors import ConfigError, ModelError
from consort.gateway.app import create_app
from consort.gateway.keys import Door, read_keys
from consort.gateway.ledger import Ledger
from consort.gateway.loading import load_guides, load_lm, served
from consort.gateway.service import Service
from consort.gateway.strategies import STRATEGIES
from consort.inference.baselines import brevity, confidence
from consort.inference.mixing_weights import load_weights
from consort.problems import nearest
from consort.types import Scorer

KEYS_FILE = "keys.json"


def serve(config: Config) -> None:
    """Serve until interrupted. ConfigError before anything listens."""
    check(config.serve)
    service = open_service(config)
    scheme = "https" if config.serve.tls_certificate else "http"
    print(f"serving {', '.join(lm.name for lm in service.models)}", file=sys.stderr)
    print(f"{scheme}://{config.serve.host}:{config.serve.port}/v1", file=sys.stderr)
    uvicorn.Server(server_config(service)).run()


def open_service(config: Config) -> Service:
    """Load the models, open the ledger, read the keys."""
    edges, cloud = served(config)
    if config.serve.strategy not in STRATEGIES:
        what, hint = (
            f'no strategy "{config.serve.strategy}"',
            nearest(config.serve.strategy, list(STRATEGIES)),
        )
        raise ConfigError(what, where="serve.strategy", hint=hint)
    before, after, serving = judges(config.serve)
    if serving.redact:
        import consort.inference.redaction  # noqa: F401 - read now, not during the first request
    models = [load_lm(model, config.runtime) for model in edges]
    guides = load_guides(config)
    if cloud.model:
        models.append(load_lm(cloud, config.runtime, sessions=config.serve.sessions if guides else 0))
    folder = Path(config.serve.state)
    ledger = Ledger(folder)
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    required = bool(read_keys(folder / KEYS_FILE)) or not is_loopback(config.serve.host)
    return Service(
        serving,
        edges=tuple(models[: len(edges)]),
        cloud=models[-1] if cloud.model else None,
        door=Door(folder / KEYS_FILE, required=required, spent=ledger.spent_since(month.timestamp())),
        ledger=ledger,
        prices={model.name: model for model in (*edges, cloud)},
        before=before,
        after=after,
        guides=guides,
        mixing=load_weights(Path(config.serve.mix_weights)) if config.serve.mix_weights else None,
        started_s=time.time(),
    )


def judges(config: ServeConfig) -> tuple[Scorer, Scorer, ServeConfig]:
    """The scorers before and after the edge's answer, and the configuration with their threshold.
    ConfigError where `serve.scorer` is no scorer, or not one for `serve.strategy`."""
    if not config.scorer:
        return brevity, confidence, config
    from consort.inference.gain_file import load_scorer
    from consort.inference.scorers import gain_scorer

    try:
        stored = load_scorer(Path(config.scorer))
    except ModelError as error:
        raise ConfigError(f"{config.scorer}: {error.what}", where="serve.scorer", hint=error.hint) from error
    model = stored.model
    if unheard := {"agreement", "proxy"} & set(model.groups):
        what = f"{config.scorer} was learned with {' and '.join(sorted(unheard))}, which is not heard here"
        raise ConfigError(what, where="serve.scorer", hint="calibrate on outcomes without it")
    if model.needs_answer and config.strategy == "route":
        what = f"{config.scorer} judges answers, and route decides before there is one"
        hint = 'set strategy = "cascade", or calibrate with --when before'
        raise ConfigError(what, where="serve.scorer", hint=hint)
    scorer = gain_scorer(model)
    if stored.calibration is not None:
        config = replace(config, threshold=stored.calibration.threshold)
    return (brevity if model.needs_answer else scorer), scorer, config


def server_config(service: Service) -> uvicorn.Config:
    """uvicorn as lean as it gets: no access log, no headers of its own."""
    config = service.config
    return uvicorn.Config(
        create_app(service),  # type: ignore[arg-type]
        host=config.host,
        port=config.port,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=5,
        ssl_certfile=config.tls_certificate or None,
        ssl_keyfile=config.tls_key or None,
    )


def check(config: ServeConfig) -> None:
    """What must hold before anything listens."""
    if bool(config.tls_certificate) != bool(config.tls_key):
        raise ConfigError("tls_certificate and tls_key belong together", where="serve")
    if not is_loopback(config.host) and not read_keys(Path(config.state) / KEYS_FILE):
        raise ConfigError(
            f"{config.host} is open to other machines, which requires a key",
            where="serve.host",
            hint=f"consort keys add NAME --state {config.state}",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
