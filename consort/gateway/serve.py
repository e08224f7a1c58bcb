"""From a configuration to a listening endpoint. The only file that imports the web server."""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import uvicorn

from consort.config import Config
from consort.config_serve import ServeConfig
from consort.errors import ConfigError, ModelError
from consort.gateway.app import create_app
from consort.gateway.deferring import deferral_of, sessions_of
from consort.gateway.keys import Door, read_keys
from consort.gateway.ledger import Ledger
from consort.gateway.loading import load_guides, load_lm, load_proxy, served
from consort.gateway.service import Service
from consort.gateway.strategies import STRATEGIES
from consort.gateway.verifier import Pool
from consort.inference.baselines import brevity, confidence
from consort.inference.mixing_weights import load_weights
from consort.inference.proxy import proxy_agreement
from consort.inference.reading import token_lm
from consort.inference.scorers import gain_scorer, proxy_scorer
from consort.problems import nearest
from consort.types import LM, DraftedLM, Scorer, TokenLM

KEYS_FILE = "keys.json"


def serve(config: Config) -> None:
    """Serve until interrupted. ConfigError before anything listens."""
    check(config.serve)
    service = open_service(config)
    scheme = "https" if config.serve.tls_certificate else "http"
    print(f"serving {', '.join(lm.name for lm in service.models)}", file=sys.stderr)
    print(f"{scheme}://{config.serve.host}:{config.serve.port}/v1", file=sys.stderr)
    uvicorn.Server(server_config(service)).run()


@contextmanager
def running(service: Service) -> Iterator[str]:
    """The endpoint on a free port of this machine, in a thread; gives its base URL, up to /v1. The service is
    closed afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(server_config(service))
        thread = threading.Thread(target=server.run, args=([listening],), name="gateway", daemon=True)
        thread.start()  # who connects before it accepts waits in the socket's queue
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def open_service(config: Config) -> Service:
    """Load the models, open the ledger, read the keys."""
    edges, cloud = served(config)
    if config.serve.strategy not in STRATEGIES:
        what, hint = (
            f'no strategy "{config.serve.strategy}"',
            nearest(config.serve.strategy, list(STRATEGIES)),
        )
        raise ConfigError(what, where="serve.strategy", hint=hint)
    proxy = load_proxy(config)
    # the bundled one only drafts: what it thinks of answers was not calibrated
    is_judge = proxy is not None and bool(config.serve.proxy.model)
    judge = token_lm(cast("LM", proxy), where="serve.proxy") if is_judge else None
    before, after, serving = judges(config.serve, judge)
    if serving.role == "cloud":
        serving = replace(serving, strategy="cloud")
    if serving.redact:
        import consort.inference.redaction  # noqa: F401 - read now, not during the first request
    sessions = sessions_of(config.serve, edges, cloud)
    reading = (*edges[:1], cloud)  # who writes token by token with another
    models = [
        load_lm(model, config.runtime, sessions=sessions if model in reading else 0)
        for model in (*edges, *((cloud,) if cloud.model else ()))
    ]
    folder = Path(config.serve.state)
    ledger = Ledger(folder)
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    required = bool(read_keys(folder / KEYS_FILE)) or not is_loopback(config.serve.host)
    service = Service(
        serving,
        edges=tuple(models[: len(edges)]),
        cloud=models[-1] if cloud.model else None,
        door=Door(folder / KEYS_FILE, required=required, spent=ledger.spent_since(month.timestamp())),
        ledger=ledger,
        prices={model.name: model for model in (*edges, cloud)},
        before=before,
        after=after,
        proxy=proxy,
        guides=load_guides(config, proxy),
        mixing=load_weights(Path(config.serve.mix_weights)) if config.serve.mix_weights else None,
        deferral=deferral_of(config.serve, models, has_cloud=bool(cloud.model), sessions=sessions),
        started_s=time.time(),
    )
    if serving.role == "cloud":
        service.pool = Pool(service, cast("DraftedLM", service.cloud), room=cloud.answers)
    return service


def judges(config: ServeConfig, proxy: TokenLM | None = None) -> tuple[Scorer, Scorer, ServeConfig]:
    """The scorers before and after the edge's answer, and the configuration with their threshold.
    ConfigError where `serve.scorer` is no scorer, or not one for `serve.strategy`."""
    hear = None if proxy is None else proxy_agreement(proxy)
    if not config.scorer:
        if proxy is None:
            return brevity, confidence, config
        return brevity, proxy_scorer(proxy_agreement(proxy, own_answer=False)), config
    from consort.inference.gain_file import load_scorer

    try:
        stored = load_scorer(Path(config.scorer))
    except ModelError as error:
        raise ConfigError(f"{config.scorer}: {error.what}", where="serve.scorer", hint=error.hint) from error
    model = stored.model
    if "agreement" in model.groups:
        what = f"{config.scorer} was learned with agreement, which is not heard here"
        raise ConfigError(what, where="serve.scorer", hint="calibrate on outcomes without it")
    if "proxy" in model.groups and hear is None:
        what = f"{config.scorer} was learned with the proxy, and none is served"
        raise ConfigError(what, where="serve.scorer", hint="name one under [serve.proxy]")
    if model.needs_answer and config.strategy == "route":
        what = f"{config.scorer} judges answers, and route decides before there is one"
        hint = 'set strategy = "cascade", or calibrate with --when before'
        raise ConfigError(what, where="serve.scorer", hint=hint)
    scorer = gain_scorer(model, proxy_agreement=hear)
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
        ws="websockets-sansio" if service.pool is not None else "none",
        ws_per_message_deflate=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks where a client is
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
