"""From a configuration to a service: judges chosen, models loaded, ledger opened. Does not listen."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from consort.config import Config
from consort.config_serve import ServeConfig
from consort.errors import ConfigError, DataError
from consort.gateway.ability import parties_of, refusal, usual
from consort.gateway.deferring import deferral_of, sessions_of, shows_states
from consort.gateway.judging import judges
from consort.gateway.keys import Door, read_keys
from consort.gateway.ledger import Ledger
from consort.gateway.loading import load_guides, load_lm, load_proxy, served
from consort.gateway.pool import Pool
from consort.gateway.service import Service
from consort.gateway.shadow import Shadow
from consort.gateway.strategies import STRATEGIES
from consort.inference.cache import OFF
from consort.inference.cache_measured import load_likeness
from consort.inference.mixing_weights import load_weights
from consort.inference.white_box import white_box
from consort.problems import nearest
from consort.types import DraftedLM

KEYS_FILE = "keys.json"


def open_service(config: Config) -> Service:
    """Load the models, open the ledger, read the keys. ConfigError where `serve.strategy` cannot answer."""
    edges, cloud = served(config)
    config = replace(config, serve=replace(config.serve, strategy=chosen_strategy(config)))
    # 1) who judges, before anything large is loaded but the proxy that may
    proxy = load_proxy(config)
    judging = judges(config.serve, None if proxy is None else white_box(proxy, where="serve.proxy"))
    serving, alike = judging.config, _measured_likeness(config.serve)
    mixing = load_weights(Path(config.serve.mix_weights)) if config.serve.mix_weights else None
    if serving.redact:
        import consort.inference.redaction  # noqa: F401 - read now, not during the first request
    # 2) the models, and whether they can do what is asked of them
    sessions = sessions_of(config.serve, edges, cloud)
    reading = (*edges[:1], cloud)  # who writes token by token with another
    models = [
        load_lm(
            model,
            config.runtime,
            sessions=sessions if model in reading else 0,
            shows_states=model in edges[:1] and shows_states(config.serve),
            is_alone=not edges,
        )
        for model in (*edges, *((cloud,) if cloud.is_given else ()))
    ]
    guides = load_guides(config, proxy, models[: len(edges)])
    at_edge, in_cloud = tuple(models[: len(edges)]), models[-1] if cloud.is_given else None
    deferral = deferral_of(config.serve, models, has_cloud=in_cloud is not None, sessions=sessions)
    # 3) the folder
    folder = Path(config.serve.state)
    ledger = Ledger(folder)
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
    required = bool(read_keys(folder / KEYS_FILE)) or not is_loopback(config.serve.host)
    service = Service(
        serving,
        edges=at_edge,
        cloud=in_cloud,
        door=Door(folder / KEYS_FILE, required=required, spent=ledger.spent_since(month)),
        ledger=ledger,
        prices={model.name: model for model in (*edges, cloud)},
        before=judging.before,
        after=judging.after,
        needs_logprobs=judging.needs_logprobs,
        alike=alike,
        shadow=_shadow(serving, ledger, judging.name, ledger.shadowed_since(month)),
        watch=judging.watch,
        proxy=proxy,
        hear=judging.hear,
        guides=guides,
        mixing=mixing,
        deferral=deferral,
        started_s=time.time(),
    )
    if serving.role == "cloud":
        service.pool = Pool(service, cast("DraftedLM", service.cloud), room=cloud.answers)
    return service


def chosen_strategy(config: Config) -> str:
    """What `consort` means: the strategy that is named, else one that can answer. ConfigError for one that is
    none, or that would refuse every request."""
    check_known(config)
    edges, cloud = served(config)
    who = parties_of(config.serve, edges, cloud)
    chosen = usual(config.serve, who)
    if refused := refusal(chosen, who):
        raise ConfigError(refused.what, where="serve.strategy", hint=refused.hint)
    return chosen


def check_known(config: Config) -> None:
    """ConfigError where `serve.strategy` names none."""
    if (named := config.serve.strategy) and named not in STRATEGIES:
        what, hint = f'no strategy is called "{named}"', nearest(named, list(STRATEGIES))
        raise ConfigError(what, where="serve.strategy", hint=hint)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _measured_likeness(config: ServeConfig) -> float:
    """From which likeness on the cache takes another question's answer: only what was measured counts."""
    if not config.alike:
        return OFF
    try:
        return load_likeness(Path(config.alike)).threshold
    except DataError as error:
        raise ConfigError(f"{config.alike}: {error.what}", where="serve.alike", hint=error.hint) from error


def _shadow(config: ServeConfig, ledger: Ledger, scorer: str, spent: float) -> Shadow | None:
    if not config.shadow_share:
        return None
    return Shadow(config.shadow_share, config.shadow_budget, ledger, scorer, spent)
