"""From a configuration to a listening endpoint. The only file that imports the web server."""

from __future__ import annotations

import ipaddress
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from consort.config import Config
from consort.config_serve import ServeConfig
from consort.errors import ConfigError, DataError
from consort.gateway.app import create_app
from consort.gateway.judging import UNSCORED_HINT, judges, unscored
from consort.gateway.keys import Door, read_keys
from consort.gateway.ledger import Ledger
from consort.gateway.loading import load_lm, served
from consort.gateway.service import Service
from consort.gateway.shadow import Shadow
from consort.gateway.strategies import STRATEGIES
from consort.inference.cache import OFF
from consort.inference.cache_measured import load_likeness
from consort.problems import nearest

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
    judging = judges(config.serve)
    serving = judging.config
    alike = _measured_likeness(serving)
    if serving.redact:
        import consort.inference.redaction  # noqa: F401 - read now, not during the first request
    models = [load_lm(model, config.runtime) for model in (*edges, *((cloud,) if cloud.model else ()))]
    at_edge, needs_logprobs = tuple(models[: len(edges)]), judging.needs_logprobs
    if why := unscored(serving.strategy, at_edge, needs_logprobs=needs_logprobs):
        raise ConfigError(why, where="serve.strategy", hint=UNSCORED_HINT)
    folder = Path(config.serve.state)
    ledger = Ledger(folder)
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    required = bool(read_keys(folder / KEYS_FILE)) or not is_loopback(config.serve.host)
    return Service(
        serving,
        edges=at_edge,
        cloud=models[-1] if cloud.model else None,
        door=Door(folder / KEYS_FILE, required=required, spent=ledger.spent_since(month.timestamp())),
        ledger=ledger,
        prices={model.name: model for model in (*edges, cloud)},
        before=judging.before,
        after=judging.after,
        needs_logprobs=needs_logprobs,
        alike=alike,
        shadow=_shadow(serving, ledger, judging.name, ledger.shadowed_since(month.timestamp())),
        watch=judging.watch,
        started_s=time.time(),
    )


def _shadow(config: ServeConfig, ledger: Ledger, scorer: str, spent: float) -> Shadow | None:
    if not config.shadow_share:
        return None
    return Shadow(config.shadow_share, config.shadow_budget, ledger, scorer, spent)


def _measured_likeness(config: ServeConfig) -> float:
    """From which likeness on the cache takes another question's answer: only what was measured counts."""
    if not config.alike:
        return OFF
    try:
        return load_likeness(Path(config.alike)).threshold
    except DataError as error:
        raise ConfigError(f"{config.alike}: {error.what}", where="serve.alike", hint=error.hint) from error


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
