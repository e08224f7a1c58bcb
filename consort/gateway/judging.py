"""Who judges at this endpoint: the scorers of the configuration, their alarm, what they need of the edge."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from consort.config_serve import CONFIDENCE, PROXY, SCORER_WORDS, ServeConfig
from consort.errors import ConfigError, ModelError
from consort.gateway.watch import AFTER, BEFORE, Watch
from consort.inference.baselines import brevity, confidence
from consort.inference.drift import DriftAlarm
from consort.inference.evidence import Hear
from consort.inference.proxy import proxy_agreement
from consort.inference.scorers import gain_scorer, proxy_scorer
from consort.types import Scorer, TokenLM

if TYPE_CHECKING:
    from consort.inference.gain_file import StoredScorer


@dataclass(frozen=True, slots=True)
class Judges:
    """The scorers before and after the edge's answer, and the configuration with their threshold. `name`: a
    file's hash, or the word above. `watch` is None where there is no calibration to compare with. `hear`:
    what learned scorers hear of the proxy, and labels keep; None where none is here."""

    before: Scorer
    after: Scorer
    config: ServeConfig
    name: str = CONFIDENCE
    needs_logprobs: bool = True
    watch: Watch | None = None
    hear: Hear | None = None


def judges(config: ServeConfig, proxy: TokenLM | None = None) -> Judges:
    """Those of `serve.scorer`, which may hear the proxy; without a file the proxy itself where one is named,
    else confidence. ConfigError where `serve.scorer` is no scorer, or not one for `serve.strategy`."""
    turns = asyncio.Semaphore(max(1, config.sessions))  # one for all who ask: they read the same model
    hear = None if proxy is None else proxy_agreement(proxy, turns=turns)
    if config.scorer in ("", *SCORER_WORDS):
        if proxy is None and config.scorer == PROXY:
            hint = "name one under [serve.proxy]"
            raise ConfigError("no proxy is served that could judge", where="serve.scorer", hint=hint)
        if proxy is None or _word(config) == CONFIDENCE:
            return Judges(brevity, confidence, config, hear=hear)
        after = proxy_scorer(proxy_agreement(proxy, own_answer=False, turns=turns))
        return Judges(brevity, after, config, PROXY, needs_logprobs=False, hear=hear)
    path, stored = Path(config.scorer), _stored(config)
    model = stored.model
    if "agreement" in model.groups:
        what = f"{config.scorer} was learned with agreement, which is not heard here"
        raise ConfigError(what, where="serve.scorer", hint="calibrate on outcomes without it")
    if "proxy" in model.groups and hear is None:
        what = f"{config.scorer} was learned with the proxy, and none is served"
        hint = "name the one it was learned with under [serve.proxy]"
        raise ConfigError(what, where="serve.scorer", hint=hint)
    if model.needs_answer and config.strategy == "route":
        what = f"{config.scorer} judges answers, and route decides before there is one"
        hint = 'set strategy = "cascade", or calibrate with --when before'
        raise ConfigError(what, where="serve.scorer", hint=hint)
    scorer = gain_scorer(model, proxy_agreement=hear)
    if stored.calibration is not None:
        config = replace(config, threshold=stored.calibration.threshold)
    watch = None
    if config.drift_alarm_rate and stored.scores.size:
        alarm = DriftAlarm(stored.scores.tolist(), alarm_rate=config.drift_alarm_rate)
        watch = Watch(alarm, AFTER if model.needs_answer else AFTER | BEFORE)
    return Judges(
        brevity if model.needs_answer else scorer,
        scorer,
        config,
        scorer_name(path),
        needs_logprobs(config),
        watch,
        hear,
    )


def needs_logprobs(config: ServeConfig) -> bool:
    """Whether what judges answers reads the edge's log-probabilities. ConfigError where it is no scorer."""
    if config.scorer in ("", *SCORER_WORDS):
        return _word(config) == CONFIDENCE
    return CONFIDENCE in _stored(config).model.groups


def scorer_name(path: Path) -> str:
    """How a scorer's values are told from another's in the ledger."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _word(config: ServeConfig) -> str:
    # the bundled proxy judges only when asked: what it thinks of answers was not calibrated
    return config.scorer or (PROXY if config.proxy.model else CONFIDENCE)


def _stored(config: ServeConfig) -> StoredScorer:
    from consort.inference.gain_file import load_scorer

    try:
        return load_scorer(Path(config.scorer))
    except ModelError as error:
        raise ConfigError(f"{config.scorer}: {error.what}", where="serve.scorer", hint=error.hint) from error
